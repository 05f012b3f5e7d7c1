"""Reading a file once without pushing other files out of the page cache.

A registry's own blobs are in there for a reason. What was there before is left, what came in by our reading is given
back behind us, a stretch at a time. On macOS the file is read with F_NOCACHE, which asks the kernel for the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from io import FileIO

STRETCH_BYTES = 8 << 20
# Of a file above 2 GiB the stretches are longer, so that no file takes more questions than this.
MOST_STRETCHES = 256


class CacheNeutralFile(FileIO):
    """A file of so many bytes for reading from its begin to its end by `readinto`, and nothing else.

    It closes the descriptor that it is given. Of what has no place in the page cache, as a pipe, nothing is given back.

    A stretch counts as having been in the page cache when the byte in its middle was before the first read. Where that
    can't be told (by RWF_NOWAIT of preadv(2): Linux 4.14, and not every file system) nothing is given back. To ask is
    to have the kernel begin to read: where a device answers at once the stretch seems to have been there, and stays.
    """

    def __init__(self, descriptor: int, stored_bytes: int) -> None:
        super().__init__(descriptor, "rb")
        self._stored_bytes = stored_bytes
        self._at = self._given_back = 0
        self._stretch_bytes = STRETCH_BYTES
        self._cold: list[bool] | None = None
        if sys.platform == "darwin":
            with contextlib.suppress(OSError):  # a pipe's
                fcntl.fcntl(self.fileno(), fcntl.F_NOCACHE, 1)

    if sys.platform == "linux":

        def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # decode has no other buffers
            if self._cold is None:
                self._cold = self._ask()
            got = super().readinto(buffer)
            self._at += got or 0
            if self._at - self._given_back >= self._stretch_bytes:
                self._give_back(self._at - self._at % self._stretch_bytes)
            return got

        def close(self) -> None:
            if not self.closed:
                self._give_back(self._at)
            super().close()

        def _ask(self) -> list[bool]:
            """Of each stretch, whether the page cache does not have it."""
            size = self._stored_bytes
            self._stretch_bytes = max(STRETCH_BYTES, -(-size // MOST_STRETCHES))
            return [self._is_cold(at, size) for at in range(0, size, self._stretch_bytes)]

        def _is_cold(self, begin: int, size: int) -> bool:
            try:
                middle = min(begin + self._stretch_bytes // 2, size - 1)
                os.preadv(self.fileno(), [bytearray(1)], middle, os.RWF_NOWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False  # what is wrong with the file, reading it will say
            return False

        def _give_back(self, end: int) -> None:
            for stretch in range(self._given_back // self._stretch_bytes, -(-end // self._stretch_bytes)):
                if self._cold and stretch < len(self._cold) and self._cold[stretch]:
                    begin = stretch * self._stretch_bytes
                    os.posix_fadvise(self.fileno(), begin, self._stretch_bytes, os.POSIX_FADV_DONTNEED)
            self._given_back = end
