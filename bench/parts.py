"""The parts of the work on one layer, each to be timed alone; run in processes of a pool.

The chunks that are found here come of one call over all of a layer's bytes, and not of `chunkd.chunkers.gear`.
"""

from __future__ import annotations

import functools
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, cast

from blake3 import blake3
from isal import igzip

from chunkd.chunkers._cgear import ffi
from chunkd.chunkers.gear import KERNELS, Chunker, gear_table, kernels
from chunkd.model import CHUNK_HASH_BYTES, Caps, ChunkParams, Digest, Job, MeasureRule
from chunkd.sources.folder import FolderSource
from chunkd.worker.decode import BUFFER_BYTES
from chunkd.worker.examine import examine
from chunkd.worker.recompress import Recompressor
from demo_images import zstd
from measure import take_turns

PARAMS = ChunkParams()
# The least that a setting allows.
NEXT_TO_NOTHING = Recompressor(MeasureRule(one_in=4096))
PARTS = ("inflate", "sha256", "kernel", "blake3")
BUFFERS_BYTES = (64 << 10, 256 << 10, 1 << 20)
# The best buffer is looked for with so many stored bytes.
TRIAL_BYTES = 32 << 20


def codec(path: Path) -> str:
    with path.open("rb") as file:
        return "gzip" if file.read(2) == b"\x1f\x8b" else "zstd"


def opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", igzip.open(path, "rb") if codec(path) == "gzip" else zstd.ZstdFile(path))  # type: ignore[no-untyped-call]


def inflate(path: Path, buffer_bytes: int) -> int:
    """Uncompressed bytes, through one reused buffer."""
    buffer = bytearray(buffer_bytes)
    total_bytes = 0
    with opened(path) as stream:
        while count := stream.readinto(buffer):  # type: ignore[attr-defined]
            total_bytes += count
    return total_bytes


def job(path: Path, relayed: bool, measured: bool = True) -> int:
    """A worker's whole job, with 1 chunk in 16 recompressed or next to none; the uncompressed bytes."""
    with FolderSource(str(path.parent)).view() as view:
        descriptor, seen = view.open(path.name)
    whole = Job(Digest("sha256", path.name), seen.mark, relayed=relayed)
    finding = examine(whole, descriptor, PARAMS, Caps(), lambda _: None, measure=None if measured else NEXT_TO_NOTHING)
    if finding.kind != "layer":
        sys.exit(f"{path.name}: {finding.kind} {finding.reason}")
    return finding.uncompressed_bytes


def cut(data: bytes) -> tuple[float, list[int]]:
    """The seconds that the kernel takes for one call over all of it, and where the chunks end."""
    gear = ffi.new("uint64_t[]", gear_table(PARAMS.gear_seed))
    capacity = len(data) // PARAMS.min_bytes + 2
    cuts = ffi.new("size_t[]", capacity)
    borders = PARAMS.min_bytes, PARAMS.mask_bits, PARAMS.max_bytes
    carried = ffi.new("uint64_t *"), ffi.new("size_t *")
    start = time.perf_counter()
    count = KERNELS[kernels()[0]](
        gear, *borders, *carried, ffi.from_buffer("uint8_t[]", data), len(data), cuts, capacity
    )
    seconds = time.perf_counter() - start
    ends = ffi.unpack(cuts, count)
    return seconds, ends if ends and ends[-1] == len(data) else [*ends, len(data)]


def hashed(data: bytes, ends: list[int]) -> list[bytes]:
    with memoryview(data) as view:
        return [
            blake3(view[begin:end]).digest(CHUNK_HASH_BYTES) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]


def chunked(data: bytes) -> None:
    """What the kernel and BLAKE3 do, by the chunker in a worker's buffers, with next to nothing measured."""
    chunker = Chunker(PARAMS, measure=NEXT_TO_NOTHING)
    with memoryview(data) as view:
        for begin in range(0, len(data), BUFFER_BYTES):
            chunker.feed(view[begin : begin + BUFFER_BYTES])
    chunker.finish()


def hashed_chunks(path: Path) -> tuple[bytes, list[int]]:
    with opened(path) as stream:
        data = stream.read()
    ends = cut(data)[1]
    return b"".join(hashed(data, ends)), [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def parts(path: Path, buffer_bytes: int) -> dict[str, float]:
    """The seconds that each part of the work on one layer takes, each run by itself over the whole layer. `chunker` has
    the kernel and BLAKE3 in it, so it is not added to them.
    """
    start = time.perf_counter()
    inflate(path, buffer_bytes)
    inflated = time.perf_counter()
    stored = path.read_bytes()
    begun = time.perf_counter()
    hashlib.sha256(stored).digest()
    ended = time.perf_counter()
    with opened(path) as stream:
        data = stream.read()
    kernel_s, ends = cut(data)
    hashing = time.perf_counter()
    hashed(data, ends)
    blake3_s = time.perf_counter() - hashing
    chunking = time.perf_counter()
    chunked(data)
    return {
        "inflate": inflated - start, "sha256": ended - begun, "kernel": kernel_s, "blake3": blake3_s,
        "chunker": time.perf_counter() - chunking,
    }  # fmt: skip


def best_buffer_bytes(layers: list[Path]) -> int:
    """The size with which inflating alone is fastest, tried on the first layers in this process."""
    tried: list[Path] = []
    for path in reversed(layers):
        tried.append(path)
        if sum(some.stat().st_size for some in tried) > TRIAL_BYTES:
            break
    contenders = {str(size): functools.partial(_each, inflate, tried, size) for size in BUFFERS_BYTES}
    seconds = take_turns(contenders, 2)
    return int(min(seconds, key=lambda name: statistics.median(seconds[name])))


def _each(run: Callable[[Path, int], object], paths: Iterable[Path], size: int) -> None:
    for path in paths:
        run(path, size)
