"""The daily round: every place's size, inode and ctime are compared once with what was verified, a slice at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from chunkd.index.index import Index
from chunkd.index.records import place_from_key
from chunkd.model import Hint
from chunkd.sources.hints import HintQueue

# So many places are compared, then a second goes by.
PLACES_A_SLICE = 200


class VerifyRound:
    """Gives a hint for each place, once in `interval_s`; of a round that a restart cut off, all once more."""

    def __init__(self, index: Index, hint_queue: HintQueue, interval_s: float, clock_s: Callable[[], float]) -> None:
        self._index, self._backlog, self._interval_s, self._clock_s = index, hint_queue, interval_s, clock_s
        with index.snapshot() as txn:
            last_s = index.store.verified_s(txn)
        self._begins_s = (clock_s() if last_s is None else last_s) + interval_s
        # The key of the last place that was given, None between two rounds.
        self._given: bytes | None = None

    def turn(self) -> None:
        """Do the next slice, if a round is under way or due. Raises IndexUnwritable and BadIndex."""
        now_s = self._clock_s()
        # When the clock was set back, it would be too far away.
        if not 0 < self._begins_s - now_s <= self._interval_s:
            self._begins_s, self._given = now_s + self._interval_s, b""
        if self._given is None:
            return
        with self._index.snapshot() as txn:
            keys = self._index.store.walk(txn, "places", self._given)
            slice_ = [key for key, _ in itertools.islice(keys, PLACES_A_SLICE)]
        for key in slice_:
            self._backlog.put(Hint(place_from_key(key), "verify"))
        self._given = slice_[-1] if slice_ else None
        if not slice_:
            with self._index.transaction() as change:
                change.verified(self._clock_s())
