"""What is done about one place: DESIGN.md's rules 3 and 4, one test each."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blobs
from chunkd.ingest import reconcile
from chunkd.model import Cause, Digest
from chunkd.sources.beneath import Beneath
from chunkd.sources.source import Seen
from faulty import as_it_is, faulty
from ingesting import (
    BROKEN,
    LAYER,
    LIKE_IT,
    OTHER,
    PLAIN,
    Content,
    World,
    distribution,
    land,
    logged,
    looks,
    oci,
    touch,
    world_in,
    write_in_place,
    wrong,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path, "one", "two") as made:
        yield made


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as at rest at once: what a read says of a file's ctime is believed however young it is."""
    monkeypatch.setattr(reconcile, "CTIME_TICK_NS", 0)


def counted_at(world: World, path: Path, content: Content = LAYER) -> Path:
    """A blob that is counted for its bytes at `path`, with a mark that a later look finds the same."""
    land(path, content.stored)
    world.heard(path)
    world.scan(verify=True)
    held = world.held(path)
    assert held is not None
    assert held.state == "verified"
    return path


# --- landing and leaving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [oci, distribution, lambda root, content: root / content.hex])
def test_a_blob_counts_from_its_event_on_and_until_it_is_removed(
    world: World, at: Callable[[Path, Content], Path]
) -> None:
    path = land(at(world.roots[0], LAYER), LAYER.stored)
    world.heard(path)
    world.holds_exactly(LAYER)
    path.unlink()
    world.heard(path, Cause.DELETED)
    world.holds_exactly()


def test_blobs_that_share_chunks_come_and_go_in_any_order(world: World) -> None:
    paths = {content: land(oci(world.roots[0], content), content.stored) for content in (LAYER, LIKE_IT, PLAIN, OTHER)}
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT, PLAIN, OTHER)
    for gone, left in ((LIKE_IT, (LAYER, PLAIN, OTHER)), (OTHER, (LAYER, PLAIN)), (LAYER, (PLAIN,)), (PLAIN, ())):
        paths[gone].unlink()
        world.settle()
        world.holds_exactly(*left)


def test_the_same_bytes_named_by_both_algorithms_are_two_blobs(world: World) -> None:
    root = world.roots[0]
    for algorithm in ("sha256", "sha512"):
        digest = blobs.digest_of(OTHER.stored, algorithm)
        land(root / "blobs" / algorithm / digest.hex, OTHER.stored)
    world.settle()
    assert (world.totals.others, world.totals.stored_bytes) == (2, 2 * len(OTHER.stored))


def test_no_scan_reads_a_counted_blob_again(world: World, at_rest: None) -> None:  # noqa: ARG001
    counted_at(world, oci(world.roots[0], LAYER))
    before = len(world.pool.given)
    world.scan()
    world.scan(verify=True)
    world.restart()
    world.scan()
    world.scan(verify=True)
    assert (before, world.pool.given) == (1, [])


# --- several places ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_rest")
def test_a_second_place_is_not_read_until_it_is_needed(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    second = land(distribution(world.roots[1], LAYER), LAYER.stored)
    world.heard(second)
    assert len(world.pool.given) == 1
    assert world.held(second).state == "untested"  # type: ignore[union-attr]
    first.unlink()
    world.heard(first, Cause.DELETED)
    assert world.pool.hashed_again == [LAYER.digest]
    assert world.held(second).state == "verified"  # type: ignore[union-attr]
    world.holds_exactly(LAYER)


def test_the_next_place_is_subtracted_when_it_holds_other_bytes(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    second = land(oci(world.roots[1], LAYER), wrong(LAYER))
    world.heard(second)
    world.holds_exactly(LAYER)
    first.unlink()
    world.heard(first, Cause.DELETED)
    world.holds_exactly()
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_each_place_is_tried_until_one_holds_the_bytes(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    for number in range(3):
        world.heard(land(oci(world.roots[1], LAYER, f"bad{number}"), wrong(LAYER)))
    good = land(oci(world.roots[1], LAYER, "good"), LAYER.stored)
    world.heard(good)
    first.unlink()
    world.heard(first, Cause.DELETED)
    world.holds_exactly(LAYER)
    assert world.held(good).state == "verified"  # type: ignore[union-attr]


def test_the_next_place_may_be_gone_as_well(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    others = [land(oci(world.roots[1], LAYER, f"r{number}"), LAYER.stored) for number in range(3)]
    for path in others:
        world.heard(path)
    for path in (first, *others[:2]):
        path.unlink()
    world.heard(first, Cause.DELETED)
    world.holds_exactly(LAYER)
    assert world.held(others[2]).state == "verified"  # type: ignore[union-attr]
    others[2].unlink()
    world.heard(others[2], Cause.DELETED)
    world.holds_exactly()
    world.settle()
    world.holds_exactly()


@pytest.mark.parametrize("good", [True, False])
def test_a_place_that_was_to_be_hashed_is_hashed_after_a_restart(world: World, good: bool) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    second = land(oci(world.roots[1], LAYER), LAYER.stored if good else wrong(LAYER))
    world.heard(second)
    world.pool.held = True
    first.unlink()
    world.heard(first, Cause.DELETED)
    assert world.suspects() == 1
    world.holds_exactly(LAYER)
    world.restart()
    world.run()
    assert world.suspects() == 0
    assert (LAYER.digest in world.counted()) == good


def test_a_place_that_was_to_be_hashed_and_goes_before_a_restart(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER))
    second = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.heard(second)
    world.pool.held = True
    first.unlink()
    world.heard(first, Cause.DELETED)
    second.unlink()
    world.heard(second, Cause.DELETED)
    world.restart()
    world.run()
    world.holds_exactly()


@pytest.mark.usefixtures("at_rest")
def test_a_hard_link_of_a_verified_file_is_never_read(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER, "a"))
    second = oci(world.roots[0], LAYER, "b")
    second.parent.mkdir(parents=True)
    os.link(first, second)
    world.heard(second, Cause.CREATED)
    assert world.held(second).state == "verified"  # type: ignore[union-attr]
    first.unlink()
    world.heard(first, Cause.DELETED)
    assert len(world.pool.given) == 1
    world.holds_exactly(LAYER)


def test_a_hard_link_of_a_young_file_takes_over_unread(world: World) -> None:
    first = land(oci(world.roots[0], LAYER, "a"), LAYER.stored)
    second = oci(world.roots[0], LAYER, "b")
    second.parent.mkdir(parents=True)
    world.heard(first)
    os.link(first, second)
    world.heard(second, Cause.CREATED)
    first.unlink()
    world.heard(first, Cause.DELETED)
    assert len(world.pool.given) == 1
    assert world.held(second).state == "verified"  # type: ignore[union-attr]
    world.holds_exactly(LAYER)


@pytest.mark.usefixtures("at_rest")
def test_a_hard_link_falls_with_the_file_that_it_names(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER, "a"))
    second = oci(world.roots[0], LAYER, "b")
    second.parent.mkdir(parents=True)
    os.link(first, second)
    world.heard(second, Cause.CREATED)
    first.write_bytes(wrong(LAYER) + b"and more")
    world.heard(first, Cause.WRITTEN)  # the other name of the file has no event of its own
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.usefixtures("at_rest")
def test_a_change_that_hid_behind_a_link_is_found_by_comparing(world: World) -> None:
    """Linking and unlinking change the ctime as writing does; nobody saw which it was."""
    first = counted_at(world, oci(world.roots[0], LAYER, "a"))
    second = oci(world.roots[0], LAYER, "b")
    second.parent.mkdir(parents=True)
    with first.open("r+b") as file:
        file.write(b"x")
    os.link(first, second)
    first.unlink()
    world.scan()
    world.scan(verify=True)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.usefixtures("at_rest")
def test_the_links_of_one_file_are_hashed_again_once(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER, "a"))
    for name in "bcdefgh":
        link = oci(world.roots[0], LAYER, name)
        link.parent.mkdir(parents=True)
        os.link(first, link)
        world.heard(link, Cause.CREATED)
    assert len(world.pool.given) == 1
    world.scan(verify=True)
    assert len(world.pool.given) == 2
    world.scan(verify=True)
    assert len(world.pool.given) == 2
    world.holds_exactly(LAYER)


@pytest.mark.usefixtures("at_rest")
def test_an_event_of_one_place_is_heard_while_another_is_hashed_again(world: World) -> None:
    first = counted_at(world, oci(world.roots[0], LAYER, "a"))
    second = oci(world.roots[0], LAYER, "b")
    second.parent.mkdir(parents=True)
    os.link(first, second)
    world.heard(second, Cause.CREATED)
    world.pool.held = True
    land(first, LAYER.stored)
    world.heard(first)
    land(second, wrong(LAYER))
    world.heard(second)
    world.pool.held = False
    world.run()
    first.unlink()
    world.heard(first, Cause.DELETED)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_a_good_and_a_bad_place_land_at_once(world: World) -> None:
    bad = land(oci(world.roots[0], LAYER), wrong(LAYER))
    good = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.event(bad)
    world.event(good)
    world.run()
    world.holds_exactly(LAYER)
    good.unlink()
    world.heard(good, Cause.DELETED)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])
    bad.unlink()
    world.heard(bad, Cause.DELETED)
    world.holds_exactly()


def test_a_blob_moves_from_one_cache_to_another(world: World) -> None:
    first, second = oci(world.roots[0], LAYER), distribution(world.roots[1], LAYER)
    counted_at(world, first)
    second.parent.mkdir(parents=True)
    first.rename(second)
    world.event(first, Cause.MOVED_OUT)
    world.event(second)
    world.run()
    world.holds_exactly(LAYER)
    assert world.pool.decoded[-1:] == [LAYER.digest]


# --- a counted name that an event names -------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_rest")
def test_an_event_on_a_counted_name_hashes_it_again_and_decodes_nothing(world: World) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    land(path, LAYER.stored)
    world.heard(path)
    assert (world.pool.decoded, world.pool.hashed_again) == ([LAYER.digest], [LAYER.digest])
    world.holds_exactly(LAYER)


@pytest.mark.usefixtures("at_rest")
def test_an_event_without_a_change_reads_nothing(world: World) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    world.heard(path, Cause.WRITTEN)
    assert len(world.pool.given) == 1


def test_figures_stand_while_a_counted_name_is_hashed_again(world: World) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    world.pool.held = True
    land(path, wrong(LAYER))
    world.heard(path)
    assert world.pool.hashed_again[-1:] == [LAYER.digest]
    world.holds_exactly(LAYER)
    assert world.writer.pending() == (0, 0)
    world.pool.held = False
    world.run()
    world.holds_exactly()
    assert world.writer.pending() == (1, len(LAYER.stored))
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])
    assert world.writer.pending() == (0, 0)


@pytest.mark.usefixtures("at_rest")
def test_without_an_event_a_change_is_found_by_verifying(world: World) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    land(path, wrong(LAYER))
    world.scan()
    world.holds_exactly(LAYER)
    world.scan(verify=True)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.parametrize("event", [True, False])
def test_a_blob_that_goes_and_comes_while_it_is_hashed_again_is_counted(world: World, event: bool) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    world.pool.held = True
    land(path, LAYER.stored)
    world.heard(path)
    path.unlink()
    world.heard(path, Cause.DELETED)
    world.holds_exactly()
    land(path, LAYER.stored)
    world.heard(path) if event else world.scan()
    world.pool.held = False
    world.run()
    world.holds_exactly(LAYER)


@pytest.mark.parametrize("event", [True, False])
def test_bytes_that_are_replaced_while_a_counted_name_is_hashed_are_read(world: World, event: bool) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER))
    world.pool.held = True
    land(path, wrong(LAYER))
    world.heard(path)
    world.pool.read()
    land(path, LAYER.stored)
    if event:
        world.heard(path)
    world.pool.held = False
    world.run()
    world.pass_s(1)
    world.holds_exactly(LAYER)


def test_a_change_while_a_large_blob_was_read_is_read_however_long_ago_it_was(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    land(path, LAYER.stored)
    world.ahead_s += 60
    world.pool.held = False
    world.run()
    world.pass_s(0.1)
    world.holds_exactly(LAYER)


def test_a_bad_place_of_an_undecodable_blob_is_not_waited_for(world: World) -> None:
    world.heard(land(oci(world.roots[0], BROKEN), BROKEN.stored))
    for event in (True, False):
        path = write_in_place(oci(world.roots[1], BROKEN), wrong(BROKEN))
        world.heard(path) if event else world.scan()
        world.pass_s(11)
        assert world.activity.idle()
        path.unlink()
        world.scan()


def test_a_bad_place_that_was_waited_for_when_the_blob_failed_for_good(world: World) -> None:
    bad = write_in_place(oci(world.roots[1], BROKEN), wrong(BROKEN))
    world.heard(bad)
    world.heard(land(oci(world.roots[0], BROKEN), BROKEN.stored))
    assert not world.activity.idle()
    world.pass_s(11)
    assert world.activity.idle()
    assert world.writer.pending() == (0, 0)
    world.holds_exactly(failed=[BROKEN.digest])


# --- in place, in pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [True, False])
def test_a_blob_that_is_written_in_place_counts_when_it_is_whole(world: World, events: bool) -> None:
    path = write_in_place(oci(world.roots[0], LAYER), b"")
    world.heard(path, Cause.CREATED)
    for end in (100, 1000):
        path.write_bytes(LAYER.stored[:end])
        world.pass_s(1)
        before = len(world.pool.given)
        world.pass_s(1)
        world.pass_s(1)
        world.holds_exactly()
        assert world.writer.pending() == (1, end)
        assert len(world.pool.given) <= before + 1, "it is read only once it has changed"
    path.write_bytes(LAYER.stored)
    if events:
        world.heard(path, Cause.WRITTEN)
    else:
        world.pass_s(4)
        world.pass_s(4)
    world.holds_exactly(LAYER)
    assert world.writer.pending() == (0, 0)
    assert world.activity.idle()


@pytest.mark.parametrize("event", [True, False])
@pytest.mark.parametrize("young", [True, False])
def test_a_write_that_ends_while_its_beginning_is_read_counts_soon(
    world: World, event: bool, young: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not young:
        monkeypatch.setattr(reconcile, "CTIME_TICK_NS", 0)
    path = write_in_place(oci(world.roots[0], OTHER), OTHER.stored[:9])
    world.pool.held = True
    world.heard(path, Cause.CREATED)
    world.pool.read()
    touch(path)
    path.write_bytes(OTHER.stored)
    if event:
        world.event(path, Cause.WRITTEN)
        world.writer.turn(0)
    world.pool.held = False
    world.run()
    world.pass_s(0.1)
    world.pass_s(0.1)
    world.holds_exactly(OTHER)


@pytest.mark.usefixtures("at_rest")
def test_a_change_while_it_was_read_is_not_missed_though_the_event_came_then(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    touch(path)
    path.write_bytes(wrong(LAYER))
    world.event(path, Cause.WRITTEN)
    world.writer.turn(0)
    world.pool.held = False
    world.run()
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_a_young_file_that_is_overwritten_while_it_was_read(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    path.write_bytes(wrong(LAYER))
    world.event(path, Cause.WRITTEN)
    world.writer.turn(0)
    world.pool.held = False
    world.run()
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_bytes_that_do_not_match_fail_ten_seconds_after_their_last_change(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.heard(path)
    for _ in range(3):
        world.pass_s(3)
    world.holds_exactly()
    assert world.writer.pending() == (1, len(LAYER.stored))
    world.pass_s(3)
    world.holds_exactly(failed=[LAYER.digest])
    assert world.totals.failed_bytes == len(LAYER.stored)
    assert world.activity.idle()


@pytest.mark.parametrize("kind", ["undecodable", "unreadable"])
def test_what_took_the_place_of_a_file_that_did_not_match_is_pending_no_longer(world: World, kind: str) -> None:
    """No event tells of it: it is found by the look that was left for the first."""
    path = oci(world.roots[0], BROKEN)
    world.heard(land(path, wrong(BROKEN)))
    assert world.writer.pending() == (1, len(BROKEN.stored))
    land(path, BROKEN.stored)
    if kind == "unreadable":
        world.pool.deaths[BROKEN.digest] = 2
    world.rest()
    assert world.writer.pending() == (0, 0)
    world.holds_exactly(failed=[BROKEN.digest])


def test_what_was_read_when_its_root_went_away_is_pending_no_longer(world: World) -> None:
    path = oci(world.roots[0], LAYER)
    world.heard(land(path, wrong(LAYER)))
    world.pool.held = True
    world.event(path, Cause.WRITTEN)
    world.run()
    world.roots[0].rename(world.folder / "away")
    world.pool.held = False
    world.run()
    assert world.activity.idle()
    assert world.writer.pending() == (0, 0)


def test_an_old_file_that_does_not_match_is_watched_as_a_young_one_is(world: World) -> None:
    """Its own time says nothing: its file system's clock may be behind ours."""
    land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.ahead_s = 20
    world.scan()
    world.holds_exactly()
    world.pass_s(9)
    world.holds_exactly()
    world.pass_s(2)
    world.holds_exactly(failed=[LAYER.digest])


def test_a_failed_blob_is_tried_again_after_1_10_60_minutes_and_then_daily(world: World) -> None:
    land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    for minutes in (1, 10, 60, 1440, 1440):
        before = len(world.pool.given)
        world.pass_s(minutes * 60 - 40)
        assert len(world.pool.given) == before, minutes
        world.pass_s(80)
        assert len(world.pool.given) == before + 1, minutes


def test_several_bad_places_of_one_blob_are_one_failure(world: World) -> None:
    for number in range(4):
        land(oci(world.roots[0], LAYER, f"r{number}"), wrong(LAYER))
    world.settle()
    assert world.failed()[LAYER.digest].tries == 1
    world.pass_s(80)
    assert world.failed()[LAYER.digest].tries == 2


def test_a_failed_blob_is_tried_again_on_any_event_and_when_its_file_changed(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    before = len(world.pool.given)
    world.scan()
    world.scan(verify=True)
    assert len(world.pool.given) == before
    world.heard(path, Cause.WRITTEN)
    assert len(world.pool.given) == before + 1
    land(path, LAYER.stored)
    world.heard(path)
    world.holds_exactly(LAYER)


def test_a_failed_blob_that_was_put_right_while_nobody_watched_counts_after_the_next_scan(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    land(path, LAYER.stored)  # the event is lost
    world.scan()
    world.holds_exactly(LAYER)
    land(path, wrong(LAYER))
    world.heard(path)
    world.settle()
    world.stop()
    land(path, LAYER.stored)
    world.start()
    world.scan()
    world.holds_exactly(LAYER)


def test_a_failed_blob_counts_when_a_good_place_lands(world: World) -> None:
    land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    good = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.scan()
    world.holds_exactly(LAYER)
    good.unlink()
    world.scan()
    world.holds_exactly(failed=[LAYER.digest])


def test_a_failure_is_forgotten_with_its_last_place(world: World) -> None:
    paths = [land(oci(root, content), data) for root in world.roots for content, data in (
        (LAYER, wrong(LAYER)), (BROKEN, BROKEN.stored))]  # fmt: skip
    world.settle()
    world.holds_exactly(failed=[LAYER.digest, BROKEN.digest])
    for path in paths[:2]:
        path.unlink()
        world.heard(path, Cause.DELETED)
    world.holds_exactly(failed=[LAYER.digest, BROKEN.digest])
    for path in paths[2:]:
        path.unlink()
    world.scan()
    world.holds_exactly()


# --- bytes that match and do not decode -------------------------------------------------------------------------------


def test_an_undecodable_blob_is_failed_for_good(world: World) -> None:
    path = land(oci(world.roots[0], BROKEN), BROKEN.stored)
    world.settle()
    world.holds_exactly(failed=[BROKEN.digest])
    assert len(world.pool.given) == 1
    world.heard(path, Cause.WRITTEN)
    land(path, BROKEN.stored)
    world.heard(path)
    world.heard(land(oci(world.roots[1], BROKEN), BROKEN.stored))
    world.pass_s(90000)
    world.scan(verify=True)
    world.restart()
    world.scan()
    assert len(world.pool.given) == 0
    world.scan(retry_failed=True)
    assert set(world.pool.decoded) == {BROKEN.digest}
    world.holds_exactly(failed=[BROKEN.digest])


def test_an_undecodable_blob_is_tried_again_by_another_decoder(world: World) -> None:
    land(oci(world.roots[0], BROKEN), BROKEN.stored)
    world.settle()
    world.restart(decoder="2")
    world.scan()
    assert world.pool.decoded == [BROKEN.digest]
    world.holds_exactly(failed=[BROKEN.digest])


# --- gone, replaced, changed while it is read -------------------------------------------------------------------------


def test_a_place_that_is_put_right_while_its_wrong_bytes_are_read_is_not_taken_for_bad(world: World) -> None:
    one = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    two = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.settle()
    land(one, wrong(LAYER))
    world.pool.held = True
    world.heard(one)
    world.pool.read()
    land(one, LAYER.stored)
    world.event(one)
    world.pool.held = False
    world.run()
    world.holds_exactly(LAYER)
    two.unlink()
    world.heard(two, Cause.DELETED)
    world.holds_exactly(LAYER)


def test_a_blob_that_vanishes_while_it_is_read_leaves_nothing(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    path.unlink()
    world.pool.held = False
    world.run()
    world.holds_exactly()
    path = land(path, LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    path.unlink()
    world.pool.held = False
    world.run()
    world.holds_exactly()
    assert world.activity.idle()
    assert world.held(path) is None


@pytest.mark.parametrize("good", [True, False])
def test_a_blob_that_is_replaced_while_it_is_read_is_read_again(world: World, good: bool) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    land(path, LAYER.stored if good else wrong(LAYER))
    world.pool.held = False
    world.run()
    assert len(world.pool.given) == 2
    world.pass_s(11)
    world.holds_exactly(*([LAYER] if good else []), failed=[] if good else [LAYER.digest])


@pytest.mark.usefixtures("at_rest")
def test_metadata_that_change_while_it_is_read_cost_one_hash_at_most(world: World) -> None:
    """containerd: utimes and chmod up to 30 ms after the rename."""
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.read()
    touch(path)
    os.utime(path, (1, 1))
    world.pool.held = False
    world.run()
    world.holds_exactly(LAYER)
    assert (world.pool.decoded, world.pool.hashed_again) == ([LAYER.digest], [LAYER.digest])
    world.scan(verify=True)
    assert len(world.pool.given) == 2


# --- strange things ---------------------------------------------------------------------------------------------------


def become(path: Path, kind: str, world: World) -> None:
    if kind == "a symbolic link":
        real = world.folder / "elsewhere"
        real.write_bytes(LAYER.stored)
        path.symlink_to(real)
    elif kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()


STRANGE = ["a symbolic link", "a FIFO", "a folder"]


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("event", [True, False])
@pytest.mark.parametrize("at", [oci, distribution, lambda root, content: root / content.hex])
def test_what_is_no_regular_file_is_ignored_once(
    world: World, kind: str, event: bool, at: Callable[[Path, Content], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = at(world.roots[0], LAYER)
    path.parent.mkdir(parents=True, exist_ok=True)
    become(path, kind, world)
    if event:
        world.heard(path, Cause.CREATED)
    for _ in range(3):
        world.scan()
    world.restart()
    world.scan()
    world.holds_exactly()
    assert world.ignored() == {str(path.relative_to(world.roots[0])): kind}
    assert len(logged(caplog.records, path)) == 1
    path.rmdir() if kind == "a folder" else path.unlink()
    world.settle()
    assert world.ignored() == {}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("event", [True, False])
@pytest.mark.parametrize("at", [oci, distribution, lambda root, content: root / content.hex])
def test_a_counted_blob_that_becomes_something_else_is_subtracted(
    world: World, kind: str, event: bool, at: Callable[[Path, Content], Path]
) -> None:
    path = counted_at(world, at(world.roots[0], LAYER))
    path.unlink()
    become(path, kind, world)
    if event:
        world.heard(path, Cause.CREATED)
    else:
        world.scan()
    world.holds_exactly()
    assert list(world.ignored().values()) == [kind]
    path.rmdir() if kind == "a folder" else path.unlink()
    land(path, LAYER.stored)
    world.scan()
    world.holds_exactly(LAYER)
    assert world.ignored() == {}


def test_a_name_that_is_no_digest_is_ignored_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    blob = land(oci(world.roots[0], LAYER, "repository"), LAYER.stored)
    strange = write_in_place(blob.with_name("README"), b"?")
    for _ in range(3):
        world.scan()
    assert list(world.ignored().values()) == ["not the name of a digest"]
    assert len(logged(caplog.records, strange)) == 1
    before = len(world.pool.given)
    strange.unlink()
    world.scan()
    assert world.ignored() == {}
    assert len(world.pool.given) == before
    world.holds_exactly(LAYER)


def test_what_is_ignored_somewhere_makes_no_scan_look_at_every_blob(world: World) -> None:
    for content in (LAYER, LIKE_IT, PLAIN, OTHER):
        land(oci(world.roots[0], content), content.stored)
    write_in_place(world.roots[0] / "blobs" / "sha256" / "README", b"?")
    world.settle()
    with looks() as looked:
        world.scan()
    assert looked == []


@pytest.mark.parametrize("kind", ["a file", "a symbolic link"])
def test_a_folder_of_blobs_that_becomes_something_else_is_empty(world: World, kind: str) -> None:
    path = counted_at(world, oci(world.roots[0], LAYER, "repository"))
    repository = world.roots[0] / "repository"
    repository.rename(world.folder / "moved")
    if kind == "a file":
        repository.write_bytes(b"")
    else:
        repository.symlink_to(world.folder / "moved")
    world.scan()
    world.holds_exactly()
    assert not path.is_symlink()


def test_a_file_that_cannot_be_read_is_failed_with_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(below: Beneath, path: str, flags: int) -> int:  # noqa: ARG001
        raise PermissionError(13, "Permission denied", path)

    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    with monkeypatch.context() as patched:
        patched.setattr(Beneath, "open", refuse)
        world.settle()
        world.holds_exactly(failed=[LAYER.digest])
        assert world.failed()[LAYER.digest].reason == "can't be read: Permission denied"
    world.pass_s(80)
    world.holds_exactly(LAYER)
    with monkeypatch.context() as patched:
        patched.setattr(Beneath, "open", refuse)
        land(path, LAYER.stored)
        world.heard(path)
        world.holds_exactly(LAYER)  # its figures stand until it is known that they should not
    land(path, wrong(LAYER))
    world.pass_s(61)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_a_place_that_cannot_be_looked_at_proves_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    source = faulty(world)
    path = counted_at(world, oci(world.roots[0], LAYER))

    def refuse(look: Callable[[str], Seen], what: str) -> Seen:
        if what == world.place(path).path:
            raise PermissionError(13, "Permission denied")
        return look(what)

    source.look = refuse
    for _ in range(3):
        world.heard(path, Cause.DELETED)
        world.pass_s(61)
    world.holds_exactly(LAYER)
    assert len(logged(caplog.records, path, logging.WARNING)) == 1
    source.look = as_it_is
    path.unlink()
    world.pass_s(3600)
    world.holds_exactly()


# --- folders of distribution ------------------------------------------------------------------------------------------


def test_data_is_waited_for_when_its_folder_appears(world: World) -> None:
    path = distribution(world.roots[0], LAYER)
    path.parent.mkdir(parents=True)
    world.event(path.parent, Cause.CREATED, folder=True)
    world.run()
    assert not world.activity.idle()
    land(path, LAYER.stored)
    world.pass_s(0.1)
    world.holds_exactly(LAYER)
    assert world.activity.idle()


def test_data_is_not_waited_for_for_ever(world: World) -> None:
    path = distribution(world.roots[0], LAYER)
    path.parent.mkdir(parents=True)
    world.scan()
    assert not world.activity.idle()
    for _ in range(20):
        world.pass_s(5)
    assert world.activity.idle()
    world.holds_exactly()


def test_a_scan_finds_that_data_is_gone_and_its_folder_stays(world: World) -> None:
    path = counted_at(world, distribution(world.roots[0], LAYER))
    path.unlink()
    world.scan()
    world.holds_exactly()
    land(path, LAYER.stored)
    world.scan()
    world.holds_exactly(LAYER)


@pytest.mark.parametrize("at", [oci, distribution, lambda root, content: root / content.hex])
def test_a_scan_compares_both_ways_in_every_layout(world: World, at: Callable[[Path, Content], Path]) -> None:
    paths = {content: land(at(world.roots[0], content), content.stored) for content in (LAYER, LIKE_IT, OTHER)}
    world.scan()
    world.holds_exactly(LAYER, LIKE_IT, OTHER)
    paths[LAYER].unlink()
    land(at(world.roots[0], PLAIN), PLAIN.stored)
    world.scan()
    world.holds_exactly(LIKE_IT, OTHER, PLAIN)
    for path in sorted(world.roots[0].rglob("*"), reverse=True):
        path.rmdir() if stat.S_ISDIR(path.lstat().st_mode) else path.unlink()
    world.scan()
    world.holds_exactly()


def test_a_digest_is_worked_on_once_however_many_places_it_has(world: World) -> None:
    for number in range(10):
        land(oci(world.roots[0], LAYER, f"r{number}"), LAYER.stored)
    world.scan()
    assert world.pool.decoded == [LAYER.digest]
    world.holds_exactly(LAYER)
    with world.index.transaction() as change:
        assert len(list(change.holders(Digest(*LAYER.digest)))) == 10
