"""A file system under another device number: known again by its own number or by its files, and by nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from chunkd.ingest import reconcile
from chunkd.ingest.adopt import KNOWN_PLACES, known_places
from chunkd.model import Cause, FileMark, Place
from chunkd.sources.folder import FolderSource
from chunkd.sources.numbered import Devices
from chunkd.sources.source import RootMark, Seen
from faulty import FaultySource, faulty, on_device
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, Content, World, land, oci, world_in

# Past the tick of a file system's clock, so that what is recorded of the files is sure.
TICK_S = 0.06


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


class Moved:
    """The file system of a cache gets another device number, that of its root and `below` it; `change` what else. It
    has no `fsid` unless a test gives it one.
    """

    def __init__(self, world: World, number: int = 1) -> None:
        self.steps = self.fsid = self.inodes = 0
        self.below: dict[str, int] = {}
        self.change: Callable[[str, FileMark], FileMark] = lambda _, mark: mark
        self.source: FaultySource = faulty(world, number)
        self.source.root = lambda mark: RootMark(mark.device + self.steps, mark.inode + self.inodes, self.fsid)
        self.source.look = lambda look, path: self.seen(look(path), path)
        self.source.open = lambda open_it, path: self.opened(open_it(path), path)

    def seen(self, seen: Seen, path: str) -> Seen:
        steps = next((steps for folder, steps in self.below.items() if f"{path}/".startswith(f"{folder}/")), self.steps)
        seen = on_device(seen, seen.mark.device + steps)
        return seen._replace(mark=self.change(path, seen.mark))

    def opened(self, opened: tuple[int, Seen], path: str) -> tuple[int, Seen]:
        return opened[0], self.seen(opened[1], path)


def fill(root: Path, *contents: Content) -> list[Path]:
    paths = [land(oci(root, content), content.stored) for content in contents]
    time.sleep(TICK_S)
    return paths


def recorded(world: World, number: int = 1) -> tuple[int, tuple[tuple[str, int], ...]]:
    with world.index.snapshot() as txn:
        cache = world.index.store.caches(txn)[number]
    return cache.device, cache.mounts


@pytest.mark.parametrize("when", ["at a start", "meanwhile"])
def test_a_file_system_with_another_number_is_followed_and_nothing_is_read_again(world: World, when: str) -> None:
    moved = Moved(world)
    paths = fill(world.roots[0], LAYER, LIKE_IT, OTHER)
    world.settle()
    before = recorded(world)
    moved.steps = 3
    if when == "at a start":
        world.restart()
    paths[2].unlink()
    new = land(oci(world.roots[0], PLAIN), PLAIN.stored)
    given = len(world.pool.given) if when == "meanwhile" else 0
    if when == "at a start":
        world.settle(verify=True)
    else:
        world.pass_s(6)  # nobody asks for a scan
        world.rest()
    assert world.caches[1].status.stale == ""
    world.holds_exactly(LAYER, LIKE_IT, PLAIN)
    assert [job.digest for job in world.pool.given[given:]] == [PLAIN.digest]
    assert recorded(world) == before
    with world.index.transaction() as change:
        held = [change.held(Place(1, str(path.relative_to(world.roots[0])))) for path in (*paths[:2], new)]
    assert {one.mark.device for one in held if one is not None} == {before[0]}

    moved.steps = 5  # and once more, from what is recorded
    world.restart()
    world.settle(verify=True)
    world.holds_exactly(LAYER, LIKE_IT, PLAIN)
    assert not set(world.pool.decoded)


@pytest.mark.parametrize("what", ["inode", "stored_bytes", "ctime_ns"])
def test_another_file_system_at_the_same_place_is_not_taken_for_it(world: World, what: str) -> None:
    moved = Moved(world)
    fill(world.roots[0], LAYER, LIKE_IT, OTHER)
    world.settle()
    moved.steps = 1
    # A copy has the names and bytes, and the root the same inode, as every ext4 has.
    moved.change = lambda _, mark: mark._replace(**{what: getattr(mark, what) + 1})
    world.restart()
    world.settle(verify=True)
    assert world.caches[1].status.stale
    world.holds_exactly(LAYER, LIKE_IT, OTHER)
    assert world.pool.given == []


@pytest.mark.parametrize(("gone", "followed"), [(2, True), (3, False)])
def test_half_of_the_known_files_will_do(world: World, gone: int, followed: bool) -> None:
    moved = Moved(world)
    paths = fill(world.roots[0], LAYER, LIKE_IT, OTHER, PLAIN)
    world.settle()
    for path in paths[:gone]:
        path.unlink()
    moved.steps = 1
    world.restart()
    world.settle()
    assert bool(world.caches[1].status.stale) != followed
    world.holds_exactly(*((LAYER, LIKE_IT, OTHER, PLAIN)[gone if followed else 0 :]))


def renumber_them(_: str, mark: FileMark) -> FileMark:
    return mark._replace(inode=mark.inode + 1)


def as_they_are(_: str, mark: FileMark) -> FileMark:
    return mark


FSID, OTHER_FSID = 0x7C1F30B00B32142C, 0x0D15EA5E0D15EA5E


@dataclass(frozen=True)
class Again:
    """A file system as it is recorded and as it is found again: followed, or stale."""

    followed: bool
    device: int = 1
    recorded: int = FSID
    fsid: int = FSID
    inodes: int = 0
    change: Callable[[str, FileMark], FileMark] = as_they_are


AGAIN = {
    "the same under another device number": Again(True),
    "and every file has changed meanwhile": Again(True, change=renumber_them),
    "another root folder on it, with the files of the first": Again(True, inodes=1),
    "another root folder on it, with other files": Again(False, inodes=1, change=renumber_them),
    "a file system without an own number has its files": Again(True, recorded=0, fsid=0),
    "an index that does not know the number yet as well": Again(True, recorded=0),
    "without either it is another": Again(False, recorded=0, fsid=0, change=renumber_them),
    "another ext4, whose root is inode 2 as well": Again(False, fsid=OTHER_FSID, change=renumber_them),
    "one that took over the device number too": Again(False, device=0, fsid=OTHER_FSID, change=renumber_them),
    "a snapshot, whose files are the very same": Again(True, fsid=OTHER_FSID),
    "also where it took over the device number": Again(True, device=0, fsid=OTHER_FSID),
    "a number that is not known any longer is no evidence": Again(True, device=0, fsid=0, change=renumber_them),
}


@pytest.mark.parametrize("case", AGAIN)
@pytest.mark.parametrize("files", [1, 2, 4])
def test_a_file_system_is_recognised_by_its_own_number_or_by_its_files(world: World, case: str, files: int) -> None:
    again = AGAIN[case]
    moved = Moved(world)
    moved.fsid = again.recorded
    world.restart()
    contents = (LAYER, LIKE_IT, OTHER, PLAIN)[:files]
    fill(world.roots[0], *contents)
    world.settle()
    before = recorded(world)
    moved.steps, moved.fsid, moved.inodes, moved.change = again.device, again.fsid, again.inodes, again.change
    world.restart()
    world.settle(verify=True)
    assert (world.caches[1].status.stale == "") == again.followed
    world.holds_exactly(*contents)
    assert world.pool.decoded == []
    assert len(world.pool.given) == (files if again.followed and again.change is renumber_them else 0)
    assert recorded(world) == before
    gone = oci(world.roots[0], LAYER)
    gone.unlink()
    world.event(gone, Cause.DELETED)
    world.settle(verify=True)
    world.holds_exactly(*contents[1 if again.followed else 0 :])


def test_files_whose_marks_are_not_sure_need_the_number_of_their_file_system(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob that was read within a tick of its change has a mark that proves nothing."""
    monkeypatch.setattr(reconcile, "CTIME_TICK_NS", 10**12)
    moved = Moved(world)
    moved.fsid = FSID
    world.restart()
    world.heard(land(oci(world.roots[0], LAYER), LAYER.stored))
    world.settle()
    assert known_places(world.index, 1) == ()
    moved.steps = 1
    world.restart()
    world.settle()
    assert world.caches[1].status.stale == ""
    moved.steps, moved.fsid = 2, OTHER_FSID
    world.restart()
    world.scan()
    assert world.caches[1].status.stale
    world.holds_exactly(LAYER)


def test_of_a_cache_without_places_any_file_system_is_accepted(world: World) -> None:
    moved = Moved(world)
    moved.fsid = FSID
    world.settle()
    moved.steps, moved.fsid, moved.inodes = 1, OTHER_FSID, 1
    world.restart()
    fill(world.roots[0], LAYER)
    world.settle()
    assert world.caches[1].status.stale == ""
    world.holds_exactly(LAYER)


def test_a_clone_with_the_same_number_beside_its_original_is_another_file_system(tmp_path: Path) -> None:
    with world_in(tmp_path, "one", "two") as world:
        one = Moved(world)
        two = Moved(world, 2)
        world.sources[one.source.path] = one.source
        one.fsid, two.fsid, two.steps = FSID, OTHER_FSID, 7
        world.restart()
        fill(world.roots[0], LAYER)
        fill(world.roots[1], LIKE_IT)
        world.settle()
        with world.index.transaction() as change:  # the second was recorded as it was on the first one's file system
            caches = change.caches()
            change.set_caches(caches | {2: caches[2]._replace(device=caches[1].device, fsid=FSID)})
        two.fsid = FSID
        world.restart()
        world.settle(verify=True)
        assert [bool(world.caches[number].status.stale) for number in (1, 2)] == [False, True]
        world.holds_exactly(LAYER, LIKE_IT)


def test_a_number_that_is_made_of_the_device_number_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    for fsid, own in ((tmp_path.stat().st_dev, 0), (0, 0), (FSID, FSID)):
        answer = mock.Mock(wraps=real, f_fsid=fsid)
        monkeypatch.setattr(os, "statvfs", lambda _, answer=answer: answer)
        assert FolderSource(str(tmp_path)).look_at_root().fsid == own


def test_file_systems_that_swap_their_numbers_are_told_apart(tmp_path: Path) -> None:
    with world_in(tmp_path, "one", "two") as world:
        one = Moved(world)
        two = Moved(world, 2)
        world.sources[one.source.path] = one.source
        two.steps = 7
        world.restart()
        fill(world.roots[0], LAYER)
        fill(world.roots[1], LIKE_IT)
        world.settle()
        before = recorded(world), recorded(world, 2)
        one.steps, two.steps = 7, 0
        world.restart()
        world.settle(verify=True)
        land(oci(world.roots[0], OTHER), OTHER.stored)
        land(oci(world.roots[1], PLAIN), PLAIN.stored)
        world.settle(verify=True)
        assert [world.caches[number].status.stale for number in (1, 2)] == ["", ""]
        assert (recorded(world), recorded(world, 2)) == before
        world.holds_exactly(LAYER, LIKE_IT, OTHER, PLAIN)
        assert {job.digest for job in world.pool.given} == {OTHER.digest, PLAIN.digest}


def test_a_mount_below_with_another_number_is_followed(world: World) -> None:
    moved = Moved(world)
    moved.below = {"library": 1}
    fill(world.roots[0], LAYER)
    inside = fill(world.roots[0] / "library", LIKE_IT, OTHER)
    world.settle()
    before = recorded(world)
    assert [folder for folder, _ in before[1]] == ["library"]
    # The root now has the number that the mount had.
    moved.steps, moved.below = 1, {"library": 4}
    world.restart()
    inside[0].unlink()
    world.event(inside[0], Cause.DELETED)
    world.settle(verify=True)
    assert world.caches[1].status.problems == ()
    assert recorded(world) == before
    world.holds_exactly(LAYER, OTHER)
    assert world.pool.given == []


def test_a_copy_beside_its_original_gets_no_number_of_it() -> None:
    devices = Devices()
    devices.root_is_on(1, 7)
    assert devices.own(7) == 7
    devices.root_is_on(2, 8)
    assert devices.own(8) == 8
    assert not devices.rename(2, 8, 7)
    devices.root_is_on(1, None)  # it is away
    assert devices.rename(2, 8, 7)
    assert devices.own(8) == 7
    assert devices.own(7) not in (7, 8), "what is there now is another one"
    assert devices.own(9) == 9


def test_known_places_are_spread_and_sure(world: World) -> None:
    folder = world.roots[0] / "blobs" / "sha256"
    folder.mkdir(parents=True)
    assert known_places(world.index, 1) == ()
    fill(world.roots[0], LAYER, LIKE_IT)
    world.settle()
    root, inside = world.roots[0], (LAYER, LIKE_IT)
    paths = {str(oci(root, content).relative_to(root)) for content in inside}
    assert {path for path, _ in known_places(world.index, 1)} == paths
    assert known_places(world.index, 2) == ()
    with world.index.transaction() as change:
        held = change.held(Place(1, min(paths)))
        assert held is not None
        others = [Place(1, f"blobs/sha256/{number * 4294967:08x}") for number in range(1000)]
        for number, place in enumerate(others):
            unsure = held.mark._replace(ctime_ns=0) if number % 2 else held.mark
            change.hold(place, held._replace(mark=unsure))
    found = dict(known_places(world.index, 1))
    assert len(found) == KNOWN_PLACES
    assert all(mark.ctime_ns for mark in found.values())
    assert {path.removeprefix("blobs/sha256/")[0] for path in found} == set("0123456789abcdef")
    with world.index.transaction() as change:
        for place in others:
            change.release(place, held.digest)
