"""Health says what is wrong while it is, in words that name the thing, and nothing once it is over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chunkd.errors import IndexDamaged
from chunkd.service import live as module
from chunkd.service.live import DaemonAnswers
from chunkd.sources.cache import ServedCache
from indexing import Bench


@dataclasses.dataclass
class Inside:
    """The parts of a daemon that its health is read from."""

    cache: ServedCache
    watcher: Any
    ingest: Any
    scanner: Any
    answers: DaemonAnswers

    def health(self) -> dict[str, Any]:
        return self.answers.health()


@pytest.fixture
def inside(tmp_path: Path, bench: Bench) -> Inside:
    cache = ServedCache(1, str(tmp_path))
    watcher = SimpleNamespace(alive=True)
    ingest: Any = SimpleNamespace(
        caches={1: cache}, progress=SimpleNamespace(paused=""), pool=SimpleNamespace(stuck=0), index=bench.index
    )
    scanner: Any = SimpleNamespace(watcher=lambda: watcher, problems={})
    return Inside(cache, watcher, ingest, scanner, DaemonAnswers(ingest, scanner, watching=True))


@pytest.fixture(autouse=True)
def begins_and_ends_well(inside: Inside) -> Iterator[None]:
    assert inside.health() == {"state": "ok", "reasons": []}
    yield
    assert inside.health() == {"state": "ok", "reasons": []}


def wrong(inside: Inside, *parts: str) -> None:
    """Exactly one thing is wrong, and these words are in what is said of it."""
    health = inside.health()
    assert health["state"] == "degraded"
    [reason] = health["reasons"]
    for part in parts:
        assert part in reason


def test_a_cache_that_is_away(inside: Inside) -> None:
    inside.cache.stale = "its root can't be reached: No such file or directory"
    wrong(inside, inside.cache.path, "stale", "No such file")
    inside.cache.stale = ""


def test_a_cache_that_can_not_be_watched(inside: Inside) -> None:
    inside.cache.unwatched = "can't be watched: No space left on device"
    wrong(inside, inside.cache.path, "unwatched", "No space left on device")
    inside.cache.unwatched = ""


def test_a_watcher_that_died(inside: Inside) -> None:
    inside.watcher.alive = False
    wrong(inside, inside.cache.path, "unwatched", "the watcher does not live")
    inside.watcher.alive = True


def test_indexing_that_is_paused(inside: Inside) -> None:
    inside.ingest.progress.paused = "index /i: can't be written: No space left on device"
    wrong(inside, "indexing is paused", "No space left on device")
    inside.ingest.progress.paused = ""


def test_a_folder_that_can_not_be_listed(inside: Inside) -> None:
    inside.scanner.problems["/c/secret"] = "/c/secret: can't be listed: Permission denied"
    wrong(inside, "/c/secret", "Permission denied")
    inside.scanner.problems.clear()


def test_workers_that_do_not_end(inside: Inside) -> None:
    inside.ingest.pool.stuck = 2
    wrong(inside, "2 workers", "do not end")
    inside.ingest.pool.stuck = 0


def test_a_daemon_that_stands_still(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic() + module.STOOD_S
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 1)
    wrong(inside, "nothing has been done for 6")
    inside.answers.moved()


def test_figures_that_can_not_be_read(inside: Inside, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise IndexDamaged("/i", "the totals: its checksum does not match")

    with monkeypatch.context() as patched:
        patched.setattr(bench.index.store, "head", damaged)
        wrong(inside, "the figures can't be read", "checksum", "chunkd rebuild")


def test_all_at_once(inside: Inside) -> None:
    inside.cache.stale = "its root is no folder"
    inside.ingest.progress.paused = "no worker can be started: Cannot allocate memory"
    inside.scanner.problems["/c"] = "/c: can't be listed"
    assert len(inside.health()["reasons"]) == 3
    inside.cache.stale = inside.ingest.progress.paused = ""
    inside.scanner.problems.clear()


def test_what_is_polled_is_well(inside: Inside) -> None:
    inside.cache.polled = "NFS"
    inside.watcher.alive = False  # nobody watches it
    assert inside.health()["state"] == "ok"
    inside.cache.polled, inside.watcher.alive = "", True
