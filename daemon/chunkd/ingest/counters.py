"""What the daemon has done since it started, counted by the writer for the metrics: failures and delays."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

# Why a blob is failed: its bytes are not those of its name, it is no whole stream or breaks a cap, it can't be read, or
# its worker said what no chunker makes.
MISMATCHED, UNDECODABLE, UNREADABLE, IMPOSSIBLE = "mismatched", "undecodable", "unreadable", "impossible"
FAILURES = (MISMATCHED, UNDECODABLE, UNREADABLE, IMPOSSIBLE)
# Upper bounds, of which a delay is counted under the first that it does not exceed; there is one more for all else.
DELAYS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)


@dataclass(slots=True)
class Counters:
    """Written by one thread. `delays` are seconds from a blob's landing (its file's last change) to its commit, of the
    blobs that landed since the start: how long the others have lain there says nothing of the daemon.
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
        """A blob that landed then is in the figures now."""
        if landed_ns < self.since_ns:
            return
        delay_s = max(now_s - landed_ns / 1e9, 0.0)  # another machine's clock may be ahead
        self.delays[bisect_left(DELAYS_S, delay_s)] += 1
        self.delays_s += delay_s
