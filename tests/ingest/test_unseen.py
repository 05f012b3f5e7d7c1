"""What could not be seen when it should have been is looked at again, and nothing is taken for granted meanwhile."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.ingest.places import DOUBT_S, MOST_DOUBT_S, RETRY_S
from chunkd.ingest.writer import RETRY_EVERY_S
from chunkd.model import Cause, Hint, Place
from chunkd.sources.hints import MAX_HINTS
from chunkd.sources.source import Seen
from faulty import FaultySource, Many, as_it_is, faulty
from ingesting import LAYER, OTHER, World, comparisons, distribution, land, logged, looks, oci, world_in, wrong


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def waiting_later(world: World) -> int:
    return len(world.caches[1].hints._later)  # noqa: SLF001


def refusing(real: Callable[[str], Seen], path: str) -> Seen:
    """Of blobs, not of folders."""
    if Path(path).name in (LAYER.hex, OTHER.hex):
        raise PermissionError(13, "Permission denied")
    return real(path)


def answer(source: FaultySource) -> None:
    source.look = as_it_is


# --- a place that can be listed and not looked at ---------------------------------------------------------------------


def test_a_place_that_cannot_be_looked_at_waits_once_however_often_it_is_listed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    source = faulty(world)
    source.look = refusing
    paths = [land(oci(world.roots[0], content), content.stored) for content in (LAYER, OTHER)]
    with comparisons() as asked:
        for _ in range(60):
            world.scan()
    assert waiting_later(world) == 2
    assert len(world.writer.remembered.doubts) == 2
    assert [len(logged(caplog.records, path, logging.WARNING)) for path in paths] == [1, 1]
    assert not asked
    assert world.activity.idle(), "it may be so for ever"
    world.holds_exactly()
    answer(source)
    with looks() as looked:
        world.pass_s(MOST_DOUBT_S)
    assert {hint.place.path for hint in looked} == {
        f"blobs/{content.digest.algorithm}/{content.hex}" for content in (LAYER, OTHER)
    }
    world.rest()
    world.holds_exactly(LAYER, OTHER)
    assert (waiting_later(world), world.writer.remembered.doubts) == (0, {})


@pytest.mark.parametrize("event", [True, False])
def test_the_intervals_at_which_it_is_looked_at_grow(world: World, event: bool) -> None:
    source = faulty(world)
    source.look = refusing
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(path) if event else world.scan()
    after_s: list[float] = []
    begun_s = world.clock_s()
    for _ in range(5 * 3600 // 30):
        with looks() as looked:
            world.pass_s(30)
        after_s += [world.clock_s() - begun_s] * len(looked)
    between_s = [round(b - a) for a, b in zip([0.0, *after_s], after_s, strict=False)]
    assert between_s == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert (between_s[0], between_s[-1]) == (DOUBT_S, MOST_DOUBT_S)


def test_an_event_begins_them_anew(world: World) -> None:
    source = faulty(world)
    source.look = refusing
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    for _ in range(10):
        world.scan()
    assert set(world.writer.remembered.doubts.values()) == {MOST_DOUBT_S}
    world.heard(path)
    assert set(world.writer.remembered.doubts.values()) == {DOUBT_S}
    answer(source)
    world.pass_s(DOUBT_S)
    world.holds_exactly(LAYER)


def test_more_of_them_than_the_queue_holds_cause_no_scan(world: World) -> None:
    def look(path: str) -> Seen:
        raise PermissionError(13, "Permission denied", path)

    source = Many(str(world.roots[0]), [f"{number:064x}" for number in range(MAX_HINTS + 64)], look)
    world.sources[source.path] = source
    world.restart()
    with comparisons() as asked:
        world.scan()
    assert waiting_later(world) == MAX_HINTS
    assert world.activity.idle()
    assert world.writer.scans.finished == 1
    assert not asked
    world.holds_exactly()


# --- two hints for one place ------------------------------------------------------------------------------------------


def test_a_hint_that_is_merged_asks_for_all_that_either_asked_for() -> None:
    place = Place(1, "x")
    retry = Hint(place, Cause.RETRY, force=True)
    created = Hint(place, Cause.CREATED, by_event=True, folder=True)
    assert retry.merged(created) == Hint(place, Cause.CREATED, by_event=True, force=True, folder=True)
    assert created.merged(retry) == Hint(place, Cause.CREATED, by_event=True, force=True, folder=True)
    assert retry.merged(Hint(place, Cause.LISTED)) == retry


@pytest.mark.parametrize("order", ["retry first", "event first", "retry when its time comes", "retry waits for later"])
def test_a_retry_does_not_take_away_that_a_folder_was_made(world: World, order: str) -> None:
    """The push that follows is in a folder that is not watched: no event tells of it."""
    path = land(distribution(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    world.holds_exactly(failed=[LAYER.digest])
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    hints, retry = world.caches[1].hints, Hint(world.place(path), Cause.RETRY, force=True)
    if order == "retry first":
        hints.put(retry)
    elif order == "retry waits for later":
        hints.put_later(retry, 5, waited_for=False)
    elif order == "retry when its time comes":
        world.ahead_s += RETRY_S[0] + RETRY_EVERY_S
    world.event(path.parent, Cause.CREATED, folder=True)
    if order == "event first":
        hints.put(retry)
    world.run()
    assert not world.activity.idle(), "it is waited for"
    path.write_bytes(LAYER.stored)
    world.rest()
    world.holds_exactly(LAYER)


# --- what no event told of --------------------------------------------------------------------------------------------


def test_data_that_is_replaced_in_its_folder_is_seen_by_the_next_scan(world: World) -> None:
    path = land(distribution(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    world.scan(verify=True)
    before = len(world.pool.given)
    world.scan()
    assert len(world.pool.given) == before, "it is the same"
    land(path, wrong(LAYER))
    world.scan()
    assert world.pool.given[before:] != []
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


# --- an observation and a finding -------------------------------------------------------------------------------------


def being_read(world: World, path: Path) -> None:
    world.pool.held = True
    world.heard(path)
    assert [job.digest for job in world.pool.jobs()] == [LAYER.digest]


def test_a_finding_is_not_applied_with_an_observation_from_before_it(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    being_read(world, path)
    world.event(path, Cause.WRITTEN)
    cache = world.caches[1]
    while cache.step():
        pass
    [observed] = cache.observations
    land(path, wrong(LAYER))
    world.pool.held = False
    for _ in range(20):  # the cache's thread does nothing meanwhile
        world.writer.turn(0)
    assert world.pool.jobs() == []
    assert world.counted() == set()
    assert world.activity.working()
    assert world.writer.pending()[0] == 1
    assert observed.at_ns < time.monotonic_ns()
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.parametrize("change", ["replaced", "rewritten", "removed", "away"])
def test_what_changes_between_the_workers_end_and_the_observation(world: World, change: str) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    being_read(world, path)
    world.pool.read()
    world.pool.held = False
    world.writer.turn(0)
    assert world.counted() == set()
    if change == "replaced":
        land(path, wrong(LAYER))
    elif change == "rewritten":
        path.write_bytes(wrong(LAYER))
    elif change == "removed":
        path.unlink()
    else:
        world.roots[0].rename(world.folder / "away")
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest] if change in ("replaced", "rewritten") else [])
    assert world.writer.pending() == (0, 0)
    if change == "away":
        (world.folder / "away").rename(world.roots[0])
        world.pass_s(6)
        world.rest()
        world.holds_exactly(LAYER)
