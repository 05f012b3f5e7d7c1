"""One layer to its recipe and its trace, in a confined process of its own."""

from __future__ import annotations

import os
import socket
from typing import Any

from blake3 import blake3

from chunkd.chunkers.gear import Chunker
from chunkd.model import Caps, ChunkParams, Recipe
from chunkd.sweep.messages import asker
from chunkd.sweep.tar_stream import DIRECTORY, FILE, MOST_PATH_BYTES, SPARSE, TarEntry, TarStream
from chunkd.where import trace
from chunkd.where.packages import MOST_LIST_BYTES, is_list, listed_path, owners, plain_path
from chunkd.where.trace import FILE_HASH_BYTES, NO_CONTENT, Trace
from chunkd.worker import priority, protocol, sandbox
from chunkd.worker.examine import examine
from chunkd.worker.rate_limit import Pace

# What a trace takes while it is made, beside what any worker may take.
TRACE_MEMORY_BYTES = 3 * trace.MOST_TRACE_BYTES + 4 * MOST_LIST_BYTES
LENGTH_BYTES = 8


class Tracer:
    """Takes a layer's bytes for both its recipe and its trace, as `examine` wants it."""

    def __init__(self, params: ChunkParams) -> None:
        self._chunker = Chunker(params)
        self._tar = TarStream()
        self._trace = Trace()
        self._at = 0  # of the buffer, in the stream
        self._entry: TarEntry | None = None
        self._is_over = False
        self._hash: blake3 | None = None  # of the content in hand
        self._content = NO_CONTENT
        self._text: bytearray | None = None  # of the list in hand
        self._texts: dict[bytes, bytes] = {}
        self._list_bytes_left = MOST_LIST_BYTES
        self._paths_bytes_left = trace.MOST_PATHS_BYTES
        self._is_directory = bytearray()

    @property
    def chunks(self) -> int:
        """How many chunks have ended."""
        return self._chunker.chunks

    def feed(self, data: memoryview) -> None:
        """Take in the layer's next bytes."""
        self._chunker.feed(data)
        if not self._is_over:
            self._follow(data)
        self._at += len(data)

    def finish(self) -> Recipe:
        """The recipe. The trace is whole then."""
        return self._chunker.finish()

    def trace(self) -> Trace:
        """Of all that was fed. To be called once, at the end."""
        self._tar.finish()
        self._close()
        if not self._is_over:
            self._trace.end = self._at
        self._trace.damaged = self._trace.damaged or self._tar.damaged
        self._own()
        return self._trace

    def _follow(self, data: memoryview) -> None:
        for begin, end, entry, is_payload, ends in self._tar.feed(data):
            if entry is not self._entry:
                self._close()
                self._entry = entry
            if entry is None and not self._is_over:
                self._stop(self._at + begin)
            if self._is_over:
                self._entry = None
                return
            if is_payload and entry is not None:
                self._take(entry, data[begin:end], ends=ends)

    def _take(self, entry: TarEntry, piece: memoryview, *, ends: bool) -> None:
        if self._hash is None:
            self._hash = blake3(piece)
            if entry.kind == FILE and is_list(plain_path(entry.path)) and entry.payload_bytes <= self._list_bytes_left:
                self._text = bytearray(piece)
                self._list_bytes_left -= entry.payload_bytes
        else:
            self._hash.update(piece)
            if self._text is not None:
                self._text += piece
        if ends and entry.kind in (FILE, SPARSE):
            self._content = self._hash.digest(FILE_HASH_BYTES)
            if self._text is not None:
                self._texts[plain_path(entry.path)] = bytes(self._text)

    def _stop(self, end: int, damaged: str = "") -> None:
        self._is_over = True
        self._trace.end, self._trace.damaged = end, damaged

    def _close(self) -> None:
        """The entry in hand has ended."""
        entry, self._entry = self._entry, None
        if entry is None:
            return
        path = plain_path(entry.path)
        self._paths_bytes_left -= len(path)
        if not entry.kind:
            self._stop(entry.begin)
        elif len(self._trace.begins) >= trace.MOST_ENTRIES or self._paths_bytes_left < 0:
            self._stop(entry.begin, "it has too many files, or too long paths")
        else:
            self._trace.begins.append(entry.begin)
            self._trace.hashes += self._content
            self._trace.paths.append(path)
            self._is_directory.append(entry.kind == DIRECTORY)
        self._hash = self._text = None
        self._content = NO_CONTENT

    def _own(self) -> None:
        """Look up each file in the layer's own lists. What these say of other files goes along."""
        found = self._trace
        found.packages, of_path = owners(self._texts)
        unseen = dict(of_path)
        for path, is_directory in zip(found.paths, self._is_directory, strict=True):
            owner = -1
            if of_path and not is_directory:
                path = listed_path(path)
                owner = of_path.get(path, -1)
                unseen.pop(path, None)
            found.owners.append(owner + 1)
        left = trace.MOST_PATHS_BYTES
        for path, owner in unseen.items():
            left -= len(path)
            if len(path) <= MOST_PATH_BYTES and left >= 0:
                found.listed.append(path)
                found.listed_owners.append(owner)


def main(connection: socket.socket, asked: dict[str, Any]) -> None:
    """Serve jobs as `examine.main` does. Behind the finding of a layer comes its trace, its length in front."""
    params, caps, pace = ChunkParams(**asked["params"]), Caps(**asked["caps"]), Pace(asked["read_bytes_per_s"])
    priority.ask_of(os.getpid(), asked["nice"], asked["io_priority"])
    ours = protocol.WorkersEnd(connection)

    def progress(read_bytes: int) -> None:
        with asker():
            ours.send_progress(read_bytes)

    sandbox.give_up_rights()
    while True:
        with asker():
            job, descriptor = ours.receive_job()
        sandbox.limit_memory(sandbox.memory_bytes(job.mark.stored_bytes, params, caps) + TRACE_MEMORY_BYTES)
        tracer = Tracer(params)
        try:
            finding = examine(job, descriptor, params, caps, progress, pace, cutter=tracer)
            packed = trace.pack(tracer.trace()) if finding.kind == "layer" else b""
            with asker():
                ours.send_finding(finding)
                if finding.kind == "layer":
                    connection.sendall(len(packed).to_bytes(LENGTH_BYTES, "little") + packed)
        except MemoryError:
            os._exit(protocol.NO_MEMORY_EXIT)
