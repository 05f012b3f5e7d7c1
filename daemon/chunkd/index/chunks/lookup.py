"""Hash to chunk number: sorted arrays of 9-byte entries, derived from the chunk records and rebuildable from them.

New entries go to `young`, one value for each first byte of the hash. Slice by slice they are merged into `dense`, whose
values each hold a range of prefixes; the key is the lowest. A prefix proves nothing: every entry with the right prefix
is a candidate, compared with the full hash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.index.blocks import Numbers
from chunkd.index.chunks.entries import Entries, Prefixes, join_entries, unpack_entries
from chunkd.index.storage.page_audit import seek

# 16,384 entries are 144 KiB: 36 adjacent pages.
DENSE_ENTRIES = 16384
# How many values of `dense` a merge holds in memory at once: 9 MiB, and as much again for the result.
MERGE_VALUES = 64
SLICES = 256
# So few young entries are never merged. A transaction may merge one slice, and one more for each so many new chunks.
YOUNG_FLOOR = 16384
CHUNKS_PER_MERGE = 4096


class Lookup:
    """The two tables within the writer's transactions. After an aborted transaction, call `forget`."""

    def __init__(self, young: lmdb._Database, dense: lmdb._Database) -> None:
        self._young, self._dense = young, dense
        self._bounds: NDArray[np.int64] | None = None

    def forget(self) -> None:
        """Forget what is cached of the tables, as they may have changed."""
        self._bounds = None

    def bounds(self, txn: lmdb.Transaction) -> NDArray[np.int64]:
        """The lowest prefix of each value of `dense`, sorted."""
        if self._bounds is None:
            with txn.cursor(db=self._dense) as cursor:
                keys = [int.from_bytes(key, "big") for key in cursor.iternext(keys=True, values=False)]
            self._bounds = np.array(keys, np.int64)
        return self._bounds

    def candidates(self, txn: lmdb.Transaction, prefixes: Prefixes) -> tuple[Numbers, Numbers]:
        """(positions in `prefixes`, chunk numbers) of every entry with one of these prefixes, which must be sorted."""
        if not len(prefixes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        slices, _ = _runs(prefixes >> 24)
        # The slices of `young` are small, and in a row they are sorted: one search covers all.
        young = self._matches([self._gathered(txn, self._young, slices)], [0, len(prefixes)], prefixes)
        bounds = self.bounds(txn)
        if not len(bounds):
            return young
        values, starts = _runs(bounds.searchsorted(prefixes, "right") - 1)
        # There is no value below the lowest bound.
        skipped = int(bool(values) and values[0] < 0)
        keys = bounds[values[skipped:]].tolist()
        dense = self._matches([self._read(txn, self._dense, key) for key in keys], starts[skipped:], prefixes)
        return np.concatenate((young[0], dense[0])), np.concatenate((young[1], dense[1]))

    def _matches(self, values: Sequence[Entries], starts: Sequence[int], prefixes: Prefixes) -> tuple[Numbers, Numbers]:
        """(positions, numbers) of the entries with one of the prefixes. The prefixes from `starts[n]` to
        `starts[n + 1]` are searched in the n-th value.
        """
        left, right = np.zeros((2, len(prefixes)), np.int64)
        for entries, start, end in zip(values, starts, starts[1:], strict=False):
            wanted = prefixes[start:end]
            left[start:end] = entries.prefixes.searchsorted(wanted, "left")
            right[start:end] = entries.prefixes.searchsorted(wanted, "right")
        counts = right - left
        positions = np.repeat(np.arange(len(prefixes)), counts)
        ends = np.cumsum(counts)
        at = np.arange(len(positions)) + np.repeat(left - (ends - counts), counts)
        low, high = np.empty(len(at), np.uint32), np.empty(len(at), np.uint8)
        edges = np.concatenate(([0], ends))[starts].tolist()
        for entries, start, end in zip(values, edges, edges[1:], strict=False):
            if end > start:
                low[start:end] = entries.low[at[start:end]]
                high[start:end] = entries.high[at[start:end]]
        return positions, Entries(prefixes[positions], low, high).numbers

    def insert(self, txn: lmdb.Transaction, new: Entries) -> None:
        """Add entries for new chunks. No chunk may have an entry already."""
        slices, _ = _runs(new.prefixes >> 24)
        if not slices:
            return
        entries = self._gathered(txn, self._young, slices).merged(new)
        edges = entries.prefixes.searchsorted(np.array(slices, np.uint32) << 24).tolist()
        with txn.cursor(db=self._young) as cursor:
            cursor.putmulti(zip(map(_key, slices), entries.packed([*edges, len(entries.prefixes)]), strict=True))

    def merge(self, txn: lmdb.Transaction, young_entries: int, hand: int, new: int, total: int) -> tuple[int, int]:
        """Move slices of `young` into `dense`, from `hand` on, and return (young entries left, the next hand).

        `new` chunks came in this transaction and `total` are in the index. Each layer rewrites young entries, and a
        merge rewrites its slice of `dense`. The cheapest size of `young` is where the two cost the same: the square
        root of `new * total / 2`. The number of merges is bounded, so that a small layer does not pay for large ones
        before it.
        """
        worth = YOUNG_FLOOR + math.isqrt(new * total // 2)
        for _ in range(1 + new // CHUNKS_PER_MERGE):
            if young_entries <= worth:
                break
            young_entries -= self._merge_slice(txn, hand)
            hand = (hand + 1) % SLICES
        return young_entries, hand

    def _merge_slice(self, txn: lmdb.Transaction, slice_: int) -> int:
        """Rewrite a slice of `dense` with its young entries, which are so many that every old value would change."""
        young = self._gathered(txn, self._young, [slice_])
        if not len(young.prefixes):
            return 0
        bounds = self.bounds(txn)
        first, beyond = bounds.searchsorted([slice_ << 24, (slice_ + 1) << 24]).tolist()
        old = bounds[first:beyond].tolist() or [slice_ << 24]
        found: list[int] = []
        start = 0
        for batch in range(0, len(old), MERGE_VALUES):
            keys = old[batch : batch + MERGE_VALUES]
            following = old[batch + MERGE_VALUES] if batch + MERGE_VALUES < len(old) else 1 << 32
            end = int(young.prefixes.astype(np.int64).searchsorted(following))
            found += self._rewrite(txn, keys, young.pick(slice(start, end))) if end > start else keys
            start = end
        self._bounds = np.concatenate((bounds[:first], np.array(found, np.int64), bounds[beyond:]))
        txn.delete(_key(slice_), db=self._young)
        return len(young.prefixes)

    def _rewrite(self, txn: lmdb.Transaction, keys: list[int], young: Entries) -> list[int]:
        """Rewrite neighbouring values of `dense` with these entries merged in, as few and as even as possible.

        Equal prefixes stay in one value, and the lowest key stays. Returns the keys.
        """
        entries = self._gathered(txn, self._dense, keys).merged(young)
        prefixes = entries.prefixes
        pieces = -(-len(prefixes) // DENSE_ENTRIES)
        wanted = prefixes[[len(prefixes) * piece // pieces for piece in range(1, pieces)]]
        inner = sorted(set(prefixes.searchsorted(wanted).tolist()) - {0})
        found = [keys[0], *prefixes[inner].tolist()]
        cuts = [0, *inner, len(prefixes)]
        for key in set(keys) - set(found):
            txn.delete(_key(key), db=self._dense)
        for key, value in zip(found, entries.packed(cuts), strict=True):
            txn.put(_key(key), value, db=self._dense)
        return found

    def drop(
        self, txn: lmdb.Transaction, dense: bool, after: int, dead: Callable[[Numbers], NDArray[np.bool_]]
    ) -> tuple[int, int]:
        """Drop the entries whose numbers are `dead` from the value of a table that follows the key `after`.

        Returns its key, -1 past the last, and how many were dropped. Values that end up empty stay, so that the bounds
        of `dense` hold.
        """
        table = self._dense if dense else self._young
        with txn.cursor(db=table) as cursor:
            if after + 1 >= 1 << 32 or not seek(cursor, _key(after + 1)):
                return -1, 0
            key = int.from_bytes(cursor.key(), "big")
        entries = self._read(txn, table, key)
        keep = ~dead(entries.numbers)
        kept = int(keep.sum())
        if kept < len(keep):
            (value,) = entries.pick(keep).packed([0, kept])
            txn.put(_key(key), value, db=table)
        return key, len(keep) - kept

    def _gathered(self, txn: lmdb.Transaction, table: lmdb._Database, keys: Sequence[int]) -> Entries:
        """The entries of several values in a row, as a copy that stays valid while the tables change."""
        return join_entries([txn.get(_key(key), b"", db=table) for key in keys])

    def _read(self, txn: lmdb.Transaction, table: lmdb._Database, key: int) -> Entries:
        """The entries of a value without a copy, valid until the transaction's next write."""
        return unpack_entries(txn.get(_key(key), b"", db=table))


def _key(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _runs(keys: NDArray[np.integer]) -> tuple[list[int], list[int]]:
    """Each key of a sorted array once, and where its run begins; then, as the last start, where the last run ends."""
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))[: len(keys)]
    return keys[starts].tolist(), [*starts.tolist(), len(keys)]
