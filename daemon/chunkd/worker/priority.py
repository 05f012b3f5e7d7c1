"""How far workers give way to other programs: processor, disk, and a rate of reading.

The daemon sets this for each worker, by its process id, before the worker has a job. It keeps its own priority: it
works little, and an answer must not wait for a busy machine.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

log = logging.getLogger(__name__)

# The kernel lets a user change one autogroup in 0.1 s (proc_sched_autogroup_set_nice in kernel/sched/autogroup.c).
AUTOGROUP_EVERY_S = 0.1
AUTOGROUP_TRIES = 20

# setpriority(2) of macOS, in <sys/resource.h>; `os` has these names from Python 3.12 on.
PRIO_DARWIN_PROCESS = 4
PRIO_DARWIN_BG = 0x1000


class Courtesy(NamedTuple):
    """The priority of each worker. `read_bytes_per_s` is a worker's own share; 0 means no limit."""

    nice: int
    io_priority: str
    read_bytes_per_s: int

    def __str__(self) -> str:
        limit = f"{self.read_bytes_per_s:,} bytes/s each" if self.read_bytes_per_s else "not limited"
        return f"nice {self.nice}, I/O priority {self.io_priority}, reading {limit}"


def share(bytes_per_s: int, workers: int) -> int:
    """A worker's part of a rate. All together never exceed it, and one alone reads no faster. 0 stays 0."""
    return max(1, bytes_per_s // workers) if bytes_per_s else 0


def ask_of(pid: int, courtesy: Courtesy) -> None:
    """Lower a worker's priority. The worker must be the first process of its session.

    A refusal by the system is logged, and the worker runs without. A worker that is already nicer, because the daemon
    is, stays so.
    """
    _ask(pid, f"nice {courtesy.nice}", lambda: _set_nice(pid, courtesy.nice))
    if courtesy.io_priority == "idle":
        _ask(pid, "I/O priority idle", lambda: _set_idle_io(pid))


def _ask(pid: int, what: str, ask: Callable[[], None]) -> None:
    try:
        ask()
    except ProcessLookupError:
        pass  # it has died; the end of its connection says so
    except OSError as error:
        log.warning("worker %d runs without %s: %s", pid, what, error.strerror)


def _set_nice(pid: int, nice: int) -> None:
    nice = max(nice, os.getpriority(os.PRIO_PROCESS, pid))
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    if nice and sys.platform == "linux":
        _set_nice_of_autogroup(pid, nice)


def _set_nice_of_autogroup(pid: int, nice: int) -> None:
    """If the kernel has autogroups, a process's niceness counts only within its session's autogroup (sched(7))."""
    for _ in range(AUTOGROUP_TRIES):
        try:
            with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
                file.write(str(nice))
        except FileNotFoundError:
            return  # a kernel without autogroups, where niceness alone counts
        except BlockingIOError:
            time.sleep(AUTOGROUP_EVERY_S)
        else:
            return
    raise TimeoutError(errno.ETIMEDOUT, "the kernel took no change of its autogroup")


def _set_idle_io(pid: int) -> None:
    if sys.platform == "darwin":
        os.setpriority(PRIO_DARWIN_PROCESS, pid, PRIO_DARWIN_BG)
        return
    import psutil  # only here: an idle daemon has no workers, and starts faster without it

    try:
        psutil.Process(pid).ionice(psutil.IOPRIO_CLASS_IDLE)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
    except psutil.AccessDenied as error:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from error
