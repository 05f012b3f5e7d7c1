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
        touched = _blocks_of(numbers)
        values = [self._txn.get(blocks.block_key(block), b"", db=self._table) for block in touched]
        held, held_lengths = blocks.unpack_measured(touched, values)
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
            self._write(_blocks_of(numbers[turned]), left[order], kept)
        return found

    def _write(self, changed: list[int], numbers: Numbers, lengths: Numbers) -> None:
        for block in changed:
            own = slice(*numbers.searchsorted((block * blocks.SLOTS, (block + 1) * blocks.SLOTS)).tolist())
            (value,) = blocks.pack_measured([block], numbers[own], lengths[own])
            if value:
                self._txn.put(blocks.block_key(block), value, db=self._table)
            else:
                self._txn.delete(blocks.block_key(block), db=self._table)


def _blocks_of(numbers: Numbers) -> list[int]:
    # np.unique would import numpy.ma, which takes 10 ms.
    return sorted(set((numbers // blocks.SLOTS).tolist()))
