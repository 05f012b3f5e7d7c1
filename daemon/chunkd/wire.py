"""What the daemon and its workers say to one another, over one `multiprocessing.connection.Connection` a worker.

A job and a finding are JSON, a finding's hashes and lengths follow as they are. Never pickle: a worker reads hostile
input, and what it sends must not be able to run in the daemon.
"""

from __future__ import annotations

import json
import socket
import struct
from multiprocessing.connection import Connection
from typing import Any

from chunkd.model import CHUNK_HASH_BYTES, Digest, FileMark, Finding, Job, Recipe

# How long one end waits for the rest of a message whose begin has come, or for room to send one.
MESSAGE_S = 5
HEAD_BYTES = 1 << 16


def daemons_end(pair: socket.socket) -> Connection:
    """One of a pair of sockets as the daemon's connection, on which no message takes longer than `MESSAGE_S`."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        pair.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", MESSAGE_S, 0))
    return Connection(pair.detach())


def send_job(connection: Connection, job: Job) -> None:
    connection.send_bytes(json.dumps([*job.digest, job.path, job.decode]).encode())


def receive_job(connection: Connection) -> Job:
    """The next job. Raises EOFError when the daemon has gone."""
    algorithm, hex_digits, path, decode = json.loads(connection.recv_bytes())
    return Job(Digest(algorithm, hex_digits), path, decode)


def send_progress(connection: Connection, read_bytes: int) -> None:
    """How many stored bytes of the job in hand have been read: proof of life, and a progress bar's food."""
    connection.send_bytes(json.dumps({"read_bytes": read_bytes}).encode())


def send_finding(connection: Connection, finding: Finding) -> None:
    head: dict[str, Any] = {
        "kind": finding.kind,
        "mark": finding.mark,
        "codec": finding.codec,
        "uncompressed_bytes": finding.uncompressed_bytes,
        "reason": finding.reason,
    }
    connection.send_bytes(json.dumps(head).encode())
    connection.send_bytes(finding.recipe.hashes)
    connection.send_bytes(finding.recipe.lengths)


def receive(connection: Connection) -> int | Finding:
    """A worker's next word: the bytes it has read so far, or its finding.

    Raises EOFError when it has died, ValueError when it sends what no worker does, BlockingIOError when it stops in the
    middle of a word, and other OSErrors.
    """
    head = json.loads(connection.recv_bytes(HEAD_BYTES))
    if "read_bytes" in head:
        return int(head["read_bytes"])
    recipe = Recipe(connection.recv_bytes(), connection.recv_bytes())
    if len(recipe.lengths) % 4 or len(recipe.hashes) % CHUNK_HASH_BYTES:
        raise ValueError(f"a recipe of {len(recipe.hashes)} and {len(recipe.lengths)} bytes")
    try:
        head["mark"] = FileMark(*head["mark"]) if head["mark"] else None
        return Finding(**head, recipe=recipe)
    except TypeError as error:
        raise ValueError(str(error)) from error
