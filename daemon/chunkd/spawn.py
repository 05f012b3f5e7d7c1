"""Worker processes: how many, how they are started, and what they are asked to leave to others."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from chunkd import wire
from chunkd.config import Config
from chunkd.courtesy import Courtesy, ask_of, share
from chunkd.model import Caps, ChunkParams
from chunkd.pool import Pool, Worker
from chunkd.records import Rules
from chunkd.saving import MeasureRule


def spawn_worker(params: ChunkParams, caps: Caps, courtesy: Courtesy, measure: MeasureRule = MeasureRule()) -> Worker:
    """A new worker process. Not forked: LMDB's environment must not cross a fork. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "chunkd.worker", str(theirs.fileno()),
                json.dumps(dataclasses.asdict(params)), json.dumps(dataclasses.asdict(caps)),
                json.dumps(dataclasses.asdict(measure)), str(courtesy.read_bytes_per_s),
            ],
            # In a session of its own, so that it can be nice beside the daemon.
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    ask_of(process.pid, courtesy)
    return Worker(process, wire.DaemonsEnd(ours, params, caps))


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def courtesy_of(config: Config) -> tuple[int, Courtesy]:
    """How many workers the settings ask for, and what of each."""
    count = config.workers or core_count()
    rate = share(config.read_bytes_per_s, count)
    return count, Courtesy(config.nice, config.io_priority, rate)


def make_pool(config: Config, rules: Rules, spawn: Callable[..., Worker] = spawn_worker) -> Pool:
    """As many workers as the settings say, and as courteous, that cut, decode and measure by these rules."""
    count, courtesy = courtesy_of(config)
    return Pool(lambda: spawn(rules.params, rules.caps, courtesy, rules.measure), count)
