"""Counted blobs read again, by workers of this process, while one snapshot of the index is held."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import lmdb

from chunkd.index import records
from chunkd.index.storage.environment import Store
from chunkd.model import Digest, Finding, Job, MeasureRule
from chunkd.objects.choose import bucket_of
from chunkd.settings.config import Config
from chunkd.sources.folder import FolderSource
from chunkd.worker.spawn import Starter, courtesy_of, make_pool

if TYPE_CHECKING:
    from chunkd.objects.bucket import BucketSource


def read_again(
    store: Store,
    txn: lmdb.Transaction,
    config: Config,
    measure: MeasureRule,
    digests: Iterable[Digest],
    *,
    start: Callable[..., Starter] = Starter,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[Digest, Finding | None]]:
    """What each blob is found to be, in any order; None for one that is gone or can't be read. Layers are decoded, cut
    and measured by these rules, and the index's for all else.

    `start` makes the process that starts the workers. `progress` is called about once a second, with the stored bytes
    read of those blobs that are not done.
    """
    rules = store.check_format(txn, None)
    roots = {number: cache.path for number, cache in store.caches(txn).items()}
    settings = config.workers, config.nice, config.io_priority, config.read_bytes_per_s
    pool = make_pool(*courtesy_of(*settings), rules.params, rules.caps, measure, start)
    todo = iter(digests)
    sources: dict[str, BucketSource | FolderSource] = {}
    try:
        while True:
            while pool.idle and (digest := next(todo, None)) is not None:
                root, path = place_of(store, txn, roots, digest)
                try:
                    if root not in sources:
                        sources[root] = bucket_of(root, pool.run) or FolderSource(root)
                    with sources[root].view() as view:
                        descriptor, seen = view.open(path)
                except OSError:
                    descriptor = -1
                if descriptor < 0:
                    yield digest, None
                    continue
                try:
                    pool.give(Job(digest, seen.mark), descriptor)
                finally:
                    os.close(descriptor)
            if pool.idle and not pool.jobs():
                return
            for result in pool.collect(1.0):
                found = result.finding
                yield result.job.digest, None if found and found.kind in ("gone", "unreadable") else found
            progress(pool.read_bytes)
    finally:
        for source in sources.values():
            if not isinstance(source, FolderSource):
                source.close()
        pool.close()


def place_of(store: Store, txn: lmdb.Transaction, roots: dict[int, str], digest: Digest) -> tuple[str, str]:
    """A place of the blob, a verified one if possible: the root, and the path below it."""
    best: tuple[str, str] | None = None
    for place in store.holders(txn, digest):
        value = store.get(txn, "places", records.place_key(place))
        verified = value is not None and records.unpack_held(value).state == "verified"
        if verified or best is None:
            best = roots.get(place.cache, ""), place.path
        if verified:
            break
    return best or ("", "")
