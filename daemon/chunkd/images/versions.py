"""The order in which a repository's images came: by their tags as versions, or by the times of the pushes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from chunkd.model import Digest
from chunkd.names.name import Name

VERSIONS, PUSHES = "versions", "pushes"

_PRE = r"dev|alpha|a|beta|b|pre|preview|milestone|m|rc|cr|snapshot|canary|next|nightly"
_NUMBERS = r"[vV]?([0-9]{1,18}(?:\.[0-9]{1,18}){0,7})"
_VERSION = re.compile(rf"{_NUMBERS}(?:[-_.](.+))?")
# Without a sign between them only behind several numbers: `1.2rc1`. What looks like `3a4` may be a commit.
_JOINED = re.compile(rf"{_NUMBERS}((?:{_PRE})[0-9]*)", re.IGNORECASE)
_PRE_RELEASE = re.compile(rf"(?:(?:{_PRE})[-_.]?)?[0-9]*(?:[-_.][0-9]+)*", re.IGNORECASE)
_IDENTIFIERS = re.compile(r"[0-9]+|[^0-9._-]+")


class Version(NamedTuple):
    """A tag as a version. `variant` is a suffix that is not a pre-release, such as `alpine`; versions are compared
    within a variant alone. As in semver a pre-release comes before its release, and a number before a word.
    """

    variant: str
    numbers: tuple[int, ...]
    is_release: bool
    pre_release: tuple[tuple[int, int, str], ...]


class Step(NamedTuple):
    """An image in the order, and those of its tags that gave it this place, the decisive one first. Only steps of one
    series follow one another.
    """

    digest: Digest
    tags: tuple[str, ...]
    series: str = ""


class Order(NamedTuple):
    """`kind` is VERSIONS or PUSHES; None if neither is known of two images. The steps are oldest first, series by
    series. `unordered` are tags that are not versions, or whose push has no known time; `same_time` counts pushes with
    the time of another, whose order is that of their digests.
    """

    kind: str | None
    steps: tuple[Step, ...]
    unordered: tuple[str, ...] = ()
    same_time: int = 0


def version_of(tag: str) -> Version | None:
    """None for a tag that does not begin with a number."""
    match = _VERSION.fullmatch(tag)
    if match is None or (match[2] and match[2][0] in "-_."):
        match = _JOINED.fullmatch(tag)
        if match is None or "." not in match[1]:
            return None
    numbers, suffix = tuple(map(int, match[1].split("."))), match[2] or ""
    while len(numbers) > 1 and not numbers[-1]:
        numbers = numbers[:-1]
    if suffix and not _PRE_RELEASE.fullmatch(suffix):
        return Version(suffix, numbers, True, ())
    parts = _IDENTIFIERS.findall(suffix.lower())
    found = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return Version("", numbers, not suffix, found)


def by_version(names: Iterable[Name]) -> Order:
    """Of a tag with several digests, as two caches may have it, the one that was pushed last counts.

    An image with several versions, such as 1.2.3 and 1.2, has the place of the one with most numbers; one in several
    variants belongs to the shortest one.
    """
    latest: dict[str, Name] = {}
    for name in names:
        one = latest.setdefault(name.tag, name)
        if (name.at_ns, name.digest) > (one.at_ns, one.digest):
            latest[name.tag] = name
    versions: dict[Digest, list[tuple[Version, str]]] = {}
    unordered = []
    for tag, name in sorted(latest.items()):
        version = version_of(tag)
        if version is None:
            unordered.append(tag)
        else:
            versions.setdefault(name.digest, []).append((version, tag))
    places: list[tuple[Version, str, Step]] = []
    for digest, some in versions.items():
        variant = min((len(version.variant), version.variant) for version, _ in some)[1]
        own = [(version, tag) for version, tag in some if version.variant == variant]
        own.sort(key=lambda one: (len(one[0].numbers), one), reverse=True)
        places.append((*own[0], Step(digest, tuple(tag for _, tag in own), variant)))
    steps = tuple(step for _, _, step in sorted(places))
    return Order(VERSIONS if has_pairs(steps) else None, steps, tuple(unordered))


def by_push(names: Iterable[Name]) -> Order:
    """Each image at the first time that is known of a push of it."""
    times: dict[Digest, int] = {}
    tags: dict[Digest, set[str]] = {}
    for name in names:
        tags.setdefault(name.digest, set()).update({name.tag} - {""})
        if name.at_ns:
            times[name.digest] = min(times.get(name.digest, name.at_ns), name.at_ns)
    pushes = sorted((at_ns, digest) for digest, at_ns in times.items())
    steps = tuple(Step(digest, tuple(sorted(tags[digest]))) for _, digest in pushes)
    undated = sorted({tag for digest in tags.keys() - times.keys() for tag in tags[digest]})
    same_time = len(times) - len(set(times.values()))
    return Order(PUSHES if has_pairs(steps) else None, steps, tuple(undated), same_time)


def has_pairs(steps: tuple[Step, ...]) -> bool:
    return any(one.series == other.series for one, other in pairwise(steps))
