"""That nothing is left to be done is told only when it is so, and of figures that have all of it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import blobs
from chunkd.cli import scan
from chunkd.cli.progress import progress
from chunkd.errors import IndexUnwritable
from chunkd.index.index import Change, Index
from chunkd.ingest import diff
from chunkd.ingest import writer as ingest
from chunkd.ingest.counters import Counters
from chunkd.ingest.writer import Ingest
from chunkd.model import Cause
from chunkd.queries import read
from chunkd.service import live, oneshot
from chunkd.service.live import DaemonAnswers
from chunkd.settings import config
from ingesting import LAYER, World, land, oci, world_in


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


# --- the writer -------------------------------------------------------------------------------------------------------


def test_the_writer_is_busy_while_what_it_took_is_in_no_queue(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []

    def noting(real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **named: Any) -> Any:
            seen.append((world.activity.working(), (not world.activity.idle())))
            return real(*args, **named)

        return noted

    land(oci(world.roots[0], LAYER), LAYER.stored)
    monkeypatch.setattr(ingest, "differences", noting(diff.differences))
    monkeypatch.setattr(Counters, "take", noting(Counters.take))
    world.event(world.roots[0] / "blobs", Cause.CREATED, folder=True)
    world.run()
    assert world.activity.idle()
    assert (False, True) in seen, "a moment at which no queue had it"
    assert {busy for _, busy in seen[:-1]} == {True}
    world.holds_exactly(LAYER)


def test_the_writer_is_busy_if_a_turn_begins_while_that_is_asked(world: World) -> None:
    class Unsettled(dict[Any, Any]):
        def __bool__(self) -> bool:
            world.writer.progress.turns += 1
            return False

    assert world.activity.idle()
    world.writer.remembered.unsettled = Unsettled()
    assert not world.activity.idle()


def test_what_was_ignored_is_work_while_the_disk_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: Index) -> Change:
        raise IndexUnwritable(index.store.path, "No space left on device")

    land(oci(world.roots[0], LAYER).with_name("junk"), b"no digest is its name")
    world.event(world.roots[0] / "blobs", Cause.CREATED, folder=True)
    with monkeypatch.context() as patched:
        patched.setattr(Index, "transaction", refuse)
        world.run_turns(3)
        assert world.writer.progress.paused
        assert not world.activity.idle()
    world.pass_s(60)
    assert world.activity.idle()
    assert list(world.ignored()) == ["blobs/sha256/junk"]


def test_the_writer_is_busy_with_what_only_a_round_of_retries_finds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one whose bytes were read, the place goes; the daemon is killed before the other was hashed."""
    places = [land(oci(world.roots[0], LAYER, name), LAYER.stored) for name in ("one", "two")]
    world.settle()
    world.pool.held = True
    [verified] = [path for path in places if (held := world.held(path)) and held.state == "verified"]
    verified.unlink()
    world.event(verified, Cause.DELETED)
    world.run_turns(1)
    assert world.suspects() == 1
    world.restart()
    seen: list[tuple[bool, bool]] = []
    follow = Ingest._follow  # noqa: SLF001

    def noted(self: Ingest, after_commit: Any) -> None:
        seen.append((bool(after_commit.tasks), self.busy))
        follow(self, after_commit)

    monkeypatch.setattr(Ingest, "_follow", noted)
    world.writer.turn(0.0)
    assert seen == [(True, True)]
    world.run()
    world.holds_exactly(LAYER)


# --- both threads -----------------------------------------------------------------------------------------------------


class Asked:
    """A scanner or a writer that answers in turn."""

    def __init__(self, *busy: bool, turns: tuple[int, int] = (7, 7)) -> None:
        self._busy, self._turns = iter(busy), iter(turns)

    @property
    def busy(self) -> bool:
        return next(self._busy)

    @property
    def turns(self) -> int:
        return next(self._turns)


@pytest.mark.parametrize(
    ("scanner", "writer", "settled"),
    [
        (Asked(False, False), Asked(False), True),
        (Asked(True, False), Asked(False), False),
        (Asked(False, False), Asked(True), False),
        (Asked(False, True), Asked(False), False),  # the writer handed something over meanwhile
        (Asked(False, False, turns=(7, 8)), Asked(False), False),  # and it was listed already, and handed back
    ],
)
def test_two_threads_that_hand_over_to_each_other(scanner: Any, writer: Any, *, settled: bool) -> None:
    assert live.settled(scanner, writer) is settled


def test_a_scan_is_never_asked_for_before_it_has_stirred(world: World) -> None:
    class Stirred(threading.Event):
        def set(self) -> None:
            held.append(world.scanner._lock.locked())  # noqa: SLF001
            super().set()

    held: list[bool] = []
    world.hints.wake_scanner = Stirred()
    world.scanner.request("a test")
    assert held == [True]
    world.run()


@pytest.fixture
def quiet(world: World) -> DaemonAnswers:
    """The answers of a daemon in which nothing happens but by the test."""
    world.settle()
    world.hints.wake_scanner.clear()
    made = DaemonAnswers(world.ingest, world.scanner, watching=False)
    assert made.stats()["settled"]
    return made


def test_figures_that_are_told_as_settled_were_read_after_it(
    world: World, quiet: DaemonAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last commit may come between, and the answer has the figures before it."""

    def read_stats(*args: Any) -> Any:
        world.run()
        return real(*args)

    real = read.read_stats
    monkeypatch.setattr(read, "read_stats", read_stats)
    world.scanner.request("a test")
    world.hints.wake_scanner.clear()
    world.event(land(oci(world.roots[0], LAYER), LAYER.stored))
    assert quiet.stats()["scans"] == 1
    world.event(land(oci(world.roots[0], LAYER, "two"), LAYER.stored))
    stats = quiet.stats()
    assert (stats["settled"], stats["scans"]) == (False, 2)
    assert quiet.stats()["settled"]


def test_what_came_while_they_were_read_is_pending_and_they_are_not_settled(
    world: World, quiet: DaemonAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pending(self: Ingest) -> tuple[int, int]:
        if not self.pool.jobs():
            world.pool.held = True
            world.event(land(oci(world.roots[0], LAYER), LAYER.stored))
            world.run()
        return real(self)

    real = Ingest.pending
    monkeypatch.setattr(Ingest, "pending", pending)
    stats = quiet.stats()
    assert (stats["pending_blobs"], stats["settled"]) == (1, False)
    world.pool.held = False
    world.run()


@pytest.mark.parametrize("when", ["before the counts are copied", "before the figures are read"])
def test_what_the_metrics_count_is_in_their_figures(
    world: World, quiet: DaemonAnswers, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def then(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            world.run()
            return real(*args)

        return run

    if when == "before the counts are copied":
        monkeypatch.setattr(read, "deepcopy", then(copy.deepcopy))
    else:
        monkeypatch.setattr(quiet, "stats", then(quiet.stats))
    world.writer.counters.since_ns = 0
    world.event(land(oci(world.roots[0], LAYER), LAYER.stored))
    lines = quiet.metrics("")[1].decode().splitlines()
    value = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    assert value["chunkd_landing_seconds_count"] <= value["chunkd_read_blobs_total"] <= value["chunkd_layers"] == 1


@pytest.mark.parametrize("at_rest", [True, False])
def test_a_scan_by_hand_tells_what_was_so_before_its_figures_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, at_rest: bool
) -> None:
    order: list[str] = []

    def settled(*threads: Any) -> bool:
        order.append("settled")
        return at_rest and live.settled(*threads)

    def read_stats(*args: Any) -> Any:
        order.append("figures")
        return read.read_stats(*args)

    monkeypatch.setattr(scan, "settled", settled)
    monkeypatch.setattr(scan, "read_stats", read_stats)
    monkeypatch.setattr(scan, "UNSETTLED_S", 0.5)
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "none").touch()
    blobs.write_blob(cache, blobs.gz(blobs.layer()))
    asked = {"caches": (str(cache),), "state_dir": str(tmp_path / "state"), "workers": 1}
    begun = time.monotonic()
    stats = oneshot.scan_here(
        config.load(asked, {"CHUNKD_CONFIG": str(tmp_path / "none")}), {}, replace=False, progress=progress
    )
    assert (stats["settled"], stats["layers"], stats["pending_blobs"]) == (at_rest, 1, 0)
    assert order[-2:] == ["settled", "figures"]
    assert at_rest or time.monotonic() > begun + 0.5
