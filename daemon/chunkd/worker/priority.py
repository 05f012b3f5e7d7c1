"""How far workers give way to other programs with the processor and the disk.

Each worker sets this for itself, before it makes a thread or has a job. The daemon and the starter keep their own
priority: they work little, and an answer must not wait for a busy machine.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable

if sys.platform == "linux":
    import psutil

log = logging.getLogger(__name__)

# The kernel lets a user change one autogroup in 0.1 s (proc_sched_autogroup_set_nice in kernel/sched/autogroup.c).
AUTOGROUP_EVERY_S = 0.1
AUTOGROUP_TRIES = 20

# setpriority(2) of macOS, in <sys/resource.h>; `os` has these names from Python 3.12 on.
PRIO_DARWIN_PROCESS = 4
PRIO_DARWIN_BG = 0x1000


def ask_of(pid: int, nice: int, io_priority: str) -> None:
    """Lower a worker's priority. The worker must be the first process of its session.

    A refusal by the system is logged, and the worker runs without. A worker that is already nicer, because the daemon
    is, stays so.
    """
    _ask(pid, f"nice {nice}", lambda: _set_nice(pid, nice))
    if io_priority == "idle":
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
    try:
        psutil.Process(pid).ionice(psutil.IOPRIO_CLASS_IDLE)
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError from error
    except psutil.AccessDenied as error:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from error
