"""The messages between a sweep and one of its workers, over one pair of stream sockets for each worker.

A job is a line of JSON that comes with an open descriptor of its layer. A worker answers in frames: progress, blocks of
chunks, and at the end what it found, in JSON. A worker reads hostile input, so what it says is checked, and its blocks
are written to the layer's result as they come: neither side holds more than one.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from chunkd.model import CHUNK_HASH_BYTES, CODECS, Digest, FileMark, Finding, Job, Recipe
from chunkd.worker.protocol import LENGTH_BYTES, REASON_CHARACTERS, receive_line

# Which message, of which rule, and two numbers: bytes read; the chunks of a block and how many of them are measured;
# the length of a finding.
FRAME = struct.Struct("<BHQQ")
PROGRESS, BLOCK, FOUND = range(3)
MOST_BLOCK_CHUNKS = 1 << 20
MOST_FOUND_BYTES = 1 << 20
# As many as a layer can have at most: in a tar each file has a header, and no rule cuts shorter chunks of one file.
LEAST_BYTES_A_CHUNK = 256


@dataclass(frozen=True, slots=True)
class SweepJob(Job):
    """`level_19_s` is how long this layer is meant to be compressed at level 19; 0 for not at all. The worker keeps the
    chunks of a rule whose hash begins with as many zero bits as `shifts` has for it.
    """

    level_19_s: float = 0.0
    shifts: tuple[int, ...] = ()


class Totals(NamedTuple):
    """Of a rule in one layer: all its chunks, their bytes, and of these those in holes, which are stored nowhere."""

    chunks: int = 0
    bytes: int = 0
    holes: int = 0
    hole_bytes: int = 0

    def plus(self, other: Totals) -> Totals:
        return Totals(*(one + another for one, another in zip(self, other, strict=True)))


class Block(NamedTuple):
    """Some chunks of a rule, and how many of them are measured."""

    rule: int
    chunks: int
    measured: int

    @property
    def size(self) -> int:
        return self.chunks * (CHUNK_HASH_BYTES + LENGTH_BYTES) + self.measured * LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class LayerFinding(Finding):
    """What a worker found, with the totals of each rule. `zstd_3_bytes` and `zstd_19_bytes` are the whole layer as one
    frame, None where that was not tried or took too long. `level_19_ms` is the processor's time for the latter.
    `damaged` says why its tar can't be read on.
    """

    totals: tuple[Totals, ...] = ()
    zstd_3_bytes: int | None = None
    zstd_19_bytes: int | None = None
    level_19_ms: int = 0
    damaged: str = ""


@contextlib.contextmanager
def asker() -> Iterator[None]:
    """Ends this worker when nobody asks any more. It raises SystemExit, which nobody takes for an error of the file."""
    try:
        yield
    except (EOFError, ConnectionError):
        sys.exit(0)


class WorkersEnd:
    """A worker's end. Raises EOFError or ConnectionError when the sweep has gone."""

    def __init__(self, pair: socket.socket) -> None:
        self._socket = pair

    def receive_job(self) -> tuple[SweepJob, int]:
        """The next job, and the descriptor of its layer, which the caller must close."""
        (algorithm, hex_digits, stored_bytes, level_19_s, shifts), descriptor = receive_line(self._socket)
        mark = FileMark(0, 0, stored_bytes, 0)
        job = SweepJob(Digest(algorithm, hex_digits), mark, level_19_s=level_19_s, shifts=tuple(shifts))
        return job, descriptor

    def send_progress(self, read_bytes: int) -> None:
        self._socket.sendall(FRAME.pack(PROGRESS, 0, read_bytes, 0))

    def send_block(self, rule: int, chunks: Recipe) -> None:
        head = FRAME.pack(BLOCK, rule, len(chunks), len(chunks.measured) // LENGTH_BYTES)
        self._socket.sendall(b"".join((head, chunks.hashes, chunks.lengths, chunks.measured)))

    def send_found(self, found: dict[str, Any]) -> None:
        said = json.dumps(found).encode()
        self._socket.sendall(FRAME.pack(FOUND, 0, len(said), 0) + said)


def finding_json(found: LayerFinding) -> dict[str, Any]:
    return {
        "kind": found.kind, "codec": found.codec, "reason": found.reason, "damaged": found.damaged,
        "uncompressed_bytes": found.uncompressed_bytes, "totals": found.totals,
        "zstd_3_bytes": found.zstd_3_bytes, "zstd_19_bytes": found.zstd_19_bytes, "level_19_ms": found.level_19_ms,
    }  # fmt: skip


def finding_of(said: Any, rules: int) -> LayerFinding:
    """Raises ValueError for what `finding_json` does not make."""
    if not isinstance(said, dict) or said.keys() != finding_json(LayerFinding("")).keys():
        raise ValueError("a finding with other keys")
    is_layer = said["kind"] == "layer"
    kinds = ("layer", "other", "mismatched", "undecodable", "unreadable", "gone")
    if said["kind"] not in kinds or said["codec"] not in CODECS:
        raise ValueError("a finding of another kind")
    for text in (said["reason"], said["damaged"]):
        if not isinstance(text, str) or len(text) > REASON_CHARACTERS or not text.isprintable():
            raise ValueError("a reason that can't be shown")
    totals = said["totals"]
    if not isinstance(totals, list) or len(totals) != (rules if is_layer else 0):
        raise ValueError("totals of other rules")
    rows = tuple(Totals(*map(_number, row)) for row in totals if isinstance(row, list) and len(row) == len(Totals()))
    if len(rows) != len(totals):
        raise ValueError("totals of other things")
    sizes = [None if said[name] is None else _number(said[name]) for name in ("zstd_3_bytes", "zstd_19_bytes")]
    if 0 in sizes:
        raise ValueError("a frame of no bytes")
    return LayerFinding(
        said["kind"], said["codec"], _number(said["uncompressed_bytes"]), said["reason"], totals=rows,
        zstd_3_bytes=sizes[0], zstd_19_bytes=sizes[1], level_19_ms=_number(said["level_19_ms"]),
        damaged=said["damaged"],
    )  # fmt: skip


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError("a number out of bounds")
    return value
