"""The part of a recount that compares places, holders, failures and ignored places with one another."""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from chunkd.check.result import RecountResult
from chunkd.index import records
from chunkd.index.storage.environment import Store
from chunkd.model import Blob, Place


def recount_places(store: Store, txn: lmdb.Transaction, result: RecountResult, caches: set[int]) -> None:
    """Add the failed blobs to the result, and each difference between the places of blobs and the counted blobs."""
    _failures(store, txn, result)
    _held(store, txn, result, caches)
    _ignored(store, txn, result, caches)


def blob_records(
    store: Store, txn: lmdb.Transaction, result: RecountResult, database: str
) -> Iterator[tuple[bytes, Blob]]:
    """The blobs of a database by their keys, counted. A record that can't be read is a difference, and its blob bad."""
    for key, value in store.walk(txn, database):
        try:
            blob = records.unpack_blob(records.digest_from_key(key), value)
        except records.Damaged as error:
            result.differ(database, key.hex(), "a blob record", error)
            result.bad.add(key)
            continue
        result.count(database, blob)
        yield key, blob


def _failures(store: Store, txn: lmdb.Transaction, result: RecountResult) -> None:
    for key, blob in blob_records(store, txn, result, "failed"):
        if blob.counted or store.get(txn, "blobs", key) is not None:
            result.differ("failed", blob.digest, "a failed blob that is not counted", blob)


def _held(store: Store, txn: lmdb.Transaction, result: RecountResult, caches: set[int]) -> None:
    """Check that places and holders agree about counted and failed blobs, that every failed blob has a place, and that
    every counted blob has a verified place or needs a rehash.
    """
    good: set[bytes] = set()
    failed = {key for key, _ in store.walk(txn, "failed")}
    unplaced = failed.copy()
    places = 0
    for key, value in store.walk(txn, "places"):
        places += 1
        try:
            place, held = records.place_from_key(key), records.unpack_held(value)
        except records.Damaged as error:
            result.differ("places", key.hex(), "a place record", error)
            continue
        digest_key = records.digest_key(held.digest)
        result.compare("holders", f"{held.digest} {place.path}", b"", store.get(txn, "holders", digest_key + key))
        if place.cache not in caches:
            result.differ("places", _named(place), "a cache of this index", f"cache {place.cache}")
        unplaced.discard(digest_key)
        if digest_key not in failed and store.get(txn, "blobs", digest_key) is None:
            result.differ("places", _named(place), "a blob that is counted or failed", held.digest)
        blob = _counted(store, txn, digest_key) if held.state == "verified" else None
        if blob is not None and digest_key not in result.bad and blob.stored_bytes != held.mark.stored_bytes:
            result.differ("blobs", held.digest, f"{held.mark.stored_bytes} bytes as in its place", blob.stored_bytes)
            result.bad.add(digest_key)
        if held.state == "verified" or store.get(txn, "needs_rehash", digest_key) is not None:
            good.add(digest_key)
    result.compare("holders", "entries", places, sum(1 for _ in store.walk(txn, "holders")))
    for key in sorted(unplaced - result.bad):
        result.differ("failed", _digest(key), "a place", "none")
    for key, _ in store.walk(txn, "blobs"):
        if key not in good and key not in result.bad:
            result.differ("places", _digest(key), "a place that holds it", "none")
    for key, _ in store.walk(txn, "needs_rehash"):
        if store.get(txn, "blobs", key) is None:
            result.differ("needs_rehash", _digest(key), "a counted blob", "none")


def _ignored(store: Store, txn: lmdb.Transaction, result: RecountResult, caches: set[int]) -> None:
    for key, _ in store.walk(txn, "ignored"):
        try:
            place = records.place_from_key(key)
        except records.Damaged as error:
            result.differ("ignored", key.hex(), "a place", error)
            continue
        if place.cache not in caches:
            result.differ("ignored", _named(place), "a cache of this index", f"cache {place.cache}")


def _counted(store: Store, txn: lmdb.Transaction, key: bytes) -> Blob | None:
    value = store.get(txn, "blobs", key)
    try:
        return None if value is None else records.unpack_blob(records.digest_from_key(key), value)
    except records.Damaged:  # reported where blobs are recounted
        return None


def _named(place: Place) -> str:
    return f"{place.cache}:{place.path}"


def _digest(key: bytes) -> str:
    try:
        return str(records.digest_from_key(key))
    except records.Damaged:
        return key.hex()
