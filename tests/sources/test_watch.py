"""Hints from real events. A test waits for a last event of its own, so that none is awaited in vain."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkd.model import Cause, Hint, Job, Place
from chunkd.sources.activity import Activity
from chunkd.sources.folder import FolderSource
from chunkd.sources.hints import HintQueue
from chunkd.sources.listing import walk
from chunkd.sources.watch import RootWatcher, Watcher, start_watcher
from chunkd.worker.examine import examine
from ingesting import CAPS, LAYER, LIKE_IT, OTHER, PARAMS, distribution, land, oci, write_in_place

PATIENCE_S = 20.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


class Watched:
    """A cache that is watched, and what its events led to."""

    def __init__(self, root: Path, make: Callable[[HintQueue, str], Watcher]) -> None:
        self.root = root
        self.hint_queue = HintQueue(1, Activity())
        self.watcher = make(self.hint_queue, str(root))
        self.empty = root.parent / "empty"
        self.empty.write_bytes(b"")
        self.folders: list[str] = []
        self.ends: list[str] = []
        # Places that were named by their folder, so that the blob may be about to come.
        self.awaited: set[str] = set()

    def enter(self, folder: str = "") -> None:
        """As a scan does: this folder and all below it."""
        for _ in walk(FolderSource(str(self.root)), folder, self.watcher.enter):
            pass

    def hints(self) -> dict[str, Cause]:
        """What was hinted, by path, once all events up to now have come: the last one is told by its name.

        It is a link, which gives one event alone: a file that is written gives a second, which may come after this.
        """
        self.ends.append(f"{len(self.ends):064}")
        os.link(self.empty, self.root / self.ends[-1])
        found: dict[str, Cause] = {}
        deadline = time.monotonic() + PATIENCE_S
        while self.ends[-1] not in found:
            assert time.monotonic() < deadline, found
            hints = [hint for hint, _ in self.hint_queue.take(1000)]
            assert all(hint.by_event for hint in hints)
            self.awaited |= {hint.place.path for hint in hints if hint.folder}
            found = {hint.place.path: hint.cause for hint in hints} | found
            while (folder := self.hint_queue.take_folder()) is not None:
                self.folders.append(folder[0])
        return {path: cause for path, cause in found.items() if path not in self.ends}

    def doubt(self) -> str:
        found: list[str] = []
        self.hint_queue.take_doubt(found.append)
        return "".join(found)

    def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline
            self.hint_queue.news.wait(0.01)

    def close(self) -> None:
        self.watcher.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    root = tmp_path / "cache"
    (root / "blobs" / "sha256" / LAYER.hex[:2]).mkdir(parents=True)
    made = Watched(root, start_watcher)
    made.enter()
    yield made
    made.close()


@pytest.fixture
def rooted(tmp_path: Path) -> Iterator[Watched]:
    root = tmp_path / "cache"
    # All there before it is watched: watchdog's own thread on Linux may die of folders that come in quick succession.
    for folder in (".", ".sync/library", "_trash"):
        (root / folder / "blobs" / "sha256").mkdir(parents=True)
    before = set(threading.enumerate())
    made = Watched(root, RootWatcher)
    made.enter()
    yield made
    made.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)


def name(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


@LINUX
def test_each_way_to_land_and_to_leave_is_hinted(watched: Watched) -> None:
    root = watched.root
    moved = land(oci(root, LAYER), LAYER.stored)
    written = write_in_place(oci(root, LIKE_IT), LIKE_IT.stored)
    linked = oci(root, OTHER)
    os.link(moved, linked)
    assert watched.hints() == {
        name(moved, root): Cause.MOVED_IN,
        name(written, root): Cause.CREATED,
        name(linked, root): Cause.CREATED,
    }
    with written.open("ab") as file:
        file.write(b"more")
    linked.unlink()
    moved.rename(root.parent / "elsewhere")
    assert watched.hints() == {
        name(written, root): Cause.WRITTEN,
        name(linked, root): Cause.DELETED,
        name(moved, root): Cause.MOVED_OUT,
    }
    assert watched.folders == []


@LINUX
def test_names_that_are_no_blobs_are_not_hinted(watched: Watched) -> None:
    write_in_place(watched.root / "blobs" / "sha256" / f"{LAYER.hex}12", b"")
    write_in_place(watched.root / "index.json", b"")
    assert watched.hints() == {}
    assert len(watched.hint_queue) == 0


@LINUX
@pytest.mark.parametrize("how", ["written", "renamed", "removed"])
def test_a_layouts_names_that_change_are_noted(watched: Watched, how: str) -> None:
    index = watched.root / "repository/index.json"
    index.parent.mkdir()
    index.write_text("{}")
    watched.enter()
    watched.hints()
    watched.hint_queue.take_names_changed()
    land(oci(watched.root, LAYER), LAYER.stored)
    index.read_text()
    watched.hints()
    assert not watched.hint_queue.take_names_changed()
    match how:
        case "written":
            index.write_text("{} ")
        case "renamed":
            watched.empty.with_name("new").write_text("{}")
            watched.empty.with_name("new").rename(index)
        case "removed":
            index.unlink()
    watched.hints()
    assert watched.hint_queue.take_names_changed()
    assert not watched.hint_queue.take_names_changed()


@LINUX
def test_our_own_reading_is_not_hinted(watched: Watched) -> None:
    path = land(oci(watched.root, LAYER), LAYER.stored)
    watched.hints()
    with FolderSource(str(watched.root)).view() as view:
        descriptor, seen = view.open(str(path.relative_to(watched.root)))
    assert examine(Job(LAYER.digest, seen.mark), descriptor, PARAMS, CAPS, lambda _: None).kind == "layer"
    os.stat(path)
    os.listdir(path.parent)
    os.chmod(path, 0o444)
    watched.enter()
    assert watched.hints() == {}


@LINUX
def test_a_folder_that_appears_is_to_be_listed(watched: Watched) -> None:
    land(oci(watched.root, LAYER, "library"), LAYER.stored)
    (watched.root / ".uploads").mkdir()
    assert watched.hints() == {}
    assert watched.folders == ["library"]
    watched.enter("library")
    path = land(oci(watched.root, OTHER, "library"), OTHER.stored)
    assert watched.hints() == {name(path, watched.root): Cause.MOVED_IN}


@LINUX
def test_quays_upload_is_a_hint_once_it_was_moved_into_place(watched: Watched) -> None:
    """As its `complete_chunked_upload` does: the folder is made if it is missing, and the upload moved into it."""
    upload = watched.root / "uploads" / "11b7c9a0-e7c5-4f8e-8d7f-0b5d5b6a1f2e"
    upload.parent.mkdir()
    upload.write_bytes(LAYER.stored)
    path = watched.root / "sha256" / LAYER.hex[:2] / LAYER.hex
    path.parent.mkdir(parents=True)
    assert watched.hints() == {}
    assert "sha256" in watched.folders
    watched.enter("sha256")
    upload.rename(path)
    assert watched.hints() == {name(path, watched.root): Cause.MOVED_IN}
    path.unlink()
    assert watched.hints() == {name(path, watched.root): Cause.DELETED}


@LINUX
def test_a_blobs_own_folder_is_a_hint_for_the_blob(watched: Watched) -> None:
    path = land(distribution(watched.root, LAYER), LAYER.stored)
    assert watched.hints() == {name(path, watched.root): Cause.CREATED}
    assert watched.awaited == {name(path, watched.root)}
    path.unlink()
    path.parent.rmdir()
    assert watched.hints() == {name(path, watched.root): Cause.DELETED}
    assert watched.folders == []


@LINUX
@pytest.mark.parametrize("how", ["deleted", "moved out"])
def test_a_folder_that_goes_is_to_be_listed(watched: Watched, how: str) -> None:
    folder = watched.root / "blobs" / "sha256" / LAYER.hex[:2]
    folder.rmdir() if how == "deleted" else folder.rename(watched.root.parent / "away")
    watched.hints()
    assert name(folder, watched.root) in watched.folders
    assert bool(watched.doubt()) == (how == "moved out")


@LINUX
def test_a_folder_that_comes_again_is_watched_again(watched: Watched) -> None:
    folder = watched.root / "blobs" / "sha256" / LAYER.hex[:2]
    for _ in range(3):
        folder.rmdir()
        folder.mkdir()
        watched.hints()
        watched.enter(name(folder, watched.root))
        path = folder / LAYER.hex / "data"
        path.parent.mkdir()
        assert watched.hints() == {name(path, watched.root): Cause.CREATED}
        path.parent.rmdir()
        watched.hints()


@LINUX
def test_a_folder_that_another_took_the_place_of_is_watched(watched: Watched) -> None:
    folder = watched.root / "blobs" / "sha256"
    folder.rename(watched.root.parent / "old")
    folder.mkdir()
    watched.until(watched.doubt)
    watched.enter()
    path = land(folder / OTHER.hex, b"")
    assert watched.hints()[name(path, watched.root)] == Cause.MOVED_IN


@LINUX
@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_root_that_goes_is_a_doubt(watched: Watched, how: str) -> None:
    if how == "renamed":
        watched.root.rename(watched.root.parent / "away")
    else:
        for folder in sorted(watched.root.rglob("*"), reverse=True):
            folder.rmdir()
        watched.root.rmdir()
    watched.until(watched.doubt)


@LINUX
def test_a_folder_is_watched_once_however_often_it_is_entered(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Any] = []

    def add(*of: Any) -> Any:
        added.append(of)
        return real(*of)

    inotify = watched.watcher._inotify  # type: ignore[attr-defined]  # noqa: SLF001
    real = inotify.add_callback
    monkeypatch.setattr(inotify, "add_callback", add)
    for _ in range(3):
        watched.enter()
    assert added == []
    (watched.root / "new").mkdir()
    for _ in range(3):
        watched.enter()
    assert len(added) == 1


@LINUX
def test_a_watch_that_cannot_be_set_says_why(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    from watchdog.observers import inotify_c

    new = watched.root / "new"
    new.mkdir()
    for code, said in (
        (errno.ENOSPC, f"inotify watch limit reached: {new}"),
        (errno.EACCES, f"permission denied: {new}"),
        (errno.ENOMEM, f"Cannot allocate memory: {new}"),
    ):

        def refuse(*_: object, code: int = code) -> int:
            ctypes.set_errno(code)
            return -1

        with monkeypatch.context() as patched:
            patched.setattr(inotify_c, "inotify_add_watch", refuse)
            with pytest.raises(OSError) as caught:  # noqa: PT011
                watched.watcher.enter("new")
        assert caught.value.strerror == said
    with pytest.raises(FileNotFoundError):
        watched.watcher.enter("nothing")
    watched.watcher.enter("new")  # the limit was raised
    (new / "deeper").mkdir()
    watched.hints()
    assert "new/deeper" in watched.folders


@LINUX
def test_an_overflow_is_a_doubt(watched: Watched) -> None:
    from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, WatchDescriptor

    inotify = watched.watcher._inotify  # type: ignore[attr-defined]  # noqa: SLF001
    inotify.handle_event(InotifyEvent(WatchDescriptor(-1), InotifyConstants.IN_Q_OVERFLOW, 0, b""))
    assert watched.doubt() == "the kernel's event queue overflowed"
    assert watched.watcher.alive


@LINUX
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_whose_thread_died_says_so(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    inotify = watched.watcher._inotify  # type: ignore[attr-defined]  # noqa: SLF001
    assert watched.watcher.alive

    def die(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(inotify, "handle_event", die)
    (watched.root / OTHER.hex).write_bytes(b"")
    inotify.join(PATIENCE_S)
    assert not watched.watcher.alive


@LINUX
def test_a_cache_that_is_left_sends_nothing(watched: Watched) -> None:
    other = HintQueue(2, Activity())
    beside = start_watcher(other, str(watched.root))  # the same folder is another cache too
    try:
        beside.enter("")
        watched.watcher.leave()
        path = land(watched.root / LAYER.hex, b"")
        land(oci(watched.root, OTHER), b"")
        watched.until(lambda: len(other))
        assert [hint for hint, _ in other.take(9)] == [Hint(Place(2, path.name), Cause.MOVED_IN, by_event=True)]
        assert watched.watcher.alive
    finally:
        beside.close()
    assert len(watched.hint_queue) == 0
    land(watched.root / OTHER.hex, b"")
    watched.enter()
    assert watched.hints() == {}
    path = land(watched.root / LIKE_IT.hex, b"")
    assert watched.hints() == {path.name: Cause.MOVED_IN}


@LINUX
def test_what_is_mounted_over_a_watched_folder_is_to_be_listed_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That gives no event: another folder has the path."""
    folder = watched.root / "blobs" / "sha256"
    real = os.stat

    def stat(path: Any, **flags: Any) -> os.stat_result:
        status = real(path, **flags)
        return os.stat_result([*status[:2], status.st_dev + 1, *status[3:]]) if path == str(folder) else status

    watched.watcher.check()
    watched.hints()
    assert watched.folders == []
    monkeypatch.setattr(os, "stat", stat)
    for _ in range(3):
        watched.watcher.check()
    watched.hints()
    assert watched.folders == ["blobs/sha256"]


@LINUX
def test_names_in_any_bytes_come_through(watched: Watched) -> None:
    (watched.root / "caf\udce9").mkdir()
    watched.hints()
    assert watched.folders == ["caf\udce9"]


def test_a_root_watcher_hints_at_blobs_and_folders(rooted: Watched) -> None:
    root = rooted.root
    moved = land(oci(root, LAYER), LAYER.stored)
    written = write_in_place(oci(root, OTHER), OTHER.stored)
    found = rooted.hints()
    assert set(found) == {name(moved, root), name(written, root)}
    moved.unlink()
    written.rename(oci(root, LIKE_IT))
    found = rooted.hints()
    assert set(found) == {name(moved, root), name(written, root), name(oci(root, LIKE_IT), root)}
    (root / "library").mkdir()
    rooted.hints()
    assert "library" in rooted.folders
    assert rooted.watcher.alive


def test_a_root_watcher_hints_at_nothing_private(rooted: Watched) -> None:
    land(oci(rooted.root / ".sync" / "library", LAYER), LAYER.stored)
    land(oci(rooted.root / "_trash", LAYER), LAYER.stored)
    assert rooted.hints() == {}
    assert [folder for folder in rooted.folders if "sync" in folder or "trash" in folder] == []


def test_a_root_watcher_follows_a_root_that_is_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "cache").symlink_to(real)
    made = Watched(tmp_path / "cache", RootWatcher)
    try:
        made.enter()
        made.enter()
        land(tmp_path / "cache" / LAYER.hex, b"")
        assert set(made.hints()) == {LAYER.hex}
        made.watcher.leave()
        made.watcher.leave()
        assert made.watcher.alive
    finally:
        made.close()
    assert not made.watcher.alive
