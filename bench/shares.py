"""How long does it take to tell of each layer what it has exclusively, and what does the writer lose by it?

    python bench/shares.py [LAYERS]     200 unless said, of 50,000 chunks each: 10 million recipe entries

A third of the layers are new, the others take known chunks in runs from anywhere: of 100 chunks, and of 2, which is
worse than any layers that were seen. All pages are read, and the sums must be the totals'. Then a small layer is added
again and again, alone and while another thread asks for page after page.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

from chunkd.queries import layer_shares
from made_up import Grown, grown, in_runs
from measure import Bar, of_runs, save

LAYER_CHUNKS = 50_000
SMALL_CHUNKS = 185
RUNS = (100, 2)
ROUNDS = 5
ADDED = 40
# What was asked for: 10 million entries in 10 s.
ENTRIES_PER_S = 1e6


def read_all(index: Grown, stop: threading.Event | None = None) -> tuple[int, int, float]:
    """(recipe entries, bytes of all parts, seconds of the slowest page)."""
    after, entries, parts, slowest_s = "", 0, 0, 0.0
    while not (stop and stop.is_set()):
        began = time.perf_counter()
        page = layer_shares.read_layers(index.index.store, after, 1000)
        slowest_s = max(slowest_s, time.perf_counter() - began)
        for layer in page["layers"]:
            entries += layer["chunks"]
            parts += layer["exclusive_bytes"] + layer["shared_bytes"] + layer["repeated_bytes"]
        if page["next"] is None:
            break
        after = page["next"]
    return entries, parts, slowest_s


def add_s(index: Grown) -> float:
    """The mean seconds of a small new layer's transaction."""
    return float(np.mean([index.new(SMALL_CHUNKS)[1].wall_s for _ in range(ADDED)]))


def asked(layers: int, runs: int, folder: str) -> tuple[dict[str, Any], Bar]:
    random = np.random.default_rng(1)
    with grown(folder, layers * LAYER_CHUNKS + (2 * ADDED + 1) * SMALL_CHUNKS) as index:
        for number in range(layers):
            if number % 3:
                index.add(in_runs(random, LAYER_CHUNKS, runs, index.chunks))
            else:
                index.new(LAYER_CHUNKS)
        rates, pages = [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            entries, parts, slowest_s = read_all(index)
            rates.append(entries / (time.perf_counter() - began))
            pages.append(slowest_s)
            assert (entries, parts) == (index.totals.chunks, index.totals.uncompressed_bytes)
        alone_s = add_s(index)
        stop = threading.Event()
        asking = threading.Thread(target=lambda: [read_all(index, stop) for _ in iter(stop.is_set, True)])
        asking.start()
        try:
            beside_s = add_s(index)
        finally:
            stop.set()
            asking.join()
    found = {"runs": runs, "entries_per_s": rates, "page_s": pages, "add_alone_s": alone_s, "add_beside_s": beside_s}
    print(
        f"in runs of {runs}: {np.median(rates):,.0f} entries a second, a page in {max(pages):.2f} s at most;"
        f" a small layer in {1e3 * alone_s:.1f} ms, {1e3 * beside_s:.1f} ms while pages are made"
    )
    return found, of_runs(f"shares, in runs of {runs}", rates, ENTRIES_PER_S, "entries/s", at_least=True)


def main() -> None:
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    results, bars = [], []
    for runs in RUNS:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            result, bar = asked(layers, runs, folder)
        results.append(result)
        bars.append(bar)
    save("shares", {"layers": layers, "shares": results}, bars)


if __name__ == "__main__":
    main()
