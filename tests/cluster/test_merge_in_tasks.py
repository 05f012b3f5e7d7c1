"""`chunkd merge --engine`: the figures are those of a merge in one process, whatever the engine and whoever dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forked
from answering import short_directory
from chunkd.cluster import merge as merging
from chunkd.cluster.engine import Local, carry_out
from chunkd.cluster.tasks import TaskFailed
from chunkd.fleet import tables
from chunkd.fleet.merge import merge, sources_of
from chunkd.fleet.store import Store
from clusters import cluster
from daemon import PATIENCE_S, Home, opened
from fleets import merged, put_host, split
from stores import entries_of, store_at
from test_merge import BLOBS, put_hosts

SMALL = Path(__file__).with_name("small_ranges.py")
ROWS_A_RANGE = 700


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = store_at(tmp_path / "store")
    put_hosts(made)
    return made


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_A_RANGE", ROWS_A_RANGE)


class Here:
    """An engine that carries a task out at once. Each task dies as often as `deaths` says of its number."""

    room = 2

    def __init__(self, deaths: dict[int, int]) -> None:
        self.deaths, self.ended, self.tasks = deaths, list[tuple[int, dict[str, Any]]](), list[dict[str, Any]]()

    def submit(self, number: int, task: dict[str, Any]) -> None:
        self.tasks.append(task)
        if self.deaths.get(number, 0):
            self.deaths[number] -= 1
            self.ended.append((number, {"died": "a test"}))
        else:
            self.ended.append((number, carry_out(task)))

    def gather(self) -> list[tuple[int, dict[str, Any]]]:
        found, self.ended = self.ended, []
        return found

    def cancel(self) -> None:
        pass


def by(store: Store, engine: Any) -> dict[str, Any]:
    sources = sources_of(store)
    return merge(store, sources, summed=merging.in_tasks(store, sources, lambda: engine))


@pytest.mark.usefixtures("small_ranges")
def test_each_range_is_a_task_and_one_that_dies_counts_once(store: Store) -> None:
    expected = merged(store)
    engine = Here({0: 1, 2: 3})
    assert by(store, engine) == expected
    ranges = [tuple(task["range"]) for task in engine.tasks]
    assert len(set(ranges)) > 2
    assert len(ranges) == len(set(ranges)) + 1 + 3
    assert by(store, Local(2)) == expected


@pytest.mark.usefixtures("small_ranges")
def test_tasks_sum_up_the_snapshots_that_the_merge_began_with(store: Store) -> None:
    expected = merged(store)
    sources = sources_of(store)
    put_host(store, 0, [split(BLOBS, [9])])
    assert merged(store) != expected
    assert merge(store, sources, summed=merging.in_tasks(store, sources, lambda: Local(2))) == expected


@pytest.mark.usefixtures("small_ranges")
def test_a_contradiction_that_a_task_finds_is_named(store: Store) -> None:
    (hash_, length), *others = BLOBS[2]
    (lying,) = put_host(store, 3, [entries_of({99: [(hash_, length + 1), *others]})])
    with pytest.raises(tables.SegmentsDisagree):
        merged(store)
    with pytest.raises(TaskFailed) as refused:
        by(store, Local(2))
    assert lying in str(refused.value)
    assert hash_.hex() in str(refused.value)


def test_a_store_without_a_chunk_needs_no_task(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [40])])
    assert by(store, Local(1)) == merged(store)


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root) as found:
        yield found


def test_the_command_on_each_engine_and_its_refusals(home: Home) -> None:
    store = store_at(home.root / "store")
    put_hosts(store)
    expected = merged(store)

    def said(*flags: str, code: int = 0) -> Any:
        words = [str(ROWS_A_RANGE), "merge", "--json", "--quiet", str(home.root / "store"), *flags]
        done = forked.run(words, home.environ, PATIENCE_S, script=SMALL)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else None

    assert said() == said("--engine", "local") == expected
    with cluster(home.root, home.environ) as found:
        assert said("--engine", f"dask:{found.address}") == expected
    said("--engine", "nonsense", code=2)
    said("--engine", "local", "--images", code=2)
