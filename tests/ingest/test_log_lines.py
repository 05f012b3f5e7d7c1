"""A burst of blobs does not flood the log: a line for each up to a number, then a count."""

from __future__ import annotations

import logging

import pytest

from chunkd.ingest.counters import LINES_A_MINUTE, MINUTE_S, LogLines


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The lines at level info and above since the last call."""
    found = [(record.levelno, record.getMessage()) for record in caplog.records if record.levelno >= logging.INFO]
    caplog.clear()
    return found


def test_a_burst_is_one_line_a_blob_and_then_a_count(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 1000.0
    lines = LogLines(lambda: now_s)
    burst = [(logging.INFO, f"subtracted {number}: gone") for number in range(2000)]
    lines.add(burst)
    assert len(caplog.records) == len(burst), "level debug has them all"
    assert told(caplog) == burst[:LINES_A_MINUTE]
    # Of another kind, and of another level, there is room.
    others = [(logging.INFO, "indexed 1"), (logging.WARNING, "subtracted 1, to be read again")]
    lines.add(others)
    lines.sum_up()
    assert told(caplog) == others

    now_s += MINUTE_S
    lines.sum_up()
    ((level, text),) = told(caplog)
    assert (level, text.split()[0]) == (logging.INFO, "subtracted")
    assert str(len(burst) - LINES_A_MINUTE) in text
    lines.sum_up()
    assert told(caplog) == []
    lines.add(burst[:LINES_A_MINUTE])
    assert told(caplog) == burst[:LINES_A_MINUTE], "a new minute"


def test_what_was_held_back_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    lines = LogLines()
    lines.add([(logging.WARNING, "failed")] * (LINES_A_MINUTE + 7))
    told(caplog)
    lines.sum_up(now=True)
    ((level, text),) = told(caplog)
    assert level == logging.WARNING
    assert "7" in text
