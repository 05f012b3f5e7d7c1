"""What does the index cost as it grows? Layers of 50,000 new chunks, then known layers again, then removals.

    python bench/index.py [CHUNKS]     10,000,000 unless said

Prints CPU seconds and bytes written for a layer (fsync on, decoding left out) and the size of a chunk, and recounts.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from chunkd.index import Index
from chunkd.model import Blob, Digest, FileMark, Place, Recipe
from chunkd.records import Cache, Held, Rules
from chunkd.recount import recount
from measure import save

LAYER_CHUNKS = 50_000
AGAIN = 10


def layer(number: int) -> tuple[Blob, Recipe]:
    """A layer of chunks that no other has, made from its number."""
    random = np.random.default_rng(number)
    hashes = random.integers(0, 256, (LAYER_CHUNKS, 16), dtype=np.uint8)
    lengths = random.integers(2048, 65537, LAYER_CHUNKS).astype("<u4")
    digest = Digest("sha256", hashlib.sha256(str(number).encode()).hexdigest())
    blob = Blob(digest, "layer", 10**9, int(lengths.sum()), LAYER_CHUNKS, "gzip")
    return blob, Recipe(hashes.tobytes(), lengths.tobytes())


def written_bytes() -> int:
    """What this process had the kernel write, 0 where that is not told."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def used_bytes(index: Index) -> int:
    with index.snapshot() as txn:
        stats = [txn.stat(database) for database in index.store.databases.values()]
    return sum(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) for stat in stats)


def count_in(index: Index, blob: Blob, recipe: Recipe) -> tuple[float, int]:
    """CPU seconds and bytes written."""
    start, before = time.process_time(), written_bytes()
    with index.transaction() as change:
        change.hold(Place(1, blob.digest.hex), Held(blob.digest, "verified", FileMark(1, 1, 10**9, 1)))
        change.add(blob, recipe)
    return time.process_time() - start, written_bytes() - before


def count_out(index: Index, digest: Digest) -> tuple[float, int]:
    start, before = time.process_time(), written_bytes()
    with index.transaction() as change:
        change.release(Place(1, digest.hex), digest)
        change.remove(digest)
    return time.process_time() - start, written_bytes() - before


def told(what: str, costs: list[tuple[float, int]]) -> dict[str, float]:
    cpu_s, wrote = statistics.median(cost[0] for cost in costs), statistics.median(cost[1] for cost in costs)
    print(f"{what:<44}{cpu_s:>8.4f} s CPU {wrote / 1e6:>9.2f} MB written (medians of {len(costs)})")
    return {"cpu_s": cpu_s, "written_bytes": wrote}


def main() -> None:
    layers = int(sys.argv[1] if len(sys.argv) > 1 else 10_000_000) // LAYER_CHUNKS
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=".") as state:
        index = Index(state, Rules(), "bench/index.py")
        with index.transaction() as change:
            change.set_caches({1: Cache("/bench")})
        recent: list[tuple[float, int]] = []
        for number in range(layers):
            recent = [*recent[1 - AGAIN :], count_in(index, *layer(number))]
            chunks = (number + 1) * LAYER_CHUNKS
            if chunks in (10**6, 10**7, 5 * 10**7) or number + 1 == layers:
                results[f"new at {chunks}"] = told(f"a new layer at {chunks:,} chunks", recent)
        used, size = used_bytes(index), index.store.index_bytes()
        print(f"{used / chunks:.2f} bytes a chunk in used pages; the file is {size / used:.2f} times that")
        again = []
        for number in range(AGAIN):
            blob, recipe = layer(number)
            other = Digest("sha256", hashlib.sha256(f"again {number}".encode()).hexdigest())
            again.append(count_in(index, replace(blob, digest=other), recipe))
        results["known"] = told("a layer of known chunks", again)
        removed = [count_out(index, layer(number)[0].digest) for number in range(AGAIN)]
        results["removed"] = told("the removal of a layer", removed)
        results |= {"bytes_per_chunk": used / chunks, "file_to_used": size / used}
        with index.snapshot() as txn:
            differences = recount(index.store, txn).differences
        index.close()
    if differences:
        sys.exit(f"recount: {differences[:3]}")
    print("recount: no difference")
    save("index", results)


if __name__ == "__main__":
    main()
