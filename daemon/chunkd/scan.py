"""What is on disk now: the folders of a cache, listed one by one. This is the truth that events only hint at."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chunkd import layouts
from chunkd.records import MAX_PATH_BYTES


@dataclass(slots=True)
class Listing:
    """One folder as it was listed. `blobs` are paths relative to the root, `expected` those of blobs whose folder is
    there and they are not (yet), `ignored` paths with the reason.

    `names` are those of its blobs and of the folders that are listed in turn: what the index has below it under another
    name is gone, or is no blob any longer. When `problem` is set the folder could not be listed to its end, and nothing
    may be taken for gone; a folder that is not there is empty.
    """

    folder: str
    names: set[str] = field(default_factory=set)
    blobs: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    layouts: set[str] = field(default_factory=set)
    problem: str = ""


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
    pending = [folder]
    while pending:
        folder = pending.pop()
        enter(folder)
        listing, below = _list(root, folder)
        yield listing
        pending += sorted(below, reverse=True)


def _list(root: str, folder: str) -> tuple[Listing, list[str]]:
    listing = Listing(folder)
    below: list[str] = []
    here = layouts.holds_blobs(root, folder)
    strict = layouts.strict(root, folder)
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if layouts.worth_entering(root, folder, entry.name):
                        below.append(path)
                        listing.names.add(entry.name)
                    elif here and not _list_blob_folder(listing, root, path, entry.name) and strict:
                        listing.ignored.append((path, "a folder, and no digest's"))
                elif here and _list_entry(listing, root, path, entry, strict):
                    listing.names.add(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return Listing(folder), []
    except OSError as error:
        listing.problem = f"{os.path.join(root, folder)}: {error.strerror}"
    return listing, below


def _list_entry(listing: Listing, root: str, path: str, entry: os.DirEntry[str], strict: bool) -> bool:
    """Whether it is a blob."""
    found = layouts.identify(root, path)
    if found is None:
        if strict:
            listing.ignored.append((path, "not the name of a digest"))
    elif len(os.fsencode(path)) > MAX_PATH_BYTES:
        listing.problem = (
            f"{os.path.join(root, listing.folder)}: its blobs' paths are longer than {MAX_PATH_BYTES} bytes"
        )
    elif not entry.is_file(follow_symlinks=False):
        with contextlib.suppress(FileNotFoundError):
            listing.ignored.append((path, kind_of_file(entry.stat(follow_symlinks=False).st_mode)))
    else:
        listing.blobs.append(path)
        listing.layouts.add(found[1])
        return True
    return False


def _list_blob_folder(listing: Listing, root: str, path: str, name: str) -> bool:
    """A folder named by a digest: distribution's, with the blob in its `data`, or a folder where a blob should be."""
    if layouts.identify(root, path):
        listing.ignored.append((path, "a folder"))
        return True
    data = layouts.blob_within(root, listing.folder, name)
    if data is None:
        return False
    try:
        mode = os.stat(os.path.join(root, data), follow_symlinks=False).st_mode
    except FileNotFoundError:
        listing.expected.append(data)
        return True
    except OSError:
        mode = stat.S_IFREG  # what it is, the look at the place will say
    if not stat.S_ISREG(mode):
        listing.ignored.append((data, kind_of_file(mode)))
        return True
    listing.names.add(name)
    listing.blobs.append(data)
    listing.layouts.add("distribution")
    return True
