"""Frees what removed blobs leave: blocks of chunk records in which no chunk lives, and their look-up entries.

A chunk without copies keeps its record, counts in no figure, and revives if it lands again. So removing a blob writes
little. When many chunks are dead, whole blocks of them are deleted, in slices that leave room for other work. If a
chunk of a dead block revives between two slices, its block leaves `Index.dead_blocks` and stays.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import TYPE_CHECKING

from chunkd.index.index import Index
from chunkd.index.storage.page_audit import seek

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chunkd.index.blocks import Numbers

log = logging.getLogger(__name__)

# A compaction starts at this many dead chunks, if they are also this part of all chunks.
WORTH_CHUNKS = 100_000
WORTH_PART = 4
BLOCKS_A_SLICE = 4096
TABLE_VALUES_A_SLICE = 64


class Compaction:
    """One compaction at a time, a slice a turn: find the dead blocks, drop their look-up entries, delete them."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._stage = ""
        self._at = -1
        # The head at the start of the last compaction. While it is the same, another compaction would find nothing.
        self._swept = (-1, -1)

    def turn(self) -> bool:
        """Do the next slice, if there is one. Returns whether there was. Raises IndexUnwritable and BadIndex."""
        try:
            return self._turn()
        except BaseException:
            # The slice is rolled back, so what it noted for the next ones is wrong.
            self._stage = ""
            self._index.dead_blocks.clear()
            raise

    def _turn(self) -> bool:
        if self._stage == "find":
            self._find()
        elif self._stage in ("young", "dense"):
            self._drop_entries()
        elif self._stage == "delete":
            self._delete()
        else:
            with self._index.snapshot() as txn:
                head = self._index.store.head(txn)
            worth = max(WORTH_CHUNKS, (head.dead_chunks + head.totals.unique_chunks) // WORTH_PART)
            if head.dead_chunks < worth or self._swept == (head.next_number, head.dead_chunks):
                return False
            self._index.dead_blocks.clear()
            self._stage, self._at = "find", -1
        return True

    def _find(self) -> None:
        """Note the blocks in which no chunk lives. The newest is left out: it is still being filled."""
        from chunkd.index import blocks

        store = self._index.store
        seen = 0
        # Buffers: of most blocks only the first slot is read.
        with store.guarded(), store.env.begin(buffers=True) as txn, txn.cursor(db=store.databases["chunks"]) as cursor:
            newest = store.head(txn).next_number // blocks.SLOTS
            there = seek(cursor, blocks.block_key(self._at + 1))
            for key, value in itertools.islice(cursor, BLOCKS_A_SLICE if there else 0):
                seen += 1
                self._at = int.from_bytes(key, "big")
                if self._at < newest and not blocks.alive(value):
                    self._index.dead_blocks.add(self._at)
        if seen == BLOCKS_A_SLICE:
            return
        if self._index.dead_blocks:
            self._stage, self._at = "young", -1
        else:
            self._end()

    def _drop_entries(self) -> None:
        import numpy as np

        from chunkd.index import blocks

        dead_blocks = np.zeros(max(self._index.dead_blocks, default=-1) + 2, bool)
        dead_blocks[list(self._index.dead_blocks)] = True

        def dead(numbers: Numbers) -> NDArray[np.bool_]:
            # Blocks after the last dead one share the entry after it, which is False.
            return dead_blocks[np.minimum(numbers // blocks.SLOTS, len(dead_blocks) - 1)]

        with self._index.transaction() as change:
            for _ in range(TABLE_VALUES_A_SLICE):
                self._at, dropped = self._index.lookup.drop(change.txn, self._stage == "dense", self._at, dead)
                if self._stage == "young":
                    change.head = dataclasses.replace(change.head, young_entries=change.head.young_entries - dropped)
                if self._at < 0:
                    self._stage = "dense" if self._stage == "young" else "delete"
                    return

    def _delete(self) -> None:
        """Delete the blocks that are still dead. Those with a chunk that revived have left `dead_blocks`."""
        from chunkd.index import blocks

        freed = 0
        with self._index.transaction() as change:
            slice_ = sorted(self._index.dead_blocks)[:BLOCKS_A_SLICE]
            for block in slice_:
                value = change.store.get(change.txn, "chunks", blocks.block_key(block))
                if value is not None and not blocks.alive(value):
                    change.txn.delete(blocks.block_key(block), db=change.store.databases["chunks"])
                    freed += blocks.used(value)
            change.head = dataclasses.replace(change.head, dead_chunks=change.head.dead_chunks - freed)
        self._index.dead_blocks.difference_update(slice_)
        log.info("swept %d chunk records that no blob uses any longer", freed)
        if not self._index.dead_blocks:
            self._end()

    def _end(self) -> None:
        self._stage = ""
        with self._index.snapshot() as txn:
            head = self._index.store.head(txn)
        self._swept = head.next_number, head.dead_chunks
