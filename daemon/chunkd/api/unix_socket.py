"""A Unix socket that is bound without a moment of wider rights, and never over a live daemon's.

It is bound and given its mode in a fresh 0700 directory beside its path, then renamed: no umask, which is one for all
threads, is touched, and who connects finds the whole thing or nothing. A dead daemon's socket is replaced by the same
rename. `<path>.lock` is locked for as long as the socket lives, since on macOS a full backlog also refuses connections.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import tempfile

from chunkd.errors import SocketUnusable

DIRECTORY_MODE = 0o750
SOCKET_MODE = 0o660
BACKLOG_CONNECTIONS = 128
PROBE_TIMEOUT_S = 2.0
# sizeof sockaddr_un.sun_path, with the NUL that ends it: unix(7), and sys/un.h of macOS.
SUN_PATH_BYTES = 104 if sys.platform == "darwin" else 108
KINDS = {
    stat.S_IFREG: "a plain file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Listener:
    """A listening stream socket at `path`, mode 0660, in a directory that is made 0750 if there is none.

    Raises SocketUnusable when a daemon answers there, the path is too long or holds something else than a socket, or
    the system refuses. After that nothing is left open.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        directory, name = os.path.split(path)
        # The socket is bound as `.` + 8 characters + `/s` first: both names must fit.
        longest_bytes = max(len(os.fsencode(path)), len(os.fsencode(directory)) + len("/.12345678/s"))
        if longest_bytes >= SUN_PATH_BYTES:
            problem = f"takes {longest_bytes} bytes of at most {SUN_PATH_BYTES - 1}; name a shorter one with `--socket`"
            raise SocketUnusable(path, problem)
        if not name or not os.path.isabs(path):
            raise SocketUnusable(path, "is not the absolute path of a file; name another with `--socket`")
        with contextlib.ExitStack() as undo:
            try:
                _make_directory(directory)
                self._lock_fd = _lock(path)
                undo.callback(os.close, self._lock_fd)
                _refuse_what_is_there(path)
                self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                undo.callback(self.socket.close)
                self._identity = _bind(self.socket, path, directory)
            except OSError as error:
                raise SocketUnusable(path, f"can't be made: {error.strerror}: {error.filename or path}") from error
            undo.pop_all()

    def close(self) -> None:
        """Removes the socket if it is still this one, and stops listening. The lock file stays: removing one races."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self.socket.close()
        os.close(self._lock_fd)


class TcpListener:
    """A listening socket at `address`, HOST:PORT; with port 0 at any that is free. Raises SocketUnusable."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with contextlib.ExitStack() as undo:
                self.socket = socket.socket(family, kind, protocol)
                undo.callback(self.socket.close)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(where)
                self.socket.listen(BACKLOG_CONNECTIONS)
                undo.pop_all()
        except UnicodeError:
            raise SocketUnusable(address, "can't be listened at: the host is no name that DNS can have") from None
        except OSError as error:
            raise SocketUnusable(address, f"can't be listened at: {error.strerror}") from error

    def close(self) -> None:
        self.socket.close()


def _make_directory(directory: str) -> None:
    os.makedirs(os.path.dirname(directory), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, DIRECTORY_MODE)
        os.chmod(directory, DIRECTORY_MODE)  # the umask may have taken the group's rights


def _lock(path: str) -> int:
    lock_path = path + ".lock"
    lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        problem = f"a daemon answers there (it holds {lock_path}); stop it, or name another with `--socket`"
        raise SocketUnusable(path, problem) from None
    except OSError:
        os.close(lock_fd)
        raise
    return lock_fd


def _refuse_what_is_there(path: str) -> None:
    """Returns when nothing is at the path, or a socket that refuses connections: its daemon is dead."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFSOCK:
        what = KINDS.get(kind, "something else")
        raise SocketUnusable(path, f"is {what}, no socket; move it away, or name another path with `--socket`")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (TimeoutError, BlockingIOError):
            pass  # a full backlog: somebody listens
        except OSError as error:
            # A datagram socket (EPROTOTYPE) or one that may not be tried (EACCES): not known to be dead.
            name = errno.errorcode.get(error.errno or 0, "")
            raise SocketUnusable(path, f"there is a socket, and trying it failed: {error.strerror} ({name})") from None
    raise SocketUnusable(path, "a daemon answers there; stop it, or name another with `--socket`")


def _bind(listening: socket.socket, path: str, directory: str) -> tuple[int, int]:
    """The device and inode of the socket, which listens from the first moment that it has its name."""
    with tempfile.TemporaryDirectory(prefix=".", dir=directory) as private:
        bound = os.path.join(private, "s")
        listening.bind(bound)
        os.chmod(bound, SOCKET_MODE)
        listening.listen(BACKLOG_CONNECTIONS)
        found = os.lstat(bound)
        os.rename(bound, path)
    return found.st_dev, found.st_ino
