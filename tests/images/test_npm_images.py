"""All figures over the chunks of real layers: images made of the 90 npm layers, one for each package's version."""

from __future__ import annotations

import gzip
import random

import numpy as np

from chunkd.chunkers.gear import Chunker
from chunkd.images.columns import Column
from chunkd.model import ChunkParams, MeasureRule
from chunkd.worker.recompress import Recompressor
from daemon import NPM_FIGURES, npm_layers
from test_figures import assert_like_the_oracle
from worlds import Maker


def test_images_of_real_layers() -> None:
    make = Maker()
    numbers: dict[bytes, int] = {}
    layers = []
    for path in npm_layers():
        chunker = Chunker(ChunkParams(), measure=Recompressor(MeasureRule()))
        chunker.feed(gzip.decompress(path.read_bytes()))
        recipe = chunker.finish()
        hashes = [recipe.hashes[at : at + 16] for at in range(0, len(recipe.hashes), 16)]
        lengths = np.frombuffer(recipe.lengths, "<u4").tolist()
        layer = make.layer(size=path.stat().st_size)
        make.world.layers[layer] = [
            (numbers.setdefault(one, len(numbers)), length) for one, length in zip(hashes, lengths, strict=True)
        ]
        layers.append(layer)
    draw = random.Random(1)
    bases = [make.layer(*draw.sample(range(len(numbers)), 50)) for _ in range(2)]
    for base in bases:  # of chunks that other layers have too
        lengths_of = {chunk: length for layer in layers for chunk, length in make.world.layers[layer]}
        make.world.layers[base] = [(chunk, lengths_of[chunk]) for chunk, _ in make.world.layers[base]]
    images = [make.image(bases[at % 2], layer) for at, layer in enumerate(layers[:80])]
    for at, image in enumerate(images[:70]):
        make.name(f"npm/package{at // 10}:v{at % 10}", image, 1000 + at)
    make.name("npm/package0:latest", images[9], 1009)
    both = make.index((images[75], "amd64"), (images[76], "arm64"), attestations=[images[77]])
    make.name("npm/both:v1", both, 5000)
    found, _ = assert_like_the_oracle(make.world)
    reply = found.to_json()
    assert len(reply["images"]) == 78
    assert reply["unheld"]["blobs"] == 10
    column = Column(found.chunk_parts(), 78)
    assert column.total_bytes == NPM_FIGURES["totals"]["unique_bytes"]
    assert sum(row.fair_share_bytes for row in column.rows) + column.unheld.bytes == column.total_bytes
