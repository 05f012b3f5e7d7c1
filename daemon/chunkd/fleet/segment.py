"""A segment: the recipes of some blobs as two Parquet files. It is a function of these blobs and of the rules."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from chunkd.errors import ChunkdError, RecipeImpossible
from chunkd.fleet.key import Key
from chunkd.fleet.store import Store, StoreUnusable, blobs_name, rows_name
from chunkd.index import blocks, records
from chunkd.model import CHUNK_HASH_BYTES, Blob, Caps, ChunkParams, Digest, MeasureRule, Recipe

ROWS_A_GROUP = 100_000
# Of what others wrote: the bytes of either file, and how many blobs a segment has.
MOST_ROWS_BYTES = 4 << 30
MOST_BLOBS_BYTES = 512 << 20
MOST_BLOBS = 1 << 20
FOOTER_BYTES = 16 << 20
# By others, such as a dictionary, a value that is there once may take memory in each row.
ENCODINGS = frozenset({"PLAIN", "RLE"})

RULES_KEY = b"chunkd"
# In the file of the blobs: the BLAKE2b of the other one. DuckDB does not look at the checksums of pages.
ROWS_KEY = b"chunkd rows"

# Sorted by hash, then blob. `blob` is the blob's place in the other file, `measured` the recompressed length.
ROWS_SCHEMA = pa.schema(
    [
        pa.field("hash", pa.binary(CHUNK_HASH_BYTES), nullable=False),
        pa.field("length", pa.uint32(), nullable=False),
        pa.field("blob", pa.uint32(), nullable=False),
        pa.field("copies", pa.uint32(), nullable=False),
        pa.field("measured", pa.uint32()),
        pa.field("level", pa.uint8(), nullable=False),
    ]
)
# Sorted by digest: the key that the index has for it (`records.digest_key`), hidden if there is a key.
BLOBS_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.binary(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("stored_bytes", pa.uint64(), nullable=False),
        pa.field("uncompressed_bytes", pa.uint64(), nullable=False),
        pa.field("chunks", pa.uint64(), nullable=False),
        pa.field("manifest", pa.binary(), nullable=False),
    ]
)

# A blob, its chunks, and what it says if it is a manifest (`worker.manifest_record`).
Entry = tuple[Blob, Recipe, bytes]

Numbers = NDArray[np.int64]


class SegmentBad(ChunkdError):
    """A file of a store is not what chunkd makes."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"store file {name}: {problem}; remove it, and export again from the host that wrote it")


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def unreadable(store: Store, name: str, problem: str, error: Exception) -> ChunkdError:
    """What to raise when a file of a store can't be read: SegmentBad, but StoreUnusable where the system refuses it, as
    then the file may be whole.
    """
    if isinstance(error, OSError) and error.errno:
        return StoreUnusable(store.path, f"{name}: {os.strerror(error.errno)}")
    return SegmentBad(name, f"{problem}: {first_line(error)}")


@dataclass(frozen=True, slots=True)
class SegmentRules:
    """What a segment or a snapshot was made by. `mixed_library`: not all recompressed lengths are by one zstd library.
    `key` is the id of the key that hides hashes and digests, "" for none.
    """

    params: ChunkParams
    caps: Caps
    decoder: str
    measure: MeasureRule
    mixed_library: bool = False
    key: str = ""

    @classmethod
    def of(cls, rules: records.Rules, key: Key | None = None) -> SegmentRules:
        """An index's rules. If the settings ask for another library, the index measures by it already."""
        mixed = rules.asked is not None and rules.asked.library != rules.measure.library
        return cls(rules.params, rules.caps, rules.decoder, rules.measure, mixed, key.id if key else "")

    def pack(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def unpack(cls, packed: bytes) -> SegmentRules:
        """Raises ValueError unless `pack` made these bytes."""
        try:
            said = json.loads(packed)
            params, caps, measure = (
                _values_of(kind(), said[name])
                for name, kind in (("params", ChunkParams), ("caps", Caps), ("measure", MeasureRule))
            )
            rules = cls(
                ChunkParams(**params), Caps(**caps), str(said["decoder"]), MeasureRule(**measure),
                bool(said["mixed_library"]), str(said["key"]),
            )  # fmt: skip
            if rules.pack() != packed:
                raise ValueError("they are not in their only form")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its rules can't be read: {error}") from None
        return rules


def _values_of(like: Any, said: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, each of the type that it has in `like`, and no number below 1 or of over 64 bits."""
    for name, value in said.items():
        if type(value) is not type(getattr(like, name)) or (isinstance(value, int) and not 0 < value < 1 << 64):
            raise ValueError(f"{name} is {str(value)[:40]}")
    return said


def segment_id(rules: SegmentRules, blobs: Iterable[Blob], key: Key | None = None) -> str:
    """The same for the same blobs by the same rules, in whatever order. Under a key it does not tell the digests."""
    found = hashlib.blake2b(rules.pack(), digest_size=16)
    for digest, blob in sorted(((digest_bytes(blob.digest, key), blob) for blob in blobs), key=lambda one: one[0]):
        facts = (
            digest.hex() if key else str(blob.digest),
            blob.state,
            blob.codec,
            blob.stored_bytes,
            blob.uncompressed_bytes,
            blob.chunks,
        )
        found.update(repr(facts).encode())
    return found.hexdigest()


def write(store: Store, rules: records.Rules, blobs: Sequence[Entry], key: Key | None = None) -> str:
    """Put a segment of these blobs into the store, unless it is there; returns its id.

    Memory: some 100 bytes for each chunk of the blobs. Raises RecipeImpossible for a recipe that no chunker makes or
    that is not the blob's, and StoreUnusable.
    """
    own = SegmentRules.of(rules, key)
    entries = sorted(blobs, key=lambda entry: digest_bytes(entry[0].digest, key))
    segment = segment_id(own, (blob for blob, _, _ in entries), key)
    if store.has_segment(segment):
        return segment
    store.put(rows_name(segment), lambda path: write_table(path, _rows(entries, rules, key), statistics=["hash"]))
    # There may be one already, from a run that was cut short.
    said = {RULES_KEY: own.pack(), ROWS_KEY: rows_digest(store, segment)}
    store.put(blobs_name(segment), lambda path: write_table(path, _blobs(entries, key), said))
    return segment


def check(entry: Entry, rules: records.Rules) -> None:
    """Raises RecipeImpossible for a blob that `write` refuses by itself."""
    _rows([entry], rules, None)


class Blobs(NamedTuple):
    """The file of a segment's blobs: the rules, a row for each blob, and the digest of the other file."""

    rules: SegmentRules
    table: pa.Table
    rows_digest: bytes


def read_blobs(store: Store, segment: str) -> Blobs:
    """Raises SegmentBad."""
    name = blobs_name(segment)
    said, table = read_table(store, name, BLOBS_SCHEMA, MOST_BLOBS_BYTES, MOST_BLOBS)
    try:
        return Blobs(SegmentRules.unpack(said.get(RULES_KEY, b"")), table, said.get(ROWS_KEY, b""))
    except ValueError as error:
        raise SegmentBad(name, str(error)) from None


def rows_digest(store: Store, segment: str) -> bytes:
    """Raises StoreUnusable."""
    name = rows_name(segment)
    try:
        with open(store.file(name, MOST_ROWS_BYTES), "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest().encode()
    except OSError as error:
        raise unreadable(store, name, "can't be read", error) from None


def digest_bytes(digest: Digest, key: Key | None) -> bytes:
    """A digest as a store has it: one byte for its algorithm, then the digest, hidden by the key."""
    plain = records.digest_key(digest)
    return plain if key is None else plain[:1] + key.map(plain[1:])


def level_of(hashes: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The largest n for which a rule of 1 chunk in 2^n picks a chunk, by the second half of its hash: 16 at most."""
    return _LEVELS[(hashes >> np.uint64(48)).astype(np.int64)]


_LEVELS = np.array([16 - number.bit_length() for number in range(1 << 16)], np.uint8)


def write_table(
    path: str, table: pa.Table, said: Mapping[bytes, bytes] | None = None, statistics: Sequence[str] = ()
) -> None:
    """A Parquet file with statistics of these columns, and what is said of the whole of it."""
    with parquet.ParquetWriter(
        path, table.schema, compression="zstd", compression_level=3, use_dictionary=False,
        write_statistics=list(statistics), store_schema=False, write_page_checksum=True,
    ) as writer:  # fmt: skip
        writer.write_table(table, row_group_size=ROWS_A_GROUP)
        writer.add_key_value_metadata(dict(said or {}))


def opened(store: Store, name: str, schema: pa.Schema, most_bytes: int, most_rows: int) -> parquet.ParquetFile:
    """A Parquet file that anybody may have written. Raises StoreUnusable, and SegmentBad unless it has this schema, at
    most so many rows, and says that it takes no more than `most_bytes` when it is decompressed.
    """
    try:
        file = parquet.ParquetFile(
            store.file(name, most_bytes), thrift_string_size_limit=FOOTER_BYTES, thrift_container_size_limit=1 << 20,
            page_checksum_verification=True,
        )  # fmt: skip
        found = file.metadata
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(store, name, "is not Parquet", error) from None
    if not file.schema_arrow.remove_metadata().equals(schema):
        raise SegmentBad(
            name, f"has the columns {', '.join(file.schema_arrow.names)[:200]}, or these are of other types"
        )
    if found.num_rows > most_rows or sum(group.total_byte_size for group in groups) > most_bytes:
        raise SegmentBad(name, f"has {found.num_rows} rows, which is too many, or they are too long")
    if any(not 0 < group.num_rows <= ROWS_A_GROUP for group in groups if found.num_rows):
        raise SegmentBad(name, f"has row groups of more than {ROWS_A_GROUP} rows")
    columns = (group.column(number) for group in groups for number in range(found.num_columns))
    if any(not ENCODINGS.issuperset(column.encodings) for column in columns):
        raise SegmentBad(name, f"has values that are encoded in other ways than {', '.join(sorted(ENCODINGS))}")
    return file


def read_table(
    store: Store, name: str, schema: pa.Schema, most_bytes: int, most_rows: int
) -> tuple[Mapping[bytes, bytes], pa.Table]:
    """What such a file says of the whole of it, and its rows. Raises SegmentBad."""
    with opened(store, name, schema, most_bytes, most_rows) as file:
        try:
            table = file.read(use_threads=False)
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable(store, name, "can't be read", error) from None
        if any(column.null_count for column, field in zip(table.columns, schema, strict=True) if not field.nullable):
            raise SegmentBad(name, "lacks values")
        return file.metadata.metadata or {}, table


def _blobs(entries: Sequence[Entry], key: Key | None) -> pa.Table:
    blobs = [blob for blob, _, _ in entries]
    columns: list[Sequence[Any]] = [
        [digest_bytes(blob.digest, key) for blob in blobs],
        [blob.state for blob in blobs],
        [blob.codec for blob in blobs],
        [blob.stored_bytes for blob in blobs],
        [blob.uncompressed_bytes for blob in blobs],
        [blob.chunks for blob in blobs],
        # Under a key it is left out: it is full of digests, and the names that it would be good for are left out too.
        [b"" if key else manifest for _, _, manifest in entries],
    ]
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, BLOBS_SCHEMA.types, strict=True)],
                    schema=BLOBS_SCHEMA)  # fmt: skip


def _rows(entries: Sequence[Entry], rules: records.Rules, key: Key | None) -> pa.Table:
    recipes = [recipe for _, recipe, _ in entries]
    blob_of = np.repeat(np.arange(len(entries), dtype=np.uint32), [len(recipe) for recipe in recipes])
    hashes = b"".join(recipe.hashes for recipe in recipes)
    lengths = np.frombuffer(b"".join(recipe.lengths for recipe in recipes), "<u4")
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    if len(halves) != len(lengths):
        raise RecipeImpossible(f"{len(halves)} hashes and {len(lengths)} lengths")
    levels = level_of(halves[:, 1])
    picked = blocks.picked(halves[:, 1], rules.measure.threshold)
    _check(entries, lengths, picked, blob_of, rules)
    measured = np.zeros(len(lengths), np.uint32)
    measured[picked] = np.frombuffer(b"".join(recipe.measured for recipe in recipes), "<u4")
    least, most = blocks.frame_bounds(lengths[picked].astype(np.int64))
    if ((measured[picked] < least) | (measured[picked] > most)).any():
        raise RecipeImpossible("a chunk recompressed to what no frame of it is long")
    if key is not None:
        hashes = key.map(hashes)
    # As numbers that compare as the bytes do.
    leading, rest = (np.frombuffer(hashes, ">u8")[half::2].astype(np.uint64) for half in (0, 1))
    del hashes, halves, picked
    order = _sorted(leading, rest)
    leading, rest, blob_of, lengths = leading[order], rest[order], blob_of[order], lengths[order]
    measured, levels = measured[order], levels[order]
    del order
    same_chunk = (leading[1:] == leading[:-1]) & (rest[1:] == rest[:-1])
    if (same_chunk & ((lengths[1:] != lengths[:-1]) | (measured[1:] != measured[:-1]))).any():
        raise RecipeImpossible("one hash with two lengths")
    first = np.concatenate(([True], ~(same_chunk & (blob_of[1:] == blob_of[:-1]))))[: len(lengths)]
    starts = np.flatnonzero(first)
    copies = np.diff(np.append(starts, len(lengths))).astype(np.uint32)
    packed = np.empty((len(starts), 2), ">u8")
    packed[:, 0], packed[:, 1] = leading[starts], rest[starts]
    del leading, rest
    own = measured[starts]
    return pa.table(
        [
            pa.FixedSizeBinaryArray.from_buffers(ROWS_SCHEMA.types[0], len(starts), [None, pa.py_buffer(packed)]),
            pa.array(lengths[starts]), pa.array(blob_of[starts]), pa.array(copies), pa.array(own, mask=own == 0),
            pa.array(levels[starts]),
        ],
        schema=ROWS_SCHEMA,
    )  # fmt: skip


def _sorted(leading: NDArray[np.uint64], rest: NDArray[np.uint64]) -> Numbers:
    """The order of hashes; equal ones stay in theirs."""
    order: Numbers = np.argsort(leading, kind="stable")
    if ((leading[order[1:]] == leading[order[:-1]]) & (rest[order[1:]] != rest[order[:-1]])).any():
        order = np.lexsort((rest, leading))  # takes ten times as long
    return order


def _check(
    entries: Sequence[Entry], lengths: NDArray[np.uint32], picked: NDArray[np.bool_], blob_of: NDArray[np.uint32],
    rules: records.Rules,
) -> None:  # fmt: skip
    """Raises RecipeImpossible."""
    if len(lengths) and not 0 < int(lengths.min()) <= int(lengths.max()) <= rules.params.max_bytes:
        raise RecipeImpossible(f"chunks of {lengths.min()} to {lengths.max()} bytes")
    # No sum of this is as large as 2^53, from where on it would not be exact.
    sums = np.bincount(blob_of, weights=lengths, minlength=len(entries))
    wanted = np.bincount(blob_of, weights=picked, minlength=len(entries))
    for (blob, recipe, _), size_bytes, measured in zip(entries, sums.tolist(), wanted.tolist(), strict=True):
        if (len(recipe), int(size_bytes)) != (blob.chunks, blob.uncompressed_bytes):
            raise RecipeImpossible(f"{blob.digest}: {len(recipe)} chunks of {int(size_bytes)} bytes in all")
        if len(recipe.measured) != 4 * int(measured) or len(recipe.hashes) != CHUNK_HASH_BYTES * len(recipe):
            raise RecipeImpossible(
                f"{blob.digest}: not as many hashes, lengths and recompressed lengths as go together"
            )
