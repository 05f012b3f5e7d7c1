"""What a pull moves as chunks: those that a client lacks, along the recipes of the layers that it lacks.

A chunk is fetched once, at its first place in the order of the layers. A *run* is a maximal stretch of chunks to be
fetched within one layer; a *range* joins runs across gaps, which are then moved too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.errors import ChunkdError
from chunkd.figures.net_saving import LEAST_MEASURED, STORE_BYTES_A_CHUNK, Estimate, estimate
from chunkd.figures.totals import Sample, dot
from chunkd.images.atoms import Numbers
from chunkd.model import Digest

# None joins all runs of a layer.
GAPS_BYTES = (0, 8 << 10, 128 << 10, 1 << 20, None)
# Of all layers on either side: 64 GiB of chunks of 16 KiB. Memory: some 60 bytes for each.
MOST_CHUNKS = 1 << 22


class TooManyChunks(ChunkdError):
    def __init__(self) -> None:
        super().__init__(f"the layers to be compared have more than {MOST_CHUNKS} chunks; name one platform")


@dataclass(frozen=True, slots=True)
class Recipes:
    """The chunks of one moment.

    counts    how many chunks each layer has, with repetitions
    recipe    the chunk numbers of a layer, in order
    lengths   of distinct chunk numbers, ascending
    measured  of distinct chunk numbers, ascending: their recompressed lengths, 0 for one that was not measured
    cache     the sums over all chunks that were measured
    """

    counts: Mapping[Digest, int]
    recipe: Callable[[Digest], Numbers]
    lengths: Callable[[Numbers], Numbers]
    measured: Callable[[Numbers], Numbers]
    cache: Callable[[], Sample]

    def along(self, layers: Sequence[Digest]) -> Numbers:
        """The chunk numbers of some layers, one after the other. Raises TooManyChunks."""
        if sum(self.counts[layer] for layer in layers) > MOST_CHUNKS:
            raise TooManyChunks
        return np.concatenate([np.empty(0, np.int64), *map(self.recipe, layers)])

    def sample(self, layers: Sequence[Digest]) -> Sample:
        """The sums over the measured chunks of some layers, each once."""
        distinct = np.sort(self.along(layers))
        distinct = distinct[np.diff(distinct, prepend=-1) > 0]  # np.unique hashes, which takes five times as long
        return _sample(self.lengths(distinct), self.measured(distinct))


class Layer(NamedTuple):
    """A layer that the client lacks. `missing` of its `chunks` are fetched in it, in `runs`; `bytes` of them are theirs
    before compression and `recompressed_bytes` after it, None if nothing was measured.
    """

    digest: Digest
    stored_bytes: int
    chunks: int
    missing: int
    bytes: int
    recompressed_bytes: int | None
    runs: int

    @property
    def recipe_bytes(self) -> int:
        return STORE_BYTES_A_CHUNK * self.chunks

    @property
    def as_chunks_bytes(self) -> int | None:
        return None if self.recompressed_bytes is None else self.recompressed_bytes + self.recipe_bytes

    @property
    def is_cheaper_whole(self) -> bool:
        return self.as_chunks_bytes is None or self.stored_bytes <= self.as_chunks_bytes


class Ranges(NamedTuple):
    """The requests if gaps of at most `gap_bytes`, as compressed, are moved too; `bytes` with them. None: any gap."""

    gap_bytes: int | None
    ranges: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Moves:
    """What is moved as chunks. `measured_by` says whose measured chunks the compressed lengths come from: those of the
    missing `set`, of the whole `image`, or of the `cache`; None if there are none, and then no compressed length is
    known. The error is known for the set's own alone.
    """

    layers: tuple[Layer, ...]
    recompressed: Estimate
    ranges: tuple[Ranges, ...]
    measured_by: str | None

    @property
    def missing(self) -> int:
        return sum(layer.missing for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def recipe_bytes(self) -> int:
        return sum(layer.recipe_bytes for layer in self.layers)

    @property
    def runs(self) -> int:
        return sum(layer.runs for layer in self.layers)

    def cheaper(self) -> Estimate:
        """The bytes of these layers, each moved whole or as chunks, whichever is less. The error is that of the set, in
        proportion to the chunks that are left of it.
        """
        total_bytes, error_bytes = self.recompressed
        if total_bytes is None:
            return Estimate(None, None)
        least = 0
        chunked_bytes = 0
        for layer in self.layers:
            if layer.is_cheaper_whole:
                least += layer.stored_bytes
            else:
                least += layer.as_chunks_bytes or 0
                chunked_bytes += layer.recompressed_bytes or 0
        if error_bytes is not None:
            error_bytes = -(-error_bytes * chunked_bytes // max(1, total_bytes))
        return Estimate(least, error_bytes)


def moves(client: Numbers, layers: Mapping[Digest, int], recipes: Recipes, image: Sequence[Digest]) -> Moves:
    """What a client with these chunks fetches of `layers`, which have their stored bytes and stand in the order of the
    pull. `image` has all layers of the image, for its measured chunks. Raises TooManyChunks.
    """
    numbers = recipes.along(list(layers))
    distinct, first, which = np.unique(numbers, return_index=True, return_inverse=True)
    lengths, recompressed = recipes.lengths(distinct), recipes.measured(distinct)
    client = np.append(np.sort(client), -1)  # searched, as np.isin hashes too
    is_missing = client[np.searchsorted(client[:-1], distinct)] != distinct
    path = _Path([recipes.counts[layer] for layer in layers], first[is_missing])
    size_bytes = int(lengths[is_missing].sum())
    own = _sample(lengths[is_missing], recompressed[is_missing])
    measured_by, sample = _measured_by(own, path.missing, recipes, image)
    if measured_by == "set":
        found = estimate(own, path.missing, size_bytes)
    elif measured_by is None:
        found = Estimate(None, None)
    else:
        found = Estimate(_scaled(size_bytes, sample.y, sample.x), None)
    if len(distinct) and recompressed.all():  # then each one's own length is known, also of those in gaps
        weights, y, x = recompressed[which], 1, 1
    else:
        weights, y, x = lengths[which], sample.y, sample.x
    rows = zip(
        layers.items(), path.counts, path.by_layer(path.fetched), path.by_layer(lengths[which] * path.fetched),
        _rounded(path.by_layer(weights * path.fetched), y, x), path.runs_by_layer(), strict=True,
    )  # fmt: skip
    return Moves(
        tuple(Layer(digest, stored_bytes, *row) for (digest, stored_bytes), *row in rows),
        found,
        tuple(path.ranges(weights, y, x)) if measured_by else (),
        measured_by,
    )


def _sample(lengths: Numbers, recompressed: Numbers) -> Sample:
    is_measured = recompressed > 0
    x, y = lengths[is_measured], recompressed[is_measured]
    return Sample(len(x), int(x.sum()), int(y.sum()), dot(x, x), dot(x, y), dot(y, y))


def _measured_by(own: Sample, missing: int, recipes: Recipes, image: Sequence[Digest]) -> tuple[str | None, Sample]:
    if own.chunks >= min(LEAST_MEASURED, missing):
        return "set", own
    of_image = recipes.sample(image)
    if of_image.chunks >= LEAST_MEASURED:
        return "image", of_image
    cache = recipes.cache()
    return ("cache", cache) if cache.chunks else (None, Sample())


def _scaled(size: int, y: int, x: int) -> int:
    """`size * y / x`, rounded."""
    return (2 * size * y + x) // (2 * x)


def _rounded(sizes: Sequence[int], y: int, x: int) -> list[int | None]:
    """Each size times `y / x`, in whole numbers whose sum is that of all sizes, rounded."""
    if not x:
        return [None if size else 0 for size in sizes]
    found: list[int | None] = []
    size = before = 0
    for one in sizes:
        size += one
        found.append(_scaled(size, y, x) - before)
        before = _scaled(size, y, x)
    return found


class _Path:
    """The places along the recipes of the layers, and in which of them a chunk is fetched."""

    def __init__(self, counts: Sequence[int], fetched: Numbers) -> None:
        self.counts, self.missing = counts, len(fetched)
        self._ends = np.cumsum([0, *counts])
        self._layers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self.fetched: NDArray[np.bool_] = np.zeros(len(self._layers), np.bool_)
        self.fetched[fetched] = True
        joined = self.fetched[1:] & self.fetched[:-1] & (self._layers[1:] == self._layers[:-1])
        begins, ends = self.fetched.copy(), self.fetched.copy()
        begins[1:] &= ~joined
        ends[:-1] &= ~joined
        self._begins, self._stops = np.flatnonzero(begins), np.flatnonzero(ends) + 1

    def by_layer(self, values: Numbers | NDArray[np.bool_]) -> list[int]:
        """The sum over the places of each layer."""
        found: list[int] = np.diff(_running(values)[self._ends]).tolist()
        return found

    def runs_by_layer(self) -> list[int]:
        found: list[int] = np.bincount(self._layers[self._begins], minlength=len(self.counts)).tolist()
        return found

    def ranges(self, weights: Numbers, y: int, x: int) -> list[Ranges]:
        """The curve over GAPS_BYTES, where a place takes its weight times `y / x`. No rounding decides on a gap."""
        running = _running(weights)
        inside = self._layers[self._begins[1:]] == self._layers[self._stops[:-1] - 1]
        gaps = (running[self._begins[1:]] - running[self._stops[:-1]])[inside]
        fetched = int((weights * self.fetched).sum())
        found = []
        for gap_bytes in GAPS_BYTES:
            joined = gaps
            if gap_bytes is not None and y:
                joined = gaps[gaps <= min(gap_bytes * x // y, 1 << 62)]
            size = fetched + int(joined.sum())
            found.append(Ranges(gap_bytes, len(self._begins) - len(joined), _scaled(size, y, x) if x else 0))
        return found


def _running(values: Numbers | NDArray[np.bool_]) -> Numbers:
    """The sum of all values before each place, and of all."""
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)))
