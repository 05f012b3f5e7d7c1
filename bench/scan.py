"""What does a first scan cost, against the sum of its parts and against inflating alone?

    python bench/scan.py FOLDER...        each FOLDER holds blobs/sha256/<hex>

For each folder, all contenders take turns, with as many processes as there are cores:

parts       each alone on the same bytes: inflating, the file's SHA-256, the kernel, BLAKE3 of each chunk
bare        inflating with nothing around it, through one reused buffer of the best size
jobs        a worker's whole job, without the index; next to no chunk is recompressed
unmeasured  in a daemon that is up: from the rename that brings the blobs to the answer that all is counted; next to no
            chunk is recompressed
scan        the same with settings as they come: 1 chunk in 16 is recompressed, for the net saving
process     `chunkd scan` from exec to exit, which is in good part starting Pythons where there is little to scan

The figures of every scan are compared with those of the parts; for the pinned npm layers these must be the published
ones. The files are in the page cache, their names are new, the index is on the same disk.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chunkd.model import CHUNK_HASH_BYTES
from chunkd.worker.spawn import core_count
from layers import layers_of
from measure import Bar, of_runs, save, take_turns
from parts import NEXT_TO_NOTHING, PARTS, best_buffer_bytes, codec, hashed_chunks, inflate, job, parts
from running import Stats, daemon, scan_process, seed_workers

# Of small caches more rounds, as they take no time and vary more.
SMALL_BYTES, ROUNDS_SMALL, ROUNDS = 200_000_000, 15, 3
PINNED = Path(__file__).parent.parent / "tests" / "vectors" / "npm_small.json"

Figures = dict[str, int]


class Case(NamedTuple):
    """A folder's layers, largest first, and the figures that every scan of them must come to."""

    name: str
    folder: Path
    layers: list[Path]
    processes: int
    pool: concurrent.futures.Executor
    figures: Figures


def main() -> None:
    results: dict[str, Any] = {}
    bars: list[Bar] = []
    with concurrent.futures.ProcessPoolExecutor(core_count(), multiprocessing.get_context("spawn")) as pool:
        for folder in map(Path, sys.argv[1:]):
            if not (folder / "blobs" / "sha256").is_dir():
                print(f"{folder}: no blobs/sha256 in it, left out", file=sys.stderr)
                continue
            case = opened_case(folder.absolute(), pool)
            results[case.name], found = compare(case)
            bars += found
    save("scan", results, bars)


def opened_case(folder: Path, pool: concurrent.futures.Executor) -> Case:
    """Exits when the pinned npm layers do not give the published figures."""
    layers = layers_of(folder)
    unique: dict[bytes, int] = {}
    uncompressed_bytes = chunks = 0
    for hashes, lengths in pool.map(hashed_chunks, layers):
        uncompressed_bytes += sum(lengths)
        chunks += len(lengths)
        for number, length in enumerate(lengths):
            unique[hashes[number * CHUNK_HASH_BYTES : (number + 1) * CHUNK_HASH_BYTES]] = length
    figures = {
        "layers": len(layers), "layer_stored_bytes": sum(path.stat().st_size for path in layers),
        "uncompressed_bytes": uncompressed_bytes, "chunks": chunks, "unique_chunks": len(unique),
        "unique_bytes": sum(unique.values()),
    }  # fmt: skip
    name = folder.name
    pinned = json.loads(PINNED.read_text())
    if {layer["sha256"] for layer in pinned["layers"]} == {path.name for path in layers}:
        name, totals = "npm_small", pinned["totals"]
        names = {"layer_stored_bytes": "on_disk", "uncompressed_bytes": "uncompressed"}
        compare_figures(f"{name}, as published", {key: totals[names.get(key, key)] for key in figures}, figures)
    return Case(name, folder, layers, min(core_count(), len(layers)), pool, figures)


def compare_figures(what: str, expected: Figures, found: Stats) -> None:
    if any(found[name] != value for name, value in expected.items()):
        sys.exit(f"{what}: the figures are {found}, and should be {expected}")


# --- the program itself ----------------------------------------------------------------------------------------------


def scan_in_daemon(case: Case, expected_s: float, flags: Sequence[str]) -> float:
    """Seconds from the rename that brings all blobs into an empty cache to the answer that they are counted."""
    with tempfile.TemporaryDirectory(dir=case.folder.parent, prefix="scan-") as place:
        cache, coming = Path(place, "cache"), Path(place, "coming")
        seed_workers(cache / "seed", case.processes)
        (coming / "blobs" / "sha256").mkdir(parents=True)
        for path in case.layers:
            os.link(path, coming / "blobs" / "sha256" / path.name)
        with daemon(Path(place, "state"), cache, flags=flags) as running:
            before = running.stats()
            start = time.perf_counter()
            coming.rename(cache / "layers")
            # Asking takes time from the workers: not before it can be done.
            after = running.scan(unasked_s=0.7 * expected_s)
            seconds = time.perf_counter() - start
        compare_figures(
            f"{case.name}, in a daemon", case.figures, {name: after[name] - before[name] for name in case.figures}
        )
    return seconds


def scan_as_process(case: Case) -> None:
    with tempfile.TemporaryDirectory(dir=case.folder.parent, prefix="scan-") as state:
        stats = json.loads(scan_process(Path(state), case.folder))
    compare_figures(f"{case.name}, chunkd scan", case.figures, stats)


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(case: Case) -> tuple[dict[str, Any], list[Bar]]:
    """Rounds in which all take turns: what is printed, as values, and the bars."""
    buffer_bytes = best_buffer_bytes(case.layers)
    rounds = ROUNDS_SMALL if case.figures["layer_stored_bytes"] < SMALL_BYTES else ROUNDS
    part_rounds: list[dict[str, float]] = []
    shortest_s: dict[str, float] = {}

    def all_parts() -> float:
        found = list(case.pool.map(functools.partial(parts, buffer_bytes=buffer_bytes), case.layers))
        taken = {name: sum(seconds[name] for seconds in found) / case.processes for name in (*PARTS, "chunker")}
        part_rounds.append(taken)
        return sum(taken[name] for name in PARTS)

    def bare() -> None:
        check_bytes("bare", case.pool.map(functools.partial(inflate, buffer_bytes=buffer_bytes), case.layers))

    def jobs() -> None:
        check_bytes(
            "jobs", case.pool.map(functools.partial(job, relayed=case.processes == 1, measured=False), case.layers)
        )

    def check_bytes(what: str, found: Iterable[int]) -> None:
        expected = {"uncompressed_bytes": case.figures["uncompressed_bytes"]}
        compare_figures(f"{case.name}, {what}", expected, {"uncompressed_bytes": sum(found)})

    def scan(name: str, *flags: str) -> float:
        taken_s = scan_in_daemon(case, shortest_s.get(name, 0.0), flags)
        # The shortest: a slow round's seconds would be waited out in the next, and found there.
        shortest_s[name] = min(taken_s, shortest_s.get(name, taken_s))
        return taken_s

    contenders = {
        "parts": all_parts,
        "bare": bare,
        "jobs": jobs,
        "unmeasured": lambda: scan("unmeasured", "--measure-one-in", str(NEXT_TO_NOTHING.rule.one_in)),
        "scan": lambda: scan("scan"),
        "process": lambda: scan_as_process(case),
    }
    seconds = take_turns(contenders, rounds)
    profile = {name: statistics.median(turn[name] for turn in part_rounds[1:]) for name in PARTS}
    own_s = statistics.median(turn["chunker"] - turn["kernel"] - turn["blake3"] for turn in part_rounds[1:])
    own_us = own_s * case.processes / case.figures["chunks"] * 1e6
    print(f"\n{case.name}: the chunker takes {own_us:.2f} µs a chunk beyond the kernel and BLAKE3")
    return _told(case, seconds, profile, buffer_bytes), bars_of(case, seconds)


def _told(case: Case, seconds: dict[str, list[float]], profile: dict[str, float], buffer_bytes: int) -> dict[str, Any]:
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    work_bytes = case.figures["uncompressed_bytes"]
    print(f"\n{case.name}: {case.figures}\n{case.processes} processes; bare inflating with {buffer_bytes >> 10} KiB")
    print(f"{'':<12}{'median s':>10}{'min':>9}{'max':>9}{'MB/s':>9}{'to parts':>10}{'rate to bare':>14}")
    for name, taken in seconds.items():
        rate = work_bytes / median[name] / 1e6
        print(
            f"{name:<12}{median[name]:>10.3f}{min(taken):>9.3f}{max(taken):>9.3f}{rate:>9.0f}"
            f"{median[name] / median['parts']:>10.2f}{median['bare'] / median[name]:>14.2f}"
        )
    # What a scan's seconds are made of, each step taken from the one before: what is negative was done side by side.
    shares = profile | {
        "a worker's job beyond its parts": median["jobs"] - median["parts"],
        "hand-over, index and commit": median["unmeasured"] - median["jobs"],
        "measuring 1 chunk in 16": median["scan"] - median["unmeasured"],
    }
    print("of a scan's seconds: " + ", ".join(f"{name} {share / median['scan']:.1%}" for name, share in shares.items()))
    return {
        "figures": case.figures, "processes": case.processes, "buffer_bytes": buffer_bytes, "work_bytes": work_bytes,
        "seconds": seconds, "median_s": median, "profile_s": shares,
    }  # fmt: skip


def bars_of(case: Case, seconds: dict[str, list[float]]) -> list[Bar]:
    def ratios(above: str, below: str) -> list[float]:
        return [one / other for one, other in zip(seconds[above], seconds[below], strict=True)]

    is_gzip = codec(case.layers[0]) == "gzip"
    if len(case.layers) == 1:
        return []
    least = {"npm_small": 0.55}.get(case.name, 0.62) if is_gzip else 0.60
    bars = []
    for name, said in (
        ("unmeasured", "scan in a daemon, next to nothing measured"),
        ("scan", "scan in a daemon"),
        ("process", "`chunkd scan`, the process"),
    ):
        if is_gzip:
            bars.append(of_runs(f"{case.name}: {said}, to the sum of its parts", ratios(name, "parts"), 1.10))
        bars.append(
            of_runs(f"{case.name}: {said}, to the rate of bare inflating", ratios("bare", name), least, at_least=True)
        )
    bars.append(
        of_runs(f"{case.name}: a scan, to one that measures next to nothing", ratios("scan", "unmeasured"), 1.15)
    )
    return bars


if __name__ == "__main__":
    main()
