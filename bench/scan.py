"""What does a first scan cost, against the sum of its parts and against inflating alone?

    python bench/scan.py FOLDER        FOLDER holds blobs/sha256/<hex>, for instance the pinned npm layers

Each part is timed alone on the same bytes in one process; the scan is the whole program with its workers, its index
and its syncs. The figures of every scan are compared with those of the parts.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blake3 import blake3
from isal import igzip

from chunkd._cgear import ffi, lib
from chunkd.chunker import gear_table
from chunkd.decode import BUFFER_BYTES
from chunkd.model import Caps, ChunkParams, Digest, Job
from chunkd.worker import examine
from measure import save, table, take_turns

ROUNDS = 5
PARAMS = ChunkParams()


def inflate(path: Path) -> int:
    """Uncompressed bytes, through one reused buffer."""
    buffer = bytearray(BUFFER_BYTES)
    total = 0
    with igzip.open(path, "rb") as stream:  # type: ignore[no-untyped-call]
        while count := stream.readinto(buffer):
            total += count
    return total


def seconds_of_parts(layers: list[Path]) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each part over all layers, and the figures. Inflated layers are held one at a time."""
    parts = dict.fromkeys(("inflate", "sha256", "kernel", "blake3"), 0.0)
    figures = dict.fromkeys(("uncompressed_bytes", "chunks", "unique_chunks", "unique_bytes"), 0)
    gear = ffi.new("uint64_t[]", gear_table(PARAMS.gear_seed))
    unique: dict[bytes, int] = {}
    for path in layers:
        start = time.perf_counter()
        inflate(path)
        parts["inflate"] += time.perf_counter() - start
        stored = path.read_bytes()
        start = time.perf_counter()
        hashlib.sha256(stored).digest()
        parts["sha256"] += time.perf_counter() - start
        data = igzip.decompress(stored)  # type: ignore[no-untyped-call]
        capacity = len(data) // PARAMS.min_bytes + 2
        cuts = ffi.new("size_t[]", capacity)
        start = time.perf_counter()
        count = lib.cgear_cut(
            gear, PARAMS.min_bytes, PARAMS.mask_bits, PARAMS.max_bytes, ffi.new("uint64_t *"), ffi.new("size_t *"),
            ffi.from_buffer("uint8_t[]", data), len(data), cuts, capacity,
        )  # fmt: skip
        parts["kernel"] += time.perf_counter() - start
        ends = ffi.unpack(cuts, count)
        if not ends or ends[-1] != len(data):
            ends.append(len(data))
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        view = memoryview(data)
        start = time.perf_counter()
        hashes = [blake3(view[begin:end]).digest(16) for begin, end in spans]
        parts["blake3"] += time.perf_counter() - start
        unique.update(zip(hashes, (end - begin for begin, end in spans), strict=True))
        figures["uncompressed_bytes"] += len(data)
        figures["chunks"] += len(spans)
    figures |= {"unique_chunks": len(unique), "unique_bytes": sum(unique.values())}
    return parts, figures


def examine_all(layers: list[Path]) -> None:
    for path in layers:
        finding = examine(Job(Digest("sha256", path.name), str(path)), PARAMS, Caps(), lambda _: None)
        if finding.kind != "layer":
            sys.exit(f"{path.name}: {finding.kind} {finding.reason}")


def scan(folder: Path, figures: dict[str, int]) -> None:
    """The program itself, from its start to its end, into a new index."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "chunkd", "scan", str(folder), "--state", state, "--json"]
        done = subprocess.run(command, capture_output=True, check=True)
    stats = json.loads(done.stdout)
    if any(stats[name] != value for name, value in figures.items()):
        sys.exit(f"the scan's figures are {stats}, those of the parts {figures}")


def main() -> None:
    folder = Path(sys.argv[1])
    layers = sorted((folder / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    parts, figures = seconds_of_parts(layers)
    print(f"{len(layers)} layers, {figures}")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:
        seconds = take_turns(
            {
                "inflate alone, one process": lambda: sum(map(inflate, layers)),
                "a worker's whole job, one process": lambda: examine_all(layers),
                f"inflate alone, {cores} processes": lambda: sum(pool.map(inflate, layers)),
                "chunkd scan, from start to end": lambda: scan(folder, figures),
            },
            ROUNDS,
        )
    work_bytes = figures["uncompressed_bytes"]
    one = table("one process", dict(list(seconds.items())[:2]), work_bytes, "inflate alone, one process")
    whole = table("the program", dict(list(seconds.items())[2:]), work_bytes, f"inflate alone, {cores} processes")
    runs = [seconds_of_parts(layers)[0] for _ in range(ROUNDS)]
    best = {name: sorted(run[name] for run in runs)[ROUNDS // 2] for name in parts}
    total = sum(best.values())
    job = one["rows"]["a worker's whole job, one process"]["median_s"]
    print("\nparts, each alone, median s: " + ", ".join(f"{name} {value:.3f}" for name, value in best.items()))
    print(f"a worker's job is {job / total:.2f} times their sum of {total:.3f} s")
    save("scan", {"figures": figures, "parts_s": best, "job_to_sum": job / total, "one": one, "whole": whole})


if __name__ == "__main__":
    main()
