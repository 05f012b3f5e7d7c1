"""The daemon's log: one line an event on stderr, with the priority that journald reads when it listens."""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys

from chunkd.figures.words import shown

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _OneLine(logging.Formatter):
    """Escapes control characters and line feeds in a message: names in a cache may hold any.

    Only a traceback takes several lines, and each of them but the first is indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """The local time to the millisecond, with its zone."""
        return dt.datetime.fromtimestamp(record.created, dt.UTC).astimezone().isoformat(timespec="milliseconds")

    def formatException(self, ei: object) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join("  " + shown(line) for line in lines)


class _ForJournal(_OneLine):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


def log_to_stderr(level: str) -> None:
    """Send the log to stderr, from this level on. Called once."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _ForJournal("%(message)s") if _journal_listens() else _OneLine("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _journal_listens() -> bool:
    """JOURNAL_STREAM names the device and inode of the journal's socket (systemd.exec(5)); stderr may be redirected."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
