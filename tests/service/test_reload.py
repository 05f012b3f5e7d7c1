"""SIGHUP reads the settings again: what can change does, the rest is named, and wrong settings change nothing."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chunkd.errors import SettingsFileUnusable
from chunkd.service.reload import CHANGEABLE, reload
from chunkd.settings.config import Config, effective
from chunkd.settings.resolve import Resolved
from chunkd.settings.table import SETTINGS
from daemon import Home


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


class Inside:
    """The parts of a daemon that a reload changes, and the file that it reads."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "chunkd.toml"
        self.file.write_text("")
        environ = {"HOME": str(folder), "CHUNKD_CONFIG": str(self.file), "CHUNKD_NICE": "3"}
        self.resolved = Resolved({"state_dir": "/s"}, environ)
        self.config = effective(self.resolved)
        self.cache = SimpleNamespace(polled_s=60)
        self.scanner: Any = SimpleNamespace(scan_s=600)
        self.writer: Any = SimpleNamespace(verify_round=SimpleNamespace(interval_s=86400), caches={1: self.cache})

    def reload(self, text: str) -> Config:
        self.file.write_text(text)
        return self.reload_file()

    def reload_file(self) -> Config:
        self.config = reload(self.config, lambda: effective(self.resolved.again()), self.scanner, self.writer)
        return self.config

    def in_force(self) -> tuple[float, float, float, str]:
        level = logging.getLevelName(logging.getLogger().level)
        return self.scanner.scan_s, self.cache.polled_s, self.writer.verify_round.interval_s, level


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    return Inside(tmp_path)


def test_what_can_change_does(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    values = "scan_interval_s = 5\npolled_scan_interval_s = 6\nverify_interval_s = 70\nlog_level = 'warning'\n"
    config = inside.reload(values)
    assert inside.in_force() == (5, 6, 70, "WARNING")
    assert (config.scan_interval_s, config.log_level) == (5, "warning")
    assert len(caplog.records) == len(CHANGEABLE)
    caplog.clear()
    inside.reload(values)
    assert caplog.records == []
    inside.reload("")  # the defaults
    assert inside.in_force() == (600, 60, 86400, "INFO")


def test_what_needs_a_restart_is_named_each_time_and_does_not_change(
    inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        config = inside.reload("workers = 7\nmax_ratio = 9\nnice = 5\nscan_interval_s = 5\n")
        warned = [record.args for record in caplog.records if record.levelname == "WARNING"]
        assert warned == [("max_ratio, workers",)]
    # A variable overrides the file, and flags both, as at the start.
    assert (config.workers, config.max_ratio, config.nice, config.state_dir) == (0, 2000, 3, "/s")
    assert inside.scanner.scan_s == 5


@pytest.mark.parametrize("text", ["workers =", "scan_interval_s = 'soon'", "no_such_setting = 1"])
def test_wrong_settings_change_nothing(inside: Inside, text: str, caplog: pytest.LogCaptureFixture) -> None:
    before, in_force = inside.config, inside.in_force()
    assert inside.reload(text + "\nlog_level = 'debug'\n") == before
    assert inside.in_force() == in_force
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_file_that_is_gone_changes_nothing(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    before = inside.config
    inside.file.unlink()
    with pytest.raises(SettingsFileUnusable):
        effective(inside.resolved.again())
    assert inside.reload_file() == before
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_every_setting_that_can_change_is_one() -> None:
    assert set(CHANGEABLE) <= set(SETTINGS)


def test_a_daemon_that_is_told(home: Home) -> None:
    file = home.root / "own.toml"
    file.write_text("scan_interval_s = 86400\n")
    daemon = home.start(home.cache(), environ={"CHUNKD_CONFIG": str(file)})
    daemon.until(lambda stats: stats["settled"] and stats["scans"] == 1, "the first scan")
    file.write_text("scan_interval_s = =\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda stats: stats["scans"] == 2, "SIGHUP's scan")
    daemon.until_log("kept as they were")
    file.write_text("scan_interval_s = 1\nworkers = 3\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda stats: stats["scans"] >= 5, "the timer's scans")
    daemon.until_log("settings: scan_interval_s is now 1")
    daemon.until_log("settings: workers changed, which needs a restart")
    assert daemon.stop() == 0
