from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_the_benchmark_of_replays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Small: what was written into the log is what was read."""
    monkeypatch.syspath_prepend(str(BENCH))
    try:
        results, [seconds, memory] = importlib.import_module("replay").replayed(tmp_path, 3000, 20)
    finally:
        for name in ("replay", "images", "made_up", "measure"):
            sys.modules.pop(name, None)
    assert (results["lines"], results["images"]) == (3000, 20)
    assert (seconds.unit, memory.unit) == ("s", "MiB")
    assert "3,000 lines" in capsys.readouterr().out
