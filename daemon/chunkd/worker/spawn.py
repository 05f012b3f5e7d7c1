"""Worker processes: how many there are, how they are started, and their priority."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from chunkd.model import Caps, ChunkParams, MeasureRule
from chunkd.worker import protocol
from chunkd.worker.pool import Pool, Worker
from chunkd.worker.priority import Courtesy, ask_of, share


def spawn_worker(params: ChunkParams, caps: Caps, courtesy: Courtesy, measure: MeasureRule = MeasureRule()) -> Worker:
    """A new worker process. Not forked: LMDB's environment must not cross a fork. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "chunkd.worker.examine", str(theirs.fileno()),
                json.dumps(dataclasses.asdict(params)), json.dumps(dataclasses.asdict(caps)),
                json.dumps(dataclasses.asdict(measure)), str(courtesy.read_bytes_per_s),
            ],
            # A session of its own, so that the worker can be nice without the daemon.
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    ask_of(process.pid, courtesy)
    return Worker(process, protocol.DaemonsEnd(ours, params, caps))


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
    spawn: Callable[..., Worker] = spawn_worker,
) -> Pool:
    """`count` workers with this priority, which cut, decode and measure by these rules."""
    return Pool(lambda: spawn(params, caps, courtesy, measure), count)
