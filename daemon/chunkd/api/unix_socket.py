"""A Unix socket that never has wider rights than it should, and never replaces a live daemon's.

The socket is bound and given its mode in a new 0700 directory beside its path, then renamed. So the umask, which all
threads share, stays unchanged, and a client finds either a socket that listens or none. The same rename replaces a dead
daemon's socket. `<path>.lock` is locked while the socket lives, since on macOS a full backlog also refuses connections.
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
    """A listening stream socket at `path`, mode 0660, in a directory that is made with mode 0750 if it is missing.

    Raises SocketUnusable when a daemon answers there, the path is too long or is not a socket, or the system refuses;
    nothing is left open then.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        directory, name = os.path.split(path)
        # The socket is bound as `.` + 8 characters + `/s` first: both names must fit.
        longest_bytes = max(len(os.fsencode(path)), len(os.fsencode(directory)) + len("/.12345678/s"))
        if longest_bytes >= SUN_PATH_BYTES:
            most = SUN_PATH_BYTES - 1
            problem = (
                f"its path is too long ({longest_bytes} bytes, at most {most}); give a shorter one with `--socket`"
            )
            raise SocketUnusable(path, problem)
        if not name or not os.path.isabs(path):
            raise SocketUnusable(path, "not the absolute path of a file; give another with `--socket`")
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
        """Removes the socket if it is still this one, and stops listening. The lock file stays."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self.socket.close()
        os.close(self._lock_fd)


class TcpListener:
    """A listening socket at `address`, HOST:PORT; port 0 picks a free one. Raises SocketUnusable."""

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
            raise SocketUnusable(address, "can't listen there: the host is not a valid name") from None
        except OSError as error:
            raise SocketUnusable(address, f"can't listen there: {error.strerror}") from error

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
        problem = f"in use by a daemon, which holds {lock_path}; stop it, or give another with `--socket`"
        raise SocketUnusable(path, problem) from None
    except OSError:
        os.close(lock_fd)
        raise
    return lock_fd


def _refuse_what_is_there(path: str) -> None:
    """Returns when the path is free, or is a socket that refuses connections because its daemon is dead."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFSOCK:
        what = KINDS.get(kind, "something else")
        raise SocketUnusable(path, f"is {what}, not a socket; move it away, or give another path with `--socket`")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except (TimeoutError, BlockingIOError):
            pass  # a full backlog: a daemon listens
        except OSError as error:
            # A datagram socket (EPROTOTYPE), or one that we may not try (EACCES): it may be alive.
            name = errno.errorcode.get(error.errno or 0, "")
            problem = f"can't tell whether a daemon uses it: {error.strerror} ({name}); give another with `--socket`"
            raise SocketUnusable(path, problem) from None
    raise SocketUnusable(path, "in use by a daemon; stop it, or give another with `--socket`")


def _bind(listening: socket.socket, path: str, directory: str) -> tuple[int, int]:
    """The device and inode of the socket, which listens before it gets its name."""
    with tempfile.TemporaryDirectory(prefix=".", dir=directory) as private:
        bound = os.path.join(private, "s")
        listening.bind(bound)
        os.chmod(bound, SOCKET_MODE)
        listening.listen(BACKLOG_CONNECTIONS)
        found = os.lstat(bound)
        os.rename(bound, path)
    return found.st_dev, found.st_ino
