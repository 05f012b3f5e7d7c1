"""The chunk records within the writer's transaction: gives chunks their numbers and counts their copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.errors import CopiesOverflow, RecipeImpossible
from chunkd.index import blocks, records
from chunkd.index.blocks import Numbers
from chunkd.index.chunks.entries import Entries, Prefixes, prefixes_of
from chunkd.index.chunks.growth import FigureDelta
from chunkd.index.chunks.lookup import Lookup
from chunkd.index.chunks.measured import MeasuredRecords
from chunkd.model import Blob, Recipe

# How many blocks are held in memory at once: 16 MiB.
BATCH_BLOCKS = 4096

Words = NDArray[np.uint64]
# Numbers, both halves of the hashes, and lengths of chunk records.
Revised = tuple[Numbers, Words, Words, Words]
Batch = tuple[slice, NDArray[np.void], list[int], Numbers]


class Numbered(NamedTuple):
    """A recipe's chunk numbers, its recompressed lengths (0 where not measured), and how many chunks are new."""

    numbers: Numbers
    recompressed: Numbers
    new: int


NOTHING = Numbered(np.empty(0, np.int64), np.empty(0, np.int64), 0)


class ChunkContradicted(Exception):
    """A recipe gives a chunk another length than the chunk's record, and that chunk has copies."""

    def __init__(self, number: int, chunk_hash: bytes) -> None:
        super().__init__(number, chunk_hash)
        self.number, self.chunk_hash = number, chunk_hash


class ChunkRecords:
    """The tables `chunks` and `measured` with their look-up, by an index's rules.

    `dead_blocks` are the blocks that a compaction will delete. A block in which a chunk revives is taken out of it.
    """

    def __init__(
        self,
        txn: lmdb.Transaction,
        databases: Mapping[str, lmdb._Database],
        lookup: Lookup,
        rules: records.Rules,
        dead_blocks: set[int],
    ) -> None:
        self._txn, self._table, self._lookup = txn, databases["chunks"], lookup
        self._measured = MeasuredRecords(txn, databases["measured"])
        self._max_bytes, self._threshold, self._doomed = rules.params.max_bytes, rules.measure.threshold, dead_blocks

    def number(self, blob: Blob, recipe: Recipe, next_number: int) -> Numbered:
        """The number of each chunk of a blob's recipe. New chunks get the numbers from `next_number` on, in order, and
        records at 0 copies.

        If a chunk without copies has another length, it takes the recipe's, because the blobs that gave it the old one
        are gone. Raises RecipeImpossible when no chunker makes such a recipe or it does not fit the blob, and
        ChunkContradicted when a chunk that has copies has another length; nothing is changed then.
        """
        if not (recipe.hashes or recipe.lengths or blob.chunks or blob.uncompressed_bytes):
            return NOTHING
        hashes = np.frombuffer(recipe.hashes, "<u8").reshape(-1, 2)
        lengths = np.frombuffer(recipe.lengths, "<u4").astype(np.uint64)
        if len(hashes) != len(lengths):
            raise RecipeImpossible(f"{len(hashes)} hashes and {len(lengths)} lengths")
        if (len(lengths), int(lengths.sum())) != (blob.chunks, blob.uncompressed_bytes):
            raise RecipeImpossible(f"{len(lengths)} chunks of {lengths.sum()} bytes in all")
        if not 0 < lengths.min() <= lengths.max() <= self._max_bytes:
            raise RecipeImpossible(f"chunks of {lengths.min()} to {lengths.max()} bytes")
        first, which = _distinct(hashes)
        if (lengths[first][which] != lengths).any():
            raise RecipeImpossible("one hash with two lengths")
        recompressed = self._recompressed(recipe, hashes, lengths)
        if (recompressed[first][which] != recompressed).any():
            raise RecipeImpossible("one hash with two recompressed lengths")
        low, high, lengths = hashes[first, 0], hashes[first, 1], lengths[first]
        prefixes = prefixes_of(low)
        numbers, revised = self._find(low, high, lengths, prefixes)
        self._write(*revised)
        new = np.flatnonzero(numbers < 0)
        if len(new):
            in_order = new[np.argsort(first[new])]
            numbers[in_order] = next_number + np.arange(len(new))
            self._write(numbers[in_order], low[in_order], high[in_order], lengths[in_order])
            self._lookup.insert(self._txn, Entries.of(prefixes[new], numbers[new]))
        return Numbered(numbers[which], recompressed, len(new))

    def _recompressed(self, recipe: Recipe, hashes: Words, lengths: Words) -> Numbers:
        """The recompressed length of each chunk, 0 where the rule does not pick it."""
        own = np.flatnonzero(blocks.picked(hashes[:, 1], self._threshold))
        measured = np.frombuffer(recipe.measured, "<u4").astype(np.int64)
        if len(measured) != len(own):
            raise RecipeImpossible(f"{len(measured)} recompressed lengths for {len(own)} chunks")
        least, most = blocks.frame_bounds(lengths[own].astype(np.int64))
        if ((measured < least) | (measured > most)).any():
            raise RecipeImpossible("a chunk recompressed to what no frame of it is long")
        recompressed = np.zeros(len(lengths), np.int64)
        recompressed[own] = measured
        return recompressed

    def _find(self, low: Words, high: Words, lengths: Words, prefixes: Prefixes) -> tuple[Numbers, Revised]:
        """The number of each chunk, -1 where it has none, and the records of chunks without copies whose length must be
        changed.
        """
        numbers, revised = np.full(len(low), -1, np.int64), np.zeros(len(low), bool)
        at, candidates = self._lookup.candidates(self._txn, prefixes)
        by_number = np.argsort(candidates)
        at, candidates = at[by_number], candidates[by_number]
        for rows, slots, _, within in self._blocks(candidates):
            found, wanted = slots[within], at[rows]
            same = (found["low"] == low[wanted]) & (found["high"] == high[wanted])
            found, wanted = found[same], wanted[same]
            own = candidates[rows][same]
            numbers[wanted] = own
            other = found["use"] & blocks.LENGTH_MASK != lengths[wanted]
            contradicted = other & (found["use"] >> blocks.LENGTH_BITS > 0)
            if contradicted.any():
                which = int(np.argmax(contradicted))
                raise ChunkContradicted(int(own[which]), found["low"][which].tobytes() + found["high"][which].tobytes())
            revised[wanted[other]] = True
        # In the order of their numbers, as the records are walked.
        stale = np.flatnonzero(revised)
        stale = stale[np.argsort(numbers[stale])]
        return numbers, (numbers[stale], low[stale], high[stale], lengths[stale])

    def _write(self, numbers: Numbers, low: Words, high: Words, lengths: Words) -> None:
        """Write the records of chunks at 0 copies."""
        for rows, slots, batch, within in self._blocks(numbers):
            slots["low"][within], slots["high"][within], slots["use"][within] = low[rows], high[rows], lengths[rows]
            self._put(batch, slots)

    def count(self, numbers: Numbers, sign: int, recompressed: Numbers) -> FigureDelta:
        """Count the chunks of a recipe in (+1) or out (-1), and return by how much the figures grew.

        `recompressed` are the lengths for chunks that come to life. Raises CopiesOverflow, and Damaged when a record
        can't be right.
        """
        numbers, first, copies = np.unique(numbers, return_index=True, return_counts=True)
        steps, recompressed = sign * copies, recompressed[first]
        growth = FigureDelta(self._max_bytes)
        for rows, slots, batch, within in self._blocks(numbers):
            use = slots["use"][within]
            lengths = (use & blocks.LENGTH_MASK).astype(np.int64)
            before = (use >> blocks.LENGTH_BITS).astype(np.int64)
            after = before + steps[rows]
            if (after > blocks.MAX_COPIES).any():
                raise CopiesOverflow(int(numbers[rows][np.argmax(after)]), int(after.max()))
            if (after < 0).any() or not lengths.all():
                number = int(numbers[rows][np.argmin(after)])
                raise records.Damaged(f"chunk {number}: the record of its copies is wrong")
            turned = growth.turn(lengths, before, after)
            own = blocks.picked(slots["high"][within], self._threshold)
            if own.any():
                born, died = turned[own] > 0, turned[own] < 0
                measured = self._measured.change(numbers[rows][own], recompressed[rows][own], born, died)
                growth.measure(lengths[own], measured, before[own], after[own])
            slots["use"][within] = (after.astype(np.uint64) << blocks.LENGTH_BITS) | lengths.astype(np.uint64)
            self._doomed.difference_update(batch)
            self._put(batch, slots)
        return growth

    def put(self, block: int, slots: NDArray[np.void]) -> None:
        """Write a whole block."""
        self._txn.put(blocks.block_key(block), slots.tobytes(), db=self._table)

    def _put(self, batch: list[int], slots: NDArray[np.void]) -> None:
        for position, block in enumerate(batch):
            self.put(block, slots[position * blocks.SLOTS :][: blocks.SLOTS])

    def _blocks(self, numbers: Numbers) -> Iterator[Batch]:
        return batches(self._txn, self._table, numbers)


def batches(txn: lmdb.Transaction, table: lmdb._Database, numbers: Numbers) -> Iterator[Batch]:
    """The records of sorted chunk numbers, a bounded batch at a time.

    Yields (the rows of `numbers` in this batch, a writable copy of their blocks' slots, the blocks' numbers, and each
    row's position in the slots). A missing block reads as zeros.
    """
    if not len(numbers):
        return
    block_of = numbers // blocks.SLOTS
    begins = np.concatenate(([True], block_of[1:] != block_of[:-1]))
    starts = np.flatnonzero(begins)
    # Where each row's slot would be if all blocks stood side by side.
    within = numbers - (block_of - (np.cumsum(begins) - 1)) * blocks.SLOTS
    for first in range(0, len(starts), BATCH_BLOCKS):
        own = starts[first : first + BATCH_BLOCKS]
        following = starts[first + BATCH_BLOCKS :][:1]
        rows = slice(int(own[0]), int(following[0]) if len(following) else len(numbers))
        batch = block_of[own].tolist()
        values = [txn.get(blocks.block_key(block), db=table) for block in batch]
        packed = bytearray().join(bytes(blocks.BLOCK_BYTES) if value is None else value for value in values)
        if len(packed) != len(batch) * blocks.BLOCK_BYTES:
            raise records.Damaged(f"a block of chunks near {batch[0]} has a wrong size")
        yield rows, np.frombuffer(packed, blocks.SLOT), batch, within[rows] - first * blocks.SLOTS


def _distinct(hashes: NDArray[np.uint64]) -> tuple[Numbers, Numbers]:
    """(where each hash occurs first, which of these each hash is), the first sorted by the hashes' bytes."""
    leading, rest = hashes[:, 0].byteswap(), hashes[:, 1]
    order = np.argsort(leading)
    same, other = _neighbours(leading[order]), _neighbours(rest[order])
    if (same & ~other).any():
        # Some hashes differ only in their second half. Sorting by two keys takes ten times as long as by one.
        order = np.lexsort((rest, leading))
        same, other = _neighbours(leading[order]), _neighbours(rest[order])
    begins = np.concatenate(([True], ~(same & other)))
    which = np.empty(len(order), np.int64)
    which[order] = np.cumsum(begins) - 1
    return np.minimum.reduceat(order, np.flatnonzero(begins)), which


def _neighbours(sorted_: Words) -> NDArray[np.bool_]:
    """For each element but the first, whether it equals the one before."""
    same: NDArray[np.bool_] = sorted_[1:] == sorted_[:-1]
    return same
