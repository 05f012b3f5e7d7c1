"""Rounds over many records, slice by slice. Their hints go out as there is room for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from chunkd.index.index import Index
from chunkd.index.records import digest_key, place_from_key
from chunkd.model import Blob, Cause, Hint, Place
from chunkd.sources.activity import WRITER, Activity, Token
from chunkd.sources.cache import ServedCache
from chunkd.urls import OBJECT_STORES

# So many places are compared, then a second goes by.
PLACES_A_SLICE = 200
FAILED_A_SLICE = 500


def room(caches: Mapping[int, ServedCache]) -> bool:
    """Whether every cache has room for a slice of hints. A cache that hangs has none, and is not waited for."""
    return all(cache.hints.room >= FAILED_A_SLICE for cache in caches.values() if not cache.hung_s())


def put(caches: Mapping[int, ServedCache], hint: Hint, inherit: Token | None = None) -> None:
    cache = caches.get(hint.place.cache)
    if cache is not None:
        cache.hints.put(hint, inherit=inherit)


class VerifyRound:
    """The daily round compares the size, inode and ctime of every place once with what was verified.

    The next round begins `interval_s` after the last one began, or when that one has ended if it took longer; `late_s`
    then says how long the one under way has taken. After a restart an interrupted round begins again.
    """

    def __init__(
        self, index: Index, caches: Mapping[int, ServedCache], interval_s: float, clock_s: Callable[[], float]
    ) -> None:
        self._index, self._caches, self.interval_s, self._clock_s = index, caches, interval_s, clock_s
        with index.snapshot() as txn:
            last_s = index.store.verified_s(txn)
        self._begins_s = (clock_s() if last_s is None else last_s) + interval_s
        self._begun_s = 0.0
        # The key of the last place that was given, None between two rounds.
        self._given: bytes | None = None

    @property
    def late_s(self) -> float:
        """For how long the round under way has taken, when that is longer than the interval; else 0."""
        took_s = 0.0 if self._given is None else self._clock_s() - self._begun_s
        return took_s if took_s > self.interval_s else 0.0

    def turn(self) -> None:
        """Do the next slice, if a round is under way or due. Raises IndexUnwritable and BadIndex."""
        now_s = self._clock_s()
        # When the clock was set back, it would be too far away.
        if self._given is None and not 0 < self._begins_s - now_s <= self.interval_s:
            self._begun_s, self._begins_s, self._given = now_s, now_s + self.interval_s, b""
        if self._given is None or not room(self._caches):
            return
        with self._index.snapshot() as txn:
            keys = self._index.store.walk(txn, "places", self._given)
            slice_ = [key for key, _ in itertools.islice(keys, PLACES_A_SLICE)]
        for place in map(place_from_key, slice_):
            # The listing of a bucket has all metadata, and each scan compares them.
            if place.cache in self._caches and not self._caches[place.cache].path.startswith(OBJECT_STORES):
                put(self._caches, Hint(place, Cause.VERIFY))
        self._given = slice_[-1] if slice_ else None
        if not slice_:
            with self._index.transaction() as change:
                change.verified(self._clock_s())


class FailedRound:
    """A round over the failed blobs: all of them, those that are due, or those whose file may have changed."""

    def __init__(self, index: Index, caches: Mapping[int, ServedCache], activity: Activity) -> None:
        self._index, self._caches, self._activity = index, caches, activity
        self._after = b""
        self._token: Token | None = None
        self._wanted: list[tuple[Callable[[Blob], bool], Callable[[Place], Hint]]] = []

    def begin(self, due: Callable[[Blob], bool], *, force: bool) -> None:
        """Give a hint for each place of the blobs that are `due`; with `force` they are read again in any case."""

        def hint(place: Place) -> Hint:
            return Hint(place, Cause.RETRY if force else Cause.CHANGED_SINCE_FAILED, force=force)

        if self._token is None:
            self._token = self._activity.take(WRITER)
        self._after = b""
        self._wanted.append((due, hint))

    @property
    def under_way(self) -> bool:
        return bool(self._wanted)

    def turn(self) -> bool:
        """Do the next slice if there is one. Returns whether there is another. Raises BadIndex."""
        if not self._wanted or not room(self._caches):
            return False
        with self._index.snapshot() as txn:
            store = self._index.store
            blobs = list(itertools.islice(store.blobs(txn, "failed", self._after), FAILED_A_SLICE))
            for blob in blobs:
                made = [hint for due, hint in self._wanted if due(blob)]
                for place in itertools.islice(store.holders(txn, blob.digest), FAILED_A_SLICE) if made else ():
                    for hint in made:
                        put(self._caches, hint(place))
        if len(blobs) == FAILED_A_SLICE:
            self._after = digest_key(blobs[-1].digest)
            return True
        self._wanted.clear()
        if self._token is not None:
            self._activity.give_back(self._token)
            self._token = None
        return False
