"""Look-up entries as packed arrays, both ways: the first 4 bytes of a hash (its prefix), and a chunk number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.index.blocks import Numbers
from chunkd.index.records import Damaged

Prefixes = NDArray[np.uint32]

ENTRY_BYTES = 9
WORD, OCTET = np.dtype("<u4"), np.dtype("u1")


def prefixes_of(leading: NDArray[np.uint64]) -> Prefixes:
    """The first 4 bytes of each hash as a big-endian number, so that the numbers sort as the bytes do.

    `leading` holds the first 8 bytes of each hash as a little-endian number, as chunk records do.
    """
    return (leading.byteswap() >> np.uint64(32)).astype(WORD)


class Entries(NamedTuple):
    """Entries sorted by prefix: the prefixes, and the low 32 and high 8 bits of the numbers."""

    prefixes: Prefixes
    low: NDArray[np.uint32]
    high: NDArray[np.uint8]

    @classmethod
    def of(cls, prefixes: Prefixes, numbers: Numbers) -> Entries:
        return cls(prefixes.astype(WORD), (numbers & 0xFFFFFFFF).astype(WORD), (numbers >> 32).astype(OCTET))

    @property
    def numbers(self) -> Numbers:
        return self.low.astype(np.int64) | (self.high.astype(np.int64) << 32)

    def pick(self, rows: slice | NDArray[np.bool_]) -> Entries:
        return Entries(self.prefixes[rows], self.low[rows], self.high[rows])

    def merged(self, others: Entries) -> Entries:
        """Both sets of entries as one."""
        at = self.prefixes.searchsorted(others.prefixes, "right") + np.arange(len(others.prefixes))
        own = np.ones(len(self.prefixes) + len(at), bool)
        own[at] = False
        parts = [np.empty(len(own), part.dtype) for part in self]
        for part, before, added in zip(parts, self, others, strict=True):
            part[own] = before
            part[at] = added
        return Entries(*parts)

    def packed(self, edges: Sequence[int]) -> Iterator[bytes]:
        """For each pair of neighbouring edges, the bytes of the entries between them.

        Little-endian: all prefixes (u32), then all numbers' low 32 bits (u32), then all numbers' high bits (u8).
        """
        prefixes, low, high = (part.view(OCTET).data for part in self)
        for start, end in itertools.pairwise(edges):
            yield b"".join((prefixes[4 * start : 4 * end], low[4 * start : 4 * end], high[start:end]))


def unpack_entries(value: bytes | memoryview) -> Entries:
    """The entries, without a copy. Raises Damaged when the value is not a whole number of them.

    `recount` checks that they are sorted.
    """
    count, rest = divmod(len(value), ENTRY_BYTES)
    if rest:
        raise Damaged(f"{len(value)} bytes are not look-up entries")
    return Entries(
        np.frombuffer(value, WORD, count),
        np.frombuffer(value, WORD, count, 4 * count),
        np.frombuffer(value, OCTET, count, 8 * count),
    )


def join_entries(values: Sequence[bytes | memoryview]) -> Entries:
    """The entries of several values in a row, as a copy. Raises Damaged as `unpack_entries` does."""
    counts = [len(value) // ENTRY_BYTES for value in values]
    prefixes = b"".join([value[: 4 * count] for value, count in zip(values, counts, strict=True)])
    low = b"".join([value[4 * count : 8 * count] for value, count in zip(values, counts, strict=True)])
    high = b"".join([value[8 * count :] for value, count in zip(values, counts, strict=True)])
    if len(high) != sum(counts):
        raise Damaged("a value of the look-up is not a whole number of entries")
    return Entries(np.frombuffer(prefixes, WORD), np.frombuffer(low, WORD), np.frombuffer(high, OCTET))
