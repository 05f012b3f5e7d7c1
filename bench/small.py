"""What does a first scan of many small blobs cost, against a plain loop that opens, reads and hashes them?

    python bench/small.py [BLOBS [FOLDER]]     20,000, made in the current folder, unless said

The blobs have 1 KB each and are not layers, like the manifests and configs of which an image has two or more.
`chunkd scan`, from exec to exit, takes turns with the loop in as many processes as there are cores, whose start is not
counted. The processor time of each is printed too. The files are in the page cache; each scan has a new index.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from chunkd.worker.spawn import core_count
from measure import of_runs, save, table, take_turns
from running import scan_process

ROUNDS = 5
BAR = 15.0
BLOB_BYTES = 1000


def make(cache: Path, blobs: int) -> None:
    folder = cache / "blobs" / "sha256"
    folder.mkdir(parents=True)
    chance = random.Random(blobs)
    for _ in range(blobs):
        content = chance.randbytes(BLOB_BYTES)
        (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)


def hash_all(paths: list[str]) -> int:
    """How many of the files have the bytes of their name."""
    matching = 0
    for path in paths:
        with open(path, "rb") as file:
            matching += hashlib.sha256(file.read()).hexdigest() == path[-64:]
    return matching


def plain_loop(cache: Path, pool: concurrent.futures.Executor, processes: int) -> None:
    paths = [str(path) for path in (cache / "blobs" / "sha256").iterdir()]
    if sum(pool.map(hash_all, [paths[first::processes] for first in range(processes)])) != len(paths):
        sys.exit("the plain loop: a blob does not match its name")


def scan(cache: Path, blobs: int) -> None:
    with tempfile.TemporaryDirectory(dir=cache.parent, prefix="scan-") as state:
        stats = json.loads(scan_process(Path(state), cache))
    if (stats["blobs"], stats["layers"]) != (blobs, 0):
        sys.exit(f"chunkd scan: {blobs} blobs were to be counted, and the figures are {stats}")


def compare(cache: Path, blobs: int) -> None:
    processes = core_count()
    cpu_s: list[float] = []

    def scan_timed() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        scan(cache, blobs)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        contenders: dict[str, Callable[[], object]] = {
            "plain loop": lambda: plain_loop(cache, pool, processes),
            "chunkd scan": scan_timed,
        }
        seconds = take_turns(contenders, ROUNDS)
    result = table(f"{blobs:,} blobs of {BLOB_BYTES} bytes", seconds, blobs * BLOB_BYTES, "plain loop")
    per_blob_us = 1e6 * statistics.median(cpu_s[1:]) / blobs
    print(f"processor time of chunkd scan: {per_blob_us:.0f} us a blob")
    ratios = [one / other for one, other in zip(seconds["chunkd scan"], seconds["plain loop"], strict=True)]
    what = f"a first scan of {blobs:,} blobs of 1 KB, to a plain loop that hashes them"
    save("small", {"table": result, "cpu_s": cpu_s[1:]}, [of_runs(what, ratios, BAR)])


def main() -> None:
    blobs = int(sys.argv[1] if len(sys.argv) > 1 else 20_000)
    parent = Path(sys.argv[2] if len(sys.argv) > 2 else ".").resolve()
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        cache = Path(folder, "cache")
        make(cache, blobs)
        compare(cache, blobs)


if __name__ == "__main__":
    main()
