"""The totals over time: a row for each minute in which they changed, and they stood so until the next row.

A quiet cache writes nothing, and how it stood at any time is what the last row before tells. Rows are thinned with
age: the last of each hour is kept after a day, and the last of each day after a month.

Clocks jump. The rows that a clock ahead of time has written lie in the future when it is put right: those of the next
day are dropped by the next change, others are not shown until their time comes. A clock ahead also makes every row look
old; therefore a row thins two at most, and an hour with a wrong clock costs 120 rows and not all.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chunkd.errors import UsageError
from chunkd.figures import KEPT
from chunkd.model import Caps, ChunkParams, Stats, Totals
from chunkd.moments import (
    LAST_MINUTE,
    minute_of,
    moment_from_key,
    moment_key,
    pack_moment,
    unpack_moment,
)  # fmt: skip
from chunkd.records import Damaged

if TYPE_CHECKING:
    import lmdb

    from chunkd.store import Store

HOUR, DAY = 60, 1440
MONTH = 31 * DAY
WEEK = 7 * DAY
# Beyond so many the oldest is dropped: those of days are 130 years by then.
MOST_ROWS = 50_000
ROWS_A_SLICE = 512
DROPS_A_SLICE = 2
SPANS = {"m": 1, "h": HOUR, "d": DAY, "w": WEEK}


class History:
    """The writer's end. `note` is called in the transaction that changes the totals."""

    def __init__(self, table: lmdb._Database) -> None:
        self._table = table
        # Where thinning goes on. The first look is at all rows: a scan on a timer ends after a row, and has no other.
        self._hand, self._slice_rows = 0, MOST_ROWS

    def note(self, txn: lmdb.Transaction, now_ns: int, totals: Totals) -> None:
        """Keep the totals as those of this minute, in place of what it had before; with a new row, thin a slice."""
        now = minute_of(now_ns)
        is_new = txn.get(moment_key(now), db=self._table) is None
        txn.put(moment_key(now), pack_moment(totals), db=self._table)
        self._drop_ahead(txn, now)
        if is_new:
            self._thin(txn, now)

    def _drop_ahead(self, txn: lmdb.Transaction, now: int) -> None:
        """Drop the rows of the next day: they were written before this one, by a clock that was put back since."""
        with txn.cursor(db=self._table) as cursor:
            there = cursor.set_range(moment_key(min(now + 1, LAST_MINUTE)))
            while there and now < _minute(cursor.key()) <= now + DAY:
                there = cursor.delete()

    def _thin(self, txn: lmdb.Transaction, now: int) -> None:
        with txn.cursor(db=self._table) as cursor:
            if txn.stat(self._table)["entries"] > MOST_ROWS and cursor.first():
                cursor.delete()
            there = cursor.set_range(moment_key(self._hand))
            keys = cursor.iternext(values=False) if there else iter(())
            minutes = [_minute(key) for key in itertools.islice(keys, self._slice_rows)]
        old = [minute for minute, following in itertools.pairwise(minutes) if _surplus(minute, following, now)]
        for minute in old[:DROPS_A_SLICE]:
            txn.delete(moment_key(minute), db=self._table)
        if len(old) >= DROPS_A_SLICE:
            self._hand = old[DROPS_A_SLICE - 1]
        else:
            self._hand = minutes[-1] if len(minutes) == self._slice_rows else 0
        self._slice_rows = ROWS_A_SLICE


def kept(store: Store) -> list[tuple[bytes, bytes]]:
    """Every record of the history, for `inherit`."""
    with store.guarded(), store.env.begin() as txn:
        return list(store.walk(txn, "history"))


def inherit(store: Store, records: list[tuple[bytes, bytes]], now_ns: int) -> None:
    """Make these records the history of another index, in place of its own, and how that one stands the last row.

    Raises IndexUnwritable, with nothing changed.
    """
    table = store.databases["history"]
    store.resync()
    with store.guarded():
        with store.env.begin(write=True) as txn:
            txn.drop(table, delete=False)
            for key, value in records:
                txn.put(key, value, db=table)
            History(table).note(txn, now_ns, store.head(txn).totals)
        store.env.sync(True)


def _surplus(minute: int, following: int, now: int) -> bool:
    """Whether a row tells no more than the one that follows it, by what is kept of its age."""
    age = now - minute
    kept = 1 if age <= DAY else HOUR if age <= MONTH else DAY
    return minute // kept == following // kept


def _minute(key: bytes | memoryview) -> int:
    # The writer's transactions give buffers. What is no minute is for `recount` to tell.
    return int.from_bytes(bytes(key), "big")


# --- reading ------------------------------------------------------------------------------------------------------


def rows(store: Store, txn: lmdb.Transaction, since: int, until: int) -> Iterator[tuple[int, Totals]]:
    """The minutes from `since` to `until` that have a row, with the totals."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        there = cursor.set_range(moment_key(since))
        for key, value in cursor if there else ():
            minute = moment_from_key(bytes(key))
            if minute > until:
                return
            yield minute, unpack_moment(bytes(value))


def stood(store: Store, txn: lmdb.Transaction, at: int) -> Totals | None:
    """The totals as they were at the end of a minute, None where that was before the first row."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        there = cursor.prev() if cursor.set_range(moment_key(max(at, 0) + 1)) else cursor.last()
        return unpack_moment(bytes(cursor.value())) if there and at >= 0 else None


def changes(store: Store, txn: lmdb.Transaction, now_ns: int, totals: Totals) -> dict[str, dict[str, Any] | None]:
    """By how much each figure grew over a day and over a week; None where the history does not reach back so far."""
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
    """Those of the figures of `stats` that the totals alone tell, by the names of `figures.KEPT`."""
    whole = Stats(totals, 0, 0, None, None, False, 0, ChunkParams(), Caps(), ()).to_json()
    return {name: whole[name] for name in KEPT}


def read_history(store: Store, since: str, limit: int, now_ns: int) -> dict[str, Any]:
    """A page of the history: at most `limit` rows from the time that `since` names, and the `since` of the page behind.

    The first is the row before that time, where there is none of that very minute: so it stood then. Raises UsageError
    for what names no time.
    """
    now = minute_of(now_ns)
    start = min(since_minute(since, now), now)
    page: list[dict[str, Any]] = []
    with store.guarded(), store.env.begin() as txn:
        store.check_format(txn, None)
        for minute, totals in rows(store, txn, _last_before(store, txn, start), now):
            if len(page) == limit:
                return {"history": page, "next": shown(minute)}
            page.append({"at": shown(minute)} | figures_of(totals))
    return {"history": page, "next": None}


def _last_before(store: Store, txn: lmdb.Transaction, start: int) -> int:
    """The last minute until then that has a row; the one asked for where none has."""
    with txn.cursor(db=store.databases["history"]) as cursor:
        if cursor.set_range(moment_key(start)) and moment_from_key(bytes(cursor.key())) == start:
            return start
        there = cursor.prev() if cursor.key() else cursor.last()
        return moment_from_key(bytes(cursor.key())) if there else start


def since_minute(text: str, now: int) -> int:
    """`7d` (so many minutes, hours, days or weeks ago: m, h, d, w), `2026-01-31`, or `2026-01-31T12:00Z`, in UTC."""
    span = re.fullmatch("([0-9]{1,9})([mhdw])", text, re.ASCII)
    if span:
        return max(now - int(span[1]) * SPANS[span[2]], 0)
    if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z)?", text, re.ASCII):
        try:
            at = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
            return minute_of(int(at.timestamp()) * 10**9)
        except ValueError:
            pass
    raise UsageError(f"since {text[:100]!r}: is no time; write 7d (m, h, d, w), 2026-01-31 or 2026-01-31T12:00Z")


def shown(minute: int) -> str:
    """RFC 3339, in UTC."""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=minute)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def check_history(store: Store, txn: lmdb.Transaction) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each row that is none."""
    for key, value in store.walk(txn, "history"):
        try:
            moment_from_key(key)
            unpack_moment(value)
        except Damaged as error:
            yield key.hex(), str(error)
