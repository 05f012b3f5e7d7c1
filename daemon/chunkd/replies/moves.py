"""What a client moves to pull an image, and from version to version."""

from __future__ import annotations

from typing import Literal, TypedDict

from chunkd.replies.images import Page

_FromBlobs = TypedDict("_FromBlobs", {"from": int})


class PartialPull(_FromBlobs):
    """The blobs that are not here: `from` of what the client has, `to` of what it pulls."""

    to: int
    to_bytes: int


class Pulled(TypedDict):
    """All of an image."""

    layers: int
    stored_bytes: int


class MovedLayers(TypedDict):
    """What a client lacks of an image, as it is stored; `missing` counts layers alone."""

    missing: int
    blobs: int
    stored_bytes: int


class Ranges(TypedDict):
    """The requests, if gaps of at most `gap_bytes` (None: of any length) are moved too; `bytes` with them."""

    gap_bytes: int | None
    ranges: int
    bytes: int


class MovedChunks(TypedDict):
    """The same as chunks. `bytes` of `missing` chunks are before compression. `total_bytes` are compressed chunks,
    recipes, and what moves whole. `runs` are stretches of missing chunks.
    """

    missing: int
    bytes: int
    recompressed_bytes: int | None
    recompressed_error_bytes: int | None
    recipe_bytes: int
    runs: int
    ranges: list[Ranges]
    whole_blobs: int
    whole_bytes: int
    total_bytes: int | None


class Cheaper(TypedDict):
    """Each layer whole or as chunks, whichever is less; `whole_layers` are whole."""

    bytes: int
    error_bytes: int | None
    whole_layers: int


class PulledLayer(TypedDict):
    """A cut layer that the client lacks, as in `MovedChunks`."""

    digest: str
    stored_bytes: int
    chunks: int
    missing: int
    bytes: int
    recompressed_bytes: int | None
    recipe_bytes: int
    runs: int
    cheaper: Literal["whole", "chunks"] | None


class _Pull(TypedDict):
    to: str
    from_names: list[str]
    to_names: list[str]
    pulled: Pulled
    layers: MovedLayers
    chunks: MovedChunks | None
    cheaper: Cheaper | None
    measured_by: Literal["set", "image", "cache", "decoded"] | None
    partial: PartialPull


_FromImages = TypedDict("_FromImages", {"from": list[str]})


class Diff(_FromImages, _Pull, Page):
    """What a client that has images `from` moves to pull the image `to`. `chunks` and `cheaper` are None if a blob that
    the client lacks is not here. `measured_by`: whose measured chunks the compressed lengths come from.
    """

    platform: str | None
    by_layer: list[PulledLayer]


_FromImage = TypedDict("_FromImage", {"from": str | None})


class UpdatePair(_FromImage, _Pull):
    """What a client moves from one version to another, as `Diff` has it."""


class _Medians(TypedDict):
    pairs: int
    unknown: int
    dearer: int
    without_error: int
    median_requests: int | None
    median_blobs: int | None
    median_layer_bytes: int | None
    median_chunk_bytes: int | None
    median_cheaper_bytes: int | None


class Distance(_Medians):
    """The medians of the pairs that are so many versions apart. `unknown` pairs are in no median, `dearer` ones cost
    more as chunks; `left_out` would have taken too long.
    """

    distance: int
    left_out: int


class LeftOutVersions(TypedDict):
    """What is in no pair: digests that are `absent` or `not_images`, tags without an order, images `earlier` than the
    latest 1,000.
    """

    absent: int
    not_images: int
    unordered: int
    without_platform: int
    earlier: int
    tags: list[str]


class Updates(Page):
    """What moves from each version of a repository, or of a tag, to the next one. `same_time` counts pushes whose order
    is that of their digests.
    """

    repository: str
    tag: str | None
    platform: str | None
    order: Literal["versions", "pushes"] | None
    versions: int
    series: int
    same_time: int
    left_out: LeftOutVersions
    first_pull: UpdatePair | None
    distances: list[Distance]
    pairs: list[UpdatePair]


class RepositoryUpdates(_Medians):
    """What moves from version to version of a repository, over all known pairs; `last` is the last pair."""

    repository: str
    order: Literal["versions", "pushes"] | None
    versions: int
    layer_bytes: int
    chunk_bytes: int
    saved_bytes: int
    saved: float | None
    last: UpdatePair | None


class LeftOutPairs(TypedDict):
    """The pairs that would have taken too long."""

    pairs: int


class MedianRepository(TypedDict):
    """The medians of the repositories' medians."""

    repositories: int
    median_layer_bytes: int | None
    median_chunk_bytes: int | None
    median_cheaper_bytes: int | None
    median_saved: float | None


class AllUpdates(Page):
    """A row for each repository, those first in which chunks would save most."""

    platform: str | None
    most_pairs: int
    left_out: LeftOutPairs
    median: MedianRepository
    repositories: list[RepositoryUpdates]
