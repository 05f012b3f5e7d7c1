"""What `chunkd check` writes on a terminal: a line that tells how far it is, and nothing of it before the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from daemon import opened
from indexing import Bench, chunk


def on_screen(drawn: bytes) -> list[str]:
    """The lines that are left: a carriage return goes back to where a line begins, ESC [K takes away what follows."""
    return [line.rpartition(b"\x1b[K")[2].rstrip(b"\r").decode() for line in drawn.split(b"\n")]


def test_the_result_stands_on_a_line_of_its_own(bench: Bench, tmp_path: Path) -> None:
    bench.add(1, [chunk(1)])
    bench.close()
    ours, theirs = os.openpty()
    with opened(tmp_path) as home:
        done = subprocess.Popen(
            [sys.executable, "-m", "chunkd", "check", "--state", str(bench.state_dir)],
            env=home.environ, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        drawn = b""
        try:
            while more := os.read(ours, 4096):
                drawn += more
        except OSError:  # the end of a terminal is an error on Linux
            pass
        os.close(ours)
        assert done.wait(30) == 0
    assert b"counting places" in drawn
    assert on_screen(drawn) == ["0 differences", ""]
