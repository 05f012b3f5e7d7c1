"""The names of one part as bytes and back: what the index keeps of them until they are read anew."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import NamedTuple

from chunkd.model import digest_of
from chunkd.names.name import MOST_NAMES, Name, Part, Standing
from chunkd.sources.names_reader import NamesRead

KEY_BYTES = 16
MOST_RECORD_BYTES = 64 << 20
# So many of the places that could not be read are said, in so many characters.
UNREAD_SAID, PROBLEM_CHARACTERS = 20, 1000


class BadNames(ValueError):
    """The bytes are not what `encode` makes of anything. The caller knows where they came from, and says so."""


class Reading(NamedTuple):
    """The last complete reading of a cache's names, begun at `at_ns` since the epoch. `unread_places` could not be read
    then, so that what was read there before still holds; `unread` says why, of the first of them.
    """

    at_ns: int
    unread: tuple[str, ...] = ()
    unread_places: int = 0


class Kept(NamedTuple):
    """A part as it was last read with names; at `read_at_ns` since the epoch it was first read so. `part.where` is seen
    from `base`.
    """

    base: str
    part: Part
    read_at_ns: int


def key_of(base: str, part: Part) -> bytes:
    """The key of a part among those of a cache: its source and place decide it, not what was read there."""
    place = json.dumps([part.source, base, part.where])
    return hashlib.blake2b(place.encode(), digest_size=KEY_BYTES).digest()


def encode(kept: Kept) -> bytes:
    """The record of a part that has names. Text that is not UTF-8 is kept as it is (surrogateescape)."""
    part = kept.part
    rows = [
        (name.text, name.repository, name.tag, str(name.digest), name.at_ns, name.standing.value)
        for name in part.names or ()
    ]
    return _json([kept.read_at_ns, kept.base, part.source, part.where, part.problem, part.at_ns, rows])


def without_paths(value: bytes) -> bytes:
    """The record without the paths that its names were read from. Raises BadNames."""
    kept = decode(value)
    return encode(kept._replace(base="", part=replace(kept.part, where="", problem="")))


def alike(one: bytes, other: bytes) -> bool:
    """Whether two records have the same names, whenever they were read."""
    return one.partition(b",")[2] == other.partition(b",")[2]


def as_read(base: str, part: Part, most: int = MOST_NAMES) -> tuple[NamesRead, int]:
    """A part as it is handed to the index now, with at most so many names, and how many these are."""
    if part.names is None:
        return NamesRead(base, part.source, part.where, part.problem), 0
    if len(part.names) > most:
        part = _shortened(part, most, f"more than {MOST_NAMES} names in all")
    record = encode(Kept(base, part, time.time_ns()))
    if len(record) > MOST_RECORD_BYTES:
        part = _shortened(part, 0, f"its names are more than {MOST_RECORD_BYTES} bytes")
        record = encode(Kept(base, part, time.time_ns()))
    return NamesRead(base, part.source, part.where, part.problem, key_of(base, part), record), len(part.names or ())


def _shortened(part: Part, most: int, why: str) -> Part:
    return replace(part, names=(part.names or ())[:most], problem="; ".join(filter(None, (part.problem, why))))


def still_holds(kept: Kept, unread: Set[tuple[str, str, str]]) -> bool:
    """Whether a part is at a place that could not be read, or below it. `unread` has the base, the source and the path
    of each. It takes as long whether these are few or many.
    """
    where = kept.part.where
    above = list(itertools.accumulate(where.split("/")[:-1], "{}/{}".format))
    wheres = ["", where, *above, *(f"{one}/" for one in above)]
    return any((kept.base, source, one) in unread for source in ("", kept.part.source) for one in wheres)


def reading_of(at_ns: int, unread: Iterable[NamesRead]) -> Reading:
    """What is kept of a reading."""
    places = list(unread)
    said = [f"{place.base}: {place.problem}"[:PROBLEM_CHARACTERS] for place in places[:UNREAD_SAID]]
    return Reading(at_ns, tuple(said), len(places))


def names_as_of_ns(readings: Mapping[int, Reading], caches: Iterable[int]) -> int | None:
    """Since when names are known to be so: when the oldest of the last complete readings was begun, in ns since the
    epoch. None while a cache has none.
    """
    times = [readings[cache].at_ns if cache in readings else 0 for cache in {*caches, *readings}]
    return min(times, default=0) or None


def encode_reading(reading: Reading) -> bytes:
    return _json(list(reading))


def decode_reading(value: bytes) -> Reading:
    """Raises BadNames."""
    try:
        at_ns, unread, places = json.loads(value)
        reading = Reading(int(at_ns), tuple(map(str, unread)), int(places))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadNames(f"not the last reading of names: {error}") from error
    if encode_reading(reading) != value or reading.at_ns <= 0:
        raise BadNames("not the last reading of names in its only form")
    return reading


def _json(fields: list[object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def decode(value: bytes) -> Kept:
    """The part of a record. Raises BadNames."""
    try:
        read_at_ns, base, source, where, problem, at_ns, rows = json.loads(value)
        part = Part(str(source), str(where), tuple(map(_name, rows)), str(problem), int(at_ns))
        kept = Kept(str(base), part, int(read_at_ns))
    except (ValueError, TypeError, RecursionError) as error:
        raise BadNames(f"not the names of a place: {error}") from error
    if encode(kept) != value:
        raise BadNames("not the names of a place in their only form")
    return kept


def _name(row: list[object]) -> Name:
    text, repository, tag, digest, at_ns, standing = row
    found = digest_of(digest)
    if found is None or not isinstance(at_ns, int):
        raise ValueError("a name without a digest or a time")
    return Name(str(text), str(repository), str(tag), found, at_ns, Standing(standing))
