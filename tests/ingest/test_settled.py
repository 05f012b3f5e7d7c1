"""That nothing is left to be done is told only when it is so, and of figures that have all of it."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import blobs
from chunkd.cli.progress import progress
from chunkd.errors import IndexUnwritable
from chunkd.index.index import Change, Index
from chunkd.ingest.writer import Writer
from chunkd.model import Cause, Digest
from chunkd.queries import read
from chunkd.service import live, oneshot
from chunkd.service.live import DaemonAnswers
from chunkd.settings import config
from chunkd.sources.activity import Activity, Token
from ingesting import LAYER, World, land, oci, world_in


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


# --- the writer -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def idle_moments(world: World) -> Iterator[list[tuple[set[Digest], int]]]:
    """What is counted, and how many digests need a rehash, each time that nothing is left to be done any longer."""
    seen: list[tuple[set[Digest], int]] = []
    real = Activity.give_back

    def give_back(activity: Activity, token: Token) -> None:
        real(activity, token)
        if activity.idle():
            seen.append((world.counted(), world.suspects()))

    with mock.patch.object(Activity, "give_back", give_back):
        yield seen


@pytest.mark.parametrize("how", ["an event", "a folder", "a scan", "a doubt"])
def test_there_is_work_while_what_was_taken_is_in_no_queue(world: World, how: str) -> None:
    """From the first that is known of a blob until it is counted there is no moment at which nothing is left."""
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    with idle_moments(world) as moments:
        if how == "an event":
            world.event(path)
        elif how == "a folder":
            world.event(world.roots[0] / "blobs", Cause.CREATED, folder=True)
        elif how == "a scan":
            world.scanner.request("a test")
        else:
            world.caches[1].hints.doubt("a test")
        assert not world.activity.idle()
        world.run()
    assert moments == [({LAYER.digest}, 0)]
    assert world.activity.idle()
    world.holds_exactly(LAYER)


def test_there_is_work_while_a_place_goes_and_another_takes_over(world: World) -> None:
    first, second = (land(oci(world.roots[0], LAYER, name), LAYER.stored) for name in ("one", "two"))
    world.settle()
    verified = first if world.held(first).state == "verified" else second  # type: ignore[union-attr]
    verified.unlink()
    with idle_moments(world) as moments:
        world.heard(verified, Cause.DELETED)
    assert moments == [({LAYER.digest}, 0)]
    (second if verified == first else first).write_bytes(b"x")
    with idle_moments(world) as moments:
        world.scan(verify=True)
        world.rest()
    assert moments
    assert {(frozenset(counted), suspects) for counted, suspects in moments} == {(frozenset(), 0)}


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


def test_the_writer_is_busy_with_what_only_a_round_of_retries_finds(world: World) -> None:
    """Of the one whose bytes were read, the place goes; the daemon is killed before the other was hashed."""
    places = [land(oci(world.roots[0], LAYER, name), LAYER.stored) for name in ("one", "two")]
    world.settle()
    world.pool.held = True
    [verified] = [path for path in places if (held := world.held(path)) and held.state == "verified"]
    verified.unlink()
    world.heard(verified, Cause.DELETED)
    assert world.suspects() == 1
    world.restart()
    with idle_moments(world) as moments:
        world.scanner.request("the start")
        world.run()
    assert moments == [({LAYER.digest}, 0)]
    world.holds_exactly(LAYER)


# --- other threads ----------------------------------------------------------------------------------------------------


def test_a_scan_that_was_asked_for_is_work_at_once(world: World) -> None:
    number = world.scanner.request("a test")
    assert not world.activity.idle()
    world.caches[1].step()  # its thread takes the request
    world.caches[1].step()
    assert world.activity.working()
    world.run()
    assert world.writer.scans.finished == number
    assert world.activity.idle()


@pytest.fixture
def quiet(world: World) -> DaemonAnswers:
    """The answers of a daemon in which nothing happens but by the test."""
    world.settle()
    made = DaemonAnswers(world.writer, world.scanner)
    assert made.stats()["settled"]
    return made


def test_figures_that_are_told_as_settled_were_read_after_it(
    world: World, quiet: DaemonAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last commit may come between, and the answer has the figures before it."""

    def read_stats(*args: Any) -> Any:
        if when == "before":
            world.run()
        stats = real(*args)
        world.run()
        return stats

    real = read.read_stats
    monkeypatch.setattr(live, "read_stats", read_stats)
    for number, when in enumerate(("before", "after"), 2):
        world.scanner.request("a test")
        world.event(land(oci(world.roots[0], LAYER, when), LAYER.stored))
        stats = quiet.stats()
        assert (stats["settled"], stats["scans"]) == (False, number - 1)
        stats = quiet.stats()
        assert (stats["settled"], stats["scans"], stats["layers"]) == (True, number, 1)


def test_what_came_while_they_were_read_is_pending_and_they_are_not_settled(
    world: World, quiet: DaemonAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pending(self: Writer) -> tuple[int, int]:
        if not self.pool.jobs():
            world.pool.held = True
            world.event(land(oci(world.roots[0], LAYER), LAYER.stored))
            world.run()
        return real(self)

    real = Writer.pending
    monkeypatch.setattr(Writer, "pending", pending)
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
        monkeypatch.setattr(live, "deepcopy", then(copy.deepcopy))
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
    real_idle, real_read = Activity.idle, read.read_stats

    def idle(activity: Activity, but: Collection[int] = ()) -> bool:
        order.append("settled")
        return at_rest and real_idle(activity, but)

    def read_stats(*args: Any) -> Any:
        order.append("figures")
        return real_read(*args)

    monkeypatch.setattr(Activity, "idle", idle)
    monkeypatch.setattr(oneshot, "read_stats", read_stats)
    monkeypatch.setenv("CHUNKD_TIMING", json.dumps({"unsettled_s": 0.5}))
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
    read_at = order.index("figures")  # when it ends, the service asks once more, for the index
    assert order[read_at - 1] == "settled"
    assert at_rest or time.monotonic() > begun + 0.5
