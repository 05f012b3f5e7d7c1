"""The real program as a process, for the benchmarks: started away from all settings, asked, and ended."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chunkd.client import http
from chunkd.errors import NoDaemon, SocketUnusable

PATIENCE_S = 300.0
ASK_EVERY_S = 0.002

Stats = dict[str, Any]


def environ(home: Path) -> dict[str, str]:
    """The environment without any setting of chunkd's, the user's own file included; `home` is an empty folder."""
    empty = home / "empty.toml"
    empty.touch()
    names = ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHUNKD_", "XDG_"))}
    return {name: value for name, value in kept.items() if name not in names} | {
        "HOME": str(home),
        "CHUNKD_CONFIG": str(empty),
    }


@dataclass
class Daemon:
    """A running `chunkd run`, its log in a file."""

    process: subprocess.Popen[bytes]
    socket: Path
    log_path: Path

    def stats(self) -> Stats:
        return http.ask(str(self.socket), "GET", "/v1/stats")

    def until(self, holds: Callable[[Stats], object], what: str, every_s: float = 0.0) -> Stats:
        """Ask until it holds. Exits, with the log's end, when the daemon has ended or patience has."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            stats = self.stats()
            if holds(stats):
                return stats
            if time.monotonic() > deadline:
                sys.exit(
                    f"{what}: not within {PATIENCE_S:.0f} s; last was {stats}\n{self.log_path.read_text()[-4000:]}"
                )
            time.sleep(max(every_s, ASK_EVERY_S))

    def scan(self, unasked_s: float = 0.0, **asked: bool) -> Stats:
        """The figures when a scan asked for now, and all that follows from it, is done; not asked for `unasked_s`."""
        number = http.ask(str(self.socket), "POST", "/v1/scan", asked)["scan"]
        time.sleep(unasked_s)
        # An answer is a millisecond of a processor: asked seldom enough to take a hundredth of the time.
        done = f"scan {number}"
        return self.until(lambda stats: stats["scans"] >= number and stats["settled"], done, unasked_s / 50)

    def workers(self) -> list[int]:
        """The process ids of its child processes. Linux only."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return found


def start_chunkd(args: Sequence[str], environ: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "chunkd", *args], env=environ, stdin=subprocess.DEVNULL, stderr=log)


@contextlib.contextmanager
def daemon(state: Path, *caches: Path, flags: Sequence[str] = ()) -> Iterator[Daemon]:
    """A daemon that answers, its first scan done and nothing pending; ended, and found to end well, at the end.

    The index is in `state`, which is made when it is missing; the socket is in a short folder of its own.
    """
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chunkd-") as short:
        socket, log_path = Path(short, "chunkd.sock"), state / "daemon.log"
        args = ["run", *map(str, caches), "--state", str(state), "--socket", str(socket), *flags]
        with log_path.open("wb") as log:
            process = start_chunkd(args, environ(Path(short)), log)
        running = Daemon(process, socket, log_path)
        try:
            _wait_for_answer(running)
            running.until(lambda stats: stats["scans"] and stats["settled"], "the scan at start")
            yield running
        except BaseException:
            process.kill()
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE_S)
        if code:
            sys.exit(f"the daemon ended with {code}:\n{log_path.read_text()[-4000:]}")


def seed_workers(layout: Path, processes: int) -> None:
    """Layers of a few bytes, enough of them that every worker is started."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    for number in range(4 * processes):
        content = gzip.compress(b"%d" % number, mtime=0)
        (layout / "blobs" / "sha256" / hashlib.sha256(content).hexdigest()).write_bytes(content)


def _wait_for_answer(running: Daemon) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while running.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(NoDaemon, SocketUnusable):
            running.stats()
            return
        time.sleep(ASK_EVERY_S)
    sys.exit(f"no daemon answers:\n{running.log_path.read_text()[-4000:]}")


def scan_process(state: Path, *caches: Path) -> bytes:
    """Run `chunkd scan --json` to its end; what it printed. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="chunkd-") as short:
        command = [sys.executable, "-m", "chunkd", "scan", "--json", *map(str, caches), "--state", str(state)]
        return subprocess.run(command, env=environ(Path(short)), capture_output=True, check=True).stdout
