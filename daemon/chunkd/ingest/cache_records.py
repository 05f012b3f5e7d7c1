"""What the index keeps of the caches: as their threads last saw them, and what each has instead of layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from chunkd.index.index import Change, Index
from chunkd.ingest.adopt import LeftCaches, known_places
from chunkd.model import Cache
from chunkd.sources.cache import ServedCache
from chunkd.sources.status import warnings
from chunkd.worker.magic import instead_of_layers

log = logging.getLogger(__name__)


class CacheRecords:
    """`left` are the caches that are no longer served and still have blobs in the index. `layerless` says of a
    cache that has blobs but no layer what these are; any thread may read it.
    """

    def __init__(self, index: Index, caches: Mapping[int, ServedCache], left: LeftCaches | None) -> None:
        self._index, self._caches, self.left = index, caches, left
        with index.snapshot() as txn:
            self.layerless = {number: cache.layerless for number, cache in index.store.caches(txn).items()}
        self._looked_at = (0, 0)
        self._told: dict[int, tuple[str, ...]] = {}

    def write(self, change: Change) -> None:
        """Record the caches as they are now, if they are not recorded so."""
        before = change.caches()
        recorded = {number: self._record(cache) for number, cache in self._caches.items()}
        if self.left is not None:
            recorded |= {number: cache for number, cache in before.items() if number in self.left.numbers}
        if recorded != before:
            change.set_caches(recorded)

    def _record(self, cache: ServedCache) -> Cache:
        return cache.status.record(cache.path, self.layerless.get(cache.number, ""))

    def look_at_kinds(self, done: tuple[int, int]) -> None:
        """Find out what each cache holds that has blobs but no layer. `done` says how many scans have ended and how
        many blobs were decoded: when both are as before, there is nothing to find out.
        """
        if self._looked_at == done:
            return
        self._looked_at = done
        for cache in self._caches.values():
            with self._index.snapshot() as txn:
                layerless = instead_of_layers(self._index.store.blobs_in(txn, cache.number))
            self.layerless[cache.number] = layerless
            cache.remember(known_places(self._index, cache.number))
            told = warnings(cache.status.warnings, layerless=layerless)
            for warning in set(told) - set(self._told.get(cache.number, ())):
                log.warning("cache %s: %s", cache.path, warning)
            self._told[cache.number] = told
        with self._index.snapshot() as txn:
            before = self._index.store.caches(txn)
        if any(before.get(number) != self._record(cache) for number, cache in self._caches.items()):
            with self._index.transaction() as change:
                self.write(change)
