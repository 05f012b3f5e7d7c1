"""A file system that never answers stops its own cache and nothing else: no answer, no other cache, no start or end."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from answering import short_directory
from blobs import gz, layer, write_blob
from chunkd.client import http
from chunkd.service.oneshot import scan_here
from chunkd.settings import config
from chunkd.worker import pool
from daemon import Daemon, Home, opened, state_of, timing, until
from hanging import HangingDisk, hanging

pytestmark = pytest.mark.long(10)

NEVER = {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400", "CHUNKD_WORKERS": "2"}
# Who waits for a cache that hangs waits for ever: a busy machine is far quicker than this.
ANSWER_S = 5.0
END_S = 20.0
QUESTIONS = 40


@pytest.fixture
def root() -> Iterator[Path]:
    with short_directory() as made:
        yield made


@pytest.fixture
def disk(root: Path) -> Iterator[HangingDisk]:
    with hanging(root) as made:
        write_blob(made.folder, gz(layer(1, 60_000)))
        yield made


@pytest.fixture
def home(root: Path, disk: HangingDisk) -> Iterator[Home]:
    with opened(root) as found:
        found.settings |= timing(look_at_root_s=1.0, hung_s=2.0)
        yield found
        disk.close()  # only then can those end who wait for it


def ask(daemon: Daemon, target: str) -> bytes:
    """The answer, by a client that waits no longer than it may take."""
    done = subprocess.run(
        ["curl", "-sS", "--fail", "--max-time", str(ANSWER_S), "--unix-socket", daemon.socket,
         f"http://localhost{target}"],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def answers_at_once(daemon: Daemon) -> None:
    for target in ("/v1/stats", "/v1/health", "/v1/blobs", "/v1/histogram", "/metrics"):
        assert ask(daemon, target)
    took: list[float] = []

    def question() -> None:
        begin = time.monotonic()
        http.ask(str(daemon.socket), "GET", "/v1/stats")
        took.append(time.monotonic() - begin)

    threads = [threading.Thread(target=question, daemon=True) for _ in range(QUESTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(took) == QUESTIONS
    assert max(took) < ANSWER_S


def until_hung(daemon: Daemon, disk: HangingDisk) -> None:
    """Health names the cache, and for how long it has not answered."""

    def reasons() -> list[str]:
        found: list[str] = daemon.get("/v1/health")["reasons"]
        return found

    [reason] = until(reasons, lambda found: any(": hung: " in one for one in found), "health says so")
    assert str(disk.path) in reason
    assert "has not answered for" in reason
    states = {cache["path"]: cache["state"] for cache in daemon.stats()["caches"]}
    assert states.pop(str(disk.path)) == "hung"
    assert set(states.values()) <= {"watched"}
    metrics = ask(daemon, "/metrics").decode()
    assert f'chunkd_cache_state{{cache="{disk.path}",state="hung"}} 1.0\n' in metrics


def ends(pid: int) -> None:
    """Its main thread is done. The process stays a zombie for as long as one of its threads waits for the disk."""

    def ended() -> bool:
        try:
            return state_of(pid) == "Z"
        except ProcessLookupError:
            return True

    until(ended, bool, "it ends", END_S)


def leaves_nothing_behind(daemon: Daemon) -> None:
    starter, workers = daemon.starter(), daemon.workers()
    daemon.process.send_signal(15)
    ends(daemon.pid)
    assert not daemon.socket.exists()
    with (daemon.home.state / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with Path(f"{daemon.socket}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert {state_of(pid) for pid in left} <= {"D"}, "a worker that does not wait for the disk is left"
    assert not Path(f"/proc/{starter}").exists()
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("when", ["at start", "while it serves"])
def test_a_cache_that_hangs_holds_up_nothing_but_itself(home: Home, disk: HangingDisk, when: str) -> None:
    healthy = home.cache()
    write_blob(healthy, gz(layer(2, 60_000)))
    if when == "at start":
        disk.hang()
    daemon = home.start(disk.path, healthy, environ=NEVER)
    if when == "while it serves":
        daemon.until(lambda stats: stats["layers"] == 2 and stats["settled"], "both caches")
        disk.hang()
    until_hung(daemon, disk)
    counted = 1 if when == "at start" else 2
    daemon.until(lambda stats: stats["layers"] == counted, "what the other cache has")
    write_blob(healthy, gz(layer(3, 60_000)))
    daemon.until(lambda stats: stats["layers"] == counted + 1, "a new one by an event")
    answers_at_once(daemon)
    http.ask(str(daemon.socket), "POST", "/v1/scan", {})
    next(path for path in healthy.iterdir() if len(path.name) == 64).unlink()
    daemon.until(lambda stats: stats["layers"] == counted, "one that goes")
    daemon.until(lambda stats: stats["scans"] >= 2, "the scan ends without it")
    leaves_nothing_behind(daemon)
    home.check()

    beside = home.start(disk.path, healthy, environ=NEVER)
    assert beside.stats()["layers"] == counted
    write_blob(healthy, gz(layer(4, 60_000)))
    beside.until(lambda stats: stats["layers"] == counted + 1, "the next daemon works beside the remains")
    until_hung(beside, disk)
    leaves_nothing_behind(beside)
    home.check()


def test_a_cache_that_answers_again_is_followed_again(home: Home, disk: HangingDisk) -> None:
    daemon = home.start(disk.path, home.cache(), environ=NEVER | {"CHUNKD_POLLED_SCAN_INTERVAL_S": "1"})
    daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted")
    disk.hang()
    until_hung(daemon, disk)
    write_blob(disk.folder, gz(layer(2, 60_000)))
    disk.answer()
    daemon.until(lambda stats: stats["layers"] == 2 and stats["settled"], "what came meanwhile")
    assert daemon.get("/v1/health") == {"state": "ok", "reasons": []}
    assert daemon.stop() == 0
    home.check()


@pytest.mark.parametrize("request_name", ["READ", "FLUSH"])
def test_a_blob_that_never_ends_holds_up_no_other_cache(home: Home, disk: HangingDisk, request_name: str) -> None:
    """Who reads it hangs, or who closes it."""
    healthy = home.cache()
    behind = next(disk.folder.iterdir())
    later = behind.rename(home.root / behind.name)
    daemon = home.start(disk.path, healthy, environ=NEVER | {"CHUNKD_POLLED_SCAN_INTERVAL_S": "1"})
    count = 0
    while len(daemon.workers()) < 2:
        count += 4
        for number in range(count - 4, count):
            write_blob(healthy, gz(layer(10 + number, 60_000)))
        daemon.until(lambda stats: stats["layers"] == count and stats["settled"], "both workers have started")  # noqa: B023
    disk.hang(request_name)
    later.rename(disk.folder / later.name)
    daemon.until(lambda stats: stats["pending_blobs"] or stats["layers"] > count, "it is known")
    before = daemon.stats()["layers"]
    _, path = write_blob(healthy, gz(layer(2, 60_000)))
    write_blob(healthy, gz(layer(3, 60_000)))
    daemon.until(lambda stats: stats["layers"] >= before + 2, "what the other cache has")
    answers_at_once(daemon)
    path.unlink()
    daemon.until(lambda stats: stats["layers"] <= before + 2, "one that goes")
    leaves_nothing_behind(daemon)
    home.check()


def test_a_worker_is_started_while_a_blob_can_not_be_closed(home: Home, disk: HangingDisk) -> None:
    disk.hang("FLUSH")
    healthy = home.cache()
    daemon = home.start(disk.path, healthy, environ=NEVER)
    daemon.until(lambda stats: stats["pending_blobs"] or stats["layers"], "it is known")
    write_blob(healthy, gz(layer(2, 60_000)))
    daemon.until(lambda stats: stats["layers"] >= 1, "what the other cache has", 20)


def test_every_worker_waits_for_a_cache_that_hangs(home: Home, disk: HangingDisk) -> None:
    for number in range(2, 5):
        write_blob(disk.folder, gz(layer(number, 60_000)))
    disk.hang("READ")
    healthy = home.cache()
    daemon = home.start(disk.path, healthy, environ=NEVER)
    daemon.until(lambda stats: len(daemon.workers()) == 2 and stats["pending_blobs"] == 4, "both read")
    disk.hang()
    until_hung(daemon, disk)
    write_blob(healthy, gz(layer(9, 60_000)))
    daemon.until(lambda stats: stats["layers"] == 1, "what the other cache has", 20)


def test_a_cache_whose_blobs_are_never_read_takes_no_more_than_its_first_workers(home: Home, disk: HangingDisk) -> None:
    """Though all else of it is answered, and many of its blobs wait."""
    for number in range(2, 42):
        write_blob(disk.folder, gz(layer(number, 60_000)))
    disk.hang("READ")
    healthy = home.cache()
    daemon = home.start(disk.path, healthy, environ=NEVER)
    daemon.until(lambda stats: len(daemon.workers()) == 2 and stats["pending_blobs"] == 41, "both read")
    held = set(daemon.workers())
    for number in range(50, 70):
        write_blob(healthy, gz(layer(number, 60_000)))
    most = 0

    def counted(stats: dict[str, Any]) -> bool:
        nonlocal most
        most = max(most, len(daemon.workers()))
        return bool(stats["layers"] == 20)

    daemon.until(counted, "what the other cache has", 20)
    assert held <= set(daemon.workers())
    assert most <= 4
    answers_at_once(daemon)
    disk.answer()
    stats = daemon.until(lambda stats: stats["settled"] and not stats["pending_blobs"], "all that waited")
    assert (stats["layers"], stats["failed_blobs"]) == (61, 0)
    until(lambda: len(daemon.workers()), lambda count: count <= 2, "those that were lent end")
    leaves_nothing_behind(daemon)
    home.check()


def test_a_scan_waits_for_no_cache_that_hangs(home: Home, disk: HangingDisk) -> None:
    healthy = home.cache()
    write_blob(healthy, gz(layer(2, 60_000)))
    assert home.scan(disk.path, healthy)["layers"] == 2
    write_blob(healthy, gz(layer(3, 60_000)))
    disk.hang()
    said = home.root / "said"
    with said.open("wb") as out:
        command = [
            sys.executable,
            "-m",
            "chunkd",
            "scan",
            "--json",
            str(disk.path),
            str(healthy),
            "--state",
            str(home.state),
        ]
        process = subprocess.Popen(command, env=home.environ, stdout=out, stderr=subprocess.DEVNULL)
    ends(process.pid)
    stats = json.loads(said.read_text())
    assert stats["layers"] == 3, "its own figures stand"
    assert {cache["path"]: cache["state"] for cache in stats["caches"]} == {
        str(disk.path): "hung", str(healthy): "idle",
    }  # fmt: skip
    assert not stats["settled"]
    home.check()
    disk.close()
    assert process.wait(60) == 7, "not all of it is known to be as it is"


def test_a_scan_waits_for_no_worker_that_can_not_be_killed(
    home: Home, disk: HangingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache gets no other worker, so its blobs stay pending."""
    monkeypatch.setattr(pool, "SILENCE_S", 6.0)
    monkeypatch.setattr(pool, "END_S", 1.0)
    healthy = home.cache()
    write_blob(healthy, gz(layer(2, 60_000)))
    disk.hang("READ")
    flags = {"caches": (str(disk.path), str(healthy)), "state_dir": str(home.state), "workers": 2}
    settings = config.load(flags, {"CHUNKD_CONFIG": home.environ["CHUNKD_CONFIG"]})
    stats = scan_here(settings, {}, replace=False, progress=lambda: nullcontext(lambda *_: None))
    assert (stats["layers"], stats["pending_blobs"], stats["settled"]) == (1, 1, False)
    assert {cache["path"]: cache["state"] for cache in stats["caches"]} == {
        str(disk.path): "hung", str(healthy): "idle",
    }  # fmt: skip
    home.check()


def test_a_scan_of_hung_caches_alone_ends(home: Home, disk: HangingDisk) -> None:
    disk.hang()
    command = [sys.executable, "-m", "chunkd", "scan", str(disk.path), "--state", str(home.state)]
    process = subprocess.Popen(command, env=home.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends(process.pid)
    disk.close()
    assert process.wait(60) == 7


@pytest.mark.parametrize("command", [["stats", "--json"], ["blobs"], ["histogram"], ["check"], ["health"], ["config"]])
def test_without_a_daemon_no_cache_is_touched(home: Home, disk: HangingDisk, command: list[str]) -> None:
    home.scan(disk.path)
    disk.hang()
    done = home.command(*command, environ={"CHUNKD_CACHES": str(disk.path)})
    assert done.returncode == (3 if command == ["health"] else 0), done.stderr
    if command == ["stats", "--json"]:
        assert json.loads(done.stdout)["layers"] == 1


@pytest.mark.parametrize("link", [False, True], ids=["itself", "by a link"])
def test_the_main_thread_and_the_writer_never_touch_a_cache(home: Home, link: bool) -> None:
    """By the system calls of the threads: only a cache's own names what is below its root."""
    if subprocess.run(["strace", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace")
    cache = home.cache()
    if link:
        cache = home.root / "link"
        cache.symlink_to(home.cache())
    write_blob(cache, gz(layer(2, 60_000)))
    trace = home.root / "trace"
    tracer = ("strace", "-D", "-ff", "-qq", "-e", "trace=file", "-s", "300", "-o", str(trace))
    daemon = home.start(cache, environ=NEVER, under=tracer)
    daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted")
    daemon.settled_after_scan(verify=True)
    ask(daemon, "/metrics")
    assert daemon.stop() == 0
    # The look whether a new root is usable is a thread's of its own, and so is all else that a cache is looked at for.
    touching = {
        int(path.suffix[1:])
        for path in home.root.glob("trace.*")
        for line in path.read_text(errors="replace").splitlines()
        if f'"{cache}' in line and not line.startswith("execve")
    }
    assert 1 <= len(touching) <= 2
    assert daemon.pid not in touching


def test_health_of_a_hung_cache_names_the_time(home: Home, disk: HangingDisk) -> None:
    disk.hang("LOOKUP", "OPENDIR", "READDIR")
    daemon = home.start(disk.path, environ=NEVER)
    until_hung(daemon, disk)
    first = daemon.get("/v1/health")["reasons"][0]
    second = until(
        lambda: daemon.get("/v1/health")["reasons"][0], lambda reason: reason != first, "it goes on not to answer"
    )
    assert seconds_in(second) > seconds_in(first)
    assert os.fspath(disk.path) in second


def seconds_in(reason: str) -> int:
    return int(reason.rpartition("for ")[2].partition(" s")[0])
