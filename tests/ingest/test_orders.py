"""Orders of events in which something was learnt on one way and not on another: what the disk holds is what counts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chunkd.ingest.places import PlaceChanges
from chunkd.model import Cause, Hint, Place
from chunkd.service.daemon import Service
from chunkd.sources import filesystems
from chunkd.sources.hints import HintQueue
from chunkd.sources.scanner import Request
from chunkd.sources.watch import InotifyWatcher
from ingesting import BROKEN, LAYER, OTHER, Deaf, World, distribution, land, oci, touch, world_in, write_in_place, wrong
from test_watch import LINUX, PATIENCE_S


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def check_roots(world: World) -> None:
    """As the daemon does every few seconds."""
    Service.check_roots(cast("Service", SimpleNamespace(ingest=world.ingest, scanner=world.scanner, _watcher=None)))


def test_a_folder_of_a_blob_that_is_removed_and_made_anew_is_waited_for(world: World) -> None:
    """In distribution's layout, pushed again before the writer took the first event."""
    path = land(distribution(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    shutil.rmtree(path.parent)
    world.event(path.parent, Cause.DELETED, folder=True)
    path.parent.mkdir()
    world.event(path.parent, Cause.CREATED, folder=True)
    world.run()
    path.write_bytes(LAYER.stored)  # its folder is not watched: no event
    world.rest()
    world.holds_exactly(LAYER)


def test_a_scan_of_names_leaves_the_folders_that_are_to_be_compared(world: World) -> None:
    library = world.roots[0] / "library"
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    shutil.rmtree(library)
    write_in_place(path, wrong(LAYER))
    world.event(library, Cause.MOVED_IN, folder=True)
    world.scan()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def test_a_root_that_is_back_is_noticed_though_a_folder_below_it_was_listed_first(world: World) -> None:
    root = world.roots[0]
    land(oci(root, LAYER), LAYER.stored)
    world.settle()
    away = root.rename(root.with_name("away"))
    new = oci(root, OTHER)
    land(away / new.relative_to(root), OTHER.stored)
    world.heard(new)  # its watch goes by inode
    assert world.writer.caches[1].stale
    away.rename(root)
    (root / "library" / "blobs" / "sha256").mkdir(parents=True)
    world.event(root / "library", Cause.CREATED, folder=True)
    world.run()
    check_roots(world)
    world.rest()
    world.holds_exactly(LAYER, OTHER)


def test_a_root_that_is_back_between_two_looks_is_no_removal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    root = world.roots[0]
    path = land(oci(root, LAYER), LAYER.stored)
    world.settle()
    away = root.rename(root.with_name("away"))
    real = PlaceChanges.status

    def status(self: PlaceChanges, place: Place) -> os.stat_result:
        try:
            return real(self, place)
        finally:
            if away.exists():
                away.rename(root)

    monkeypatch.setattr(PlaceChanges, "status", status)
    world.heard(path, Cause.WRITTEN)
    check_roots(world)
    world.rest()
    world.holds_exactly(LAYER)


def test_a_link_over_a_copy_is_a_link_of_what_was_verified(world: World) -> None:
    paths = [land(oci(world.roots[0], LAYER, name), LAYER.stored) for name in ("a", "b")]
    world.settle()
    states = {held.state: path for path in paths if (held := world.held(path)) is not None}
    verified, untested = states["verified"], states["untested"]
    untested.unlink()
    os.link(verified, untested)
    world.heard(untested, Cause.CREATED)
    world.rest()
    world.pass_s(1)
    untested.write_bytes(wrong(LAYER))  # both names' bytes
    world.heard(untested, Cause.WRITTEN)
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


class Full(Deaf):
    """A watcher without room, until it has some."""

    full = True

    def enter(self, cache: int, root: str, folder: str) -> None:  # noqa: ARG002
        if self.full:
            raise OSError(28, "limit")


def test_what_is_mounted_late_from_another_host_is_polled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "ext4"
    monkeypatch.setattr(filesystems, "file_system", lambda _: kind)
    watcher = Full()
    watcher.full = False
    world.scanner.watcher = lambda: watcher
    root = world.roots[0]
    world.scan()
    for kind, reason in (("nfs4", "events do not come from nfs4"), ("ext4", "")):
        away = root.rename(root.with_name(f"before {kind}"))
        check_roots(world)
        assert world.writer.caches[1].stale
        assert away.exists()
        root.mkdir()
        check_roots(world)
        world.run()
        assert world.writer.caches[1].polled == reason


def test_what_is_mounted_late_with_the_root_that_is_known_is_polled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its file system mounts a second time with the device number of before."""
    kind = "ext4"
    monkeypatch.setattr(filesystems, "file_system", lambda _: kind)
    watcher = Full()
    watcher.full = False
    world.scanner.watcher = lambda: watcher
    root = world.roots[0]
    world.scan()
    away = root.rename(root.with_name("away"))
    check_roots(world)
    assert world.writer.caches[1].stale
    away.rename(root)
    kind = "nfs4"
    check_roots(world)
    world.scan()
    assert world.writer.caches[1].polled == "events do not come from nfs4"


def test_what_is_watched_again_is_compared(world: World) -> None:
    watcher = Full()
    world.scanner.watcher = lambda: watcher
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    assert world.writer.caches[1].unwatched
    path.write_bytes(wrong(LAYER))  # nobody tells
    watcher.full = False
    world.scanner._scan_cache(world.writer.caches[1], Request("polled"))  # noqa: SLF001
    assert not world.writer.caches[1].unwatched
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def read_at_once(world: World) -> None:
    """What is in hand, which has changed so lately that its ctime proves nothing."""
    world.pool.read()
    world.pool.found(lambda job, finding: replace(finding, read_until_ns=job.mark.ctime_ns))


def test_an_event_is_not_lost_in_a_doubt_that_waits(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    touch(path)
    world.pool.held = True
    world.heard(path, Cause.CREATED)
    read_at_once(world)  # the same
    world.hints.put(Hint(world.place(path), "verify"))
    path.write_bytes(wrong(LAYER))
    world.event(path, Cause.WRITTEN)
    world.run_turns(2)
    world.pool.held = False
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def test_an_event_of_a_place_that_takes_over_is_not_lost(world: World) -> None:
    paths = [land(oci(world.roots[0], LAYER, name), LAYER.stored) for name in ("a", "b")]
    world.settle()
    states = {held.state: path for path in paths if (held := world.held(path)) is not None}
    verified, untested = states["verified"], states["untested"]
    world.pool.held = True
    verified.unlink()
    world.heard(verified, Cause.DELETED)
    read_at_once(world)  # the other place, the same
    untested.write_bytes(wrong(LAYER))
    world.event(untested, Cause.WRITTEN)
    world.run_turns(2)
    world.pool.held = False
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.parametrize("event_first", [False, True])
def test_an_event_does_not_take_a_retry_away(world: World, event_first: bool) -> None:
    path = land(oci(world.roots[0], BROKEN), BROKEN.stored)
    world.settle()
    before = len(world.pool.decoded)
    hints = [Hint(world.place(path), "retry"), Hint(world.place(path), Cause.WRITTEN)]
    for hint in reversed(hints) if event_first else hints:
        world.hints.put(hint)
    world.rest()
    assert len(world.pool.decoded) == before + 1


@pytest.fixture
def watching() -> Iterator[tuple[HintQueue, InotifyWatcher]]:
    hint_queue = HintQueue()
    watcher = InotifyWatcher(hint_queue)
    yield hint_queue, watcher
    watcher.close()
    hint_queue.close()


@LINUX
def test_a_folder_that_goes_while_its_watch_is_set_is_not_taken_for_watched(
    watching: tuple[HintQueue, InotifyWatcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint_queue, watcher = watching
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    real = watcher._inotify.add_callback  # noqa: SLF001

    def add(*of: Any) -> Any:
        descriptor = real(*of)
        folder.rmdir()
        deadline = time.monotonic() + PATIENCE_S
        while not len(hint_queue):  # watchdog's thread tells of it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(watcher._inotify, "add_callback", add)  # noqa: SLF001
        watcher.enter(1, str(tmp_path), "blobs/sha256")
    assert watcher._folders == {}  # noqa: SLF001


@LINUX
def test_another_folder_in_its_place_is_told_by_whoever_enters_it_first(
    watching: tuple[HintQueue, InotifyWatcher], tmp_path: Path
) -> None:
    """A scan that goes by names may be the first."""
    hint_queue, watcher = watching
    folder = tmp_path / "blobs"
    folder.mkdir()
    watcher.enter(1, str(tmp_path), "blobs")
    watcher.enter(1, str(tmp_path), "blobs")
    assert hint_queue.take_folders() == []
    folder.rename(tmp_path / "kept")  # so that its inode is not given again
    folder.mkdir()
    watcher.enter(1, str(tmp_path), "blobs")
    assert Hint(Place(1, "blobs"), "another folder took its place") in hint_queue.take_folders()


@LINUX
@pytest.mark.parametrize("kind", ["link", "file"])
def test_no_folder_in_a_watched_folders_place_is_not_told_for_ever_and_no_lack_of_watches(
    world: World, watching: tuple[HintQueue, InotifyWatcher], kind: str
) -> None:
    hint_queue, watcher = watching
    world.scanner.watcher = lambda: watcher
    root = world.roots[0]
    land(oci(root, LAYER, "library"), LAYER.stored)
    world.settle()
    (root / "library").rename(world.folder / "moved")
    if kind == "link":
        (world.folder / "another").mkdir()
        (root / "library").symlink_to(world.folder / "another")
    else:
        (root / "library").touch()
    told = []
    for _ in range(5):  # every few seconds, for ever
        watcher.check()
        hints = hint_queue.take_folders()
        told.append(hints.count(Hint(Place(1, "library"), "another folder took its place")))
        for hint in hints:
            world.scanner._scan_folder(hint)  # noqa: SLF001
    assert told[2:] == [0, 0, 0]
    assert world.writer.caches[1].unwatched == ""
    world.run()
    world.holds_exactly()
