"""What a worker holds at its peak, and the daemon at rest, in memory of its own (Linux's RssAnon).

    python bench/memory.py FOLDER [CHUNKS]     FOLDER holds blobs/sha256/<hex>: a long and a short gzip layer, and zstd

A worker is held against an interpreter that has imported what it imports, and waits. It is looked at every 2 ms while
a layer lands; the kernel's own peak, VmHWM, has the libraries in it and is told beside. The daemon at rest serves an
index of CHUNKS (1,000,000) chunks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chunkd.index.index import Index
from chunkd.index.records import Held, Rules
from chunkd.model import Blob, Cache, Digest, FileMark, Place
from chunkd.worker.decode import decoder_rule
from chunkd.worker.spawn import core_count
from layers import layers_of
from made_up import STORED_BYTES, lengths_of, recipe_of
from measure import Bar, save
from parts import codec, inflate
from running import ASK_EVERY_S, PATIENCE_S, Daemon, daemon, seed_workers

MIB = 1 << 20
BAR_MIB = 64
REST_S = 5.0
LAYER_CHUNKS = 50_000


def main() -> None:
    if not Path("/proc/self/status").exists():
        print("memory: there is no /proc here to read RssAnon from; left out", file=sys.stderr)
        return
    folder = Path(sys.argv[1]).absolute()
    chunks = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    bars, rows = [], {}
    with waiting_interpreter() as pid:
        base = status_bytes(pid)
    print(f"{'':<52}{'RssAnon MiB':>12}{'above':>8}{'VmHWM':>8}{'above':>8}")
    show("an interpreter with a worker's imports", base, base)
    for path in layers_of(folder):
        uncompressed_bytes = inflate(path, MIB)
        peak = worker_peak(folder, path, uncompressed_bytes)
        what = f"a worker, {codec(path)} of {uncompressed_bytes / 1e6:,.0f} MB uncompressed"
        show(what, peak, base)
        rows[what] = peak
        bars.append(Bar(f"{what}: above the interpreter", (peak["RssAnon"] - base["RssAnon"]) / MIB, BAR_MIB, "MiB"))
    rest = daemon_at_rest(folder, chunks)
    what = f"the daemon at rest with {chunks:,} chunks"
    show(what, rest, base)
    bars.append(Bar(what, rest["RssAnon"] / MIB, BAR_MIB, "MiB"))
    save("memory", {"interpreter_bytes": base, "workers_bytes": rows, "daemon_bytes": rest}, bars)


def show(what: str, found: dict[str, int], base: dict[str, int]) -> None:
    cells = [(found[name] / MIB, (found[name] - base[name]) / MIB) for name in ("RssAnon", "VmHWM")]
    print(
        f"{what:<52}"
        + "".join(f"{total:>{width}.1f}{above:>8.1f}" for (total, above), width in zip(cells, (12, 8), strict=True))
    )


def status_bytes(pid: int) -> dict[str, int]:
    """A process's RssAnon, and the peak of all its resident memory. Raises OSError when there is none."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM")}


@contextlib.contextmanager
def waiting_interpreter() -> Iterator[int]:
    """The process id of a Python that has imported what a worker does."""
    command = [sys.executable, "-P", "-c", "import sys, chunkd.worker.examine; print(flush=True); sys.stdin.read()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid


def worker_peak(folder: Path, path: Path, uncompressed_bytes: int) -> dict[str, int]:
    """The most that any worker held while this layer landed. Exits when it counts for other bytes."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="memory-") as place:
        cache = Path(place, "cache")
        seed_workers(cache, core_count())
        coming = Path(place, path.name)
        os.link(path, coming)
        with daemon(Path(place, "state"), cache) as running:
            before, workers = running.stats(), running.workers()
            coming.rename(cache / "blobs" / "sha256" / path.name)
            peak = peak_until_counted(running, workers, before["layers"] + 1)
            counted_bytes = running.stats()["uncompressed_bytes"] - before["uncompressed_bytes"]
    if counted_bytes != uncompressed_bytes:
        sys.exit(f"{path.name}: {counted_bytes} bytes uncompressed were counted, and it has {uncompressed_bytes}")
    return peak


def peak_until_counted(running: Daemon, workers: list[int], layers: int) -> dict[str, int]:
    peak = {"RssAnon": 0, "VmHWM": 0}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for _ in range(20):
            for found in map(status_bytes, workers):
                peak = {name: max(value, found[name]) for name, value in peak.items()}
            time.sleep(ASK_EVERY_S)
        if running.stats()["layers"] == layers:
            return peak
        if time.monotonic() > deadline:
            sys.exit(f"{layers} layers: not within {PATIENCE_S:.0f} s:\n{running.log_path.read_text()[-4000:]}")


def daemon_at_rest(folder: Path, chunks: int) -> dict[str, int]:
    """A daemon some seconds after its first scan, with made-up layers whose files are there and hold nothing."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="memory-") as place:
        state, cache = Path(place, "state"), Path(place, "cache")
        cache.mkdir()
        index = Index(str(state), Rules(decoder=decoder_rule()), "bench/memory.py")
        with index.transaction() as change:
            change.set_caches({1: Cache(str(cache))})
        for begin in range(0, chunks, LAYER_CHUNKS):
            numbers = np.arange(begin, min(begin + LAYER_CHUNKS, chunks))
            digest = Digest("sha256", hashlib.sha256(b"%d" % begin).hexdigest())
            path = cache / digest.hex
            path.touch()
            os.truncate(path, STORED_BYTES)
            status = path.stat()
            mark = FileMark(status.st_dev, status.st_ino, STORED_BYTES, status.st_ctime_ns)
            blob = Blob(digest, "layer", STORED_BYTES, int(lengths_of(numbers).sum()), len(numbers), "gzip")
            with index.transaction() as change:
                change.hold(Place(1, digest.hex), Held(digest, "verified", mark))
                change.add(blob, recipe_of(numbers))
        index.close()
        with daemon(state, cache) as running:
            time.sleep(REST_S)
            stats, found = running.stats(), status_bytes(running.process.pid)
    if (stats["chunks"], stats["unique_chunks"]) != (chunks, chunks):
        sys.exit(f"the index has {stats['chunks']} chunks, and {chunks} were put in")
    return found


if __name__ == "__main__":
    main()
