"""Compares listings with the index, slice by slice, as there is room for the resulting hints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from chunkd.index.index import Index
from chunkd.ingest.diff import gone, news
from chunkd.model import Cause, Place
from chunkd.sources.activity import Activity, Token
from chunkd.sources.cache import ServedCache
from chunkd.sources.listing import SLICE_NAMES, Listed, ScanEnd

MAX_IGNORED = 4 * SLICE_NAMES


@dataclass(slots=True)
class _Rest:
    """A listing whose names have been compared. The search for what is gone goes on from `after`."""

    listed: Listed
    after: bytes = b""


class Listings:
    """`ignored` has places with the reason, which are yet to be committed, and `ignored_tokens` the tokens of their
    listings. `unseen` are places that a listing found and that have not been observed yet.
    """

    def __init__(self, index: Index, caches: Mapping[int, ServedCache], activity: Activity) -> None:
        self._index, self._caches, self._activity = index, caches, activity
        self._rest: dict[int, _Rest] = {}
        self.ignored: list[tuple[Place, str]] = []
        self.ignored_tokens: list[Token] = []
        self.unseen: set[Place] = set()

    def any(self) -> bool:
        """Whether there is something to be compared, and room for what it may give."""
        return any(self._ready(cache) for cache in self._caches.values())

    def _ready(self, cache: ServedCache) -> bool:
        has = bool(cache.listings) or cache.number in self._rest
        return has and cache.hints.room >= SLICE_NAMES and len(self.ignored) < MAX_IGNORED

    def compare(self, may_go_on: Callable[[], bool]) -> Iterator[ScanEnd]:
        """Compare listings while there is room. Yields the ends of scans among them."""
        for cache in self._caches.values():
            while may_go_on() and self._ready(cache):
                if (rest := self._rest.get(cache.number)) is not None:
                    self._compare_rest(cache, rest)
                    continue
                item = cache.listings.popleft()
                cache.hints.news.set()
                if isinstance(item, ScanEnd):
                    yield item
                elif cache.status.stale:
                    self._activity.give_back(item.token)
                else:
                    self._compare(cache, item)

    def _compare(self, cache: ServedCache, listed: Listed) -> None:
        listing = listed.listing
        with self._index.snapshot() as txn:
            hints = list(news(self._index.store, txn, cache.number, listing, verify=listed.verify))
        for hint in hints:
            if cache.hints.put(hint) and hint.cause is Cause.LISTED:
                self.unseen.add(hint.place)
        if listing.ignored:
            self.ignored += [(Place(cache.number, path), reason) for path, reason in listing.ignored]
            self.ignored_tokens.append(self._activity.take(cache.number, listed.token))
        if listing.last and not listing.problem:
            self._rest[cache.number] = _Rest(listed)
        else:
            self._activity.give_back(listed.token)

    def _compare_rest(self, cache: ServedCache, rest: _Rest) -> None:
        listing = rest.listed.listing
        with self._index.snapshot() as txn:
            hints, after = gone(self._index.store, txn, cache.number, listing, rest.after, SLICE_NAMES // 2)
        for hint in hints:
            cache.hints.put(hint)
        if after is None:
            del self._rest[cache.number]
            self._activity.give_back(rest.listed.token)
        else:
            rest.after = after
