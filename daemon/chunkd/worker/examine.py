"""Examines one blob: reads, decodes, cuts and verifies it in one pass. The finding depends on its bytes alone.

`main` serves jobs in a process of its own (`starter`). A decoder that crashes or runs out of memory ends this process
and costs one blob, not the daemon.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from chunkd.chunkers.gear import Chunker
from chunkd.errors import BlobUndecodable
from chunkd.model import Caps, ChunkParams, Finding, Job, MeasureRule, Recipe
from chunkd.worker import magic, manifest, manifest_record, protocol, sandbox
from chunkd.worker.decode import BUFFER_BYTES, Source, buffers
from chunkd.worker.page_cache import CacheNeutralFile
from chunkd.worker.pipeline import Relay
from chunkd.worker.rate_limit import Pace
from chunkd.worker.recompress import Recompressor

_PROGRESS_S = 0.5

_CHANGED = "changed while it was read"

# From this size on, a second thread for cutting and hashing is worth it.
RELAYED_FROM_BYTES = 1 << 20


class Cutter(Protocol):
    """What takes a layer's bytes and makes a recipe of them, as `Chunker` does."""

    @property
    def chunks(self) -> int: ...
    def feed(self, buffer: memoryview, /) -> None: ...
    def finish(self) -> Recipe: ...


class _Longer(Exception):
    """The file has more bytes than its opener saw, so this reading can't count: a reader does not chase a writer."""


def examine(
    job: Job,
    descriptor: int,
    params: ChunkParams,
    caps: Caps,
    progress: Callable[[int], object],
    pace: Pace | None = None,
    *,
    measure: Recompressor | None = None,
    cutter: Cutter | None = None,
) -> Finding:
    """The finding about the bytes behind the descriptor, read in one pass. Closes the descriptor, which may be that of
    a blocking pipe.

    The finding is the same whether or not the job is `relayed`, and at whatever `pace` the file is read. Chunks are
    measured by the default rule unless `measure` has another, and `cutter` takes the place of the chunker. `progress`
    is called with the stored bytes read so far, about twice a second at most; an exception from it is passed on unless
    it is an OSError. Raises MemoryError when a decoder gets no memory.
    """
    try:
        with CacheNeutralFile(descriptor, job.mark.stored_bytes) as file:
            if job.mark.stored_bytes > caps.uncompressed_bytes:
                return Finding("unreadable", reason=f"larger than max_uncompressed_bytes = {caps.uncompressed_bytes}")

            def check(read_bytes: int) -> None:
                if read_bytes > job.mark.stored_bytes:
                    raise _Longer
                report(read_bytes)

            def live(read_bytes: int) -> None:
                if not os.fstat(descriptor).st_nlink:
                    raise FileNotFoundError  # an unlinked file can't count any more: stop reading
                progress(read_bytes)

            report = pace.paced(_seldom(live)) if pace else _seldom(live)
            chunker = cutter or Chunker(params, measure=measure or Recompressor(MeasureRule()))
            return _read(file, job, params, chunker, caps, check)
    except _Longer:
        return Finding("mismatched", reason=_CHANGED, read_until_ns=time.time_ns())
    except FileNotFoundError:
        return Finding("gone")
    except OSError as error:
        if error.errno is None:  # not from the system, so a bug
            raise
        return Finding("unreadable", reason=os.strerror(error.errno))


def _seldom(progress: Callable[[int], object]) -> Callable[[int], None]:
    next_s = time.monotonic() + _PROGRESS_S

    def report(read_bytes: int) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if now_s >= next_s:
            next_s = now_s + _PROGRESS_S
            progress(read_bytes)

    return report


def _read(
    file: io.FileIO,
    job: Job,
    params: ChunkParams,
    chunker: Cutter,
    caps: Caps,
    report: Callable[[int], None],
) -> Finding:
    source = Source(file, job.digest.algorithm, report)
    codec = source.codec
    buffer = bytearray(BUFFER_BYTES)
    uncompressed_bytes = 0
    failure: BlobUndecodable | None = None
    most_chunks = caps.most_chunks(params)
    if job.decode:
        try:
            with contextlib.ExitStack() as stack:
                large = job.relayed and job.mark.stored_bytes >= RELAYED_FROM_BYTES
                relay = stack.enter_context(Relay(chunker.feed)) if large else None
                take, hand = (relay.take, relay.hand) if relay else ((lambda: buffer), chunker.feed)
                for data in buffers(source, take, caps, job.mark.stored_bytes):
                    hand(data)
                    uncompressed_bytes += len(data)
                    report(source.read_bytes)
                    if chunker.chunks > most_chunks:
                        break
        except BlobUndecodable as error:
            failure = error
    document = b""
    if job.decode and source.codec == "other" and manifest.may_be_one(source.head, job.mark.stored_bytes):
        document = source.read_whole(job.mark.stored_bytes)
    # To the file's end even after a failure: a mismatch with the name outranks it, as a writer may be busy.
    source.drain(buffer)
    until_ns = time.time_ns()

    if source.hexdigest() != job.digest.hex:
        return Finding("mismatched", read_until_ns=until_ns)
    if source.grew or source.read_bytes != job.mark.stored_bytes:
        # The decoder may have met the end of the file before the writer was done.
        return Finding("mismatched", reason=_CHANGED, read_until_ns=until_ns)
    if not job.decode:
        return Finding("matched", read_until_ns=until_ns)
    if failure is not None:
        return Finding("undecodable", codec=failure.codec, reason=failure.reason, read_until_ns=until_ns)
    recipe = chunker.finish()
    if len(recipe) > most_chunks:
        most = f"more than {most_chunks} chunks, the most for max_uncompressed_bytes = {caps.uncompressed_bytes}"
        return Finding("undecodable", codec=codec, reason=most, read_until_ns=until_ns)
    if source.codec == "other":
        said = manifest.parse(document) if document else manifest.UNKNOWN
        reason = magic.describe(source.head) if said.kind is manifest.Kind.UNKNOWN else said.kind.value
        return Finding("other", reason=reason, read_until_ns=until_ns, manifest=manifest_record.encode(said))
    if not uncompressed_bytes:
        return Finding("other", reason=f"{source.codec} of no bytes", read_until_ns=until_ns)
    return Finding("layer", source.codec, uncompressed_bytes, read_until_ns=until_ns, recipe=recipe)


@contextlib.contextmanager
def _daemon() -> Iterator[None]:
    """Ends the process when the daemon has gone while a message is sent or awaited.

    It raises SystemExit, which no handler between here and `main` takes for an error of the file.
    """
    try:
        yield
    except (EOFError, ConnectionError):
        sys.exit(0)


def main(argv: list[str]) -> None:
    """Serve jobs until the daemon has gone: FD PARAMS CAPS MEASURE BYTES_PER_S. A bug in `examine` ends the process
    with its traceback. A lack of memory ends it with the exit code for that, because only a new process has all of its
    memory again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides what Ctrl-C means
    fd, params_json, caps_json, measure_json, bytes_per_s = argv
    daemon = protocol.WorkersEnd(socket.socket(fileno=int(fd)))
    params, caps = ChunkParams(**json.loads(params_json)), Caps(**json.loads(caps_json))
    measure, pace = Recompressor(MeasureRule(**json.loads(measure_json))), Pace(int(bytes_per_s))

    def progress(read_bytes: int) -> None:
        with _daemon():
            daemon.send_progress(read_bytes)

    sandbox.give_up_rights()
    while True:
        with _daemon():
            job, descriptor = daemon.receive_job()
        sandbox.limit_memory(job.mark.stored_bytes, params, caps)
        try:
            finding = examine(job, descriptor, params, caps, progress, pace, measure=measure)
            with _daemon():
                daemon.send_finding(finding)
        except MemoryError:
            os._exit(protocol.NO_MEMORY_EXIT)
