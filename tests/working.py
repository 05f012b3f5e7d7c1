"""A worker's process at the other end of its connection, spoken with from a test."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from chunkd.model import Caps, ChunkParams, Digest, FileMark, Finding, Job
from chunkd.worker import examine as worker
from chunkd.worker.pool import Pool, Result, Wakeup, Worker
from chunkd.worker.protocol import DaemonsEnd
from chunkd.worker.rate_limit import Pace
from chunkd.worker.spawn import Courtesy, Starter, WorkerProcess

PATIENCE_S = 60.0
COURTESY = Courtesy(0, "normal", 0)


class Leaving(Pool):
    """A pool whose worker leaves after each finding. No other takes its place before somebody waits once more."""

    looks = 0
    is_gone = False

    @property
    def idle(self) -> int:
        self.looks += 1
        assert self.looks < 10_000, "nobody waits for the workers"
        return 0 if self.is_gone else super().idle

    def collect(self, timeout_s: float, bell: Wakeup | None = None) -> list[Result]:
        found = super().collect(0.01 if self.is_gone else timeout_s, bell)
        self.is_gone = bool(found)
        return found


def word(end: DaemonsEnd, job: Job) -> int | Finding:
    """The next thing that is said about the job."""
    while (said := end.word(job)) is None:
        assert select.select([end], [], [], PATIENCE_S)[0], "the worker says nothing"
        end.read()
    return said


def opened(path: Path) -> tuple[int, FileMark]:
    """A file as its opener has it: a descriptor, and the mark."""
    descriptor = os.open(path, os.O_RDONLY)
    status = os.fstat(descriptor)
    return descriptor, FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def give(
    take: Callable[[Job, int], object], digest: Digest, path: Path, *, decode: bool = True, relayed: bool = False
) -> Job:
    """Open the file at the path for `take`, a pool's `give` or a connection's `send_job`."""
    descriptor, mark = opened(path)
    job = Job(digest, mark, decode, relayed)
    try:
        take(job, descriptor)
    finally:
        os.close(descriptor)
    return job


def examined(
    digest: Digest,
    path: Path,
    *,
    decode: bool = True,
    relayed: bool = False,
    caps: Caps = Caps(),
    progress: Callable[[int], object] = lambda _: None,
    pace: Pace | None = None,
) -> Finding:
    """What a worker finds of the file at the path, without a process."""
    descriptor, mark = opened(path)
    return worker.examine(Job(digest, mark, decode, relayed), descriptor, ChunkParams(), caps, progress, pace)


def finding(end: DaemonsEnd, digest: Digest, path: Path, *, decode: bool = True, relayed: bool = False) -> Finding:
    """What comes of the blob, which is given now."""
    job = give(end.send_job, digest, path, decode=decode, relayed=relayed)
    while isinstance(said := word(end, job), int):
        pass
    return said


@contextlib.contextmanager
def started(courtesy: Courtesy = COURTESY) -> Iterator[tuple[Worker, int]]:
    """A worker by a starter of its own, and its process id."""
    starter = Starter(ChunkParams(), Caps(), courtesy)
    try:
        worker = starter.start()
        yield worker, pid_of(starter, worker)
        worker.connection.close()
    finally:
        starter.close()


def pid_of(starter: Starter, worker: Worker) -> int:
    """Its process id, once it runs."""
    assert isinstance(worker.process, WorkerProcess)
    while not worker.process.pid:
        assert select.select([starter], [], [], PATIENCE_S)[0], "it is not started"
        starter.read()
    return worker.process.pid


def exit_code(starter: Starter, worker: Worker) -> int:
    """Of a process, once it has ended."""
    while (code := worker.process.poll()) is None:
        assert select.select([starter], [], [], PATIENCE_S)[0], "it does not end"
    return code


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The exit code and what was written on stderr."""
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stderr.decode()
