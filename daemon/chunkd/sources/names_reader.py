"""Reads the names that lie beside a cache's blobs, part by part in the cache's own thread, whenever the writer asks.

What a name is, and where names lie, is not known here: a function that is given reads them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# How far the reading may be ahead of the writer; one part more may come.
MOST_WAITING_PARTS = 256
MOST_WAITING_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class NamesRead:
    """What was read at one place, as the index keeps it: `record`, by its `key` among those of the cache.

    Without a record the place could not be read, for the `problem`: what was read before there, and at places below,
    still holds. A place is a `source` and a path `where`, seen from `base`; without a source it is the whole base.
    """

    base: str
    source: str = ""
    where: str = ""
    problem: str = ""
    key: bytes = b""
    record: bytes = b""


@dataclass(frozen=True, slots=True)
class NamesEnd:
    """The end of a reading that was begun at `begun_at_ns` since the epoch. `complete`: each base was in sight."""

    begun_at_ns: int
    complete: bool


# Reads one base. One is made for each reading, so that it can bound all bases together. None is the end of a step in
# the midst of a part. Raises OSError.
ReadBase = Callable[[str], Iterator[NamesRead | None]]


class NamesReader:
    """One cache's reading of names, which goes on while its thread calls `step`. The writer uses `begin`, `waiting` and
    `took`, and sees to it that one reading has ended before the next is begun.

    `make` makes a function that reads one base. `out_of_sight` says why what is absent at a base proves nothing, "" if
    it does. `spent_s` is how long the last reading took, without what other work the thread did meanwhile.
    """

    def __init__(
        self,
        make: Callable[[], ReadBase],
        out_of_sight: Callable[[str], str] = lambda _: "",
        news: threading.Event | None = None,
        wake_writer: Callable[[], None] = lambda: None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._out_of_sight, self._wake_writer = make, out_of_sight, wake_writer
        self.news, self.clock_s = news or threading.Event(), clock_s
        self._asked: tuple[str, ...] | None = None
        self._parts: Iterator[NamesRead | NamesEnd | None] | None = None
        self._mailbox: deque[NamesRead | NamesEnd] = deque()
        self._put_bytes = self._taken_bytes = 0
        self.spent_s = 0.0

    # --- the writer -----------------------------------------------------------------------------------------------

    def begin(self, bases: tuple[str, ...]) -> None:
        """Ask for one reading of these bases. Its last item will be a `NamesEnd`."""
        self._asked = bases
        self.news.set()

    def waiting(self, most: int, most_bytes: int) -> list[NamesRead | NamesEnd]:
        """The first items, at least one if any waits. They wait on, until the writer `took` them."""
        found: list[NamesRead | NamesEnd] = []
        size = 0
        for at in range(min(most, len(self._mailbox))):
            size += _size(self._mailbox[at])
            if found and size > most_bytes:
                break
            found.append(self._mailbox[at])
        return found

    def took(self, count: int) -> None:
        for _ in range(count):
            self._taken_bytes += _size(self._mailbox.popleft())
        self.news.set()

    # --- the cache's thread ---------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read on, one part at most, if the writer has asked for it and has room. Returns whether that was so."""
        ahead_bytes = self._put_bytes - self._taken_bytes
        if len(self._mailbox) >= MOST_WAITING_PARTS or ahead_bytes >= MOST_WAITING_BYTES:
            return False
        if self._parts is None:
            bases, self._asked = self._asked, None
            if bases is None:
                return False
            self.spent_s, self._parts = 0.0, self._read(bases)
        began_s = self.clock_s()
        item = next(self._parts)
        self.spent_s += self.clock_s() - began_s
        if item is not None:
            self._parts = None if isinstance(item, NamesEnd) else self._parts
            self._put_bytes += _size(item)
            self._mailbox.append(item)
            self._wake_writer()
        return True

    def _read(self, bases: tuple[str, ...]) -> Iterator[NamesRead | NamesEnd | None]:
        """As with places, what is absent counts only between two looks that found its file system there."""
        begun_at_ns, complete = time.time_ns(), True
        read = self._make()
        for base in bases:
            problem = self._out_of_sight(base)
            if not problem:
                try:
                    yield from read(base)
                except OSError as error:
                    yield NamesRead(base, problem=str(error.strerror))
                problem = self._out_of_sight(base)
            complete &= not problem
        yield NamesEnd(begun_at_ns, complete)


def _size(item: NamesRead | NamesEnd) -> int:
    return len(item.record) if isinstance(item, NamesRead) else 0
