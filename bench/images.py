"""How long do the figures of images take, and how much memory?

    python bench/images.py [IMAGES]     10,000 unless said, over 2 million chunks

Images as teams make them: a repository has a base image of three layers that others have too, a layer of dependencies
that changes with each fifth version, and an application of which each version changes a part. Bases and dependencies
are made of the same 2,500 libraries. The sums must be those of all chunks.
"""

from __future__ import annotations

import hashlib
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from chunkd.images.atoms import Chunks, Numbers
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, build
from chunkd.images.similarity import Similarities
from chunkd.model import Digest
from chunkd.names.name import Name
from chunkd.worker.manifest import Contents, Edge, Kind, Role
from measure import Bar, of_runs, save

IMAGES = 10_000
VERSIONS = 20
CHUNK_BYTES = 16_000
# What was asked for: all figures in 10 s, and in 256 MiB.
FIGURES_S = 10.0
Found = TypeVar("Found")


@dataclass
class MadeUp:
    """Blobs, names and recipes."""

    blobs: dict[Digest, BlobFacts] = field(default_factory=dict)
    names: list[Name] = field(default_factory=list)
    recipes: dict[Digest, Numbers] = field(default_factory=dict)
    count: int = 0

    def fresh(self, chunks: int) -> Numbers:
        self.count += chunks
        return np.arange(self.count - chunks, self.count)

    def put(self, contents: Contents | None = None) -> Digest:
        digest = Digest("sha256", hashlib.sha256(b"%d" % len(self.blobs)).hexdigest())
        self.blobs[digest] = BlobFacts(1000, contents)
        return digest

    def layer(self, parts: Sequence[Numbers]) -> Digest:
        digest = self.put()
        self.recipes[digest] = np.concatenate(parts)
        return digest

    def image(self, name: str, repository: str, layers: Sequence[Digest]) -> None:
        config = self.put(Contents(Kind.CONFIG, (), len(self.names) + 1, "linux/amd64"))
        edges = (Edge(Role.CONFIG, config), *(Edge(Role.LAYER, layer) for layer in layers))
        digest = self.put(Contents(Kind.IMAGE, edges))
        self.names.append(Name(f"{repository}:{name}", repository, name, digest, len(self.names) + 1))

    def chunks(self) -> Chunks:
        def measured(low: int, high: int) -> tuple[Numbers, Numbers]:
            some = np.arange(-(-low // 16) * 16, high, 16)
            return some, np.full(len(some), CHUNK_BYTES // 2)

        return Chunks(
            self.count, self.recipes.__getitem__, lambda low, high: np.full(high - low, CHUNK_BYTES), measured
        )


def made_up(images: int) -> MadeUp:
    found, draw = MadeUp(), random.Random(1)
    libraries = [found.fresh(draw.randrange(20, 300)) for _ in range(2500)]

    def some(count: int) -> list[Numbers]:
        return [draw.choice(libraries) for _ in range(count)]

    bases = [[found.layer([found.fresh(2000), *some(12)]) for _ in range(3)] for _ in range(60)]
    for repository in range(-(-images // VERSIONS)):
        base = bases[min(59, int(draw.expovariate(0.1)))]
        dependencies, application = some(15), [found.fresh(20) for _ in range(15)]
        layer = found.layer(dependencies)
        for version in range(VERSIONS):
            if version % 5 == 4:
                dependencies[draw.randrange(15)] = draw.choice(libraries)
                layer = found.layer(dependencies)
            for _ in range(2):
                application[draw.randrange(15)] = found.fresh(60)
            layers = [*base, layer, found.layer(application), found.layer([found.fresh(3)])]
            found.image(f"v{version}", f"team/app{repository}", layers)
    return found


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def timed(what: str, seconds: dict[str, float], question: Callable[[], Found]) -> Found:
    began = time.perf_counter()
    answer = question()
    seconds[what] = time.perf_counter() - began
    return answer


def asked(images: int) -> tuple[dict[str, object], list[Bar]]:
    made = made_up(images)
    before_bytes = peak_bytes()
    seconds: dict[str, float] = {}
    graph = timed("graph", seconds, lambda: build(made.blobs, made.names))
    sizes = {digest: CHUNK_BYTES * len(recipe) for digest, recipe in made.recipes.items()}
    found = Images.of(graph, made.blobs, sizes, made.chunks())
    atoms = timed("atoms", seconds, lambda: sum(map(len, found.chunk_parts())))
    reply = timed("all figures", seconds, found.to_json)
    timed("by repository", seconds, found.by_repository)
    timed("freed", seconds, lambda: found.freed((1 << len(graph.roots) // 10) - 1))
    for name in ("fair_share_bytes", "new_bytes"):
        rows = sum(row["chunks"][name] for row in reply["images"])
        assert rows + reply["unheld"]["unique_bytes"] == CHUNK_BYTES * made.count
    more_bytes = peak_bytes() - before_bytes
    alike = timed("similarities", seconds, lambda: Similarities(found.chunk_parts(), len(graph.roots)))
    timed("clusters", seconds, lambda: alike.clusters(500))
    print(
        f"{len(graph.roots):,} images, {made.count:,} chunks, {atoms:,} atoms;"
        f" {more_bytes >> 20} MiB beside the recipes"
    )
    print(", ".join(f"{what} {value:.1f} s" for what, value in seconds.items()))
    results = {
        "images": len(graph.roots),
        "chunks": made.count,
        "atoms": atoms,
        "bytes": more_bytes,
        "seconds": seconds,
    }
    figures_s = seconds["graph"] + seconds["all figures"]
    return results, [of_runs("figures of all images", [figures_s], FIGURES_S, "s")]


def main() -> None:
    results, bars = asked(int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
    save("images", results, bars)


if __name__ == "__main__":
    main()
