"""What is on disk now: the folders of a cache, listed one by one. This is the truth that events only hint at."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chunkd.model import MAX_PATH_BYTES
from chunkd.sources import layouts

_NO_DIGEST = "not the name of a digest"


@dataclass(slots=True)
class Listing:
    """One folder as it was listed.

    `blobs` are the names of its blobs and `folders` those of the folders that are listed in turn, in the file system's
    bytes; the name of a folder, also of one that holds a blob (distribution's), ends with a slash. What the index has
    here under another name is gone, or is no blob any longer. `expected` are the paths below the root of blobs whose
    folder is there and they are not (yet), `ignored` paths with the reason.

    When `problem` is set the folder could not be listed to its end, and nothing may be taken for gone; a folder that is
    not there is empty.
    """

    folder: str
    blobs: set[bytes] = field(default_factory=set)
    folders: set[bytes] = field(default_factory=set)
    expected: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    layouts: set[str] = field(default_factory=set)
    problem: str = ""

    def path(self, name: bytes) -> str:
        """Where below the root what has this name lies; without the slash of a folder."""
        text = os.fsdecode(name.removesuffix(b"/"))
        return f"{self.folder}/{text}" if self.folder else text

    def name(self, path: str) -> bytes:
        """What a path that begins with this folder has for its name here."""
        head, slash, _ = (path.removeprefix(f"{self.folder}/") if self.folder else path).partition("/")
        return os.fsencode(head + slash)

    def blob_path(self, name: bytes) -> str:
        """Where below the root the blob that has this name lies."""
        return f"{self.path(name)}/{layouts.DATA}" if name.endswith(b"/") else self.path(name)


@dataclass(frozen=True, slots=True)
class Listed:
    """A listing of a cache's folder. With `verify` every known blob in it is looked at too."""

    cache: int
    listing: Listing
    verify: bool = False


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """A scan has listed what it was asked to. `complete` when that was every folder of every cache, to its end."""

    number: int
    complete: bool
    at_ns: int
    retry_failed: bool = False


def kind_of_file(mode: int) -> str:
    """What lies where a blob should, in words for people."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def walk(root: str, folder: str, enter: Callable[[str], None]) -> Iterator[Listing]:
    """List `folder` below `root` and all that may hold blobs below it. `enter` is called with a folder's path before it
    is listed, so that a watch can be set before. Symbolic links are not followed, except for the root itself.
    """
    parts = folder.split("/")
    if any(os.path.islink(os.path.join(root, *parts[:end])) for end in range(1, len(parts) + 1) if folder):
        yield Listing(folder)  # what has come in its place, or above it, is no folder
        return
    pending = [folder]
    while pending:
        folder = pending.pop()
        enter(folder)
        listing = _list(root, folder)
        yield listing
        pending += sorted(map(listing.path, listing.folders), reverse=True)


def _list(root: str, folder: str) -> Listing:
    listing = Listing(folder)
    files: list[bytes] = []
    folders: list[bytes] = []
    others: list[os.DirEntry[bytes]] = []
    try:
        with os.scandir(os.fsencode(os.path.join(root, folder))) as entries:
            # Once for each blob there is, at every scan: names are judged below, all at once.
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    files.append(entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    others.append(entry)
    except (FileNotFoundError, NotADirectoryError):
        return Listing(folder)
    except OSError as error:
        listing.problem = f"{os.path.join(root, folder)}: {error.strerror}"
    naming = layouts.naming(root, folder)
    if naming.layout != "distribution":
        listing.blobs = naming.fit(files)
    if naming.strict and len(listing.blobs) < len(files):
        listing.ignored += [(listing.path(name), _NO_DIGEST) for name in files if name not in listing.blobs]
    _list_folders(listing, root, naming, folders)
    for entry in others:
        _list_other(listing, naming, entry)
    _check_length(listing, root)
    if listing.blobs:
        listing.layouts.add(naming.layout)
    return listing


def _list_folders(listing: Listing, root: str, naming: layouts.Naming, names: list[bytes]) -> None:
    digests = naming.fit(names)
    for name in names:
        if name in digests and naming.layout == "distribution":
            _list_blob_folder(listing, root, name)
        elif name in digests:
            listing.ignored.append((listing.path(name), "a folder"))
        elif layouts.worth_entering(root, listing.folder, os.fsdecode(name)):
            listing.folders.add(name + b"/")
        elif naming.strict:
            listing.ignored.append((listing.path(name), "a folder, and no digest's"))


def _list_blob_folder(listing: Listing, root: str, name: bytes) -> None:
    """Distribution's folder for one blob, which lies in its `data`."""
    folder = name + b"/"
    data = listing.blob_path(folder)
    try:
        mode = os.lstat(os.path.join(root, data)).st_mode
    except FileNotFoundError:
        listing.expected.append(data)
        return
    except OSError:
        mode = stat.S_IFREG  # what it is, the look at the place will say
    if stat.S_ISREG(mode):
        listing.blobs.add(folder)
    else:
        listing.ignored.append((data, kind_of_file(mode)))


def _list_other(listing: Listing, naming: layouts.Naming, entry: os.DirEntry[bytes]) -> None:
    """What is neither a file nor a folder. When it can't be looked at, it is not listed."""
    if naming.layout != "distribution" and naming.fit([entry.name]):
        with contextlib.suppress(OSError):
            mode = entry.stat(follow_symlinks=False).st_mode
            listing.ignored.append((listing.path(entry.name), kind_of_file(mode)))
    elif naming.strict:
        listing.ignored.append((listing.path(entry.name), _NO_DIGEST))


def _check_length(listing: Listing, root: str) -> None:
    """One stands for all: in a folder all names are of one length, but for a root's, which are short enough."""
    for name in listing.blobs:
        if len(os.fsencode(listing.blob_path(name))) > MAX_PATH_BYTES:
            listing.blobs = set()
            listing.problem = (
                f"{os.path.join(root, listing.folder)}: its blobs' paths are longer than {MAX_PATH_BYTES} bytes"
            )
        return
