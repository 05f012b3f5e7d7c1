"""The daemon's log: one line an event on stderr, with the priority that journald reads when it listens."""

from __future__ import annotations

import logging
import os
import sys

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _ForJournal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def log_to_stderr(level: str) -> None:
    """Called once, by a command that works."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _ForJournal("%(message)s") if _journal_listens() else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _journal_listens() -> bool:
    """JOURNAL_STREAM names the device and inode of the journal's socket (systemd.exec(5)); stderr may be redirected."""
    status = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
