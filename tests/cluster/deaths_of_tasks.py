"""Who may be killed while a scan into a store is under way, found in /proc."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path

import forked
from clusters import task_processes
from daemon import children

Driver = forked.Process | subprocess.Popen[str]


def victims(root: Path, driver: Driver, what: str) -> list[int]:
    """The process ids of all that are this: the `driver`, a `task`, or a `worker` that decodes for one. `root` is the
    home of the test.
    """
    tasks = task_processes(root)
    if what == "driver":
        return [driver.pid] if tasks else []
    if what == "task":
        return tasks
    return [pid for task in tasks for starter in starters(task) for pid in children(starter)]


def starters(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"chunkd.worker.starter" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                found.append(child)
    return found


def kill_one(root: Path, driver: Driver, what: str, draw: random.Random) -> bool:
    """SIGKILL for one of them; False where there is none."""
    there = victims(root, driver, what)
    if not there:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(there), signal.SIGKILL)
        return True
    return False
