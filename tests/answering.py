"""An endpoint that runs for a test, with answers that are made up and a log of what was asked."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chunkd.api.server import Endpoint

PATIENCE_S = 20.0  # for what must come; a test that waits so long has failed
STATS = {"layers": 3, "caches": [{"path": "/caf\u00e9\udc80"}]}


class FakeAnswers:
    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.gate: threading.Event | None = None
        self.entered = threading.Semaphore(0)
        self.padding = ""

    def _note(self, *asked: Any) -> None:
        self.asked.append(asked)
        self.entered.release()
        if self.gate:
            self.gate.wait(PATIENCE_S)
        if self.error:
            raise self.error

    def stats(self) -> dict[str, Any]:
        self._note("stats")
        return STATS | {"padding": self.padding}

    def histogram(self) -> dict[str, Any]:
        self._note("histogram")
        return {"copies": [], "sizes": []}

    def blobs(self, after: str, limit: int, failed: bool) -> dict[str, Any]:
        self._note("blobs", after, limit, failed)
        return {"blobs": [], "next": None}

    def layers(self, after: str, limit: int) -> dict[str, Any]:
        self._note("layers", after, limit)
        return {"layers": [], "next": None, "commit": 1}

    def images(self, after: str, limit: int, by: str) -> dict[str, Any]:
        self._note("images", after, limit, by)
        return {"images": [], "next": None, "commit": 1}

    def freed(self, after: str, limit: int, references: tuple[str, ...], keep_last: int) -> dict[str, Any]:
        self._note("freed", after, limit, references, keep_last)
        return {"images": [], "next": None, "commit": 1}

    def similar(self, after: str, limit: int, threshold: int) -> dict[str, Any]:
        self._note("similar", after, limit, threshold)
        return {"alike": [], "next": None, "commit": 1}

    def diff(self, after: str, limit: int, client: tuple[str, ...], to: str, platform: str) -> dict[str, Any]:
        self._note("diff", after, limit, client, to, platform)
        return {"by_layer": [], "next": None, "commit": 1}

    def updates(self, after: str, limit: int, repository: str, platform: str) -> dict[str, Any]:
        self._note("updates", after, limit, repository, platform)
        return {"pairs": [], "next": None, "commit": 1}

    def history(self, since: str, limit: int) -> dict[str, Any]:
        self._note("history", since, limit)
        return {"history": [], "next": None}

    def metrics(self, accept: str) -> tuple[str, bytes]:
        self._note("metrics", accept)
        return "text/plain; version=0.0.4", b"# EOF\n"

    def health(self) -> dict[str, Any]:
        self._note("health")
        return {"state": "ok", "reasons": []}

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:
        self._note("scan", verify, accept, retry_failed)
        return {"asked": True}


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory that everybody may search, with a name short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="chunkd-", dir="/tmp") as name:
        os.chmod(name, 0o755)  # noqa: S103
        yield Path(name)


@contextlib.contextmanager
def running(path: Path, answers: FakeAnswers, *more: Any) -> Iterator[Endpoint]:
    """Serves, and leaves no thread behind: each is awaited."""
    before = set(threading.enumerate())
    endpoint = Endpoint(str(path), answers, *more)
    endpoint.start()
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
        for left in set(threading.enumerate()) - before:
            left.join(PATIENCE_S)
            assert not left.is_alive(), left


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:  # the hint_queue is full: the connections before this one are being taken in
            continue
        return connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):  # the daemon closed with bytes of ours unread
        while more := connection.recv(65536):
            received += more
    return received


def read_line_of_json(connection: socket.socket) -> bytes:
    """One reply of a connection that stays open: the JSON object is its last line."""
    received = b""
    while not received.endswith(b"}\n"):
        received += connection.recv(65536)
    return received


def exchange(path: Path, request: bytes) -> bytes:
    """What the daemon replies until it closes."""
    with connect(path) as connection:
        with contextlib.suppress(BrokenPipeError):  # it has heard enough
            connection.sendall(request)
        return read_to_end(connection)


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))
