"""The asking end of the Unix socket. A request by hand, so that `chunkd stats` starts without an HTTP library."""

from __future__ import annotations

import _socket  # `socket` adds what is not needed here, and a fifth to the time that `chunkd stats` takes
import errno
import json
import os
import time

from chunkd.errors import NoDaemon, RequestRefused, SocketDenied, SocketUnusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

REPLY_BYTES = 64 << 20
HEAD_BYTES = 16384
READ_BYTES = 65536
CONNECT_RETRY_S = 0.02
# A plain file refuses connections on Linux and is "no socket" on macOS.
NOBODY = (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED, errno.ENOTSOCK)


def ask(
    path: str, method: str, target: str, body: dict[str, Any] | None = None, timeout_s: float = 10.0
) -> dict[str, Any]:
    """The JSON object that the daemon at the socket `path` replies; `timeout_s` is for all of it.

    Raises NoDaemon when nobody listens there, SocketDenied when that can't be known for want of rights, RequestRefused
    for an HTTP error, and SocketUnusable for a timeout or a reply that is not chunkd's. A reply is at most 64 MiB.
    """
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: chunkd\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    deadline = time.monotonic() + timeout_s
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        _connect(connection, path, deadline)
        try:
            connection.settimeout(_left_s(deadline))
            connection.sendall(head.encode("ascii") + content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was whole: the reply says why
        return _read_reply(connection, path, deadline)
    except TimeoutError:
        raise SocketUnusable(path, f"a daemon is there and gave no answer in {timeout_s:g} s") from None
    except ConnectionError as error:
        raise SocketUnusable(path, f"the daemon ended the connection: {error.strerror}") from None
    finally:
        connection.close()


def first_answer(
    candidates: Iterable[str], method: str, target: str, body: dict[str, Any] | None = None, timeout_s: float = 10.0
) -> tuple[str, dict[str, Any]]:
    """The first of the sockets at which a daemon listens, and its reply to `ask`.

    Raises NoDaemon with all that were tried, and otherwise as `ask` does: no error but "nobody listens" is passed over.
    """
    tried = []
    for path in candidates:
        try:
            return path, ask(path, method, target, body, timeout_s)
        except NoDaemon:
            tried.append(path)
    raise NoDaemon(tried)


def _connect(connection: _socket.socket, path: str, deadline: float) -> None:
    while True:
        connection.settimeout(_left_s(deadline))
        try:
            connection.connect(path)
        except BlockingIOError:
            time.sleep(CONNECT_RETRY_S)  # the daemon's hint_queue is full; Linux does not let poll wait for room
        except TimeoutError:
            raise
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise SocketDenied(path, _group_to_join(path)) from None
            # A path too long for a socket carries no number; no daemon can have bound it.
            if error.errno is None or error.errno in NOBODY:
                raise NoDaemon([path]) from None
            raise SocketUnusable(path, f"connecting failed: {error.strerror}") from None
        else:
            return


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _read_reply(connection: _socket.socket, path: str, deadline: float) -> dict[str, Any]:
    received = bytearray()

    def receive() -> None:
        connection.settimeout(_left_s(deadline))
        got = connection.recv(READ_BYTES)
        if not got:
            raise SocketUnusable(path, f"the reply ends after {len(received)} bytes, before it is whole")
        received.extend(got)

    while (head_bytes := received.find(b"\r\n\r\n")) < 0:
        if len(received) > HEAD_BYTES:
            raise SocketUnusable(
                path, f"no daemon of chunkd's: the head of its reply is longer than {HEAD_BYTES} bytes"
            )
        receive()
    status, content_bytes = _read_head(bytes(received[:head_bytes]), path)
    del received[: head_bytes + 4]
    while len(received) < content_bytes:
        receive()
    try:
        reply = json.loads(received[:content_bytes])
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        raise SocketUnusable(path, f"no daemon of chunkd's: it replied {status} without a JSON object")
    if not 200 <= status < 300:
        raise RequestRefused(status, str(reply.get("error", "without a reason")))
    return reply


def _read_head(head: bytes, path: str) -> tuple[int, int]:
    """The status, and how many bytes of content follow."""
    status_line, *lines = head.split(b"\r\n")
    words = status_line.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        raise SocketUnusable(path, f"no daemon of chunkd's: its reply begins {status_line[:40]!r}")
    lengths = [line.partition(b":")[2].strip() for line in lines if line.lower().startswith(b"content-length:")]
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise SocketUnusable(path, "no daemon of chunkd's: its reply has no single Content-Length")
    if int(lengths[0]) > REPLY_BYTES:
        raise SocketUnusable(path, f"its reply of {int(lengths[0])} bytes is more than {REPLY_BYTES}")
    return int(words[1]), int(lengths[0])


def _group_to_join(path: str) -> str:
    """The group that may use the socket, as far as it can be seen from outside."""
    import grp  # only when permission was denied

    for seen in (path, os.path.dirname(path)):
        try:
            return grp.getgrgid(os.stat(seen).st_gid).gr_name
        except (OSError, KeyError):
            continue
    return "chunkd"
