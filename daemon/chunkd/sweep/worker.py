"""One layer to its result, in a confined process of its own: decoded once, and fed to all rules at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from chunkd.chunkers import profiles
from chunkd.chunkers.chunker import HOLE
from chunkd.model import CHUNK_HASH_BYTES, Caps, ChunkParams, Finding, MeasureRule, Recipe
from chunkd.sweep.messages import MOST_BLOCK_CHUNKS, LayerFinding, SweepJob, Totals, WorkersEnd, asker, finding_json
from chunkd.sweep.tar_stream import TarStream
from chunkd.worker import priority, protocol, sandbox
from chunkd.worker.examine import examine
from chunkd.worker.protocol import LENGTH_BYTES
from chunkd.worker.rate_limit import Pace
from chunkd.worker.recompress import Recompressor, StreamLength

MEMORY_BYTES = 256 << 20
# So often the chunks that have ended are sent away.
_DRAIN_BYTES = 16 << 20
# Level 19 is given up after so many times a layer's share of the time. A share of a small layer is a tenth of a second,
# which the first use of 90 MB of tables, or a neighbour on the processor, may take alone.
_LEVEL_19_PATIENCE = 5

SendBlock = Callable[[int, Recipe], None]


class Cutters:
    """Feeds a layer to all rules, and to `whole`, in the form that `examine` needs of a chunker. The chunks that they
    keep go to `send`.

    A rule that cuts each file by itself gets the payloads of the tar's files. All else of the tar, headers and padding,
    is one chunk more of the layer, the same for all these rules.
    """

    chunks = 0  # for `examine`, which has no bound of its own here

    def __init__(
        self, rules: tuple[profiles.Profile, ...], job: SweepJob, measure: MeasureRule, send: SendBlock,
        whole: Sequence[StreamLength] = (),
    ) -> None:  # fmt: skip
        recompressor, self._whole = Recompressor(measure), whole
        self._send, self._shifts, self._threshold = send, job.shifts or (0,) * len(rules), measure.threshold
        self._streams = [(at, rule.chunker(recompressor)) for at, rule in enumerate(rules) if not rule.per_file]
        self._files = [(at, rule.file_chunker(recompressor)) for at, rule in enumerate(rules) if rule.per_file]
        self._tar = TarStream()
        self._rest = profiles.named("files").file_chunker(recompressor)
        self.totals = [Totals()] * len(rules)
        self._undrained_bytes = 0

    @property
    def damaged(self) -> str:
        return self._tar.damaged if self._files else ""

    def feed(self, data: memoryview) -> None:
        for stream in self._whole:
            stream.feed(data)
        for _, chunker in self._streams:
            chunker.feed(data)
        if self._files:
            self._feed_files(data)
        self._undrained_bytes += len(data)
        if self._undrained_bytes >= _DRAIN_BYTES:
            self._undrained_bytes = 0
            for at, chunker in (*self._streams, *self._files):
                self._keep(at, chunker.drain())

    def _feed_files(self, data: memoryview) -> None:
        for begin, end, _, is_payload, ends in self._tar.feed(data):
            if not is_payload:
                self._rest.feed(data[begin:end])
                continue
            piece = data[begin:end]
            for _, chunker in self._files:
                chunker.feed(piece)
                if ends:
                    chunker.end_file()

    def finish(self) -> Recipe:
        """The last chunks go to `send`; there is no recipe."""
        if self._files:
            self._tar.finish()
        rest = self._rest.finish()
        for at, chunker in self._streams:
            self._keep(at, chunker.finish())
        for at, chunker in self._files:
            self._keep(at, chunker.finish())
            self._keep(at, rest)
        return Recipe()

    def _keep(self, rule: int, chunks: Recipe) -> None:
        """Count these chunks, and send those that are kept: not holes, and by the threshold."""
        count = len(chunks)
        if not count:
            return
        lengths = memoryview(chunks.lengths).cast("I")
        hole_bytes = holes = 0
        kept = chunks
        if self._shifts[rule] or HOLE in chunks.hashes:
            kept, holes, hole_bytes = self._filtered(chunks, lengths, self._shifts[rule])
        self.totals[rule] = self.totals[rule].plus(Totals(count, sum(lengths), holes, hole_bytes))
        if len(kept):
            assert len(kept) <= MOST_BLOCK_CHUNKS
            self._send(rule, kept)

    def _filtered(self, chunks: Recipe, lengths: memoryview, shift: int) -> tuple[Recipe, int, int]:
        hashes, measured = chunks.hashes, memoryview(chunks.measured).cast("I")
        kept_hashes, kept_lengths, kept_measured = bytearray(), bytearray(), bytearray()
        holes = hole_bytes = at_measured = 0
        for at, length in enumerate(lengths):
            name = hashes[at * CHUNK_HASH_BYTES : (at + 1) * CHUNK_HASH_BYTES]
            is_measured = name[14] | name[15] << 8 < self._threshold
            if name == HOLE:
                holes, hole_bytes = holes + 1, hole_bytes + length
            elif not int.from_bytes(name[:8], "big") >> (64 - shift):
                kept_hashes += name
                kept_lengths += length.to_bytes(LENGTH_BYTES, "little")
                if is_measured:
                    kept_measured += measured[at_measured].to_bytes(LENGTH_BYTES, "little")
            at_measured += is_measured
        return Recipe(bytes(kept_hashes), bytes(kept_lengths), bytes(kept_measured)), holes, hole_bytes


def swept(
    job: SweepJob, descriptor: int, rules: tuple[profiles.Profile, ...], measure: MeasureRule, caps: Caps,
    send: SendBlock, progress: Callable[[int], object], pace: Pace | None = None, *, baselines: bool = True,
) -> LayerFinding:  # fmt: skip
    """What one layer is found to be, its chunks by all rules given to `send`. Closes the descriptor. As `examine`."""
    level_3 = StreamLength(3) if baselines else None
    level_19 = StreamLength(19, _LEVEL_19_PATIENCE * job.level_19_s) if baselines and job.level_19_s else None
    cutters = Cutters(rules, job, measure, send, [stream for stream in (level_3, level_19) if stream])
    found: Finding = examine(job, descriptor, ChunkParams(), caps, progress, pace, cutter=cutters)
    if found.kind != "layer":
        return LayerFinding(found.kind, found.codec, reason=found.reason)
    return LayerFinding(
        "layer", found.codec, found.uncompressed_bytes, totals=tuple(cutters.totals), damaged=cutters.damaged,
        zstd_3_bytes=level_3.finish() if level_3 else None, zstd_19_bytes=level_19.finish() if level_19 else None,
        level_19_ms=round(1000 * level_19.spent_s) if level_19 else 0,
    )  # fmt: skip


def main(connection: socket.socket, asked: dict[str, Any]) -> None:
    """Serve jobs until the sweep has gone. A lack of memory ends the process with the exit code for that."""
    rules = profiles.parse(",".join(asked["rules"]))
    measure, caps = MeasureRule(**asked["measure"]), Caps(**asked["caps"])
    pace = Pace(asked["read_bytes_per_s"])
    priority.ask_of(os.getpid(), asked["nice"], asked["io_priority"])
    sweep = WorkersEnd(connection)

    def progress(read_bytes: int) -> None:
        with asker():
            sweep.send_progress(read_bytes)

    def send(rule: int, chunks: Recipe) -> None:
        with asker():
            sweep.send_block(rule, chunks)

    sandbox.give_up_rights()
    sandbox.limit_memory(MEMORY_BYTES)
    while True:
        with asker():
            job, descriptor = sweep.receive_job()
        try:
            found = swept(job, descriptor, rules, measure, caps, send, progress, pace, baselines=asked["baselines"])
            with asker():
                sweep.send_found(finding_json(found))
        except MemoryError:
            os._exit(protocol.NO_MEMORY_EXIT)
