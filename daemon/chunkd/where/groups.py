"""Further copies by directory, by extension, by package or by file: the largest rows, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from chunkd.images.atoms import Numbers
from chunkd.model import Digest
from chunkd.where.causes import CAUSES, ZEROS, Attribution

DIRECTORY, EXTENSION, PACKAGE, FILE = GROUPS = ("directory", "extension", "package", "file")
MOST_ROWS = 1000
MOST_NAMED = 10
# A longer name is cut; paths are text from anybody.
MOST_NAME_CHARACTERS = 1000
MOST_EXTENSION_BYTES = 16
NO_EXTENSION, NO_CONTENT, NO_PACKAGE = "(no extension)", "(directories, links and empty files)", "(no package)"

Row = dict[str, Any]


def rows(found: Attribution, by: str, depth: int, images: Mapping[Digest, Sequence[str]]) -> tuple[list[Row], Row]:
    """A row for each group that has further copies, the largest first, at most MOST_ROWS, and the sum of the others.
    Together with what is outside of entries they add up to all further copies.

    A directory is the first `depth` parts of a file's. `images` has for each layer the images that hold it, as people
    call them. A row's layers are those with further copies in it, or with a file in it that occurs again.
    """
    names, group = _grouped(found, by, depth)
    bytes_of = found.copied_bytes + found.zero_bytes
    columns = {ZEROS: _sums(group, found.zero_bytes, len(names))}
    for at, cause in enumerate(CAUSES):
        if cause != ZEROS:
            columns[cause] = _sums(group, np.where(found.cause == at, found.copied_bytes, 0), len(names))
    copied = _sums(group, bytes_of, len(names))
    order = sorted(np.flatnonzero(copied).tolist(), key=lambda at: (-int(copied[at]), names[at]))
    top, rest = order[:MOST_ROWS], order[MOST_ROWS:]
    layers, files = _layers(found, group, top, bytes_of)
    made = []
    for at, of_row, count in zip(top, layers, files, strict=True):
        row: Row = {"name": names[at][:MOST_NAME_CHARACTERS], "copied_bytes": int(copied[at])}
        row |= {f"{cause}_bytes": int(column[at]) for cause, column in columns.items()}
        holders = sorted({name for layer in of_row for name in images.get(found.layers[layer], ())})
        made.append(
            row
            | {
                "files": count,
                "layers": len(of_row),
                "images": len(holders),
                "layer_digests": [str(found.layers[layer]) for layer in of_row[:MOST_NAMED]],
                "image_names": holders[:MOST_NAMED],
            }
        )
    return made, {"rows": len(rest), "copied_bytes": int(copied[rest].sum())}


def _sums(group: Numbers, values: Numbers, groups: int) -> Numbers:
    """Exact: doubles hold whole numbers up to 2^53."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.int64)


def _layers(found: Attribution, group: Numbers, top: list[int], bytes_of: Numbers) -> tuple[list[list[int]], list[int]]:
    """Of each row the layers, and how many entries have further copies."""
    rank = np.full(int(group.max(initial=-1)) + 1, -1)
    rank[top] = np.arange(len(top))
    own = rank[group]
    counts = np.bincount(own[(own >= 0) & (bytes_of > 0)], minlength=len(top)).tolist()
    occurs = np.bincount(found.file, minlength=1) > 1
    occurs[0] = False
    wanted = (own >= 0) & ((bytes_of > 0) | occurs[found.file])
    pairs = np.unique(own[wanted] << 32 | found.layer[wanted])
    layers = np.split(pairs & 0xFFFFFFFF, np.searchsorted(pairs >> 32, np.arange(1, len(top))))
    return [one.tolist() for one in layers[: len(top)]], counts


def _grouped(found: Attribution, by: str, depth: int) -> tuple[list[str], Numbers]:
    """The names of the groups, and the group of each entry."""
    if by == PACKAGE:
        packages = [f"{one.name} ({one.manager})" for one in found.packages]
        names = sorted(set(packages))
        at = {name: number for number, name in enumerate(names, 1)}
        return [NO_PACKAGE, *names], np.array([0, *(at[name] for name in packages)])[found.package]
    if by == FILE:
        return [_text(path) for path in found.paths], found.path
    name_of: Callable[[bytes], str] = _extension if by == EXTENSION else lambda path: _directory(path, depth)
    numbers: dict[str, int] = {NO_CONTENT: 0}
    of_path = np.array([numbers.setdefault(name_of(path), len(numbers)) for path in found.paths], np.int64)
    group = of_path[found.path] if len(found.path) else found.path
    if by == EXTENSION:
        group = np.where(found.file > 0, group, 0)
    return list(numbers), group


def _text(path: bytes) -> str:
    return "/" + path.decode("utf-8", "surrogateescape")


def _directory(path: bytes, depth: int) -> str:
    parts = path.split(b"/")[:-1][:depth]
    return _text(b"/".join(parts))


def _extension(path: bytes) -> str:
    """The last part behind a dot that is not a number, so that libc.so.6 has `.so`."""
    name = path.rpartition(b"/")[2].lstrip(b".")
    for part in reversed(name.split(b".")[1:][-8:]):
        if not part.isdigit():
            if not part or len(part) > MOST_EXTENSION_BYTES:
                break
            return "." + part.decode("utf-8", "surrogateescape").lower()
    return NO_EXTENSION
