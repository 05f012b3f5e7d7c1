"""The progress of a scan on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chunkd.cli.output import say
from chunkd.service.oneshot import Show

PLAIN_LINE_EVERY_S = 5.0


@contextmanager
def progress() -> Iterator[Show]:
    """A bar with bytes, rate and time left on a terminal, and a plain line now and then elsewhere; on stderr."""
    if not sys.stderr.isatty():
        told_at = time.monotonic()

        def tell(done_bytes: int, known_bytes: int, blobs: int) -> None:
            nonlocal told_at
            if time.monotonic() >= told_at + PLAIN_LINE_EVERY_S:
                told_at = time.monotonic()
                say(f"scanned {done_bytes:,} of {known_bytes:,} bytes, {blobs:,} blobs to go", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[blobs]:,} blobs to go"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", blobs=0, total=None)
        yield lambda done_bytes, known_bytes, blobs: bar.update(
            task, completed=done_bytes, total=known_bytes or None, blobs=blobs
        )
