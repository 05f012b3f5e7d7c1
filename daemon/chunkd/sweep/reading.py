"""Reads the layers of a sweep: each once, in confined workers, with a result on disk for each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from chunkd.model import ChunkParams, Digest
from chunkd.objects.choose import bucket_of
from chunkd.settings.config import Config
from chunkd.sources.folder import FolderSource
from chunkd.sweep.layers import Layer, Layers
from chunkd.sweep.messages import LayerFinding, SweepJob, Totals
from chunkd.sweep.question import Question
from chunkd.sweep.results import Result, Results
from chunkd.sweep.sweeps_end import SweepsEnd
from chunkd.worker.pool import Pool, Worker
from chunkd.worker.pool import Result as WorkersResult
from chunkd.worker.spawn import Courtesy, Starter, courtesy_of
from chunkd.worker.starter import RUN

if TYPE_CHECKING:
    from chunkd.objects.bucket import BucketSource

WORKER = "chunkd.sweep.worker"
# A rule's figures are exact up to so many chunks, copies included. Of more those are kept whose hash is below a
# threshold.
EXACT_CHUNKS = 1 << 24
# At level 19 so many seconds of the processor for all picked layers. It is slower than this nowhere.
LEVEL_19_S = 60.0
LEVEL_19_BYTES_PER_S = 1_000_000
_WAIT_S = 0.5
_TRIES = 2


class Progress(NamedTuple):
    """Stored bytes done and known, and how many layers are left."""

    done_bytes: int
    known_bytes: int
    layers_left: int


class _Task(NamedTuple):
    """A layer to be read, for which time, and how long it may be compressed at level 19."""

    layer: Layer
    tries: int = 1
    level_19_s: float = 0.0


class SweepStarter(Starter):
    """Starts workers of a sweep in place of the daemon's."""

    def __init__(self, question: Question, courtesy: Courtesy, results: Results) -> None:
        super().__init__(ChunkParams(), question.caps, courtesy)
        self._question, self._courtesy, self._results = question, courtesy, results

    def start(self) -> Worker:
        process, ours = self._started(RUN)
        asked = dataclasses.asdict(self._question) | self._courtesy._asdict() | {"module": WORKER}
        try:
            ours.sendall(json.dumps(asked).encode() + b"\n")
        except BaseException:
            ours.close()
            raise
        asked_of = self._question
        end = SweepsEnd(ours, self._results, len(asked_of.rules), asked_of.caps, asked_of.measure)
        return Worker(process, end)


class Reading:
    """The layers of a sweep as they are read. `found` are those with a result, `bad` those without and why. `from_disk`
    counts the results of earlier runs, and `read` those of this one. `totals` are sums over `found`, rule by rule.
    """

    def __init__(self, config: Config, question: Question, layers: Layers, results: Results) -> None:
        self._config, self._question, self._results = config, question, results
        self.layers = layers
        self._sources: dict[int, BucketSource | FolderSource] = {}
        wanted = {layer.digest for layer in layers.layers}
        self.found: dict[Digest, Result] = {}
        self.bad: dict[Digest, str] = {}
        self.totals = [Totals()] * len(question.rules)
        self._least_shifts = [0] * len(question.rules)
        for result in results.kept():
            if result.digest in wanted:
                self._add(result)
        self.from_disk, self.read = len(self.found), 0
        self._level_19_left_s = LEVEL_19_S if question.baselines else 0.0
        self._level_19_left_s -= sum(result.finding.level_19_ms for result in self.found.values()) / 1000

    @property
    def is_complete(self) -> bool:
        """Whether each layer was read, if it can be."""
        return len(self.found) + len(self.bad) == len(self.layers.layers)

    @property
    def shifts(self) -> tuple[int, ...]:
        """For each rule how many bits of a chunk's hash must be 0 if it is kept; the same for all that can't keep all.

        A function of the exact totals, whatever the order in which layers were read; but no chunk comes back that an
        earlier run with more layers has left out.
        """
        counts = [totals.chunks - totals.holes for totals in self.totals]
        most = max(EXACT_CHUNKS, *counts)
        shift = max((-(-most // EXACT_CHUNKS) - 1).bit_length(), *self._least_shifts)
        return tuple(
            shift if count > EXACT_CHUNKS or least else 0
            for count, least in zip(counts, self._least_shifts, strict=True)
        )

    def _add(self, result: Result) -> None:
        self.found[result.digest] = result
        if result.finding.totals:
            self.totals = [one.plus(more) for one, more in zip(self.totals, result.finding.totals, strict=True)]
            self._least_shifts = [*map(max, self._least_shifts, result.shifts)]

    def layer_results(self) -> list[Result]:
        """Those that are layers, in the order of their digests."""
        return [self.found[digest] for digest in sorted(self.found) if self.found[digest].finding.kind == "layer"]

    def run(self) -> Generator[Progress, None, None]:
        """Read what has no result yet. Raises SystemRefused, StarterGone, SweepUnwritable."""
        left = [layer for layer in self.layers.layers if layer.digest not in self.found]
        known_bytes = sum(layer.stored_bytes for layer in self.layers.layers)
        done_bytes = known_bytes - sum(layer.stored_bytes for layer in left)
        yield Progress(done_bytes, known_bytes, len(left))
        if not left:
            return
        settings = self._config.workers, self._config.nice, self._config.io_priority, self._config.read_bytes_per_s
        count, courtesy = courtesy_of(*settings)
        pool = Pool(SweepStarter(self._question, courtesy, self._results), min(count, len(left)))
        todo = self._in_order(left)
        again: list[_Task] = []
        given: dict[Digest, _Task] = {}
        try:
            while True:
                while pool.idle and (task := again.pop() if again else next(todo, None)):
                    if self._give(pool, task):
                        given[task.layer.digest] = task
                    else:
                        self._level_19_left_s += task.level_19_s
                        done_bytes += task.layer.stored_bytes
                if pool.idle and not pool.jobs():
                    return
                for result in pool.collect(_WAIT_S):
                    layer, tries, level_19_s = given.pop(result.job.digest)
                    if isinstance(result.finding, LayerFinding):
                        self._level_19_left_s += level_19_s - result.finding.level_19_ms / 1000
                    elif tries < _TRIES:
                        # What ran out of memory may do without the largest compressor.
                        again.append(_Task(layer, tries + 1))
                        continue
                    done_bytes += layer.stored_bytes
                    self._take(result)
                yield Progress(done_bytes + pool.read_bytes, known_bytes, len(left) - self.read - len(self.bad))
        finally:
            for source in self._sources.values():
                if not isinstance(source, FolderSource):
                    source.close()
            pool.close()

    def _in_order(self, left: list[Layer]) -> Iterator[_Task]:
        """First those that are compressed at level 19, in the order of their digests, each that can be done in the time
        that is left; then the largest first, so that no worker is left alone with one.
        """
        picked = set()
        for layer in left:
            needed_s = layer.uncompressed_bytes / LEVEL_19_BYTES_PER_S
            if 0 < needed_s <= self._level_19_left_s:
                self._level_19_left_s -= needed_s
                picked.add(layer.digest)
                yield _Task(layer, level_19_s=needed_s)
        for layer in sorted(left, key=lambda layer: (-layer.stored_bytes, layer.digest)):
            if layer.digest not in picked:
                yield _Task(layer)

    def _give(self, pool: Pool, task: _Task) -> bool:
        layer = task.layer
        try:
            if layer.root not in self._sources:
                root = self.layers.roots[layer.root]
                self._sources[layer.root] = bucket_of(root, pool.run) or FolderSource(root)
            with self._sources[layer.root].view() as view:
                descriptor, seen = view.open(layer.path)
        except OSError as error:
            self.bad[layer.digest] = error.strerror or str(error)
            return False
        if descriptor < 0:
            self.bad[layer.digest] = f"it is {seen.kind}"
            return False
        job = SweepJob(layer.digest, seen.mark, level_19_s=task.level_19_s, shifts=self.shifts)
        try:
            pool.give(job, descriptor, layer.root)
        finally:
            os.close(descriptor)
        return True

    def _take(self, result: WorkersResult) -> None:
        digest, finding = result.job.digest, result.finding
        if finding is None:
            self.bad[digest] = result.died
        elif (kept := self._results.result(digest)) is not None:
            self.read += 1
            self._add(kept)
        else:
            self.bad[digest] = finding.reason or finding.kind
