"""The process that starts workers is killed under its daemon, as the kernel may do when memory is short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blobs import gz, layer, noise, tar, write_blob
from daemon import Home, children, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLOWLY = {"CHUNKD_READ_BYTES_PER_S": "100000", "CHUNKD_WORKERS": "1"}


def ended(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("busy", [True, False], ids=["while a worker reads", "at rest"])
def test_a_daemon_ends_by_name_and_the_next_one_goes_on(home: Home, busy: bool) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer()))
    daemon = home.start(cache, environ=SLOWLY)
    daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted")
    if busy:
        write_blob(cache, tar({"noise": noise(3_000_000)}))
        daemon.until(lambda stats: stats["pending_blobs"], "it is read")
    workers = daemon.workers()
    os.kill(daemon.starter(), signal.SIGKILL)
    assert daemon.process.wait(20) == 1
    assert daemon.log.splitlines()[-1] == (
        "chunkd: the process that starts workers was killed (signal 9), as the kernel does when memory is short;"
        " start chunkd again"
    )
    assert "Traceback" not in daemon.log
    until(lambda: ended(workers), bool, "its workers end")
    home.check()
    daemon = home.start(cache)
    daemon.until_figures({"layers": 1 + busy})
    assert daemon.stop() == 0
    home.check()


def test_so_does_a_scan(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, tar({"noise": noise(3_000_000)}))
    command = [sys.executable, "-m", "chunkd", "scan", str(cache), "--state", str(home.state)]
    scan = subprocess.Popen(command, env=home.environ | SLOWLY, stderr=subprocess.PIPE, text=True)
    with scan:
        [starter] = until(lambda: children(scan.pid), lambda found: len(found) == 1, "the starter")
        [worker] = until(lambda: children(starter), lambda found: len(found) == 1, "a worker")
        os.kill(starter, signal.SIGKILL)
        _, stderr = scan.communicate(timeout=20)
    assert scan.returncode == 1
    assert stderr.splitlines()[-1].startswith("chunkd: the process that starts workers was killed (signal 9)")
    until(lambda: ended([worker]), bool, "its worker ends")
    assert home.scan(cache)["layers"] == 1
    home.check()


def test_a_daemon_that_is_killed_leaves_neither(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, tar({"noise": noise(3_000_000)}))
    daemon = home.start(cache, environ=SLOWLY)
    workers = until(daemon.workers, bool, "one reads")
    left = [daemon.starter(), *workers]
    daemon.kill()
    until(lambda: ended(left), bool, "they end")


def test_ctrl_c_is_the_daemons(home: Home) -> None:
    """It goes to every process of a terminal's group; the workers have not heard of it."""
    cache = home.cache()
    write_blob(cache, gz(layer()))
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["layers"] == 1, "counted")
    pids = [daemon.starter(), *daemon.workers()]
    assert [os.getsid(pid) for pid in pids] == pids
    assert daemon.stop(signal.SIGINT) == 0
    assert ended(pids)
    assert "Traceback" not in daemon.log
