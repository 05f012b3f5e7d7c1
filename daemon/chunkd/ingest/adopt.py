"""Makes the index that of exactly the caches and the rules that the settings name."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable

from chunkd.index import records
from chunkd.index.index import Change, Index
from chunkd.index.storage.page_audit import seek
from chunkd.ingest.places import AfterCommit, PlaceChanges
from chunkd.model import Blob, Cache, FileMark, Place
from chunkd.sources.numbered import Known

log = logging.getLogger(__name__)

PLACES_AT_ONCE = 1000
BLOBS_AT_ONCE = 1000
KNOWN_PLACES = 64
NAME_LETTERS = b"0123456789abcdefghijklmnopqrstuvwxyz"


def adopt_rules(index: Index, rules: records.Rules) -> None:
    """Take over other caps and decoders. Blobs that failed by the old ones are tried again. Blobs that break the new
    ones are taken out of the index, and so are tars and blobs that are not layers if the rule of what a blob is has
    changed: the scan finds and judges them anew. The rule by which chunks are recompressed stays while there are
    chunks, and the one that the settings ask for is noted beside it.
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
    judged_otherwise = {"zstd"} if rules.caps.zstd_window_bytes < old.caps.zstd_window_bytes else set[str]()
    if old.decoder.partition("; ")[2] != rules.decoder.partition("; ")[2]:
        judged_otherwise |= {"tar", ""}
    judged_anew = (old.caps, old.decoder) != (rules.caps, rules.decoder)
    most_bytes = rules.caps.most_uncompressed_bytes

    def judge(change: Change, blob: Blob) -> None:
        if not blob.counted:
            change.fail(dataclasses.replace(blob, retry_at=1))
        elif blob.uncompressed_bytes > most_bytes(blob.stored_bytes) or blob.codec in judged_otherwise:
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


def number_caches(index: Index, paths: tuple[str, ...]) -> tuple[dict[int, Cache], set[int]]:
    """The caches at these paths by number, new ones with a new number, recorded in the index. And the numbers of the
    caches that the index has but that are no longer served.
    """
    with index.snapshot() as txn:
        known = index.store.caches(txn)
    numbers = {cache.path: number for number, cache in known.items()}
    served: dict[int, Cache] = {}
    following = max(known, default=0) + 1
    for path in paths:
        if path not in numbers:
            numbers[path], following = following, following + 1
        served[numbers[path]] = known.get(numbers[path], Cache(path))
    if not served.keys() <= known.keys():  # else nothing is to be written, and so no disk with room is needed
        with index.transaction() as change:
            change.set_caches(known | served)
    return served, set(known) - set(served)


def holds_nothing(index: Index, number: int) -> bool:
    """Whether the index has no place of that cache."""
    with index.snapshot() as txn:
        return next(index.store.under(txn, "places", number, ""), None) is None


def known_places(index: Index, number: int) -> Known:
    """At most KNOWN_PLACES places of that cache, spread over it, whose marks are certain."""
    found: dict[str, FileMark] = {}
    start, end = (records.place_key(Place(cache, "")) for cache in (number, number + 1))
    with index.snapshot() as txn, txn.cursor(db=index.store.databases["places"]) as cursor:
        if not seek(cursor, start) or not (first := bytes(cursor.key())).startswith(start):
            return ()
        cursor.prev() if seek(cursor, end) else cursor.last()
        last = bytes(cursor.key())
        same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
        # Names, which mostly are digests, are spread over what follows of the path that all have.
        low, high = first[same : same + 1], last[same : same + 1]
        following = [letter for letter in NAME_LETTERS if low <= bytes([letter]) <= high]
        starts = [bytes(two) for two in itertools.product(following, NAME_LETTERS[:16])] or [b""]
        for step in range(KNOWN_PLACES):
            seek(cursor, first[:same] + starts[step * len(starts) // KNOWN_PLACES])
            for key, value in itertools.islice(cursor.iternext(), KNOWN_PLACES):
                path, held = records.place_from_key(bytes(key)).path, records.unpack_held(bytes(value))
                if key[:4] == start and held.mark.ctime_ns and path not in found:
                    found[path] = held.mark
                    break
    return tuple(found.items())


class LeftCaches:
    """The caches that are no longer served. They are subtracted once the other caches have been listed, so that a blob
    that also lies in another cache, or has moved there, is only hashed again.
    """

    def __init__(self, index: Index, numbers: set[int]) -> None:
        self._index, self.numbers = index, numbers

    def turn(
        self, places_of: Callable[[Change, AfterCommit], PlaceChanges], follow: Callable[[AfterCommit], None]
    ) -> bool:
        """Subtract the next slice. Returns whether nothing is left of these caches."""
        after = AfterCommit()
        left = False
        with self._index.transaction() as change:
            store, txn = change.store, change.txn
            places = places_of(change, after)
            for number in sorted(self.numbers):
                slice_ = list(itertools.islice(store.under(txn, "places", number, ""), PLACES_AT_ONCE))
                for place in slice_:
                    held = change.held(place)
                    if held is not None:
                        places.forget(place, held, "its cache is no longer served")
                ignored = list(itertools.islice(store.under(txn, "ignored", number, ""), PLACES_AT_ONCE))
                for place in ignored:
                    change.unignore(place)
                for key in (*(key for key, _ in store.names(txn, number)), records.names_key(number, b"")):
                    change.drop_names(key)
                left |= bool(slice_ or ignored)
            if not left:
                recorded = change.caches()
                change.set_caches({number: cache for number, cache in recorded.items() if number not in self.numbers})
        follow(after)
        return not left
