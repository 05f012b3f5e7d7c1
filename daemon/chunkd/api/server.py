"""The daemon's end of the Unix socket: HTTP/1.1, JSON both ways, so that `curl --unix-socket` works.

    GET /v1/stats     GET /v1/blobs?after=&limit=&failed=     GET /v1/health     GET /v1/histogram
    POST /v1/scan     GET /v1/layers?after=&limit=     GET /v1/history?since=&limit=
    GET /v1/images?by=&after=&limit=     GET /v1/freed?references=&keep_last=     GET /v1/similar?threshold=
    GET /v1/diff?from=&to=&platform=&after=&limit=
    GET /v1/updates?repository=&platform=&after=&limit=
    GET /metrics      also over TCP, and then nothing else

Clients may be hostile: line, head, body, time and connections are bounded. When all connections are taken, a new one
replaces the one that has been silent the longest, so that silent clients can't keep others from an answer.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from chunkd.api.routes import ROUTES, Answers, RefusedError, Reply, Routes, answer
from chunkd.api.unix_socket import Listener, TcpListener

LOG = logging.getLogger(__name__)
CONNECTIONS = 32
REQUEST_LINE_BYTES = 4096
HEAD_BYTES = 16384
BODY_BYTES = 16384
# The time for one whole request, from the end of the one before; and for the client to take one whole reply.
REQUEST_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 10.0
# A younger connection is not cut in favour of another: an honest client has sent something by then.
GRACE_S = 0.1
STOP_TIMEOUT_S = 2.0


class Endpoint:
    """The socket at `path`, answering from `answers`. Makes one thread for each connection, at most 32, and no other.

    `listen` makes the listening socket of `path`; `routes` are the routes that it serves.
    """

    def __init__(
        self,
        path: str,
        answers: Answers,
        listen: Callable[[str], Listener | TcpListener] = Listener,
        routes: Routes = ROUTES,
    ) -> None:
        self.path, self._listen, self._routes = path, listen, routes
        self._answers = answers
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._listener: Listener | TcpListener | None = None
        self._serving = self._stopped = False

    def start(self) -> None:
        """Listen: clients can connect, and are answered once `serve_forever` runs. Raises SocketUnusable."""
        self._listener = self._listen(self.path)
        self._server = _Server(self._listener.socket, self.path, self._answers, self._routes)

    def serve_forever(self) -> None:
        """Answers until another thread calls `stop`. Call `start` first."""
        with self._lock:
            if self._stopped or self._server is None:
                return
            self._serving = True
        self._server.serve_forever()

    def stop(self) -> None:
        """Ends `serve_forever`, cuts the connections and removes the socket if it is still ours. May be repeated."""
        with self._lock:
            if self._stopped or self._server is None or self._listener is None:
                return
            self._stopped = True
        self._server.stopping.set()
        _cut(self._listener.socket)  # wakes the loop on Linux, which otherwise checks every half second
        if self._serving:
            self._server.shutdown()
        self._listener.close()
        self._server.cut_all()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, path: str, answers: Answers, routes: Routes) -> None:
        # Not the next class's __init__, which would make a socket of its own.
        socketserver.BaseServer.__init__(self, path, _Handler)
        self.socket = listening
        self.answers, self.routes = answers, routes
        self.stopping = threading.Event()
        # Every open connection; and for each one that waits for its client, since when it does.
        self._open: set[socket.socket] = set()
        self._waiting_since: dict[socket.socket, float] = {}
        self._changed = threading.Condition()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            self.stopping.wait(GRACE_S)  # out of descriptors: the listener stays readable, so do not spin on it
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            while len(self._open) >= CONNECTIONS and not self.stopping.is_set():
                self._changed.wait(self._make_room())
            self._open.add(request)
            self._waiting_since[request] = time.monotonic()
        super().process_request(request, client_address)

    def _make_room(self) -> float:
        """Cuts the connection that has waited for its client the longest. Returns in how many seconds to try again."""
        oldest = min(self._waiting_since, key=self._waiting_since.__getitem__, default=None)
        if oldest is None:
            return GRACE_S
        young_s = self._waiting_since[oldest] + GRACE_S - time.monotonic()
        if young_s <= 0:
            del self._waiting_since[oldest]
            _cut(oldest)
        return young_s if young_s > 0 else GRACE_S

    def waits(self, connection: socket.socket, for_client: bool) -> None:
        """Records whose turn it is. While it is the daemon's turn, the connection is not cut."""
        with self._changed:
            if for_client:
                self._waiting_since[connection] = time.monotonic()
            else:
                self._waiting_since.pop(connection, None)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._open.discard(request)
            self._waiting_since.pop(request, None)
            self._changed.notify_all()

    def cut_all(self) -> None:
        """Ends every connection, and returns when their threads have ended, or after 2 s."""
        with self._changed:
            for connection in self._open:
                _cut(connection)
            self._changed.wait_for(lambda: not self._open, STOP_TIMEOUT_S)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        LOG.exception("endpoint: a connection ended by an error of the daemon's own")


def _cut(connection: socket.socket) -> None:
    """Ends both directions. Its thread closes the descriptor: closed here, its number could become another file's."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Incoming(io.RawIOBase):
    """The bytes of a client. Raises TimeoutError after the deadline, however slowly bytes come in before it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.expect(0.0)

    def expect(self, timeout_s: float) -> None:
        self._deadline, self.spoke = time.monotonic() + timeout_s, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        got_bytes = self._connection.recv_into(buffer)
        self.spoke = True
        return got_bytes


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = default_request_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        self.command, self.requestline, self.request_version = "", "", self.default_request_version
        try:
            reply = self._one_reply()
            self.server.waits(self.connection, for_client=True)
            if reply:
                self._send(reply)
        except (ConnectionError, TimeoutError) as error:
            self.close_connection = True
            LOG.debug("endpoint: a client went before it was answered: %r", error)

    def _one_reply(self) -> Reply | None:
        """The reply to the next request, None if the client is gone. Broken framing ends the connection."""
        self._incoming.expect(REQUEST_TIMEOUT_S)
        self.close_connection = True
        try:
            content = self._read_body() if self._read_head() else None
        except TimeoutError:
            self.close_connection = True
            if not self._incoming.spoke:
                return None
            return RefusedError(408, f"the request was not whole after {REQUEST_TIMEOUT_S:.0f} s").reply
        except RefusedError as refused:
            self.close_connection = True
            return refused.reply
        if content is None:
            self.close_connection = True
            return None
        self.server.waits(self.connection, for_client=False)
        accept = self.headers.get("Accept", "")
        return answer(self.server.answers, self.command, self.path, content, accept, self.server.routes)

    def _read_head(self) -> bool:
        """Whether a whole head came; `command`, `path` and `headers` then have its parts."""
        self.raw_requestline = self.rfile.readline(REQUEST_LINE_BYTES + 1)
        if len(self.raw_requestline) > REQUEST_LINE_BYTES:
            raise RefusedError(414, f"the request line is longer than {REQUEST_LINE_BYTES} bytes")
        head, line = bytearray(), self.raw_requestline
        while line.endswith(b"\n") and line not in (b"\r\n", b"\n"):
            line = self.rfile.readline(HEAD_BYTES + 1 - len(head))
            head += line
            if len(head) > HEAD_BYTES:
                raise RefusedError(431, f"the head is longer than {HEAD_BYTES} bytes")
        if not line.endswith(b"\n"):
            return False
        source, self.rfile = self.rfile, io.BytesIO(head)
        try:
            if not self.parse_request():
                raise RefusedError(400, "the request line is empty")
        finally:
            self.rfile = source
        self.close_connection |= self.request_version != "HTTP/1.1"
        return True

    def _read_body(self) -> bytes | None:
        """The body, empty if there is none. None if the client left before its end."""
        if "Transfer-Encoding" in self.headers:
            raise RefusedError(411, "a body needs a Content-Length")
        lengths = self.headers.get_all("Content-Length", ["0"])
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise RefusedError(400, "the Content-Length is not one number")
        if len(lengths[0]) > 18 or int(lengths[0]) > BODY_BYTES:
            raise RefusedError(413, f"the body is longer than {BODY_BYTES} bytes")
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        content = self.rfile.read(int(lengths[0]))
        return content if len(content) == int(lengths[0]) else None

    def handle_expect_100(self) -> bool:
        return True  # _read_body sends it, once it has checked the length

    def _send(self, reply: Reply) -> None:
        self.connection.settimeout(REPLY_TIMEOUT_S)
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.content)))
        self.send_header("Cache-Control", "no-store")
        if reply.allow:
            self.send_header("Allow", reply.allow)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        raise RefusedError(code, message or HTTPStatus(code).phrase)

    def version_string(self) -> str:
        return "chunkd"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        LOG.debug("endpoint: %r", format % args)
