"""A full disk and I/O errors under the real daemon: indexing pauses, the figure stays served and true and says why, and
goes on by itself. The disk is a tmpfs of a few megabytes in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import re
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import blobs
from conftest import Tell
from counts import dealt, share_of
from daemon import PATIENCE_S, Daemon, Home, figures, land, opened, until
from hanging import hanging
from preloading import Preload

ROOM_LEFT_BYTES = (0, 0, 4096, 20_000, 60_000)
ROUNDS = share_of(8, len(ROOM_LEFT_BYTES))
SMALL_BYTES = 4 << 20
# Of the disk, for an index and not for a blob in it.
ENOUGH_BYTES = 65536
DATA = "index/data.mdb"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path, anew=True) as made:
        yield made


# --- a small disk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disk:
    """A file system that is seen below /proc alone, and gone with the process that holds it."""

    path: Path

    @property
    def state(self) -> Path:
        return self.path / "state"

    def fill(self, leave_bytes: int) -> None:
        """Write until there is no room, then leave so much."""
        with (self.path / "filler").open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            filler.truncate(max(0, filler.tell() - leave_bytes))

    def free(self) -> None:
        (self.path / "filler").unlink()


@pytest.fixture
def disk() -> Iterator[Disk]:
    mount = f"mount -t tmpfs -o size={SMALL_BYTES} small /tmp && echo mounted && exec sleep infinity"
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"mounted\n"
            yield Disk(Path(f"/proc/{holder.pid}/root/tmp"))
        finally:
            holder.kill()


def new_layer(home: Home, rng: random.Random) -> Path:
    """A layer of some hundred chunks lands."""
    chunks = blobs.least_chunks(rng, rng.randrange(200, 800))
    _, path = blobs.write_blob(home.cache("landing"), blobs.zst(b"".join(chunks)))
    return land(path, home.cache())


def fill_the_index(home: Home, daemon: Daemon, rng: random.Random, there: list[Path]) -> str:
    """Layers land until one does not fit, for LMDB has free pages of its own; why indexing is paused."""
    while True:
        there.append(new_layer(home, rng))
        daemon.until(lambda stats: stats["blobs"] == len(there) or reasons(daemon), "counted, or paused")
        if said := reasons(daemon):
            return said


def reasons(daemon: Daemon) -> str:
    return "\n".join(daemon.get("/v1/health")["reasons"])


def check(home: Home, state: Path) -> None:
    done = home.command("check", state=state)
    assert (done.returncode, done.stdout) == (0, "0 differences\n"), done.stdout + done.stderr


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_pause(home: Home, disk: Disk, seed: int, tell: Tell) -> None:
    rng = random.Random(seed)
    daemon = home.start(home.cache(), state=disk.state)
    there: list[Path] = []
    slowest_s = 0.0
    for leave_bytes in dealt(ROOM_LEFT_BYTES, ROUNDS, rng):
        there += [new_layer(home, rng) for _ in range(2)]
        before = daemon.until_figures({"blobs": len(there)})
        disk.fill(leave_bytes)
        said = fill_the_index(home, daemon, rng, there)
        there.pop(rng.randrange(len(there))).unlink()
        assert "No space left on device" in said or "its disk is full" in said
        assert f"index {disk.state}/index: can't be written" in said
        at = daemon.stats()
        health = home.command("health", "--socket", daemon.socket, state=disk.state)
        assert health.returncode == 6
        check(home, disk.state)
        again = daemon.stats()
        assert figures(again) == figures(at), "what is served while nothing is written does not change"
        assert again["as_of"] == at["as_of"] >= before["as_of"]
        assert not again["settled"]
        expected = home.fresh(home.cache())
        disk.free()
        freed_at = time.monotonic()
        stats = daemon.until_figures(expected)
        slowest_s = max(slowest_s, time.monotonic() - freed_at)
        assert stats["failed_blobs"] == 0
        assert daemon.get("/v1/health") == {"state": "ok", "reasons": []}
        while len(there) > 4:
            there.pop().unlink()
    assert daemon.stop() == 0
    check(home, disk.state)
    tell(f"{ROUNDS} times full, each a pause; it went on by itself, all was counted within {slowest_s:.0f} s")


def test_stopping_and_starting_on_a_full_disk(home: Home, disk: Disk, seed: int, tell: Tell) -> None:
    rng = random.Random(seed)
    daemon = home.start(home.cache(), state=disk.state)
    there = [new_layer(home, rng)]
    daemon.until_figures({"blobs": 1})
    disk.fill(0)
    fill_the_index(home, daemon, rng, there)
    before = figures(daemon.stats())
    assert daemon.stop() == 0
    assert "read again at the next start" in daemon.log
    assert "Traceback" not in daemon.log

    daemon = home.start(home.cache(), state=disk.state)
    until(lambda: reasons(daemon), bool, "paused again")
    assert figures(daemon.stats()) == before
    # The lock file of LMDB has its blocks: all of its readers at once need no more of the disk.
    lock = (disk.state / "index" / "lock.mdb").stat()
    assert lock.st_blocks * 512 >= lock.st_size
    disk.free()
    daemon.until_figures(home.fresh(home.cache()))
    assert daemon.stop() == 0
    check(home, disk.state)
    tell("stopped and started on a full disk, figures served, gone on by itself")


@pytest.mark.parametrize("leave_bytes", [0, 4096, 16384, ENOUGH_BYTES])
def test_making_an_index_on_a_full_disk(home: Home, disk: Disk, leave_bytes: int) -> None:
    """The command ends with a message: no traceback, and no end by a signal. There is a whole index or none."""
    blobs.write_blob(home.cache(), blobs.layer())
    disk.fill(leave_bytes)
    done = home.command("scan", home.cache(), state=disk.state)
    assert done.returncode == 1, done.stderr
    assert re.search(r"No space left on device|its disk is full", done.stderr)
    assert "Traceback" not in done.stderr
    made = (disk.state / "index").exists()
    assert made == (leave_bytes == ENOUGH_BYTES)
    assert home.command("stats", state=disk.state).returncode == (0 if made else 3)
    disk.free()
    assert home.command("scan", home.cache(), state=disk.state).returncode == 0
    check(home, disk.state)


def test_a_lock_file_that_is_gone_on_a_full_disk(home: Home, disk: Disk) -> None:
    """LMDB makes it with a hole and fills that through a map: SIGBUS, if chunkd did not write it before."""
    blobs.write_blob(home.cache(), blobs.layer())
    assert home.command("scan", home.cache(), state=disk.state).returncode == 0
    (disk.state / "index" / "lock.mdb").unlink()
    disk.fill(0)
    done = home.command("run", home.cache(), state=disk.state)
    assert done.returncode == 1, done.stderr
    assert "can't be opened: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert home.command("stats", state=disk.state).returncode == 0, "reading needs no room"


# --- I/O errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["sync", "write"])
def test_an_io_error_of_the_index_is_a_pause(home: Home, seed: int, tell: Tell, call: str) -> None:
    rng = random.Random(seed)
    preload = Preload(home.root, home.state)
    daemon = home.start(home.cache(), environ=preload.environ)
    new_layer(home, rng)
    before = figures(daemon.until_figures({"blobs": 1}))
    preload.fail(call, f"/{DATA}")
    new_layer(home, rng)
    said = until(lambda: reasons(daemon), bool, "paused")
    assert "Input/output error" in said
    assert "full" not in said
    assert figures(daemon.stats()) == before
    preload.heal()
    daemon.until_figures(home.fresh(home.cache()))
    assert daemon.get("/v1/health")["state"] == "ok"
    assert daemon.stop() == 0
    home.check()
    tell(f"{call}: paused and gone on by itself")


def test_a_meta_page_that_can_not_be_written_ends_the_daemon(home: Home) -> None:
    """LMDB trusts its environment no longer then, and neither does chunkd: a restart, its unit's, reads it anew."""
    rng = random.Random(1)
    preload = Preload(home.root, home.state)
    daemon = home.start(home.cache(), environ=preload.environ)
    new_layer(home, rng)
    daemon.until_figures({"blobs": 1})
    preload.fail("meta", f"/{DATA}")
    new_layer(home, rng)
    assert daemon.process.wait(PATIENCE_S) == 1
    assert "LMDB gave up after an I/O error; start chunkd again" in daemon.log
    assert "Traceback" not in daemon.log
    preload.heal()
    daemon = home.start(home.cache(), environ=preload.environ)
    daemon.until_figures({"blobs": 2})
    assert daemon.stop() == 0
    home.check()


def test_a_blob_that_can_not_be_read_fails_and_a_counted_one_stays(home: Home) -> None:
    """The worker that reads it can open nothing, so that the error comes from the file system itself."""
    with hanging(home.root) as disk:
        _, counted = blobs.write_blob(disk.folder, blobs.gz(blobs.layer(1)))
        daemon = home.start(disk.path)
        before = figures(daemon.until_figures({"blobs": 1}))
        disk.fail("READ", errno.EIO)
        counted.write_bytes(counted.read_bytes())  # the same bytes at another time
        daemon.settled_after_scan(verify=True)
        daemon.until_log("its figures stand")
        assert figures(daemon.stats()) == before

        blobs.write_blob(disk.folder, blobs.layer(9))
        stats = daemon.settled_after_scan()
        assert stats["failed_blobs"] == 1
        assert figures(stats) == before
        (failed,) = daemon.blobs(failed=True)
        assert failed["reason"] == "can't be read: Input/output error"
        assert failed["retry_at"]
        disk.answer()
        daemon.settled_after_scan(retry_failed=True)
        daemon.until_figures(home.fresh(disk.path) | {"failed_blobs": 0})
        assert daemon.stop() == 0
        home.check()


def test_a_folder_that_can_not_be_listed_to_its_end_proves_nothing(home: Home) -> None:
    rng = random.Random(1)
    preload = Preload(home.root, home.state)
    new_layer(home, rng)
    daemon = home.start(home.cache(), environ=preload.environ)
    before = figures(daemon.until_figures({"blobs": 1}))
    preload.fail("list", home.cache().name)
    assert figures(daemon.settled_after_scan(verify=True)) == before
    assert "Input/output error" in reasons(daemon)
    preload.heal()
    daemon.settled_after_scan()
    assert reasons(daemon) == ""
    assert daemon.stop() == 0
    home.check()


# --- no descriptors ---------------------------------------------------------------------------------------------------


class Held(http.client.HTTPConnection):
    """A connection to the daemon that stays, for when it can take no new one."""

    def __init__(self, path: Path) -> None:
        super().__init__("chunkd", timeout=PATIENCE_S)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(path))

    def ask(self, method: str, target: str, body: str | None = None) -> Any:
        self.request(method, target, body)
        return json.load(self.getresponse())


def leave_descriptors(daemon: Daemon, count: int) -> None:
    """So many can be opened from now on."""
    taken = {int(fd.name) for fd in Path(f"/proc/{daemon.pid}/fd").iterdir()}
    free = [fd for fd in range(len(taken) + count + 1) if fd not in taken]
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free[count], hard))


def test_no_descriptor_left(home: Home) -> None:
    """Neither a worker nor a listing nor a client gets one: nothing is subtracted, and it is said."""
    rng = random.Random(1)
    daemon = home.start(home.cache())
    new_layer(home, rng)
    before = figures(daemon.until_figures({"blobs": 1}))
    for worker in daemon.workers():
        os.kill(worker, 9)
    until(daemon.workers, lambda workers: not workers, "the daemon has buried its workers")
    limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with contextlib.closing(Held(daemon.socket)) as held:
        held.ask("GET", "/v1/stats")

        def said() -> str:
            return "\n".join(held.ask("GET", "/v1/health")["reasons"])

        leave_descriptors(daemon, 0)
        new_layer(home, rng)
        held.ask("POST", "/v1/scan", "{}")
        until(said, lambda said: f"{home.cache()}: Too many open files" in said.replace("/:", ":"), "no listing")
        assert figures(held.ask("GET", "/v1/stats")) == before
        # One, two and so on, which a listing, an open blob or a worker is the first not to get.
        for count in range(1, 6):
            leave_descriptors(daemon, count)
            number = held.ask("POST", "/v1/scan", "{}")["scan"]
            until(lambda: bool(said()) or held.ask("GET", "/v1/stats")["scans"] >= number, bool, "said or done")  # noqa: B023
            assert held.ask("GET", "/v1/stats")["blobs"] >= before["blobs"]
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
    daemon.settled_after_scan(retry_failed=True)
    daemon.until_figures(home.fresh(home.cache()))
    assert daemon.get("/v1/health")["state"] == "ok"
    assert daemon.stop() == 0
    home.check()
    assert "Traceback" not in daemon.log


@pytest.mark.long(61)
def test_an_event_that_comes_while_no_descriptor_is_left_is_seen_to(home: Home) -> None:
    """Its place can't be looked at, or its file can't be opened: that is tried again, and no scan is needed."""
    rng = random.Random(1)
    daemon = home.start(home.cache(), environ={"CHUNKD_SCAN_INTERVAL_S": "86400"})
    new_layer(home, rng)
    daemon.until_figures({"blobs": 1})
    limit = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with contextlib.closing(Held(daemon.socket)) as held:
        held.ask("GET", "/v1/stats")
        leave_descriptors(daemon, 0)
        path = new_layer(home, rng)
        # By then the daemon may have closed a descriptor, and so can look at the place and no more.
        until(
            lambda: [line for line in daemon.log.splitlines() if str(path) in line],
            lambda lines: any("Too many open files" in line for line in lines), "no descriptor was left",
        )  # fmt: skip
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
    # It is looked at again in a minute.
    daemon.until(lambda stats: stats["blobs"] == 2, "the second", 2 * PATIENCE_S)
    assert daemon.stats()["scans"] == 1
    assert daemon.stop() == 0
    home.check()
