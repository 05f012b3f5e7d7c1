"""A command that was forked is a process like one that was started: code, streams, environment, folder and signals."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import forked
from answering import short_directory
from daemon import Home, opened

pytestmark = pytest.mark.skipif(not forked.HERE, reason="pidfd_open(2) is Linux's")


@pytest.fixture
def homes() -> Iterator[tuple[Home, Home]]:
    """A home whose processes are forked, and one whose processes are started."""
    with short_directory() as root, opened(root) as first, opened(root, anew=True) as second:
        yield first, second


@pytest.mark.parametrize(
    ("args", "code"), [(("config", "--json", "cache"), 0), (("scan", "nowhere"), 1), (("stats", "--frobnicate"), 2)]
)
def test_a_forked_command_ends_as_one_that_was_started(
    homes: tuple[Home, Home], args: tuple[str, ...], code: int
) -> None:
    done = [home.command(*args, environ={"CHUNKD_WORKRES": "3"}, cwd=home.root) for home in homes]
    forks, starts = ((one.returncode, one.stdout, one.stderr) for one in done)
    assert forks == starts
    assert forks[0] == code
    assert forks[1 if code == 0 else 2]


def test_how_a_daemon_ended_is_told(homes: tuple[Home, Home]) -> None:
    for home in homes:
        daemon = home.start(home.cache())
        assert daemon.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.01)
        daemon.kill()
        assert daemon.process.returncode == daemon.process.poll() == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(daemon.pid, 0)
        assert home.start(home.cache()).stop() == 0


def test_a_process_that_fails_on_its_way_ends_with_1(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as err, open(os.devnull) as nothing:
        process = forked.start(["stats"], {}, (nothing, nothing, err), tmp_path / "away")
        assert process.wait(60) == 1
    assert "FileNotFoundError" in (tmp_path / "err").read_text()


def test_a_command_that_takes_too_long_is_killed(homes: tuple[Home, Home]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(["run", str(homes[0].cache()), "--state", str(homes[0].state)], homes[0].environ, 0.5)
    assert homes[0].command("health").returncode == 3
