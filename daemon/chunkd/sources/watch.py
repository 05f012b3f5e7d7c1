"""watchdog's events as hints to look at a place. No figure depends on one having come.

On Linux the folders that hold blobs are watched one by one through watchdog's inotify descriptor: one thread for all of
them, where its `Observer` starts one for each, and it says when the kernel's queue overflowed. Elsewhere (macOS, whose
FSEvents is recursive by nature) an `Observer` watches each root.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Protocol

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import ObservedWatch

from chunkd.model import Hint, Place
from chunkd.sources import layouts
from chunkd.sources.hints import HintQueue


class Watcher(Protocol):
    """Feeds a hint_queue with hints. `alive` is false once events can no longer come."""

    def enter(self, cache: int, root: str, folder: str) -> None:
        """Watch a folder, if it is not watched yet. Raises OSError with the reason when that can't be done."""

    def leave(self, cache: int) -> None:
        """Watch nothing of that cache any longer."""

    def check(self) -> None:
        """Hint at folders whose path another one has taken without an event: what is mounted over one gives none."""

    @property
    def alive(self) -> bool: ...

    def close(self) -> None: ...


def hint_at(hint_queue: HintQueue, cache: int, root: str, path: str, directory: bool, why: str) -> None:
    """Turn one event into what should be looked at. Never raises: it runs in a watcher's thread."""
    folder, _, name = path.rpartition("/")
    if layouts.identify(root, path):
        hint_queue.put(Hint(Place(cache, path), why))
    if not directory:
        return
    if (data := layouts.blob_within(root, folder, name)) is not None:
        hint_queue.put(Hint(Place(cache, data), f"folder {why}"))
    elif layouts.worth_entering(root, folder, name):
        hint_queue.put_folder(Hint(Place(cache, path), f"folder {why}"))


if sys.platform == "linux":
    from watchdog.observers.inotify_c import (
        CallbackId,
        InotifyConstants,
        InotifyEvent,
        InotifyFD,
        Mask,
        WatchDescriptor,
    )

    # Opens and reads are left out: our own would come back as events.
    _MASK = Mask(
        InotifyConstants.IN_CREATE
        | InotifyConstants.IN_MOVED_TO
        | InotifyConstants.IN_MOVED_FROM
        | InotifyConstants.IN_DELETE
        | InotifyConstants.IN_CLOSE_WRITE
        | InotifyConstants.IN_MOVE_SELF
        | InotifyConstants.IN_ONLYDIR
    )
    _REASONS = (
        (InotifyConstants.IN_MOVED_TO, "moved in"),
        (InotifyConstants.IN_CLOSE_WRITE, "written"),
        (InotifyConstants.IN_CREATE, "created"),
        (InotifyConstants.IN_DELETE, "deleted"),
        (InotifyConstants.IN_MOVED_FROM, "moved out"),
    )

    class _Folder:
        """The callback of one watched folder. `mark` is its device and inode: another folder may take its path."""

        def __init__(self, owner: InotifyWatcher, cache: int, root: str, folder: str, mark: tuple[int, int]) -> None:
            self.owner, self.cache, self.root, self.folder, self.mark = owner, cache, root, folder, mark
            self.descriptor = WatchDescriptor(-1)
            # What was last told to have taken its place: a link or a file is never entered, and so this stays known.
            self.told = mark

        def on_event(self, event: InotifyEvent) -> None:
            if event.mask & InotifyConstants.IN_MOVE_SELF:
                self.owner.hint_queue.doubt(f"{self.root}/{self.folder} was renamed")
                return
            why = next((why for bit, why in _REASONS if event.mask & bit), None)
            if why is not None and event.name:
                name = os.fsdecode(event.name)
                path = f"{self.folder}/{name}" if self.folder else name
                directory = bool(event.mask & InotifyConstants.IN_ISDIR)
                hint_at(self.owner.hint_queue, self.cache, self.root, path, directory, f"{why} (event)")

        def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002
            self.owner.forget(self)
            if not self.folder:  # no folder above it is watched, whose events would tell
                self.owner.hint_queue.doubt(f"{self.root} was removed or unmounted")
            else:
                self.owner.hint_queue.put_folder(Hint(Place(self.cache, self.folder), "it was removed or unmounted"))

        def on_queue_overflow(self) -> None:
            self.owner.hint_queue.doubt("the kernel's event queue overflowed")

    class InotifyWatcher:
        """Every watched folder of every cache, on one inotify descriptor and its one thread."""

        def __init__(self, hint_queue: HintQueue) -> None:
            self.hint_queue = hint_queue
            self._folders: dict[Place, _Folder] = {}
            self._inotify = InotifyFD()
            self._inotify.start()

        def enter(self, cache: int, root: str, folder: str) -> None:
            path = os.path.join(root, folder)
            status = os.stat(path)
            mark = status.st_dev, status.st_ino
            place = Place(cache, folder)
            known = self._folders.get(place)
            if known is not None and known.mark == mark:
                return
            if known is not None:
                self._drop(known)
                # Whoever lists it now may be going by names alone.
                self.hint_queue.put_folder(Hint(place, "another folder took its place"))
            # Known before it is watched: it may be removed, and its watch with it, before this thread goes on.
            watched = self._folders[place] = _Folder(self, cache, root, folder, mark)
            try:
                watched.descriptor = self._inotify.add_callback(
                    os.fsencode(path), _MASK, watched, CallbackId(id(watched))
                )
            except OSError as error:
                self.forget(watched)
                raise OSError(error.errno, f"{error.strerror}: {path}") from error
            if watched.descriptor == -1:  # watchdog swallows EACCES
                self.forget(watched)
                raise PermissionError(13, f"permission denied: {path}")

        def check(self) -> None:
            for place, watched in list(self._folders.items()):
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(watched.root, watched.folder))
                    seen, before = (status.st_dev, status.st_ino), watched.told
                    watched.told = seen
                    if seen not in (watched.mark, before):
                        self.hint_queue.put_folder(Hint(place, "another folder took its place"))

        def leave(self, cache: int) -> None:
            for place, watched in list(self._folders.items()):
                if place.cache == cache:
                    self._drop(watched)

        def forget(self, watched: _Folder) -> None:
            place = Place(watched.cache, watched.folder)
            if self._folders.get(place) is watched:
                self._folders.pop(place, None)

        def _drop(self, watched: _Folder) -> None:
            self.forget(watched)
            self._inotify.remove_callbacks([(watched.descriptor, CallbackId(id(watched)))])

        @property
        def alive(self) -> bool:
            return self._inotify.is_alive()

        def close(self) -> None:
            self._inotify.stop()
            self._inotify.join(timeout=5)


class RootWatcher:
    """One recursive `Observer` watch for each cache."""

    def __init__(self, hint_queue: HintQueue) -> None:
        from watchdog.observers import Observer  # on Linux it is for tests alone

        self._backlog = hint_queue
        self._watches: dict[int, ObservedWatch] = {}
        self._observer = Observer()
        self._observer.start()

    def enter(self, cache: int, root: str, folder: str) -> None:
        if cache not in self._watches and not folder:
            wanted: list[type[FileSystemEvent]] = [
                FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileClosedEvent, FileDeletedEvent,
                DirCreatedEvent, DirMovedEvent, DirDeletedEvent,
            ]  # fmt: skip
            handler = _Handler(self._backlog, cache, root)
            self._watches[cache] = self._observer.schedule(handler, handler.real, recursive=True, event_filter=wanted)

    def check(self) -> None:
        pass  # FSEvents goes by paths

    def leave(self, cache: int) -> None:
        watch = self._watches.pop(cache, None)
        if watch is not None:
            self._observer.unschedule(watch)

    @property
    def alive(self) -> bool:
        return self._observer.is_alive() and all(emitter.is_alive() for emitter in self._observer.emitters)

    def close(self) -> None:
        self._observer.stop()
        self._observer.join(timeout=5)


class _Handler(FileSystemEventHandler):
    def __init__(self, hint_queue: HintQueue, cache: int, root: str) -> None:
        self._backlog, self._cache, self._root = hint_queue, cache, root
        # FSEvents names paths without symbolic links (/private/var for /var).
        self.real = str(Path(root).resolve())

    def on_any_event(self, event: FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            text = os.fsdecode(path)
            if text.startswith(self.real + "/"):
                relative = text[len(self.real) + 1 :]
                hint_at(
                    self._backlog, self._cache, self._root, relative, event.is_directory, f"{event.event_type} (event)"
                )


def start_watcher(hint_queue: HintQueue) -> Watcher:
    """The watcher of this platform, running. Raises OSError when there is none to be had (inotify's instance limit)."""
    return InotifyWatcher(hint_queue) if sys.platform == "linux" else RootWatcher(hint_queue)
