"""Worker processes: how many there are, how they are started, and their priority."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

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


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


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
