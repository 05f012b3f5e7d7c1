"""The log, and what is told to systemd: names from a cache can't write lines or escape sequences of their own."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import short_directory
from chunkd.service.logs import log_to_stderr
from chunkd.service.notify import Notifier

FORGED = "x\n2026-01-01 00:00:00,000 ERROR index damaged\x1b[2J\r\udce4"


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers = []
    yield logging.getLogger("chunkd.test")
    root.handlers = handlers
    root.setLevel(level)


def test_a_message_is_one_line_whatever_it_holds(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("info")
    logger.warning("cache %s: odd", FORGED)
    logger.debug("too quiet")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.isprintable()
    assert r"x\n2026" in line
    assert re.match(r"[0-9-]{10}T[0-9:]{8}[.][0-9]{3}[+-][0-9]{2}:[0-9]{2} WARNING cache x", line)


def test_a_traceback_is_indented_and_escaped(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("info")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed")
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.endswith("ERROR failed")
    assert len(rest) >= 3
    assert all(line.startswith("  ") and line.isprintable() for line in rest)


def test_each_line_for_the_journal_has_its_priority(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.fstat(sys.stderr.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log_to_stderr("info")
    logger.info("cache %s", FORGED)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed")
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.startswith("<6>cache x")
    assert all(line.startswith("<3>") for line in rest)


def test_systemd_is_told_of_a_path_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_directory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        Notifier().say("STATUS=/st\udce4te")
        assert systemd.recv(100) == rb"STATUS=/st\udce4te"
    Notifier().say("READY=1")  # nobody is there


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", Path)  # would fail
    Notifier().say("READY=1")
