"""The values that cross a border between modules: frozen, without I/O, importing the standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chunkd import caps, saving

HEX_DIGITS = {"sha256": 64, "sha512": 128}
CHUNK_HASH_BYTES = 16
CODECS = ("", "gzip", "zstd", "tar")


class Digest(NamedTuple):
    """A blob's name. The same bytes named by sha256 and by sha512 are two blobs."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Place(NamedTuple):
    """A path that holds a blob: the cache's number in the index, and the path relative to the cache's root."""

    cache: int
    path: str


class Hint(NamedTuple):
    """Look at this place. `why` says which event or which doubt found it, for the log."""

    place: Place
    why: str

    @property
    def by_event(self) -> bool:
        """Whether an event named this place just now, and not only once, before something else."""
        return self.why.endswith("(event)")

    @property
    def retry(self) -> bool:
        """Whether a blob that failed is to be read again, whatever is known of it."""
        return self.why in ("retry", "retry (event)")


class FileMark(NamedTuple):
    """What a file's metadata says of its bytes: while none of these changes, neither do they.

    `ctime_ns` is 0 when the last look came so soon after the change that a second one could have hidden behind it.
    """

    device: int
    inode: int
    stored_bytes: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class ChunkParams:
    """What decides every cut and every hash. Stored in the index; another value is another index.

    A cut falls after the first byte at which the chunk is at least `min_bytes` long and the low `mask_bits` bits of the
    gear hash are 0, at `max_bytes`, or at the end of the data. Raises ValueError when the three do not go together.
    """

    min_bytes: int = 2048
    mask_bits: int = 14
    max_bytes: int = 65536
    gear_seed: int = 0x9E3779B97F4A7C15
    hash_name: str = "blake3-128"

    def __post_init__(self) -> None:
        if not 1 <= self.mask_bits <= 32:
            raise ValueError(f"mask_bits is 1 to 32, not {self.mask_bits}")
        if not self.mask_bits <= self.min_bytes <= self.max_bytes < 1 << 24:
            raise ValueError(
                f"mask_bits <= min_bytes <= max_bytes < 16777216 does not hold: "
                f"{self.mask_bits}, {self.min_bytes}, {self.max_bytes}"
            )
        if self.hash_name != "blake3-128":
            raise ValueError(f"the only hash is blake3-128, not {self.hash_name!r}")


@dataclass(frozen=True, slots=True)
class Caps:
    """How far a hostile blob may go before it is failed. Each is a setting, and all are stored in the index."""

    uncompressed_bytes: int = caps.UNCOMPRESSED_BYTES
    ratio: int = caps.RATIO
    zstd_window_bytes: int = caps.ZSTD_WINDOW_BYTES

    # The ratio says nothing of small blobs: a file of zeros is one, and harms nobody.
    RATIO_FROM_BYTES = 1 << 30

    def ratio_bytes(self, stored_bytes: int) -> int:
        """What a blob of this size may decompress to by its ratio."""
        return max(self.RATIO_FROM_BYTES, self.ratio * stored_bytes)

    def most_uncompressed_bytes(self, stored_bytes: int) -> int:
        """What a blob of this size may decompress to by both caps."""
        return min(self.uncompressed_bytes, self.ratio_bytes(stored_bytes))

    def most_chunks(self, params: ChunkParams) -> int:
        """In how many chunks a blob may fall: as many as there are cuts by chance in all bytes that it may have, or as
        what the ratio says nothing of can have, if that is more. Chunks cost memory, and a blob could be made of short
        ones alone.
        """
        return max(self.uncompressed_bytes >> params.mask_bits, self.RATIO_FROM_BYTES // params.min_bytes)

    def most_chunks_of(self, uncompressed_bytes: int, params: ChunkParams) -> int:
        """In how many chunks so many bytes may fall: all but the last are `min_bytes` long or longer."""
        return min(self.most_chunks(params), -(-uncompressed_bytes // params.min_bytes))


@dataclass(frozen=True, slots=True)
class Recipe:
    """The chunks of one blob, in order: `hashes` is 16 bytes a chunk, `lengths` a little-endian u32 a chunk.

    `measured` is a little-endian u32 for each chunk that the index's `MeasureRule` picks: its length recompressed.
    """

    hashes: bytes = b""
    lengths: bytes = b""
    measured: bytes = b""

    def __len__(self) -> int:
        return len(self.lengths) // 4


@dataclass(frozen=True, slots=True)
class Job:
    """One blob for a worker: read the file at `path`; with `decode` false only hash it against the name.

    `relayed` says that a second core has nothing to do, and may be taken if the blob is large.
    """

    digest: Digest
    path: str
    decode: bool = True
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a worker found. `kind` is one of

    layer        the bytes match the name and decompress to their end; `codec`, `recipe`, `uncompressed_bytes` hold
    other        the bytes match the name and are no layer
    matched      the bytes match the name (a job without `decode`)
    mismatched   the bytes do not match the name
    undecodable  the bytes match the name and are no whole stream, or break a cap: `reason`
    unreadable   the file can't be read: `reason`
    ignored      the path is no regular file: `reason`
    gone         there is no such file
    """

    kind: str
    mark: FileMark | None = None
    codec: str = ""
    uncompressed_bytes: int = 0
    reason: str = ""
    recipe: Recipe = field(default=Recipe(), repr=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """What the index holds of one digest. `state` is `layer`, `other` or `failed`.

    For a failed one `reason` says why; `retry_at` (seconds since the epoch) is when it is tried again, 0 for never.
    """

    digest: Digest
    state: str
    stored_bytes: int
    uncompressed_bytes: int = 0
    chunks: int = 0
    codec: str = ""
    reason: str = ""
    tries: int = 0
    retry_at: int = 0

    @property
    def counted(self) -> bool:
        return self.state != "failed"


@dataclass(frozen=True, slots=True)
class CacheState:
    """One cache as it is served. `state` is `watched`, `polled`, `idle` (no daemon), `stale` or `unwatched`."""

    path: str
    layouts: tuple[str, ...] = ()
    state: str = "idle"
    reason: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """The running figures, changed only together with the recipes that they sum up.

    Those that begin with `measured` are over the unique chunks that were recompressed: their number, the sums of their
    lengths and recompressed lengths, and of the squares and products of the two (x and y).
    """

    layers: int = 0
    others: int = 0
    stored_bytes: int = 0
    layer_stored_bytes: int = 0
    uncompressed_bytes: int = 0
    chunks: int = 0
    unique_chunks: int = 0
    unique_bytes: int = 0
    failed_blobs: int = 0
    failed_bytes: int = 0
    measured_chunks: int = 0
    measured_bytes: int = 0
    measured_recompressed_bytes: int = 0
    measured_xx: int = 0
    measured_xy: int = 0
    measured_yy: int = 0

    @property
    def sample(self) -> saving.Sample:
        return saving.Sample(
            self.measured_chunks, self.measured_bytes, self.measured_recompressed_bytes,
            self.measured_xx, self.measured_xy, self.measured_yy,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures and how fresh they are: a read-only snapshot. Times are RFC 3339 in UTC."""

    totals: Totals
    pending_blobs: int
    pending_bytes: int
    as_of: str | None
    scanned_at: str | None
    watching: bool
    index_bytes: int
    params: ChunkParams
    caps: Caps
    caches: tuple[CacheState, ...]
    measure: saving.MeasureRule = saving.MeasureRule()
    warnings: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, Any] | None] = field(default_factory=lambda: {"day": None, "week": None})

    def to_json(self) -> dict[str, Any]:
        """The one object of `stats --json`, `GET /v1/stats` and `scan --json`; names as DESIGN.md has them."""
        totals = self.totals
        return {
            "blobs": totals.layers + totals.others,
            "layers": totals.layers,
            "stored_bytes": totals.stored_bytes,
            "layer_stored_bytes": totals.layer_stored_bytes,
            "uncompressed_bytes": totals.uncompressed_bytes,
            "chunks": totals.chunks,
            "unique_chunks": totals.unique_chunks,
            "unique_bytes": totals.unique_bytes,
            "redundancy": 1 - totals.unique_bytes / totals.uncompressed_bytes if totals.uncompressed_bytes else None,
            "mean_chunk_bytes": totals.uncompressed_bytes / totals.chunks if totals.chunks else None,
            **saving.figures(totals),
            "pending_blobs": self.pending_blobs,
            "pending_bytes": self.pending_bytes,
            "failed_blobs": totals.failed_blobs,
            "failed_bytes": totals.failed_bytes,
            "as_of": self.as_of,
            "scanned_at": self.scanned_at,
            "watching": self.watching,
            "index_bytes": self.index_bytes,
            "params": dataclasses.asdict(self.params)
            | {"caps": dataclasses.asdict(self.caps), "measure": dataclasses.asdict(self.measure)},
            "caches": [dataclasses.asdict(cache) for cache in self.caches],
            "warnings": list(self.warnings),
            "changes": dict(self.changes),
        }


class Difference(NamedTuple):
    """One thing that `recount` found otherwise than the index says."""

    record: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.record} {self.key}: expected {self.expected}, found {self.found}"
