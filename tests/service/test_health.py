"""Health says what is wrong while it is, in words that name the thing, and nothing once it is over."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chunkd.errors import IndexDamaged
from chunkd.model import Cache
from chunkd.service import live as module
from chunkd.service.live import DaemonAnswers
from chunkd.sources.activity import Activity
from chunkd.sources.cache import ServedCache
from chunkd.sources.folder import FolderSource
from chunkd.sources.status import CacheStatus
from indexing import Bench

WATCHED = CacheStatus(watched=True)


@dataclasses.dataclass
class Inside:
    """The parts of a daemon that its health is read from."""

    cache: ServedCache
    writer: Any
    answers: DaemonAnswers

    def health(self) -> dict[str, Any]:
        return self.answers.health()


@pytest.fixture
def inside(tmp_path: Path, bench: Bench) -> Inside:
    record = Cache(str(tmp_path))
    cache = ServedCache(1, record, FolderSource(record.path), Activity())
    cache.status = WATCHED
    writer: Any = SimpleNamespace(
        caches={1: cache}, progress=SimpleNamespace(paused=""), pool=SimpleNamespace(stuck=[], run=None),
        index=bench.index, layerless={}, verify_round=SimpleNamespace(late_s=0.0),
        names=SimpleNamespace(file_taken_s=0.0),
    )  # fmt: skip
    scanner: Any = SimpleNamespace(scanning=False)
    return Inside(cache, writer, DaemonAnswers(writer, scanner))


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
    inside.cache.status = replace(WATCHED, stale="its root can't be reached: No such file or directory")
    wrong(inside, inside.cache.path, "stale", "No such file")
    inside.cache.status = WATCHED


def test_a_cache_that_does_not_answer(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ServedCache, "hung_s", lambda _: 75.2)
        wrong(inside, inside.cache.path, "hung", "has not answered for 75 s")


def test_a_cache_that_can_not_be_watched(inside: Inside) -> None:
    inside.cache.status = CacheStatus(unwatched="can't be watched: No space left on device")
    wrong(inside, inside.cache.path, "unwatched", "No space left on device")
    inside.cache.status = WATCHED


def test_a_watcher_that_died(inside: Inside) -> None:
    inside.cache.status = CacheStatus()
    wrong(inside, inside.cache.path, "unwatched", "the watcher has not started")
    inside.cache.status = WATCHED


def test_indexing_that_is_paused(inside: Inside) -> None:
    inside.writer.progress.paused = "index /i: can't be written: No space left on device"
    wrong(inside, "indexing is paused", "No space left on device")
    inside.writer.progress.paused = ""


def test_a_folder_that_can_not_be_listed(inside: Inside) -> None:
    inside.cache.status = replace(WATCHED, problems=("/c/secret: Permission denied",), unlisted_folders=1)
    wrong(inside, "/c/secret", "Permission denied")
    inside.cache.status = WATCHED


def test_more_folders_than_are_named(inside: Inside) -> None:
    problems = tuple(f"/c/{number}: Permission denied" for number in range(20))
    inside.cache.status = replace(WATCHED, problems=problems, unlisted_folders=5000)
    reasons = inside.health()["reasons"]
    assert reasons[:-1] == list(problems)
    assert "4980 more" in reasons[-1]
    inside.cache.status = WATCHED


def test_a_round_that_takes_longer_than_it_may(inside: Inside) -> None:
    inside.writer.verify_round.late_s = 90_000.0
    wrong(inside, "90000 s", "verify_interval_s")
    inside.writer.verify_round.late_s = 0.0


def test_workers_that_do_not_end(inside: Inside) -> None:
    inside.writer.pool.stuck = [1, 1]
    wrong(inside, "2 workers", "do not end")
    inside.writer.pool.stuck = []


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


def test_a_cache_that_looks_like_blobs_and_gives_none(inside: Inside) -> None:
    inside.cache.status = replace(WATCHED, unread=("2 links, such as blobs/x",), warnings=("2 links",))
    wrong(inside, inside.cache.path, "2 links, such as blobs/x")
    inside.cache.status = replace(WATCHED, warnings=("2 links",))  # and it gives others


def test_all_at_once(inside: Inside) -> None:
    inside.cache.status = replace(WATCHED, stale="its root is not a folder", problems=("/c: ?",), unlisted_folders=1)
    inside.writer.progress.paused = "no worker can be started: Cannot allocate memory"
    assert len(inside.health()["reasons"]) == 3
    inside.cache.status, inside.writer.progress.paused = WATCHED, ""


def test_what_is_polled_is_well(inside: Inside) -> None:
    inside.cache.status = CacheStatus(polled="NFS")  # nobody watches it
    assert inside.health()["state"] == "ok"
    inside.cache.status = WATCHED
