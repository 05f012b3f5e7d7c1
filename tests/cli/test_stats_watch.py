"""`stats --watch` on a terminal of any size: one frame on the screen, and always the last."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any

import pytest

from chunkd.cli import watch
from chunkd.client.ask import Client
from chunkd.settings.resolve import Resolved


class Screen:
    """What a terminal shows of what is written to it, with as much of ECMA-48 as these frames use."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.rows, self.row, self.column, self.wraps = [""], 0, 0, True

    def write(self, text: str) -> None:
        for sequence, char in re.findall(r"\x1b\[([?0-9]*[a-zA-Z])|([^\x1b])", text):
            if sequence:
                self._obey(sequence)
            elif char == "\n":
                self._down()
            else:
                if self.column == self.columns:
                    assert self.wraps, "a row is wider than the terminal"
                    self._down()
                self.rows[self.row] = self.rows[self.row][: self.column] + char
                self.column += 1

    def _obey(self, sequence: str) -> None:
        if sequence in ("?7l", "?7h"):
            self.wraps = sequence == "?7h"
        elif sequence == "H":
            self.row = self.column = 0
        elif sequence == "J":
            self.rows = [*self.rows[: self.row], self.rows[self.row][: self.column]]
        else:
            assert sequence.endswith("A")
            self.row = max(0, self.row - int(sequence[:-1]))

    def _down(self) -> None:
        self.column = 0
        self.row += 1
        self.rows += [""] * (self.row + 1 - len(self.rows))
        if self.row == self.lines:
            self.row -= 1
            del self.rows[0]

    def resize(self, columns: int, lines: int) -> None:
        """As most terminals do: rows that no longer fit are wrapped, and the cursor goes down with them."""
        self.columns, self.lines = columns, lines
        self.rows = [row[at : at + columns] for row in self.rows for at in range(0, len(row) or 1, columns)][-lines:]
        self.row = len(self.rows) - 1


def frame(number: int) -> str:
    return "\n".join([f"frame {number}", "", *(f"{row:02} {'x' * 90}" for row in range(20 - number))])


def watched(monkeypatch: pytest.MonkeyPatch, screen: Screen, sizes: list[tuple[int, int]]) -> list[str]:
    """The rows on the screen after as many frames as there are sizes."""
    number = 0

    def rest(_: float) -> None:
        nonlocal number
        number += 1
        if number == len(sizes):
            raise KeyboardInterrupt
        if sizes[number] != (screen.columns, screen.lines):
            screen.resize(*sizes[number])

    client = Client(Resolved({}, {}))
    monkeypatch.setattr(client, "stats", lambda: {"as_of": None})
    monkeypatch.setattr("chunkd.cli.tables.stats_lines", lambda *_: frame(number).split("\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: (screen.columns, screen.lines))
    monkeypatch.setattr(time, "sleep", rest)

    def say(words: str, **_: Any) -> None:
        screen.write(words + "\n")

    monkeypatch.setattr(watch, "say", say)
    with pytest.raises(KeyboardInterrupt):
        watch.watch_stats(client, as_json=False)
    return screen.rows


@pytest.mark.parametrize("lines", [3, 10, 24, 50])
@pytest.mark.parametrize("columns", [1, 20, 60, 93, 120])
def test_each_frame_takes_the_place_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int
) -> None:
    rows = watched(monkeypatch, Screen(columns, lines), [(columns, lines)] * 4)
    whole = watch.rows_of(frame(3), columns, 10**9)
    assert rows == [*whole[: lines - 1], ""]
    assert "".join(whole) == frame(3).replace("\n", "")


def test_a_terminal_that_is_resized_shows_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(120, 50), (60, 50), (60, 12), (30, 12), (120, 50)]
    rows = watched(monkeypatch, Screen(120, 50), sizes)
    assert rows == [*watch.rows_of(frame(4), 120, 50), ""]


def test_a_frame_that_has_not_changed_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(Screen, "write", lambda _, text: drawn.append(text))
    monkeypatch.setattr(f"{__name__}.frame", lambda _: "the same")
    watched(monkeypatch, Screen(80, 24), [(80, 24)] * 3)
    assert len(drawn) == 1
