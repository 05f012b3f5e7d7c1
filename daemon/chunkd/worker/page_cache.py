"""Reads a file once without pushing other files out of the page cache.

What was in the page cache before stays, because the registry may need it. What our reading brought in is dropped behind
us, a stretch at a time. On macOS the file is read with F_NOCACHE, which asks the kernel for the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from io import FileIO

STRETCH_BYTES = 8 << 20
# A file above 2 GiB has longer stretches, so that no file has more than this many.
MOST_STRETCHES = 256


class CacheNeutralFile(FileIO):
    """A file of this size, to be read from its beginning to its end by `readinto`, and by nothing else.

    It closes the descriptor that it is given. A file that is not in the page cache, such as a pipe, is only read.

    A stretch counts as having been in the page cache if the byte in its middle was there before the first read. If the
    system can't tell (by RWF_NOWAIT of preadv(2): Linux 4.14, and not every file system), nothing is dropped. The
    question makes the kernel begin to read: on a device that answers at once, a stretch seems to have been in the cache
    and stays there.
    """

    def __init__(self, descriptor: int, stored_bytes: int) -> None:
        super().__init__(descriptor, "rb")
        self._stored_bytes = stored_bytes
        self._at = self._given_back = 0
        self._stretch_bytes = STRETCH_BYTES
        self._cold: list[bool] | None = None
        if sys.platform == "darwin":
            with contextlib.suppress(OSError):  # raised for a pipe
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
            """For each stretch, whether it is missing from the page cache."""
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
                return False  # reading will report what is wrong with the file
            return False

        def _give_back(self, end: int) -> None:
            for stretch in range(self._given_back // self._stretch_bytes, -(-end // self._stretch_bytes)):
                if self._cold and stretch < len(self._cold) and self._cold[stretch]:
                    begin = stretch * self._stretch_bytes
                    os.posix_fadvise(self.fileno(), begin, self._stretch_bytes, os.POSIX_FADV_DONTNEED)
            self._given_back = end
