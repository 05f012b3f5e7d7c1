"""What workers leave to other work: that a worker really runs so, and that what is refused is told."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blobs
import working
from chunkd.worker import priority as module
from chunkd.worker.priority import ask_of
from chunkd.worker.rate_limit import BURST_S
from chunkd.worker.spawn import Courtesy, share
from daemon import Home, figures, until

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc and I/O classes are Linux's")
USUAL_IO, IDLE_IO = 0, 3  # IOPRIO_CLASS_NONE and IOPRIO_CLASS_IDLE of <linux/ioprio.h>


def nice_of(pid: int | str) -> int:
    """Field 19 of proc(5)'s stat; the second, the command in brackets, may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


def autogroup_of(pid: int) -> tuple[str, int] | None:
    """The autogroup and its niceness, None where the kernel has none or, an empty file, the process is in none."""
    try:
        said = Path(f"/proc/{pid}/autogroup").read_text()
    except FileNotFoundError:
        return None
    if not said:
        return None
    name, _, nice = said.split()
    return name, int(nice)


def io_class_of(pid: int) -> int:
    import psutil

    return int(psutil.Process(pid).ionice().ioclass)


def threads_of(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def io_priority_of(thread: int) -> int:
    """ioprio_get(2), because psutil knows processes only."""
    number = {"x86_64": 252, "aarch64": 31}.get(os.uname().machine)
    return int(ctypes.CDLL(None).syscall(number, 1, thread)) if number else 0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as a worker is."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    yield process
    process.kill()
    process.communicate()


@linux_only
@pytest.mark.parametrize(
    ("courtesy", "nice", "io_class"),
    [
        (Courtesy(19, "idle", 1_000_000), 19, IDLE_IO),
        (Courtesy(7, "normal", 1_000_000), 7, USUAL_IO),
        (Courtesy(0, "idle", 1_000_000), 0, IDLE_IO),
    ],
    ids=str,
)
def test_a_worker_runs_as_it_was_asked_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, courtesy: Courtesy, nice: int, io_class: int
) -> None:
    """Before it has a job; so do the threads that it makes later, and the daemon's process stays as it was."""
    digest, path = blobs.write_blob(tmp_path, blobs.layer())
    before = nice_of(os.getpid()), autogroup_of(os.getpid()), io_class_of(os.getpid())
    with working.started(courtesy) as (worker, pid):
        assert working.finding(worker.connection, digest, path).kind == "layer"
        assert (nice_of(pid), io_class_of(pid)) == (nice, io_class)
        group = autogroup_of(pid)
        if group is not None:
            assert group[1] == nice
            assert group != before[1], "it would take its daemon's processor away"
        # 5 s of reading, with a second thread.
        large, behind = blobs.write_blob(tmp_path, blobs.tar({"large": blobs.noise(5_000_000)}))
        working.give(worker.connection.send_job, large, behind, relayed=True)
        threads = until(lambda: threads_of(pid), lambda found: len(found) == 2, "it has a second thread")
        assert {nice_of(f"{pid}/task/{thread}") for thread in threads} == {nice}
        assert len({io_priority_of(thread) for thread in threads}) == 1
    assert (nice_of(os.getpid()), autogroup_of(os.getpid()), io_class_of(os.getpid())) == before
    assert caplog.text == ""


@linux_only
def test_whoever_is_nicer_stays_so(sleeper: subprocess.Popen[bytes]) -> None:
    os.setpriority(os.PRIO_PROCESS, sleeper.pid, 15)
    ask_of(sleeper.pid, 5, "normal")
    assert nice_of(sleeper.pid) == 15


def refusals(caplog: pytest.LogCaptureFixture) -> list[tuple[object, ...]]:
    """Of each warning the process, what it runs without, and the system's reason."""
    return [record.args for record in caplog.records if isinstance(record.args, tuple)]


@linux_only
def test_what_is_refused_is_told_and_the_rest_is_done(
    sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "setpriority", refuse)
        ask_of(sleeper.pid, 19, "idle")
    assert refusals(caplog) == [(sleeper.pid, "nice 19", os.strerror(errno.EPERM))]
    assert io_class_of(sleeper.pid) == IDLE_IO
    caplog.clear()
    monkeypatch.setattr("psutil.Process.ionice", refuse)
    ask_of(sleeper.pid, 19, "idle")
    assert refusals(caplog) == [(sleeper.pid, "I/O priority idle", os.strerror(errno.EPERM))]
    assert nice_of(sleeper.pid) == 19


@linux_only
def test_psutils_own_refusal_is_told_as_well(
    sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def refuse(process: psutil.Process, _: object) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr("psutil.Process.ionice", refuse)
    ask_of(sleeper.pid, 0, "idle")
    assert refusals(caplog) == [(sleeper.pid, "I/O priority idle", os.strerror(errno.EPERM))]


@linux_only
def test_of_a_worker_that_has_died_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    ask_of(process.pid, 19, "idle")
    assert caplog.text == ""


class Autogroup:
    """Stands for `open`: the kernel says that it was asked too soon, so often."""

    def __init__(self, times: int) -> None:
        self.times, self.slept_s = times, 0.0

    def __call__(self, path: str, mode: str, encoding: str) -> object:
        assert (Path(path).name, mode) == ("autogroup", "w")
        self.times -= 1
        if self.times >= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return open(os.devnull, mode, encoding=encoding)

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


@linux_only
@pytest.mark.parametrize(("times", "told"), [(0, False), (3, False), (module.AUTOGROUP_TRIES, True)])
def test_a_kernel_that_is_asked_too_often_is_asked_again(
    sleeper: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    told: bool,
) -> None:
    autogroup = Autogroup(times)
    monkeypatch.setattr(module, "open", autogroup, raising=False)
    monkeypatch.setattr("chunkd.worker.priority.time.sleep", autogroup.sleep)
    ask_of(sleeper.pid, 19, "normal")
    assert autogroup.slept_s == pytest.approx(times * module.AUTOGROUP_EVERY_S)
    assert [refusal[:2] for refusal in refusals(caplog)] == [(sleeper.pid, "nice 19")] * told


def test_macos_has_one_call_for_background_work(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of macOS only this is known here: what would be asked, by its documentation."""
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(os, "setpriority", lambda *arguments: asked.append(arguments))
    ask_of(77, 19, "idle")
    assert asked == [(os.PRIO_PROCESS, 77, 19), (4, 77, 0x1000)]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("bytes_per_s", "workers", "each"), [(0, 8, 0), (1000, 1, 1000), (1000, 3, 333), (2, 3, 1), (1 << 40, 2, 1 << 39)]
)
def test_all_shares_together_are_no_more_than_the_limit(bytes_per_s: int, workers: int, each: int) -> None:
    assert share(bytes_per_s, workers) == each


def test_what_is_asked_is_said_in_words() -> None:
    assert str(Courtesy(19, "idle", 0)) == "nice 19, I/O priority idle, reading not limited"
    assert str(Courtesy(0, "normal", 2_000_000)) == "nice 0, I/O priority normal, reading 2,000,000 bytes/s each"


# --- the program --------------------------------------------------------------------------------------------------


@linux_only
def test_the_daemon_says_it_and_its_workers_do_it(home: Home) -> None:
    cache = home.cache()
    _, path = blobs.write_blob(cache, blobs.gz(blobs.layer()))
    # 8 GiB that no limit of ours reads to its end: the worker waits when the daemon is told to stop.
    waiting = cache / ("0" * 64)
    waiting.touch()
    os.truncate(waiting, 8 << 30)
    environ = {
        "CHUNKD_NICE": "13", "CHUNKD_IO_PRIORITY": "idle", "CHUNKD_READ_BYTES_PER_S": "2MiB", "CHUNKD_WORKERS": "2",
    }  # fmt: skip
    daemon = home.start(cache, environ=environ)
    daemon.until_log("workers: up to 2, nice 13, I/O priority idle, reading 1,048,576 bytes/s each")
    daemon.until(lambda stats: stats["layers"] == 1, f"{path.name} is counted while another blob waits")
    workers = daemon.workers()
    assert workers
    assert {(nice_of(pid), io_class_of(pid)) for pid in workers} == {(13, IDLE_IO)}
    daemons = set()
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread of the last question ends
            daemons.add(nice_of(f"{daemon.pid}/task/{task.name}"))
    assert daemons == {nice_of(os.getpid())}
    assert daemon.stop() == 0
    until(lambda: [pid for pid in workers if Path(f"/proc/{pid}").exists()], lambda left: not left, "no worker is left")


def test_figures_are_the_same_at_any_rate(home: Home) -> None:
    cache = home.cache()
    sizes = [blobs.write_blob(cache, blobs.gz(blobs.layer(seed, 60_000)))[1].stat().st_size for seed in range(8)]
    limit = ("--nice", 0, "--io-priority", "normal", "--workers", 1, "--read-bytes-per-s", sum(sizes))
    started_s = time.monotonic()
    done = home.command("scan", "--json", cache, *limit)
    assert time.monotonic() - started_s > 1 - BURST_S
    assert done.returncode == 0, done.stderr  # where it tells now and then how far it is
    assert figures(json.loads(done.stdout)) == home.fresh(cache)
    home.check("--read")
