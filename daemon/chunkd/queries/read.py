"""The daemon's answers: the figures, the blobs, its health. Only reads, each in a short transaction of its own."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import lmdb

from chunkd.errors import UsageError
from chunkd.figures import histogram
from chunkd.figures.stats import Stats
from chunkd.index import records
from chunkd.index.storage.environment import Store
from chunkd.model import CacheState, Digest
from chunkd.queries.history import changes, time_text
from chunkd.sources.status import idle_state


def moment(time_ns: int) -> str | None:
    """To the millisecond; None for 0, which means never."""
    return time_text(time_ns) if time_ns else None


def read_stats(
    store: Store,
    caches: tuple[CacheState, ...] | None = None,
    pending: tuple[int, int] | None = None,
    watching: bool = False,
    now_ns: int | None = None,
) -> Stats:
    """The figures of one snapshot. Without `caches` (no daemon) they are shown as the index has them. Without
    `pending` nothing is pending if the last writer ended with nothing left to do; otherwise it is unknown.
    """
    with store.snapshot() as txn:
        rules = store.check_format(txn, None)
        head = store.head(txn)
        grown = changes(store, txn, time.time_ns() if now_ns is None else now_ns, head.totals)
        if caches is None:
            caches = tuple(idle_state(cache) for cache in store.caches(txn).values())
        at_rest = store.at_rest(txn)
    pending_blobs, pending_bytes = pending or ((0, 0) if at_rest else (None, None))
    return Stats(
        head.totals, pending_blobs, pending_bytes, moment(head.as_of_ns), moment(head.scanned_at_ns), watching,
        store.index_bytes(),
        rules.params, rules.caps, caches, rules.measure, (rules.unlike,) if rules.unlike else (), grown,
    )  # fmt: skip


def read_histogram(store: Store) -> dict[str, Any]:
    """The tables of one snapshot, with the time of its commit."""
    with store.snapshot() as txn:
        rules = store.check_format(txn, None)
        rows = histogram.to_json(store.histogram(txn), rules.params.max_bytes)
        return rows | {"as_of": moment(store.head(txn).as_of_ns)}


def read_blobs(store: Store, after: str, limit: int, failed: bool) -> dict[str, Any]:
    """A page of blobs in the order of their keys; with `failed` only the failed blobs, then the ignored places."""
    with store.snapshot() as txn:
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
    """(where to continue, row). A cursor is the database and the record's key in hex."""
    database, _, key = after.partition(":")
    tables = ["failed", "ignored"] if failed else ["blobs", "failed"]
    if after and database not in tables:
        raise UsageError(f"`after` {after!r} is not the `next` of an earlier page")
    try:
        start = bytes.fromhex(key)
    except ValueError:
        raise UsageError(f"`after` {after!r} is not the `next` of an earlier page") from None
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
