"""A snapshot: what one source held at one moment, and which segments have it. It exists when its blobs file does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chunkd.errors import ChunkdError
from chunkd.fleet.segment import RULES_KEY, SegmentBad, SegmentRules, opened, read_table, write_table
from chunkd.fleet.store import Store
from chunkd.index.records import STATES
from chunkd.names import record

# Of what others wrote.
MOST_BYTES = 2 << 30
MOST_BLOBS = 1 << 24
MOST_PARTS = 1 << 18
MOST_NAME_CHARACTERS = 200
MOST_PROBLEMS = 20

FACTS_KEY = b"chunkd snapshot"

# `digest` and `kind` as in a segment; `segment` is the id of one that has the blob.
HELD_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.binary(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("stored_bytes", pa.uint64(), nullable=False),
        pa.field("segment", pa.string(), nullable=False),
    ]
)
# The names of images as the index keeps them (`names.record`), without the paths that they were read from.
NAMES_SCHEMA = pa.schema([pa.field("record", pa.binary(), nullable=False)])

_SOURCE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOMENT = re.compile("[0-9]{20}")
_SEGMENT = "^[0-9a-f]{32}$"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a snapshot says of its source. Times are ns since the epoch, 0 for never.

    `name` is for people; the source's id is the folder's name. `as_of_ns`: what is held was so then. The pending
    figures and the folders that could not be listed are None where they are not known. `problems` say why blobs may be
    missing. `unrecognised` counts what was listed and is not a blob.
    """

    name: str
    as_of_ns: int
    scanned_at_ns: int = 0
    names_as_of_ns: int = 0
    pending_blobs: int | None = None
    pending_bytes: int | None = None
    unlisted_folders: int | None = None
    problems: tuple[str, ...] = ()
    unrecognised: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot in a store."""

    source: str
    moment: str
    facts: Facts
    rules: SegmentRules
    store: Store

    @property
    def held(self) -> pa.Table:
        """What the source holds, in the columns of HELD_SCHEMA; it is read anew each time. Raises SegmentBad."""
        name = _name(self.source, self.moment, "held")
        _, table = read_table(self.store, name, HELD_SCHEMA, MOST_BYTES, MOST_BLOBS)
        if not pc.all(pc.match_substring_regex(table["segment"], _SEGMENT), min_count=0).as_py():
            raise SegmentBad(name, "refers to something that is not a segment")
        if not pc.all(pc.is_in(table["kind"], pa.array(STATES)), min_count=0).as_py():
            raise SegmentBad(name, "has impossible blobs")
        return table


def sources(store: Store) -> list[str]:
    """The ids of all sources that have a folder in the store."""
    return [name for name in store.names("snapshots", "") if _SOURCE.fullmatch(name)]


def moments(store: Store, source: str) -> list[str]:
    """The moments of a source's snapshots, the latest last."""
    return [name for name in store.names(f"snapshots/{source}", ".held.parquet") if _MOMENT.fullmatch(name)]


def put(
    store: Store, source: str, moment_ns: int, facts: Facts, rules: SegmentRules,
    held: Sequence[tuple[bytes, str, int, str]], names: Iterable[bytes],
) -> str:  # fmt: skip
    """Put a snapshot into the store: a row of `held` has the columns of HELD_SCHEMA. Returns its moment, which is later
    than those of the source's other snapshots, even if the clock went back.
    """
    moment = f"{max([moment_ns, *(int(other) + 1 for other in moments(store, source)[-1:])]):020}"
    columns = zip(*held, strict=True) if held else [()] * len(HELD_SCHEMA)
    table = pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, HELD_SCHEMA.types, strict=True)], schema=HELD_SCHEMA
    )
    said = {RULES_KEY: rules.pack(), FACTS_KEY: json.dumps(asdict(facts)).encode()}
    parts = pa.table([pa.array(names, pa.binary())], schema=NAMES_SCHEMA)
    store.put(_name(source, moment, "names"), lambda path: write_table(path, parts))
    store.put(_name(source, moment, "held"), lambda path: write_table(path, table, said))
    return moment


def read(store: Store, source: str, moment: str) -> Snapshot:
    """Raises SegmentBad for a snapshot that chunkd does not make."""
    name = _name(source, moment, "held")
    with opened(store, name, HELD_SCHEMA, MOST_BYTES, MOST_BLOBS) as file:
        said = file.metadata.metadata or {}
    try:
        return Snapshot(
            source, moment, _facts(said.get(FACTS_KEY, b"")), SegmentRules.unpack(said.get(RULES_KEY, b"")), store
        )
    except ValueError as error:
        raise SegmentBad(name, str(error)) from None


def latest(store: Store, source: str) -> Snapshot | None:
    """A source's latest snapshot; None if it has none yet."""
    found = moments(store, source)
    return read(store, source, found[-1]) if found else None


def names(store: Store, snapshot: Snapshot) -> Iterator[record.Kept]:
    """The names of images that came with a snapshot. Raises SegmentBad."""
    name = _name(snapshot.source, snapshot.moment, "names")
    _, table = read_table(store, name, NAMES_SCHEMA, MOST_BYTES, MOST_PARTS)
    for packed in table["record"]:
        try:
            yield record.decode(packed.as_py())
        except record.BadNames as error:
            raise SegmentBad(name, str(error)) from None


def segments(snapshot: Snapshot) -> set[str]:
    """The ids of the segments that a snapshot refers to."""
    return set(pc.unique(snapshot.held["segment"]).to_pylist())


def segments_at(store: Store, source: str, moment: str) -> set[str]:
    """The same of a listed snapshot: none if another export of its source has removed it meanwhile."""
    try:
        return segments(read(store, source, moment))
    except ChunkdError:
        if store.exists(_name(source, moment, "held")):
            raise
        return set()


def _name(source: str, moment: str, what: str) -> str:
    return f"snapshots/{source}/{moment}.{what}.parquet"


def _facts(packed: bytes) -> Facts:
    try:
        said: dict[str, Any] = json.loads(packed)
        facts = Facts(**{**said, "problems": tuple(said["problems"])})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its description of the source can't be read: {error}") from None
    times = (facts.as_of_ns, facts.scanned_at_ns, facts.names_as_of_ns)
    numbers = (facts.pending_blobs, facts.pending_bytes, facts.unlisted_folders, facts.unrecognised)
    known = (*times, *(number for number in numbers if number is not None))
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in known):
        raise ValueError("its description of the source has impossible numbers")
    if len(facts.problems) > MOST_PROBLEMS or not all(
        isinstance(text, str) and len(text) <= MOST_NAME_CHARACTERS for text in (facts.name, *facts.problems)
    ):
        raise ValueError("its description of the source is too long, or is not text")
    return facts
