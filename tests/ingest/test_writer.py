"""The writer: what is worked on, what is lost when something fails, and what a scan compares."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

import blobs
from breaking import breaking
from chunkd.errors import IndexDamaged, IndexUnwritable
from chunkd.index.index import Change, Index
from chunkd.ingest import listings, rounds, tasks, writer
from chunkd.model import Cause
from chunkd.sources import filesystems, listing
from chunkd.sources.cache import ServedCache
from chunkd.sources.listing import Listed, ScanEnd
from chunkd.sources.source import Entry
from faulty import faulty
from ingesting import (
    BROKEN,
    CONTENTS,
    LAYER,
    LIKE_IT,
    OTHER,
    PLAIN,
    Content,
    Deaf,
    World,
    comparisons,
    distribution,
    land,
    layer_of,
    logged,
    looks,
    oci,
    world_in,
    wrong,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path, "one", "two") as made:
        yield made


@contextlib.contextmanager
def full_disk(world: World, commits: int = 1_000_000) -> Iterator[list[int]]:
    """The next so many commits fail as LMDB's do on a full disk. Yields a list with an entry for each that did."""
    real = Change.write_head
    failed: list[int] = []

    def refuse(change: Change, now_ns: int) -> None:
        if len(failed) < commits:
            failed.append(now_ns)
            raise IndexUnwritable(world.index.store.path, "No space left on device")
        real(change, now_ns)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Change, "write_head", refuse)
        yield failed


# --- a blob that was opened as it was observed -----------------------------------------------------------------------


def blobs_open() -> list[str]:
    """The names of the blobs that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(link.readlink().name)
    return [name for name in found if name in {content.hex for content in CONTENTS}]


@pytest.fixture
def unasked(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Its caches can't be asked to open anything."""
    for cache in world.caches.values():
        monkeypatch.delattr(type(cache), "open", raising=False)
    return world


def test_it_is_read_without_being_asked_for(unasked: World) -> None:
    unasked.heard(land(oci(unasked.roots[0], LAYER), LAYER.stored))
    unasked.holds_exactly(LAYER)
    assert blobs_open() == []


def test_it_is_closed_if_nothing_is_to_be_read(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(path)
    world.heard(path)
    assert world.pool.decoded == [LAYER.digest]
    assert blobs_open() == []


def test_it_is_closed_if_its_digest_is_being_read_elsewhere(world: World) -> None:
    world.pool.held = True
    world.heard(land(oci(world.roots[0], LAYER), LAYER.stored))
    given = blobs_open()
    world.event(land(oci(world.roots[1], LAYER), LAYER.stored))
    world.run_turns(4)
    assert blobs_open() == given
    world.pool.held = False
    world.run()
    world.holds_exactly(LAYER)
    assert blobs_open() == []


def test_it_waits_for_room_on_a_full_disk(unasked: World) -> None:
    with full_disk(unasked, 1) as failed:
        unasked.event(land(oci(unasked.roots[0], LAYER), LAYER.stored))
        unasked.run_turns(3)
        assert failed
    assert blobs_open() == [LAYER.hex]
    unasked.ahead_s += writer.PAUSE_S + 1
    unasked.run()
    unasked.holds_exactly(LAYER)
    assert blobs_open() == []


def test_it_may_be_replaced_before_it_is_read(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.event(path)
    world.step()
    path.unlink()
    land(path, LAYER.stored)
    world.heard(path)
    world.holds_exactly(LAYER)
    assert blobs_open() == []


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_pause_and_nothing_is_lost(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(first)
    first.unlink()
    land(oci(world.roots[0], OTHER), OTHER.stored)
    land(oci(world.roots[1], BROKEN), BROKEN.stored)
    land(oci(world.roots[1], PLAIN), wrong(PLAIN))
    (world.roots[1] / "blobs" / "sha256" / "README").write_bytes(b"?")
    with full_disk(world) as failed:
        world.scanner.request("a test")
        for _ in range(30):
            world.run_turns(1)
            world.ahead_s += 1
        assert 3 < len(failed) < 10
        assert "No space left" in world.writer.progress.paused
        world.holds_exactly(LAYER)
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    world.pass_s(6)
    assert world.writer.progress.paused == ""
    world.pass_s(11)
    world.holds_exactly(OTHER, failed=[BROKEN.digest, PLAIN.digest])
    assert list(world.ignored()) == ["blobs/sha256/README"]


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_commit_that_fails_at_any_moment_costs_nothing(world: World, commits: int) -> None:
    """Land, hash again, remove, hand over: each with the first commits of it failing."""
    first, second = oci(world.roots[0], LAYER), distribution(world.roots[1], LAYER)

    def step() -> None:
        with full_disk(world, commits):
            for _ in range(commits + 3):
                world.run_turns(6)
                world.ahead_s += 6
            world.run()

    land(first, LAYER.stored)
    world.event(first)
    step()
    world.holds_exactly(LAYER)
    land(second, LAYER.stored)
    world.event(second)
    step()
    land(first, LAYER.stored)
    world.event(first)
    step()
    world.holds_exactly(LAYER)
    assert world.pool.decoded == [LAYER.digest]
    first.unlink()
    world.event(first, Cause.DELETED)
    step()
    world.holds_exactly(LAYER)
    assert world.held(first) is None
    assert world.held(second).state == "verified"  # type: ignore[union-attr]
    second.unlink()
    world.event(second, Cause.DELETED)
    step()
    world.holds_exactly()


def test_results_are_collected_while_writing_is_paused(world: World) -> None:
    paths = [land(oci(world.roots[0], content), content.stored) for content in (LAYER, LIKE_IT, OTHER)]
    world.pool.held = True
    for path in paths:
        world.event(path)
    world.run()
    world.pool.held = False
    with full_disk(world):
        world.writer.turn(0)
        world.pool.read()
        world.writer.turn(0)
    assert world.pool.jobs() == []
    world.pass_s(6)
    world.holds_exactly(LAYER, LIKE_IT, OTHER)
    assert len(world.pool.given) == 3


def test_ending_on_a_full_disk_leaves_the_rest_to_the_next_start(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.held = False
    world.pool.read()
    with full_disk(world) as failed:
        world.drain()
    assert len(failed) == 1
    world.holds_exactly()
    world.restart()
    world.settle()
    world.holds_exactly(LAYER)


def test_starting_on_a_full_disk_is_a_pause(world: World) -> None:
    """What the last run left is taken up when there is room."""
    first, second = (land(oci(root, LAYER), LAYER.stored) for root in world.roots)
    world.settle()
    world.pool.held = True
    first.unlink()
    world.heard(first, Cause.DELETED)
    assert world.suspects() == 1
    world.restart()
    second.write_bytes(wrong(LAYER))
    with full_disk(world):
        world.event(second)
        world.writer.turn(0)
        assert "No space left" in world.writer.progress.paused
    world.pass_s(6)
    assert world.suspects() == 0
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.parametrize(("count", "relayed"), [(1, [False] * 3), (2, [True, False, True]), (4, [True, False, False])])
def test_a_second_core_is_offered_where_it_would_have_nothing_to_do(
    world: World, count: int, relayed: list[bool]
) -> None:
    world.pool.count = count
    world.pool.held = True
    contents = [layer_of(str(size), blobs.layer(size, size)) for size in (90_000, 21_000, 20_000)]
    for content in contents:
        world.event(land(oci(world.roots[0], content), content.stored))
    world.run()
    world.pool.held = False
    world.rest()
    assert [job.digest for job in world.pool.given] == [content.digest for content in contents]
    assert [job.relayed for job in world.pool.given] == relayed


def test_what_is_found_is_committed_together_while_every_worker_is_busy(world: World) -> None:
    world.pool.count = 1

    def after_one_more_was_read() -> int:
        """How many blobs are counted or failed once that was observed."""
        world.pool.held = False
        world.writer.turn(0)
        world.pool.held = True
        world.run_turns(2)
        return len(world.counted()) + len(world.failed())

    world.pool.held = True
    for content in CONTENTS:
        world.event(land(oci(world.roots[0], content), content.stored))
    world.run()
    assert [after_one_more_was_read(), after_one_more_was_read()] == [0, 0]
    assert len(world.pool.given) == 3, "a worker waited for a commit"
    world.ahead_s += writer.GROUP_S
    world.run_turns(1)
    assert len(world.counted()) + len(world.failed()) == 2
    assert [after_one_more_was_read(), after_one_more_was_read()] == [2, 2]
    assert after_one_more_was_read() == len(CONTENTS), "the worker has nothing to do, and what it found waits"
    world.pool.held = False
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT, PLAIN, OTHER, failed=[BROKEN.digest])


def test_a_pause_does_not_outlast_a_clock_that_is_set_back(world: World) -> None:
    world.ahead_s = 7200
    with full_disk(world):
        land(oci(world.roots[0], OTHER), OTHER.stored)
        world.event(oci(world.roots[0], OTHER))
        world.run_turns(5)
    assert world.writer.progress.paused
    world.ahead_s = 0
    world.run()
    world.holds_exactly(OTHER)


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_blob_whose_worker_died_is_tried_once_more(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.deaths[LAYER.digest] = 1
    world.heard(path)
    world.holds_exactly(LAYER)
    assert world.pool.decoded == [LAYER.digest] * 2


def test_a_blob_that_kills_two_workers_is_failed(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.deaths[LAYER.digest] = 2
    world.heard(path)
    world.holds_exactly(failed=[LAYER.digest])
    assert world.failed()[LAYER.digest].reason == "can't be read: its worker died (signal 11)"
    world.scan()
    assert len(world.pool.given) == 2
    world.pass_s(80)
    world.holds_exactly(LAYER)


def test_a_worker_that_dies_of_hashing_again_leaves_the_figures(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(path)
    land(path, wrong(LAYER))
    world.pool.deaths[LAYER.digest] = 2
    world.heard(path)
    world.holds_exactly(LAYER)
    world.pass_s(61)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_no_worker_can_be_started(world: World) -> None:
    world.pool.give_error = OSError(11, "Resource temporarily unavailable")
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.event(oci(world.roots[0], LAYER))
    world.run_turns(5)
    assert "no worker can be started" in world.writer.progress.paused
    assert world.writer.pending() == (1, len(LAYER.stored))
    world.pool.give_error = None
    world.pass_s(6)
    world.holds_exactly(LAYER)
    assert world.writer.progress.paused == ""


def test_a_worker_that_the_system_refuses_is_no_fault_of_the_blob(world: World) -> None:
    """That is known only after its job was given; the pool tells of it once more, when the next job is."""
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.refusals = 5
    world.pool.deaths[LAYER.digest] = 1
    world.heard(path)
    world.holds_exactly(LAYER)
    assert world.pool.decoded == [LAYER.digest] * 7


def test_what_is_hashed_again_goes_first_and_then_the_largest(world: World) -> None:
    world.heard(land(oci(world.roots[0], OTHER), OTHER.stored))
    world.pool.held = True
    large = layer_of("LARGE", blobs.tar({"x": blobs.noise(9000)}))
    for content in (PLAIN, LAYER, large, LIKE_IT):
        world.event(land(oci(world.roots[0], content), content.stored))
    world.event(land(oci(world.roots[0], OTHER), OTHER.stored))
    world.run()
    sizes = sorted((len(content.stored) for content in (PLAIN, LAYER, large, LIKE_IT)), reverse=True)
    given = world.pool.given[1:]
    assert given[0].digest == OTHER.digest
    by_digest = {content.digest: content for content in (*CONTENTS, large)}
    assert [len(by_digest[job.digest].stored) for job in given[1:]] == sizes[: len(given) - 1]
    assert len(given) == 4
    world.pool.held = False
    world.run()


# --- bounds -----------------------------------------------------------------------------------------------------------


def many(count: int) -> list[Content]:
    return [Content(f"OTHER{number}", "other", b"%d" % number) for number in range(count)]


def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tasks, writer):
        monkeypatch.setattr(module, "MAX_TASKS", 8)


def test_too_many_blobs_for_the_queue_are_found_by_a_scan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    few_tasks(monkeypatch)
    contents = many(40)
    for content in contents:
        world.event(land(oci(world.roots[0], content), content.stored))
    with comparisons() as asked:
        world.rest()
    assert asked
    assert world.counted() == {content.digest for content in contents}


def test_more_hand_overs_than_the_queue_holds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole cache goes, and every blob of it lies in the other one too; then that one goes."""
    contents = many(40)
    for content in contents:
        for root in world.roots:
            land(oci(root, content), content.stored)
    world.settle()
    assert len(world.counted()) == 40
    few_tasks(monkeypatch)
    for content in contents:
        oci(world.roots[0], content).unlink()
        world.event(oci(world.roots[0], content), Cause.DELETED)
    world.run()
    for _ in range(8):
        world.pass_s(31)
    assert world.suspects() == 0
    assert len(world.counted()) == 40
    assert world.differences() == []
    for content in contents:
        oci(world.roots[1], content).unlink()
    world.settle()
    world.holds_exactly()


def small_slices(monkeypatch: pytest.MonkeyPatch, names: int) -> None:
    for module in (listing, listings):
        monkeypatch.setattr(module, "SLICE_NAMES", names)
    monkeypatch.setattr(rounds, "FAILED_A_SLICE", names)


def test_a_backlog_that_overflows_asks_for_a_scan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    small_slices(monkeypatch, 4)
    contents = many(40)
    world.caches[1].hints._max_hints = 10  # noqa: SLF001
    for content in contents:
        world.event(land(oci(world.roots[0], content), content.stored))
    world.rest()
    assert len(world.counted()) == 40
    for content in contents:
        oci(world.roots[0], content).unlink()
        world.event(oci(world.roots[0], content), Cause.DELETED)
    world.rest()
    world.holds_exactly()


@pytest.mark.parametrize("other", ["right", "wrong"])
def test_a_blob_that_is_lost_where_it_was_right_is_looked_for_where_it_was_wrong(world: World, other: str) -> None:
    """Both happened while nobody watched, so no event tells of either, and the listing has only names."""
    second = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.settle()
    first = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(first)
    land(second, wrong(LAYER))
    world.heard(second)
    world.holds_exactly(LAYER)
    bad = world.held(second)
    assert bad is not None
    assert bad.state == "bad"
    world.stop()
    first.unlink()
    land(second, LAYER.stored if other == "right" else wrong(LAYER))
    world.start()
    world.settle()
    if other == "wrong":
        world.rest()
    world.holds_exactly(*([LAYER] if other == "right" else []), failed=[] if other == "right" else [LAYER.digest])


# --- scans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failed", "slice_blobs"), [(0, 100), (5, 1), (5, 2), (5, 100)])
def test_no_scan_waits_for_the_end_of_a_turn_without_work(
    world: World, monkeypatch: pytest.MonkeyPatch, failed: int, slice_blobs: int
) -> None:
    """Failed blobs are gone through slice by slice as a scan ends. Its end needs no further wake-up."""
    monkeypatch.setattr(rounds, "FAILED_A_SLICE", slice_blobs)
    for content in many(failed):
        land(oci(world.roots[0], content), wrong(content))
    world.settle()
    assert len(world.failed()) == failed
    world.wakeup.drain()
    number = world.scanner.request("a test")
    world.step()
    while world.writer.scans.finished < number:
        at_once = world.writer._wait_s(1.0) == 0 or wait([world.wakeup.fileno()], 0)  # noqa: SLF001
        assert at_once, "the writer would wait for a second"
        world.writer.turn(0)
        world.step()


def test_a_scan_that_was_asked_to_verify_finds_lost_changes(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.scan()
    land(path, wrong(LAYER))
    world.scan()
    world.holds_exactly(LAYER)
    world.scan(verify=True)
    world.pass_s(11)
    world.holds_exactly(failed=[LAYER.digest])


def test_the_daily_round_compares_every_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PLACES_A_SLICE", 3)
    contents = many(10)
    paths = [land(oci(world.roots[0], content), content.stored) for content in contents]
    world.settle()
    for path in paths[::2]:
        land(path, b"x")
    world.scan()
    assert len(world.counted()) == 10
    world.ahead_s += 86401
    for _ in range(40):
        world.pass_s(3)
    assert len(world.counted()) == 5


def test_a_place_in_a_folder_that_could_not_be_listed_to_its_end_is_kept(world: World) -> None:
    root = world.roots[0]
    paths = [land(oci(root, content), content.stored) for content in (LAYER, LIKE_IT, OTHER)]
    world.settle()
    paths[0].unlink()
    with looks() as looked, breaking(paths[0].parent, after=1):
        world.scan()
    assert looked == []
    world.holds_exactly(LAYER, LIKE_IT, OTHER)
    assert world.caches[1].status.problems
    with world.index.snapshot() as txn:
        before = world.index.store.head(txn).scanned_at_ns
    world.scan()
    world.holds_exactly(LIKE_IT, OTHER)
    assert not world.caches[1].status.problems
    with world.index.snapshot() as txn:
        assert world.index.store.head(txn).scanned_at_ns > before


def test_pending_says_what_is_known_and_not_counted(world: World) -> None:
    world.pool.held = True
    for content in (LAYER, OTHER):
        for root in world.roots:
            land(oci(root, content), content.stored)
    world.scan()
    assert world.writer.pending() == (2, len(LAYER.stored) + len(OTHER.stored))
    assert world.activity.working()
    world.pool.held = False
    world.run()
    assert world.writer.pending() == (0, 0)
    assert world.activity.idle()


def test_a_full_restart_in_the_middle_loses_nothing(world: World) -> None:
    for content in CONTENTS:
        land(oci(world.roots[0], content), content.stored)
    world.pool.held = True
    world.scan()
    world.pool.read()
    world.writer.turn(0)
    world.restart()
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT, PLAIN, OTHER, failed=[BROKEN.digest])


def test_draining_takes_in_what_was_being_read(world: World) -> None:
    for content in (LAYER, OTHER):
        world.event(land(oci(world.roots[0], content), content.stored))
    world.pool.held = True
    world.run()
    world.pool.held = False
    world.drain()
    world.holds_exactly(LAYER, OTHER)


# --- roots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [oci, distribution])
def test_a_scan_sees_to_what_is_waited_for_too(world: World, make: Callable[[Path, Content], Path]) -> None:
    """When hints were lost, the one that was to look again may be among them, and the file is where none is listed."""
    path = make(world.roots[0], LAYER)
    if make is oci:
        world.heard(land(path, wrong(LAYER)))
    else:
        path.parent.mkdir(parents=True)
        world.event(path.parent, Cause.CREATED, folder=True)
        world.run()
    assert not world.activity.idle()
    world.ahead_s += 5
    assert world.lose_hints()
    shutil.rmtree(path.parent)
    world.caches[1].hints.doubt("the queue of hints was full")
    world.rest()
    assert world.writer.pending() == (0, 0)


def test_a_root_that_is_gone_keeps_its_figures(world: World, caplog: pytest.LogCaptureFixture) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(land(oci(world.roots[1], OTHER), OTHER.stored))
    world.settle()
    away = world.roots[0].rename(world.folder / "away")
    world.event(path, Cause.DELETED)
    world.run()
    for _ in range(3):
        world.scan(verify=True)
    world.holds_exactly(LAYER, OTHER)
    stale = world.cache_of(path)
    assert "can't be reached" in stale.status.stale
    assert len(logged(caplog.records, world.roots[0], logging.WARNING)) <= 1
    away.rename(world.roots[0])
    world.scan()
    assert not stale.status.stale
    world.holds_exactly(LAYER, OTHER)
    path.unlink()
    world.scan()
    world.holds_exactly(OTHER)


def test_a_root_that_is_a_file_is_no_empty_cache(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    world.roots[0].rename(world.folder / "away")
    world.roots[0].write_bytes(b"")
    world.event(path, Cause.DELETED)
    world.scan()
    world.holds_exactly(LAYER)
    assert world.caches[1].status.stale


@pytest.mark.parametrize("event", [True, False])
def test_a_root_on_another_device_is_frozen_until_it_is_accepted(world: World, event: bool) -> None:
    source = faulty(world)
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    cache = world.cache_of(path)
    source.root = lambda mark: mark._replace(device=mark.device + 1, fsid=mark.fsid + 1)
    path.unlink()
    new = land(oci(world.roots[0], OTHER), OTHER.stored)
    if event:
        world.event(path, Cause.DELETED)
        world.run()
        world.event(new)
    world.scan()
    world.holds_exactly(LAYER)
    assert "another device" in cache.status.stale
    world.scan(accept=True)
    world.holds_exactly(OTHER)
    assert not cache.status.stale
    world.restart()
    world.scan()
    assert not world.caches[1].status.stale


def test_a_hand_over_to_a_cache_that_just_went_away_is_no_subtraction(world: World) -> None:
    first, second = oci(world.roots[0], LAYER), oci(world.roots[1], LAYER)
    for path in (first, second):
        land(path, LAYER.stored)
        world.heard(path)
    world.pool.held = True
    first.unlink()
    world.heard(first, Cause.DELETED)
    away = world.roots[1].rename(world.folder / "away")
    world.pool.held = False
    world.run()
    world.holds_exactly(LAYER)
    away.rename(world.roots[1])
    world.scan()
    world.pass_s(31)
    world.holds_exactly(LAYER)
    assert world.suspects() == 0
    second.unlink()
    world.scan()
    world.holds_exactly()


def test_a_suspect_is_taken_up_when_its_cache_returns(world: World) -> None:
    first, second = oci(world.roots[0], LAYER), oci(world.roots[1], LAYER)
    land(first, LAYER.stored)
    world.heard(first)
    land(second, wrong(LAYER))
    world.heard(second)
    away = world.roots[1].rename(world.folder / "away")
    world.scan()
    first.unlink()
    world.heard(first, Cause.DELETED)
    world.holds_exactly(LAYER)  # it may well be there
    away.rename(world.roots[1])
    world.scan()
    world.pass_s(31)
    world.pass_s(31)
    world.holds_exactly(failed=[LAYER.digest])


# --- hostile paths ----------------------------------------------------------------------------------------------------


def test_paths_that_the_index_cannot_hold_stop_nothing(world: World) -> None:
    root = world.roots[0]
    deep = root.joinpath(*("d" * 200 for _ in range(4)))
    land(oci(deep, LAYER), LAYER.stored)
    land(oci(root / ("e" * 250) / ("f" * 100), LIKE_IT), LIKE_IT.stored)
    strange = root / ("g" * 200) / ("h" * 180) / "blobs" / "sha256"
    strange.mkdir(parents=True)
    (strange / ("i" * 250)).write_bytes(b"")
    world.event(strange / ("i" * 250))
    world.event(oci(deep, LAYER))
    world.event(deep, Cause.CREATED, folder=True)
    land(oci(root, OTHER), OTHER.stored)
    for _ in range(2):
        world.scan()
    assert OTHER.digest in world.counted()
    assert LAYER.digest not in world.counted()
    oci(root, OTHER).unlink()
    world.scan()
    assert OTHER.digest not in world.counted()


def test_names_that_are_no_text_are_borne(world: World) -> None:
    folder = world.roots[0] / "caf\udce9\n" / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / "\udcff\udcfe").write_bytes(b"?")
    (folder / f"{LAYER.hex}\n").write_bytes(LAYER.stored)
    land(folder / OTHER.hex, OTHER.stored)
    world.event(folder / f"{LAYER.hex}\n")
    world.settle()
    world.holds_exactly(OTHER)
    assert len(world.ignored()) == 2


def test_a_damaged_index_is_not_taken_for_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(index: Index) -> Change:
        raise IndexDamaged(index.store.path, "a test")

    world.event(land(oci(world.roots[0], OTHER), OTHER.stored))
    with monkeypatch.context() as patched:
        patched.setattr(Index, "transaction", damaged)
        with pytest.raises(IndexDamaged):
            world.run()
    world.run()
    world.holds_exactly(OTHER)


# --- when a cache lists itself ----------------------------------------------------------------------------------------


def listed(world: World, *numbers: int) -> list[Listed | ScanEnd]:
    """What these caches hand over until they have nothing to do; the writer does not see it."""
    found: list[Listed | ScanEnd] = []
    for number in numbers or world.caches:
        cache = world.caches[number]
        while cache.step() or cache.listings:
            found += drained(world, cache)
    return found


def drained(world: World, cache: ServedCache) -> list[Listed | ScanEnd]:
    found = list(cache.listings)
    cache.listings.clear()
    for item in found:
        world.activity.give_back(item.token)
    return found


def folders(found: list[Listed | ScanEnd]) -> list[str]:
    return [item.listing.folder for item in found if isinstance(item, Listed)]


def ends(found: list[Listed | ScanEnd]) -> list[ScanEnd]:
    return [item for item in found if isinstance(item, ScanEnd)]


def test_a_scan_is_made_when_asked_for_at_a_doubt_and_on_the_timer(world: World) -> None:
    assert listed(world) == []
    number = world.scanner.request("a test", verify=True)
    found = listed(world)
    assert [(item.cache, item.verify) for item in found if isinstance(item, Listed)] == [(1, True), (2, True)]
    assert [(end.number, end.complete) for end in ends(found)] == [(number, True)] * 2
    world.caches[2].hints.doubt("a test")
    found = listed(world)
    assert [(item.cache, item.verify) for item in found if isinstance(item, Listed)] == [(2, True)]
    assert [end.number for end in ends(found)] == [0]
    world.scanner.tick(number)
    world.ahead_s += 599
    world.scanner.tick(number)
    assert listed(world) == []
    world.ahead_s += 2
    world.scanner.tick(number)
    assert [end.number for end in ends(listed(world))] == [number + 1] * 2
    world.ahead_s += 601
    world.scanner.tick(number)
    assert listed(world) == [], "the last one has not ended"


def test_a_scan_that_is_asked_for_while_another_begins_has_an_end_of_its_own(world: World) -> None:
    first = world.scanner.request("first")
    cache = world.caches[1]
    while not cache.scanning:
        assert cache.step()
    second = world.scanner.request("second", verify=True)
    found = listed(world, 1)
    assert [end.number for end in ends(found)] == [first, second]
    assert [item.verify for item in found if isinstance(item, Listed)] == [False, True]


def test_scans_that_are_asked_for_together_are_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    numbers = [
        world.scanner.request("one"),
        world.scanner.request("two", verify=True),
        world.scanner.request("three", retry_failed=True),
    ]
    found = listed(world)
    assert [(end.cache, end.number, end.retry_failed) for end in ends(found)] == [
        (1, numbers[2], True),
        (2, numbers[2], True),
    ]
    assert [item.verify for item in found if isinstance(item, Listed)] == [True, True]
    assert not logged(caplog.records, "", logging.WARNING), "no cache is accepted as it is"


def test_every_scan_that_was_asked_for_ends(world: World) -> None:
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    first = world.scanner.request("one")
    world.run()
    second = world.scanner.request("two")
    world.run()
    assert (world.writer.progress.scans, world.writer.scans.finished) == (second, 0)
    world.pool.held = False
    world.run()
    assert world.writer.scans.finished == second > first
    assert world.activity.idle()


class Noting(Deaf):
    """A watcher that notes what is watched."""

    def __init__(self, then: Callable[[str], None] = lambda _: None) -> None:
        self.entered: list[str] = []
        self.then = then

    def enter(self, folder: str) -> None:
        self.entered.append(folder)
        self.then(folder)


def watch_by(world: World, *watchers: Deaf) -> None:
    """From now on; the daemon is started anew. One for each cache."""
    paths = dict(zip(map(str, world.roots), watchers, strict=False))
    world.make_watcher = lambda _, path: paths.get(path) or Deaf()
    world.restart()


def test_a_polled_cache_is_listed_each_minute_and_never_watched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    nfs = str(world.roots[1])
    monkeypatch.setattr(filesystems, "file_system", lambda path: "nfs" if path == nfs else "ext4")
    watchers = Noting(), Noting()
    watch_by(world, *watchers)
    world.scanner.request("a test")
    listed(world)
    assert world.caches[2].status.polled == "events do not come from nfs"
    world.ahead_s += 59
    assert listed(world) == []
    world.ahead_s += 2
    assert [item.cache for item in listed(world)] == [2]
    assert (watchers[0].entered != [], watchers[1].entered) == (True, [])


def test_a_watch_that_cannot_be_set_makes_a_cache_unwatched_and_listed_on_a_timer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: str) -> None:
        raise OSError(28, "inotify watch limit reached")

    watch_by(world, Noting(refuse))
    world.scanner.request("a test")
    listed(world)
    assert world.caches[1].status.unwatched == "can't be watched: inotify watch limit reached"
    assert world.caches[2].status.unwatched == ""
    world.ahead_s += 61
    assert [item.cache for item in listed(world)] == [1]
    assert len(logged(caplog.records, world.roots[0], logging.WARNING)) == 1


def test_a_folder_is_listed_when_it_appears(world: World) -> None:
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.event(world.roots[0] / "library", Cause.CREATED, folder=True)
    assert folders(listed(world)) == ["library", "library/blobs", "library/blobs/sha256"]


def test_a_folder_that_appears_as_a_scan_is_asked_for_is_not_waited_for(world: World) -> None:
    cache = world.caches[1]
    listed(world)
    world.event(world.roots[0] / "library", Cause.CREATED, folder=True)
    world.scanner.request("a test")
    assert cache.hints.news.is_set()
    assert cache.hints.wait_s() == 0
    assert folders(listed(world, 1)) == ["library", ""]
    assert cache.hints.wait_s() > 0
    assert len(cache.hints) == 0


def test_there_is_work_from_when_a_folder_appears_until_all_of_it_is_compared(world: World) -> None:
    working: list[bool] = []
    watch_by(world, Noting(lambda _: working.append(world.activity.working())))
    world.run()
    working.clear()
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    assert not world.activity.working()
    world.event(world.roots[0] / "library", Cause.CREATED, folder=True)
    assert world.activity.working()
    cache = world.caches[1]
    while cache.step():
        assert world.activity.working()
    assert working == [True] * 3
    assert len(cache.listings) == 3
    assert len(cache.hints) == 0
    assert world.activity.working(), "what was listed is not compared yet"
    world.run()
    world.holds_exactly(LAYER)


def test_a_folder_that_a_scan_of_everything_could_not_reach_is_listed_all_the_same(world: World) -> None:
    """Also by a scan that lists everything anew and for which what appeared meanwhile would be listed twice."""

    def refuse(list_: Callable[[str], Iterator[Entry]], folder: str) -> Iterator[Entry]:
        if folder == "library":
            raise PermissionError(13, "Permission denied")
        return list_(folder)

    faulty(world).list = refuse
    land(oci(world.roots[0], LAYER, "library/alpine"), LAYER.stored)
    land(oci(world.roots[1], OTHER, "there"), OTHER.stored)
    world.event(world.roots[0] / "library" / "alpine", Cause.CREATED, folder=True)
    world.event(world.roots[1] / "there", Cause.CREATED, folder=True)
    world.scan(verify=True)
    world.holds_exactly(LAYER, OTHER)


def test_a_cache_that_is_stopped_lists_no_folder_more(world: World) -> None:
    def stop(_: str) -> None:
        for name in ("a", "b"):
            world.event(world.roots[0] / name, Cause.CREATED, folder=True)
        if begun:
            world.caches[1].stop()

    begun: list[bool] = []
    for name in ("a", "b"):
        (world.roots[0] / name).mkdir()
    watcher = Noting(stop)
    watch_by(world, watcher)
    cache = world.caches[1]
    while cache.step():
        pass
    drained(world, cache)
    watcher.entered.clear()
    begun.append(True)
    world.scanner.request("a test")
    cache.run()  # comes to its end
    # The folder that is under way is listed to its end, and no other is entered.
    assert len(watcher.entered) == 1


def test_a_scan_is_complete_once_its_blobs_are_read(world: World) -> None:
    """What is cut off before must not be taken for the whole truth by who reads the index later."""

    def scanned_at_ns() -> int:
        with world.index.snapshot() as txn:
            return world.index.store.head(txn).scanned_at_ns

    world.pool.held = True
    for content in (LAYER, OTHER):
        land(oci(world.roots[0], content), content.stored)
    world.scan()
    assert world.writer.progress.scans
    assert scanned_at_ns() == 0
    world.pool.held = False
    world.settle()
    assert scanned_at_ns() > 0
    world.holds_exactly(LAYER, OTHER)


def test_the_round_goes_by_when_the_last_one_ended_and_not_by_the_start(world: World) -> None:
    """A daemon that is restarted each night would never compare anything otherwise."""
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(path)
    world.pass_s(2 * world.verify_interval_s)
    world.run_turns(5)
    with world.index.snapshot() as txn:
        first_s = world.index.store.verified_s(txn)
    assert first_s is not None
    world.pass_s(world.verify_interval_s / 2)
    world.restart()
    world.pass_s(world.verify_interval_s / 2 + 1)
    world.run_turns(5)
    with world.index.snapshot() as txn:
        second_s = world.index.store.verified_s(txn)
    assert second_s is not None
    assert second_s > first_s


# --- what has no hurry ------------------------------------------------------------------------------------------------


def test_what_has_no_hurry_is_done_though_there_is_always_something_to_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that never rests has removed blobs all the same, and files that were changed behind its back."""
    path = land(oci(world.roots[0], OTHER), OTHER.stored)
    world.settle()
    swept: list[float] = []
    monkeypatch.setattr(world.writer.compaction, "turn", lambda: swept.append(world.ahead_s))
    land(path, wrong(OTHER))
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(oci(world.roots[0], LAYER))
    for _ in range(3 * 86400 // 3600):
        world.ahead_s += 3600
        world.run_turns(4)
        assert world.activity.working()
    assert len(swept) >= 24
    assert OTHER.digest in world.pool.hashed_again
    world.pool.held = False
    world.run()


def test_a_blob_is_handed_out_before_what_has_no_hurry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.settle()
    in_hand: list[int] = []
    monkeypatch.setattr(world.writer.compaction, "turn", lambda: in_hand.append(len(world.pool.jobs())))
    world.pool.held = True
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.event(oci(world.roots[0], LAYER), Cause.MOVED_IN)
    world.ahead_s += 3600  # tidying is due
    world.run_turns(1)
    assert in_hand == [1]
    world.pool.held = False
    world.run()


def test_a_scan_ends_though_a_doubt_of_one_cache_is_listed_after_it(tmp_path: Path) -> None:
    with world_in(tmp_path, "one", "two") as world:
        world.settle()
        number = world.scanner.request("a test")
        world.caches[1].hints.news.clear()
        while world.caches[1].step():
            pass
        world.caches[1].hints.doubt("an event may have been lost")
        world.ahead_s += 5
        while world.caches[1].step():
            pass
        world.run()
        assert world.writer.scans.finished == number
        assert world.activity.idle()


def test_when_a_scan_was_complete_is_recorded_once_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: Index) -> Change:
        raise IndexUnwritable(index.store.path, "No space left on device")

    with world_in(tmp_path) as world:
        world.settle()
        before_ns = world.scanned_at_ns
        world.scanner.request("a test")
        with monkeypatch.context() as patched:
            patched.setattr(Index, "transaction", refuse)
            world.run_turns(5)
            assert world.writer.progress.paused
        world.pass_s(6)
        world.rest()
        assert world.scanned_at_ns > before_ns
