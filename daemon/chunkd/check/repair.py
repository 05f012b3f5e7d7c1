"""`chunkd check --repair`: restores the counters from the recipes, and the look-up from the chunk records.

It does not guess what is wrong in the recipes themselves, or what only a blob's bytes can tell of its chunks. Such a
blob is removed with its places, so that the next scan finds it and reads it again. The records of all chunks that then
have no copies are removed too.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from chunkd.check.recount import problem_of_names, read_slots, recount, windows, within
from chunkd.check.result import RecountResult
from chunkd.figures.totals import Totals
from chunkd.index import blocks, records
from chunkd.index.chunks.entries import Entries, prefixes_of
from chunkd.index.chunks.lookup import Lookup
from chunkd.index.history import check_history
from chunkd.index.index import Change, Index
from chunkd.model import Difference


def repair_index(index: Index, bad: set[bytes]) -> list[Difference]:
    """Repair what the recipes determine, in one transaction. Returns the differences that remain, which need a rebuild.

    `bad` are the keys of the blobs to be removed.
    """
    with index.transaction() as change:
        _take_out(change, bad)
        _mend_places(change)
        _mend_history(change)
        change.head = dataclasses.replace(change.head, totals=Totals(), young_entries=0, hand=0)
        _mend_copies(change)
        _mend_measured(change)
        _mend_lookup(change)
        change.write_head(0)
        result = recount(change.store, change.txn)
        totals = Totals(**result.totals)
        change.head = dataclasses.replace(change.head, totals=totals, dead_chunks=result.dead_chunks)
        change.set_histogram(result.histogram)
    with index.snapshot() as txn:
        return recount(index.store, txn).differences


def _take_out(change: Change, bad: set[bytes]) -> None:
    """Remove the blobs with these keys, with whatever is left of their records."""
    databases, txn = change.store.databases, change.txn
    for key in bad:
        for database in ("blobs", "failed", "recipes", "manifests", "needs_rehash"):
            txn.delete(key, db=databases[database])


def _mend_places(change: Change) -> None:
    """Make places and holders agree for blobs that exist. A scan finds blobs without a place again."""
    store, txn, databases = change.store, change.txn, change.store.databases
    caches = store.caches(txn)
    for key, value in list(store.walk(txn, "failed")):
        if store.get(txn, "blobs", key) is not None or not _is_failed(key, value):
            txn.delete(key, db=databases["failed"])
    states: dict[bytes, set[str]] = {}
    txn.drop(databases["holders"], delete=False)
    for key, value in list(store.walk(txn, "places")):
        try:
            held = records.unpack_held(value)
            digest_key = records.digest_key(held.digest)
            known = any(store.get(txn, database, digest_key) is not None for database in ("blobs", "failed"))
            kept = known and records.place_from_key(key).cache in caches
        except records.Damaged:
            kept = False
        if kept:
            states.setdefault(digest_key, set()).add(held.state)
            txn.put(digest_key + key, b"", db=databases["holders"])
        else:
            txn.delete(key, db=databases["places"])
    for key, value in list(store.walk(txn, "names")):
        if problem_of_names(key, value, caches):  # they are read again
            txn.delete(key, db=databases["names"])
    for key, _ in list(store.walk(txn, "ignored")):
        if int.from_bytes(key[:4], "big") not in caches or len(key) < 5:
            txn.delete(key, db=databases["ignored"])
    for key, _ in list(store.walk(txn, "failed")):
        if key not in states:
            txn.delete(key, db=databases["failed"])
    txn.drop(databases["needs_rehash"], delete=False)
    for key, _ in list(store.walk(txn, "blobs")):
        if key not in states:
            _take_out(change, {key})
        elif "verified" not in states[key]:
            txn.put(key, b"", db=databases["needs_rehash"])


def _mend_history(change: Change) -> None:
    """Remove the damaged rows of the history."""
    for key, _ in list(check_history(change.store, change.txn)):
        change.txn.delete(bytes.fromhex(key), db=change.store.databases["history"])


def _is_failed(key: bytes, value: bytes) -> bool:
    try:
        return not records.unpack_blob(records.digest_from_key(key), value).counted
    except records.Damaged:
        return False


def _mend_copies(change: Change) -> None:
    store, txn = change.store, change.txn
    for key, value in list(store.walk(txn, "chunks")):
        beyond = int.from_bytes(key, "big") * blocks.SLOTS >= change.head.next_number
        if len(key) != len(blocks.block_key(0)) or len(value) != blocks.BLOCK_BYTES or beyond:
            txn.delete(key, db=store.databases["chunks"])  # the blobs that used it were removed
    layers = [
        (key, records.unpack_blob(records.digest_from_key(key), value))
        for key, value in store.walk(txn, "blobs")
        if store.get(txn, "recipes", key) is not None
    ]
    for window in windows(change.head.next_number):
        copies = np.zeros(len(window), np.int64)
        for key, blob in layers:
            numbers = blocks.unpack_recipe(store.get(txn, "recipes", key) or b"", blob.chunks)
            np.add.at(copies, within(numbers, window), 1)
        slots = read_slots(store, txn, window, RecountResult()).copy()
        lengths = slots["use"] & blocks.LENGTH_MASK
        slots["use"] = (copies.astype(np.uint64) << blocks.LENGTH_BITS) | lengths
        # Chunks without copies may be what damaged the removed blobs: they must not come back with them.
        slots[copies == 0] = np.zeros((), blocks.SLOT)
        for first in range(0, len(window), blocks.SLOTS):
            block = slots[first : first + blocks.SLOTS].tobytes().ljust(blocks.BLOCK_BYTES, b"\0")
            number = (int(window[0]) + first) // blocks.SLOTS
            if any(block):
                change.chunks.put(number, np.frombuffer(block, blocks.SLOT))
            else:
                txn.delete(blocks.block_key(number), db=store.databases["chunks"])


def _mend_measured(change: Change) -> None:
    """Keep the recompressed lengths of live chunks that the rule picks. Blobs that lack one are already removed."""
    store, txn = change.store, change.txn
    for key, value in list(store.walk(txn, "measured")):
        kept = b""
        try:
            block = blocks.block_of(key)
            numbers, lengths = blocks.unpack_measured([block], [value])
            slots = np.frombuffer(store.get(txn, "chunks", key) or bytes(blocks.BLOCK_BYTES), blocks.SLOT)
            own = slots[numbers - block * blocks.SLOTS]
            live = blocks.picked(own["high"], change.rules.measure.threshold) & (own["use"] >> blocks.LENGTH_BITS > 0)
            (kept,) = blocks.pack_measured([block], numbers[live], lengths[live])
        except records.Damaged:
            pass  # the blobs whose chunks these are were removed
        if kept:
            txn.put(key, kept, db=store.databases["measured"])
        else:
            txn.delete(key, db=store.databases["measured"])


def _mend_lookup(change: Change) -> None:
    store, txn = change.store, change.txn
    for table in ("young", "dense"):
        txn.drop(store.databases[table], delete=False)
    lookup = Lookup(store.databases["young"], store.databases["dense"])
    for window in windows(change.head.next_number):
        slots = read_slots(store, txn, window, RecountResult())
        used = np.flatnonzero(slots["use"])
        prefixes = prefixes_of(slots["low"][used])
        order = np.argsort(prefixes)
        lookup.insert(txn, Entries.of(prefixes[order], window[used][order]))
        young, hand = lookup.merge(
            txn, change.head.young_entries + len(used), change.head.hand, len(used), int(window[-1]) + 1
        )
        change.head = dataclasses.replace(change.head, young_entries=young, hand=hand)
    change.index.lookup.forget()
