"""A sweep with more chunks than it keeps: estimated within the stated error, whatever the order of reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobs import gz, noise, tar, write_blob
from chunkd.chunkers import profiles
from chunkd.model import MeasureRule
from chunkd.settings.config import load
from chunkd.sweep import tally
from chunkd.sweep.question import Question, Share
from chunkd.sweep.sweep import Sweep, opened
from sweeping import Reply, row

RULES = ("fixed-4KiB", "2/16/64", "fixed-4KiB-per-file", "files")
EXACT = ("chunks", "chunk_bytes", "mean_chunk_bytes")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    for number in range(16):
        files = {str(at): noise(40_000 + at, at + 10 * number * (at % 3 == 0)) for at in range(12)}
        write_blob(cache, gz(tar(files)))
    return cache


@contextlib.contextmanager
def begun(cache: Path, state: Path) -> Iterator[Sweep]:
    config = load({"state_dir": str(state), "nice": 0}, {"HOME": str(state)})
    names = tuple(profile.name for profile in profiles.parse(",".join(RULES)))
    question = Question(names, MeasureRule(4), config.caps, baselines=False)
    with opened(config, [], [str(cache)], question, Share()) as sweep:
        yield sweep


def swept_here(cache: Path, state: Path, layers: int = 1 << 20) -> Reply:
    """The reply after so many layers at least have been read by this run."""
    with begun(cache, state) as sweep, contextlib.closing(sweep.read()) as steps:
        for step in steps:
            if 16 - step.layers_left >= layers:
                break
        return sweep.reply()


def test_beyond_the_bound_it_is_estimated(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = swept_here(cache, tmp_path / "exact")
    assert {one["unique_one_in"] for one in exact["rules"]} == {1}
    monkeypatch.setattr(tally, "EXACT_CHUNKS", 600)
    found = swept_here(cache, tmp_path / "sampled")
    chunks = row(exact, "fixed-4KiB")["chunks"]
    assert 1200 < chunks <= 2400
    for name in RULES:
        one, other = row(found, name), row(exact, name)
        assert {figure: one[figure] for figure in EXACT} == {figure: other[figure] for figure in EXACT}
        if other["chunks"] <= 600:
            assert one == other
            continue
        assert one["unique_one_in"] == 4
        assert 0 < one["unique_error_bytes"] < other["unique_bytes"] / 2
        assert abs(one["unique_bytes"] - other["unique_bytes"]) <= 2 * one["unique_error_bytes"]
        assert one["recompressed_error_bytes"] > one["unique_error_bytes"] * one["recompressed_bytes"] / (
            2 * one["unique_bytes"]
        )
        assert one["median_update_bytes"] is None
    again = swept_here(cache, tmp_path / "again", 5)
    assert not again["complete"]
    again = swept_here(cache, tmp_path / "again")
    assert again["rules"] == found["rules"]
