"""A cache that is a folder of this machine's file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence

from chunkd.errors import CacheUnusable
from chunkd.sources.beneath import Beneath
from chunkd.sources.source import Entry, RootMark, Seen, seen_of


class FolderView:
    """`Source.view` of a folder."""

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath
        status = beneath.status("")
        self.root = RootMark(status.st_dev, status.st_ino)

    def look_ahead(self, paths: Sequence[str]) -> None:
        pass

    def look(self, path: str) -> Seen:
        return seen_of(self._beneath.status(path))

    def list(self, folder: str) -> Iterator[Entry]:
        descriptor = self._beneath.folder(folder)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield Entry(entry.name, entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False))
        finally:
            os.close(descriptor)

    def open(self, path: str) -> tuple[int, Seen]:
        seen = self.look(path)  # before the open too, since opening a device can do something
        if seen.kind:
            return -1, seen
        descriptor = self._beneath.open(path, os.O_RDONLY)
        seen = seen_of(os.fstat(descriptor))
        if seen.kind:
            os.close(descriptor)
            return -1, seen
        return descriptor, seen


class FolderSource:
    """A cache's folder. It is found by its path each time, because another folder may take its place."""

    def __init__(self, path: str) -> None:
        self.path = path

    def look_at_root(self) -> RootMark:
        status = os.stat(self.path)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        fsid = os.statvfs(self.path).f_fsid
        # XFS, f2fs and others make it of the device number.
        return RootMark(status.st_dev, status.st_ino, 0 if fsid == status.st_dev else fsid)

    @contextlib.contextmanager
    def view(self) -> Iterator[FolderView]:
        with Beneath(self.path) as beneath:
            yield FolderView(beneath)


def check_usable(path: str) -> None:
    """Raises CacheUnusable when there is no folder at `path`, or it can't be listed."""
    try:
        with os.scandir(path):
            pass
    except FileNotFoundError:
        raise CacheUnusable(path, "does not exist; name the folder that holds the blobs") from None
    except NotADirectoryError:
        raise CacheUnusable(path, "is not a folder; name the folder that holds the blobs") from None
    except PermissionError:
        raise CacheUnusable(
            path, "can't be listed: permission denied; run chunkd as a user or in a group that may read it"
        ) from None
    except OSError as error:
        raise CacheUnusable(path, f"can't be listed: {error.strerror}") from error
