"""The layers of a sweep, and what is known of each so far."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from chunkd.model import Digest
from chunkd.sweep.messages import Totals
from chunkd.sweep.results import Result

# A rule's figures are exact up to so many chunks, copies included. Of more those are kept whose hash is below a
# threshold.
EXACT_CHUNKS = 1 << 24
# At level 19 so many seconds of the processor for all picked layers, if they take no longer than at this speed.
LEVEL_19_S = 60.0
LEVEL_19_BYTES_PER_S = 1_000_000


class Layer(NamedTuple):
    """A blob to be read. `uncompressed_bytes` is what the index says, or a guess; `root` is the number of its cache
    among those of the sweep, and `path` is below it. `level_19_s` is how long it is meant to be compressed at level 19.
    """

    digest: Digest
    stored_bytes: int
    uncompressed_bytes: int
    root: int
    path: str
    level_19_s: float = 0.0


class Progress(NamedTuple):
    """Stored bytes done and known, and how many layers are left."""

    done_bytes: int
    known_bytes: int
    layers_left: int


class Layers(NamedTuple):
    """`state_dir` is that of the index that they come from; None if the caches were listed. `problems` says which
    folders could not be listed.
    """

    roots: tuple[str, ...]
    layers: list[Layer]
    state_dir: str | None
    problems: list[str]


def picked(layers: Iterable[Layer]) -> list[Layer]:
    """The layers in the order of their digests, those that are compressed at level 19 with the time for that: each that
    fits into what those before it have left of LEVEL_19_S. So which ones these are depends on the layers alone.
    """
    left_s, found = LEVEL_19_S, []
    for layer in sorted(layers):
        needed_s = layer.uncompressed_bytes / LEVEL_19_BYTES_PER_S
        if needed_s <= left_s:
            left_s -= needed_s
            layer = layer._replace(level_19_s=needed_s)
        found.append(layer)
    return found


class Tally:
    """The layers of a sweep. `found` are those with a result, without what `totals` and `kept` have of it; `bad` are
    those without, and why; the `unread` ones could not be opened or read, and may be later. `from_disk` counts the
    results of earlier runs. `totals` are sums over `found`, rule by rule; `kept` has of each layer how many chunks of a
    rule are kept if all are.

    `totals` and `least_shifts`, the most of `found`, may begin with those of other layers.
    """

    def __init__(self, layers: Layers, rules: int, totals: Sequence[Totals] = (), shifts: Sequence[int] = ()) -> None:
        self.layers = layers
        self.wanted = {layer.digest: layer.stored_bytes for layer in layers.layers}
        self._known_bytes = sum(self.wanted.values())
        self.found: dict[Digest, Result] = {}
        self.kept: dict[Digest, array[int]] = {}
        self.bad: dict[Digest, str] = {}
        self.unread: set[Digest] = set()
        self.totals = [*totals] or [Totals()] * rules
        self.least_shifts = [*shifts] or [0] * rules
        self.from_disk = self._done_bytes = 0

    def take(self, results: Iterable[Result]) -> None:
        """Results that earlier runs, or others, have kept."""
        for result in results:
            self.add(result)
            self.from_disk += 1

    def add(self, result: Result) -> None:
        finding = result.finding
        if finding.totals:
            self.totals = [one.plus(more) for one, more in zip(self.totals, finding.totals, strict=True)]
            self.least_shifts = [*map(max, self.least_shifts, result.shifts)]
            self.kept[result.digest] = array("Q", [one.chunks - one.holes for one in finding.totals])
        self.found[result.digest] = result._replace(finding=replace(finding, totals=()), shifts=())
        self._done_bytes += self.wanted[result.digest]

    def give_up(self, digest: Digest, why: str) -> None:
        """The layer has no result."""
        self.bad[digest] = why
        self._done_bytes += self.wanted[digest]

    @property
    def left(self) -> list[Layer]:
        """What is to be read: first what is compressed at level 19, then the largest, so that no worker is left alone
        with one.
        """
        done = self.found.keys() | self.bad.keys()
        left = [layer for layer in self.layers.layers if layer.digest not in done]
        return sorted(left, key=lambda layer: (not layer.level_19_s, -layer.stored_bytes, layer.digest))

    def progress(self, under_way_bytes: int = 0) -> Progress:
        left = len(self.wanted) - len(self.found) - len(self.bad)
        return Progress(self._done_bytes + under_way_bytes, self._known_bytes, left)

    @property
    def is_complete(self) -> bool:
        """Whether each layer was read, if it can be."""
        return not self.progress().layers_left

    @property
    def shifts(self) -> tuple[int, ...]:
        """For each rule how many bits of a chunk's hash must be 0 if it is kept; the same for all that can't keep all.

        A function of the exact totals, whatever the order in which layers were read; but no chunk comes back that an
        earlier run with more layers has left out.
        """
        counts = [totals.chunks - totals.holes for totals in self.totals]
        most = max(EXACT_CHUNKS, *counts)
        shift = max((-(-most // EXACT_CHUNKS) - 1).bit_length(), *self.least_shifts)
        return tuple(
            shift if count > EXACT_CHUNKS or least else 0
            for count, least in zip(counts, self.least_shifts, strict=True)
        )

    def layer_results(self) -> list[Result]:
        """Those that are layers, in the order of their digests."""
        return [self.found[digest] for digest in sorted(self.found) if self.found[digest].finding.kind == "layer"]
