"""Which names lie beside the blobs of a cache: found from the folder `blobs`, which may lie above the cache's root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from chunkd.names.containerd import read_containerd
from chunkd.names.name import MOST_NAMES, Part
from chunkd.names.names_file import read_names_file
from chunkd.names.oci_layout import read_layout
from chunkd.names.record import as_read
from chunkd.names.registry import REPOSITORIES, read_registry
from chunkd.sources.beneath import Beneath
from chunkd.sources.layouts import INDEX
from chunkd.sources.names_reader import NamesRead, ReadBase
from chunkd.sources.source import Beside

# In one reading of a cache, as are MOST_NAMES.
MOST_PARTS = 1 << 17
CONTENT = "io.containerd.content.v1.content"


def base_of(root: str, path: str) -> str | None:
    """The folder that has the folder `blobs` in which the blob at `path` below `root` lies; None for a flat cache."""
    base, slash, inside = os.path.join(root, path).rpartition("/blobs/")
    return (base or "/") if slash and inside.startswith(("sha256/", "sha512/")) else None


def repository_of(root: str, base: str) -> str:
    """What a layout at `base` is called if it does not say so: its path below the cache's root, or its own name."""
    below = os.path.relpath(base, root)
    return os.path.basename(base) if below.startswith(("..", ".")) else below


# Opens a base, for the cache of a root.
Open = Callable[[str, str], AbstractContextManager[Beside]]


def read_names(base: str, repository: str, root: str = "", opened: Open | None = None) -> Iterator[Part | None]:
    """Every part of the names that lie at a base, with `Part.where` as seen from there; None means that the caller may
    do other things. Raises OSError when the base can't be opened. Symbolic links below the base are not followed, nor
    are those below the cache's `root` if that is given. `opened` opens a base that is not a folder, as in a bucket.
    """
    with (opened or _opened)(base, root) as folder:
        if folder.is_there(REPOSITORIES):
            yield from read_registry(folder)
        if folder.is_there(INDEX):
            yield read_layout(folder, "", repository)
    if os.path.basename(base) == CONTENT and opened is None:
        with _opened(os.path.dirname(base), root) as folder:
            yield from read_containerd(folder)


def reading_beside(root: str, opened: Open | None = None) -> ReadBase:
    """A function that reads the names at one base after the other, for the index of the cache at `root`. The bounds
    hold for all bases together.
    """
    names_left, parts_left = MOST_NAMES, MOST_PARTS

    def read(base: str) -> Iterator[NamesRead | None]:
        nonlocal names_left, parts_left
        for part in read_names(base, repository_of(root, base), root=root, opened=opened):
            if part is None:
                yield None
                continue
            if not parts_left:
                yield NamesRead(base, problem=f"more than {MOST_PARTS} places have names")
                return
            found, names = as_read(base, part, names_left)
            names_left, parts_left = names_left - names, parts_left - 1
            yield found

    return read


def reading_file(path: str) -> ReadBase:
    """A function that reads the names file at `path`, which belongs to no cache, so that its base is ""."""
    return lambda base: iter([as_read(base, read_names_file(path))[0]])


def _opened(base: str, root: str) -> Beneath:
    below = os.path.relpath(base, root or base)
    return Beneath(base) if below == "." or below.startswith("..") else Beneath(root, below)
