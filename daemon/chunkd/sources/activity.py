"""The work that is left, counted in one place under one lock. Any thread may ask."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

# The writer's own work, which belongs to no cache.
WRITER = 0


class Token(NamedTuple):
    """One thing that is left to be done for a cache. Its generation says since when."""

    cache: int
    generation: int


class Activity:
    """Each hint, folder, listing, observation, task and scan holds a token. Code that turns one thing into another
    takes the new token before it gives the old one back. So work is counted at every moment, also while it is in no
    queue.

    A thing inherits the generation of the token it follows from. All that was known at a moment is done when no token
    of that generation or an earlier one is left. A file that will be looked at again later is counted apart, as
    waiting: nothing can be done for it now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 1
        self._working: Counter[Token] = Counter()
        self._waiting: Counter[int] = Counter()

    def take(self, cache: int, inherit: Token | None = None) -> Token:
        with self._lock:
            token = Token(cache, self._generation if inherit is None else inherit.generation)
            self._working[token] += 1
            return token

    def give_back(self, token: Token) -> None:
        with self._lock:
            assert self._working[token] > 0, f"{token} is given back twice"
            self._working[token] -= 1
            if not self._working[token]:
                del self._working[token]

    def wait(self, cache: int, count: int) -> None:
        """Count this many more places as waited for, or fewer if `count` is negative."""
        with self._lock:
            self._waiting[cache] += count
            assert self._waiting[cache] >= 0

    def end_generation(self) -> int:
        """Everything that was known until now has this generation or an earlier one."""
        with self._lock:
            self._generation += 1
            return self._generation - 1

    def done(self, generation: int, but: Collection[int] = ()) -> bool:
        """Whether all that was known in this generation is done, for other caches than these."""
        with self._lock:
            return not any(token.generation <= generation and token.cache not in but for token in self._working)

    def working(self, but: Collection[int] = ()) -> bool:
        """Whether anything can be done now, for other caches than these."""
        with self._lock:
            return any(token.cache not in but for token in self._working)

    def idle(self, but: Collection[int] = ()) -> bool:
        """Whether nothing is left to be done or waited for, at one moment, for other caches than these."""
        with self._lock:
            working = any(token.cache not in but for token in self._working)
            return not working and not any(count for cache, count in self._waiting.items() if cache not in but)

    def __repr__(self) -> str:
        with self._lock:
            return f"Activity(working {dict(self._working)}, waiting {dict(+self._waiting)})"
