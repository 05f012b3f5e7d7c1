"""Queries of the history: rows from a time on, and the changes over a day and a week."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import Any

import lmdb

from chunkd.errors import UsageError
from chunkd.figures.names import KEPT, value_of
from chunkd.figures.totals import Totals
from chunkd.index.history import DAY, HOUR, MINUTE_NS, minute_of, moment_from_key, moment_key
from chunkd.index.records import unpack_totals
from chunkd.index.storage.environment import Store
from chunkd.index.storage.page_audit import seek

WEEK = 7 * DAY


SPANS = {"m": 1, "h": HOUR, "d": DAY, "w": WEEK}


def rows(store: Store, txn: lmdb.Transaction, since: int, until: int) -> Iterator[tuple[int, Totals]]:
    """The minutes from `since` to `until` that have a row, with their totals."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        there = seek(cursor, moment_key(since))
        for key, value in cursor if there else ():
            minute = moment_from_key(bytes(key))
            if minute > until:
                return
            yield minute, unpack_totals(bytes(value))


def stood(store: Store, txn: lmdb.Transaction, at: int) -> Totals | None:
    """The totals at the end of a minute, None if that is before the first row."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        there = cursor.prev() if seek(cursor, moment_key(max(at, 0) + 1)) else cursor.last()
        return unpack_totals(bytes(cursor.value())) if there and at >= 0 else None


def changes(store: Store, txn: lmdb.Transaction, now_ns: int, totals: Totals) -> dict[str, dict[str, Any] | None]:
    """By how much each figure grew over a day and over a week; None if the history does not reach back that far."""
    now, today = minute_of(now_ns), figures_of(totals)
    grown: dict[str, dict[str, Any] | None] = {}
    for name, minutes in (("day", DAY), ("week", WEEK)):
        before = stood(store, txn, now - minutes)
        grown[name] = None if before is None else _difference(today, figures_of(before))
    return grown


def _difference(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if value is None or before[name] is None else value - before[name] for name, value in now.items()
    }


def figures_of(totals: Totals) -> dict[str, Any]:
    """The figures of `KEPT` that can be computed from the totals, by name."""
    return {name: value_of(name, totals) for name in KEPT}


def read_history(store: Store, since: str, limit: int, now_ns: int) -> dict[str, Any]:
    """A page of the history: at most `limit` rows from the time that `since` names, and the `since` of the next page.

    If that very minute has no row, the page begins with the row before it, which held then. Raises UsageError if
    `since` does not name a time.
    """
    now = minute_of(now_ns)
    start = min(since_minute(since, now), now)
    page: list[dict[str, Any]] = []
    with store.snapshot() as txn:
        store.check_format(txn, None)
        for minute, totals in rows(store, txn, _last_before(store, txn, start), now):
            if len(page) == limit:
                return {"history": page, "next": shown(minute)}
            page.append({"at": shown(minute)} | figures_of(totals))
    return {"history": page, "next": None}


def _last_before(store: Store, txn: lmdb.Transaction, start: int) -> int:
    """The last minute up to `start` that has a row; `start` itself if there is none."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        if seek(cursor, moment_key(start)) and moment_from_key(bytes(cursor.key())) == start:
            return start
        there = cursor.prev() if cursor.key() else cursor.last()
        return moment_from_key(bytes(cursor.key())) if there else start


def since_minute(text: str, now: int) -> int:
    """`7d` (this many minutes, hours, days or weeks ago: m, h, d, w), `2026-01-31`, or `2026-01-31T12:00Z`, in UTC."""
    span = re.fullmatch("([0-9]{1,9})([mhdw])", text, re.ASCII)
    if span:
        return max(now - int(span[1]) * SPANS[span[2]], 0)
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z)?", text, re.ASCII):
        try:
            at = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
            return minute_of(int(at.timestamp()) * 10**9)
        except ValueError:
            pass
    raise UsageError(f"since {text[:100]!r}: not a time; write 7d (m, h, d, w), 2026-01-31 or 2026-01-31T12:00Z")


def shown(minute: int) -> str:
    return time_text(minute * MINUTE_NS, "seconds")


def time_text(time_ns: int, timespec: str = "milliseconds") -> str:
    """RFC 3339, in UTC, as every time is written."""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=time_ns // 1_000_000)
    return at.isoformat(timespec=timespec).replace("+00:00", "Z")
