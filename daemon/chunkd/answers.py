"""What the daemon answers: the figures, the blobs, its health. Reads only, each in a short transaction of its own."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import lmdb

from chunkd import histogram, records
from chunkd.caches import ServedCache, idle_state
from chunkd.errors import ChunkdError, UsageError
from chunkd.history import changes, read_history
from chunkd.model import CacheState, Digest, Stats
from chunkd.store import Store

if TYPE_CHECKING:  # `chunkd stats` reads an index without numpy and watchdog
    from chunkd.ingest import Ingest
    from chunkd.scanner import Scanner

# A turn of the writer takes a second, and the largest commit that was measured two.
STOOD_S = 60.0


def moment(time_ns: int) -> str | None:
    """RFC 3339 in UTC to the millisecond, None for never."""
    if not time_ns:
        return None
    at = dt.datetime.fromtimestamp(time_ns // 1_000_000 / 1000, dt.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_stats(
    store: Store,
    caches: tuple[CacheState, ...] | None = None,
    pending: tuple[int, int] = (0, 0),
    watching: bool = False,
    now_ns: int | None = None,
) -> Stats:
    """The figures of one snapshot. Without `caches` (no daemon) they are shown as the index has them."""
    with store.guarded(), store.env.begin() as txn:
        rules = store.check_format(txn, None)
        head = store.head(txn)
        grown = changes(store, txn, time.time_ns() if now_ns is None else now_ns, head.totals)
        if caches is None:
            caches = tuple(idle_state(cache) for cache in store.caches(txn).values())
    return Stats(
        head.totals, *pending, moment(head.as_of_ns), moment(head.scanned_at_ns), watching, store.index_bytes(),
        rules.params, rules.caps, caches, rules.measure, (rules.unlike,) if rules.unlike else (), grown,
    )  # fmt: skip


def read_histogram(store: Store) -> dict[str, Any]:
    """The tables of one snapshot, with the time of its commit."""
    with store.guarded(), store.env.begin() as txn:
        rules = store.check_format(txn, None)
        rows = histogram.to_json(store.histogram(txn), rules.params.max_bytes)
        return rows | {"as_of": moment(store.head(txn).as_of_ns)}


def read_blobs(store: Store, after: str, limit: int, failed: bool) -> dict[str, Any]:
    """A page of blobs in the order of their keys; with `failed` only those that failed, and then what was ignored."""
    with store.guarded(), store.env.begin() as txn:
        store.check_format(txn, None)
        roots = {number: cache.path for number, cache in store.caches(txn).items()}
        page: list[dict[str, Any]] = []
        for cursor, row in _rows(store, txn, roots, after, failed):
            if len(page) == limit:
                return {"blobs": page, "next": page[-1]["cursor"]}
            page.append(row | {"cursor": cursor})
    return {"blobs": page, "next": None}


def _rows(
    store: Store, txn: lmdb.Transaction, roots: dict[int, str], after: str, failed: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where to go on, row). A cursor is the database and the record's key in hex."""
    database, _, key = after.partition(":")
    tables = ["failed", "ignored"] if failed else ["blobs", "failed"]
    if after and database not in tables:
        raise UsageError(f"`after` {after!r} is no `next` of a page before")
    try:
        start = bytes.fromhex(key)
    except ValueError:
        raise UsageError(f"`after` {after!r} is no `next` of a page before") from None
    for table in tables[tables.index(database) if after else 0 :]:
        if table == "ignored":
            for place, reason in store.ignored(txn, start):
                path = f"{roots.get(place.cache)}/{place.path}"
                yield f"{table}:{records.place_key(place).hex()}", _ignored_row(path, reason)
        else:
            for blob in store.blobs(txn, table, start):
                row = dataclasses.asdict(blob) | {
                    "digest": str(blob.digest),
                    "retry_at": moment(blob.retry_at * 1_000_000_000),
                    "places": _places(store, txn, roots, blob.digest) if table == "failed" else [],
                }
                yield f"{table}:{records.digest_key(blob.digest).hex()}", row
        start = b""


def _places(store: Store, txn: lmdb.Transaction, roots: dict[int, str], digest: Digest) -> list[str]:
    """Up to ten paths of a blob."""
    places = itertools.islice(store.holders(txn, digest), 10)
    return [f"{roots.get(place.cache)}/{place.path}" for place in places]


def _ignored_row(path: str, reason: str) -> dict[str, Any]:
    return {
        "digest": path, "state": "ignored", "codec": "", "stored_bytes": 0, "uncompressed_bytes": 0, "chunks": 0,
        "reason": reason, "retry_at": None, "tries": 0, "places": [path],
    }  # fmt: skip


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
        from chunkd.shares import LayerPages  # only where numpy is there already

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
        from chunkd.metrics import exposed  # takes a fifth of a second, which is for who asks

        # First what the writer changes last: so what is counted is in the figures.
        counts, progress = deepcopy(self._ingest.counts), self._ingest.progress
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
        if undying := self._ingest.pool.undying:
            yield f"{undying} workers were killed and do not end: they wait for a file system that does not answer"
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
