"""Worker processes: how many there are, their priority, and the daemon's end of the process that starts them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chunkd.errors import StarterGone, SystemRefused
from chunkd.model import Caps, ChunkParams, MeasureRule
from chunkd.worker import protocol
from chunkd.worker.pool import Pool, Worker, how_it_ended
from chunkd.worker.starter import KILL, REFUSED, REPLY, REQUEST, RUN, START, STARTED

# How long the starter may take to end once it is told to, or its exit code to come once its connection has ended.
END_S = 5.0
PROGRAM = ("-m", "chunkd.worker.starter")
# What the variables of the clouds begin with, for S3, Azure and Google.
CLOUDS = ("AWS_", "AZURE_", "GOOGLE_")


class Courtesy(NamedTuple):
    """The priority of each worker. `read_bytes_per_s` is a worker's own share; 0 means no limit."""

    nice: int
    io_priority: str
    read_bytes_per_s: int

    def __str__(self) -> str:
        limit = f"{self.read_bytes_per_s:,} bytes/s each" if self.read_bytes_per_s else "not limited"
        return f"nice {self.nice}, I/O priority {self.io_priority}, reading {limit}"


class WorkerProcess:
    """A process that the starter has started. `pid` is 0 and `returncode` is None until they are known.

    `refused` says why the system did not let it be started.
    """

    def __init__(self, starter: Starter, number: int, connection: socket.socket) -> None:
        self._starter, self._number, self._connection = starter, number, connection
        self.pid = 0
        self.returncode: int | None = None
        self.refused: OSError | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, once it has ended. Raises StarterGone."""
        self._starter.read()
        return self.returncode

    def kill(self) -> None:
        """Ask for its end, unless it has ended. Raises StarterGone."""
        if self.returncode is None:
            self._starter.send(self._number, KILL)

    def hear(self, what: bytes, value: int) -> None:
        """Take in a reply of the starter's."""
        self.close()
        if what == STARTED:
            self.pid = value
            return
        self.returncode = value
        if what == REFUSED:
            self.refused = OSError(value, os.strerror(value))

    def close(self) -> None:
        """Close our copy of its end of its connection."""
        self._connection.close()


class Starter:
    """The process that starts workers (`worker/starter`), itself started here. Nothing waits for it but `close`.

    To be made before the first blob is opened. Raises SystemRefused, and StarterGone when it can't be started.
    """

    def __init__(
        self,
        params: ChunkParams,
        caps: Caps,
        courtesy: Courtesy,
        measure: MeasureRule = MeasureRule(),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._params, self._caps = params, caps
        self._numbers = itertools.count(1)
        self._processes: dict[int, WorkerProcess] = {}  # that have not ended
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(self._socket.close)
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable, "-P", *program, str(theirs.fileno()), str(courtesy.nice), courtesy.io_priority,
                        *(json.dumps(dataclasses.asdict(one)) for one in (params, caps, measure)),
                        str(courtesy.read_bytes_per_s),
                    ],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    start_new_session=True, env=_without_credentials(),
                )  # fmt: skip
            except OSError as error:
                refused = StarterGone(f"can't be started: {error.filename}: {error.strerror}")
                raise SystemRefused.of(error) or refused from error
            on_failure.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._socket.fileno()

    def start(self) -> Worker:
        """A new worker, which may not run yet. Raises OSError, and StarterGone."""
        process, ours = self._started(START)
        return Worker(process, protocol.DaemonsEnd(ours, self._params, self._caps))

    def run(self, module: str, asked: dict[str, Any]) -> socket.socket:
        """The connection of a new process, in which `main` of a module gets the other end and what is asked. Closing it
        does not end the process. Safe to call from any thread. Raises OSError, and StarterGone.
        """
        _, ours = self._started(RUN)
        try:
            ours.sendall(json.dumps(asked | {"module": module}).encode() + b"\n")
        except BaseException:
            ours.close()
            raise
        return ours

    def _started(self, what: bytes) -> tuple[WorkerProcess, socket.socket]:
        """A new process, and our end of its connection."""
        number = next(self._numbers)
        ours, theirs = socket.socketpair()
        # Our copy of its end is kept until the starter has its own: macOS loses a descriptor under way.
        process = self._processes[number] = WorkerProcess(self, number, theirs)
        try:
            self.send(number, what, theirs)
        except BaseException:
            del self._processes[number]
            ours.close()
            theirs.close()
            raise
        return process, ours

    def send(self, number: int, what: bytes, *connection: socket.socket) -> None:
        """Ask the starter for something. Raises StarterGone when it has ended, or takes nothing more."""
        request = REQUEST.pack(number, what)
        try:
            socket.send_fds(self._socket, [request], [one.fileno() for one in connection])
        except (ConnectionError, BlockingIOError) as error:
            raise self._gone() from error

    def read(self) -> None:
        """Take in what it has told. Raises StarterGone when it has ended."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    reply = self._socket.recv(REPLY.size)
                except ConnectionError:
                    reply = b""
                if not reply:
                    raise self._gone()
                number, what, value = REPLY.unpack(reply)
                self._processes[number].hear(what, value)
                if what != STARTED:
                    del self._processes[number]

    def _gone(self) -> StarterGone:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return StarterGone(how_it_ended(self._process.wait(END_S)))
        return StarterGone("does not answer")

    def close(self) -> None:
        """End the process. Workers that are left end by themselves, once their connections have ended."""
        self._socket.close()
        for process in list(self._processes.values()):
            process.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)


def _without_credentials() -> dict[str, str]:
    """The environment for what workers are forked of: who needs the credentials of a bucket is told them."""
    secret = (*CLOUDS, "IDENTITY_", "MSI_")
    return {name: value for name, value in os.environ.items() if not name.startswith(secret)}


def core_count(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """How many whole cores this process may use, by its affinity and its control groups; at least 1."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return max(1, int(min(len(os.sched_getaffinity(0)), *cpu_limits(groups, mount), math.inf)))


def cpu_limits(groups: Path, mount: Path) -> Iterator[float]:
    """The limit, in cores, of each control group (version 1 and 2) that this process is in and that is visible."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return  # without /proc no limit is known
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container may see its own group as the root of the mount, under a path that only its host has.
        for group in (Path(path.lstrip("/")), *Path(path.lstrip("/")).parents):
            folder = mount / controllers / group
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            with contextlib.suppress(OSError):
                quota, period = " ".join((folder / name).read_text() for name in files).split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)


def share(bytes_per_s: int, workers: int) -> int:
    """A worker's part of a rate. All together never exceed it, and one alone reads no faster. 0 stays 0."""
    return max(1, bytes_per_s // workers) if bytes_per_s else 0


def courtesy_of(workers: int, nice: int, io_priority: str, read_bytes_per_s: int) -> tuple[int, Courtesy]:
    """How many workers these settings ask for (0 means one a core), and the priority and rate of each."""
    count = workers or core_count()
    return count, Courtesy(nice, io_priority, share(read_bytes_per_s, count))


def make_pool(
    count: int,
    courtesy: Courtesy,
    params: ChunkParams,
    caps: Caps,
    measure: MeasureRule,
    start: Callable[..., Starter] = Starter,
) -> Pool:
    """`count` workers with this priority, which cut, decode and measure by these rules.

    To be made before the first blob is opened. Raises SystemRefused, and StarterGone when it can't be started.
    """
    return Pool(start(params, caps, courtesy, measure), count)
