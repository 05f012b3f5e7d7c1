"""Buffers from one thread to another, in order: a layer is inflated on one core while a second cuts and hashes it.

That takes no second process, as decoder, chunker and hashes run their C code without Python's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

# As measured: a lone layer takes 0.6 of the time, and where every core is busy anyway it takes no more of it.
RELAY_BUFFER_BYTES = 512 << 10
RELAY_BUFFERS = 3


class Relay:
    """Calls `feed` with what `hand` is given, in order, from a thread of its own. For use as a context manager.

    `take` gives a buffer to fill, waiting until `feed` is done with one: as many are held as were made, and no more.
    Leaving the context waits for `feed` to have taken all; what it raised is raised from `hand` or there, and nothing
    is fed after it.
    """

    def __init__(self, feed: Callable[[memoryview], object]) -> None:
        self._feed = feed
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._filled: SimpleQueue[tuple[bytearray, int] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._taken = bytearray()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Relay:
        for _ in range(RELAY_BUFFERS):
            self._free.put(bytearray(RELAY_BUFFER_BYTES))
        self._thread.start()
        return self

    def take(self) -> bytearray:
        """A buffer to fill."""
        self._taken = self._free.get()
        return self._taken

    def hand(self, data: memoryview) -> None:
        """Pass on what was filled of the buffer taken last. Raises what `feed` has raised meanwhile."""
        if self._failure is not None:
            raise self._failure
        self._filled.put((self._taken, len(data)))

    def _run(self) -> None:
        while (filled := self._filled.get()) is not None:
            buffer, count = filled
            if self._failure is None:
                try:
                    with memoryview(buffer) as view:
                        self._feed(view[:count])
                except BaseException as error:  # raised again where the other thread hands over or ends
                    self._failure = error
            self._free.put(buffer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._filled.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
