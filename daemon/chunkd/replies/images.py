"""Which image holds what, what would be freed, and which images are alike."""

from __future__ import annotations

from typing import TypedDict


class Page(TypedDict):
    """The moment that a page about images shows. `next` is the `after` of the following page, None at the end. If that
    page has another `commit`, begin again.
    """

    as_of: str | None
    names_as_of: str | None
    commit: int
    next: str | None


class Stored(TypedDict):
    """The bytes on disk of what an image holds. `exclusive_bytes` no other one holds; of what n hold each has one n-th
    as `fair_share_bytes`; `new_bytes` no earlier one holds.
    """

    referenced_bytes: int
    exclusive_bytes: int
    shared_bytes: int
    fair_share_bytes: int
    new_bytes: int


class Chunks(Stored):
    """The same for the distinct chunks of its layers, before compression."""

    uncompressed_bytes: int
    repeated_bytes: int
    recompressed_bytes: int | None
    recompressed_error_bytes: int | None


class Image(TypedDict):
    """An image. `chunks` is None where blobs are missing. `left_out` counts names and platforms beyond 1,000 each."""

    digest: str
    kind: str
    names: list[str]
    platforms: list[str]
    absent_platforms: list[str]
    missing_blobs: int
    missing_bytes: int
    left_out: int
    stored: Stored
    chunks: Chunks | None


class Repository(TypedDict):
    """The images of a repository together; those without a name have the name ""."""

    repository: str
    images: int
    stored: Stored
    chunks: Chunks | None


class PartialImages(TypedDict):
    """What closes the sums of chunks: the shares of the rows whose chunks are None."""

    images: int
    fair_share_bytes: int
    new_bytes: int


class PartialRepositories(TypedDict):
    """What closes the sums of chunks: the shares of the rows whose chunks are None."""

    repositories: int
    fair_share_bytes: int
    new_bytes: int


class Unheld(TypedDict):
    """What no image holds."""

    blobs: int
    stored_bytes: int
    unique_bytes: int


class _Sums(Page):
    order: str
    unheld: Unheld
    names_without_blob: int


class Images(_Sums):
    """The images in the order that `order` states."""

    images: list[Image]
    partial: PartialImages


class Repositories(_Sums):
    """The repositories, in the order of their first images."""

    repositories: list[Repository]
    partial: PartialRepositories


class FreedStored(TypedDict):
    """The blobs that nothing else holds, and their bytes on disk."""

    bytes: int
    blobs: list[str]


class FreedChunks(TypedDict):
    """The chunks that nothing else holds."""

    bytes: int
    recompressed_bytes: int | None
    recompressed_error_bytes: int | None


class KeptImage(TypedDict):
    """An image that a glob named, and that stays as it has other names."""

    digest: str
    names: list[str]


class Revision(TypedDict):
    """A revision of a manifest in a registry."""

    repository: str
    digest: str


class Collection(TypedDict):
    """What the registry's own collection does. `sources`: where the names come from. `freed_now_bytes`: what it would
    free as things are, None without a registry. `delete`: the revisions that must go before it frees the rest.
    `has_index`: some manifest is a list of others, whose children have no tags.
    """

    sources: list[str]
    freed_now_bytes: int | None
    delete: list[Revision]
    delete_left_out: int
    has_index: bool


class Freed(Page):
    """What would be freed if these images went."""

    images: list[str]
    stored: FreedStored
    chunks: FreedChunks
    held_by_others_bytes: int
    names: list[str]
    names_left_out: int
    kept: list[KeptImage]
    kept_left_out: int
    kept_last: int
    collection: Collection


class _Alike(TypedDict):
    digest: str
    names: list[str]
    partial: bool


class AlikeImage(_Alike):
    """An image of a cluster, with its first names. What a `partial` one lacks is not compared."""

    cluster: int


class PairedImage(_Alike):
    """One image of a pair, with its first names."""


class AlikePair(TypedDict):
    """Two images of different repositories. `overlap_bytes` both hold; `similarity` is this part of what either holds,
    `contained` of what each does.
    """

    images: list[PairedImage]
    overlap_bytes: int
    similarity: float
    contained: list[float]


class Similar(Page):
    """The images that are in a cluster, and the pairs that share most. `common_bytes` more than half of all hold."""

    threshold: float
    common_bytes: int
    pairs: list[AlikePair]
    alike: list[AlikeImage]
