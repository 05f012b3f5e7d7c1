"""Without a daemon, that nothing is pending is said only where the last writer ended with nothing left to do."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import blobs
from daemon import Home, until

KNOWN = {"settled": True, "pending_blobs": 0, "pending_bytes": 0}
UNKNOWN = dict.fromkeys(KNOWN)


def offline(home: Home) -> dict[str, Any]:
    """What stats says of what is left; the gate and the text agree with it."""
    stats = json.loads(home.command("stats", "--json").stdout)
    gate = home.command("stats", "--json", "--fail-if", "pending_blobs>0")
    found = {name: stats[name] for name in KNOWN}
    assert gate.returncode == (0 if found == KNOWN else 1)
    assert ("pending" in home.command("stats").stdout) == (found != KNOWN)
    return found


def half_written(cache: Path) -> None:
    """Two good layers, and a blob that is waited for, as its writer may still be at work."""
    for number in range(2):
        blobs.write_blob(cache, blobs.gz(blobs.layer(number, 20_000)))
    data = blobs.gz(blobs.layer(9, 20_000))
    (cache / blobs.digest_of(data).hex).write_bytes(data[:-100])


@pytest.mark.long(12)
def test_a_scan_that_is_killed_leaves_unknown_what_is_left(home: Home) -> None:
    cache = home.cache()
    half_written(cache)
    command = [sys.executable, "-m", "chunkd", "scan", str(cache), "--state", str(home.state)]
    scan = subprocess.Popen(command, env=home.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def layers() -> int:
        done = home.command("stats", "--json")
        return int(json.loads(done.stdout)["layers"]) if done.returncode == 0 else 0

    until(layers, lambda found: found == 2, "two layers are counted")
    assert offline(home) == UNKNOWN
    scan.kill()
    scan.wait()
    assert offline(home) == UNKNOWN
    home.scan(cache)
    assert offline(home) == KNOWN
    home.scan(cache)
    assert offline(home) == KNOWN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_is_stopped_says_whether_it_was_done(home: Home, number: signal.Signals) -> None:
    cache = home.cache()
    for index in range(2):
        blobs.write_blob(cache, blobs.gz(blobs.layer(index, 20_000)))
    idle = home.start(cache)
    idle.until(lambda stats: stats["settled"] and stats["layers"] == 2 and stats["scans"], "settled")
    idle.stop(number)
    assert offline(home) == (KNOWN if number == signal.SIGTERM else UNKNOWN)
    half_written(cache)
    busy = home.start(cache)
    busy.until(lambda stats: stats["pending_blobs"] == 1 and stats["scans"], "one is waited for")
    assert busy.stop(signal.SIGTERM) == 0
    assert offline(home) == UNKNOWN
