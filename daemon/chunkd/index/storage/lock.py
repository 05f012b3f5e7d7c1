"""Lets one process at a time write an index. A lock file beside the index says which one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import time
from pathlib import Path

from chunkd.errors import IndexBusy, IndexMissing, IndexUnreachable

LOCK_WAIT_S = 10.0


def as_whom(state_dir: str) -> str:
    """A hint for a user who may not read an index: run the command as its owner."""
    try:
        owner = pwd.getpwuid(os.stat(state_dir).st_uid).pw_name
    except (OSError, KeyError):
        owner = "the daemon's user"
    return "run this as root" if owner == "root" else f"run this as {owner} or root"


class IndexLock:
    """Held while an index is written (`exclusive`), or while it is read and nobody writes it.

    The lock file names its holder. Readers need no right to write anything. `left` is the name of the previous writer
    if it was killed or crashed, else "".
    """

    def __init__(self, state_dir: str, *, exclusive: bool, holder: str = "") -> None:
        """Raises IndexBusy when another process writes it, after waiting 10 s for readers to end."""
        self.path = str(Path(state_dir, "lock"))
        self._exclusive = exclusive
        flags = os.O_RDWR | os.O_CREAT if exclusive else os.O_RDONLY
        try:
            self._fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except FileNotFoundError:
            raise IndexMissing(state_dir) from None
        except PermissionError as error:
            raise IndexUnreachable(state_dir, f"{error.strerror} ({self.path}); {as_whom(state_dir)}") from error
        except OSError as error:
            raise IndexUnreachable(state_dir, f"{error.strerror} ({self.path})") from error
        try:
            self._take(state_dir, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            self.left = os.pread(self._fd, 200, 0).decode(errors="replace")
            if exclusive:
                os.ftruncate(self._fd, 0)
                # The lock is held. On a full disk its file can't name the holder, and the daemon serves all the same.
                with contextlib.suppress(OSError):
                    os.pwrite(self._fd, f"{holder} (pid {os.getpid()})".encode(), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, state_dir: str, kind: int) -> None:
        deadline = time.monotonic() + (LOCK_WAIT_S if kind == fcntl.LOCK_EX else 0)
        while True:
            try:
                fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._written() or kind == fcntl.LOCK_SH:
                    holder = os.pread(self._fd, 200, 0).decode(errors="replace")
                    raise IndexBusy(state_dir, holder or "another process") from None
                if time.monotonic() >= deadline:
                    raise IndexBusy(state_dir, "a reader (`chunkd check`?)") from None
                time.sleep(0.05)
            else:
                return

    def _written(self) -> bool:
        """Whether a writer holds the lock, and not only readers, which are soon done."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Release the lock. Can be called again."""
        if self._fd < 0:
            return
        if self._exclusive:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> IndexLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
