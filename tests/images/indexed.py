"""Made-up images in a real index: the worlds of the oracle, and names as a reading would leave them there."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import replace

from chunkd.index import records
from chunkd.index.index import Change
from chunkd.index.records import Held
from chunkd.model import Blob, FileMark, Place, Recipe
from chunkd.names import record
from chunkd.names.name import Name, Part, Standing
from chunkd.worker import manifest, manifest_record
from image_oracle import Oracle, World
from indexing import CACHE, NOW_NS, Bench
from worlds import real


def measured(world: World) -> World:
    """The world, in which every other chunk is measured, as the hashes below have it."""
    numbers = {number for layer in world.layers.values() for number, _ in layer}
    return replace(world, measured={number: 20 + number for number in numbers if number % 2 == 0})


def recipe_of(world: World, layer: str) -> Recipe:
    chunks = world.layers[layer]
    hashes = [hashlib.blake2b(b"%d" % number, digest_size=14).digest() for number, _ in chunks]
    picks = [bytes([0, 255 * (number % 2)]) for number, _ in chunks]
    frames = [world.measured[number] for number, _ in chunks if number % 2 == 0]
    return Recipe(
        b"".join(map(bytes.__add__, hashes, picks)),
        struct.pack(f"<{len(chunks)}I", *(length for _, length in chunks)),
        struct.pack(f"<{len(frames)}I", *frames),
    )


def put_world(change: Change, world: World) -> None:
    """Count each blob that is present, and keep the names."""
    for name in sorted(world.present):
        digest = real(name)
        said = manifest.parse(world.bytes_of(name)) if name in world.documents else manifest.UNKNOWN
        blob = Blob(digest, "other", world.size(name), reason=said.kind.value if said is not manifest.UNKNOWN else "")
        recipe = Recipe(b"", b"", b"")
        if name in world.layers:
            recipe = recipe_of(world, name)
            uncompressed_bytes = sum(length for _, length in world.layers[name])
            blob = Blob(digest, "layer", world.size(name), uncompressed_bytes, len(recipe), "gzip")
        mark = FileMark(1, 1, blob.stored_bytes, NOW_NS)
        change.hold(Place(CACHE, digest.hex), Held(digest, "verified", mark))
        change.add(blob, recipe, manifest_record.encode(said))
    names = [
        Name(text, repository, tag, real(name), at_ns, Standing(standing))
        for standing, text, repository, tag, name, at_ns in world.names
    ]
    put_names(change, "", [Part("registry", "", tuple(names))])


def put_names(change: Change, base: str, parts: Iterable[Part], cache: int = CACHE) -> None:
    """Keep names as they would be after a reading."""
    for part in parts:
        if part.names is not None:
            value = record.encode(record.Kept(base, part, NOW_NS))
            change.put_names(records.names_key(cache, record.key_of(base, part)), value)


def put(bench: Bench, world: World) -> Oracle:
    """The oracle of a world whose blobs and names are all that the index has."""
    world = measured(world)
    with bench.index.transaction() as change:
        put_world(change, world)
    return Oracle(world)
