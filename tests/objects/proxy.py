"""A proxy before a server of S3 that notes each request and does to the answer what a test wants."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Request(NamedTuple):
    """`of` is the path with its query, `range` and `if_match` are those headers."""

    method: str
    of: str
    range: str
    if_match: str

    @property
    def is_data(self) -> bool:
        return self.method == "GET" and bool(self.range)


def no_fault(_: Request) -> str:
    return ""


class Proxy:
    """`fault` says of a request what becomes of it:

    503     it is refused
    cut     half of the answer's body comes, and the connection ends as if that were all
    reset   half of the body comes, then the connection is reset
    stall   half of the body comes, and nothing more for `stall_s`
    hang    nothing comes for `stall_s`
    404     the object is not there
    another the object has another ETag from now on, and other bytes if `other` has some for its path
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.fault: Callable[[Request], str] = no_fault
        self.stall_s = 3.0
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self.generations: dict[str, int] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    proxy.answer(self)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def data(self) -> list[Request]:
        """The requests that read objects in ranges."""
        return [request for request in self.requests if request.is_data]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        length = int(handler.headers.get("Content-Length") or 0)
        sent = handler.rfile.read(length) if length else None
        request = Request(
            handler.command, handler.path, handler.headers.get("Range") or "", handler.headers.get("If-Match") or ""
        )
        self.requests.append(request)
        fault = self.fault(request)
        if fault:
            self.faults.append(fault)
        if fault == "hang":
            time.sleep(self.stall_s)
            handler.close_connection = True
            return
        if fault == "another":
            self.generations[path] = self.generations.get(path, 0) + 1
        if fault in ("503", "404"):
            self._say(handler, int(fault), {}, b"")
            return
        ours = f"-{self.generations[path]}" if path in self.generations else ""
        headers = {name.lower(): value for name, value in handler.headers.items() if name.lower() != "connection"}
        if request.if_match:
            tag = request.if_match.strip('"')
            if not tag.endswith(ours) or (ours and tag == ours):
                self._say(handler, 412, {}, b"")
                return
            headers["if-match"] = f'"{tag.removesuffix(ours) if ours else tag}"'
        upstream = http.client.HTTPConnection(self.upstream.netloc, timeout=30)
        try:
            upstream.request(handler.command, handler.path, sent, headers)
            answer = upstream.getresponse()
            body = answer.read()
            found = dict(answer.getheaders())
        finally:
            upstream.close()
        for name in list(found):
            if name.lower() == "etag" and ours:
                found[name] = f'"{found[name].strip(chr(34))}{ours}"'
            if name.lower() in ("connection", "transfer-encoding", "date", "server"):
                del found[name]
        self._say(handler, answer.status, found, body, fault if handler.command == "GET" and body else "")

    def _say(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, fault: str = ""
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if fault not in ("cut", "reset", "stall"):
            handler.wfile.write(body)
            return
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        handler.close_connection = True
        if fault == "stall":
            time.sleep(self.stall_s)
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault != "stall":
            handler.connection.shutdown(socket.SHUT_RDWR) if fault == "cut" else handler.connection.close()


def by_chance(draw: random.Random, faults: Sequence[str], share: float = 0.4) -> Callable[[Request], str]:
    """Faults for a share of all requests, and never more than three one after the other for one object: a few more, and
    it would rightly be taken for one that can't be read.
    """
    in_a_row: Counter[str] = Counter()

    def fault(request: Request) -> str:
        if in_a_row[request.of] < 3 and draw.random() < share:
            in_a_row[request.of] += 1
            return draw.choice(faults)
        in_a_row[request.of] = 0
        return ""

    return fault


@contextlib.contextmanager
def before(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
