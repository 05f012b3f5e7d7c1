"""The sweep's end of the connection to a worker: what it says is checked, and its blocks go to the layer's result."""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

from chunkd.model import CHUNK_HASH_BYTES, ChunkParams, Finding, Job
from chunkd.sweep.messages import (
    BLOCK,
    FOUND,
    FRAME,
    LEAST_BYTES_A_CHUNK,
    MOST_BLOCK_CHUNKS,
    MOST_FOUND_BYTES,
    PROGRESS,
    Block,
    LayerFinding,
    SweepJob,
    finding_of,
)
from chunkd.sweep.results import Draft, Results
from chunkd.untrusted_json import parse
from chunkd.worker.protocol import LENGTH_BYTES, DaemonsEnd


class SweepsEnd(DaemonsEnd):
    """The sweep's end of the connection to a worker. Never waits."""

    def __init__(self, pair: socket.socket, results: Results) -> None:
        super().__init__(pair, ChunkParams(), results.question.caps)
        self._results, self._rules = results, len(results.question.rules)
        self._draft: Draft | None = None
        self._blocks_bytes_left = 0

    def close(self) -> None:
        super().close()
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def send_job(self, job: Job, descriptor: int) -> None:
        assert isinstance(job, SweepJob)
        said = [*job.digest, job.mark.stored_bytes, job.level_19_s, job.shifts]
        line = json.dumps(said).encode() + b"\n"
        if socket.send_fds(self._socket, [line], [descriptor]) < len(line):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        most_chunks = 2 + self._caps.most_uncompressed_bytes(job.mark.stored_bytes) // LEAST_BYTES_A_CHUNK
        self._blocks_bytes_left = self._rules * most_chunks * (CHUNK_HASH_BYTES + 2 * LENGTH_BYTES)
        self._draft = self._results.draft(job.digest)

    def word(self, job: Job | None) -> int | Finding | None:
        """The next progress, or the finding; blocks are written away. Raises ValueError for what no worker sends."""
        if self._heard and (job is None or self._draft is None):
            raise ValueError("a word without a job")
        while len(self._heard) >= FRAME.size:
            assert self._draft is not None
            assert isinstance(job, SweepJob)
            kind, rule, count, measured = FRAME.unpack_from(self._heard)
            if kind == PROGRESS:
                self._take(FRAME.size)
                return int(count)
            if kind == BLOCK:
                if rule >= self._rules or count > MOST_BLOCK_CHUNKS or measured > count:
                    raise ValueError("a block that is too large, or of no rule")
                block = Block(rule, count, measured)
                if len(self._heard) < FRAME.size + block.size:
                    return None
                self._take(FRAME.size)
                self._blocks_bytes_left -= block.size
                if self._blocks_bytes_left < 0:
                    raise ValueError("more chunks than the layer can have")
                chunks = self._take(block.size)
                if measured != self._results.question.measure.picked(chunks[: count * CHUNK_HASH_BYTES]):
                    raise ValueError("a block in which others are measured than those that the rule picks")
                self._draft.add(block, chunks)
                continue
            if kind != FOUND or count > MOST_FOUND_BYTES:
                raise ValueError("a message of another kind")
            if len(self._heard) < FRAME.size + count:
                return None
            self._take(FRAME.size)
            found = self._found(parse(self._take(count), MOST_FOUND_BYTES), job)
            self._draft.end(job, found)
            self._draft = None
            return found
        return None

    def _found(self, said: Any, job: SweepJob) -> LayerFinding:
        found = finding_of(said, self._rules)
        most_bytes = self._caps.most_uncompressed_bytes(job.mark.stored_bytes)
        if found.uncompressed_bytes > most_bytes:
            raise ValueError(f"{found.uncompressed_bytes} bytes uncompressed of at most {most_bytes}")
        assert self._draft is not None
        for totals, kept in zip(found.totals, self._draft.kept, strict=bool(found.totals)):
            if totals.bytes != found.uncompressed_bytes or not kept <= totals.chunks - totals.holes:
                raise ValueError("chunks that do not add up to the layer")
        return found
