"""How many rows a second does `chunkd merge` sum up, and in how much memory?

    python bench/fleet.py [ROWS...]     1,000,000 and 10,000,000 unless said

And how long do the engines of `chunkd scan --store` take for one small blob, and how much memory does a task with a
large one?

Ten hosts have layers of 2,000 chunks each, drawn from a pool that has two chunks for each five rows. Each third layer
is on two hosts. The figures must be those that numpy makes of the same layers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from chunkd.fleet import segment, snapshot
from chunkd.fleet.segment import Entry, SegmentRules, digest_bytes
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import Store
from chunkd.fleet.tables import MEMORY_BYTES
from chunkd.index import blocks
from chunkd.index.records import Rules
from chunkd.model import Blob, Digest, Recipe
from measure import Bar, save

ROWS = (1_000_000, 10_000_000)
HOSTS = 10
CHUNKS_A_LAYER, LAYERS_A_SEGMENT = 2_000, 500
# A merge has the first for DuckDB; the interpreter with its libraries takes less than the second.
BAR_MIB = (MEMORY_BYTES >> 20) + 220
BAR_ROWS_A_SECOND = 1_000_000
# A task's libraries take 100 MiB.
LARGE_BYTES, BAR_TASK_MIB = 1 << 30, 180


class Pool:
    """Made-up chunks, and which of them were drawn."""

    def __init__(self, chunks: int) -> None:
        self.draw = np.random.default_rng(1)
        self.hashes = np.frombuffer(self.draw.bytes(16 * chunks), "<u8").reshape(-1, 2)
        self.lengths = self.draw.integers(2048, 65537, chunks).astype("<u4")
        self.drawn = np.zeros(chunks, bool)
        self.uncompressed_bytes = 0

    def layer(self, number: int) -> Entry:
        own = self.draw.integers(0, len(self.lengths), CHUNKS_A_LAYER)
        self.drawn[own] = True
        hashes, lengths = self.hashes[own], self.lengths[own]
        size_bytes = int(lengths.sum())
        self.uncompressed_bytes += size_bytes
        picked = blocks.picked(hashes[:, 1], Rules().measure.threshold)
        recipe = Recipe(hashes.tobytes(), lengths.tobytes(), (lengths[picked] // 2).tobytes())
        return (
            Blob(Digest("sha256", f"{number:064x}"), "layer", size_bytes // 3, size_bytes, len(own), "gzip"),
            recipe,
            b"",
        )


def main() -> None:
    results: dict[str, object] = {}
    bars: list[Bar] = []
    for rows in [int(argument) for argument in sys.argv[1:]] or ROWS:
        with tempfile.TemporaryDirectory(prefix="fleet-") as place:
            found, own = merged(Path(place), rows)
        results[f"{rows}"], bars = found, [*bars, *own]
    with tempfile.TemporaryDirectory(prefix="fleet-") as place:
        results["tasks"], own = tasks(Path(place), LARGE_BYTES)
    bars += own
    save("fleet", results, bars)


def waited_for(process: subprocess.Popen[bytes]) -> tuple[float, resource.struct_rusage]:
    """Its peak in MiB, and what it used. Its rusage has the peak of the process that started it, if that is higher."""
    peak_kib = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peak_kib / 1024, usage
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak_kib = max(peak_kib, int(found[1]) if found else 0)
        time.sleep(0.02)


def merged(place: Path, rows: int) -> tuple[dict[str, float], list[Bar]]:
    began = time.perf_counter()
    pool, store = Pool(max(1, rows * 2 // 5)), Store(str(place / "store"))
    store.begin(Rules().params, "")
    layers = max(HOSTS, rows // CHUNKS_A_LAYER)
    written_rows = written_bytes = 0
    held: list[list[tuple[bytes, str, int, str]]] = [[] for _ in range(HOSTS)]
    for first in range(0, layers, LAYERS_A_SEGMENT):
        entries = [pool.layer(number) for number in range(first, min(first + LAYERS_A_SEGMENT, layers))]
        made = segment.write(store, Rules(), entries)
        for at, (blob, _, _) in enumerate(entries):
            row = digest_bytes(blob.digest, None), blob.state, blob.stored_bytes, made
            for host in {at % HOSTS, (at + at % 3 // 2) % HOSTS}:
                held[host].append(row)
        path = Path(store.path, "segments", f"{made}.rows.parquet")
        written_bytes += path.stat().st_size
        written_rows += segment.opened(
            store, f"segments/{path.name}", segment.ROWS_SCHEMA, 1 << 40, 1 << 40
        ).metadata.num_rows
    for host, own in enumerate(held):
        facts = Facts(f"host-{host}", 1, pending_blobs=0, pending_bytes=0)
        snapshot.put(store, str(uuid.UUID(int=host + 1)), 1, facts, SegmentRules.of(Rules()), own, [])
    writing_s = time.perf_counter() - began
    command = [sys.executable, "-m", "chunkd", "merge", "--json", "--quiet", store.path]
    began = time.perf_counter()
    with (place / "reply.json").open("w+b") as file:
        process = subprocess.Popen(command, stdout=file)
        peak_mib, usage = waited_for(process)
        taken_s = time.perf_counter() - began
        file.seek(0)
        reply = json.load(file)
    told = reply["unique_chunks"], reply["unique_bytes"], reply["uncompressed_bytes"], reply["layers"]
    true = int(pool.drawn.sum()), int(pool.lengths[pool.drawn].sum()), pool.uncompressed_bytes, layers
    if process.returncode or told != true:
        sys.exit(f"merge exited {process.returncode} and said {told}; it is {true}")
    cpu_s, bytes_a_row = usage.ru_utime + usage.ru_stime, written_bytes / written_rows
    print(
        f"{written_rows:,} rows of {true[0]:,} unique chunks, {bytes_a_row:.1f} bytes a row,"
        f" written in {writing_s:.0f} s;"
        f" {taken_s:.1f} s ({cpu_s:.1f} s of a processor), {written_rows / cpu_s:,.0f} rows a second of a processor,"
        f" {peak_mib:.0f} MiB at the peak"
    )
    found = {"rows": written_rows, "seconds": taken_s, "cpu_s": cpu_s, "peak_mib": peak_mib, "bytes_a_row": bytes_a_row}
    return found, [
        Bar(f"a merge of {written_rows:,} rows at its peak", peak_mib, BAR_MIB, "MiB"),
        Bar("rows in a second of a processor", written_rows / cpu_s, BAR_ROWS_A_SECOND, "rows", at_least=True),
    ]


def tasks(place: Path, large_bytes: int) -> tuple[dict[str, float], list[Bar]]:
    """Scans of one small layer on each engine, and of one of so many bytes that do not compress."""
    found: dict[str, float] = {}
    for name, size_bytes in (("small", 10_000), ("large", large_bytes)):
        (place / name).mkdir()
        partial = place / "partial"
        with partial.open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a")
            member.size = size_bytes
            archive.addfile(member, io.BytesIO(np.random.default_rng(1).bytes(size_bytes)))
        with partial.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        partial.rename(place / name / digest)
    for name, engine in (("small", "local"), ("small", "dask"), ("large", "local")):
        store = place / f"store-{name}-{engine}"
        words = ["scan", str(place / name), "--store", str(store), "--engine", engine, "--json", "--quiet"]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "chunkd", *words], check=True, stdout=subprocess.PIPE)
        found[f"{name} {engine} s"] = time.perf_counter() - began
        found[f"{name} {engine} peak_mib"] = json.loads(done.stdout)["peak_task_bytes"] / (1 << 20)
        print(
            f"{name} on {engine}: {found[f'{name} {engine} s']:.1f} s,"
            f" its task {found[f'{name} {engine} peak_mib']:.0f} MiB at the peak"
        )
    return found, [Bar("a task with a large blob at its peak", found["large local peak_mib"], BAR_TASK_MIB, "MiB")]


if __name__ == "__main__":
    main()
