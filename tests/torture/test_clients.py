"""A thousand bad clients at once, of every kind, while layers land: the figure is served, and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blobs
from answering import PATIENCE_S, connect, short_directory
from chunkd.client import http
from chunkd.errors import ChunkdError
from counts import share_of
from daemon import BRISK, Daemon, Home, opened, until

Tell = Callable[[str], None]

WAVES = share_of(6, 2)
CLIENTS = 1000
ASKS_A_WAVE = 40
GONE_HALF_WAY = share_of(5000, 500)
STATS = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\n\r\n"
# What a client says before it falls silent, leaves, or says more; and what it does then.
OPENINGS = {
    "silent": b"",
    "half a line": b"GET /v1/st",
    "half a head": STATS[:-2],
    "half a body": b"POST /v1/scan HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    "one request": STATS,
    "a hundred requests": STATS * 100,
    "a scan": b"POST /v1/scan HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "every page": b"GET /v1/blobs?limit=1000 HTTP/1.1\r\n\r\n" * 20,
    "a long line": b"GET /" + b"a" * 100_000,
    "a large head": b"GET /v1/stats HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "a large body": b"POST /v1/scan HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n" + b"x" * 100_000,
    "zeros": bytes(100_000),
}
ENDINGS = ("stays", "stays", "leaves", "leaves unread", "is reset", "drips")


class Client:
    """One connection, which sends without waiting and never reads."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.opening, self.ending = chance.choice(list(OPENINGS)), chance.choice(ENDINGS)
        said = chance.randbytes(chance.randrange(2000)) if chance.random() < 0.1 else OPENINGS[self.opening]
        self.connection = connect(path)
        self.connection.setblocking(False)
        with contextlib.suppress(OSError):  # no room is left, or the daemon has heard enough
            self.connection.sendall(said)

    def go_on(self) -> None:
        with contextlib.suppress(OSError):
            if self.ending == "drips":
                self.connection.send(b"X")
            elif self.ending == "leaves unread":
                self.connection.shutdown(socket.SHUT_RD)
            elif self.ending == "is reset":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif self.ending == "leaves":
                self.connection.close()


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as folder, opened(folder, anew=True) as made:
        yield made


@pytest.fixture(autouse=True)
def descriptors_enough() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard != resource.RLIM_INFINITY else 4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def held(daemon: Daemon) -> tuple[int, int]:
    """Open descriptors and threads."""
    proc = Path(f"/proc/{daemon.pid}")
    return len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))


def resident_bytes(daemon: Daemon) -> int:
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def ask(path: Path) -> tuple[float, int]:
    """In how many seconds the figure came, and how often it had to be asked for."""
    begun = time.monotonic()
    for tries in range(1, 1000):
        try:
            assert http.ask(str(path), "GET", "/v1/stats")["layers"] >= 0
        except ChunkdError:
            assert time.monotonic() - begun < PATIENCE_S, f"no figure in {PATIENCE_S:.0f} s"
            continue
        return time.monotonic() - begun, tries
    raise AssertionError("no figure in 1,000 tries")


def test_a_thousand_bad_clients_at_once(home: Home, seed: int, tell: Tell) -> None:
    chance = random.Random(seed)
    cache = home.cache()
    daemon = home.start(cache, environ=BRISK)
    daemon.until_figures({"layers": 0})
    ask(daemon.socket)
    before, landed = held(daemon), 0
    waits_s, tries = [], 0
    kinds: Counter[str] = Counter()
    for _ in range(WAVES):
        clients = []
        for number in range(CLIENTS):
            clients.append(Client(daemon.socket, chance))
            kinds[clients[-1].opening] += 1
            if number % 100 == 0:
                landed += 1
                blobs.write_blob(cache, blobs.gz(blobs.layer(landed, 20_000)))
        for _ in range(ASKS_A_WAVE):
            for one in chance.sample(clients, CLIENTS // ASKS_A_WAVE):
                one.go_on()
            waited_s, asked = ask(daemon.socket)
            waits_s.append(waited_s)
            tries += asked
        for one in clients:
            one.connection.close()
    daemon.settled_after_scan()
    daemon.until_figures({"layers": landed})
    until(lambda: held(daemon), lambda now: now[0] <= before[0] + 6 and now[1] <= before[1] + 1, "nothing is left open")
    assert daemon.get("/v1/health") == {"state": "ok", "reasons": []}
    assert "Traceback" not in daemon.log
    assert resident_bytes(daemon) < 200 << 20
    assert daemon.stop() == 0
    home.check()
    waits_s.sort()
    tell(
        f"{WAVES * CLIENTS:,} bad clients, {CLIENTS:,} at once,"
        f" at least {min(kinds.values())} of each of {len(kinds)} kinds"
    )
    tell(
        f"{landed} layers landed; {len(waits_s)} honest questions in {tries} tries, half answered in"
        f" {waits_s[len(waits_s) // 2] * 1000:.0f} ms, the slowest in {waits_s[-1]:.1f} s"
    )


def test_clients_that_go_half_way_leave_nothing(home: Home, seed: int, tell: Tell) -> None:
    chance = random.Random(seed)
    daemon = home.start(home.cache())
    daemon.until(lambda stats: stats["settled"], "all its threads have begun")
    before, bytes_before = held(daemon), resident_bytes(daemon)
    for _ in range(GONE_HALF_WAY):
        with connect(daemon.socket) as connection:
            said = OPENINGS[chance.choice(list(OPENINGS))]
            with contextlib.suppress(OSError):
                connection.sendall(said[: chance.randrange(len(said) + 1)])
    until(lambda: held(daemon), lambda now: now[0] <= before[0] and now[1] <= before[1], "nothing is left open")
    grown = resident_bytes(daemon) - bytes_before
    assert grown < 32 << 20
    tell(f"{GONE_HALF_WAY:,} clients gone half-way, {grown >> 10:,} KiB more resident in the end")


INTRUDER = """
import json, os, socket, sys
folder, name = sys.argv[1:]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
path = f"{folder}/{name}"
def connect(at):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(at)
attempts = {
    "connect": lambda: connect(path),
    "unlink": lambda: os.unlink(path),
    "rename": lambda: os.rename(path, path + "2"),
    "replace": lambda: os.rename("/tmp", path),
    "chmod": lambda: os.chmod(path, 0o666),
    "chown": lambda: os.chown(path, 65534, 65534),
    "list": lambda: os.listdir(folder),
    "create": lambda: open(f"{folder}/new", "x"),
    "lock": lambda: open(path + ".lock", "r+"),
    "look": lambda: os.lstat(path),
    "read the index": lambda: open(f"{folder}/index/data.mdb", "rb"),
    "signal": lambda: os.kill(os.getppid(), 0),
}
found = {}
for what, attempt in attempts.items():
    try:
        attempt()
        found[what] = "done"
    except PermissionError:
        found[what] = "denied"
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nowhere(home: Home, tell: Tell) -> None:
    daemon = home.start(home.cache())
    assert stat.S_IMODE(home.state.stat().st_mode) & 0o007 == 0
    assert shutil.which(sys.executable)
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, str(home.state), daemon.socket.name],
        check=True, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found.values()) == {"denied"}, found
    ask(daemon.socket)
    tell(f"{len(found)} attempts of another user, all denied")
