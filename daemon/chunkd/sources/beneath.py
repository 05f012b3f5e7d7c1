"""Looks at and opens what lies below a folder, and never follows a symbolic link.

Other programs write the cache. One of them could put a symbolic link to a file of root's in it, also between a look at
a path and its opening. So the kernel must refuse links while it walks the path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import struct
import sys

# openat2(2), as <linux/openat2.h> has it. The number is the same on every architecture that Python runs on.
OPENAT2 = 437
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 2, 4, 8
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

MAX_PATH_BYTES = 4095  # the kernel's own limit, without the NUL at the end

_PATH_ONLY: int = getattr(os, "O_PATH", os.O_RDONLY)
_NO_ATIME: int = getattr(os, "O_NOATIME", 0)
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
_BLOB = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Beneath:
    """One root folder, which may itself be a symbolic link, held open as a context manager.

    A path below it is names joined by single slashes, at most 4,095 bytes; the empty path is the root. Every method
    raises NotADirectoryError when anything but a folder, such as a symbolic link, stands in the middle of a path, and
    OSError with EINVAL for a path of another form (absolute, with `..`). Raises OSError when the root can't be opened.
    """

    def __init__(self, root: str, below: str = "") -> None:
        """The folder `below` the root, if that is not empty: then no symbolic link on the way to it is followed."""
        self._root = os.open(root, _PATH_ONLY | _FOLDER)
        self._parent = "", -1  # the folder in which the last path ended, if not the root: the next one often does too
        if below:
            above = self._root
            try:
                self._root = self.folder(below)
            finally:
                os.close(above)
                self._leave_parent()  # which is one below the root above

    def __enter__(self) -> Beneath:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)
        self._leave_parent()

    def _leave_parent(self) -> None:
        if self._parent[1] >= 0:
            os.close(self._parent[1])
        self._parent = "", -1

    def status(self, path: str) -> os.stat_result:
        """As lstat: if the path ends in a symbolic link, the status of the link itself."""
        folder, name = self._split(path)
        return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def open(self, path: str, flags: int) -> int:
        """A new descriptor, for reading without waiting and, where the kernel allows that, without a new access time.

        Raises OSError with ELOOP when the path ends in a symbolic link. Opening a device can do something to it: ask
        for the `status` first, and for the descriptor's again.
        """
        try:
            return self._open(path, flags | _BLOB)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.status(path)  # raises NotADirectoryError when the link is in the middle
            raise

    def folder(self, path: str) -> int:
        """A new descriptor of a folder, for `os.scandir`."""
        try:
            return self._open(path, os.O_RDONLY | os.O_NOFOLLOW | _FOLDER)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _no_folder(path) from error
            raise

    # --- what lies beside blobs (`source.Beside`) ---------------------------------------------------------------------

    def is_there(self, path: str) -> bool:
        try:
            self.status(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    def folders(self, path: str) -> list[str]:
        descriptor = self.folder(path)
        try:
            with os.scandir(descriptor) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(descriptor)

    def changed_ns(self, path: str) -> int | None:
        status = self.status(path)
        return max(0, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def open_file(self, path: str) -> int:
        """A descriptor of a regular file, for reading. Raises OSError; what is not a regular file is not opened."""
        if not stat.S_ISREG(self.status(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        descriptor = self.open(path, os.O_RDONLY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # put in its place meanwhile
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return descriptor

    def read_small(self, path: str, most_bytes: int) -> tuple[bytes, int]:
        with open(self.open_file(path), "rb") as file:
            changed_ns = os.fstat(file.fileno()).st_mtime_ns
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", path)
        return content, max(0, changed_ns)

    def _open(self, path: str, flags: int) -> int:
        if _NO_ATIME:
            # Only the file's owner and root may leave its access time alone.
            with contextlib.suppress(PermissionError):
                return self._open_once(path, flags | _NO_ATIME)
        return self._open_once(path, flags)

    def _open_once(self, path: str, flags: int) -> int:
        folder, name = self._split(path)
        return os.open(name, flags, dir_fd=folder)

    def _split(self, path: str) -> tuple[int, str]:
        """The descriptor of the folder in which a path ends, which is ours, and the last name: the kernel follows no
        link to get there if the name's own is not followed.
        """
        parent, _, name = path.rpartition("/")
        if parent != self._parent[0] or name in _NO_NAMES or "\0" in name or 4 * len(path) > MAX_PATH_BYTES:
            _check(path)  # else there is nothing more to find: the parent was checked
        if not parent:
            return self._root, name or "."
        if self._parent[0] != parent:
            descriptor = self._opened_parent(parent)
            self._leave_parent()
            self._parent = parent, descriptor
        return self._parent[1], name

    def _opened_parent(self, path: str) -> int:
        """A folder below the root, by openat2 or name by name."""
        flags = _PATH_ONLY | os.O_NOFOLLOW | _FOLDER
        at = -1
        try:
            if has_openat2():
                return _openat2(self._root, path, flags)
            for name in path.split("/"):
                above, at = at, os.open(name, flags, dir_fd=self._root if at < 0 else at)
                if above >= 0:
                    os.close(above)
        except OSError as error:
            if at >= 0:
                os.close(at)
            if error.errno == errno.ELOOP:  # macOS has this for a link: Linux has ENOTDIR, but for openat2
                raise _no_folder(path) from error
            raise
        return at


_NO_NAMES = frozenset(("", ".", ".."))


def _check(path: str) -> None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    if "\0" in path or (path and not _NO_NAMES.isdisjoint(path.split("/"))):
        raise OSError(errno.EINVAL, "not a path below the root", path)


def _no_folder(path: str) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def _openat2(folder: int, path: str, flags: int) -> int:
    how = struct.pack("=3Q", flags, 0, _RESOLVE)
    while (descriptor := _libc().syscall(OPENAT2, folder, os.fsencode(path) or b".", how, len(how))) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), path)
    return int(descriptor)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    libc.syscall.restype = ctypes.c_long
    return libc


@functools.cache
def has_openat2() -> bool:
    """Whether the kernel can refuse links itself: Linux from 5.6 on, if no filter of system calls forbids the call.

    Asked once a process. Without it each path is walked name by name.
    """
    if sys.platform != "linux":
        return False
    # A size of 0 is an argument that only a kernel that knows the call finds wrong.
    return _libc().syscall(OPENAT2, -1, b"", b"", 0) < 0 and ctypes.get_errno() == errno.EINVAL
