"""What is on disk now: the folders of a cache, listed one by one and in slices. This is the truth; events only hint."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chunkd.model import MAX_PATH_BYTES, FileMark
from chunkd.sources import layouts, lookalikes
from chunkd.sources.activity import Token
from chunkd.sources.source import Entry, Seen, Source, View

SLICE_NAMES = 4096
# A writer fills the folder that it has made within milliseconds. One that is older than this will stay as it is.
YOUNG_S = 10.0
_NO_DIGEST = "not the name of a digest"


@dataclass(slots=True)
class Listing:
    """One folder as it was listed, or a slice of it: at most `SLICE_NAMES` names.

    `blobs` are the names of its blobs and `folders` those of the folders that are listed in turn, in the file system's
    bytes; the name of a folder, also of one that holds a blob (distribution's), ends with a slash. `marks` has the
    metadata of those blobs that were looked at. `expected` are the paths below the root of blobs whose folder was made
    a moment ago and that are not there yet, `ignored` paths with the reason. `beside_layout`: a file `oci-layout` is
    among the names, so that the blobs are in `blobs`, if not in repositories of their own. `lookalikes` counts what
    looks like blobs and is not read as such.

    With the `last` slice all names are known: `earlier` has the hashes (`name_hash`) of those in the slices before.
    What the index has in the folder under another name is gone, or is not a blob any longer. When `problem` is set the
    folder could not be listed to its end, and nothing may be taken for gone; a folder that is not there is empty.
    """

    folder: str
    blobs: set[bytes] = field(default_factory=set)
    folders: set[bytes] = field(default_factory=set)
    marks: dict[bytes, FileMark] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    layouts: set[str] = field(default_factory=set)
    lookalikes: lookalikes.Lookalikes = field(default_factory=dict)
    problem: str = ""
    beside_layout: bool = False
    last: bool = True
    earlier: array[int] = field(default_factory=lambda: array("Q"))

    def path(self, name: bytes) -> str:
        """The path below the root of this name, without a folder's slash."""
        text = os.fsdecode(name.removesuffix(b"/"))
        return f"{self.folder}/{text}" if self.folder else text

    def name(self, path: str) -> bytes:
        """The name in this folder with which a path begins."""
        head, slash, _ = (path.removeprefix(f"{self.folder}/") if self.folder else path).partition("/")
        return os.fsencode(head + slash)

    def blob_path(self, name: bytes) -> str:
        """The path below the root of the blob of this name."""
        return f"{self.path(name)}/{layouts.DATA}" if name.endswith(b"/") else self.path(name)

    def names(self) -> Iterator[bytes]:
        """Every name of this slice that accounts for a record of the index."""
        yield from self.blobs
        yield from self.folders
        yield from (self.name(path) for path, _ in self.ignored)


def name_hash(name: bytes) -> int:
    """64 bits of a name's hash. That two names in one folder share them is as unlikely as that two files share a
    digest.
    """
    return hash(name) & 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, slots=True)
class Listed:
    """A listing of one of a cache's folders. With `verify` every known blob in it is observed too."""

    cache: int
    listing: Listing
    token: Token
    verify: bool = False


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """A cache has been listed for scan `number`, or because of its own doubt if that is 0. `complete` if every folder
    was listed to its end.
    """

    cache: int
    number: int
    complete: bool
    at_ns: int
    token: Token
    retry_failed: bool = False


def walk(source: Source, folder: str, enter: Callable[[str], None]) -> Iterator[Listing]:
    """List `folder` and all below it that may hold blobs, slice by slice. `enter` is called with a folder's path before
    it is listed, so that a watch can be set before. Symbolic links are not followed, except for the root itself. What
    lies beside an OCI layout's blobs and can't be listed is passed over, as a folder of which nothing is known.
    """
    pending = [(folder, False)]
    while pending:
        folder, beside = pending.pop()
        if beside and not _can_be_listed(source, folder):
            continue
        enter(folder)
        below: list[str] = []
        for listing in _slices(source, folder):
            below += map(listing.path, listing.folders)
            beside |= listing.beside_layout
            yield listing
        pending += [(path, beside and os.path.basename(path) != "blobs") for path in sorted(below, reverse=True)]


def _can_be_listed(source: Source, folder: str) -> bool:
    try:
        with source.view() as view:
            next(view.list(folder), None)
    except PermissionError:
        return False
    except OSError:
        pass  # its listing will say what is wrong
    return True


def _slices(source: Source, folder: str) -> Iterator[Listing]:
    """The slices of one folder; at least one. What was listed before it vanished or broke off is in them."""
    some: list[Entry] = []
    earlier: array[int] = array("Q")
    problem = ""
    try:
        with source.view() as view:
            for entry in view.list(folder):
                if len(some) == SLICE_NAMES:
                    listing = _judged(view, source.path, folder, some)
                    listing.last = False
                    earlier.extend(map(name_hash, listing.names()))
                    yield listing
                    some = []
                some.append(entry)
    except (FileNotFoundError, NotADirectoryError):
        yield Listing(folder)
        return
    except OSError as error:
        problem = f"{os.path.join(source.path, folder)}: {error.strerror}"
    try:
        with source.view() as view:
            listing = _judged(view, source.path, folder, some)
    except OSError as error:
        listing, problem = Listing(folder), problem or f"{source.path}: {error.strerror}"
    listing.problem, listing.earlier = problem or listing.problem, earlier
    yield listing


def _judged(view: View, root: str, folder: str, entries: list[Entry]) -> Listing:
    listing = Listing(folder)
    naming = layouts.naming(root, folder)
    files = [os.fsencode(entry.name) for entry in entries if entry.is_file]
    seen = {os.fsencode(entry.name): entry.seen for entry in entries if entry.seen is not None}
    fitting = set[bytes]() if naming.layout == "distribution" else naming.fit(files)
    listing.blobs = set(fitting)
    for name in fitting & seen.keys():
        _take_seen(listing, name, seen[name])
    if naming.strict and len(fitting) < len(files):
        listing.ignored += [(listing.path(name), _NO_DIGEST) for name in files if name not in fitting]
    _judge_folders(listing, view, root, naming, [os.fsencode(entry.name) for entry in entries if entry.is_folder], seen)
    for entry in entries:
        if not (entry.is_file or entry.is_folder):
            _judge_other(listing, view, naming, os.fsencode(entry.name))
    listing.beside_layout = b"oci-layout" in files
    if len(listing.blobs) < len(entries):
        _count_lookalikes(listing, view, root, naming, entries)
    _check_length(listing, root)
    if listing.blobs:
        listing.layouts.add(naming.layout)
    return listing


def _take_seen(listing: Listing, name: bytes, seen: Seen) -> None:
    """Take what is known of a blob, which may be something else than a regular file."""
    if seen.kind:
        listing.blobs.discard(name)
        listing.ignored.append((listing.blob_path(name), seen.kind))
    else:
        listing.blobs.add(name)
        listing.marks[name] = seen.mark


def _judge_folders(
    listing: Listing,
    view: View,
    root: str,
    naming: layouts.Naming,
    names: list[bytes],
    seen: dict[bytes, Seen],
) -> None:
    digests = naming.fit(names)
    for name in names:
        if name in digests and naming.layout == "distribution":
            _judge_blob_folder(listing, view, name, seen.get(name))
        elif name in digests:
            listing.ignored.append((listing.path(name), "a folder"))
        elif layouts.worth_entering(root, listing.folder, os.fsdecode(name)):
            listing.folders.add(name + b"/")
        elif naming.strict:
            listing.ignored.append((listing.path(name), "a folder, and no digest's"))


def _judge_blob_folder(listing: Listing, view: View, name: bytes, seen: Seen | None) -> None:
    """Distribution's folder for one blob, which lies in its `data`."""
    folder = name + b"/"
    data = listing.blob_path(folder)
    try:
        seen = seen or view.look(data)
    except FileNotFoundError:
        if is_young(view, listing.path(name)):
            listing.expected.append(data)
        return
    except OSError:
        listing.blobs.add(folder)  # what is wrong with it, the look at the place will say
        return
    _take_seen(listing, folder, seen)


def is_young(view: View, folder: str) -> bool:
    """Whether a folder was changed so recently that its blob may be about to appear."""
    try:
        return time.time() - view.look(folder).mark.ctime_ns / 1e9 < YOUNG_S
    except OSError:
        return False


def _judge_other(listing: Listing, view: View, naming: layouts.Naming, name: bytes) -> None:
    """Judge what is neither a file nor a folder. If it can't be looked at, it is left out."""
    if naming.layout != "distribution" and naming.fit([name]):
        try:
            seen = view.look(listing.path(name))
        except OSError:
            return
        if seen.kind:
            listing.ignored.append((listing.path(name), seen.kind))
        else:
            listing.blobs.add(name)  # a file has come in its place
    elif naming.strict:
        listing.ignored.append((listing.path(name), _NO_DIGEST))


def _count_lookalikes(listing: Listing, view: View, root: str, naming: layouts.Naming, entries: list[Entry]) -> None:
    folder = os.path.join(root, listing.folder).rstrip("/")
    for name, is_file, is_folder, _ in entries:
        key = os.fsencode(name)
        inside = key + b"/"
        if key in listing.blobs or inside in listing.blobs or inside in listing.folders:
            continue
        kind, path = lookalikes.kind_of_name(folder, name, is_file=is_file, is_folder=is_folder), listing.path(key)
        if is_folder and naming.layout == "distribution" and naming.fit([key]):
            kind, path = lookalikes.LINK, listing.blob_path(inside)
        if kind and (kind != lookalikes.LINK or _is_link(view, path)):
            lookalikes.add(listing.lookalikes, {kind: (1, path)})


def _is_link(view: View, path: str) -> bool:
    try:
        return view.look(path).kind == "a symbolic link"
    except OSError:
        return False


def _check_length(listing: Listing, root: str) -> None:
    """Refuse blobs whose paths are too long for the index. One name is enough: all blobs of a folder have names of one
    length, except in the root, whose paths are short.
    """
    for name in listing.blobs:
        if len(os.fsencode(listing.blob_path(name))) > MAX_PATH_BYTES:
            listing.blobs = set()
            listing.problem = (
                f"{os.path.join(root, listing.folder)}: its blobs' paths are longer than {MAX_PATH_BYTES} bytes"
            )
        return
