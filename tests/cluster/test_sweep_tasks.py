"""Tasks of a sweep in this process: what they are told decides how much they keep, and what they do adds up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from blobs import gz, noise, tar, write_blob
from chunkd.chunkers import profiles
from chunkd.cluster import sweep, sweep_task, tasks
from chunkd.cluster.tasks import Hands
from chunkd.fleet.store import Store
from chunkd.model import MeasureRule
from chunkd.settings.config import load
from chunkd.sweep import tally
from chunkd.sweep.question import Question, Share
from chunkd.sweep.sweep import Sweep, opened
from chunkd.worker.pool import Pool
from chunkd.worker.spawn import Courtesy
from sweeping import Reply

RULES = tuple(profile.name for profile in profiles.parse("fixed-4KiB,2/16/64,fixed-4KiB-per-file,files"))
QUESTION = Question(RULES, MeasureRule(4), load({}, {"HOME": "/"}).caps, baselines=False)
LAYERS = 16


class Here:
    """An engine that carries a task out when it is asked for. With `loses` the store then lacks so many results."""

    room = 1

    def __init__(self, loses: int = 0) -> None:
        self._loses, self._given = loses, list[tuple[int, Any]]()
        self.kept_bytes = self.tasks = self.read = 0

    def submit(self, number: int, task: dict[str, Any]) -> None:
        self._given.append((number, json.loads(json.dumps(task))))

    def gather(self) -> list[tuple[int, dict[str, Any]]]:
        number, task = self._given.pop()
        with mock.patch.object(Pool, "give", autospec=True, side_effect=Pool.give) as give:
            said = sweep_task.run(task, sys.stdin, lambda: None)
        self.tasks, self.read = self.tasks + 1, self.read + give.call_count
        names = [f"{algorithm}-{digits}" for (algorithm, digits), *_ in task["layers"]]
        paths = [path for path in Path(task["store"]).glob("sweeps/*/sha*") if path.name in names]
        self.kept_bytes = sum(path.stat().st_size for path in paths)
        while self._loses:
            paths.pop().unlink()
            self._loses -= 1
        return [(number, said)]

    def cancel(self) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    for number in range(LAYERS):
        files = {str(at): noise(40_000 + at, at + 10 * number * (at % 3 == 0)) for at in range(12)}
        write_blob(cache, gz(tar(files)))
    return cache


@pytest.fixture(autouse=True)
def of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASK_BLOBS", 4)


def begun(cache: Path, store: Path, engine: Here) -> Sweep:
    hands = Hands(Courtesy(0, "normal", 0), 2, 1)
    return sweep.begin([], [str(cache)], QUESTION, Share(), Store(str(store)), hands, lambda: engine)


def swept_here(cache: Path, store: Path, engine: Here) -> Reply:
    one = begun(cache, store, engine)
    assert len(list(one.read())) == engine.tasks + 1
    return one.reply()


def alone(cache: Path, state: Path) -> Reply:
    config = load({"state_dir": str(state), "nice": 0}, {"HOME": str(state)})
    with opened(config, [], [str(cache)], QUESTION, Share()) as one:
        list(one.read())
        return one.reply()


def test_beyond_the_bound_tasks_keep_less_and_the_estimate_is_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Here()
    assert swept_here(cache, tmp_path / "exact", exact) == alone(cache, tmp_path / "alone")
    assert exact.tasks == LAYERS // 4
    monkeypatch.setattr(tally, "EXACT_CHUNKS", 600)
    sampled = Here()
    reply = swept_here(cache, tmp_path / "sampled", sampled)
    assert reply == alone(cache, tmp_path / "alone again")
    assert 1 in {one["unique_one_in"] for one in reply["rules"]} < {1, 2, 4, 8}
    assert sampled.kept_bytes < exact.kept_bytes / 2  # of the last task, which knew of the others


def test_a_result_that_does_not_come_is_named_and_read_by_the_next_run(cache: Path, tmp_path: Path) -> None:
    reply = swept_here(cache, tmp_path / "store", Here(loses=2))
    assert [one["reason"] for one in reply["layers"]["bad"]] == [sweep.NO_RESULT] * 2
    again = Here()
    reply = swept_here(cache, tmp_path / "store", again)
    assert (reply["layers"]["from_earlier_runs"], again.tasks) == (LAYERS - 2, 1)
    assert reply["rules"] == alone(cache, tmp_path / "alone")["rules"]


def test_what_another_run_has_done_meanwhile_is_not_read_again(cache: Path, tmp_path: Path) -> None:
    late, first = begun(cache, tmp_path / "store", slow := Here()), Here()
    expected = swept_here(cache, tmp_path / "store", first)
    list(late.read())
    assert late.reply() == expected
    assert (slow.tasks, slow.read, first.read) == (LAYERS // 4, 0, LAYERS)


def test_who_gives_up_has_what_tasks_had_done(cache: Path, tmp_path: Path) -> None:
    one = begun(cache, tmp_path / "store", Here())
    steps = one.read()
    assert [next(steps).layers_left for _ in range(2)] == [LAYERS, LAYERS - 4]
    list(begun(cache, tmp_path / "store", Here()).read())  # by tasks that did not say so
    steps.close()
    assert one.is_complete
    assert one.reply()["layers"]["found"] == LAYERS
