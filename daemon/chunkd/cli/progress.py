"""The progress of a scan, or of another reading, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chunkd.cli.output import say

if TYPE_CHECKING:
    from chunkd.service.oneshot import Show

PLAIN_LINE_EVERY_S = 5.0


@contextmanager
def progress(done: str = "scanned", counted: str = "blobs to go", *, quiet: bool = False) -> Iterator[Show]:
    """A bar with bytes, rate and time left on a terminal, and a plain line now and then elsewhere; on stderr. With
    `quiet` nothing. `done` is the word for what happens, and `counted` for what the third number counts.
    """
    if quiet:
        yield lambda *_: None
        return
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
