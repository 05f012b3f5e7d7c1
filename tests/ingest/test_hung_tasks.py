"""A cache whose file system does not answer holds up its own thread and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.ingest.tasks import OPEN_AHEAD
from chunkd.ingest.writer import GROUP_S
from chunkd.model import Cause, Hint, Timing
from chunkd.service.live import DaemonAnswers
from chunkd.sources.source import Seen
from faulty import faulty
from ingesting import BROKEN, LAYER, LIKE_IT, OTHER, PLAIN, World, land, oci, world_in, wrong

PATIENCE_S = 20.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path, "one", "two") as made:
        yield made


@pytest.fixture
def hang(world: World) -> Callable[[bool], None]:
    """The second cache's thread does nothing any longer, or goes on."""

    def set_hung(hung: bool) -> None:
        cache = world.caches[2]
        for name, value in (("hung_s", lambda: 9.0), ("step", lambda: False)):
            if hung:
                setattr(cache, name, value)
            else:
                delattr(cache, name)

    return set_hung


def go_on(world: World) -> None:
    world.run_turns(40)


def test_a_scan_ends_without_a_cache_that_hangs(world: World, hang: Callable[[bool], None]) -> None:
    for root, content in zip(world.roots, (LAYER, OTHER), strict=True):
        land(oci(root, content), content.stored)
    world.settle()
    before = world.scanned_at_ns
    hang(True)
    land(oci(world.roots[0], LIKE_IT), LIKE_IT.stored)
    land(oci(world.roots[1], PLAIN), PLAIN.stored)
    number = world.scanner.request("a test")
    go_on(world)
    assert world.writer.scans.finished == number
    assert world.scanned_at_ns == before, "it is not complete"
    world.holds_exactly(LAYER, OTHER, LIKE_IT)
    answers = DaemonAnswers(world.writer, world.scanner)
    assert not answers.stats()["settled"]
    assert world.activity.idle({2})
    hang(False)
    world.run()
    world.holds_exactly(LAYER, OTHER, LIKE_IT, PLAIN)
    assert answers.stats()["settled"]
    world.scan()
    assert world.scanned_at_ns > before


def test_what_hangs_while_it_is_opened_takes_no_worker_from_others(world: World, hang: Callable[[bool], None]) -> None:
    many = (LAYER, LIKE_IT, OTHER)
    for content in many:
        world.event(land(oci(world.roots[1], content), content.stored))
    world.step()
    hang(True)
    world.caches[2].hung_s = lambda: 0.0  # type: ignore[method-assign]  # nobody has noticed yet
    go_on(world)
    assert world.pool.given == []
    world.caches[2].hung_s = lambda: 9.0  # type: ignore[method-assign]
    world.event(land(oci(world.roots[0], PLAIN), PLAIN.stored))
    go_on(world)
    world.holds_exactly(PLAIN)
    assert world.writer.pending()[0] == len(many)
    hang(False)
    world.run()
    world.holds_exactly(PLAIN, *many)
    assert len(world.pool.given) == 4


def test_a_cache_for_which_a_worker_waits_gets_no_other_worker(world: World) -> None:
    """Though its own thread goes on; what was opened of it leaves room for what others have to open."""
    one, two = world.caches.values()
    world.pool.count = 1
    many = (LAYER, LIKE_IT, OTHER, PLAIN)
    for content in many:
        world.event(land(oci(world.roots[1], content), content.stored))
    world.pool.held = True
    go_on(world)
    [first] = world.pool.given
    opened = len(world.writer.tasks._opened)  # noqa: SLF001
    assert opened > 1, "some wait for a worker"
    world.pool.count = 2  # the first one is stalled, and left its place
    world.pool.waits_for = {two.number}
    world.event(land(oci(world.roots[0], BROKEN), BROKEN.stored))
    go_on(world)
    world.ahead_s += GROUP_S
    go_on(world)
    assert [job.digest for job in world.pool.given] == [first.digest, BROKEN.digest]
    assert len(world.writer.tasks._opened) == opened, "none is opened for nothing"  # noqa: SLF001
    assert not one.hung_s()
    world.pool.held = False
    go_on(world)
    world.ahead_s += GROUP_S
    go_on(world)
    assert world.writer.pending()[0] == len(many) - 1
    world.pool.waits_for = set()
    world.run()
    world.holds_exactly(*many, failed=[BROKEN.digest])


def test_what_was_opened_of_such_a_cache_leaves_room_for_another(world: World) -> None:
    many = (LAYER, LIKE_IT, OTHER, PLAIN)
    for content in many:
        world.event(land(oci(world.roots[1], content), content.stored))
    tasks = world.writer.tasks
    while not tasks._opening:  # noqa: SLF001
        world.run_turns(1)
    world.pool.waits_for = {2}
    go_on(world)
    assert (len(tasks._opened), world.pool.given) == (len(many), [])  # noqa: SLF001
    world.pool.count = len(many) - OPEN_AHEAD
    world.event(land(oci(world.roots[0], BROKEN), BROKEN.stored))
    for _ in range(3):  # its hint, its finding
        go_on(world)
        world.ahead_s += GROUP_S
    world.holds_exactly(failed=[BROKEN.digest])
    world.pool.waits_for = set()
    world.run()
    world.holds_exactly(*many, failed=[BROKEN.digest])


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_digest_that_another_cache_has_too_is_read_there(
    world: World, hang: Callable[[bool], None], asked_for: bool
) -> None:
    """Whether its cache's thread was asked to open it already, or not yet."""
    path = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.caches[2].hints.put(Hint(world.place(path), Cause.LISTED))
    world.step()
    hang(True)
    if asked_for:
        world.caches[2].hung_s = lambda: 0.0  # type: ignore[method-assign]
    go_on(world)
    world.caches[2].hung_s = lambda: 9.0  # type: ignore[method-assign]
    world.event(land(oci(world.roots[0], LAYER), LAYER.stored))
    go_on(world)
    world.holds_exactly(LAYER)
    assert world.held(oci(world.roots[0], LAYER)).state == "verified"  # type: ignore[union-attr]
    hang(False)
    world.run()
    world.holds_exactly(LAYER)
    assert world.held(oci(world.roots[1], LAYER)).state == "untested"  # type: ignore[union-attr]
    assert world.pool.decoded == [LAYER.digest]
    assert world.activity.idle()


def test_asking_what_is_pending_changes_nothing(world: World, hang: Callable[[bool], None]) -> None:
    """The endpoint's threads ask."""
    path = land(oci(world.roots[1], LAYER), wrong(LAYER))
    world.heard(path)
    assert set(world.writer.remembered.unsettled) == {world.place(path)}
    world.event(path, Cause.WRITTEN)
    world.caches[2].step()
    hang(True)
    go_on(world)
    assert len(world.writer.tasks) == 1
    before = len(world.caches[2].hints)
    assert world.writer.pending() == (1, len(LAYER.stored))
    assert (len(world.writer.tasks), len(world.caches[2].hints)) == (1, before)
    hang(False)
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def test_what_was_read_of_a_cache_that_hangs_waits_for_its_observation(
    world: World, hang: Callable[[bool], None]
) -> None:
    path = land(oci(world.roots[1], LAYER), LAYER.stored)
    world.pool.held = True
    world.heard(path)
    world.pool.held = False
    hang(True)
    world.event(land(oci(world.roots[0], OTHER), OTHER.stored))
    go_on(world)
    world.holds_exactly(OTHER)
    assert not world.activity.idle()
    hang(False)
    world.run()
    world.holds_exactly(OTHER, LAYER)


def test_a_blob_of_a_cache_that_hangs_is_not_subtracted(world: World, hang: Callable[[bool], None]) -> None:
    """The other place of it goes: it is kept for the one that may be there."""
    first, second = (land(oci(root, LAYER), LAYER.stored) for root in world.roots)
    world.heard(first)
    world.heard(second)
    hang(True)
    first.unlink()
    world.event(first, Cause.DELETED)
    go_on(world)
    world.holds_exactly(LAYER)
    assert world.suspects() == 1
    assert not DaemonAnswers(world.writer, world.scanner).stats()["settled"]
    second.write_bytes(wrong(LAYER))
    hang(False)
    world.run()
    assert world.suspects() == 0, "it is hashed as soon as it can be seen"
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def test_another_place_takes_over_than_one_of_a_cache_that_hangs(tmp_path: Path) -> None:
    with world_in(tmp_path, "one", "two", "three") as world:
        first, _, third = (land(oci(root, LAYER), LAYER.stored) for root in world.roots)
        for root in world.roots:
            world.heard(oci(root, LAYER))
        world.caches[2].hung_s = lambda: 9.0  # type: ignore[method-assign]
        world.caches[2].step = lambda: False  # type: ignore[method-assign]
        first.unlink()
        world.event(first, Cause.DELETED)
        go_on(world)
        assert world.suspects() == 0
        assert world.held(third).state == "verified"  # type: ignore[union-attr]
        assert world.pool.hashed_again == [LAYER.digest]


def test_what_is_failed_and_due_does_not_wait_for_a_cache_that_hangs(
    world: World, hang: Callable[[bool], None]
) -> None:
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    world.caches[2].hints._max_hints = 10  # noqa: SLF001 - so it has no room
    hang(True)
    path.write_bytes(LAYER.stored)
    world.ahead_s += 100
    go_on(world)
    world.holds_exactly(LAYER)


def test_a_call_that_does_not_return_is_known_for_how_long_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the cache's own thread, and a file system that answers in the end."""
    monkeypatch.setattr(world.caches[2], "_timing", Timing(hung_s=0.05))
    source = faulty(world, 2)
    path = land(oci(world.roots[1], LAYER), LAYER.stored)
    asked, answers = threading.Event(), threading.Event()

    def look(real: Callable[[str], Seen], what: str) -> Seen:
        if what == world.place(path).path and not answers.is_set():
            asked.set()
            assert answers.wait(PATIENCE_S)
        return real(what)

    source.look = look
    cache = world.caches[2]
    thread = threading.Thread(target=cache.run)
    thread.start()
    try:
        assert cache.hung_s() == 0
        world.event(path)
        assert asked.wait(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while cache.hung_s() <= 0.05:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        number = world.scanner.request("a test")
        for _ in range(20):
            world.caches[1].step()
            world.writer.turn(0)
        assert world.writer.scans.finished == number
        assert not world.activity.idle()
        answers.set()
        while world.counted() != {LAYER.digest} or world.activity.working():
            assert time.monotonic() < deadline
            world.caches[1].step()
            world.writer.turn(0.01)
        assert cache.hung_s() == 0
    finally:
        answers.set()
        cache.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
