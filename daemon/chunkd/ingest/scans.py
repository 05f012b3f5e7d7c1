"""Which scans have ended: every cache has been listed, and every blob that was found has been read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from chunkd.sources.activity import WRITER, Activity, Token
from chunkd.sources.cache import ServedCache
from chunkd.sources.listing import ScanEnd


class Finished(NamedTuple):
    """A scan whose every blob is in the index, or has failed. `at_ns` is when it was listed, 0 if not completely."""

    number: int
    at_ns: int


class Scans:
    """Each end of a cache's listing holds a token until its scan is finished."""

    def __init__(self, caches: Mapping[int, ServedCache], activity: Activity) -> None:
        self._caches, self._activity = caches, activity
        self._ends: dict[int, ScanEnd] = {}
        self._tokens: list[Token] = []
        self._generation = 0
        self.finished = 0

    def note(self, end: ScanEnd) -> None:
        """A cache has been listed. The hints from its listings have their tokens already."""
        self._ends[end.cache] = end
        self._generation = self._activity.end_generation()
        # The ends themselves are not among what was known until now.
        before, self._tokens = [*self._tokens, end.token], []
        for token in before:
            self._tokens.append(self._activity.take(token.cache))
            self._activity.give_back(token)

    def hung(self) -> set[int]:
        """The numbers of the caches whose file system does not answer."""
        return {number for number, cache in self._caches.items() if cache.hung_s()}

    def listed(self) -> int:
        """The last scan that every cache has been listed for. A cache whose file system hangs is not waited for."""
        answering = set(self._caches) - self.hung()
        ends = [self._ends[number].number if number in self._ends else 0 for number in answering]
        return min(ends, default=max((end.number for end in self._ends.values()), default=0))

    def ended(self) -> Finished | None:
        """The scan that has ended and is not yet `finished`, if there is one."""
        number, hung = self.listed(), self.hung()
        if number <= self.finished or not self._activity.done(self._generation, hung | {WRITER}):
            return None
        ends = [self._ends.get(cache) for cache in self._caches]
        complete = not hung and all(end is not None and end.complete for end in ends)
        return Finished(number, min((end.at_ns for end in ends if end is not None), default=0) if complete else 0)

    def give_back(self) -> None:
        """The end of the scan is committed: give its tokens back."""
        if self._tokens and self.listed() <= self.finished:
            for token in self._tokens:
                self._activity.give_back(token)
            self._tokens = []
