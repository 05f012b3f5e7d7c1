"""The recompressed lengths of live chunks, kept only for the chunks that the index's rule picks.

There is one record for each block of chunk records that has such a chunk. It is written when such a chunk comes to life
or dies, and only read for further copies. Hashes and copies decide which chunks have a length, so a recount can check
that.
"""

from __future__ import annotations

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.index import blocks, records
from chunkd.index.blocks import Numbers


class MeasuredRecords:
    """The table `measured` within the writer's transaction."""

    def __init__(self, txn: lmdb.Transaction, table: lmdb._Database) -> None:
        self._txn, self._table = txn, table

    def change(self, numbers: Numbers, lengths: Numbers, born: NDArray[np.bool_], died: NDArray[np.bool_]) -> Numbers:
        """Keep the lengths of chunks that came to life, drop those of chunks that died, and return those of all.

        `numbers` are sorted chunk numbers, all of them picked; `lengths` counts where `born`. Raises Damaged when a
        chunk that was born has a length already, or another one has none.
        """
        touched = np.unique(numbers // blocks.SLOTS)
        values = [self._txn.get(blocks.block_key(block), b"", db=self._table) for block in touched.tolist()]
        held, held_lengths = blocks.unpack_measured(touched.tolist(), values)
        at = np.minimum(held.searchsorted(numbers), max(len(held) - 1, 0))
        known = held[at] == numbers if len(held) else np.zeros(len(numbers), bool)
        if (known == born).any():
            number = int(numbers[np.argmax(known == born)])
            raise records.Damaged(f"chunk {number} has a recompressed length although it had no copies, or has none")
        found = lengths.copy()
        found[known] = held_lengths[at[known]]
        turned = born | died
        if turned.any():
            keep = np.ones(len(held), bool)
            keep[at[died]] = False
            left = np.concatenate((held[keep], numbers[born]))
            order = np.argsort(left)
            kept = np.concatenate((held_lengths[keep], lengths[born]))[order]
            self._write(np.unique(numbers[turned] // blocks.SLOTS).tolist(), left[order], kept)
        return found

    def _write(self, changed: list[int], numbers: Numbers, lengths: Numbers) -> None:
        own = np.isin(numbers // blocks.SLOTS, changed)
        for block, value in zip(changed, blocks.pack_measured(changed, numbers[own], lengths[own]), strict=True):
            if value:
                self._txn.put(blocks.block_key(block), value, db=self._table)
            else:
                self._txn.delete(blocks.block_key(block), db=self._table)
