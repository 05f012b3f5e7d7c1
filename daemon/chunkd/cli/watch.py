"""`chunkd stats --watch`: the figures again and again, on a terminal each frame in place of the one before."""

from __future__ import annotations

import json
import os
import sys
import time

from chunkd.cli import tables
from chunkd.cli.output import say
from chunkd.client.ask import Client

WATCH_S = 1.0
# So that a row with characters two columns wide is still one row.
WRAP_OFF, WRAP_ON = "\x1b[?7l", "\x1b[?7h"


def watch_stats(client: Client, as_json: bool) -> None:
    """Prints the figures whenever they have changed, until it is interrupted."""
    shown: tuple[str, tuple[int, int]] | None = None
    above = 0
    while True:
        found = client.stats()
        source = client.source(found["as_of"])
        frame = json.dumps(found) if as_json else "\n".join(tables.stats_lines(found, source))
        on_terminal = sys.stdout.isatty() and not as_json
        size = _size() if on_terminal else (0, 0)
        if (frame, size) != shown:
            if on_terminal:
                rows = rows_of(frame, *size)
                resized = shown is not None and shown[1] != size
                say(f"{_to_last(above, resized)}{WRAP_OFF}" + "\n".join(rows) + WRAP_ON)
                above = len(rows)
            else:
                say(frame)
            shown = frame, size
        time.sleep(WATCH_S)


def rows_of(frame: str, columns: int, lines: int) -> list[str]:
    """The frame as rows that fit the terminal. The last line stays free for the cursor; what is too much is cut."""
    rows = [line[start : start + columns] for line in frame.split("\n") for start in range(0, len(line) or 1, columns)]
    return rows[: max(1, lines - 1)]


def _size() -> tuple[int, int]:
    columns, lines = os.get_terminal_size(1)
    return columns or 80, lines or 24


def _to_last(above: int, resized: bool) -> str:
    """Moves the cursor to where the last frame begins, and clears what is below.

    A terminal that was resized has wrapped its rows anew, so that place is unknown and the whole screen is cleared.
    """
    if resized:
        return "\x1b[H\x1b[J"
    return f"\x1b[{above}A\x1b[J" if above else ""
