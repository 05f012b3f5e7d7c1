"""The daemon behind the walls of its unit: all that it needs is let through, and its workers' own walls stand too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chunkd.worker import sandbox
from daemon import NPM_TOTALS, REPOSITORY, land, npm_layers, opened

UNIT = REPOSITORY / "systemd" / "chunkd.service"
WALLED = REPOSITORY / "tests" / "walled.py"
# The workers are as nice as the settings have them by default, which takes long on a machine that others keep busy.
NICE_PATIENCE_S = 240.0

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="the walls are put up by Linux's root"),
    pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine"),
]


def walls(writable: Path) -> tuple[str, ...]:
    return (sys.executable, str(WALLED), str(UNIT), str(writable), "--")


def test_real_layers_are_indexed_behind_the_walls_of_the_unit(tmp_path: Path) -> None:
    layers = npm_layers()
    with opened(tmp_path) as home:
        cache = home.cache()
        home.state.mkdir()
        for layer in layers[:-1]:
            land(layer, cache)
        daemon = home.start(cache, under=walls(home.state))
        daemon.until_figures({"layers": len(layers) - 1}, NICE_PATIENCE_S)
        land(layers[-1], cache)  # found by an event
        daemon.until_figures(NPM_TOTALS, NICE_PATIENCE_S)
        assert daemon.get("/v1/health") == {"state": "ok", "reasons": []}
        land(layers[0], cache, "0" * 64)
        daemon.until(
            lambda stats: stats["pending_blobs"], "a blob that does not match its name is pending", NICE_PATIENCE_S
        )
        [worker, *_] = daemon.workers()
        for pid in (daemon.pid, worker):
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
            )
            assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
        assert status["Seccomp_filters"].strip() == "2"  # the worker's own as well
        log = daemon.log
        assert not re.search(r"\b(WARNING|ERROR|CRITICAL)\b", log), log
        assert ("(Landlock " in log) == bool(sandbox.landlock_version())
        assert daemon.stop() == 0
        home.check()


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        ("open('{cache}/new', 'w')", "Read-only file system"),
        ("open('{state}/new', 'w').write('x'); print('written')", "written"),
        ("import os; os.unlink('{cache}/blob')", "Read-only file system"),
        ("import socket; socket.create_connection(('127.0.0.1', {port}))", "Network is unreachable"),
        ("import os; os.chroot('/')", "Operation not permitted"),
        ("import os; os.sched_setaffinity(0, [0])", "Operation not permitted"),
        ("import mmap; mmap.mmap(-1, 4096, prot=7)", "Permission denied"),
        ("open('/proc/meminfo')", "No such file"),
        ("import os; os.chown('{state}', 1, 1)", "Operation not permitted"),
    ],
)
def test_the_walls_are_there(attempt: str, said: str, tmp_path: Path) -> None:
    """What the test above passed through holds back other things."""
    with opened(tmp_path) as home:
        cache = home.cache()
        home.state.mkdir()
        (cache / "blob").touch()
        code = attempt.format(cache=cache, state=home.state, port=9)
        done = subprocess.run(
            [*walls(home.state), sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert said in done.stdout + done.stderr
