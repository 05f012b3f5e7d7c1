"""What the running daemon answers: the figures with what is pending, and its health."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from chunkd.errors import ChunkdError
from chunkd.ingest.writer import Writer
from chunkd.model import CacheState
from chunkd.queries.history import read_history
from chunkd.queries.read import read_blobs, read_histogram, read_stats
from chunkd.sources.scanner import Scanner
from chunkd.sources.status import PROBLEMS_SHOWN, state_of

if TYPE_CHECKING:
    from chunkd.service.image_pages import Question

# A turn of the writer takes a second, and the largest commit that was measured two. A names file of the largest size
# takes some seconds.
STOOD_S = 60.0
NAMES_S = 2.0
NAMES_CHECK_S = 0.02


def cache_states(writer: Writer) -> tuple[CacheState, ...]:
    """Each cache as its thread last saw it."""
    return tuple(
        state_of(cache.path, cache.status, cache.hung_s(), layerless=writer.layerless.get(cache.number, ""))
        for cache in writer.caches.values()
    )


def unlisted(writer: Writer) -> dict[str, Any]:
    """How many folders could not be listed, and what is wrong with the first of them and with caches."""
    statuses = [cache.status for cache in writer.caches.values()]
    problems = [problem for status in statuses for problem in status.problems]
    return {
        "unlisted_folders": sum(status.unlisted_folders for status in statuses),
        "problems": problems[:PROBLEMS_SHOWN],
    }


class DaemonAnswers:
    """The answers of a running daemon; called from the endpoint's threads."""

    def __init__(self, writer: Writer, scanner: Scanner, most_repositories: int = 0) -> None:
        from chunkd.queries.layer_shares import LayerPages  # only where numpy is there already
        from chunkd.service.image_pages import ImagePages
        from chunkd.service.image_summary import ImageSummary

        self._writer, self._scanner = writer, scanner
        self._layer_pages = LayerPages(writer.index.store)
        self._image_pages = ImagePages(writer.index.store.path, writer.pool.run)
        self.image_summary = ImageSummary(writer.index.store, self._image_pages, most_repositories)
        self.moved()

    def moved(self) -> None:
        """The daemon calls this each time it has seen that the writer took a turn."""
        self._moved_at = time.monotonic()

    def stats(self) -> dict[str, Any]:
        # Asked before the figures are read: all that is done by now is in them.
        progress = {"scanning": self._scanner.scanning, "scans": self._writer.progress.scans}
        settled = self._writer.activity.idle()
        caches = cache_states(self._writer)
        settled &= all(cache.state != "hung" for cache in caches)
        watching = bool(caches) and all(cache.state == "watched" for cache in caches)
        stats = read_stats(self._writer.index.store, caches, self._writer.pending(), watching).to_json()
        found = {"images": self.image_summary.latest, "settled": settled and not stats["pending_blobs"]}
        return stats | progress | unlisted(self._writer) | found

    def histogram(self) -> dict[str, Any]:
        return read_histogram(self._writer.index.store)

    def blobs(self, after: str, limit: int, failed: bool) -> dict[str, Any]:
        return read_blobs(self._writer.index.store, after, limit, failed)

    def layers(self, after: str, limit: int) -> dict[str, Any]:
        return self._layer_pages.read(after, limit)

    def images(self, after: str, limit: int, by: str) -> dict[str, Any]:
        return self._about_images(("images", (by,)), after, limit)

    def freed(self, after: str, limit: int, references: tuple[str, ...], keep_last: int) -> dict[str, Any]:
        return self._about_images(("freed", (references, keep_last)), after, limit)

    def similar(self, after: str, limit: int, threshold: int) -> dict[str, Any]:
        return self._about_images(("similar", (threshold,)), after, limit)

    def diff(self, after: str, limit: int, client: tuple[str, ...], to: str, platform: str) -> dict[str, Any]:
        return self._about_images(("diff", (client, to, platform)), after, limit)

    def _about_images(self, question: Question, after: str, limit: int) -> dict[str, Any]:
        """Names that are older than a minute are read first; the first page waits NAMES_S for them at most."""
        if not after:
            self._writer.names.ask()
            until_s = time.monotonic() + NAMES_S
            while self._writer.names.is_reading and time.monotonic() < until_s:
                time.sleep(NAMES_CHECK_S)
        return self._image_pages.page(question, after, limit)

    def updates(self, after: str, limit: int, repository: str, platform: str) -> dict[str, Any]:
        return self._image_pages.page(("updates", (repository, platform)), after, limit)

    def history(self, since: str, limit: int) -> dict[str, Any]:
        return read_history(self._writer.index.store, since, limit, time.time_ns())

    def metrics(self, accept: str) -> tuple[str, bytes]:
        from chunkd.service.openmetrics import exposed  # takes 0.2 s to import, which only a scrape should pay

        # The writer changes the counters last, so they are read first: whatever they count is in the figures.
        counts, progress = deepcopy(self._writer.counters), self._writer.progress
        read = progress.done_blobs, progress.done_bytes
        repositories = self.image_summary.repositories
        return exposed(self.stats(), len(list(self._reasons())), counts, read, accept, repositories)

    def health(self) -> dict[str, Any]:
        reasons = list(self._reasons())
        return {"state": "degraded" if reasons else "ok", "reasons": reasons}

    def _reasons(self) -> Iterator[str]:
        """What is wrong now. A failed blob does not count: it stays in the figures until it is gone."""
        for cache in cache_states(self._writer):
            if cache.state in ("hung", "stale", "unwatched"):
                yield f"cache {cache.path}: {cache.state}: {cache.reason}"
        for served in self._writer.caches.values():
            yield from (f"cache {served.path} gives no blob: {unread}" for unread in served.status.unread)
        if self._writer.progress.paused:
            yield f"indexing is paused: {self._writer.progress.paused}"
        found = unlisted(self._writer)
        yield from found["problems"]
        if (more := found["unlisted_folders"] - len(found["problems"])) > 0:
            yield f"{more} more folders can't be listed"
        if (taken_s := self._writer.names.file_taken_s) > STOOD_S:
            yield f"reading the names file has taken {taken_s:.0f} s: does its file system answer?"
        if late_s := self._writer.verify_round.late_s:
            yield f"comparing every place has taken {late_s:.0f} s, longer than verify_interval_s"
        if stuck := self._writer.pool.stuck:
            yield f"{len(stuck)} workers were killed and do not end: they wait for a file system that does not answer"
        stood_s = time.monotonic() - self._moved_at
        if stood_s > STOOD_S:
            yield f"nothing has been done for {stood_s:.0f} s: does the disk answer?"
        try:
            read_stats(self._writer.index.store, ())
        except ChunkdError as error:
            yield f"the figures can't be read: {error}"

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:
        number = self._scanner.request("asked for", verify=verify, accept=accept, retry_failed=retry_failed)
        return {"scan": number}
