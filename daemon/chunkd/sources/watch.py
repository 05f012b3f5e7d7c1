"""watchdog's events as hints to look at a place. No figure depends on one having come.

On Linux the folders of a cache that hold blobs are watched one by one through watchdog's inotify descriptor: one thread
for all of them, where its `Observer` starts one for each, and it says when the kernel's queue overflowed. Elsewhere
(macOS, whose FSEvents is recursive by nature) an `Observer` watches the root.
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

from chunkd.model import Cause, Hint, Place
from chunkd.sources import layouts
from chunkd.sources.hints import HintQueue


class Watcher(Protocol):
    """Feeds a cache's queue with hints. `alive` is false once events can no longer come."""

    def enter(self, folder: str) -> None:
        """Watch a folder, if it is not watched yet. Raises OSError with the reason when that can't be done."""

    def leave(self) -> None:
        """Watch nothing any longer."""

    def check(self) -> None:
        """Hint at folders whose path another one has taken without an event: what is mounted over one gives none."""

    @property
    def alive(self) -> bool: ...

    def close(self) -> None: ...


def hint_at(hints: HintQueue, root: str, path: str, directory: bool, cause: Cause) -> None:
    """Turn one event into what should be observed. Never raises: it runs in a watcher's thread."""
    folder, _, name = path.rpartition("/")
    if layouts.identify(root, path):
        hints.put(Hint(Place(hints.cache, path), cause, by_event=True))
    if not directory:
        if name == layouts.INDEX:
            hints.note_names()
        return
    if (data := layouts.blob_within(root, folder, name)) is not None:
        hints.put(Hint(Place(hints.cache, data), cause, by_event=True, folder=True))
    elif layouts.worth_entering(root, folder, name):
        hints.put_folder(path)


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
    _CAUSES = (
        (InotifyConstants.IN_MOVED_TO, Cause.MOVED_IN),
        (InotifyConstants.IN_CLOSE_WRITE, Cause.WRITTEN),
        (InotifyConstants.IN_CREATE, Cause.CREATED),
        (InotifyConstants.IN_DELETE, Cause.DELETED),
        (InotifyConstants.IN_MOVED_FROM, Cause.MOVED_OUT),
    )

    class _Folder:
        """The callback of one watched folder. `mark` is its device and inode: another folder may take its path."""

        def __init__(self, owner: InotifyWatcher, folder: str, mark: tuple[int, int]) -> None:
            self.owner, self.folder, self.mark = owner, folder, mark
            self.descriptor = WatchDescriptor(-1)
            # What was last told to have taken its place: a link or a file is never entered, and so this stays known.
            self.told = mark

        def on_event(self, event: InotifyEvent) -> None:
            if event.mask & InotifyConstants.IN_MOVE_SELF:
                self.owner.hints.doubt(f"{self.owner.path(self.folder)} was renamed")
                return
            cause = next((cause for bit, cause in _CAUSES if event.mask & bit), None)
            if cause is not None and event.name:
                name = os.fsdecode(event.name)
                path = f"{self.folder}/{name}" if self.folder else name
                directory = bool(event.mask & InotifyConstants.IN_ISDIR)
                hint_at(self.owner.hints, self.owner.root, path, directory, cause)

        def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002
            self.owner.forget(self)
            if not self.folder:  # no folder above it is watched, whose events would tell
                self.owner.hints.doubt(f"{self.owner.root} was removed or unmounted")
            else:
                self.owner.hints.put_folder(self.folder)

        def on_queue_overflow(self) -> None:
            self.owner.hints.doubt("the kernel's event queue overflowed")

    class InotifyWatcher:
        """Every watched folder of one cache, on one inotify descriptor and its one thread."""

        def __init__(self, hints: HintQueue, root: str) -> None:
            self.hints, self.root = hints, root
            self._folders: dict[str, _Folder] = {}
            self._inotify = InotifyFD()
            self._inotify.start()

        def path(self, folder: str) -> str:
            return os.path.join(self.root, folder)

        def enter(self, folder: str) -> None:
            path = self.path(folder)
            status = os.stat(path)
            mark = status.st_dev, status.st_ino
            known = self._folders.get(folder)
            if known is not None and known.mark == mark:
                return
            if known is not None:
                self._drop(known)
                # Whoever lists it now may be going by names alone.
                self.hints.put_folder(folder)
            # Known before it is watched: it may be removed, and its watch with it, before this thread goes on.
            watched = self._folders[folder] = _Folder(self, folder, mark)
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
            for folder, watched in list(self._folders.items()):
                with contextlib.suppress(OSError):
                    status = os.stat(self.path(folder))
                    seen, before = (status.st_dev, status.st_ino), watched.told
                    watched.told = seen
                    if seen not in (watched.mark, before):
                        self.hints.put_folder(folder)

        def leave(self) -> None:
            for watched in list(self._folders.values()):
                self._drop(watched)

        def forget(self, watched: _Folder) -> None:
            if self._folders.get(watched.folder) is watched:
                self._folders.pop(watched.folder, None)

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
    """One recursive `Observer` watch of the root."""

    def __init__(self, hints: HintQueue, root: str) -> None:
        from watchdog.observers import Observer  # on Linux it is for tests alone

        self._handler = _Handler(hints, root)
        self._watch: ObservedWatch | None = None
        self._observer = Observer()
        self._observer.start()

    def enter(self, folder: str) -> None:
        if self._watch is None and not folder:
            wanted: list[type[FileSystemEvent]] = [
                FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileClosedEvent, FileDeletedEvent,
                DirCreatedEvent, DirMovedEvent, DirDeletedEvent,
            ]  # fmt: skip
            self._watch = self._observer.schedule(
                self._handler, self._handler.real, recursive=True, event_filter=wanted
            )

    def check(self) -> None:
        pass  # FSEvents goes by paths

    def leave(self) -> None:
        if self._watch is not None:
            self._observer.unschedule(self._watch)
            self._watch = None

    @property
    def alive(self) -> bool:
        return self._observer.is_alive() and all(emitter.is_alive() for emitter in self._observer.emitters)

    def close(self) -> None:
        self._observer.stop()
        self._observer.join(timeout=5)


class _Handler(FileSystemEventHandler):
    def __init__(self, hints: HintQueue, root: str) -> None:
        self._hints, self._root = hints, root
        # FSEvents names paths without symbolic links (/private/var for /var).
        self.real = str(Path(root).resolve())

    def on_any_event(self, event: FileSystemEvent) -> None:
        cause = _CAUSE_OF.get(event.event_type, Cause.CHANGED)
        for path in (event.src_path, event.dest_path):
            text = os.fsdecode(path)
            if text.startswith(self.real + "/"):
                hint_at(self._hints, self._root, text[len(self.real) + 1 :], event.is_directory, cause)


_CAUSE_OF = {"created": Cause.CREATED, "deleted": Cause.DELETED, "moved": Cause.MOVED_IN, "closed": Cause.WRITTEN}


def start_watcher(hints: HintQueue, root: str) -> Watcher:
    """The watcher of this platform, running. Raises OSError when there is none to be had (inotify's instance limit)."""
    return InotifyWatcher(hints, root) if sys.platform == "linux" else RootWatcher(hints, root)
