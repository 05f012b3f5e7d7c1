"""The values that cross a border between modules: frozen, without I/O, importing the standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

HEX_DIGITS = {"sha256": 64, "sha512": 128}
CHUNK_HASH_BYTES = 16
CODECS = ("", "gzip", "zstd", "tar")


class Digest(NamedTuple):
    """A blob's name. The same bytes named by sha256 and by sha512 are two blobs."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]+)")


def digest_of(text: object) -> Digest | None:
    """The digest that a text is, `sha256:<hex>`; None for anything else."""
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(match[2]) != HEX_DIGITS[match[1]]:
        return None
    return Digest(match[1], match[2])


class Place(NamedTuple):
    """A path that holds a blob: the cache's number in the index, and the path relative to the cache's root."""

    cache: int
    path: str


class Cause(Enum):
    """Why a place is observed. The value is the word for the log."""

    MOVED_IN = "moved in"
    WRITTEN = "written"
    CREATED = "created"
    DELETED = "deleted"
    MOVED_OUT = "moved out"
    CHANGED = "changed"
    LISTED = "listed by a scan"
    NOT_LISTED = "not listed by a scan"
    VERIFY = "metadata compared"
    BLOB_FOLDER = "its folder was listed before its blob"
    RETRY = "tried again"
    CHANGED_SINCE_FAILED = "compared, as it failed"
    READ = "read by a worker"
    REPLACED = "replaced while it was read"
    SETTLING = "looked at again, as it did not match its name"
    WAITED_FOR = "waited for as a scan ended"
    SAME_DIGEST = "another place of the blob was read"
    TAKES_OVER = "the verified place of the blob is gone"
    DISAGREES = "another blob has a chunk of another length"


class Hint(NamedTuple):
    """Observe this place.

    `by_event`: an event named it just now. `force`: read it again even if it failed. `folder`: its folder was made or
    listed before the blob in it, so that an absent blob may be about to come.
    """

    place: Place
    cause: Cause
    by_event: bool = False
    force: bool = False
    folder: bool = False

    def merged(self, later: Hint) -> Hint:
        """One hint for both: it asks for all that either asked for. An event's cause says most."""
        cause = later.cause if later.by_event and not self.by_event else self.cause
        return Hint(
            self.place, cause, self.by_event or later.by_event, self.force or later.force, self.folder or later.folder
        )


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

    uncompressed_bytes: int = 256 << 30
    ratio: int = 2000
    zstd_window_bytes: int = 128 << 20

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
    """One blob for a worker, whose bytes it gets as an open descriptor; with `decode` false it only hashes them.

    `mark` is the file's as its opener saw it. `relayed` says that a second core has nothing to do, and may be taken if
    the blob is large.
    """

    digest: Digest
    mark: FileMark
    decode: bool = True
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What a worker found. `kind` is one of

    layer        the bytes match the name and decompress to their end; `codec`, `recipe`, `uncompressed_bytes` hold
    other        the bytes match the name and are not a layer: `reason` says what they are
    matched      the bytes match the name (a job without `decode`)
    mismatched   the bytes do not match the name, or are not as many as the job's mark says
    undecodable  the bytes match the name and are not a whole stream, or break a cap: `reason`
    unreadable   the file can't be read: `reason`
    gone         the file was unlinked while it was read

    `read_until_ns` is when the last byte had been read, in ns since the epoch; 0 when not all of them were. `manifest`
    is the record of what an `other` says if it is a manifest, an index or a config (`worker.manifest_record`).
    """

    kind: str
    codec: str = ""
    uncompressed_bytes: int = 0
    reason: str = ""
    read_until_ns: int = 0
    recipe: Recipe = field(default=Recipe(), repr=False)
    manifest: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Blob:
    """What the index holds of one digest. `state` is `layer`, `other`, `failed`, or `archived`: it is in a bucket's
    archive, and is read once it was restored.

    `reason` says why one failed, and what an `other` is, where that was found out; `retry_at` (seconds since the epoch)
    is when a failed one is tried again, 0 for never.
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
        return self.state in ("layer", "other")


@dataclass(frozen=True, slots=True)
class CacheState:
    """One cache as it is served. `state` is `watched`, `polled`, `idle` (no daemon), `unwatched`, `stale`, or `hung`:
    its file system does not answer.
    """

    path: str
    layouts: tuple[str, ...] = ()
    state: str = "idle"
    reason: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the daemon waits for what others do. Tests of the whole daemon have it wait shorter.

    settle_s         a file that does not match its name may still be written, until so long after its last change
    look_at_root_s   from the end of one look at a cache's root to the next
    hung_s           a file system that has not answered one call for so long is taken for hung
    unsettled_s      `chunkd scan` waits so long for files that are still being written
    """

    settle_s: float = 10.0
    look_at_root_s: float = 5.0
    hung_s: float = 5.0
    unsettled_s: float = 15.0


class Difference(NamedTuple):
    """One thing that `recount` found otherwise than the index says."""

    record: str
    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.record} {self.key}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class MeasureRule:
    """Which chunks are recompressed, and how: `level` is zstd's, `library` names the version that makes the frames.

    A chunk is picked when the last 16 bits of its hash, little-endian, are below `threshold`: it alone decides, by bits
    that the look-up does not sort by.
    """

    one_in: int = 16
    level: int = 3
    library: str = ""

    @property
    def threshold(self) -> int:
        return -(-(1 << 16) // self.one_in)

    def picks(self, chunk_hash: bytes) -> bool:
        return int.from_bytes(chunk_hash[14:16], "little") < self.threshold

    def picked(self, hashes: bytes) -> int:
        """How many of these hashes, one after the other, it picks."""
        ends = (hashes[at::CHUNK_HASH_BYTES] for at in (14, 15))
        return sum(low | high << 8 < self.threshold for low, high in zip(*ends, strict=True))

    def __str__(self) -> str:
        which = f"1 chunk in {self.one_in}" if self.one_in > 1 else "every chunk"
        return f"{which} at level {self.level} of {self.library or 'zstd'}"


# LMDB's keys end at 511 bytes: 65 for the longest digest and 4 for the cache's number leave this much for a path.
MAX_PATH_BYTES = 440


# What a cache holds that has no layer, and no other large blob either.
METADATA_ALONE = "metadata alone"


class Cache(NamedTuple):
    """A cache as the index knows it. `device` and `inode` are its root's, 0 while it was never listed; `fsid` is its
    file system's, 0 where it has none of its own. `mounts` are the folders below it, with their devices, where
    something was mounted that holds blobs. `layerless` says of a cache that holds blobs and no layer which kinds of
    large blobs it holds, or METADATA_ALONE. `warnings` say what else is odd.
    """

    path: str
    device: int = 0
    inode: int = 0
    layouts: tuple[str, ...] = ()
    layerless: str = ""
    mounts: tuple[tuple[str, int], ...] = ()
    warnings: tuple[str, ...] = ()
    fsid: int = 0
