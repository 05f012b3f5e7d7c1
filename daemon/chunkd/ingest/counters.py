"""The writer's counters of failures and delays, for the metrics; and its log lines, which it sums up in a burst."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# Why a blob is failed: its bytes are not those of its name, it is not a whole stream or breaks a cap, it is unreadable,
# or its worker sent what no chunker makes.
MISMATCHED, UNDECODABLE, UNREADABLE, IMPOSSIBLE = "mismatched", "undecodable", "unreadable", "impossible"
# No failure: it lies in an archive.
ARCHIVED = "archived"
FAILURES = (MISMATCHED, UNDECODABLE, UNREADABLE, IMPOSSIBLE)
# Upper bounds, of which a delay is counted under the first that it does not exceed; there is one more for all else.
DELAYS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
# So many lines of one kind in one minute are logged at their own level.
LINES_A_MINUTE = 100
MINUTE_S = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """Written by one thread. `delays` are seconds from a blob's landing (its file's last change) to its commit, for
    blobs that landed since the start. Older blobs would say nothing about the daemon.
    """

    since_ns: int = field(default_factory=time.time_ns)
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    delays: list[int] = field(default_factory=lambda: [0] * (len(DELAYS_S) + 1))
    delays_s: float = 0.0

    def take(self, failures: Iterable[str], landings: Iterable[int], now_s: float) -> None:
        """Count failures by their kind, and the delays of blobs that landed at these times and are in the figures."""
        for kind in failures:
            self.failures[kind] += 1
        for landed_ns in landings:
            self.landed(landed_ns, now_s)

    def landed(self, landed_ns: int, now_s: float) -> None:
        """A blob that landed then is now in the figures."""
        if landed_ns < self.since_ns:
            return
        delay_s = max(now_s - landed_ns / 1e9, 0.0)  # another machine's clock may be ahead
        self.delays[bisect_left(DELAYS_S, delay_s)] += 1
        self.delays_s += delay_s


class LogLines:
    """The log of what happened to each blob. A line's kind is its level and first word ("indexed", "subtracted"). After
    100 lines of a kind within a minute, further lines are logged at level debug and counted in one line when the minute
    ends.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._began_s = 0.0
        self._lines: Counter[tuple[int, str]] = Counter()

    def add(self, lines: Iterable[tuple[int, str]]) -> None:
        for level, text in lines:
            if not self._lines:
                self._began_s = self._clock_s()
            kind = (level, text.partition(" ")[0])
            self._lines[kind] += 1
            log.log(level if self._lines[kind] <= LINES_A_MINUTE else logging.DEBUG, "%s", text)

    def sum_up(self, *, now: bool = False) -> None:
        """Log how many lines were held back, if the minute is over or with `now`."""
        if not now and self._clock_s() < self._began_s + MINUTE_S:
            return
        for (level, word), count in self._lines.items():
            if count > LINES_A_MINUTE:
                log.log(level, "%s ..: %d more lines, logged at level debug", word, count - LINES_A_MINUTE)
        self._lines.clear()
