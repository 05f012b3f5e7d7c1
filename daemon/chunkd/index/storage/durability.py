"""Durability that LMDB does not provide by itself: on a full disk, after a failed sync, after a power cut."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

# Errors of a disk that can't be written now and may be later. EROFS: a file system that has met an error goes on
# read-only; EFBIG: the limit on a file's size (`ulimit -f`).
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
# The size of LMDB's lock file with 126 readers, from mdb.c: 3 cache lines for all, 1 for each further reader.
LOCK_BYTES = 8192
# A disk with less free space counts as full: a commit of the index writes more.
FULL_BYTES = 1 << 18


def write_out_lock(folder: str) -> None:
    """Allocate the blocks of LMDB's lock file. LMDB leaves the file with a hole and writes it through a map. Filling a
    hole on a full disk is not an error but ends the process (SIGBUS). Raises OSError.
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


def sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def give_away(paths: Iterable[Path], to: os.stat_result) -> None:
    """Give the files and folders among these that root has made to an owner who is not root. The daemon could not write
    them otherwise. Raises OSError.

    Links are not followed, and files with several names are skipped: the folder's owner could have put them there.
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
    """The disk's error, with a note if the disk is full: LMDB reports a write that was cut short as an I/O error."""
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
