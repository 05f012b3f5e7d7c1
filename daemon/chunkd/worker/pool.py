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

# A worker that has not said a word for so long is taken for hung and killed.
SILENCE_S = 300.0
# It tells its progress twice a second. One that never stops talking would keep the writer from its work.
WORDS_PER_S = 10
WORDS_AT_ONCE = 100
# How long the end of a worker is waited for: when its connection has ended, and when it has been killed.
END_S = 5.0


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
    """What became of a job: a finding, or the reason why its worker died of it."""

    job: Job
    finding: Finding | None
    died: str = ""


class Pool:
    """A fixed number of workers, each started when it is first needed and replaced when it dies."""

    def __init__(self, start: Callable[[], Worker], count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._start, self.count, self._clock = start, count, clock
        self._workers: list[Worker] = []
        self._stuck: list[subprocess.Popen[bytes]] = []

    @property
    def idle(self) -> int:
        """How many jobs could be given out now."""
        return self.count - len(self.jobs()) - len(self._stuck)

    @property
    def stuck(self) -> int:
        """How many workers have been killed and do not end: the kernel waits for a file system that does not answer.

        They count as busy, so that there are never more processes than wanted. Safe to call from any thread.
        """
        return len(self._stuck)

    def jobs(self) -> list[Job]:
        """The jobs in hand."""
        return [worker.job for worker in self._workers if worker.job]

    @property
    def read_bytes(self) -> int:
        """How many stored bytes of the jobs in hand have been read. Safe to call from any thread."""
        return sum(worker.read_bytes for worker in self._workers.copy())

    def give(self, job: Job) -> None:
        """Hand a job to an idle worker, starting one if need be. Raises OSError when none can be started."""
        for worker in [worker for worker in self._workers if worker.job is None]:
            if worker.process.poll() is None:
                break
            self._reap(worker, "")
        else:
            worker = self._start()
            self._workers.append(worker)
        worker.job, worker.read_bytes, worker.words = job, 0, 0
        worker.given_at = worker.heard_at = self._clock()
        # If it dies before it has the job, or does not read, `collect` finds the end of its connection, or its silence.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            worker.connection.send_job(job)

    def collect(self, timeout_s: float, bell: Wakeup | None = None) -> list[Result]:
        """Wait for workers to say something, or the bell to ring, and return what is finished."""
        self._stuck = [process for process in self._stuck if process.poll() is None]
        heard: list[Any] = [worker.connection for worker in self._workers]
        if bell is not None:
            heard.append(bell)
        ready: list[Any] = wait(heard, timeout_s)
        results = []
        for worker in list(self._workers):
            if worker.connection in ready:
                results += self._hear(worker)
            # Silence is to say no whole word, whatever comes in.
            if worker in self._workers and worker.job and self._clock() - worker.heard_at > SILENCE_S:
                worker.process.kill()
                results += self._reap(worker, f"no progress in {SILENCE_S:.0f} s")
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
            worker.process.kill()
            found += self._reap(worker, f"its worker said what none does: {error}")
        except (EOFError, OSError):
            found += self._reap(worker, "")
        return found

    def _reap(self, worker: Worker, reason: str) -> list[Result]:
        self._workers.remove(worker)
        worker.connection.close()
        code = self._end(worker.process)
        return [Result(worker.job, None, reason or _how(code))] if worker.job else []

    def _end(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit code of a worker that ends or is made to, None when that does not help."""
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(END_S)
            process.kill()
        self._stuck.append(process)
        return None

    def close(self) -> None:
        """End every worker, at once: whatever it has in hand is lost, and found again by the next scan."""
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            self._end(worker.process)
        self._workers.clear()


def _how(code: int | None) -> str:
    if code is None:
        return "its worker can't be ended"
    if code == protocol.NO_MEMORY_EXIT:
        return "its worker ran out of memory"
    if code == -signal.SIGKILL:
        return "its worker was killed (signal 9), as the kernel does when memory is short"
    return f"its worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
