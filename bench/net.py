"""Is the net saving true, what does it cost, and what do real chunk stores take of the same layers?

    python bench/net.py FOLDER [LAYERS]        FOLDER holds blobs/sha256/<hex>; the first LAYERS of them, by name

truth     a real store: one zstd frame in one file for each unique chunk, and the bytes of all files
said      what `chunkd scan` says of it with every chunk measured (must be the same), and with 1 in 16
cost      a worker's CPU seconds for all layers with 1 in 16 measured, to those with 1 in 65,536; rounds take turns
stores    restic, borg and casync (Debian packages) on the same layers, uncompressed, one file each: bytes of their
          repositories. They chunk, hash, compress and encrypt as they come; a missing one is left out
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chunkd.chunkers.gear import Chunker
from chunkd.model import CHUNK_HASH_BYTES, Caps, ChunkParams, Digest, Job, MeasureRule
from chunkd.sources.folder import FolderSource
from chunkd.worker.examine import examine
from chunkd.worker.recompress import Recompressor
from demo_images import zstd
from layers import layers_of
from measure import Bar, of_runs, save
from running import environ

ROUNDS = 5
LEVEL = 3


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    layers = sorted(layers_of(folder), key=lambda path: path.name)[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
    with tempfile.TemporaryDirectory(dir=".") as name:
        place = Path(name)
        cache = place / "cache" / "blobs" / "sha256"
        cache.mkdir(parents=True)
        plain = place / "plain"
        plain.mkdir()
        for path in layers:
            shutil.copy(path, cache)
            (plain / path.name).write_bytes(gzip.decompress(path.read_bytes()))
        results: dict[str, Any] = {"folder": folder.name, "layers": len(layers)}
        results["truth_bytes"] = written(plain, place / "store")
        results["said"] = {one_in: said(place, one_in) for one_in in (1, 16)}
        results["stores"] = stores(place, plain)
        results["cost"] = cost(layers)
    save("net", results, told(results))


def written(plain: Path, store: Path) -> int:
    """The bytes of a store of one file for each unique chunk of these layers."""
    store.mkdir()
    for path in plain.iterdir():
        data = path.read_bytes()
        chunker = Chunker(ChunkParams())
        chunker.feed(data)
        recipe = chunker.finish()
        at = 0
        for number in range(len(recipe)):
            hash_ = recipe.hashes[CHUNK_HASH_BYTES * number :][:CHUNK_HASH_BYTES]
            length = int.from_bytes(recipe.lengths[4 * number :][:4], "little")
            if not (store / hash_.hex()).exists():
                (store / hash_.hex()).write_bytes(zstd.compress(data[at : at + length], LEVEL))
            at += length
    return bytes_below(store)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def said(place: Path, one_in: int) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, "-m", "chunkd", "scan", "--json", str(place / "cache"), "--state", str(place / str(one_in)),
            "--measure-one-in", str(one_in), "--measure-level", str(LEVEL), "--nice", "0",
        ],
        env=environ(place), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stats: dict[str, Any] = json.loads(done.stdout)
    return stats


def cost(layers: list[Path]) -> dict[str, list[float]]:
    """A worker's CPU seconds for all layers: with one chunk in 65,536 measured, 1 in 16, and every chunk."""
    rules = {str(one_in): MeasureRule(one_in, LEVEL) for one_in in (65536, 16, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    for turn in range(ROUNDS + 1):
        for name, rule in rules.items():
            recompressor = Recompressor(rule)
            start = time.process_time()
            for path in layers:
                with FolderSource(str(path.parent)).view() as view:
                    descriptor, seen = view.open(path.name)
                job = Job(Digest("sha256", path.name), seen.mark)
                found = examine(job, descriptor, ChunkParams(), Caps(), lambda _: None, measure=recompressor)
                if found.kind != "layer":
                    sys.exit(f"{path}: no layer")
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def stores(place: Path, plain: Path) -> dict[str, dict[str, Any]]:
    """The bytes of each program's repository, and its seconds."""
    repository, index = str(place / "repository"), str(place / "index.caidx")
    commands = {
        "restic": [["restic", "init", "-r", repository], ["restic", "backup", "-r", repository, str(plain)]],
        "restic, compression max": [
            ["restic", "init", "-r", repository],
            ["restic", "backup", "-r", repository, "--compression", "max", str(plain)],
        ],
        "borg, zstd 3": [
            ["borg", "init", "--encryption", "none", repository],
            ["borg", "create", "--compression", "zstd,3", f"{repository}::layers", str(plain)],
        ],
        "casync": [["casync", "make", f"--store={repository}", index, str(plain)]],
    }
    own = environ(place) | {"RESTIC_PASSWORD": "none", "BORG_BASE_DIR": str(place / "borg")}
    found: dict[str, dict[str, Any]] = {}
    for name, calls in commands.items():
        if shutil.which(calls[0][0]) is None:
            print(f"{name}: not installed, left out", file=sys.stderr)
            continue
        start = time.perf_counter()
        for call in calls:
            subprocess.run(call, env=own, check=True, stdout=subprocess.DEVNULL)
        size = bytes_below(Path(repository)) + (os.path.getsize(index) if name == "casync" else 0)
        found[name] = {"bytes": size, "seconds": time.perf_counter() - start}
        shutil.rmtree(repository)
    return found


def told(results: dict[str, Any]) -> list[Bar]:
    """Print the table; the bars."""
    every, sample = results["said"][1], results["said"][16]
    stored_bytes = every["layer_stored_bytes"]
    if every["recompressed_bytes"] != results["truth_bytes"]:
        sys.exit(f"chunkd says {every['recompressed_bytes']} bytes, the store has {results['truth_bytes']}")
    overhead_bytes = every["index_overhead_bytes"]
    rows = {
        "the layers as they are": stored_bytes,
        "a store, a file for each chunk": results["truth_bytes"],
        "chunkd, every chunk measured": every["recompressed_bytes"],
        "chunkd, 1 in 16": sample["recompressed_bytes"],
        "  its 95 % interval from": sample["recompressed_bytes"] - sample["recompressed_error_bytes"],
        "  to": sample["recompressed_bytes"] + sample["recompressed_error_bytes"],
        "chunkd, with the store's index": every["recompressed_bytes"] + overhead_bytes,
    } | {name: found["bytes"] for name, found in results["stores"].items()}
    for name, size in rows.items():
        print(f"{name:<34}{size:>16,} bytes{size / stored_bytes:>9.1%}")
    seconds = results["cost"]
    ratios = {
        name: [one / none for one, none in zip(seconds[name], seconds["65536"], strict=True)] for name in ("16", "1")
    }
    for name, found in ratios.items():
        median, least, most = statistics.median(found), min(found), max(found)
        print(f"a worker's CPU with 1 in {name}: {median:.3f} times ({least:.3f} to {most:.3f})")
    error_bytes = abs(sample["recompressed_bytes"] - every["recompressed_bytes"])
    what = results["folder"]
    return [
        of_runs(f"{what}: a worker's CPU with 1 in 16 measured", ratios["16"], 1.15),
        Bar(f"{what}: 1 in 16, off by, to what it says", error_bytes / sample["recompressed_error_bytes"], 1.0),
    ]


if __name__ == "__main__":
    main()
