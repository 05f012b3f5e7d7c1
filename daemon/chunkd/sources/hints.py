"""The places of one cache that must be observed. Bounded, with one entry a place. Any thread adds, the cache's own
takes.

A full queue drops hints and asks for a scan instead. Nothing is lost by that: a scan sees what is on disk.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from chunkd.model import Hint, Place
from chunkd.sources.activity import Activity, Token

MAX_HINTS = 65536


class HintQueue:
    """`news` is set whenever there is something new for the thread that takes."""

    def __init__(
        self,
        cache: int,
        activity: Activity,
        max_hints: int = MAX_HINTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache, self._activity = cache, activity
        self._max_hints, self._clock = max_hints, clock
        self.news = threading.Event()
        self._lock = threading.Lock()
        self._hints: OrderedDict[Place, tuple[Hint, Token]] = OrderedDict()
        # Hints for later: when, the hint, and whether the place is waited for. The heap finds the next one; an entry
        # that is no longer in `_later` is skipped.
        self._later: dict[Place, tuple[float, Hint, bool]] = {}
        self._heap: list[tuple[float, Place]] = []
        self._folders: dict[str, Token] = {}
        self._doubt = ""
        self._names_changed = False

    def put(self, hint: Hint, *, first: bool = False, inherit: Token | None = None) -> bool:
        """Observe this place soon; with `first` before all others. Returns whether there was room. Never waits and
        never raises, because watchers call it. `inherit` is the token of the thing that the hint follows from.
        """
        with self._lock:
            self._put(hint, inherit)
            there = hint.place in self._hints
            if first and there:
                self._hints.move_to_end(hint.place, last=False)
        self.wake()
        return there

    def wake(self) -> None:
        """Have the cache's thread look for news. It clears `news` before it looks, so one that is set will do."""
        if not self.news.is_set():
            self.news.set()

    def _put(self, hint: Hint, inherit: Token | None = None) -> None:
        waiting = self._hints.get(hint.place)
        if waiting is None and len(self._hints) >= self._max_hints:
            self._note_doubt("the queue of hints was full")
            return
        if waiting is None:
            token = self._activity.take(self.cache, inherit)
        else:
            hint, token = waiting[0].merged(hint), waiting[1]
        if (later := self._later.pop(hint.place, None)) is not None:
            hint = hint.merged(later[1])
            self._activity.wait(self.cache, -int(later[2]))
        self._hints[hint.place] = hint, token

    def put_later(self, hint: Hint, delay_s: float, *, waited_for: bool) -> None:
        """Observe this place after a while, unless another hint comes before. Without room it is left to the next scan.
        With `waited_for` nothing is settled until then.
        """
        with self._lock:
            if hint.place in self._hints:
                self._put(hint)
                return
            due_s = self._clock() + delay_s
            if (known := self._later.get(hint.place)) is not None:
                hint, due_s = known[1].merged(hint), min(known[0], due_s)
                self._activity.wait(self.cache, -int(known[2]))
                waited_for |= known[2]
            elif len(self._later) >= self._max_hints:
                return
            self._activity.wait(self.cache, int(waited_for))
            self._later[hint.place] = due_s, hint, waited_for
            heapq.heappush(self._heap, (due_s, hint.place))
            if len(self._heap) > 2 * len(self._later) + 1000:
                self._heap = sorted((due, place) for place, (due, _, _) in self._later.items())
        self.wake()

    def put_folder(self, folder: str) -> None:
        """List this folder and what is below it soon: it appeared or was renamed."""
        with self._lock:
            if folder not in self._folders and len(self._folders) >= self._max_hints:
                self._note_doubt("the queue of folders was full")
            elif folder not in self._folders:
                self._folders[folder] = self._activity.take(self.cache)
        self.wake()

    def note_names(self) -> None:
        """The names that lie beside blobs have changed."""
        with self._lock:
            self._names_changed = True

    def take_names_changed(self) -> bool:
        """Whether names have changed since the last call."""
        with self._lock:
            changed, self._names_changed = self._names_changed, False
        return changed

    def doubt(self, why: str) -> None:
        """Events may have been lost: the whole cache must be listed, and every place compared."""
        with self._lock:
            self._note_doubt(why)
        self.wake()

    def _note_doubt(self, why: str) -> None:
        self._activity.wait(self.cache, int(not self._doubt))
        self._doubt = why

    # --- the cache's thread ---------------------------------------------------------------------------------------

    def take(self, most: int) -> list[tuple[Hint, Token]]:
        """The hints that are due, in order, with their tokens."""
        with self._lock:
            now_s = self._clock()
            while self._heap and self._heap[0][0] <= now_s and len(self._hints) < self._max_hints:
                due_s, place = heapq.heappop(self._heap)
                later = self._later.get(place)
                if later is not None and later[0] == due_s:
                    self._put(later[1])
            count = min(most, len(self._hints))
            return [self._hints.popitem(last=False)[1] for _ in range(count)]

    def take_folder(self) -> tuple[str, Token] | None:
        """The next folder that must be listed, if there is one."""
        with self._lock:
            folder = next(iter(self._folders), None)
            return None if folder is None else (folder, self._folders.pop(folder))

    def take_doubt(self, resolve: Callable[[str], None]) -> None:
        """If the cache is in doubt, call `resolve` with the reason: it takes a token for the scan that follows."""
        with self._lock:
            doubt, self._doubt = self._doubt, ""
        if doubt:
            resolve(doubt)
            self._activity.wait(self.cache, -1)

    def wait_s(self) -> float:
        """Seconds until the next hint is due, at most a minute; 0 if one is due now."""
        with self._lock:
            if self._hints or self._folders:
                return 0.0
            while self._heap and self._heap[0][1] not in self._later:
                heapq.heappop(self._heap)
            return min(60.0, max(0.0, self._heap[0][0] - self._clock())) if self._heap else 60.0

    def __len__(self) -> int:
        with self._lock:
            return len(self._hints) + len(self._folders)

    @property
    def room(self) -> int:
        """How many more hints there is room for, with half of it kept for events."""
        return max(0, self._max_hints // 2 - len(self._hints))
