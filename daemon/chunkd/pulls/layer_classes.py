"""The chunks of layers by classes: the chunks of a class are in the same layers. What a client lacks of a layer, and in
how many runs, follows from the classes that it has, without going through chunks again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.errors import ChunkdError
from chunkd.figures.totals import Sample
from chunkd.images.atoms import Chunks, Numbers
from chunkd.model import Digest

# Chunk numbers are taken in ranges while classes are found; each number takes some 50 bytes then, and 4 for its class.
RANGE_NUMBERS = 1 << 21
MOST_NUMBERS = 1 << 28
# Each class takes 250 bytes, each class of a layer 5, each pair of classes 12.
MOST_CLASSES = 1 << 20
MOST_PAIRS = 1 << 25

Bits = NDArray[np.uint8]


class TooManyClasses(ChunkdError):
    """The index is too large for a replay."""

    def __init__(self, why: str) -> None:
        super().__init__(f"replay: the index is too large for one: {why}; use an index of fewer caches (`--state DIR`)")


@dataclass(frozen=True, slots=True)
class Weights:
    """For each class the bytes of its chunks, how many they are, and the sums over those that were measured."""

    bytes: Numbers
    chunks: Numbers
    samples: tuple[Numbers, ...]

    def totals(self, times: Numbers) -> tuple[int, int, Sample]:
        """Bytes, chunks and sums if each class is moved so many times. The sums weigh each chunk by how often it moves,
        so that their error is that of the whole; chunks are counted once, as there are no more to be measured.
        """
        moved = times > 0
        n, x, y, xx, xy, yy = self.samples
        once = (int(self.chunks[moved].sum()), int(n[moved].sum()))
        size, x_sum, y_sum = (_product(column, times) for column in (self.bytes, x, y))
        squares = (_product(column, times, times) for column in (xx, xy, yy))
        return size, once[0], Sample(once[1], x_sum, y_sum, *squares)


def _product(*columns: Numbers) -> int:
    """The sum of the products, in whole numbers however large."""
    if not len(columns[0]):
        return 0
    most = 1
    for column in columns:
        most *= int(column.max())
    kind = np.int64 if most * len(columns[0]) < 1 << 62 else object
    product = columns[0].astype(kind)
    for column in columns[1:]:
        product = product * column
    return int(product.sum())


class Lacked(NamedTuple):
    """What a client lacks of a layer: which classes, how many bytes in how many runs along the recipe, and the number
    of measured chunks among them with their bytes and recompressed bytes.
    """

    classes: NDArray[np.int32]
    bytes: int
    runs: int
    measured: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LayerClasses:
    """The classes of each layer, by the layer's number. A set of classes is an array of `bits_bytes` bytes with the
    bits of their numbers; class 0 has no chunk.

    A layer's part of `classes` is ascending, and `octets` and `masks` are the same as bytes of such a set. A layer's
    part of `pairs` has, for two classes that follow one another in its recipe, the place of each among its own classes
    and how often they do. Place 0 stands before the first chunk and for each further copy of one: neither is moved.
    """

    weights: Weights
    bits_bytes: int
    classes: NDArray[np.int32]
    class_ends: Numbers
    octets: NDArray[np.int32]
    masks: Bits
    octet_ends: Numbers
    pairs: NDArray[np.int32]
    pair_ends: Numbers

    def had(self, layer: int, have: Bits) -> bytes:
        """Which classes of a layer are in a set: equal for equal answers of `lacked`."""
        part = slice(self.octet_ends[layer], self.octet_ends[layer + 1])
        return (have[self.octets[part]] & self.masks[part]).tobytes()

    def put(self, layer: int, have: Bits) -> None:
        """Add the classes of a layer to a set."""
        part = slice(self.octet_ends[layer], self.octet_ends[layer + 1])
        have[self.octets[part]] |= self.masks[part]

    def lacked(self, layer: int, have: Bits) -> Lacked:
        classes = self.classes[self.class_ends[layer] : self.class_ends[layer + 1]]
        lacks = have[classes >> 3] >> (classes & 7).astype(np.uint8) & 1 == 0
        before, after, times = self.pairs[self.pair_ends[layer] : self.pair_ends[layer + 1]].T
        moves = np.concatenate(([False], lacks))
        missing = classes[lacks]
        n, x, y, *_ = (int(column[missing].sum()) for column in self.weights.samples)
        runs = int(times[moves[after] & ~moves[before]].sum())
        return Lacked(missing, int(self.weights.bytes[missing].sum()), runs, (n, x, y))


def classes_of(layers: Sequence[Digest], chunks: Chunks) -> LayerClasses:
    """Goes through each recipe once for each range of chunk numbers, and once more. Raises TooManyClasses.

    Chunks are told apart by the sum of random numbers of the layers that they are in. Two classes of a million
    are taken for one in one of 10^7 replays.
    """
    if chunks.count > MOST_NUMBERS:
        raise TooManyClasses(f"the index has more than {MOST_NUMBERS} chunk numbers")
    class_of, count = _classes(layers, chunks)
    classes, octets, masks, pairs = (_Rows(kind) for kind in (np.int32, np.int32, np.uint8, np.int32))
    for layer in layers:
        own, followed = _own_classes(class_of, chunks.recipe(layer))
        classes.append(own)
        pairs.append(followed)
        mine, starts = np.unique(own >> 3, return_index=True)
        octets.append(mine)
        bits = np.uint8(1) << (own & 7).astype(np.uint8)
        masks.append(np.bitwise_or.reduceat(bits, starts) if len(own) else bits)
        if len(pairs.data) > 12 * MOST_PAIRS:
            raise TooManyClasses(f"the layers have more than {MOST_PAIRS} pairs of classes")
    return LayerClasses(
        _weights(class_of, count, chunks), (count >> 3) + 1, classes.whole(), classes.places(),
        octets.whole(), masks.whole(), octets.places(), pairs.whole().reshape(-1, 3), pairs.places() // 3,
    )  # fmt: skip


class _Rows:
    """Arrays one behind the other."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = np.dtype(kind)
        self.data, self._ends = bytearray(), [0]

    def append(self, row: NDArray[np.generic]) -> None:
        self.data += row.astype(self._kind).tobytes()
        self._ends.append(len(self.data) // self._kind.itemsize)

    def whole(self) -> NDArray[Any]:
        return np.frombuffer(self.data, self._kind)

    def places(self) -> Numbers:
        return np.array(self._ends, np.int64)


def _ranges(chunks: Chunks) -> Iterator[tuple[int, int]]:
    for low in range(0, chunks.count, RANGE_NUMBERS):
        yield low, min(low + RANGE_NUMBERS, chunks.count)


def _classes(layers: Sequence[Digest], chunks: Chunks) -> tuple[NDArray[np.int32], int]:
    """The class of each chunk number, and how many classes there are. Class 0 is in no layer."""
    keys = [np.uint64(random.getrandbits(64)) for _ in layers]
    class_of = np.zeros(chunks.count, np.int32)
    known: dict[int, int] = {0: 0}
    for low, high in _ranges(chunks):
        sums = np.zeros(high - low, np.uint64)
        for layer, key in zip(layers, keys, strict=True):
            numbers = chunks.recipe(layer)
            numbers = numbers[(numbers >= low) & (numbers < high)] - low
            sums[numbers] += key  # once for a number that stands there twice
        distinct, which = np.unique(sums, return_inverse=True)
        found = [known.setdefault(one, len(known)) for one in distinct.tolist()]
        if len(known) > MOST_CLASSES:
            raise TooManyClasses(f"its chunks are in more than {MOST_CLASSES} different sets of layers")
        class_of[low:high] = np.array(found, np.int32)[which]
    return class_of, len(known)


def _weights(class_of: NDArray[np.int32], count: int, chunks: Chunks) -> Weights:
    columns = [np.zeros(count, np.int64) for _ in range(8)]
    for low, high in _ranges(chunks):
        lengths, own = chunks.lengths(low, high), class_of[low:high]
        numbers, y = chunks.measured(low, high)
        x, measured = lengths[numbers - low], own[numbers - low]
        for column, values in zip(columns[:2], (lengths, lengths > 0), strict=True):
            _add(column, own, values)
        for column, values in zip(columns[2:], (np.ones_like(x), x, y, x * x, x * y, y * y), strict=True):
            _add(column, measured, values)
    return Weights(columns[0], columns[1], tuple(columns[2:]))


def _add(column: Numbers, classes: NDArray[np.int32], values: NDArray[Any]) -> None:
    """In two parts of 24 bits, as `bincount` adds in floating point and each sum is to be exact."""
    for shift in (0, 24):
        part = values.astype(np.int64) >> shift & (1 << 24 << shift) - 1
        column += np.bincount(classes, part, len(column)).astype(np.int64) << shift


def _own_classes(class_of: NDArray[np.int32], numbers: Numbers) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The classes of a layer, ascending, and the rows of its `pairs`."""
    own, places = np.unique(class_of[numbers], return_inverse=True)
    after = np.zeros(len(numbers), np.int64)
    firsts = np.unique(numbers, return_index=True)[1]
    after[firsts] = places[firsts] + 1
    before = np.concatenate(([0], after[:-1]))[: len(after)]
    begins = (after > 0) & (after != before)
    codes, times = np.unique(before[begins] * (len(own) + 1) + after[begins], return_counts=True)
    return own, np.stack((codes // (len(own) + 1), codes % (len(own) + 1), times), 1).astype(np.int32)
