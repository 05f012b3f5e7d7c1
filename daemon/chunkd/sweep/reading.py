"""Reads the layers of a sweep: each once, in confined workers, with a result on disk for each."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from chunkd.model import ChunkParams, Digest
from chunkd.objects.choose import bucket_of
from chunkd.sources.folder import FolderSource
from chunkd.sweep.messages import LayerFinding, SweepJob
from chunkd.sweep.results import Results
from chunkd.sweep.sweeps_end import SweepsEnd
from chunkd.sweep.tally import Layer, Progress, Tally
from chunkd.worker.pool import Pool, Worker
from chunkd.worker.pool import Result as WorkersResult
from chunkd.worker.spawn import Courtesy, Starter
from chunkd.worker.starter import RUN

if TYPE_CHECKING:
    from chunkd.objects.bucket import BucketSource

WORKER = "chunkd.sweep.worker"
_WAIT_S = 0.5
_TRIES = 2


class _Task(NamedTuple):
    """A layer to be read, for which time."""

    layer: Layer
    tries: int = 1


class SweepStarter(Starter):
    """Starts workers of a sweep in place of the daemon's."""

    def __init__(self, results: Results, courtesy: Courtesy) -> None:
        super().__init__(ChunkParams(), results.question.caps, courtesy)
        self._results, self._courtesy = results, courtesy

    def start(self) -> Worker:
        process, ours = self._started(RUN)
        asked = dataclasses.asdict(self._results.question) | self._courtesy._asdict() | {"module": WORKER}
        try:
            ours.sendall(json.dumps(asked).encode() + b"\n")
        except BaseException:
            ours.close()
            raise
        return Worker(process, SweepsEnd(ours, self._results))


class Reading:
    """Reads what a tally lacks, with so many workers at most, and adds it."""

    def __init__(self, tally: Tally, results: Results, courtesy: Courtesy, workers: int) -> None:
        self._tally, self._results, self._courtesy, self._workers = tally, results, courtesy, workers
        self._sources: dict[int, BucketSource | FolderSource] = {}

    def run(self) -> Generator[Progress, None, None]:
        """Raises SystemRefused, StarterGone, SweepUnwritable."""
        left = self._tally.left
        yield self._tally.progress()
        if not left:
            return
        pool = Pool(SweepStarter(self._results, self._courtesy), min(self._workers, len(left)))
        todo = [_Task(layer) for layer in reversed(left)]
        given: dict[Digest, _Task] = {}
        try:
            while True:
                while pool.idle and todo:
                    task = todo.pop()
                    if self._give(pool, task):
                        given[task.layer.digest] = task
                if pool.idle and not pool.jobs():
                    return
                for result in pool.collect(_WAIT_S):
                    layer, tries = given.pop(result.job.digest)
                    if not isinstance(result.finding, LayerFinding) and tries < _TRIES:
                        # What ran out of memory may do without the largest compressor.
                        todo.append(_Task(layer._replace(level_19_s=0.0), tries + 1))
                        continue
                    self._take(result)
                yield self._tally.progress(pool.read_bytes)
        finally:
            for source in self._sources.values():
                if not isinstance(source, FolderSource):
                    source.close()
            pool.close()

    def _give(self, pool: Pool, task: _Task) -> bool:
        layer, tally = task.layer, self._tally
        try:
            if layer.root not in self._sources:
                root = tally.layers.roots[layer.root]
                self._sources[layer.root] = bucket_of(root, pool.run) or FolderSource(root)
            with self._sources[layer.root].view() as view:
                descriptor, seen = view.open(layer.path)
        except OSError as error:
            tally.give_up(layer.digest, error.strerror or str(error))
            tally.unread.add(layer.digest)
            return False
        if descriptor < 0:
            tally.give_up(layer.digest, f"it is {seen.kind}")
            return False
        job = SweepJob(layer.digest, seen.mark, level_19_s=layer.level_19_s, shifts=tally.shifts)
        try:
            pool.give(job, descriptor, layer.root)
        finally:
            os.close(descriptor)
        return True

    def _take(self, result: WorkersResult) -> None:
        digest, finding = result.job.digest, result.finding
        if finding is None:
            self._tally.give_up(digest, result.died)
        elif (kept := self._results.result(digest)) is not None:
            self._tally.add(kept)
        else:
            self._tally.give_up(digest, finding.reason or finding.kind)
            is_too_large = result.job.mark.stored_bytes > self._results.question.caps.uncompressed_bytes
            if finding.kind in ("unreadable", "gone") and not is_too_large:
                self._tally.unread.add(digest)
