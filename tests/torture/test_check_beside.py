"""`chunkd check` beside a daemon that lands and removes blobs all the time: nothing false, and nobody waits for it."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from answering import short_directory
from blobs import digest_of, gz, layer
from conftest import Tell
from daemon import PATIENCE_S, Daemon, Home, opened, state_of, until
from test_writers import NEVER

STAY = 40
KEPT = 10
CHURN = 40
# `check --read` at so many bytes a second takes about 15 s for the blobs that stay, within one snapshot.
READ_BYTES_PER_S = 1 << 19
SNAPSHOT_BLOBS = 40


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


class Churn:
    """Lands blob after blob in a cache, and removes each again a few blobs later."""

    def __init__(self, daemon: Daemon, cache: Path) -> None:
        self.daemon, self.cache = daemon, cache
        self.landed: list[Path] = []

    def turn(self) -> float:
        """One landing and at most one removal; how long, in seconds, until the figures showed both."""
        data = gz(layer(1000 + len(self.landed), 60_000))
        path = self.cache / digest_of(data).hex
        partial = self.cache.parent / "partial"
        partial.write_bytes(data)
        expected = STAY + min(len(self.landed) + 1, KEPT)
        started = time.monotonic()
        partial.rename(path)
        self.landed.append(path)
        if len(self.landed) > KEPT:
            self.landed[-KEPT - 1].unlink()
        digest = f"sha256:{path.name}"
        self.daemon.until_log(f"indexed {digest},")  # before that the figures may be those from before both
        self.daemon.until(
            lambda stats: stats["blobs"] == expected and stats["pending_blobs"] == 0, f"{expected} blobs with {digest}"
        )
        return time.monotonic() - started

    def turns(self, more: Callable[[int], bool]) -> list[float]:
        took_s: list[float] = []
        while more(len(took_s)):
            took_s.append(self.turn())
        return took_s

    @property
    def index_bytes(self) -> int:
        return int(self.daemon.stats()["index_bytes"])


def checking(home: Home, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "chunkd", "check", *flags, "--state", str(home.state)],
        env=home.environ | {"CHUNKD_READ_BYTES_PER_S": str(READ_BYTES_PER_S)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def has_workers(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: state_of(pid), lambda state: state == "T", "it is stopped")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def ended_well(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "0 differences\n"), out + err


def test_check_beside_a_daemon_that_is_busy(home: Home, tell: Tell) -> None:
    cache = home.cache()
    for number in range(STAY):
        data = gz(layer(number, 300_000))
        (cache / digest_of(data).hex).write_bytes(data)
    daemon = home.start(cache, environ=NEVER)
    daemon.until(lambda stats: stats["blobs"] == STAY and stats["settled"], "what stays is indexed")
    churn = Churn(daemon, cache)
    churn.turns(lambda done: done < KEPT + 5)
    alone = churn.turns(lambda done: done < CHURN)
    at_first = churn.index_bytes

    checks = 0
    beside: list[float] = []
    while len(beside) < CHURN:
        with checking(home) as process:
            beside += churn.turns(lambda _, process=process: process.poll() is None)  # type: ignore[misc]
            ended_well(process)
        checks += 1
    after_checks = churn.index_bytes

    with checking(home, "--read") as process:
        until(lambda: has_workers(process.pid), bool, "it reads, within its snapshot")
        with standing_still(process.pid):  # however slow this machine is, the snapshot lasts
            held = churn.turns(lambda done: done < SNAPSHOT_BLOBS)
            while_held = churn.index_bytes
        ended_well(process)
    churn.turns(lambda done: done < SNAPSHOT_BLOBS)
    home.check("--read")
    settled = churn.index_bytes

    median_s, beside_s, held_s = (statistics.median(times) for times in (alone, beside, held))
    tell(
        f"{checks} checks beside {len(beside)} landings and removals,"
        f" and one of a snapshot beside {len(held)}: 0 differences"
    )
    tell(
        f"median from rename to figure {median_s * 1000:.0f} ms alone, {beside_s * 1000:.0f} ms beside checks, "
        f"{held_s * 1000:.0f} ms beside a held snapshot (worst {max(alone):.2f}, {max(beside):.2f}, {max(held):.2f} s)"
    )
    tell(
        f"index file {at_first:,} bytes before, {after_checks:,} after the checks, {while_held:,} at the end of "
        f"{len(held)} landings in one snapshot, {settled:,} after {SNAPSHOT_BLOBS} more without it"
    )
    assert settled <= while_held + (while_held - after_checks) // 4
