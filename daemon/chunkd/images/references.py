"""Which images are meant by a reference: a name, a digest or the beginning of one, or a glob over names."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chunkd.errors import UsageError
from chunkd.figures.words import NO_IMAGES, shown
from chunkd.images.graph import Graph
from chunkd.names.name import split_reference

NEAR = 5
# The names that are compared with one that nothing has.
MOST_COMPARED = 2000
# Of each only so many characters: names may be hostile, and comparing takes the square of their length.
COMPARED_CHARACTERS = 64
_BEGINNING = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]{4,128})")
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Meant:
    """The set of images that some references mean, and for each image that globs do not take, although one of its names
    matches, the names that match none.
    """

    images: int
    kept: dict[int, tuple[str, ...]]


def resolve(graph: Graph, references: Iterable[str]) -> Meant:
    """What references mean. `*`, `?` and `[...]` make a glob, in which `*` also stands for `/` and `:`; an image is
    meant by globs when all of its names match one of them. Any other reference means one image, by whichever of its
    names, and so does a name that has brackets. Raises UsageError when it is none's or more than one's, and when a glob
    matches no name.
    """
    wanted, images = list(references), 0
    globs = [reference for reference in wanted if _GLOB.search(reference) and not _is_name(graph, reference)]
    for reference in wanted:
        if reference not in globs:
            images |= 1 << one(graph, reference)
    patterns = [re.compile(fnmatch.translate(glob)) for glob in globs]
    matched = [False] * len(globs)
    kept: dict[int, tuple[str, ...]] = {}
    for number, root in enumerate(graph.roots):
        others = []
        for name in root.names:
            which = [at for at, pattern in enumerate(patterns) if pattern.match(name)]
            for at in which:
                matched[at] = True
            if not which:
                others.append(name)
        if not others and root.names and globs:
            images |= 1 << number
        elif len(others) < len(root.names) and not images >> number & 1:
            kept[number] = tuple(others)
    for glob, is_matched in zip(globs, matched, strict=True):
        if not is_matched:
            raise UsageError(f"no name matches {shown(repr(glob))}{_near(graph, glob)}")
    return Meant(images, kept)


def _is_name(graph: Graph, reference: str) -> bool:
    """A name that is `*`, which anybody may give to an image, is not to hide the others."""
    return not {"*", "?"} & set(reference) and any(reference in root.names for root in graph.roots)


def one(graph: Graph, reference: str) -> int:
    """The number of the one image that a reference means. Raises UsageError."""
    named = [number for number, root in enumerate(graph.roots) if reference in root.names]
    found = named or _by_digest(graph, reference)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(
            f"no image is called {shown(repr(reference))}{_holders(graph, reference) or _near(graph, reference)}"
        )
    some = ", ".join(_called(graph, number) for number in found[:NEAR])
    more = f" and {len(found) - NEAR} more" if len(found) > NEAR else ""
    raise UsageError(f"{shown(repr(reference))} may be any of {len(found)} images: {some}{more}")


def latest(graph: Graph, images: int, count: int) -> int:
    """Those of a set of images that are among the last `count` of the set in one of their repositories, in the stated
    order. Images without a repository count as one repository.
    """
    found, left = 0, dict[str, int]()
    for number in reversed(range(images.bit_length())):
        if images >> number & 1:
            for repository in graph.roots[number].repositories or ("",):
                if left.setdefault(repository, count) > 0:
                    left[repository] -= 1
                    found |= 1 << number
    return found


def _by_digest(graph: Graph, reference: str) -> list[int]:
    beginning = _BEGINNING.fullmatch(reference)
    if beginning is None:
        return []
    algorithm, digits = beginning.groups()
    found = [
        number
        for number, root in enumerate(graph.roots)
        if root.digest.hex.startswith(digits) and algorithm in (None, root.digest.algorithm)
    ]
    return [number for number in found if graph.roots[number].digest.hex == digits] or found


def _holders(graph: Graph, reference: str) -> str:
    """Which images hold the blob that is meant, if it is one blob's digest."""
    beginning = _BEGINNING.fullmatch(reference)
    if beginning is None:
        return ""
    found = [
        holders
        for digest, holders in graph.holders_of()
        if digest.hex.startswith(beginning[2]) and digest.algorithm == (beginning[1] or digest.algorithm)
    ]
    if len(found) != 1:
        return ""
    some = [number for number in range(found[0].bit_length()) if found[0] >> number & 1]
    if not some:
        return ": that blob belongs to no image"
    return f": it is a part of {', '.join(_called(graph, number) for number in some[:NEAR])}"


def _called(graph: Graph, number: int) -> str:
    root = graph.roots[number]
    names = f" ({shown(root.names[0])})" if root.names else ""
    return f"{root.digest}{names}"


def _near(graph: Graph, reference: str) -> str:
    if not graph.roots:
        return f"; {NO_IMAGES}"
    names = [name for root in graph.roots for name in root.names]
    if _BEGINNING.fullmatch(reference):
        return ""
    repository = split_reference(reference)[0]
    found = [name for name in names if repository and split_reference(name)[0] == repository]
    if not found:
        found = alike(reference, names)
    return f"; there are {_listed(found)}" if found else ""


def alike(wanted: str, names: Iterable[str]) -> list[str]:
    """Those of the first MOST_COMPARED names that look most like one that nothing has, by their beginnings."""
    by_beginning = {name[:COMPARED_CHARACTERS]: name for name in itertools.islice(names, MOST_COMPARED)}
    near = difflib.get_close_matches(wanted[:COMPARED_CHARACTERS], list(by_beginning), NEAR, 0.5)
    return [by_beginning[beginning] for beginning in near]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NEAR} more" if len(names) > NEAR else ""
    return ", ".join(map(shown, names[:NEAR])) + more
