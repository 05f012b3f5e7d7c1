"""The daemon's end of its worker processes: who works on what, what came back, and who died."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from chunkd import wire
from chunkd.backlog import Backlog
from chunkd.model import Finding, Job

# A worker that has not said a word for so long is taken for hung and killed.
SILENCE_S = 300.0


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    job: Job | None = None
    read_bytes: int = 0
    heard_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job: a finding, or the reason why its worker died of it."""

    job: Job
    finding: Finding | None
    died: str = ""


class Pool:
    """A fixed number of workers, each started when it is first needed and replaced when it dies."""

    def __init__(self, start: Callable[[], Worker], count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._start, self._count, self._clock = start, count, clock
        self._workers: list[Worker] = []

    @property
    def idle(self) -> int:
        """How many jobs could be given out now."""
        return self._count - len(self.jobs())

    def jobs(self) -> list[Job]:
        """The jobs in hand."""
        return [worker.job for worker in self._workers if worker.job]

    @property
    def read_bytes(self) -> int:
        """How many stored bytes of the jobs in hand have been read. Safe to call from any thread."""
        return sum(worker.read_bytes for worker in self._workers.copy())

    def give(self, job: Job) -> None:
        """Hand a job to an idle worker, starting one if need be. Raises OSError when none can be started."""
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = self._start()
            self._workers.append(worker)
        worker.job, worker.read_bytes, worker.heard_at = job, 0, self._clock()
        # If it died while idle, or does not read, `collect` finds the end of its connection, or its silence.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            wire.send_job(worker.connection, job)

    def collect(self, timeout_s: float, bell: Backlog | None = None) -> list[Result]:
        """Wait for workers to say something, or the bell to ring, and return what is finished."""
        heard: list[Any] = [worker.connection for worker in self._workers]
        if bell is not None:
            heard.append(bell)
        ready = wait(heard, timeout_s)
        results = []
        for worker in list(self._workers):
            if worker.connection in ready:
                results += self._hear(worker)
            elif worker.job and self._clock() - worker.heard_at > SILENCE_S:
                worker.process.kill()
                results += self._bury(worker, f"no progress in {SILENCE_S:.0f} s")
        return results

    def _hear(self, worker: Worker) -> list[Result]:
        try:
            said = wire.receive(worker.connection)
        except BlockingIOError:
            worker.process.kill()
            return self._bury(worker, "its worker stopped in the middle of a word")
        except (EOFError, OSError):
            return self._bury(worker, "")
        except ValueError as error:
            worker.process.kill()
            return self._bury(worker, f"its worker sent what none does: {error}")
        worker.heard_at = self._clock()
        if isinstance(said, int):
            worker.read_bytes = said
            return []
        job, worker.job, worker.read_bytes = worker.job, None, 0
        return [Result(job, said)] if job else []

    def _bury(self, worker: Worker, reason: str) -> list[Result]:
        self._workers.remove(worker)
        worker.connection.close()
        try:
            code = worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        if worker.job is None:
            return []
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return [Result(worker.job, None, reason or f"its worker died ({how})")]

    def close(self) -> None:
        """End every worker, at once: whatever it has in hand is lost, and found again by the next scan."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._workers.clear()
