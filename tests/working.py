"""A worker's process at the other end of its connection, spoken with from a test."""

from __future__ import annotations

import select
import subprocess

from chunkd.model import Finding, Job
from chunkd.worker.pool import Worker
from chunkd.worker.protocol import DaemonsEnd

PATIENCE_S = 60.0


def word(end: DaemonsEnd, job: Job) -> int | Finding:
    """The next thing that is said about the job."""
    while (said := end.word(job)) is None:
        assert select.select([end], [], [], PATIENCE_S)[0], "the worker says nothing"
        end.read()
    return said


def finding(end: DaemonsEnd, job: Job) -> Finding:
    """What comes of the job, which is given now."""
    end.send_job(job)
    while isinstance(said := word(end, job), int):
        pass
    return said


def end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait(PATIENCE_S)
    worker.connection.close()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """The exit code and what was written on stderr."""
    _, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stderr.decode()
