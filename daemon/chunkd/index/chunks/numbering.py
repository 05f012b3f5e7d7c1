"""Chunk numbers for the recipes of one transaction, those of several recipes at once where that can be."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import lmdb
import numpy as np

from chunkd.errors import RecipeImpossible
from chunkd.index.chunks.lookup import Lookup
from chunkd.index.chunks.table import ChunkRecords, Numbered
from chunkd.index.records import Head
from chunkd.model import Digest, Recipe

# What is numbered at once is held several times over: some 10 MB.
FORESEEN_CHUNKS = 100_000


class Numbering:
    """Gives chunks their numbers. A new chunk has a record at 0 copies, and is in the look-up."""

    def __init__(self, txn: lmdb.Transaction, chunks: ChunkRecords, lookup: Lookup) -> None:
        self._txn, self._chunks, self._lookup = txn, chunks, lookup
        self._foreseen: dict[Digest, tuple[Recipe, Numbered]] = {}

    def foresee(self, head: Head, recipes: dict[Digest, Recipe]) -> Head:
        """Number the recipes of several blobs with one search, so that `number` finds them done; the head after it.

        Small layers take a fourth of the time. What is impossible, or too much to hold at once, is left to `number`,
        which says whose fault it is.
        """
        # Joined, one blob's recompressed lengths could be taken for another's where their number is wrong.
        fit = {digest: recipe for digest, recipe in recipes.items() if self._chunks.is_measured(recipe)}
        chunks = np.cumsum([len(recipe) for recipe in fit.values()])
        some = list(itertools.islice(fit.items(), int(np.searchsorted(chunks, FORESEEN_CHUNKS, "right"))))
        ends = chunks[: len(some)]
        joined = Recipe(*(b"".join(getattr(recipe, part.name) for _, recipe in some) for part in fields(Recipe)))
        following = head.next_number
        try:
            head, numbered = self._number(head, joined)
        except RecipeImpossible:
            return head
        parts = np.split(numbered.numbers, ends), np.split(numbered.recompressed, ends)
        for (digest, recipe), own, recompressed in zip(some, *parts, strict=False):
            # New numbers are given in the order of the chunks.
            new = max(0, int(own.max(initial=-1)) + 1 - following)
            following += new
            self._foreseen[digest] = recipe, Numbered(own, recompressed, new)
        return head

    def number(self, head: Head, digest: Digest, recipe: Recipe) -> tuple[Head, Numbered]:
        """The head after it, and the chunks of a blob numbered. Raises RecipeImpossible, with nothing changed."""
        foreseen, numbered = self._foreseen.pop(digest, (None, None))
        return self._number(head, recipe) if numbered is None or foreseen != recipe else (head, numbered)

    def _number(self, head: Head, recipe: Recipe) -> tuple[Head, Numbered]:
        numbered = self._chunks.number(recipe, head.next_number)
        if new := numbered.new:
            following = head.next_number + new
            young, hand = self._lookup.merge(self._txn, head.young_entries + new, head.hand, new, following)
            dead = head.dead_chunks + new
            head = replace(head, next_number=following, dead_chunks=dead, young_entries=young, hand=hand)
        return head, numbered
