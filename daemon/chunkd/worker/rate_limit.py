"""A worker's share of `read_bytes_per_s`: what has been read is waited for before more is."""

from __future__ import annotations

import time
from collections.abc import Callable

# What was not read may be made up for so long afterwards: a sleep that ends late costs no rate.
BURST_S = 0.1
# Nobody waits longer than this without a word: silence is taken for a worker that hangs.
WORD_S = 0.5


class Pace:
    """Reading that stays below a rate, over all jobs of a worker. A rate of 0 is no limit.

    In any T seconds at most `bytes_per_s * (T + BURST_S)` bytes are read, and what a single read takes: a read can
    only be paid for once it is known what it gave.
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
        """`report` for one job, which is called with the bytes that the job has read so far, made to wait.

        It is called at once, and while that waits again every `WORD_S`; what it raises ends the wait.
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
