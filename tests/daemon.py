"""The real program as a process: a daemon that is started, asked and ended, and the commands beside it.

What is waited for is asked for again until it holds or patience ends: a slow machine makes a test slow and not wrong.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

import forked
from chunkd.chunkers.gear import Chunker
from chunkd.client import http
from chunkd.errors import NoDaemon, RequestRefused, SocketUnusable
from chunkd.model import ChunkParams, MeasureRule
from chunkd.worker.recompress import Recompressor

PATIENCE_S = 60.0
ASK_EVERY_S = 0.02

SAVING = ("measured_chunks", "recompressed_bytes", "recompressed_error_bytes", "index_overhead_bytes", "net_bytes")
FIGURES = (
    "blobs", "layers", "stored_bytes", "layer_stored_bytes", "uncompressed_bytes", "chunks", "unique_chunks",
    "unique_bytes", *SAVING,
)  # fmt: skip
ZEROS = dict.fromkeys(FIGURES, 0)
# For a test of many blobs on a machine that others keep busy, where nice workers get what these leave.
BRISK = {"CHUNKD_NICE": "0", "CHUNKD_IO_PRIORITY": "normal"}

REPOSITORY = Path(__file__).parent.parent
NPM_FIGURES: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "npm_small.json").read_text())
NPM_TOTALS = {
    "blobs": NPM_FIGURES["totals"]["layers"],
    "layers": NPM_FIGURES["totals"]["layers"],
    "stored_bytes": NPM_FIGURES["totals"]["on_disk"],
    "layer_stored_bytes": NPM_FIGURES["totals"]["on_disk"],
    "uncompressed_bytes": NPM_FIGURES["totals"]["uncompressed"],
    "chunks": NPM_FIGURES["totals"]["chunks"],
    "unique_chunks": NPM_FIGURES["totals"]["unique_chunks"],
    "unique_bytes": NPM_FIGURES["totals"]["unique_bytes"],
}

Stats = dict[str, Any]
Value = TypeVar("Value")


def npm_layers() -> list[Path]:
    """The 90 real layers of npm_small.json in its order; skips the test where they were not fetched."""
    folder = Path(os.environ.get("NPM_SMALL") or REPOSITORY / ".cache" / "npm_small") / "blobs" / "sha256"
    paths = [folder / layer["sha256"] for layer in NPM_FIGURES["layers"]]
    missing = sum(not path.is_file() for path in paths)
    if missing:
        pytest.skip(
            f"{missing} of the {len(paths)} layers of npm_small.json are not in {folder} (`make test` fetches them)"
        )
    return paths


def npm_chunks() -> Iterator[tuple[Path, list[tuple[bytes, int, int]]]]:
    """Each of the npm layers with its chunks in order: hash, length, and length of the zstd frame."""
    recompressor = Recompressor(MeasureRule(1))
    for path in npm_layers():
        chunker = Chunker(ChunkParams(), measure=recompressor)
        chunker.feed(gzip.decompress(path.read_bytes()))
        recipe = chunker.finish()
        hashes = [recipe.hashes[at : at + 16] for at in range(0, len(recipe.hashes), 16)]
        lengths, frames = (struct.unpack(f"<{len(recipe)}I", packed) for packed in (recipe.lengths, recipe.measured))
        yield path, list(zip(hashes, lengths, frames, strict=True))


def figures(stats: Stats) -> dict[str, int]:
    """The part of a reply that is a pure function of the blobs."""
    return {name: stats[name] for name in FIGURES}


def until(
    ask: Callable[[], Value], holds: Callable[[Value], object], what: str, patience_s: float = PATIENCE_S
) -> Value:
    """Ask until it holds; fails with the last answer when patience ends."""
    deadline = time.monotonic() + patience_s
    while True:
        value = ask()
        if holds(value):
            return value
        assert time.monotonic() < deadline, f"{what}: not within {patience_s:.0f} s; last was {value}"
        time.sleep(ASK_EVERY_S)


def state_of(pid: int) -> str:
    """The letter of a process or a thread in proc(5): R, S, D, T for stopped, Z for dead.

    Raises ProcessLookupError when it is gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        raise ProcessLookupError from None


def children(pid: int) -> list[int]:
    """The processes that a process has started and not waited for yet."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def timing(**seconds: float) -> dict[str, str]:
    """For the environment of a daemon that is to wait so long, by the fields of `Timing`."""
    return {"CHUNKD_TIMING": json.dumps(seconds)}


def land(source: Path, folder: Path, name: str = "") -> Path:
    """Copy a file into a cache as a careful writer does: under another name beside the cache, then renamed."""
    partial = folder.parent / f"partial-{source.name[:16]}"
    shutil.copyfile(source, partial)
    return partial.rename(folder / (name or source.name))


@dataclass
class Daemon:
    """A running `chunkd run`. Its log (stderr) goes to a file."""

    home: Home
    process: subprocess.Popen[bytes] | forked.Process
    socket: Path
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, target: str) -> dict[str, Any]:
        assert self.process.poll() is None, f"the daemon has ended:\n{self.log}"
        try:
            return http.ask(str(self.socket), "GET", target)
        except RequestRefused as error:
            raise AssertionError(f"{error}:\n{self.log}") from error

    def stats(self) -> Stats:
        return self.get("/v1/stats")

    def answers(self) -> bool:
        """Whether it does yet; fails when it has ended."""
        with contextlib.suppress(NoDaemon, SocketUnusable):
            return bool(self.stats())
        return False

    def blobs(self, failed: bool = False) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/v1/blobs?limit=1000&failed={str(failed).lower()}")["blobs"]
        return found

    def until(self, holds: Callable[[Stats], object], what: str, patience_s: float = PATIENCE_S) -> Stats:
        try:
            return until(self.stats, holds, what, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n--- the log's end ---\n{self.log[-6000:]}") from None

    def until_figures(self, expected: dict[str, int], patience_s: float = PATIENCE_S) -> Stats:
        """Wait until these figures stand and nothing is left to do."""
        return self.until(
            lambda stats: stats["settled"] and {name: stats[name] for name in expected} == expected,
            f"settled with {expected}",
            patience_s,
        )

    def settled_after_scan(self, **asked: bool) -> Stats:
        """Ask for a scan and wait for its end and for all that follows from it."""
        number = http.ask(str(self.socket), "POST", "/v1/scan", asked)["scan"]
        return self.until(lambda stats: stats["scans"] >= number and stats["settled"], f"scan {number} settled")

    def until_log(self, text: str, patience_s: float = PATIENCE_S) -> str:
        return until(lambda: self.log, lambda log: text in log, f"{text!r} in the log", patience_s)

    def starter(self) -> int:
        """The process id of what starts its workers; 0 when there is none."""
        for pid in children(self.pid):
            with contextlib.suppress(OSError):
                if b"chunkd.worker.starter" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return pid
        return 0

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        starter = self.starter()
        return children(starter) if starter else []

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """It stands still meanwhile. Each of its threads does, as a stop takes its time: one may go on for a while."""

        def states() -> set[str]:
            found = set()
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    found.add(state_of(int(task.name)))
            return found

        self.process.send_signal(signal.SIGSTOP)
        try:
            until(states, lambda found: found == {"T"}, "every thread is stopped")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code (negative for a signal)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@dataclass
class Home:
    """A folder with a state directory and caches, and the commands run in it without the user's own settings.

    Its processes are forked from one that has imported chunkd, with `anew` they are not; nor are those that are started
    `under` another program. Workers don't stand back for what else the machine does: behind two busy cores they would
    hardly ever get to work.
    """

    root: Path
    anew: bool = False
    daemons: list[Daemon] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=lambda: {"CHUNKD_NICE": "0", "CHUNKD_IO_PRIORITY": "normal"})

    @property
    def state(self) -> Path:
        return self.root / "state"

    def cache(self, name: str = "cache") -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def environ(self) -> dict[str, str]:
        empty = self.root / "empty.toml"
        empty.touch()
        taken = {name: value for name, value in os.environ.items() if not name.startswith(("CHUNKD_", "XDG_"))}
        for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "JOURNAL_STREAM"):
            taken.pop(name, None)
        own = {"HOME": str(self.root), "CHUNKD_CONFIG": str(empty), "PYTHONUNBUFFERED": "1"}
        return taken | own | self.settings

    def command(
        self,
        *args: object,
        state: Path | None = None,
        environ: dict[str, str] | None = None,
        under: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `chunkd ARGS --state STATE` to its end."""
        words = [*map(str, args), "--state", str(state or self.state)]
        environ = self.environ | (environ or {})
        if self._forks(under):
            return forked.run(words, environ, PATIENCE_S, cwd)
        return subprocess.run(
            [*under, sys.executable, "-m", "chunkd", *words], env=environ, cwd=cwd, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def _forks(self, under: Sequence[str]) -> bool:
        return forked.HERE and not self.anew and not under

    def scan(self, *caches: Path | str, state: Path | None = None, under: Sequence[str] = ()) -> Stats:
        done = self.command("scan", "--json", *caches, state=state, under=under)
        assert done.returncode == 0, done.stderr
        found: Stats = json.loads(done.stdout)
        return found

    def fresh(self, *caches: Path | str, under: Sequence[str] = ()) -> dict[str, int]:
        """The figures of an index made anew of what is in these caches now."""
        state = self.root / "fresh"
        try:
            return figures(self.scan(*caches, state=state, under=under))
        finally:
            shutil.rmtree(state, ignore_errors=True)

    def check(self, *flags: str) -> None:
        """A recount finds nothing."""
        done = self.command("check", *flags)
        assert (done.returncode, done.stdout) == (0, "0 differences\n"), done.stdout + done.stderr

    def spawn(
        self,
        *caches: Path | str,
        environ: dict[str, str] | None = None,
        under: Sequence[str] = (),
        state: Path | None = None,
    ) -> Daemon:
        """A daemon that was started and may not answer yet. `under` is a command to start it with, such as strace."""
        state = state or self.state
        log_path = self.root / f"daemon-{len(self.daemons)}.log"
        words = ["run", *map(str, caches), "--state", str(state)]
        environ = self.environ | (environ or {})
        process: subprocess.Popen[bytes] | forked.Process
        with log_path.open("wb") as log, open(os.devnull, "r+b") as nothing:
            if self._forks(under):
                process = forked.start(words, environ, (nothing, nothing, log))
            else:
                process = subprocess.Popen(
                    [*under, sys.executable, "-m", "chunkd", *words], env=environ, stdin=nothing, stderr=log
                )
        daemon = Daemon(self, process, state / "chunkd.sock", log_path)
        self.daemons.append(daemon)
        return daemon

    def start(
        self,
        *caches: Path | str,
        environ: dict[str, str] | None = None,
        under: Sequence[str] = (),
        state: Path | None = None,
    ) -> Daemon:
        """A daemon that answers."""
        daemon = self.spawn(*caches, environ=environ, under=under, state=state)
        until(daemon.answers, bool, "the daemon answers")
        return daemon

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.kill()


@contextlib.contextmanager
def opened(root: Path, *, anew: bool = False) -> Iterator[Home]:
    """Leaves no daemon behind. A worker ends by itself when its daemon has gone."""
    home = Home(root, anew)
    try:
        yield home
    finally:
        home.close()


def without_rights() -> tuple[str, ...]:
    """Starts a command as root without root's right to read everything: the files' own permissions hold."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is not installed, and root may read everything")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def digests_opened(trace: Path) -> list[str]:
    """The names of blobs that were opened, by an strace of openat2 and its like. O_PATH opens nothing: it looks."""
    blob = r'open(?:at2?)?\([^"]*"[^"]*?((?:[0-9a-f]{64}|[0-9a-f]{128})(?:/data)?)", (.*)'
    return [name for name, how in re.findall(blob, trace.read_text(errors="replace")) if "O_PATH" not in how]
