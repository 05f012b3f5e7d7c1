"""Upgrades an index of chunkd 0.1 (format 2) to this format, in place and in one transaction.

Format 2 held its totals by their order, in 16 bytes each, lacked two of them, and named `needs_rehash` `suspects`; all
else is the same.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import replace

import lmdb

from chunkd.figures.totals import Totals, sums
from chunkd.index import records

log = logging.getLogger(__name__)

FORMAT = 2
NUMBER_BYTES = 16
TOTALS = (
    "layers", "others", "stored_bytes", "layer_stored_bytes", "uncompressed_bytes", "chunks", "unique_chunks",
    "unique_bytes", "failed_blobs", "failed_bytes", "measured_chunks", "measured_bytes", "measured_recompressed_bytes",
    "measured_xx", "measured_xy", "measured_yy",
)  # fmt: skip
HEAD = ("next_number", "dead_chunks", "young_entries", "hand", "as_of_ns", "scanned_at_ns")


def upgrade(env: lmdb.Environment) -> None:
    """A crash leaves the index either as it was or upgraded. Raises Damaged if the head can't be read."""
    meta, history, suspects, chunks, measured = (
        _database(env, name) for name in ("meta", "history", "suspects", "chunks", "measured")
    )
    with env.begin(write=True) as txn:
        needs_rehash = env.open_db(b"needs_rehash", txn=txn)
        with txn.cursor(db=suspects) as cursor:
            for key, value in cursor:
                txn.put(key, value, db=needs_rehash)
        txn.drop(suspects)
        with txn.cursor(db=history) as cursor:
            rows = list(cursor)
        for key, row in rows:
            # A damaged row stays as it is, for `check` to name.
            with contextlib.suppress(records.Damaged):
                txn.put(key, upgraded_row(row), db=history)
        head = _head(txn.get(b"head", b"", db=meta))
        totals = Totals.of(
            vars(head.totals) | _copies(txn, chunks, measured) | {"archived_blobs": 0, "archived_bytes": 0}
        )
        txn.put(b"head", records.pack_head(replace(head, totals=totals)), db=meta)
        txn.put(b"format", records.pack_format(), db=meta)
    log.info("the index was upgraded from format %d to %d", FORMAT, records.FORMAT)


def upgraded_row(value: bytes) -> bytes:
    """A row of the history, converted from format 2. Raises Damaged if it is not such a row."""
    return records.pack_totals(Totals.of(_numbers(value, TOTALS)))


def _copies(txn: lmdb.Transaction, chunks: lmdb._Database, measured: lmdb._Database) -> dict[str, int]:
    """The totals over the copies of measured chunks, which format 2 did not count."""
    import numpy as np  # only here: an index is upgraded once

    from chunkd.index import blocks

    found = Counter[str]()
    with txn.cursor(db=measured) as cursor:
        for key, value in cursor:
            slots = np.frombuffer(txn.get(key, b"", db=chunks), blocks.SLOT)
            numbers, recompressed = blocks.unpack_measured([0], [value])
            if len(slots) != blocks.SLOTS:
                raise records.Damaged(f"the block {key.hex()} of chunks has a wrong size")
            use = slots["use"][numbers]
            lengths, copies = use & blocks.LENGTH_MASK, use >> blocks.LENGTH_BITS
            found.update(sums("measured", lengths.astype(np.int64), recompressed, copies.astype(np.int64)))
    return {name: found[name] for name in ("measured_copies_bytes", "measured_copies_recompressed_bytes")}


def _database(env: lmdb.Environment, name: str) -> lmdb._Database:
    try:
        return env.open_db(name.encode(), create=False)
    except lmdb.NotFoundError:
        raise records.Damaged(f"it has no database {name!r}") from None


def _head(value: bytes) -> records.Head:
    numbers = _numbers(value, (*TOTALS, *HEAD))
    own = {name: numbers.pop(name) for name in HEAD}
    return records.Head(Totals.of(numbers), **own)


def _numbers(value: bytes, names: tuple[str, ...]) -> dict[str, int]:
    payload = records.unseal(value)
    if len(payload) != NUMBER_BYTES * len(names):
        raise records.Damaged(f"{len(payload)} bytes are no {len(names)} numbers")
    starts = range(0, len(payload), NUMBER_BYTES)
    numbers = (int.from_bytes(payload[start : start + NUMBER_BYTES], "little") for start in starts)
    return dict(zip(names, numbers, strict=True))
