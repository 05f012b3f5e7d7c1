"""Hash to chunk number: sorted arrays of 9-byte entries, derived from the chunk records and rebuildable from them.

An entry is the first 4 bytes of a hash (its prefix) and a chunk number. New entries go to `young`, one value for each
first byte of the hash; slice by slice they are merged into `dense`, whose values each hold a range of prefixes and
start at their key. A prefix proves nothing: every entry with the right one is a candidate, tried against the full hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.blocks import Numbers
from chunkd.records import Damaged

Prefixes = NDArray[np.uint32]

ENTRY_BYTES = 9
# 16,384 entries are 144 KiB: 36 pages that must lie side by side, and what a merge writes for a single new entry.
DENSE_ENTRIES = 16384
SLICES = 256
# Young entries that are not worth merging; new chunks for each slice that a transaction may merge beyond the first.
YOUNG_FLOOR = 16384
CHUNKS_PER_MERGE = 4096


def prefixes_of(hashes: NDArray[np.uint64]) -> Prefixes:
    """The first four bytes of each hash as a big-endian number, so that numbers sort as the bytes do."""
    return hashes[:, 0].astype("<u8").view("<u4")[0::2].byteswap().astype(np.uint32)


def pack_entries(prefixes: Prefixes, numbers: Numbers) -> bytes:
    """Little-endian: all prefixes (u32), then all numbers' low 32 bits (u32), then all numbers' high bits (u8)."""
    low = (numbers & 0xFFFFFFFF).astype("<u4")
    return prefixes.astype("<u4").tobytes() + low.tobytes() + (numbers >> 32).astype("u1").tobytes()


def unpack_entries(value: bytes | memoryview) -> tuple[Prefixes, Numbers]:
    """Raises Damaged when the value is no whole number of entries. That they are sorted is `recount`'s to tell."""
    count, rest = divmod(len(value), ENTRY_BYTES)
    if rest:
        raise Damaged(f"{len(value)} bytes are no look-up entries")
    prefixes = np.frombuffer(value, "<u4", count)
    low = np.frombuffer(value, "<u4", count, 4 * count)
    high = np.frombuffer(value, "u1", count, 8 * count)
    return prefixes, low.astype(np.int64) | (high.astype(np.int64) << 32)


def groups(keys: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(key, start, end) of each run of equal keys in a sorted array."""
    if not len(keys):
        return
    starts = np.concatenate(([0], np.flatnonzero(np.diff(keys)) + 1))
    ends = np.append(starts[1:], len(keys))
    yield from zip(keys[starts].tolist(), starts.tolist(), ends.tolist(), strict=True)


def merged(old: tuple[Prefixes, Numbers], prefixes: Prefixes, numbers: Numbers) -> tuple[Prefixes, Numbers]:
    """Two sorted runs of entries as one."""
    at = np.searchsorted(old[0], prefixes, "right")
    return np.insert(old[0], at, prefixes), np.insert(old[1], at, numbers)


class Lookup:
    """The two tables within the writer's transactions. After an aborted transaction, call `forget`."""

    def __init__(self, young: lmdb._Database, dense: lmdb._Database) -> None:
        self._young, self._dense = young, dense
        self._bounds: NDArray[np.int64] | None = None

    def forget(self) -> None:
        """Drop what is remembered of the tables: they may not be as this object left them."""
        self._bounds = None

    def bounds(self, txn: lmdb.Transaction) -> NDArray[np.int64]:
        """The lowest prefix of each value of `dense`, sorted."""
        if self._bounds is None:
            with txn.cursor(db=self._dense) as cursor:
                keys = [int.from_bytes(key, "big") for key in cursor.iternext(keys=True, values=False)]
            self._bounds = np.array(keys, np.int64)
        return self._bounds

    def candidates(self, txn: lmdb.Transaction, prefixes: Prefixes) -> Iterator[tuple[Numbers, Numbers]]:
        """(positions in `prefixes`, chunk numbers) of every entry with one of these prefixes, which must be sorted."""
        bounds = self.bounds(txn)
        if len(bounds):
            within = np.searchsorted(bounds, prefixes.astype(np.int64), "right") - 1
            for value, start, end in groups(within):
                if value >= 0:
                    yield from self._matches(txn, self._dense, int(bounds[value]), prefixes[start:end], start)
        for slice_, start, end in groups((prefixes >> 24).astype(np.int64)):
            yield from self._matches(txn, self._young, slice_, prefixes[start:end], start)

    def _matches(
        self, txn: lmdb.Transaction, table: lmdb._Database, key: int, wanted: Prefixes, offset: int
    ) -> Iterator[tuple[Numbers, Numbers]]:
        prefixes, numbers = self._read(txn, table, key)
        left = np.searchsorted(prefixes, wanted, "left")
        right = np.searchsorted(prefixes, wanted, "right")
        for step in range(int((right - left).max(initial=0))):
            has = np.flatnonzero(left + step < right)
            yield has + offset, numbers[left[has] + step]

    def insert(self, txn: lmdb.Transaction, prefixes: Prefixes, numbers: Numbers) -> None:
        """Add entries for new chunks; none of them may have one already."""
        order = np.argsort(prefixes, kind="stable")
        prefixes, numbers = prefixes[order], numbers[order]
        for slice_, start, end in groups((prefixes >> 24).astype(np.int64)):
            old = self._read(txn, self._young, slice_)
            self._write(txn, self._young, slice_, *merged(old, prefixes[start:end], numbers[start:end]))

    def merge(self, txn: lmdb.Transaction, young_entries: int, hand: int, new: int, total: int) -> tuple[int, int]:
        """Move slices of `young` into `dense`, from `hand` on, and return (young entries left, the next hand).

        `new` chunks came in this transaction and `total` are in the index. Young entries are written again with each
        layer and a merge writes its slice of `dense`, so the cheapest size of `young` is where the two cost the same:
        the square root of `new * total / 2`. The number of merges is bounded, so that a small layer that follows large
        ones does not pay for them.
        """
        worth = YOUNG_FLOOR + math.isqrt(new * total // 2)
        for _ in range(1 + new // CHUNKS_PER_MERGE):
            if young_entries <= worth:
                break
            young_entries -= self._merge_slice(txn, hand)
            hand = (hand + 1) % SLICES
        return young_entries, hand

    def _merge_slice(self, txn: lmdb.Transaction, slice_: int) -> int:
        view, numbers = self._read(txn, self._young, slice_)
        # A copy: what LMDB shows is only sure to stay until this transaction's next write.
        young = view.copy(), numbers
        if not len(numbers):
            return 0
        bounds = self.bounds(txn)
        lowest, beyond = slice_ << 24, (slice_ + 1) << 24
        own = bounds[(bounds >= lowest) & (bounds < beyond)]
        starts = own if len(own) else np.array([lowest], np.int64)
        found: list[int] = []
        edges = np.searchsorted(young[0].astype(np.int64), np.append(starts[1:], beyond), "left")
        start = 0
        for bound, end in zip(starts.tolist(), edges.tolist(), strict=True):
            if end > start:
                old = self._read(txn, self._dense, bound)
                entries = merged(old, young[0][start:end], young[1][start:end])
                found += self._write_split(txn, bound, entries)
            start = end
        self._bounds = np.union1d(bounds, np.array(found, np.int64))
        txn.delete(slice_.to_bytes(4, "big"), db=self._young)
        return len(young[0])

    def _write_split(self, txn: lmdb.Transaction, bound: int, entries: tuple[Prefixes, Numbers]) -> list[int]:
        """Write one value of `dense`, or several where it has outgrown one; never part equal prefixes."""
        prefixes, numbers = entries
        pieces = -(-len(prefixes) // DENSE_ENTRIES)
        cuts = [0]
        for piece in range(1, pieces):
            wanted = prefixes[len(prefixes) * piece // pieces]
            cut = int(np.searchsorted(prefixes, wanted, "left"))
            if cut > cuts[-1]:
                cuts.append(cut)
        keys = [bound, *(int(prefixes[cut]) for cut in cuts[1:])]
        for key, start, end in zip(keys, cuts, [*cuts[1:], len(prefixes)], strict=True):
            self._write(txn, self._dense, key, prefixes[start:end], numbers[start:end])
        return keys

    def sweep(
        self, txn: lmdb.Transaction, dense: bool, after: int, dead: Callable[[Numbers], NDArray[np.bool_]]
    ) -> tuple[int, int]:
        """Drop the entries whose numbers are `dead` from the value of a table that follows the key `after`.

        Returns its key, -1 past the last, and how many were dropped. Values that end up empty stay, so that the bounds
        of `dense` hold.
        """
        table = self._dense if dense else self._young
        with txn.cursor(db=table) as cursor:
            if after + 1 >= 1 << 32 or not cursor.set_range((after + 1).to_bytes(4, "big")):
                return -1, 0
            key = int.from_bytes(cursor.key(), "big")
        prefixes, numbers = self._read(txn, table, key)
        keep = ~dead(numbers)
        if not keep.all():
            self._write(txn, table, key, prefixes[keep], numbers[keep])
        return key, int((~keep).sum())

    def _read(self, txn: lmdb.Transaction, table: lmdb._Database, key: int) -> tuple[Prefixes, Numbers]:
        return unpack_entries(txn.get(key.to_bytes(4, "big"), b"", db=table))

    def _write(
        self, txn: lmdb.Transaction, table: lmdb._Database, key: int, prefixes: Prefixes, numbers: Numbers
    ) -> None:
        txn.put(key.to_bytes(4, "big"), pack_entries(prefixes, numbers), db=table)
