"""The index's records as bytes, both ways. No LMDB here, so that `recount` can share it with `index`.

LMDB compares keys as bytes, so integers in keys are big-endian; those in values are little-endian. The records that
decide how all others are read (format, parameters, caches, totals) are sealed with a checksum, tested at each read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from chunkd.figures.totals import Totals
from chunkd.model import (
    CODECS,
    HEX_DIGITS,
    METADATA_ALONE,
    Blob,
    Cache,
    Caps,
    ChunkParams,
    Digest,
    FileMark,
    MeasureRule,
    Place,
)

FORMAT = 3

ALGORITHMS = ("sha256", "sha512")
FIRST_BYTES = {algorithm: bytes([number]) for number, algorithm in enumerate(ALGORITHMS, 1)}
STATES = ("layer", "other", "failed", "archived")

SEAL_BYTES = 8
BLOB = struct.Struct("<BBHIQQQQ")
PLACE = struct.Struct("<B7sQQQQ")
_SPARE = bytes(7)
# The longest record of totals: 16 of them, with their names, take some 500 bytes.
MOST_TOTALS_BYTES = 8192


class Damaged(ValueError):
    """The bytes are not such a record. The caller knows where they came from, and says so."""


def seal(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=SEAL_BYTES).digest() + payload


def unseal(value: bytes) -> bytes:
    payload = value[SEAL_BYTES:]
    if seal(payload) != value:
        raise Damaged("its checksum does not match")
    return payload


# --- keys ---------------------------------------------------------------------------------------------------------


def digest_key(digest: Digest) -> bytes:
    """1 byte for the algorithm (1 sha256, 2 sha512), then the digest itself."""
    return FIRST_BYTES[digest.algorithm] + bytes.fromhex(digest.hex)


def digest_from_key(key: bytes) -> Digest:
    if not key or not 1 <= key[0] <= len(ALGORITHMS):
        raise Damaged(f"{key[:1].hex() or 'nothing'} names no digest algorithm")
    digest = Digest(ALGORITHMS[key[0] - 1], key[1:].hex())
    if len(digest.hex) != HEX_DIGITS[digest.algorithm]:
        raise Damaged(f"{len(key) - 1} bytes are not a {digest.algorithm}")
    return digest


def place_key(place: Place) -> bytes:
    """4 bytes for the cache's number, then the path. A prefix of a path is a prefix of its key."""
    return place.cache.to_bytes(4, "big") + os.fsencode(place.path)


def place_from_key(key: bytes) -> Place:
    if len(key) < 5 or 0 in key[4:]:
        raise Damaged(f"{key[4:]!r} is not a path")
    return Place(int.from_bytes(key[:4], "big"), os.fsdecode(key[4:]))


READING_KEY_BYTES = 4


def names_key(cache: int, key: bytes) -> bytes:
    """The key of the names beside a cache's blobs; `key` is that of `names.record`, and empty for the record of the
    last reading. 0 stands for a names file.
    """
    return cache.to_bytes(4, "big") + key


def holder_key(digest: Digest, place: Place) -> bytes:
    """The digest's key, then the place's, so that all places of a digest are side by side."""
    return digest_key(digest) + place_key(place)


# --- blobs and places ---------------------------------------------------------------------------------------------


def pack_blob(blob: Blob) -> bytes:
    """State, codec, 2 spare bytes, tries; stored, uncompressed bytes, chunks, retry_at; then the reason in UTF-8."""
    head = BLOB.pack(
        STATES.index(blob.state), CODECS.index(blob.codec), 0, blob.tries,
        blob.stored_bytes, blob.uncompressed_bytes, blob.chunks, blob.retry_at,
    )  # fmt: skip
    return head + blob.reason.encode(errors="backslashreplace")


def unpack_blob(digest: Digest, value: bytes) -> Blob:
    if len(value) < BLOB.size:
        raise Damaged(f"{len(value)} bytes are not a blob record")
    state, codec, spare, tries, stored, uncompressed, chunks, retry_at = BLOB.unpack_from(value)
    if state >= len(STATES) or codec >= len(CODECS) or spare:
        raise Damaged(f"state {state}, codec {codec}, spare {spare} can't be a blob's")
    try:
        reason = value[BLOB.size :].decode()
    except UnicodeDecodeError as error:
        raise Damaged(f"its reason is not text: {error.reason}") from error
    return Blob(digest, STATES[state], stored, uncompressed, chunks, CODECS[codec], reason, tries, retry_at)


class Held(NamedTuple):
    """What is known of one place: `verified` if its bytes were hashed and matched, `untested`, or `bad`."""

    digest: Digest
    state: str
    mark: FileMark


HELD_STATES = ("verified", "untested", "bad")


def pack_held(held: Held) -> bytes:
    """State, 7 spare bytes, device, inode, stored bytes, ctime in ns; then the digest's key."""
    # A file system may give times before 1970. They become 0, which means unknown.
    mark = held.mark._replace(ctime_ns=max(held.mark.ctime_ns, 0))
    return PLACE.pack(HELD_STATES.index(held.state), _SPARE, *mark) + digest_key(held.digest)


def unpack_held(value: bytes) -> Held:
    if len(value) < PLACE.size:
        raise Damaged(f"{len(value)} bytes are not a place record")
    state, spare, *mark = PLACE.unpack_from(value)
    if state >= len(HELD_STATES) or spare != _SPARE:
        raise Damaged(f"state {state}, spare {spare.hex()} can't be a place's")
    return Held(digest_from_key(value[PLACE.size :]), HELD_STATES[state], FileMark(*mark))


# --- the sealed records of `meta` ---------------------------------------------------------------------------------


def _fields(value: bytes) -> dict[str, Any]:
    payload = unseal(value)
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Damaged("it is not JSON") from error
    if not isinstance(fields, dict):
        raise Damaged("it is not a JSON object")
    return fields


@dataclass(frozen=True, slots=True)
class Head:
    """The totals, with the values that must change together with them. Times are ns since the epoch, 0 for never.

    `next_number` is the number of the next new chunk. `dead_chunks` is how many slots have no copies. `young_entries`
    and `hand` belong to the look-up: how many entries wait in `young`, and which of its slices is merged next.
    """

    totals: Totals = Totals()
    next_number: int = 0
    dead_chunks: int = 0
    young_entries: int = 0
    hand: int = 0
    as_of_ns: int = 0
    scanned_at_ns: int = 0


def pack_head(head: Head) -> bytes:
    own = {field.name: getattr(head, field.name) for field in dataclasses.fields(Head)}
    return seal(_json(own | {"totals": vars(head.totals)}))


def unpack_head(value: bytes) -> Head:
    own = _fields(value)
    totals = _totals_in(own.pop("totals", None))
    if own.keys() != {field.name for field in dataclasses.fields(Head)} - {"totals"}:
        raise Damaged(f"{', '.join(sorted(own)) or 'nothing'} is not a head")
    return Head(totals, **{name: _natural(name, number) for name, number in own.items()})


def pack_totals(totals: Totals) -> bytes:
    return seal(_json(vars(totals)))


def unpack_totals(value: bytes) -> Totals:
    if len(value) > MOST_TOTALS_BYTES:
        raise Damaged(f"{len(value)} bytes are too many for totals")
    return _totals_in(_fields(value))


def _totals_in(named: object) -> Totals:
    """Includes totals that this version does not know, and leaves out totals that were not counted yet."""
    if not isinstance(named, dict) or not all(name.isidentifier() for name in named):
        raise Damaged("they are not totals by name")
    return Totals.of({name: _natural(name, number) for name, number in named.items()})


def _natural(name: str, number: object) -> int:
    if type(number) is not int or number < 0:
        raise Damaged(f"{name} is {str(number)[:40]}, and not a natural number")
    return number


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Rules:
    """What every figure depends on besides the blobs: the chunker's parameters, the caps, the decoders' versions, and
    which chunks are recompressed and how. `asked` is the measuring rule of the settings, if it differs from `measure`.
    """

    params: ChunkParams = ChunkParams()
    caps: Caps = Caps()
    decoder: str = ""
    measure: MeasureRule = MeasureRule()
    asked: MeasureRule | None = None

    @property
    def unlike(self) -> str:
        """The warning that the settings ask for another measuring rule than the one in force; "" if they do not."""
        if self.asked is None:
            return ""
        return (
            f"recompressed is {self.measure}, and not {self.asked} as the settings ask for:"
            " `chunkd scan --remeasure` takes that over"
        )


def pack_rules(rules: Rules) -> bytes:
    return seal(json.dumps(dataclasses.asdict(rules), sort_keys=True).encode())


def unpack_rules(value: bytes) -> Rules:
    fields = _fields(value)
    asked = fields["asked"] and MeasureRule(**fields["asked"])
    measure = MeasureRule(**fields["measure"])
    return Rules(ChunkParams(**fields["params"]), Caps(**fields["caps"]), fields["decoder"], measure, asked or None)


def pack_caches(caches: dict[int, Cache]) -> bytes:
    return seal(json.dumps({str(number): cache for number, cache in caches.items()}).encode())


def unpack_caches(value: bytes) -> dict[int, Cache]:
    """Also reads caches of format 2, which have neither warnings nor fsid."""
    caches = {}
    for number, (path, device, inode, layouts, layerless, mounts, *more) in _fields(value).items():
        mounts = tuple((folder, on) for folder, on in mounts)
        told = tuple(more[0]) if more else ()
        fsid = more[1] if len(more) > 1 else 0
        caches[int(number)] = Cache(path, device, inode, tuple(layouts), _layerless(layerless), mounts, told, fsid)
    return caches


def _layerless(value: str | bool) -> str:
    """Older records have true or false here: whether a cache holds blobs but no layer."""
    return value if isinstance(value, str) else METADATA_ALONE * value


def unpack_paths(value: bytes) -> tuple[str, ...]:
    """Only the paths of the caches, which come first in a cache's record in every format."""
    return tuple(path for path, *_ in _fields(value).values())


def pack_format() -> bytes:
    return seal(FORMAT.to_bytes(4, "little"))


def unpack_format(value: bytes) -> int:
    return int.from_bytes(unseal(value), "little")
