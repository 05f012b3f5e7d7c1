"""Places to look at: bounded, one entry a place, fed by any thread and emptied by one.

When it is full it forgets hints and asks for a scan instead: nothing that the disk still shows can be lost.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
import time
from collections.abc import Callable

from chunkd.model import Hint, Place

MAX_HINTS = 65536


class HintQueue:
    def __init__(self, max_hints: int = MAX_HINTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_hints, self._clock = max_hints, clock
        self._lock = threading.Lock()
        self._hints: dict[Place, str] = {}
        self._later: list[tuple[float, Place, str]] = []
        self._folders: dict[Place, str] = {}
        self._overflowed = ""
        # Set when a folder waits to be listed, or everything does: the scanner waits for it.
        self.wake_scanner = threading.Event()
        self._wake_read_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_read_fd, False)
        os.set_blocking(self._wake_write_fd, False)

    def put(self, hint: Hint) -> None:
        """Look at this place soon. Never waits and never raises: watchers' threads call it."""
        with self._lock:
            if hint.place in self._hints or len(self._hints) < self._max_hints:
                self._hint(hint)
            else:
                self._overflow()
        self.wake_writer()

    def _hint(self, hint: Hint) -> None:
        """Of two reasons for a place that stays which tells more: an event more than a doubt, a retry more than it."""
        waiting = Hint(hint.place, self._hints.setdefault(hint.place, hint.why))
        if waiting.retry or hint.retry:
            self._hints[hint.place] = "retry (event)" if waiting.by_event or hint.by_event else "retry"
        elif hint.by_event and not waiting.by_event:
            self._hints[hint.place] = hint.why

    def put_later(self, hint: Hint, delay_s: float) -> None:
        """Look at this place after a while."""
        with self._lock:
            if len(self._later) < self._max_hints:
                heapq.heappush(self._later, (self._clock() + delay_s, hint.place, hint.why))
            else:
                self._overflow()

    def put_folder(self, hint: Hint) -> None:
        """List this folder and what is below it soon: it appeared, or was renamed."""
        with self._lock:
            if hint.place in self._folders or len(self._folders) < self._max_hints:
                self._folders.setdefault(hint.place, hint.why)
            else:
                self._overflow()
            self.wake_scanner.set()

    def doubt(self, why: str) -> None:
        """Events may have been lost: everything must be listed again."""
        with self._lock:
            self._overflowed = why
            self.wake_scanner.set()

    def _overflow(self) -> None:
        self._overflowed = "the hint_queue was full"
        self.wake_scanner.set()

    def take(self, most: int) -> list[Hint]:
        """The oldest hints whose time has come, removed from the hint_queue."""
        with self._lock:
            now = self._clock()
            while self._later and self._later[0][0] <= now and len(self._hints) < self._max_hints:
                _, place, why = heapq.heappop(self._later)
                self._hint(Hint(place, why))
            places = [place for place, _ in zip(self._hints, range(most), strict=False)]
            return [Hint(place, self._hints.pop(place)) for place in places]

    def take_folders(self) -> list[Hint]:
        with self._lock:
            hints = [Hint(place, why) for place, why in self._folders.items()]
            self._folders.clear()
        return hints

    def take_doubt(self) -> str:
        """Why a scan of everything is asked for, if it is, since the last call."""
        with self._lock:
            why, self._overflowed = self._overflowed, ""
        return why

    def wait_s(self) -> float:
        """Seconds until the next hint's time comes, at most a minute; 0 when one waits now."""
        with self._lock:
            if self._hints:
                return 0.0
            return min(60.0, max(0.0, self._later[0][0] - self._clock())) if self._later else 60.0

    def __len__(self) -> int:
        with self._lock:
            return len(self._hints) + len(self._folders)

    # --- the bell: whoever waits for workers as well waits for this descriptor ---------------------------------------

    def fileno(self) -> int:
        return self._wake_read_fd

    def wake_writer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write_fd, b"!")

    def drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read_fd, 4096):
                pass

    def close(self) -> None:
        os.close(self._wake_read_fd)
        os.close(self._wake_write_fd)
