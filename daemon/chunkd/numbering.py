"""Chunk numbers for the recipes of one transaction, those of several recipes at once where that can be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import lmdb
import numpy as np

from chunkd.blocks import Numbers
from chunkd.chunks import ChunkRecords
from chunkd.errors import RecipeImpossible
from chunkd.lookup import Lookup
from chunkd.model import Digest, Recipe
from chunkd.records import Head

# What is numbered at once is held several times over: some 10 MB.
FORESEEN_CHUNKS = 100_000


class Numbering:
    """Gives chunks their numbers. A new chunk has a record at 0 copies, and is in the look-up."""

    def __init__(self, txn: lmdb.Transaction, chunks: ChunkRecords, lookup: Lookup) -> None:
        self._txn, self._chunks, self._lookup = txn, chunks, lookup
        self._foreseen: dict[Digest, tuple[Recipe, Numbers, int]] = {}

    def foresee(self, head: Head, recipes: dict[Digest, Recipe]) -> Head:
        """Number the recipes of several blobs with one search, so that `number` finds them done; the head after it.

        Small layers take a fourth of the time. What is impossible, or too much to hold at once, is left to `number`,
        which says whose fault it is.
        """
        chunks = np.cumsum([len(recipe) for recipe in recipes.values()])
        some = list(itertools.islice(recipes.items(), int(np.searchsorted(chunks, FORESEEN_CHUNKS, "right"))))
        joined = Recipe(b"".join(recipe.hashes for _, recipe in some), b"".join(recipe.lengths for _, recipe in some))
        following = head.next_number
        try:
            head, numbers, _ = self._number(head, joined)
        except RecipeImpossible:
            return head
        for (digest, recipe), own in zip(some, np.split(numbers, chunks[: len(some)]), strict=False):
            # New numbers are given in the order of the chunks.
            new = max(0, int(own.max(initial=-1)) + 1 - following)
            following += new
            self._foreseen[digest] = recipe, own, new
        return head

    def number(self, head: Head, digest: Digest, recipe: Recipe) -> tuple[Head, Numbers, int]:
        """The head after it, the number of each chunk of a blob, and how many of them were never seen before.

        Raises RecipeImpossible, with nothing changed.
        """
        foreseen, numbers, new = self._foreseen.pop(digest, (None, None, 0))
        return self._number(head, recipe) if numbers is None or foreseen != recipe else (head, numbers, new)

    def _number(self, head: Head, recipe: Recipe) -> tuple[Head, Numbers, int]:
        numbers, new = self._chunks.number(recipe, head.next_number)
        if new:
            following = head.next_number + new
            young, hand = self._lookup.merge(self._txn, head.young_entries + new, head.hand, new, following)
            dead = head.dead_chunks + new
            head = replace(head, next_number=following, dead_chunks=dead, young_entries=young, hand=hand)
        return head, numbers, new
