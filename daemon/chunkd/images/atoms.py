"""Atoms: bytes grouped by the set of roots that hold them. Every figure of images is a sum over atoms.

A set of roots is an integer with the bits of their numbers in the graph; 0 is the set of what no root holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.figures.totals import Sample
from chunkd.images.graph import Graph
from chunkd.model import Digest

Numbers = NDArray[np.int64]

# Chunk numbers are taken in ranges, so that memory is bounded: 4 bytes a number for its class, and its length; some 100
# bytes for each class that is made; and the bytes of the sets that are left. A range with more is taken in halves.
MOST_NUMBERS = 1 << 22
MOST_CLASSES = 1 << 18
MOST_SET_BYTES = 64 << 20
# Products of two lengths are summed in two parts of 24 bits, so that each sum over a range is exact in 53 bits.
_LOW_BITS = 24


class Weight(NamedTuple):
    """Bytes, and of how many blobs or chunks; for chunks also the sums over those that were measured."""

    bytes: int = 0
    number: int = 0
    sample: Sample = Sample()

    def plus(self, other: Weight) -> Weight:
        sample = Sample(*map(sum, zip(self.sample, other.sample, strict=True)))
        return Weight(self.bytes + other.bytes, self.number + other.number, sample)


# Weights by sets of roots. A column's atoms come in parts, each with its own sets; the figures are sums over all parts.
Atoms = dict[int, Weight]
Parts = Iterable[Atoms]


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one moment. Numbers are below `count`.

    recipe    the chunk numbers of a layer, in any order and with repetitions
    lengths   for a range of numbers (from, to) their lengths; 0 for a number that is not in use
    measured  for a range of numbers those that were measured, and their recompressed lengths
    """

    count: int
    recipe: Callable[[Digest], Numbers]
    lengths: Callable[[int, int], Numbers]
    measured: Callable[[int, int], tuple[Numbers, Numbers]] = lambda _low, _high: (
        np.empty(0, np.int64),
        np.empty(0, np.int64),
    )


def blob_atoms(graph: Graph, sizes: Mapping[Digest, int]) -> Atoms:
    """The bytes of blobs, each once, if they are present; `number` counts blobs."""
    bytes_of, count_of = [0] * len(graph.holders), [0] * len(graph.holders)
    for digest, found in zip(graph.digests, graph.classes, strict=True):
        size = sizes.get(digest)
        if size is not None:
            bytes_of[found] += size
            count_of[found] += 1
    return {
        holders: Weight(size, count) for holders, size, count in zip(graph.holders, bytes_of, count_of, strict=True)
        if count
    }  # fmt: skip


def chunk_atoms(graph: Graph, layers: Iterable[Digest], chunks: Chunks) -> Iterator[Atoms]:
    """The bytes of all chunks in use, each once, in parts by ranges of numbers; `number` counts chunks. `layers` are
    all that count; those that no root holds are not read. Each recipe is asked for at least once for each part.
    """
    wanted = set(layers)
    by_holders: dict[int, list[Digest]] = {}
    for digest, holders in graph.holders_of():
        if holders and digest in wanted:
            by_holders.setdefault(holders, []).append(digest)
    most_sets = MOST_SET_BYTES // (len(graph.roots) // 8 + 1)
    pending = [(low, min(low + MOST_NUMBERS, chunks.count)) for low in range(0, chunks.count, MOST_NUMBERS)]
    while pending:
        low, high = pending.pop()
        classes = _Classes(low, high)
        if classes.fill(by_holders, chunks.recipe) and (classes.sets() <= most_sets or high - low == 1):
            yield _weighed(classes, chunks)
        else:
            middle = (low + high) // 2
            pending += [(low, middle), (middle, high)]


class _Classes:
    """For each chunk number of a range which sets of roots hold the layers that it is in: a class is made of an earlier
    one and one set more. Class 0 is in no layer that a root holds.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.of = np.zeros(high - low, np.int32)
        self._steps: list[tuple[int, int]] = [(0, 0)]

    def fill(self, by_holders: Mapping[int, Iterable[Digest]], recipe: Callable[[Digest], Numbers]) -> bool:
        """Go through the recipes. False as soon as there are too many classes, which one number alone never makes."""
        most = max(MOST_CLASSES, len(by_holders) + 1)
        for holders, layers in by_holders.items():
            first, made = len(self._steps), dict[int, int]()
            for layer in layers:
                numbers = recipe(layer)
                numbers = numbers[(numbers >= self.low) & (numbers < self.high)] - self.low
                old = self.of[numbers]
                others = old < first  # the rest were in an earlier layer of the same holders
                numbers, old = numbers[others], old[others]
                distinct, which = np.unique(old, return_inverse=True)
                new = [self._class(made, int(one), holders) for one in distinct]
                self.of[numbers] = np.array(new, np.int32)[which]
            if len(self._steps) > most:
                return False
        return True

    def _class(self, made: dict[int, int], old: int, holders: int) -> int:
        if old not in made:
            made[old] = len(self._steps)
            self._steps.append((old, holders))
        return made[old]

    def sets(self) -> int:
        """How many sets of roots are left at the most."""
        return int(np.count_nonzero(np.bincount(self.of)))

    def holders(self, one: int) -> int:
        """The set of roots of a class."""
        found = 0
        while one:
            one, holders = self._steps[one]
            found |= holders
        return found


def _weighed(classes: _Classes, chunks: Chunks) -> Atoms:
    lengths = chunks.lengths(classes.low, classes.high)
    is_live = lengths > 0
    live = classes.of[is_live]
    used = np.flatnonzero(np.bincount(live))
    numbers, y = chunks.measured(classes.low, classes.high)
    x, measured = lengths[numbers - classes.low], classes.of[numbers - classes.low]
    weights = zip(_sums(live, lengths[is_live], used), _sums(live, np.ones_like(live), used), strict=True)
    samples = zip(*(_sums(measured, of, used) for of in (np.ones_like(x), x, y, x * x, x * y, y * y)), strict=True)
    atoms: Atoms = {}
    for one, weight, sample in zip(used.tolist(), weights, samples, strict=True):
        add(atoms, classes.holders(one), Weight(*weight, Sample(*sample)))
    return atoms


def add(atoms: Atoms, holders: int, weight: Weight) -> None:
    """Add a weight to those of a set."""
    before = atoms.get(holders)
    atoms[holders] = before.plus(weight) if before else weight


def _sums(classes: NDArray[np.int32], values: Numbers, used: Numbers) -> list[int]:
    """The sum of the values of each class that is used; exact, although `bincount` adds in floating point."""
    count = int(used.max(initial=0)) + 1
    high = np.bincount(classes, values >> _LOW_BITS, count)[used].tolist()
    low = np.bincount(classes, values & ((1 << _LOW_BITS) - 1), count)[used].tolist()
    return [(int(above) << _LOW_BITS) + int(below) for above, below in zip(high, low, strict=True)]


def regrouped(parts: Parts, groups: list[int]) -> Iterator[Atoms]:
    """The parts by sets of groups, where `groups` has for each root the set of groups that it is in."""
    for atoms in parts:
        found: Atoms = {}
        for holders, weight in atoms.items():
            into = 0
            for root in members(holders).tolist():
                into |= groups[root]
            add(found, into, weight)
        yield found


def members(holders: int) -> Numbers:
    """The numbers in a set, ascending."""
    if holders.bit_count() == 1:
        return np.array([holders.bit_length() - 1], np.int64)
    octets = np.frombuffer(holders.to_bytes(-(-holders.bit_length() // 8), "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little").view(np.bool_))
