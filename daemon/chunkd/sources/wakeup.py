"""Ends another thread's wait for descriptors."""

from __future__ import annotations

import contextlib
import os


class Wakeup:
    """A pipe whose reading end is ready once `wake` was called, until `drain`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        """Never waits; may be called from any thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._write, b"!")

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
