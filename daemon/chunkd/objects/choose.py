"""Which source a cache has: a folder's or a bucket's. Nothing of object storage is imported for a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkd.sources import folder
from chunkd.urls import OBJECT_STORES

if TYPE_CHECKING:
    from chunkd.objects.bucket import BucketSource, Run


def bucket_of(path: str, run: Run | None = None) -> BucketSource | None:
    """The source of a cache that is a URL; None of one that is a folder. Raises ChunkdError, as `Bucket` does."""
    if not path.startswith(OBJECT_STORES):
        return None
    from chunkd.objects.bucket import BucketSource

    return BucketSource(path, run)


def check_usable(path: str) -> None:
    """Raises CacheUnusable when the cache is not there or can't be listed, and ChunkdError as `bucket_of` does."""
    if not path.startswith(OBJECT_STORES):
        folder.check_usable(path)
        return
    from chunkd.objects import bucket

    bucket.check_usable(path)
