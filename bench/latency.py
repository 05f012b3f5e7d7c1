"""From a layer's landing to the figure on the socket, against that layer alone in a worker that is warm.

    python bench/latency.py FOLDER         FOLDER holds blobs/sha256/<hex>: a few gzip layers from small to large

A daemon is up, its workers too. Each layer is renamed into its place, and `GET /v1/stats` is asked every 2 ms until it
counts; asking begins shortly before that is likely, since it takes time from the worker.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from chunkd.worker.spawn import core_count
from layers import layers_of
from measure import Bar, of_runs, save
from parts import job
from running import Daemon, daemon, seed_workers

ROUNDS = 5
MOST_TIMES, MORE_S = 1.25, 0.1


class Turn(NamedTuple):
    alone_s: float
    landed_s: float

    @property
    def to_bar(self) -> float:
        return self.landed_s / (MOST_TIMES * self.alone_s + MORE_S)


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    layers = layers_of(folder)[::-1]
    uncompressed_bytes: dict[Path, int] = {}
    turns: dict[Path, list[Turn]] = {path: [] for path in layers}
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        for turn in range(ROUNDS + 1):
            # An index of its own, so that no chunk is known.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="latency-") as place:
                cache = Path(place, "cache")
                seed_workers(cache, core_count())
                with daemon(Path(place, "state"), cache) as running:
                    for path in layers:
                        path.read_bytes()  # into the page cache: a worker gives back what it brought in
                        start = time.perf_counter()
                        uncompressed_bytes[path] = worker.submit(job, path, relayed=True).result()
                        alone_s = time.perf_counter() - start
                        last_s = turns[path][-1].landed_s if turns[path] else 0.0
                        landed_s = land(running, cache, path, uncompressed_bytes[path], 0.8 * min(alone_s, last_s))
                        turns[path].append(Turn(alone_s, landed_s))
            if not turn:  # not counted
                turns = {path: [warm[-1]] for path, warm in turns.items()}
    told(layers, {path: all_turns[1:] for path, all_turns in turns.items()}, uncompressed_bytes)


def land(running: Daemon, cache: Path, path: Path, uncompressed_bytes: int, unasked_s: float) -> float:
    """Seconds from the rename to the answer in which the layer counts. Exits when it counts for other bytes."""
    before = running.stats()
    coming = cache.parent / path.name
    os.link(path, coming)
    start = time.perf_counter()
    coming.rename(cache / "blobs" / "sha256" / path.name)
    time.sleep(unasked_s)
    after = running.until(lambda stats: stats["layers"] > before["layers"], f"{path.name} to count")
    landed_s = time.perf_counter() - start
    counted_bytes = after["uncompressed_bytes"] - before["uncompressed_bytes"]
    if counted_bytes != uncompressed_bytes:
        sys.exit(f"{path.name}: {counted_bytes} bytes uncompressed were counted, and it has {uncompressed_bytes}")
    return landed_s


def told(layers: list[Path], turns: dict[Path, list[Turn]], uncompressed_bytes: dict[Path, int]) -> None:
    print(f"{'MB uncompressed':>16}{'alone s':>10}{'landed s':>10}{'min':>9}{'max':>9}{'to the bar':>12}")
    rows, bars = [], list[Bar]()
    for path in layers:
        megabytes = uncompressed_bytes[path] / 1e6
        alone, landed = [turn.alone_s for turn in turns[path]], [turn.landed_s for turn in turns[path]]
        ratios = [turn.to_bar for turn in turns[path]]
        print(
            f"{megabytes:>16,.1f}{statistics.median(alone):>10.4f}{statistics.median(landed):>10.4f}"
            f"{min(landed):>9.4f}{max(landed):>9.4f}{statistics.median(ratios):>12.2f}"
        )
        rows.append({"uncompressed_bytes": uncompressed_bytes[path], "alone_s": alone, "landed_s": landed})
        what = f"landing to figure, {megabytes:,.1f} MB: to {MOST_TIMES} times alone + {MORE_S * 1000:.0f} ms"
        bars.append(of_runs(what, ratios, 1.0))
    save("latency", {"rows": rows}, bars)


if __name__ == "__main__":
    main()
