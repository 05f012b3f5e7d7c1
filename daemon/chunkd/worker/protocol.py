"""The messages between the daemon and a worker, over one pair of stream sockets for each worker.

A job, a progress message and a finding are one line of JSON each. A job's line comes with an open descriptor of its
blob (SCM_RIGHTS, unix(7)), and never with a path. After a finding's line come the hashes and lengths of its chunks,
some recompressed lengths, and the record of a manifest, as raw bytes. Never pickle: a worker reads hostile input, and a
compromised one must not be able to run code in the daemon, hold it up, fill its memory, or make it count something
impossible.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from array import array
from dataclasses import replace
from typing import Any

from chunkd.model import CHUNK_HASH_BYTES, CODECS, Caps, ChunkParams, Digest, FileMark, Finding, Job, Recipe
from chunkd.worker import manifest_record

LENGTH_BYTES = 4
LINE_BYTES = 1 << 16
REASON_CHARACTERS = 1000
RECEIVE_BYTES = 1 << 20

# A job comes with one descriptor. The layout of such messages has room for a second one, which is refused.
DESCRIPTOR_SPACE = socket.CMSG_SPACE(array("i").itemsize)
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # which macOS does not know; a worker starts no program

# The exit code of a worker that got no memory: the number of ENOMEM.
NO_MEMORY_EXIT = 12

# The results that any job may have, and whether the bytes were read to their end: then the finding says when.
_OF_ANY_JOB = {"mismatched": True, "unreadable": False, "gone": False}
_OF_A_DECODE = _OF_ANY_JOB | {"layer": True, "other": True, "undecodable": True}
_OF_A_HASH = _OF_ANY_JOB | {"matched": True}
_KEYS = {"kind", "codec", "uncompressed_bytes", "reason", "read_until_ns", "chunks", "measured", "manifest_bytes"}
# Each thing that a record tells takes more bytes in JSON, but for a small head.
_RECORD_HEAD_BYTES = 64


def receive_line(pair: socket.socket) -> tuple[Any, int]:
    """The next line of JSON, and the descriptor that comes with it, which the caller must close. Raises EOFError when
    the other end has gone, ValueError for a line that is too long or has another number of descriptors than one.
    """
    line, descriptors = b"", array("i")
    while not line.endswith(b"\n"):
        # A file object over the socket would read the bytes and drop the descriptor that comes with the first.
        part, ancillary, flags, _ = pair.recvmsg(LINE_BYTES, DESCRIPTOR_SPACE, _CLOSE_ON_EXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not part:
            raise EOFError
        line += part
        if len(line) > LINE_BYTES or flags & socket.MSG_CTRUNC:
            raise ValueError("a job that is too long, or has more descriptors than one")
    [descriptor] = descriptors
    return json.loads(line), descriptor


class WorkersEnd:
    """A worker's end of the connection. Waits for the daemon without a limit. Raises EOFError or ConnectionError when
    the daemon has gone, ValueError for a message that no daemon sends.
    """

    def __init__(self, pair: socket.socket) -> None:
        self._socket = pair

    def receive_job(self) -> tuple[Job, int]:
        """The next job, whose mark has only the size, and the descriptor of its blob, which the caller must close."""
        (algorithm, hex_digits, stored_bytes, decode, relayed), descriptor = receive_line(self._socket)
        return Job(Digest(algorithm, hex_digits), FileMark(0, 0, stored_bytes, 0), decode, relayed), descriptor

    def send_progress(self, read_bytes: int) -> None:
        """How many stored bytes of the job in hand have been read. It also shows that the worker lives."""
        self._socket.sendall(_line({"read_bytes": read_bytes}))

    def send_finding(self, finding: Finding) -> None:
        head = {
            "kind": finding.kind,
            "codec": finding.codec,
            "uncompressed_bytes": finding.uncompressed_bytes,
            "reason": finding.reason,
            "read_until_ns": finding.read_until_ns,
            "chunks": len(finding.recipe),
            "measured": len(finding.recipe.measured) // LENGTH_BYTES,
            "manifest_bytes": len(finding.manifest),
        }
        recipe = finding.recipe
        said = (_line(head), recipe.hashes, recipe.lengths, recipe.measured, finding.manifest)
        parts = [memoryview(part) for part in said]
        # In one call as far as there is room: the daemon wakes up at the first byte, and goes before this process.
        sent_bytes = self._socket.sendmsg(parts)
        for part in parts:
            if sent_bytes < len(part):
                self._socket.sendall(part[sent_bytes:])
            sent_bytes = max(0, sent_bytes - len(part))


class DaemonsEnd:
    """The daemon's end of the connection to a worker that cuts by `params` and decodes within `caps`. Never waits."""

    def __init__(self, pair: socket.socket, params: ChunkParams, caps: Caps) -> None:
        pair.setblocking(False)
        self._socket, self._params, self._caps = pair, params, caps
        self._heard = bytearray()
        self._finding: Finding | None = None  # its recipe is not complete yet
        self._wanted_bytes: tuple[int, ...] = ()  # of hashes, lengths, recompressed lengths, and a manifest's record

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send_job(self, job: Job, descriptor: int) -> None:
        """Send a job and the open descriptor of its blob, which the caller keeps too.

        Raises ConnectionError when the worker has gone, BlockingIOError when it does not read, and other OSErrors.
        """
        line = _line([*job.digest, job.mark.stored_bytes, job.decode, job.relayed])
        if socket.send_fds(self._socket, [line], [descriptor]) < len(line):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def read(self) -> None:
        """Read a part of what has been sent. Raises EOFError when the worker has died, and OSErrors."""
        with contextlib.suppress(BlockingIOError):
            heard = self._socket.recv(RECEIVE_BYTES)
            if not heard:
                raise EOFError
            self._heard += heard

    def word(self, job: Job | None) -> int | Finding | None:
        """The next whole message about the job in hand: the stored bytes read so far, or the finding. None if there is
        none yet. Raises ValueError for a message that no worker sends. Never holds more than a recipe's bytes.
        """
        if job is None and self._heard:
            raise ValueError("a word without a job")
        if self._finding is None:
            end = self._heard.find(b"\n", 0, LINE_BYTES)
            if end < 0:
                if len(self._heard) >= LINE_BYTES:
                    raise ValueError(f"a line of more than {LINE_BYTES} bytes")
                return None
            line = self._take(end + 1)
            assert job is not None  # or nothing was heard
            said = _parsed(line)
            if said.keys() == {"read_bytes"}:
                return _number(said["read_bytes"])
            self._finding, chunks, measured = self._checked(said, job)
            of_recipe = chunks * CHUNK_HASH_BYTES, chunks * LENGTH_BYTES, measured * LENGTH_BYTES
            self._wanted_bytes = *of_recipe, _number(said["manifest_bytes"])
        if len(self._heard) < sum(self._wanted_bytes):
            return None
        finding, self._finding = self._finding, None
        hashes, lengths, recompressed, manifest = map(self._take, self._wanted_bytes)
        manifest_record.check(manifest, finding.reason if finding.kind == "other" else "")
        if not any(self._wanted_bytes):
            return finding
        return replace(finding, recipe=Recipe(hashes, lengths, recompressed), manifest=manifest)

    def _take(self, count: int) -> bytes:
        taken = bytes(memoryview(self._heard)[:count])
        del self._heard[:count]
        return taken

    def _checked(self, said: dict[str, Any], job: Job) -> tuple[Finding, int, int]:
        """A finding whose recipe is still to come, its number of chunks, and how many of them are measured."""
        if said.keys() != _KEYS:
            raise ValueError("a finding with other keys")
        kind, codec, reason = said["kind"], said["codec"], said["reason"]
        kinds = _OF_A_DECODE if job.decode else _OF_A_HASH
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"a finding of another kind than {', '.join(kinds)}")
        if not isinstance(codec, str) or codec not in CODECS or bool(codec) != (kind in ("layer", "undecodable")):
            raise ValueError(f"{kind}, and a codec that does not go with it")
        # The reason is shown in the log and on terminals.
        if not isinstance(reason, str) or len(reason) > REASON_CHARACTERS or not reason.isprintable():
            raise ValueError("a reason that can't be shown")
        read_until_ns = _number(said["read_until_ns"])
        if bool(read_until_ns) != kinds[kind]:
            raise ValueError(f"{kind}, and a time of reading that does not go with it")
        uncompressed_bytes, chunks = _number(said["uncompressed_bytes"]), _number(said["chunks"])
        measured = _number(said["measured"])
        if measured > chunks:
            raise ValueError(f"{measured} measured of {chunks} chunks")
        if _number(said["manifest_bytes"]) > (kind == "other") * (job.mark.stored_bytes + _RECORD_HEAD_BYTES):
            raise ValueError(f"{kind}, and a record of a manifest that does not go with it")
        if kind == "layer":
            self._check_layer(job, uncompressed_bytes, chunks)
        elif uncompressed_bytes or chunks:
            raise ValueError(f"{kind}, with chunks")
        return Finding(kind, codec, uncompressed_bytes, reason, read_until_ns), chunks, measured

    def _check_layer(self, job: Job, uncompressed_bytes: int, chunks: int) -> None:
        # The opener reports the size, not the worker. Size and caps together bound what is held here.
        most_bytes = self._caps.most_uncompressed_bytes(job.mark.stored_bytes)
        if not 0 < uncompressed_bytes <= most_bytes:
            raise ValueError(f"{uncompressed_bytes} bytes uncompressed of at most {most_bytes}")
        most = self._caps.most_chunks_of(uncompressed_bytes, self._params)
        if not 0 < chunks <= most:
            raise ValueError(f"{chunks} chunks of at most {most}")


def _line(said: object) -> bytes:
    return json.dumps(said).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except RecursionError as error:
        raise ValueError("a line of JSON that is nested too deeply") from error
    if not isinstance(said, dict):
        raise ValueError("a line that is no JSON object")
    return said


def _number(value: object) -> int:
    """A u64, the largest that the index can hold. JSON's true is refused, though Python counts it as a number."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise ValueError("a number out of bounds")
    return value
