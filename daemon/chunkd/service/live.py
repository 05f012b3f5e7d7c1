"""What the running daemon answers: the figures with what is pending, and its health."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from chunkd.errors import ChunkdError
from chunkd.ingest.writer import Ingest
from chunkd.model import CacheState
from chunkd.queries.history import read_history
from chunkd.queries.read import read_blobs, read_histogram, read_stats
from chunkd.sources.cache import ServedCache
from chunkd.sources.scanner import Scanner

# A turn of the writer takes a second, and the largest commit that was measured two.
STOOD_S = 60.0


def settled(scanner: Scanner, ingest: Ingest) -> bool:
    """Whether at one moment of this call nothing was left to be done. Figures that are read after it have all that was
    known when it was called.
    """
    turns = scanner.turns
    # The writer may have the scanner list everything, and gets the listings from it.
    return not (scanner.busy or ingest.busy or scanner.busy) and turns == scanner.turns


class DaemonAnswers:
    """The answers of a running daemon; called from the endpoint's threads."""

    def __init__(self, ingest: Ingest, scanner: Scanner, watching: bool) -> None:
        from chunkd.queries.layer_shares import LayerPages  # only where numpy is there already

        self._ingest, self._scanner, self._watching = ingest, scanner, watching
        self._layer_pages = LayerPages(ingest.index.store)
        self.moved()

    def moved(self) -> None:
        """Called as often as the daemon has seen its writer take a turn."""
        self._moved_at = time.monotonic()

    def _caches(self) -> tuple[CacheState, ...]:
        watcher = self._scanner.watcher()
        alive = watcher is not None and watcher.alive
        return tuple(cache.state(alive) for cache in self._served())

    def _served(self) -> list[ServedCache]:
        return list(self._ingest.caches.values())

    def stats(self) -> dict[str, Any]:
        # Before the figures are read: what was done by now is in them, what is done meanwhile may not be.
        progress = {"scanning": self._scanner.running, "scans": self._ingest.progress.scans}
        at_rest = settled(self._scanner, self._ingest)
        caches = self._caches()
        watching = self._watching and bool(caches) and all(cache.state == "watched" for cache in caches)
        stats = read_stats(self._ingest.index.store, caches, self._ingest.pending(), watching).to_json()
        return stats | progress | {"settled": at_rest and not stats["pending_blobs"]}

    def histogram(self) -> dict[str, Any]:
        return read_histogram(self._ingest.index.store)

    def blobs(self, after: str, limit: int, failed: bool) -> dict[str, Any]:
        return read_blobs(self._ingest.index.store, after, limit, failed)

    def layers(self, after: str, limit: int) -> dict[str, Any]:
        return self._layer_pages.read(after, limit)

    def history(self, since: str, limit: int) -> dict[str, Any]:
        return read_history(self._ingest.index.store, since, limit, time.time_ns())

    def metrics(self, accept: str) -> tuple[str, bytes]:
        from chunkd.service.openmetrics import exposed  # takes a fifth of a second, which is for who asks

        # First what the writer changes last: so what is counted is in the figures.
        counts, progress = deepcopy(self._ingest.counters), self._ingest.progress
        read = progress.done_blobs, progress.done_bytes
        return exposed(self.stats(), len(list(self._reasons())), counts, read, accept)

    def health(self) -> dict[str, Any]:
        reasons = list(self._reasons())
        return {"state": "degraded" if reasons else "ok", "reasons": reasons}

    def _reasons(self) -> Iterator[str]:
        """What is wrong now. A blob that failed is no such thing: it is in the figures, and stays until it is gone."""
        for cache in self._caches():
            if cache.state in ("stale", "unwatched"):
                yield f"cache {cache.path}: {cache.state}: {cache.reason}"
        if self._ingest.progress.paused:
            yield f"indexing is paused: {self._ingest.progress.paused}"
        yield from list(self._scanner.problems.values())
        if stuck := self._ingest.pool.stuck:
            yield f"{stuck} workers were killed and do not end: they wait for a file system that does not answer"
        stood_s = time.monotonic() - self._moved_at
        if stood_s > STOOD_S:
            yield f"nothing has been done for {stood_s:.0f} s: does the disk answer?"
        try:
            read_stats(self._ingest.index.store, ())
        except ChunkdError as error:
            yield f"the figures can't be read: {error}"

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:
        number = self._scanner.request("asked for", verify=verify, accept=accept, retry_failed=retry_failed)
        return {"scan": number}
