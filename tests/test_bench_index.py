"""The index's benchmark, small: it asks all of its questions, and nothing can be fast and wrong."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"
NAMES = ("index", "made_up", "measure", "shares")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which are no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        del sys.modules[name]


def test_every_question_is_asked(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = modules["index"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what asks for no plot need not have it
    monkeypatch.setattr(bench, "LAYER_CHUNKS", 2000)
    monkeypatch.setattr(bench, "HUGE_CHUNKS", 10_000)
    monkeypatch.setattr(bench, "STEPS", (20_000, 99_999_999))
    results, bars = bench.asked(40_000, str(tmp_path))
    assert [step["chunks"] for step in results["steps"]] == [20_000, 40_000]
    for step in results["steps"]:
        assert {kind: len(costs) for kind, costs in step["costs"].items()} == {
            "new": 10,
            **{
                f"{kind}{removed}": 5
                for kind in ("known", "in runs of 200", "in runs of 4")
                for removed in ("", ", removed")
            },
            "new, removed": 5,
            "revived": 5,
            "small": 5,
        }
        assert all(cost[0] > 0 and cost[1] > 0 for costs in step["costs"].values() for cost in costs)
        assert step["copy_bytes"].keys() == {"known", "in runs of 200", "in runs of 4"}
    assert len(results["sweep"]) > 4
    assert len(bars) == 2 + 2 + 2 * 6 + 3
    assert len({(bar.what, bar.unit) for bar in bars}) == len(bars)
    told = capsys.readouterr().out
    assert "recount: no difference" in told
    assert "at 40,000 chunks" in told


def test_totals_that_are_not_the_models_end_the_benchmark(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    with modules["made_up"].grown(str(tmp_path), 5000) as made:
        layer, _ = made.new(1000)
        made.new(1000)
        made.add(np.arange(500, 1500))
        head = made.totals
        assert (head.layers, head.chunks, head.unique_chunks) == (3, 3000, 2000)
        made.expected = dataclasses.replace(made.expected, unique_bytes=made.expected.unique_bytes + 1)
        with pytest.raises(AssertionError):
            made.remove(layer)


@pytest.mark.parametrize("mean_chunks", [4, 200])
def test_runs_are_of_their_mean_length_and_of_known_chunks(modules: dict[str, ModuleType], mean_chunks: int) -> None:
    numbers = modules["made_up"].in_runs(np.random.default_rng(1), 50_000, mean_chunks, 1_000_000)
    assert len(numbers) == 50_000
    assert 0 <= numbers.min() <= numbers.max() < 1_000_000
    runs = 1 + np.count_nonzero(np.diff(numbers) != 1)
    assert 0.8 * mean_chunks < 50_000 / runs < 1.25 * mean_chunks


def test_the_shares_of_all_layers_add_up(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = modules["shares"]
    monkeypatch.setattr(bench, "LAYER_CHUNKS", 1000)
    monkeypatch.setattr(bench, "ADDED", 3)
    result, bar = bench.asked(6, 10, str(tmp_path))
    assert len(result["entries_per_s"]) == bench.ROUNDS
    assert min(result["add_alone_s"], result["add_beside_s"], bar.figure) > 0
