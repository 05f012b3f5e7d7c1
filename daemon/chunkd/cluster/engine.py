"""Where tasks are carried out: on this machine, or on a Dask cluster. An engine holds no state; it may lose anything.

Wherever a task is carried out, it has a process of its own, which ends when the one that asked for it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Protocol

from chunkd.errors import ChunkdError, UsageError

# A task whose process or machine dies is carried out again, so often at most.
ALLOWED_FAILURES = 10
TASK = (sys.executable, "-P", "-m", "chunkd.cluster.task")
CONNECT_S = 30
GATHER_S = 1.0


class DaskMissing(ChunkdError):
    def __init__(self) -> None:
        super().__init__("engine dask: distributed is not installed; install it: `pip install 'chunkd[dask]'`")


class EngineGone(ChunkdError):
    def __init__(self, problem: str) -> None:
        super().__init__(f"engine dask: {problem}; run the command again: it goes on from what the store has")


class Engine(Protocol):
    """`room` is how many tasks it takes at once. `cancel` gives up all tasks and the engine itself.

    `gather` waits until tasks have ended, at most GATHER_S, and has their numbers with what became of them: what the
    task said, `error` if it can't be carried out, `died` if its process or its machine died.
    """

    @property
    def room(self) -> int: ...
    def submit(self, number: int, task: dict[str, Any]) -> None: ...
    def gather(self) -> list[tuple[int, dict[str, Any]]]: ...
    def cancel(self) -> None: ...


class Running:
    """The processes of tasks that are under way. After `end` there is none: one that begins later is killed too."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_ended = False

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.add(process)
        if self._is_ended:
            process.kill()

    def remove(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.discard(process)

    def end(self) -> None:
        self._is_ended = True
        for process in self._processes.copy():
            process.kill()


def carry_out(task: dict[str, Any], running: Running | None = None) -> dict[str, Any]:
    """Carry out a task in a process of its own, which is among the `running` ones meanwhile."""
    with subprocess.Popen(TASK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        running = running or Running()
        running.add(process)
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.read()
        except BrokenPipeError:  # it died before it had read the task
            said = b""
            with contextlib.suppress(BrokenPipeError):  # what is left in the buffer
                process.stdin.close()
        except BaseException:
            process.kill()
            raise
        finally:
            running.remove(process)
    if process.returncode or not said:
        return {"died": f"its process ended with {process.returncode}"}
    found: dict[str, Any] = json.loads(said)
    return found


class Local:
    """Processes on this machine."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._threads = futures.ThreadPoolExecutor(room)
        self._running: dict[futures.Future[dict[str, Any]], int] = {}
        self._processes = Running()

    def submit(self, number: int, task: dict[str, Any]) -> None:
        self._running[self._threads.submit(carry_out, task, self._processes)] = number

    def gather(self) -> list[tuple[int, dict[str, Any]]]:
        done = futures.wait(self._running, GATHER_S, futures.FIRST_COMPLETED).done
        return [(self._running.pop(one), one.result()) for one in done]

    def cancel(self) -> None:
        # Ctrl-C may have come while a task was being given out: `_running` need not have all of them.
        self._processes.end()
        self._threads.shutdown(cancel_futures=True)


class Dask:
    """A Dask cluster: that of the scheduler at an address or in Dask's own settings, else one in this process."""

    def __init__(self, address: str, room: int) -> None:
        import dask
        import distributed

        self._distributed = distributed
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it has to say is said here
        dask.config.set({"distributed.scheduler.allowed-failures": ALLOWED_FAILURES})
        where = address or dask.config.get("scheduler-address", None)
        self._cluster = None
        try:
            if where is None:
                self._cluster = distributed.LocalCluster(
                    n_workers=1, threads_per_worker=room, processes=False, dashboard_address=None
                )
            self._client = distributed.Client(self._cluster or where, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise UsageError(f"engine dask:{where}: no scheduler answers there: {error}") from None
        self._running: dict[Any, int] = {}

    @property
    def room(self) -> int:
        """As many again as are carried out wait at the workers."""
        with self._scheduler():
            threads: dict[str, int] = self._client.nthreads()
        return max(1, 2 * sum(threads.values()))

    def submit(self, number: int, task: dict[str, Any]) -> None:
        with self._scheduler():
            self._running[self._client.submit(carry_out, task, pure=False)] = number

    def gather(self) -> list[tuple[int, dict[str, Any]]]:
        with self._scheduler():
            try:
                done = self._distributed.wait(list(self._running), GATHER_S, "FIRST_COMPLETED").done
            except TimeoutError:
                return []
            return [(self._running.pop(one), self._said(one)) for one in done]

    def _said(self, one: Any) -> dict[str, Any]:
        error = one.exception()
        if error is None:
            found: dict[str, Any] = one.result()
            return found
        died = isinstance(error, self._distributed.scheduler.KilledWorker)
        return {"died" if died else "error": f"{type(error).__name__}: {error}"}

    @contextlib.contextmanager
    def _scheduler(self) -> Iterator[None]:
        """Raises EngineGone when the scheduler has gone."""
        try:
            yield
        except (OSError, TimeoutError, futures.CancelledError, asyncio.CancelledError) as error:
            raise EngineGone(f"the scheduler has gone: {type(error).__name__}") from None

    def cancel(self) -> None:
        self._client.close(timeout=1)
        if self._cluster is not None:
            self._cluster.close(timeout=1)


def check_engine(name: str) -> None:
    """Raises UsageError for a name that `--engine` does not take, and DaskMissing. Starts nothing."""
    if name.partition(":")[0] == "dask":
        if importlib.util.find_spec("distributed") is None:
            raise DaskMissing
    elif name != "local":
        raise UsageError(f"engine {name}: there are local, dask and dask:ADDRESS")


def make_engine(name: str, room: int) -> Engine:
    """The engine of a name, which starts `room` processes at once where that is its to say. Raises UsageError and
    DaskMissing.
    """
    check_engine(name)
    kind, _, address = name.partition(":")
    return Dask(address, room) if kind == "dask" else Local(room)
