"""The recompressed lengths of live chunks, kept only for the chunks that the index's rule picks.

There is one record for each block of chunk records that has such a chunk. It is written when such a chunk comes to life
or dies, and not for further copies. Hashes and copies decide which chunks have a length, so a recount can check that.
"""

from __future__ import annotations

import lmdb
import numpy as np

from chunkd.index import blocks, records
from chunkd.index.blocks import Numbers


class MeasuredRecords:
    """The table `measured` within the writer's transaction."""

    def __init__(self, txn: lmdb.Transaction, table: lmdb._Database) -> None:
        self._txn, self._table = txn, table

    def change(self, born: Numbers, lengths: Numbers, died: Numbers) -> Numbers:
        """Keep the lengths of chunks that came to life; drop and return those of chunks that died.

        `born` and `died` are sorted chunk numbers. Raises Damaged when a chunk that died has no length, or a chunk that
        was born has one.
        """
        touched = sorted(set((np.concatenate((born, died)) // blocks.SLOTS).tolist()))
        values = [self._txn.get(blocks.block_key(block), b"", db=self._table) for block in touched]
        held, held_lengths = blocks.unpack_measured(touched, values)
        at = held.searchsorted(died)
        if (at == len(held)).any() or (held[at] != died).any():
            raise records.Damaged(f"of {len(died)} chunks that died, one has no recompressed length")
        keep = np.ones(len(held), bool)
        keep[at] = False
        numbers = np.concatenate((held[keep], born))
        order = np.argsort(numbers)
        numbers, kept = numbers[order], np.concatenate((held_lengths[keep], lengths))[order]
        if (numbers[1:] == numbers[:-1]).any():
            raise records.Damaged(f"of {len(born)} chunks that came to life, one has a recompressed length")
        for block, value in zip(touched, blocks.pack_measured(touched, numbers, kept), strict=True):
            if value:
                self._txn.put(blocks.block_key(block), value, db=self._table)
            else:
                self._txn.delete(blocks.block_key(block), db=self._table)
        return held_lengths[at]
