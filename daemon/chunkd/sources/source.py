"""Where the blobs of one cache lie: the border behind which a folder and an object store look the same."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from chunkd.model import FileMark, Hint
from chunkd.sources.activity import Token


class RootMark(NamedTuple):
    """Which folder a cache's root is: another device or inode is another folder. `fsid` is the number that its file
    system keeps wherever it is mounted, 0 where it has none.
    """

    device: int
    inode: int
    fsid: int = 0


class Seen(NamedTuple):
    """What lies at one path. `kind` says what it is when it is not a regular file. `problem` says why its bytes could
    not be read, if that is known, and `archived` that they lie in an archive of a bucket's.
    """

    mark: FileMark
    links: int
    kind: str = ""
    problem: str = ""
    archived: bool = False


class Entry(NamedTuple):
    """One name in a folder. `is_file` and `is_folder` are both false for anything else, a symbolic link too. `seen` is
    what a listing that has metadata says: of a file, or of the blob in distribution's folder for it.
    """

    name: str
    is_file: bool
    is_folder: bool
    seen: Seen | None = None


class View(Protocol):
    """A source whose root is open. Each method raises OSError, FileNotFoundError or NotADirectoryError for "absent".

    A path is relative to the root; no symbolic link below the root is followed.
    """

    root: RootMark

    def look_ahead(self, paths: Sequence[str]) -> None:
        """These will be looked at next, each once: a source may ask for all of them together."""

    def look(self, path: str) -> Seen:
        """What lies there now."""

    def list(self, folder: str) -> Iterator[Entry]:
        """What is right in a folder, one by one."""

    def open(self, path: str) -> tuple[int, Seen]:
        """A descriptor of the blob there, for reading, and what it is. The caller closes it."""


class Beside(Protocol):
    """What lies beside blobs, where names are looked for. Raises OSError as `View` does."""

    def is_there(self, path: str) -> bool:
        """Whether anything may be there; what can't be looked at may."""

    def folders(self, path: str) -> list[str]:
        """The names of the folders right in this one."""

    def changed_ns(self, path: str) -> int | None:
        """When a regular file was last changed, in ns since the epoch; None for what is not one."""

    def read_small(self, path: str, most_bytes: int) -> tuple[bytes, int]:
        """A whole regular file, and when it was last changed. Raises OSError with EFBIG when it is larger."""


class Source(Protocol):
    """One cache. Every call may wait for a file system that does not answer: only the cache's own thread calls it."""

    path: str

    def look_at_root(self) -> RootMark:
        """Raises OSError when there is no such folder."""

    def view(self) -> AbstractContextManager[View]:
        """The root, open for as long as the context lasts: no descriptor of it is held while nothing is done."""


class Presence(Enum):
    PRESENT = "present"
    GONE = "gone"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """What a cache's thread saw of one place.

    GONE: the place was absent, its root and mount were there as recorded, and it was absent again. UNKNOWN: the root or
    the mount is away, or the place could not be looked at, for the `problem`. `seen` is what is PRESENT. `hidden`: the
    mount that the place lay on is away, so what is there now is another file. `folder_is_there`: of a place that is
    GONE, its folder still is. `at_ns` is the monotonic time before the look. `opened` is the blob that is PRESENT, if
    it was opened at once; whoever takes the observation has its descriptor closed.
    """

    hint: Hint
    presence: Presence
    at_ns: int
    token: Token
    seen: Seen | None = None
    problem: str = ""
    hidden: bool = False
    folder_is_there: bool = False
    opened: Opened | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The answer to a request to open a place: a descriptor with what it is of, or the reason why there is none.

    `gone`: there is no such file. `kind`: it is not a regular file, and was not opened.
    """

    number: int
    descriptor: int = -1
    mark: FileMark | None = None
    problem: str = ""
    kind: str = ""
    gone: bool = False


_KINDS = {
    stat.S_IFREG: "",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def kind_of_file(mode: int) -> str:
    """What lies where a blob should, in words for people; `""` for a regular file."""
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def seen_of(status: os.stat_result) -> Seen:
    mark = FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
    return Seen(mark, status.st_nlink, kind_of_file(status.st_mode))
