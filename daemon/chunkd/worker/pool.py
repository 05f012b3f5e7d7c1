"""The daemon's end of its worker processes: who works on what, what came back, and who died."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

from chunkd.model import Finding, Job
from chunkd.worker import protocol

# A worker without a message for this long counts as hung and is killed.
SILENCE_S = 300.0
# A worker reports progress twice a second. One that sends without end would keep the writer from its work.
WORDS_PER_S = 10
WORDS_AT_ONCE = 100
# A worker that dies closes its connection first, and its exit code comes a moment later. If it still lives after this
# time without a connection, it is killed.
LEAVE_S = 1.0
# How long a killed worker takes to end at most, unless the kernel holds it.
END_S = 5.0
# How often a process that must end is checked.
LOOK_EVERY_S = 0.01


class Wakeup(Protocol):
    """What ends a wait for workers: its descriptor becomes readable."""

    def fileno(self) -> int: ...


@dataclass(slots=True)
class Worker:
    process: subprocess.Popen[bytes]
    connection: protocol.DaemonsEnd
    job: Job | None = None
    read_bytes: int = 0
    given_at: float = 0.0
    heard_at: float = 0.0
    words: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a job: a finding, or the reason why its worker died."""

    job: Job
    finding: Finding | None
    died: str = ""


class Pool:
    """A fixed number of workers, each started when it is first needed and replaced when it dies."""

    def __init__(self, start: Callable[[], Worker], count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._start, self.count, self._clock = start, count, clock
        self._workers: list[Worker] = []
        self._leaving: list[Worker] = []  # their connections have ended; waiting for their exit codes
        self._killed: list[tuple[subprocess.Popen[bytes], float]] = []  # with the time of the kill
        self._lost: list[Result] = []  # of jobs that no worker took, for the next `collect`

    @property
    def idle(self) -> int:
        """How many jobs can be given out now."""
        busy = [worker for worker in self._workers if worker.job]
        return self.count - len(busy) - len(self._leaving) - len(self._killed)

    @property
    def stuck(self) -> int:
        """How many killed workers do not end, because the kernel waits for a file system that does not answer.

        They count as busy, so that there are never more processes than wanted. Safe to call from any thread.
        """
        return sum(self._clock() - killed_at > END_S for _, killed_at in self._killed.copy())

    def jobs(self) -> list[Job]:
        """The jobs in hand: those without a collected result."""
        in_hand = [worker.job for worker in (*self._workers, *self._leaving) if worker.job]
        return in_hand + [result.job for result in self._lost]

    @property
    def read_bytes(self) -> int:
        """How many stored bytes of the jobs in hand have been read. Safe to call from any thread."""
        return sum(worker.read_bytes for worker in self._workers.copy())

    def give(self, job: Job, descriptor: int) -> None:
        """Hand a job to an idle worker, starting one if necessary. Raises OSError when none can be started.

        The worker gets a copy of the blob's descriptor. The caller closes its own, at once if it likes.
        """
        for worker in [worker for worker in self._workers if worker.job is None]:
            if worker.process.poll() is None:
                break
            self._part(worker)
            self._reap(worker)
        else:
            worker = self._start()
            self._workers.append(worker)
        worker.job, worker.read_bytes, worker.words = job, 0, 0
        worker.given_at = worker.heard_at = self._clock()
        try:
            worker.connection.send_job(job, descriptor)
        except ConnectionError:
            self._part(worker)
        except OSError as error:
            self._lost += self._kill(worker, f"its worker did not take the job: {error.strerror}")

    def collect(self, timeout_s: float, bell: Wakeup | None = None) -> list[Result]:
        """Wait until workers say something or the bell rings, and return the finished jobs."""
        if self._lost:
            timeout_s = 0.0
        elif self._leaving or len(self._killed) > self.stuck:
            timeout_s = min(timeout_s, LOOK_EVERY_S)
        heard: list[Any] = [worker.connection for worker in self._workers]
        if bell is not None:
            heard.append(bell)
        ready: list[Any] = wait(heard, timeout_s)
        results, self._lost = self._lost, []
        self._killed = [killed for killed in self._killed if killed[0].poll() is None]
        for worker in list(self._leaving):
            results += self._reap(worker)
        for worker in list(self._workers):
            if worker.connection in ready:
                results += self._hear(worker)
            # A worker is silent until it has sent a whole message, whatever bytes come in.
            if worker in self._workers and worker.job and self._clock() - worker.heard_at > SILENCE_S:
                results += self._kill(worker, f"no progress in {SILENCE_S:.0f} s")
        return results

    def _hear(self, worker: Worker) -> list[Result]:
        found: list[Result] = []
        try:
            worker.connection.read()
            while (said := worker.connection.word(worker.job)) is not None:
                worker.heard_at = self._clock()
                if isinstance(said, Finding):
                    job, worker.job, worker.read_bytes = worker.job, None, 0
                    found += [Result(job, said)] if job else []
                else:
                    worker.read_bytes, worker.words = said, worker.words + 1
                    if worker.words > WORDS_AT_ONCE + WORDS_PER_S * (worker.heard_at - worker.given_at):
                        raise ValueError("too many words")
        except ValueError as error:
            found += self._kill(worker, f"its worker said what none does: {error}")
        except (EOFError, OSError):
            self._part(worker)
            found += self._reap(worker)
        return found

    def _part(self, worker: Worker) -> None:
        """A connection has ended by itself. The exit code says why, if the process ends too."""
        self._workers.remove(worker)
        self._leaving.append(worker)
        worker.connection.close()
        worker.heard_at = self._clock()

    def _reap(self, worker: Worker) -> list[Result]:
        """The result of a worker that is leaving; nothing yet while its process may be about to end."""
        code = worker.process.poll()
        if code is None and self._clock() - worker.heard_at <= LEAVE_S:
            return []
        self._leaving.remove(worker)
        if code is None:
            return self._end(worker, "its worker closed its connection")
        return [Result(worker.job, None, _how(code))] if worker.job else []

    def _kill(self, worker: Worker, reason: str) -> list[Result]:
        self._workers.remove(worker)
        worker.connection.close()
        return self._end(worker, reason)

    def _end(self, worker: Worker, reason: str) -> list[Result]:
        """Kill a process. It is reaped later, so that nobody waits for it."""
        worker.process.kill()
        self._killed.append((worker.process, self._clock()))
        return [Result(worker.job, None, reason)] if worker.job else []

    def close(self) -> None:
        """End every worker at once. The next scan finds the blobs that they had in hand."""
        for worker in (*self._workers, *self._leaving):
            worker.connection.close()
            worker.process.terminate()
            self._killed.append((worker.process, self._clock()))
        left = _ended([process for process, _ in self._killed])
        for process in left:
            process.kill()
        _ended(left)
        for workers in (self._workers, self._leaving, self._killed, self._lost):
            workers.clear()


def _ended(processes: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """The processes that have not ended after `END_S`, a wait for all of them together."""
    until = time.monotonic() + END_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    return [process for process in processes if process.returncode is None]


def _how(code: int) -> str:
    if code == protocol.NO_MEMORY_EXIT:
        return "its worker ran out of memory"
    if code == -signal.SIGKILL:
        return "its worker was killed (signal 9), as the kernel does when memory is short"
    return f"its worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
