"""Decides when every cache is listed: at start, on request, on a timer. Each cache lists itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from chunkd.sources.cache import Request, ServedCache

log = logging.getLogger(__name__)


class Scanner:
    """Numbers the scans of everything. `scan_s` is the time from the end of one to the start of the timer's next."""

    def __init__(
        self, caches: Mapping[int, ServedCache], scan_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._caches, self.scan_s, self._clock_s = caches, scan_s, clock_s
        self._lock = threading.Lock()
        self._number = 0
        self._ended_s: float | None = None

    def request(self, why: str, *, verify: bool = False, accept: bool = False, retry_failed: bool = False) -> int:
        """Ask for a scan of everything; the number by which its end is known. Safe to call from any thread."""
        with self._lock:
            self._number += 1
            number = self._number
            log.info("scan %d: %s", number, why)
            for cache in self._caches.values():
                cache.request_scan(Request(why, number, verify, accept, retry_failed))
        return number

    @property
    def scanning(self) -> bool:
        return any(cache.scanning for cache in self._caches.values())

    def tick(self, ended: int) -> None:
        """Called each second or so, with the number of the last scan that has ended."""
        now_s = self._clock_s()
        if ended < self._number:
            self._ended_s = None
        elif self._ended_s is None:
            self._ended_s = now_s
        elif now_s >= self._ended_s + self.scan_s:
            self.request("the timer")
