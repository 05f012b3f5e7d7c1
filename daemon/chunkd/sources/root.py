"""A cache's root and what is mounted below it, as the index recorded them and as they are now."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable

from chunkd.model import Cache, FileMark
from chunkd.sources.source import RootMark, Source, View

log = logging.getLogger(__name__)


class Root:
    """Used by the cache's own thread alone.

    `device`, `inode` and `fsid` are the root's as recorded, 0 before the first look. `stale` says why nothing of the
    cache may be added or subtracted now. `missed`: it was stale, and no listing has compared everything since. `mounts`
    has the devices of the mounts below the root that hold blobs, by folder; `missing` are those that are away. `empty`:
    the index holds no place of the cache, so there is nothing to protect from another file system.

    `recognise(folder, number, by_fsid)` says whether what is at a folder is the file system of a recorded number under
    another device number.
    """

    def __init__(
        self,
        source: Source,
        record: Cache,
        *,
        empty: bool,
        recognise: Callable[[str, int, bool], bool] = lambda *_: False,
    ) -> None:
        self._source, self._recognise = source, recognise
        self.device, self.inode, self.fsid = record.device, record.inode, record.fsid
        self.mounts = dict(record.mounts)
        self.empty = empty
        self.missing: set[str] = set()
        self.stale = ""
        self.missed = False

    def check(self) -> RootMark | None:
        """The root as it is now. None, with `stale` set, if it is not the one whose blobs are in the index."""
        mark = None
        try:
            mark = self._source.look_at_root()
        except NotADirectoryError:
            self.stale = "its root is not a folder"
        except OSError as error:
            self.stale = f"its root can't be reached: {error.strerror}"
        else:
            self.stale = ""
            # A disk that takes another's place often takes its device number too: the fsid tells them apart.
            another = mark.device != self.device or (self.fsid and mark.fsid not in (0, self.fsid))
            if self.device and another and not self.empty:
                by_fsid = mark.fsid != 0 and (mark.fsid, mark.inode) == (self.fsid, self.inode)
                if self._is_the_same("", self.device, by_fsid=by_fsid):
                    self.fsid = mark.fsid
                    return mark._replace(device=self.device)
                self.stale = (
                    "its root is on another device than recorded;"
                    f" if that is meant, run `chunkd scan --accept {self._source.path}`"
                )
        self.missed |= bool(self.stale)
        return None if self.stale else mark

    def _is_the_same(self, folder: str, number: int, *, by_fsid: bool = False) -> bool:
        """Whether the file system there is the recorded one under another number. Everything is compared then."""
        with contextlib.suppress(OSError):
            if self._recognise(folder, number, by_fsid):
                where = os.path.join(self._source.path, folder).rstrip("/")
                by = "fsid" if by_fsid else "files"
                log.info("%s: its file system has another device number and is the same, by its %s", where, by)
                self.missed = True
                return True
        return False

    def accept(self, mark: RootMark) -> None:
        self.device, self.inode, self.fsid, self.stale, self.missed = *mark, "", False

    def mount_of(self, path: str) -> str:
        """The recorded mount below the root to which a path belongs, `""` for the root's own."""
        if not self.mounts:
            return ""
        return max((mount for mount in self.mounts if f"{path}/".startswith(f"{mount}/")), key=len, default="")

    def away(self, view: View, path: str) -> str:
        """Why the absence of a path proves nothing: its mount is away. `""` if the path is really gone."""
        mount = self.mount_of(path)
        if not mount:
            return ""
        try:
            number = self.mounts[mount]
            if view.look(mount).mark.device == number or self._is_the_same(mount, number):
                self.missing.discard(mount)
                return ""
        except OSError:
            pass
        self.missing.add(mount)
        where = os.path.join(self._source.path, mount)
        return (
            f"{where}: the file system that was mounted there is away;"
            f" if that is meant, run `chunkd scan --accept {self._source.path}`"
        )

    def out_of_sight(self, path: str) -> str:
        """Why the absence of what lies beside the blobs at this absolute path proves nothing, "" if it proves that."""
        below = os.path.relpath(path, self._source.path)
        if self.check() is None or not self.mount_of(below):
            return self.stale
        try:
            with self._source.view() as view:
                return self.away(view, below)
        except OSError as error:
            return str(error.strerror)

    def note_mount(self, view: View, path: str, mark: FileMark) -> None:
        """Record the mount of this blob, unless it is known. Nothing is learnt from a root that is not the recorded
        one, nor from what lies where a mount is away.
        """
        known = self.mount_of(path)
        if mark.device in (self.device, self.mounts.get(known)) or view.root.device != self.device:
            return
        folder = os.path.dirname(path)
        try:
            if not folder or view.look(folder).mark.device != mark.device or self.away(view, folder):
                return
            while (parent := os.path.dirname(folder)) and view.look(parent).mark.device == mark.device:
                folder = parent
        except OSError:
            return
        self.mounts[folder] = mark.device

    def forget_mounts(self, view: View) -> None:
        """Forget the mounts that are away, as the user asked, and those on the device of the root itself."""
        for mount, device in list(self.mounts.items()):
            if device == self.device or self.away(view, mount):
                del self.mounts[mount]
                self.missing.discard(mount)
