"""The process that reads objects for the workers: it speaks TLS to the bucket, and the workers decode.

A blob's bytes go to its worker through a pair of sockets. The worker's end has a byte for the reader, which takes it
when the blob is complete, or is another now, and then closes its own end: an end of file. If it closes without having
taken it, because the bucket failed or this process died, the kernel tells the worker so (ECONNRESET). So a blob whose
reading failed is never taken for one that is too short.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from chunkd.objects.store import Archived, Bucket, Object, Patience, Replaced

# One request asks for so much: less than comes in the time that a request may take.
RANGE_BYTES = 64 << 20
# What lies between the reader and a worker, if the system allows it. With half as much they wait for each other twice
# as often, at a fifth more processor time of the reader.
BUFFER_BYTES = 1 << 20
REQUEST_BYTES = 8192
READY = b"\n"
# So many threads stay to wait for a request. With one, each request would start the next.
STAY = 2


def pair() -> tuple[socket.socket, socket.socket]:
    """The reader's end and the worker's."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    theirs.send(b"\0")
    return ours, theirs


def copy(bucket: Bucket, of: Object, end: socket.socket) -> None:
    """Send an object's bytes to the reader's end, which the caller then closes. Raises OSError: Replaced or
    FileNotFoundError after an object's bytes ended early, as it is another now or gone; otherwise, such as with
    Archived, it can't be read.
    """
    try:
        for piece in _read(bucket, of):
            end.sendall(piece)
    except (Replaced, FileNotFoundError):
        end.recv(1)
        raise
    except ConnectionError:
        return  # nobody wants the rest
    end.recv(1)


def _read(bucket: Bucket, of: Object) -> Iterator[Any]:
    """The bytes of an object in pieces. What a request lacks, the next one asks for. Raises OSError."""
    begin, patience = 0, Patience()
    while begin < of.stored_bytes:
        end = min(begin + RANGE_BYTES, of.stored_bytes)
        try:
            for piece in bucket.pieces(of, begin, end):
                begin += memoryview(piece).nbytes
                if begin > end:
                    raise Replaced
                yield piece
                patience.progress()
            if begin < end:
                raise EOFError
        except Exception as error:
            time.sleep(patience.wait_s(error))


def main(connection: socket.socket, asked: dict[str, Any]) -> None:
    """Serve requests until the daemon has gone, each in a thread. A request is one message of JSON, and comes with the
    reader's end for one object. A line of JSON goes back for each object that can't be read: its key and tag, the
    reason, and whether it is archived. The reason is empty if the object is gone or has been replaced.

    Ends the process, whatever its threads wait for: with 1 and a traceback if one of them met with a bug.
    """
    os.environ.update(asked["environ"])  # which workers, forked by the same process, do not have
    threads = _Threads(connection, Bucket(asked["url"]))
    with contextlib.suppress(ConnectionError):
        connection.send(READY)
    threads.start()
    threading.Event().wait()  # a thread ends the process


class _Threads:
    """A thread for each object that is handed on, as many as there are, since a worker may take none of its for long.

    The thread that receives a request serves it, so nothing is handed from one to another. If none is left that waits
    for the next one, it starts one first.
    """

    def __init__(self, connection: socket.socket, bucket: Bucket) -> None:
        self._connection, self._bucket = connection, bucket
        self._waiting = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._run, name="read", daemon=True).start()

    def _run(self) -> None:
        try:
            while self._waiting < STAY:
                with self._lock:
                    self._waiting += 1
                of, end = self._receive()
                with self._lock:
                    self._waiting -= 1
                    alone = not self._waiting
                if alone:
                    self.start()
                serve(self._connection, self._bucket, of, end)
        except BaseException:  # a bug, after which the other threads would go on
            traceback.print_exc()
            os._exit(1)

    def _receive(self) -> tuple[Object, socket.socket]:
        try:
            text, descriptors, _, _ = socket.recv_fds(self._connection, REQUEST_BYTES, 1)
        except ConnectionError:
            text = b""
        if not text:
            os._exit(0)
        return Object(*json.loads(text)), socket.socket(fileno=descriptors[0])


def serve(connection: socket.socket, bucket: Bucket, of: Object, end: socket.socket) -> None:
    """Copy one object. What is wrong is told before the end is closed: who hears of the end knows why."""
    with end:
        try:
            copy(bucket, of, end)
        except OSError as error:
            changed = isinstance(error, (Replaced, FileNotFoundError))
            said = of.key, of.tag, "" if changed else error.strerror, isinstance(error, Archived)
            with contextlib.suppress(OSError):
                connection.send(json.dumps(said).encode() + b"\n", socket.MSG_DONTWAIT)
