"""The process that computes an answer about images: a child of the starter, which ends once the answer is given.

The daemon could compute it in a thread, but its writer would wait for Python's lock, and memory would stay with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from typing import Any

from chunkd.errors import ChunkdError, UsageError
from chunkd.images import answers, pages
from chunkd.index.storage.environment import Store
from chunkd.service.image_pages import END
from chunkd.worker.sandbox import limit_memory

# The most memory that an answer may take, and the most bytes that it may have.
MEMORY_BYTES = 2 << 30
REPLY_BYTES = 256 << 20
# How long a process goes on after its daemon has gone or waits no longer.
CHECK_EVERY_S = 1.0


def main(connection: socket.socket, asked: dict[str, Any]) -> None:
    """Send the answer: a line of JSON with the reply but its rows, a line for each row, and END. For a question that is
    refused one line, which has `error` and whether that is a `usage` error, and END.
    """
    end_with(connection)
    limit_memory(MEMORY_BYTES)
    try:
        lines = answered(asked)
        if sum(map(len, lines)) > REPLY_BYTES:
            lines = refused(f"images: the answer has more than {REPLY_BYTES >> 20} MiB")
    except ChunkdError as error:
        lines = refused(str(error), usage=isinstance(error, UsageError))
    except MemoryError:
        lines = refused(f"images: the answer takes more than {MEMORY_BYTES >> 20} MiB of memory")
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        for line in (*lines, END):
            connection.sendall(line)


def answered(asked: dict[str, Any]) -> list[bytes]:
    with contextlib.closing(Store(asked["index"], readonly=True)) as store:
        reply = answers.asked(store, (getattr(answers, asked["question"]), tuple(asked["arguments"])))
    return [json.dumps(one).encode() + b"\n" for one in (pages.with_rows(reply, []), *pages.rows_of(reply))]


def refused(error: str, *, usage: bool = False) -> list[bytes]:
    return [json.dumps({"error": error, "usage": usage}).encode() + b"\n"]


def end_with(connection: socket.socket) -> None:
    """End this process soon after the other end of its connection, which sends nothing more, is closed."""

    def check(*_: object) -> None:
        if select.select([connection], [], [], 0)[0]:
            os._exit(1)

    signal.signal(signal.SIGALRM, check)
    signal.setitimer(signal.ITIMER_REAL, CHECK_EVERY_S, CHECK_EVERY_S)
