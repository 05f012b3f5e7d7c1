"""A worker's share of `read_bytes_per_s`: after each read it waits until the rate allows more."""

from __future__ import annotations

import time
from collections.abc import Callable

# A late read may be made up for within this time, so that a sleep that ends late costs no rate.
BURST_S = 0.1
# A wait reports at least this often, because a silent worker is taken for hung.
WORD_S = 0.5


class Pace:
    """Keeps reading below a rate, over all jobs of a worker. A rate of 0 means no limit.

    In any T seconds at most `bytes_per_s * (T + BURST_S)` bytes are read, plus a single read, whose size is known only
    afterwards.
    """

    def __init__(
        self,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bytes_per_s, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._paid_at_s = clock()

    def paced(self, report: Callable[[int], None]) -> Callable[[int], None]:
        """A `report` for one job that waits. It is called with the bytes that the job has read so far.

        It calls the given `report` at once, and again every `WORD_S` while it waits; an exception from it ends the
        wait.
        """
        if not self._bytes_per_s:
            return report
        known_bytes = 0

        def wait(read_bytes: int) -> None:
            nonlocal known_bytes
            report(read_bytes)
            earliest_s = max(self._paid_at_s, self._clock() - BURST_S)
            self._paid_at_s = earliest_s + (read_bytes - known_bytes) / self._bytes_per_s
            known_bytes = read_bytes
            while (left_s := self._paid_at_s - self._clock()) > 0:
                self._sleep(min(left_s, WORD_S))
                report(read_bytes)

        return wait
