"""Passes buffers from one thread to another, in order: one core inflates a layer while a second cuts and hashes it.

That needs no second process, because decoder, chunker and hashes run their C code without Python's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

# Measured: a lone layer takes 0.6 of the time, and with all cores busy this size makes it no slower.
RELAY_BUFFER_BYTES = 512 << 10
RELAY_BUFFERS = 3


class Relay:
    """Calls `feed` with each buffer given to `hand`, in order, from a thread of its own. Use it as a context manager.

    `take` returns a buffer to fill. It waits until `feed` is done with one, so the number of buffers never grows.
    Leaving the context waits until `feed` has taken all. An exception of `feed` is raised from `hand` or on leaving,
    and nothing is fed after it.
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
        """Pass on the filled part of the buffer taken last. Raises what `feed` has raised meanwhile."""
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
                except BaseException as error:  # raised again in the other thread, from `hand` or on leaving
                    self._failure = error
            self._free.put(buffer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._filled.put(None)
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
