"""The asking end of the Unix socket: one request, one JSON object, within a deadline."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from chunkd.errors import NoDaemon, RequestRefused, SocketDenied, SocketUnusable
from chunkd.figures.words import shown

if TYPE_CHECKING:
    from http import client

REPLY_BYTES = 64 << 20
CONNECT_RETRY_S = 0.02
NO_ANSWER = "a daemon listens and gave no answer in {:g} s"
# A plain file refuses connections on Linux and is "no socket" on macOS.
NOBODY = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENOTSOCK)


class _Socket(socket.socket):
    """A Unix socket that raises TimeoutError once its deadline is over, however the bytes drip in."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = time.monotonic() + timeout_s

    def _expect(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.settimeout(left_s)

    def connect(self, path: Any) -> None:
        while True:
            self._expect()
            try:
                return super().connect(path)
            except BlockingIOError:
                time.sleep(CONNECT_RETRY_S)  # the daemon's backlog is full; Linux does not let poll wait for room

    def sendall(self, *args: Any) -> None:
        self._expect()
        super().sendall(*args)

    def recv_into(self, *args: Any) -> int:
        self._expect()
        return super().recv_into(*args)


def ask(
    path: str, method: str, target: str, body: dict[str, Any] | None = None, timeout_s: float = 10.0
) -> dict[str, Any]:
    """The JSON object that the daemon at the socket `path` replies; `timeout_s` is for all of it.

    Raises NoDaemon when nobody listens there, SocketDenied when this user may not connect, RequestRefused for an HTTP
    error, and SocketUnusable for a timeout or a reply that is not chunkd's. A reply is at most 64 MiB.
    """
    with _Socket(timeout_s) as connected:
        _connect(connected, path, timeout_s)
        from http import client  # takes 20 ms to import, which a command pays only where a daemon listens

        connection = client.HTTPConnection("chunkd")
        connection.sock = connected
        try:
            # A daemon may refuse a request before it has read all of it, and its reply says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, None if body is None else json.dumps(body), {"Connection": "close"})
            with connection.getresponse() as response:
                return _reply(response)
        except TimeoutError:
            raise SocketUnusable(path, NO_ANSWER.format(timeout_s)) from None
        except ConnectionError as error:
            raise SocketUnusable(path, f"the daemon ended the connection: {error.strerror or error}") from None
        except client.IncompleteRead as error:
            raise SocketUnusable(path, f"the reply ends after {len(error.partial)} bytes, too early") from None
        except (client.HTTPException, ValueError) as error:
            raise SocketUnusable(path, f"not a chunkd daemon: {shown(str(error)[:80])}") from None


def first_answer(candidates: Iterable[str], target: str, timeout_s: float = 10.0) -> tuple[str, dict[str, Any]]:
    """The first of the sockets at which a daemon listens, and its reply to a GET.

    Raises NoDaemon with all that were tried, and otherwise as `ask` does: only "nobody listens" is passed over.
    """
    tried = []
    for path in candidates:
        try:
            return path, ask(path, "GET", target, timeout_s=timeout_s)
        except NoDaemon:
            tried.append(path)
    raise NoDaemon(tried)


def _connect(connection: socket.socket, path: str, timeout_s: float) -> None:
    try:
        connection.connect(path)
    except TimeoutError:
        raise SocketUnusable(path, NO_ANSWER.format(timeout_s)) from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise SocketDenied(path, _group_to_join(path)) from None
        # A path too long for a socket carries no number; no daemon can have bound it.
        if error.errno is None or error.errno in NOBODY:
            raise NoDaemon([path]) from None
        raise SocketUnusable(path, f"connecting failed: {error.strerror}") from None


def _reply(response: client.HTTPResponse) -> dict[str, Any]:
    """Raises ValueError for a reply that is not chunkd's, RequestRefused for an HTTP error."""
    if response.length is None or len(response.headers.get_all("Content-Length", [])) != 1:
        raise ValueError("its reply has no single Content-Length")
    if response.length > REPLY_BYTES:
        raise ValueError(f"its reply of {response.length} bytes is more than {REPLY_BYTES}")
    content = response.read()
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise ValueError(f"it replied {response.status} without a JSON object")
    if not 200 <= response.status < 300:
        raise RequestRefused(response.status, str(reply.get("error", "without a reason")))
    return reply


def _group_to_join(path: str) -> str:
    """The group that may use the socket, as far as it can be seen from outside."""
    import grp  # only when permission was denied

    for seen in (path, os.path.dirname(path)):
        try:
            return grp.getgrgid(os.stat(seen).st_gid).gr_name
        except (OSError, KeyError):
            continue
    return "chunkd"
