"""The index's files, where LMDB leaves something to be done: a full disk, a failed sync, a power cut."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

# What a disk says that can't be written now and may be later. EROFS: a file system that has met an error goes on
# read-only; EFBIG: the limit on a file's size (`ulimit -f`).
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
# Of LMDB's lock file with 126 readers, in mdb.c: 3 cache lines for all, 1 for each further reader.
LOCK_BYTES = 8192
# A disk with less is full: a commit of the index writes more.
FULL_BYTES = 1 << 18


def write_out_lock(folder: str) -> None:
    """Give LMDB's lock file its blocks. LMDB leaves it a hole and writes it through a map: to fill a hole when the disk
    is full is no error but the end of the process (SIGBUS). Raises OSError.
    """
    lock_fd = os.open(Path(folder, "lock.mdb"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        there = os.fstat(lock_fd).st_size
        if there < LOCK_BYTES:
            _write(lock_fd, bytes(LOCK_BYTES - there), there)
    finally:
        os.close(lock_fd)


def rewrite(path: str, size: int) -> None:
    """Write the first `size` bytes of a file over themselves, and wait until they are on disk. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _write(fd, os.pread(fd, size, 0), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Wait until the names in a folder are on disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give_away(paths: Iterable[Path], to: os.stat_result) -> None:
    """Let an owner who is not root own what root has made among these files and folders, as else the daemon could not
    write it. Raises OSError.

    What a link leads to and what has another name is not given: who owns the folder could have put it there.
    """
    if os.geteuid() != 0 or to.st_uid == 0:
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            own = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
            if own and status.st_uid == 0:
                os.fchown(fd, to.st_uid, to.st_gid)
        finally:
            os.close(fd)


def said(path: str, number: int | None, text: str) -> str:
    """What a disk said, and that it is full where it is: LMDB calls a write that was cut short an I/O error."""
    if number not in (errno.EIO, errno.ENOSPC):
        return text
    try:
        status = os.statvfs(path)
    except OSError:
        return text
    free_bytes = status.f_bavail * status.f_frsize
    if number == errno.ENOSPC:
        return f"{text}: {free_bytes:,} bytes are free on its disk"
    return text if free_bytes >= FULL_BYTES else f"{text}: its disk is full, {free_bytes:,} bytes are free"


def _write(fd: int, data: bytes, offset: int) -> None:
    if os.pwrite(fd, data, offset) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
