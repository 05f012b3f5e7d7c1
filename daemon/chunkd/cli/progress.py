"""The progress of a scan, or of another reading, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chunkd.cli.output import say
from chunkd.service.oneshot import Show

PLAIN_LINE_EVERY_S = 5.0


@contextmanager
def silent(*_: str) -> Iterator[Show]:
    """For `--quiet`: shows nothing."""
    yield lambda *_: None


@contextmanager
def progress(done: str = "scanned", counted: str = "blobs to go") -> Iterator[Show]:
    """A bar with bytes, rate and time left on a terminal, and a plain line now and then elsewhere; on stderr. `done` is
    the word for what happens, and `counted` for what the third number counts.
    """
    if not sys.stderr.isatty():
        told_at = time.monotonic()

        def tell(done_bytes: int, known_bytes: int, blobs: int) -> None:
            nonlocal told_at
            if time.monotonic() >= told_at + PLAIN_LINE_EVERY_S:
                told_at = time.monotonic()
                of = f" of {known_bytes:,}" if known_bytes else ""
                say(f"{done} {done_bytes:,}{of} bytes, {blobs:,} {counted}", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[blobs]:,} " + counted),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", blobs=0, total=None)
        yield lambda done_bytes, known_bytes, blobs: bar.update(
            task, completed=done_bytes, total=known_bytes or None, blobs=blobs
        )
