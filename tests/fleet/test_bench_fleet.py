from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_the_benchmark_of_merges(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Small: the figures of the layers that were made up."""
    monkeypatch.syspath_prepend(str(BENCH))
    try:
        bench = importlib.import_module("fleet")
        results, [memory, rate] = bench.merged(tmp_path, 30_000)
        _, [task] = bench.tasks(tmp_path, 1_000_000)
    finally:
        for name in ("fleet", "measure"):
            sys.modules.pop(name, None)
    assert 25_000 < results["rows"] <= 30_000
    assert (memory.unit, rate.unit) == ("MiB", "rows")
    assert memory.reached
    assert 20 < task.figure < task.bar
    assert "rows of" in capsys.readouterr().out
