"""How much memory a segment of many rows takes while it is written, and its merge: prints bytes.

python hungry.py STORE ROWS LIMIT
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable

import numpy as np

from chunkd.fleet import merge, segment, snapshot
from chunkd.fleet.segment import SegmentRules, digest_bytes
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import Store
from chunkd.index import blocks
from chunkd.index.records import Rules
from chunkd.model import Blob, Digest, Recipe

BLOBS = 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def most_more_bytes(work: Callable[[], object]) -> int:
    """By how much memory grows while the work is done, at the most."""
    before, most, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], resident_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return most[0] - before


def main() -> None:
    store, rows, limit = Store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store.begin(Rules().params, "")
    draw = np.random.default_rng(1)

    def entry(number: int) -> segment.Entry:
        hashes = np.frombuffer(draw.bytes(16 * (rows // BLOBS)), "<u8").reshape(-1, 2)
        lengths = draw.integers(2048, 65537, len(hashes)).astype("<u4")
        measured = lengths[blocks.picked(hashes[:, 1], Rules().measure.threshold)] // 2
        blob = Blob(Digest("sha256", f"{number:064x}"), "layer", 1000, int(lengths.sum()), len(lengths), "gzip")
        return blob, Recipe(hashes.tobytes(), lengths.tobytes(), measured.tobytes()), b""

    entries: list[segment.Entry] = [entry(number) for number in range(BLOBS)]
    print(most_more_bytes(lambda: segment.write(store, Rules(), entries)))
    made = segment.write(store, Rules(), entries)
    held = [(digest_bytes(blob.digest, None), blob.state, blob.stored_bytes, made) for blob, _, _ in entries]
    snapshot.put(store, str(uuid.UUID(int=1)), 1, Facts("a host", 1), SegmentRules.of(Rules()), held, [])
    sources = merge.sources_of(store)
    print(most_more_bytes(lambda: merge.merge(store, sources, limit)))


if __name__ == "__main__":
    main()
