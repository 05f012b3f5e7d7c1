"""The names of one part as bytes and back: what the index keeps of them until they are read anew."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from chunkd.names.name import Name, Part, Standing, digest_of

KEY_BYTES = 16


class BadNames(ValueError):
    """The bytes are not what `encode` makes of anything. The caller knows where they came from, and says so."""


class Kept(NamedTuple):
    """A part as it was last read with names, at `read_at_ns` since the epoch. `part.where` is seen from `base`."""

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
    fields = [kept.base, part.source, part.where, part.problem, part.at_ns, kept.read_at_ns, rows]
    return json.dumps(fields, separators=(",", ":")).encode()


def decode(value: bytes) -> Kept:
    """The part of a record. Raises BadNames."""
    try:
        base, source, where, problem, at_ns, read_at_ns, rows = json.loads(value)
        part = Part(source, where, tuple(map(_name, rows)), problem, at_ns)
        kept = Kept(base, part, read_at_ns)
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
