"""Before the first scan: the index is made that of exactly the caches and the rules that are asked for."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable

from chunkd.index import records
from chunkd.index.index import Change, Index
from chunkd.ingest.places import AfterCommit, PlaceChanges
from chunkd.model import Blob, Cache, Caps
from chunkd.sources.cache import ServedCache

log = logging.getLogger(__name__)

PLACES_AT_ONCE = 1000
BLOBS_AT_ONCE = 1000


def adopt_rules(index: Index, rules: records.Rules) -> None:
    """Take over other caps and decoders: what failed by the old ones is tried again, what breaks the new ones is taken
    out of the index, so that the scan finds and judges it anew. By which rule chunks are recompressed stays as it was
    while there are any: what is asked for is noted beside it.
    """
    old = index.rules
    if old.measure != rules.measure:
        with index.snapshot() as txn:
            if index.store.head(txn).totals.unique_chunks:
                rules = dataclasses.replace(rules, measure=old.measure, asked=rules.measure)
    if rules.unlike:
        log.warning("%s", rules.unlike)
    if old == rules:
        return
    log.info("the rules changed: %s, before %s", rules, old)
    lowered = rules.caps.zstd_window_bytes < old.caps.zstd_window_bytes
    judged_anew = (old.caps, old.decoder) != (rules.caps, rules.decoder)

    def judge(change: Change, blob: Blob) -> None:
        if not blob.counted:
            change.fail(dataclasses.replace(blob, retry_at=1))
        elif _breaks(blob, rules.caps) or (lowered and blob.codec == "zstd"):
            for place, _ in list(change.holders(blob.digest)):
                change.release(place, blob.digest)
            change.remove(blob.digest)

    if judged_anew:
        for database in ("failed", "blobs"):
            _for_each_blob(index, database, judge)
    # Last, so that a start after a crash begins again: to judge a blob twice changes nothing.
    with index.transaction() as change:
        change.set_rules(rules)


def _for_each_blob(index: Index, database: str, do: Callable[[Change, Blob], None]) -> None:
    """Do something with every blob of a database, a thousand in a transaction."""
    after = b""
    while True:
        with index.transaction() as change:
            some = list(itertools.islice(change.store.blobs(change.txn, database, after), BLOBS_AT_ONCE))
            for blob in some:
                do(change, blob)
        if not some:
            return
        after = records.digest_key(some[-1].digest)


def _breaks(blob: Blob, caps: Caps) -> bool:
    size = blob.uncompressed_bytes
    return size > caps.uncompressed_bytes or (size > caps.RATIO_FROM_BYTES and size > caps.ratio * blob.stored_bytes)


def serve_exactly(index: Index, paths: tuple[str, ...]) -> dict[int, ServedCache]:
    """The caches at these paths by number, new ones with a new number; every other one is subtracted from the index."""
    with index.snapshot() as txn:
        known = index.store.caches(txn)
    numbers = {cache.path: number for number, cache in known.items()}
    served: dict[int, ServedCache] = {}
    following = max(known, default=0) + 1
    for path in paths:
        if path not in numbers:
            numbers[path], following = following, following + 1
        number = numbers[path]
        cache = known.get(number, Cache(path))
        served[number] = ServedCache(
            number, path, cache.device, cache.inode, set(cache.layouts), layerless=cache.layerless,
            mounts=dict(cache.mounts),
        )  # fmt: skip
    recorded = {number: cache.record() for number, cache in served.items()}
    if recorded == known:  # nothing to be written, and so no need of a disk with room
        return served
    # The new ones are recorded first: a blob that they hold too is handed over to them only once they are listed.
    with index.transaction() as change:
        change.set_caches(known | recorded)
    every = {number: ServedCache(number, cache.path) for number, cache in known.items()} | served
    for number in known:
        if number not in served:
            _drop(index, number, every)
    with index.transaction() as change:
        change.set_caches(recorded)
    return served


def _drop(index: Index, number: int, caches: dict[int, ServedCache]) -> None:
    while True:
        with index.transaction() as change:
            store, txn = change.store, change.txn
            places = list(itertools.islice(store.under(txn, "places", number, ""), PLACES_AT_ONCE))
            # What must follow (another place to be hashed) is noted, and taken up when the writer starts.
            holdings = PlaceChanges(change, caches, AfterCommit(), time.time())
            for place in places:
                held = change.held(place)
                if held is not None:
                    holdings.forget(place, held, "its cache is no longer served")
            ignored = list(store.under(txn, "ignored", number, ""))
            for place in ignored:
                change.unignore(place)
        if not places:
            return
