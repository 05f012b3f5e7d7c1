"""The process that reads objects for the workers: it speaks TLS to the bucket, and the workers decode.

A blob's bytes go to its worker through a pair of sockets. The worker's end has a byte for the reader, which takes it
when the blob is complete, or is another now, and then closes its own end: an end of file. If it closes without having
taken it, because the bucket failed or this process died, the kernel tells the worker so (ECONNRESET). So a blob whose
reading failed is never taken for one that is too short.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chunkd.objects.store import Archived, Bucket, Object, Patience, Replaced

# One request asks for so much, and the next is under way while these bytes are handed on.
RANGE_BYTES = 8 << 20
REQUEST_BYTES = 8192
READY = b"\n"
# A thread for each object that is being handed on: as many as there are, since a worker may take none of its for long.
_SENDERS = ThreadPoolExecutor(1 << 16, "send")


def pair() -> tuple[socket.socket, socket.socket]:
    """The reader's end and the worker's."""
    ours, theirs = socket.socketpair()
    theirs.send(b"\0")
    return ours, theirs


async def copy(bucket: Bucket, of: Object, end: socket.socket) -> None:
    """Send an object's bytes to the reader's end, which the caller then closes. Raises OSError: Archived, or for
    another reason why it can't be read. That the object is gone or another now is no error: its bytes end early.
    """
    loop = asyncio.get_running_loop()
    async with contextlib.aclosing(_read_ahead(bucket, of)) as ranges:
        try:
            async for pieces in ranges:
                # A thread that waits costs half of what the loop does, which wakes up for each 100 KiB.
                await loop.run_in_executor(_SENDERS, _send, end, pieces)
        except (Replaced, FileNotFoundError):
            pass
        except ConnectionError:
            return  # nobody wants the rest
    end.recv(1)


def copy_now(bucket: Bucket, of: Object, end: socket.socket) -> None:
    """The same for who has no loop, such as a thread; it closes the end. Returns when the bytes have been taken."""
    with end:
        asyncio.run(copy(bucket, of, end))


def _send(end: socket.socket, pieces: list[Any]) -> None:
    for piece in pieces:
        end.sendall(piece)


async def _read_ahead(bucket: Bucket, of: Object) -> AsyncGenerator[list[Any], None]:
    """An object range by range, each in pieces; the next one is read meanwhile."""
    begins = range(0, of.stored_bytes, RANGE_BYTES)
    ahead: asyncio.Task[list[Any]] | None = None
    try:
        for begin in begins:
            pieces = await (ahead or _range(bucket, of, begin))
            more = begin + RANGE_BYTES < of.stored_bytes
            ahead = asyncio.create_task(_range(bucket, of, begin + RANGE_BYTES)) if more else None
            yield pieces
    finally:
        if ahead is not None:
            ahead.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await ahead


async def _range(bucket: Bucket, of: Object, begin: int) -> list[Any]:
    """The bytes from `begin` on. What a request lacks, the next one asks for. Raises OSError."""
    end, patience, found = min(begin + RANGE_BYTES, of.stored_bytes), Patience(), []
    while begin < end:
        try:
            async for piece in bucket.pieces(of, begin, end):
                size = memoryview(piece).nbytes
                if size > end - begin:
                    raise Replaced
                found.append(piece)
                begin += size
                patience.progress()
            if begin < end:
                raise EOFError
        except Exception as error:
            await asyncio.sleep(patience.wait_s(error))
    return found


def main(connection: socket.socket, asked: dict[str, Any]) -> None:
    """Serve requests until the daemon has gone. A request is one message of JSON, and comes with the reader's end for
    one object. A line of JSON goes back for each object that can't be read: its key and tag, why, whether it is
    archived.
    """
    os.environ.update(asked["environ"])  # which workers, forked by the same process, do not have
    with contextlib.suppress(ConnectionError):
        asyncio.run(_serve(connection, Bucket(asked["url"])))
    os._exit(0)  # a thread may still wait for a worker


async def _serve(connection: socket.socket, bucket: Bucket) -> None:
    loop, tasks = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    ended = loop.create_future()

    def hear() -> None:
        try:
            text, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            text = b""
        if not text:
            loop.remove_reader(connection)
            ended.set_result(None)
            return
        task = loop.create_task(
            _one(connection, bucket, Object(*json.loads(text)), socket.socket(fileno=descriptors[0]))
        )
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    connection.setblocking(False)
    loop.add_reader(connection, hear)
    connection.send(READY)
    await ended
    for task in tasks:
        task.cancel()


async def _one(connection: socket.socket, bucket: Bucket, of: Object, end: socket.socket) -> None:
    """Copy one object. What is wrong is told before the end is closed: who hears of the end knows why."""
    with end:
        try:
            await copy(bucket, of, end)
        except OSError as error:
            said = of.key, of.tag, error.strerror, isinstance(error, Archived)
            with contextlib.suppress(OSError):
                connection.send(json.dumps(said).encode() + b"\n")
