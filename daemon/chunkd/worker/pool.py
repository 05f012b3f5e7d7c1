"""The daemon's end of its worker processes: who works on what, what came back, and who died."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from chunkd.errors import StarterGone
from chunkd.model import Finding, Job
from chunkd.worker import protocol

# A busy worker may be given further blobs while all that it has are at most so many, of so many bytes together. They
# wait in its connection, and it needs no turn of the daemon between two. Many workers have fewer each, MOST_AHEAD in
# all, as the kernel bounds how many descriptors are under way.
SMALL_BYTES = 64 << 10
JOBS_AT_ONCE, MOST_AHEAD = 16, 256
# A worker without a message for this long is stalled: it seems to wait for a file system that does not answer.
STALLED_S = 5.0
# And after this long it is killed.
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


class Process(Protocol):
    """A worker's process. `refused` says why it could not be started; then it has ended too."""

    @property
    def refused(self) -> OSError | None: ...
    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


@dataclass(slots=True)
class Worker:
    process: Process
    connection: protocol.DaemonsEnd
    jobs: deque[Job] = field(default_factory=deque)  # in the order of the findings; it is at work on the first
    jobs_bytes: int = 0  # of all jobs together
    cache: int = 0
    read_bytes: int = 0
    given_at: float = 0.0
    heard_at: float = 0.0
    words: int = 0


class Killed(NamedTuple):
    """A process that was killed and has not ended yet, and the cache of its blob."""

    process: Process
    cache: int
    at: float


class Starter(Protocol):
    """Who starts workers. Its descriptor becomes readable when one has ended, which `read` takes in."""

    def fileno(self) -> int: ...
    def start(self) -> Worker: ...
    def run(self, module: str, asked: dict[str, Any]) -> socket.socket: ...
    def read(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a job: a finding, or the reason why its worker died, or why the system refused to start one.

    `begun` is false of a job that no worker had begun.
    """

    job: Job
    finding: Finding | None
    died: str = ""
    begun: bool = True


class Pool:
    """A fixed number of workers, each started when it is first needed and replaced when it dies.

    A worker that is stalled, or that was killed and does not end, leaves its place to another: there are up to twice as
    many processes while a file system does not answer. The methods raise StarterGone.
    """

    def __init__(self, starter: Starter, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._starter, self.count, self._clock = starter, count, clock
        self._workers: list[Worker] = []
        self._leaving: list[Worker] = []  # their connections have ended; waiting for their exit codes
        self._killed: list[Killed] = []
        self._lost: list[Result] = []  # of jobs that no worker took, for the next `collect`
        self._refused: OSError | None = None  # for the next `give`

    @property
    def idle(self) -> int:
        """How many jobs can be given out now to workers that have none."""
        at_work = [worker for worker in self._workers if worker.jobs]
        stalled = sum(map(self._is_stalled, at_work))
        busy = len(at_work) - stalled + len(self._leaving)
        return max(0, min(self.count - busy, 2 * self.count - busy - stalled - len(self._killed)))

    def takes(self, stored_bytes: int, cache: int) -> bool:
        """Whether a job of this size can be given out now, because a worker is idle or has room for a small one."""
        return self.idle > 0 or self._with_room(stored_bytes, cache) is not None

    def _with_room(self, stored_bytes: int, cache: int) -> Worker | None:
        """The worker with the fewest jobs that can take another one. All together are small, so that none waits
        long, and of one cache, so that none waits for the file system of another.
        """
        most = min(JOBS_AT_ONCE, MOST_AHEAD // self.count) if stored_bytes <= SMALL_BYTES else 0
        able = [
            worker
            for worker in self._workers
            if 0 < len(worker.jobs) < most
            and worker.cache == cache
            and worker.jobs_bytes + stored_bytes <= SMALL_BYTES
            and not self._is_stalled(worker)
        ]
        return min(able, key=lambda worker: len(worker.jobs), default=None)

    @property
    def stalled(self) -> set[int]:
        """The caches of stalled workers, and of killed ones that have not ended. Each further blob of such a cache may
        take another worker, and so should not be given out.
        """
        stalled = {worker.cache for worker in self._workers if self._is_stalled(worker)}
        return stalled | {killed.cache for killed in self._killed}

    def _is_stalled(self, worker: Worker) -> bool:
        return bool(worker.jobs) and self._clock() - worker.heard_at > STALLED_S

    @property
    def stuck(self) -> list[Killed]:
        """The killed workers that do not end, because the kernel waits for a file system that does not answer; the
        oldest first. Safe to call from any thread.
        """
        return [killed for killed in self._killed.copy() if self._clock() - killed.at > END_S]

    def jobs(self) -> list[Job]:
        """The jobs in hand: those without a collected result."""
        in_hand = [job for worker in (*self._workers, *self._leaving) for job in worker.jobs]
        return in_hand + [result.job for result in self._lost]

    @property
    def read_bytes(self) -> int:
        """How many stored bytes of the jobs in hand have been read. Safe to call from any thread."""
        return sum(worker.read_bytes for worker in self._workers.copy())

    def give(self, job: Job, descriptor: int, cache: int = 0) -> None:
        """Hand a job to a worker that `takes` it, starting one if necessary. Raises OSError when none can be started,
        or when the last one could not be.

        The worker gets a copy of the blob's descriptor. The caller closes its own, at once if it likes.
        """
        if self._refused:
            refused, self._refused = self._refused, None
            raise refused
        worker = None if self.idle else self._with_room(job.mark.stored_bytes, cache)
        if worker is None:
            worker = self._idle_worker()
            worker.cache = cache
            self._begin(worker)
        worker.jobs.append(job)
        worker.jobs_bytes += job.mark.stored_bytes
        try:
            worker.connection.send_job(job, descriptor)
        except ConnectionError:
            pass  # `collect` will read what it had found, and then that it has gone
        except OSError as error:
            self._lost += self._kill(worker, f"its worker did not take the job: {error.strerror}")

    def _idle_worker(self) -> Worker:
        for worker in [worker for worker in self._workers if not worker.jobs]:
            if worker.process.poll() is None:
                return worker
            self._part(worker)
            self._reap(worker)
        worker = self._starter.start()
        self._workers.append(worker)
        return worker

    def _begin(self, worker: Worker) -> None:
        """It begins a job now."""
        worker.read_bytes = worker.words = 0
        worker.given_at = worker.heard_at = self._clock()

    def run(self, module: str, asked: dict[str, Any]) -> socket.socket:
        """The connection of a new process that is not a worker, as `spawn.Starter.run` has it. Safe to call from any
        thread. Raises OSError.
        """
        return self._starter.run(module, asked)

    def collect(self, timeout_s: float, bell: Wakeup | None = None) -> list[Result]:
        """Wait until workers say something or the bell rings, and return the finished jobs."""
        if self._lost:
            timeout_s = 0.0
        elif self._leaving or len(self._killed) > len(self.stuck):
            timeout_s = min(timeout_s, LOOK_EVERY_S)
        heard = [worker.connection.fileno() for worker in self._workers]
        ready = self._wait(timeout_s, *heard, *([] if bell is None else [bell.fileno()]))
        results, self._lost = self._lost, []
        self._starter.read()
        self._killed = [killed for killed in self._killed if killed.process.poll() is None]
        for worker in list(self._leaving):
            results += self._reap(worker)
        for worker in list(self._workers):
            if worker.connection.fileno() in ready:
                results += self._hear(worker)
            # A worker is silent until it has sent a whole message, whatever bytes come in.
            if worker in self._workers and worker.jobs and self._clock() - worker.heard_at > SILENCE_S:
                results += self._kill(worker, f"no progress in {SILENCE_S:.0f} s")
        self._let_go()
        return results

    def _wait(self, timeout_s: float, *descriptors: int) -> set[int]:
        """Those that become readable. Waits at most `timeout_s`, for the starter too."""
        poll = select.poll()
        for descriptor in (self._starter.fileno(), *descriptors):
            poll.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(1000 * timeout_s)}

    def _let_go(self) -> None:
        """End idle workers that were needed only while others were stalled."""
        at_hand = [worker for worker in self._workers if not self._is_stalled(worker)]
        for worker in [worker for worker in at_hand if not worker.jobs][: max(0, len(at_hand) - self.count)]:
            self._part(worker)

    def _hear(self, worker: Worker) -> list[Result]:
        found: list[Result] = []
        try:
            worker.connection.read()
            while (said := worker.connection.word(worker.jobs[0] if worker.jobs else None)) is not None:
                worker.heard_at = self._clock()
                if isinstance(said, Finding):
                    found.append(Result(worker.jobs.popleft(), said))
                    worker.jobs_bytes -= found[-1].job.mark.stored_bytes
                    self._begin(worker)
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
        """The results of a worker that is leaving; nothing yet while its process may be about to end."""
        code = worker.process.poll()
        if code is None and self._clock() - worker.heard_at <= LEAVE_S:
            return []
        self._leaving.remove(worker)
        if code is None:
            return self._end(worker, "its worker closed its connection")
        if refused := worker.process.refused:
            self._refused = refused
        died = f"the system started no worker: {refused.strerror}" if refused else f"its worker {how_it_ended(code)}"
        return _lost(worker, died, begun=not refused)

    def _kill(self, worker: Worker, reason: str) -> list[Result]:
        self._workers.remove(worker)
        return self._end(worker, reason)

    def _end(self, worker: Worker, reason: str) -> list[Result]:
        """Kill a process. It is reaped later, so that nobody waits for it."""
        worker.process.kill()
        worker.connection.close()
        self._killed.append(Killed(worker.process, worker.cache, self._clock()))
        return _lost(worker, reason)

    def close(self) -> None:
        """End every worker at once, and the starter. The next scan finds the blobs that they had in hand."""
        left = [*self._workers, *self._leaving]
        for worker in left:
            worker.connection.close()
        with contextlib.suppress(StarterGone):
            for worker in left:
                self._end(worker, "")
            until = time.monotonic() + END_S
            while any(killed.process.poll() is None for killed in self._killed) and time.monotonic() < until:
                self._wait(LOOK_EVERY_S)
        for workers in (self._workers, self._leaving, self._killed, self._lost):
            workers.clear()
        self._starter.close()


def _lost(worker: Worker, died: str, *, begun: bool = True) -> list[Result]:
    """The results of the jobs of a worker that is gone. Its end is charged to the one that it was at work on."""
    return [Result(job, None, died, begun and not place) for place, job in enumerate(worker.jobs)]


def how_it_ended(code: int) -> str:
    """What an exit code says of a worker, or of the starter."""
    if code == protocol.NO_MEMORY_EXIT:
        return "ran out of memory"
    if code == -signal.SIGKILL:
        return "was killed (signal 9), as the kernel does when memory is short"
    return f"died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
