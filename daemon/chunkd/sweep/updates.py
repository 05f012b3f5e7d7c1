"""What an update of a repository moves by each rule: the pairs of `chunkd updates`, over a sweep's chunks."""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from chunkd.figures.totals import Sample
from chunkd.images.atoms import Numbers
from chunkd.images.moves import Recipes
from chunkd.images.read import Reading
from chunkd.images.updates import updates
from chunkd.model import Digest
from chunkd.sweep.results import Result, Results
from chunkd.sweep.sums import read

# So many chunks of layers are remembered from pair to pair.
_REMEMBERED_CHUNKS = 1 << 20


class Update(NamedTuple):
    """Medians over repositories of their median update: bytes moved, and requests. None if no pair is known."""

    bytes: int | None
    ranges: int | None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's chunks by number, in order; then each once, ascending, with both lengths."""

    recipe: Numbers
    numbers: Numbers
    lengths: Numbers
    recompressed: Numbers


@dataclass
class _Chunks:
    """The chunks of layers by one rule. A chunk's number is the first 63 bits of its hash."""

    results: Results
    rule: int
    layers: Mapping[Digest, Result]
    _remembered: OrderedDict[Digest, _Layer] = field(default_factory=OrderedDict)
    _remembered_chunks: int = 0
    _along: list[_Layer] = field(default_factory=list)

    def begin(self) -> None:
        """The chunks of other layers are asked for from now on."""
        self._along = []

    def recipe(self, digest: Digest) -> Numbers:
        found = self._remembered.pop(digest, None) or self._read(digest)
        self._remembered[digest] = found
        while self._remembered_chunks > _REMEMBERED_CHUNKS and len(self._remembered) > 1:
            _, oldest = self._remembered.popitem(last=False)
            self._remembered_chunks -= len(oldest.recipe)
        self._along.append(found)
        return found.recipe

    def _read(self, digest: Digest) -> _Layer:
        blocks = list(read(self.results, self.layers[digest], self.rule))
        if not blocks:
            return _Layer(*(np.empty(0, np.int64),) * 4)
        recipe = np.concatenate([(chunks.high >> np.uint64(1)).astype(np.int64) for chunks in blocks])
        lengths = np.concatenate([chunks.lengths for chunks in blocks])
        recompressed = np.concatenate([chunks.recompressed for chunks in blocks])
        numbers, first = np.unique(recipe, return_index=True)
        self._remembered_chunks += len(recipe)
        return _Layer(recipe, numbers, lengths[first], recompressed[first])

    def lengths(self, wanted: Numbers) -> Numbers:
        return self._looked_up(wanted, "lengths")

    def recompressed(self, wanted: Numbers) -> Numbers:
        return self._looked_up(wanted, "recompressed")

    def _looked_up(self, wanted: Numbers, column: str) -> Numbers:
        """Of chunks of the layers whose recipes were asked for since `begin`."""
        found = np.zeros(len(wanted), np.int64)
        for one in self._along:
            if len(one.numbers):
                at = np.searchsorted(one.numbers, wanted)
                at[at == len(one.numbers)] = 0
                is_here = one.numbers[at] == wanted
                found[is_here] = getattr(one, column)[at[is_here]]
        return found


@dataclass(frozen=True, slots=True)
class _RuleRecipes(Recipes):
    """`Recipes` of a rule, whose `lengths` and `measured` are asked for the layers of the last `along`."""

    begin: Callable[[], None]

    def along(self, layers: Sequence[Digest]) -> Numbers:
        self.begin()
        return Recipes.along(self, layers)


def known(reading: Reading, layers: Mapping[Digest, Result]) -> Reading:
    """The images, as if layers that have no result were not here: what lacks them is unknown by each rule alike."""
    lost = reading.recipes.counts.keys() - layers.keys()
    return replace(reading, blobs={digest: facts for digest, facts in reading.blobs.items() if digest not in lost})


def update(
    reading: Reading, results: Results, layers: Mapping[Digest, Result], counts: Mapping[Digest, int], rule: int,
    sample: Sample,
) -> Update:  # fmt: skip
    """The median update by a rule whose chunks were all kept, so many of each layer; `sample` are the sums over all its
    measured chunks.
    """
    chunks = _Chunks(results, rule, layers)
    recipes = _RuleRecipes(counts, chunks.recipe, chunks.lengths, chunks.recompressed, lambda: sample, chunks.begin)
    found = _rows(reading, recipes)
    return Update(_median(found, "median_chunk_bytes"), _median(found, "median_requests"))


def update_as_layers(reading: Reading) -> Update:
    """The same for layers as they are."""
    found = _rows(reading, replace(reading.recipes, counts={}))
    return Update(_median(found, "median_layer_bytes"), _median(found, "median_blobs"))


def _rows(reading: Reading, recipes: Recipes) -> list[dict[str, Any]]:
    found = updates(replace(reading, recipes=recipes), "", "")
    return [row for row in found["repositories"] if row["pairs"] > row["unknown"]]


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> int | None:
    return int(statistics.median(row[name] for row in rows)) if rows else None
