"""The totals over time: one row for each minute in which they changed. A row holds until the next one.

A quiet cache writes nothing; the totals at any time are those of the last row before it. Rows are thinned with age: the
last of each hour is kept after a day, and the last of each day after a month.

Clocks jump. When a clock that was ahead is put right, the rows that it wrote lie in the future. The next change drops
those of the next day; the others are not shown until their time comes. A clock ahead also makes every row look old.
Therefore a row thins two at most, and an hour with a wrong clock costs 120 rows and not all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from chunkd.figures.totals import Totals
from chunkd.index.records import Damaged, pack_totals, unpack_totals
from chunkd.index.storage.page_audit import seek

if TYPE_CHECKING:
    import lmdb

    from chunkd.index.storage.environment import Store

MINUTE_NS = 60 * 10**9
KEY_BYTES = 4
# The last minute of the year 9999, the last year that dates can have.
LAST_MINUTE = 4_223_371_679
HOUR, DAY = 60, 1440
MONTH = 31 * DAY
# Beyond this many rows the oldest is dropped. The daily rows reach back 130 years by then.
MOST_ROWS = 50_000
ROWS_A_SLICE = 512
DROPS_A_SLICE = 2


class History:
    """The writer's end. `note` is called in the transaction that changes the totals."""

    def __init__(self, table: lmdb._Database) -> None:
        self._table = table
        # Where thinning goes on. The first pass covers all rows, because a scan on a timer writes one row and ends.
        self._hand, self._slice_rows = 0, MOST_ROWS

    def note(self, txn: lmdb.Transaction, now_ns: int, totals: Totals) -> None:
        """Keep the totals under this minute, replacing its previous row. A new row also thins a slice."""
        now = minute_of(now_ns)
        is_new = txn.get(moment_key(now), db=self._table) is None
        txn.put(moment_key(now), pack_totals(totals), db=self._table)
        self._drop_ahead(txn, now)
        if is_new:
            self._thin(txn, now)

    def _drop_ahead(self, txn: lmdb.Transaction, now: int) -> None:
        """Drop the rows of the next day: a clock that has been put back since wrote them before this one."""
        with txn.cursor(db=self._table) as cursor:
            there = seek(cursor, moment_key(min(now + 1, LAST_MINUTE)))
            while there and now < _minute(cursor.key()) <= now + DAY:
                there = cursor.delete()

    def _thin(self, txn: lmdb.Transaction, now: int) -> None:
        with txn.cursor(db=self._table) as cursor:
            if txn.stat(self._table)["entries"] > MOST_ROWS and cursor.first():
                cursor.delete()
            there = seek(cursor, moment_key(self._hand))
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


def inherit(store: Store, rows: Iterable[tuple[bytes, bytes]], now_ns: int) -> None:
    """Replace this index's history by these rows of another one, followed by a row of this index's present totals.

    Raises IndexUnwritable, with nothing changed.
    """
    table = store.databases["history"]
    store.resync()
    with store.guarded():
        with store.env.begin(write=True) as txn:
            txn.drop(table, delete=False)
            for key, value in rows:
                txn.put(key, value, db=table)
            History(table).note(txn, now_ns, store.head(txn).totals)
        store.env.sync(True)


def _surplus(minute: int, following: int, now: int) -> bool:
    """Whether thinning drops this row: the one that follows stands for the same hour or day."""
    age = now - minute
    kept = 1 if age <= DAY else HOUR if age <= MONTH else DAY
    return minute // kept == following // kept


def _minute(key: bytes | memoryview) -> int:
    # The writer's transactions give buffers. `recount` finds keys that are not a minute.
    return int.from_bytes(bytes(key), "big")


# --- reading ------------------------------------------------------------------------------------------------------


def check_history(store: Store, txn: lmdb.Transaction) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of each damaged row."""
    for key, value in store.walk(txn, "history"):
        try:
            moment_from_key(key)
            unpack_totals(value)
        except Damaged as error:
            yield key.hex(), str(error)


# --- a row's key, both ways: the minute at whose end the totals had these values


def minute_of(time_ns: int) -> int:
    """The minute since the epoch that contains this time; times out of range give the nearest minute in range."""
    return min(max(time_ns // MINUTE_NS, 0), LAST_MINUTE)


def moment_key(minute: int) -> bytes:
    return minute.to_bytes(KEY_BYTES, "big")


def moment_from_key(key: bytes) -> int:
    minute = int.from_bytes(key, "big")
    if len(key) != KEY_BYTES or minute > LAST_MINUTE:
        raise Damaged(f"{key.hex()} is not a minute")
    return minute
