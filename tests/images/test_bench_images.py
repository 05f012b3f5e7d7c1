from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_the_benchmark_of_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Small: its sums are those of all chunks, and it asks all of its questions."""
    monkeypatch.syspath_prepend(str(BENCH))
    try:
        results, [bar] = importlib.import_module("images").asked(60)
    finally:
        for name in ("images", "measure"):
            sys.modules.pop(name, None)
    assert results["images"] == 60
    assert results["seconds"].keys() == {
        "graph", "atoms", "all figures", "by repository", "freed", "similarities", "clusters",
    }  # fmt: skip
    assert bar.reached
    assert "60 images" in capsys.readouterr().out
