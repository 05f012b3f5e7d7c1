"""The chunk records within the writer's transaction: chunks get their numbers, and their copies are counted."""

from __future__ import annotations

from collections.abc import Iterator

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd import blocks, records
from chunkd.blocks import Numbers
from chunkd.errors import CopiesOverflow, RecipeImpossible
from chunkd.lookup import Lookup, prefixes_of
from chunkd.model import Recipe

# Blocks that are held in memory at once: 16 MiB.
BATCH_BLOCKS = 4096

Hashes = NDArray[np.uint64]


class ChunkRecords:
    """The table `chunks` with its look-up. `doomed` are blocks that a sweep will delete: what revives leaves it."""

    def __init__(
        self, txn: lmdb.Transaction, table: lmdb._Database, lookup: Lookup, max_bytes: int, doomed: set[int]
    ) -> None:
        self._txn, self._table, self._lookup = txn, table, lookup
        self._max_bytes, self._doomed = max_bytes, doomed

    def number(self, recipe: Recipe, next_number: int) -> tuple[Numbers, int]:
        """The number of each chunk of a recipe, and how many were never seen: those get the numbers from `next_number`
        on, in order, and records at 0 copies.

        Raises RecipeImpossible, with nothing changed, when no chunker makes such a recipe, and Damaged when a chunk is
        known with another length.
        """
        hashes = np.frombuffer(recipe.hashes, "<u8").reshape(-1, 2)
        lengths = np.frombuffer(recipe.lengths, "<u4").astype(np.uint64)
        if len(hashes) != len(lengths):
            raise RecipeImpossible(f"{len(hashes)} hashes and {len(lengths)} lengths")
        if not len(lengths):
            return np.empty(0, np.int64), 0
        if not 0 < lengths.min() <= lengths.max() <= self._max_bytes:
            raise RecipeImpossible(f"chunks of {lengths.min()} to {lengths.max()} bytes")
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        first_of_run = np.ones(len(order), bool)
        first_of_run[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
        # lexsort is stable: the first of a run of equal hashes is their first in the recipe.
        sample = order[first_of_run]
        which = np.empty(len(order), np.int64)
        which[order] = np.cumsum(first_of_run) - 1
        if (lengths[sample][which] != lengths).any():
            raise RecipeImpossible("one hash with two lengths")
        numbers = self._find(hashes[sample], lengths[sample])
        new = np.flatnonzero(numbers < 0)
        new = new[np.argsort(sample[new])]
        numbers[new] = next_number + np.arange(len(new))
        if len(new):
            self._append(next_number, hashes[sample[new]], lengths[sample[new]])
        return numbers[which], len(new)

    def _find(self, hashes: Hashes, lengths: NDArray[np.uint64]) -> Numbers:
        """The number of each hash, -1 where it has none."""
        prefixes = prefixes_of(hashes)
        order = np.argsort(prefixes, kind="stable")
        pairs = list(self._lookup.candidates(self._txn, prefixes[order]))
        numbers = np.full(len(hashes), -1, np.int64)
        if not pairs:
            return numbers
        at = order[np.concatenate([positions for positions, _ in pairs])]
        candidates = np.concatenate([found for _, found in pairs])
        by_number = np.argsort(candidates)
        at, candidates = at[by_number], candidates[by_number]
        for rows, slots, _, within in self._blocks(candidates):
            found = slots[within]
            same = (found["low"] == hashes[at[rows], 0]) & (found["high"] == hashes[at[rows], 1])
            if (found["use"][same] & blocks.LENGTH_MASK != lengths[at[rows]][same]).any():
                raise records.Damaged("a chunk is known with another length")
            numbers[at[rows][same]] = candidates[rows][same]
        return numbers

    def _append(self, first: int, hashes: Hashes, lengths: NDArray[np.uint64]) -> None:
        numbers = first + np.arange(len(lengths))
        for block in range(first // blocks.SLOTS, int(numbers[-1]) // blocks.SLOTS + 1):
            start, end = np.searchsorted(numbers, [block * blocks.SLOTS, (block + 1) * blocks.SLOTS])
            old = self._txn.get(blocks.block_key(block), db=self._table)
            slots = np.frombuffer(bytearray(old or blocks.BLOCK_BYTES), blocks.SLOT)
            own = slots[numbers[start] % blocks.SLOTS :][: end - start]
            own["low"], own["high"], own["use"] = hashes[start:end, 0], hashes[start:end, 1], lengths[start:end]
            self.put(block, slots)
        self._lookup.insert(self._txn, prefixes_of(hashes), numbers)

    def count(self, numbers: Numbers, steps: Numbers) -> tuple[int, int, int]:
        """Change the copies of these chunks; by how much the bytes, the unique chunks and the unique bytes grew.

        `numbers` are sorted and distinct. Raises CopiesOverflow, and Damaged when a record can't be right.
        """
        grown_bytes = unique_chunks = unique_bytes = 0
        for rows, slots, held, within in self._blocks(numbers):
            use = slots["use"][within]
            lengths = (use & blocks.LENGTH_MASK).astype(np.int64)
            before = (use >> blocks.LENGTH_BITS).astype(np.int64)
            after = before + steps[rows]
            if (after > blocks.MAX_COPIES).any():
                raise CopiesOverflow(int(numbers[rows][np.argmax(after)]), int(after.max()))
            if (after < 0).any() or not lengths.all() or len(held) * blocks.SLOTS != len(slots):
                number = int(numbers[rows][np.argmin(after)])
                raise records.Damaged(f"chunk {number}: the record of its copies is wrong")
            turned = (after > 0).astype(np.int64) - (before > 0)
            grown_bytes += int(lengths @ steps[rows])
            unique_chunks += int(turned.sum())
            unique_bytes += int(lengths @ turned)
            slots["use"][within] = (after.astype(np.uint64) << blocks.LENGTH_BITS) | lengths.astype(np.uint64)
            self._doomed.difference_update(held)
            for position, block in enumerate(held):
                self.put(block, slots[position * blocks.SLOTS :][: blocks.SLOTS])
        return grown_bytes, unique_chunks, unique_bytes

    def put(self, block: int, slots: NDArray[np.void]) -> None:
        """Write a whole block."""
        self._txn.put(blocks.block_key(block), slots.tobytes(), db=self._table)

    def _blocks(self, numbers: Numbers) -> Iterator[tuple[slice, NDArray[np.void], list[int], Numbers]]:
        """The records of sorted chunk numbers, a bounded batch at a time.

        Yields (the rows of `numbers` in this batch, a writable copy of their blocks' slots, the blocks' numbers, where
        in the slots each row's is). A block that is not there is left out, and its slots read as zeros.
        """
        block_of = numbers // blocks.SLOTS
        wanted, starts = np.unique(block_of, return_index=True)
        for first in range(0, len(wanted), BATCH_BLOCKS):
            batch = wanted[first : first + BATCH_BLOCKS]
            end = int(starts[first + BATCH_BLOCKS]) if first + BATCH_BLOCKS < len(wanted) else len(numbers)
            rows = slice(int(starts[first]), end)
            found = {block: self._txn.get(blocks.block_key(block), db=self._table) for block in batch.tolist()}
            packed = bytearray(
                b"".join(bytes(blocks.BLOCK_BYTES) if value is None else value for value in found.values())
            )
            if len(packed) != len(batch) * blocks.BLOCK_BYTES:
                raise records.Damaged(f"a block of chunks near {int(batch[0])} has a wrong size")
            within = np.searchsorted(batch, block_of[rows]) * blocks.SLOTS + numbers[rows] % blocks.SLOTS
            held = [block for block, value in found.items() if value is not None]
            yield rows, np.frombuffer(packed, blocks.SLOT), held, within
