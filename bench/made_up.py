"""An index of made-up layers, and a model of what its totals must be.

A chunk is made from its number: no two have one hash, any of them can be had again at any time, and nothing but the
copies of each has to be kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.check.recount import recount
from chunkd.figures.totals import Totals
from chunkd.index.blocks import Numbers, picked
from chunkd.index.index import Change, Index
from chunkd.index.records import Held, Rules
from chunkd.model import Blob, Cache, Digest, FileMark, MeasureRule, Place, Recipe

STORED_BYTES = 10**9


class Cost(NamedTuple):
    """What one transaction took, its commit included. `written_bytes` is 0 where the system does not tell."""

    cpu_s: float
    wall_s: float
    written_bytes: int


class Layer(NamedTuple):
    """A layer in the index; its numbers are kept in 4 bytes each, for there are many."""

    digest: Digest
    numbers: NDArray[np.uint32]


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function: other numbers, evenly spread, no two alike."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def lengths_of(numbers: Numbers) -> NDArray[np.uint32]:
    return (2048 + mixed(3 * numbers.astype(np.uint64) + np.uint64(2)) % np.uint64(63489)).astype("<u4")


def hashes_of(numbers: Numbers) -> NDArray[np.uint64]:
    wide = 3 * numbers.astype(np.uint64)
    return np.stack((mixed(wide), mixed(wide + np.uint64(1))), axis=1)


def is_measured(numbers: Numbers) -> NDArray[np.bool_]:
    return picked(hashes_of(numbers)[:, 1], MeasureRule().threshold)


def recipe_of(numbers: Numbers) -> Recipe:
    """Each chunk is said to take a third of its length when it is recompressed."""
    lengths = lengths_of(numbers)
    measured = (lengths[is_measured(numbers)] // 3).astype("<u4")
    return Recipe(hashes_of(numbers).astype("<u8").tobytes(), lengths.tobytes(), measured.tobytes())


def written_bytes() -> int:
    """What this process gave the kernel to write, 0 where that is not told (elsewhere than on Linux).

    Linux's own `write_bytes` counts whole folios where a page of one changed, 1.4 to 3.6 times what reaches the disk
    from ext4; `wchar` was within 1 % of the disk's own counter.
    """
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return int(dict(line.split(": ") for line in lines)["wchar"])


class Grown:
    """An index with a model beside it. Whatever is done, its totals are the model's, or AssertionError is raised."""

    def __init__(self, index: Index, most_chunks: int) -> None:
        self.index = index
        self.chunks = 0
        self._copies = np.zeros(most_chunks, np.uint16)
        self.expected = Totals()
        self._names = itertools.count()
        with index.transaction() as change:
            change.set_caches({1: Cache("/made-up")})

    def new(self, chunks: int) -> tuple[Layer, Cost]:
        """Add a layer of so many chunks that were in none before."""
        self.chunks += chunks
        return self.add(np.arange(self.chunks - chunks, self.chunks))

    def add(self, numbers: Numbers) -> tuple[Layer, Cost]:
        """Add a layer of these chunks."""
        digest = Digest("sha256", hashlib.sha256(str(next(self._names)).encode()).hexdigest())
        recipe = recipe_of(numbers)
        blob = Blob(digest, "layer", STORED_BYTES, int(lengths_of(numbers).sum(dtype=np.int64)), len(numbers), "gzip")
        held = Held(digest, "verified", FileMark(1, 1, STORED_BYTES, 1))
        with self._measured(numbers, +1) as (change, costs):
            change.hold(Place(1, digest.hex), held)
            change.add(blob, recipe)
        return Layer(digest, numbers.astype(np.uint32)), costs[0]

    def remove(self, layer: Layer) -> Cost:
        with self._measured(layer.numbers.astype(np.int64), -1) as (change, costs):
            change.release(Place(1, layer.digest.hex), layer.digest)
            change.remove(layer.digest)
        return costs[0]

    @contextlib.contextmanager
    def _measured(self, numbers: Numbers, sign: int) -> Iterator[tuple[Change, list[Cost]]]:
        """One transaction that counts a layer in or out: what it took is put into the list when it is over."""
        costs: list[Cost] = []
        cpu_s, wall_s, wrote_bytes = time.process_time(), time.perf_counter(), written_bytes()
        with self.index.transaction() as change:
            yield change, costs
        costs.append(Cost(time.process_time() - cpu_s, time.perf_counter() - wall_s, written_bytes() - wrote_bytes))
        self._count(numbers, sign)
        assert self.totals == self.expected, f"{self.totals} is not {self.expected}"

    def _count(self, numbers: Numbers, sign: int) -> None:
        distinct, times = np.unique(numbers, return_counts=True)
        before = self._copies[distinct].astype(np.int64)
        after = before + sign * times
        self._copies[distinct] = after
        turned = (after > 0).astype(np.int64) - (before > 0)
        lengths = lengths_of(distinct).astype(np.int64)
        own = is_measured(distinct)
        x, by, copied = lengths[own], turned[own], sign * times[own]
        y = x // 3
        old = self.expected
        self.expected = dataclasses.replace(
            old,
            layers=old.layers + sign,
            stored_bytes=old.stored_bytes + sign * STORED_BYTES,
            layer_stored_bytes=old.layer_stored_bytes + sign * STORED_BYTES,
            uncompressed_bytes=old.uncompressed_bytes + sign * int(lengths @ times),
            chunks=old.chunks + sign * len(numbers),
            unique_chunks=old.unique_chunks + int(turned.sum()),
            unique_bytes=old.unique_bytes + int(lengths @ turned),
            measured_chunks=old.measured_chunks + int(by.sum()),
            measured_bytes=old.measured_bytes + int(x @ by),
            measured_recompressed_bytes=old.measured_recompressed_bytes + int(y @ by),
            measured_xx=old.measured_xx + int(x * x @ by),
            measured_xy=old.measured_xy + int(x * y @ by),
            measured_yy=old.measured_yy + int(y * y @ by),
            measured_copies_bytes=old.measured_copies_bytes + int(x @ copied),
            measured_copies_recompressed_bytes=old.measured_copies_recompressed_bytes + int(y @ copied),
        )

    @property
    def totals(self) -> Totals:
        with self.index.snapshot() as txn:
            return self.index.store.head(txn).totals

    def used_bytes(self) -> int:
        """The bytes of all pages that hold a record."""
        with self.index.snapshot() as txn:
            stats = [txn.stat(database) for database in self.index.store.databases.values()]
        return sum(
            stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) for stat in stats
        )

    def recount(self) -> None:
        """Every figure again from the recipes. Raises AssertionError when one differs."""
        with self.index.snapshot() as txn:
            differences = recount(self.index.store, txn).differences
        assert not differences, str(differences[:3])


@contextlib.contextmanager
def grown(folder: str, most_chunks: int) -> Iterator[Grown]:
    """A fresh index in a folder, closed at the end."""
    index = Index(folder, Rules(), "a benchmark")
    try:
        yield Grown(index, most_chunks)
    finally:
        index.close()


def in_runs(random: np.random.Generator, chunks: int, mean_chunks: int, of: int) -> Numbers:
    """So many chunk numbers below `of`, in runs of this mean length that begin anywhere."""
    counts = random.geometric(1 / mean_chunks, 2 * chunks // mean_chunks + 10)
    counts = np.minimum(counts, of)
    firsts = (random.random(len(counts)) * (of - counts + 1)).astype(np.int64)
    ends = np.cumsum(counts)
    numbers = np.repeat(firsts - (ends - counts), counts) + np.arange(int(ends[-1]))
    assert len(numbers) >= chunks
    return numbers[:chunks]
