"""Orders of events in which something was learnt on one way and not on another: what the disk holds is what counts."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chunkd.model import Cause, Hint, Timing
from chunkd.sources import filesystems
from chunkd.sources.activity import Activity
from chunkd.sources.hints import HintQueue
from chunkd.sources.source import Seen
from chunkd.sources.watch import InotifyWatcher
from faulty import FaultySource, FaultyView, faulty
from ingesting import BROKEN, LAYER, OTHER, Deaf, World, distribution, land, oci, touch, world_in, write_in_place, wrong
from test_watch import LINUX, PATIENCE_S


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def look_at_roots(world: World) -> None:
    """As each cache's thread does every few seconds."""
    world.pass_s(Timing().look_at_root_s)


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
    assert world.caches[1].status.stale
    away.rename(root)
    (root / "library" / "blobs" / "sha256").mkdir(parents=True)
    world.event(root / "library", Cause.CREATED, folder=True)
    world.run()
    look_at_roots(world)
    world.rest()
    world.holds_exactly(LAYER, OTHER)


@pytest.mark.parametrize("another", [True, False])
def test_a_root_that_is_back_between_two_looks_is_no_removal(world: World, another: bool) -> None:
    """It was not there when the place was looked at, or another was, and then it is."""
    root, away = world.roots[0], world.roots[0].with_name("away")

    def back() -> None:
        if away.exists():
            if another:
                root.rmdir()
            away.rename(root)

    class Returning(FaultySource):
        @contextlib.contextmanager
        def view(self) -> Iterator[FaultyView]:
            try:
                with super().view() as view:
                    yield view
            finally:
                back()

    def look(look: Callable[[str], Seen], what: str) -> Seen:
        try:
            return look(what)
        finally:
            back()

    source = faulty(world, source=Returning)
    path = land(oci(root, LAYER), LAYER.stored)
    world.settle()
    source.look = look
    root.rename(away)
    if another:
        root.mkdir()
    world.heard(path, Cause.WRITTEN)
    assert not away.exists()
    look_at_roots(world)
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

    def enter(self, folder: str) -> None:  # noqa: ARG002
        if self.full:
            raise OSError(28, "limit")


def watch_by(world: World, watcher: Deaf) -> None:
    """From now on: the daemon is started anew with it."""
    world.make_watcher = lambda *_: watcher
    world.restart()


def test_what_is_mounted_late_from_another_host_is_polled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "ext4"
    monkeypatch.setattr(filesystems, "file_system", lambda _: kind)
    watcher = Full()
    watcher.full = False
    watch_by(world, watcher)
    root = world.roots[0]
    world.scan()
    for kind, reason in (("nfs4", "events do not come from nfs4"), ("ext4", "")):
        away = root.rename(root.with_name(f"before {kind}"))
        look_at_roots(world)
        assert world.caches[1].status.stale
        assert away.exists()
        root.mkdir()
        look_at_roots(world)
        world.run()
        assert world.caches[1].status.polled == reason


def test_what_is_mounted_late_with_the_root_that_is_known_is_polled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its file system mounts a second time with the device number of before."""
    kind = "ext4"
    monkeypatch.setattr(filesystems, "file_system", lambda _: kind)
    watcher = Full()
    watcher.full = False
    watch_by(world, watcher)
    root = world.roots[0]
    world.scan()
    away = root.rename(root.with_name("away"))
    look_at_roots(world)
    assert world.caches[1].status.stale
    away.rename(root)
    kind = "nfs4"
    look_at_roots(world)
    world.scan()
    assert world.caches[1].status.polled == "events do not come from nfs4"


def test_what_is_watched_again_is_compared(world: World) -> None:
    watcher = Full()
    watch_by(world, watcher)
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    assert world.caches[1].status.unwatched
    path.write_bytes(wrong(LAYER))  # nobody tells
    watcher.full = False
    world.pass_s(60)  # it is listed on the timer
    assert not world.caches[1].status.unwatched
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
    world.caches[1].hints.put(Hint(world.place(path), Cause.VERIFY))
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
    hints = [
        Hint(world.place(path), Cause.RETRY, force=True),
        Hint(world.place(path), Cause.WRITTEN, by_event=True),
    ]
    for hint in reversed(hints) if event_first else hints:
        world.caches[1].hints.put(hint)
    world.rest()
    assert len(world.pool.decoded) == before + 1


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[tuple[HintQueue, InotifyWatcher]]:
    hints = HintQueue(1, Activity())
    watcher = InotifyWatcher(hints, str(tmp_path))
    yield hints, watcher
    watcher.close()


@LINUX
def test_a_folder_that_goes_while_its_watch_is_set_is_not_taken_for_watched(
    watching: tuple[HintQueue, InotifyWatcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints, watcher = watching
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    real = watcher._inotify.add_callback  # noqa: SLF001

    def add(*of: Any) -> Any:
        descriptor = real(*of)
        folder.rmdir()
        deadline = time.monotonic() + PATIENCE_S
        while not len(hints):  # watchdog's thread tells of it
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(watcher._inotify, "add_callback", add)  # noqa: SLF001
        watcher.enter("blobs/sha256")
    assert watcher._folders == {}  # noqa: SLF001


@LINUX
def test_another_folder_in_its_place_is_told_by_whoever_enters_it_first(
    watching: tuple[HintQueue, InotifyWatcher], tmp_path: Path
) -> None:
    """A scan that goes by names may be the first."""
    hints, watcher = watching
    folder = tmp_path / "blobs"
    folder.mkdir()
    watcher.enter("blobs")
    watcher.enter("blobs")
    assert hints.take_folder() is None
    folder.rename(tmp_path / "kept")  # so that its inode is not given again
    folder.mkdir()
    watcher.enter("blobs")
    assert (taken := hints.take_folder()) is not None
    assert taken[0] == "blobs"


@LINUX
@pytest.mark.parametrize("kind", ["link", "file"])
def test_no_folder_in_a_watched_folders_place_is_not_told_for_ever_and_no_lack_of_watches(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_watcher = InotifyWatcher
    world.restart()
    cache, root = world.caches[1], world.roots[0]
    land(oci(root, LAYER, "library"), LAYER.stored)
    world.settle()
    real = cache.hints.put_folder
    told: list[str] = []

    def put_folder(folder: str) -> None:
        if threading.current_thread() is threading.main_thread():  # what the watcher's own thread tells are events
            told.append(folder)
        real(folder)

    monkeypatch.setattr(cache.hints, "put_folder", put_folder)
    (root / "library").rename(world.folder / "moved")
    if kind == "link":
        (world.folder / "another").mkdir()
        (root / "library").symlink_to(world.folder / "another")
    else:
        (root / "library").touch()
    counts = []
    for _ in range(5):  # every few seconds, for ever
        told.clear()
        look_at_roots(world)
        counts.append(told.count("library"))
    assert counts[2:] == [0, 0, 0]
    assert sum(counts) > 0
    assert cache.status.unwatched == ""
    world.rest()
    world.holds_exactly()
