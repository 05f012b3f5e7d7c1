"""What a task takes: 64 MiB and 100 bytes a row to write a segment; a merge its limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
# Some libraries keep what they had, and DuckDB's limit does not count all of its buffers.
SLACK_BYTES = 64 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="statm is Linux's")
def test_memory_is_bounded_by_rows_and_by_the_limit(tmp_path: Path) -> None:
    rows, limit = 800_000, 64 * MIB
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "hungry.py"), str(tmp_path / "store"), str(rows), str(limit)],
        capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    writing, merging = map(int, done.stdout.split())
    assert writing <= 100 * rows + SLACK_BYTES
    assert merging <= limit + SLACK_BYTES
    print(f"{writing / rows:.0f} bytes a row written, {merging / MIB:.0f} MiB to merge them")
