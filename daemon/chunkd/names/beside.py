"""Which names lie beside the blobs of a cache: found from the folder `blobs`, which may lie above the cache's root."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator

from chunkd.model import Digest
from chunkd.names.containerd import read_containerd
from chunkd.names.name import Part
from chunkd.names.oci_layout import INDEX, read_layout
from chunkd.names.registry import REPOSITORIES, read_registry
from chunkd.sources.beneath import Beneath

CONTENT = "io.containerd.content.v1.content"


def base_of(root: str, path: str) -> str | None:
    """The folder that has the folder `blobs` in which the blob at `path` below `root` lies; None for a flat cache."""
    base, slash, inside = os.path.join(root, path).rpartition("/blobs/")
    return (base or "/") if slash and inside.startswith(("sha256/", "sha512/")) else None


def repository_of(root: str, base: str) -> str:
    """What a layout at `base` is called if it does not say so: its path below the cache's root, or its own name."""
    below = os.path.relpath(base, root)
    return os.path.basename(base) if below.startswith(("..", ".")) else below


def read_names(base: str, repository: str, unnamed: Container[Digest] = ()) -> Iterator[Part]:
    """Every part of the names that lie at a base, with `Part.where` as seen from there. Raises OSError when the base
    can't be opened. `unnamed` is as in `read_containerd`.
    """
    with Beneath(base) as root:
        if _is_there(root, REPOSITORIES):
            yield from read_registry(root)
        if _is_there(root, INDEX):
            yield read_layout(root, "", repository)
    if os.path.basename(base) == CONTENT:
        with Beneath(os.path.dirname(base)) as root:
            yield from read_containerd(root, unnamed)


def _is_there(root: Beneath, path: str) -> bool:
    """Whether anything may be there; what can't be looked at, its reader says what is wrong with."""
    try:
        root.status(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True
