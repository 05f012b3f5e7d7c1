"""The figures, how fresh they are, and what they are figures of. docs/figures.md explains them."""

from __future__ import annotations

from typing import Literal, TypedDict


class Kept(TypedDict):
    """The figures that the history keeps. Among `changes`, by how much each has grown."""

    blobs: int
    layers: int
    stored_bytes: int
    layer_stored_bytes: int
    uncompressed_bytes: int
    chunks: int
    unique_chunks: int
    unique_bytes: int
    redundancy: float | None
    recompressed_bytes: int | None
    net_bytes: int | None
    net: float | None
    failed_blobs: int
    failed_bytes: int


class Caps(TypedDict):
    """How far a blob may go before it is failed."""

    uncompressed_bytes: int
    ratio: int
    zstd_window_bytes: int


class Measure(TypedDict):
    """Which chunks are recompressed: one in so many, at a level of zstd, by a library."""

    one_in: int
    level: int
    library: str


class Params(TypedDict):
    """The rules by which the index was made."""

    min_bytes: int
    mask_bits: int
    max_bytes: int
    gear_seed: int
    hash_name: str
    caps: Caps
    measure: Measure


class Cache(TypedDict):
    """A cache as it is served. `reason` says why it is not `watched`."""

    path: str
    layouts: list[str]
    state: Literal["watched", "polled", "idle", "unwatched", "stale", "hung"]
    reason: str | None
    warnings: list[str]


class Changes(TypedDict):
    """None where the history does not reach back that far."""

    day: Kept | None
    week: Kept | None


class ImageSummary(TypedDict):
    """`unreached`: no name reaches these blobs."""

    as_of: str | None
    names_as_of: str | None
    images: int
    names: int
    partial_images: int
    unreached_blobs: int
    unreached_bytes: int


class Stats(Kept):
    """The figures, and how fresh they are.

    Without a daemon `unlisted_folders` and `images` are None. The pending figures and `settled` are None too, unless
    the last writer ended with nothing left to do. `problems` say what the figures may lack.
    """

    mean_chunk_bytes: float | None
    recompressed_error_bytes: int | None
    index_overhead_bytes: int | None
    codec_saving_bytes: int | None
    deduplication_saving_bytes: int | None
    break_even_unique: float | None
    measured_chunks: int
    pending_blobs: int | None
    pending_bytes: int | None
    archived_blobs: int | None
    archived_bytes: int | None
    unlisted_folders: int | None
    index_bytes: int
    as_of: str | None
    scanned_at: str | None
    watching: bool
    params: Params
    caches: list[Cache]
    problems: list[str]
    warnings: list[str]
    changes: Changes
    images: ImageSummary | None
    scanning: bool
    scans: int
    settled: bool | None


class _Columns(TypedDict):
    unique_chunks: int
    chunks: int
    unique_bytes: int
    uncompressed_bytes: int


_FromTo = TypedDict("_FromTo", {"from": int, "to": int})


class CopiesRow(_FromTo, _Columns):
    """The chunks that occur so many times."""


class SizesRow(_Columns):
    """The chunks of so many bytes."""

    from_bytes: int
    to_bytes: int


class Histogram(TypedDict):
    """Each column of each table adds up to the figure of its name."""

    copies: list[CopiesRow]
    sizes: list[SizesRow]
    as_of: str | None


class Health(TypedDict):
    """`down`: no daemon answers, which only the asking end can say."""

    state: Literal["ok", "degraded", "down"]
    reasons: list[str]


class Blob(TypedDict):
    """A blob; an `ignored` one has its path in place of a digest. `reason` says why it `failed`, and what an `other`
    is; `retry_at` when it is tried again. A failed one has its `places`, ten at most.
    """

    digest: str
    state: Literal["layer", "other", "failed", "archived", "ignored"]
    stored_bytes: int
    uncompressed_bytes: int
    chunks: int
    codec: str
    reason: str
    tries: int
    retry_at: str | None
    places: list[str]
    cursor: str


class Blobs(TypedDict):
    """A page of blobs. `next` is the `after` of the following page, None at the end."""

    blobs: list[Blob]
    next: str | None


class Layer(TypedDict):
    """A layer, its uncompressed bytes in three parts: `exclusive_bytes` are chunks that only this layer has and
    `shared_bytes` chunks that others have too, each counted once; `repeated_bytes` every further copy inside the layer.
    """

    digest: str
    codec: str
    stored_bytes: int
    uncompressed_bytes: int
    chunks: int
    exclusive_bytes: int
    shared_bytes: int
    repeated_bytes: int


class Layers(TypedDict):
    """A page of layers; it may be empty and still have a `next`. Pages with one `commit` show one moment."""

    layers: list[Layer]
    next: str | None
    commit: int


class Moment(Kept):
    """The figures as they stood from the end of the minute `at` until the next row."""

    at: str


class History(TypedDict):
    """A page of the history. `next` is the `since` of the following page, None at the end."""

    history: list[Moment]
    next: str | None


class Scan(TypedDict):
    """The number of the scan that was started."""

    scan: int


class Error(TypedDict):
    """Why a request was refused."""

    error: str
