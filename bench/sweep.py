"""What does a sweep cost a worker, against a plain scan, and how much memory does its largest process take?

    python bench/sweep.py FOLDER [LAYERS]     FOLDER holds blobs/sha256/<hex>; its first LAYERS layers by name

scan    a worker's whole job for each layer, as a daemon has it: one rule, and 1 chunk in 16 is recompressed
eight   the same for eight gear rules at once
zstd    the same, and each layer as zstd at level 3
all     all rules, and each layer as zstd at level 3

Seconds are of the processor. All read the layers one after the other in one process. Then `chunkd sweep` runs as it
comes, over the whole folder, and its processes are looked at until it ends (Linux).
"""

from __future__ import annotations

import functools
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chunkd.chunkers import profiles
from chunkd.model import Caps, Digest, MeasureRule
from chunkd.sources.folder import FolderSource
from chunkd.sweep.messages import SweepJob
from chunkd.sweep.worker import swept
from layers import layers_of
from measure import Bar, save, table, take_turns
from parts import job

EIGHT = "1/4/16,1/8/32,2/16/64,4/32/128,8/64/256,16/128/512,32/256/1024,64/512/2048"
ROUNDS = 3
MOST_TIMES = 4.0
MOST_MEMORY_MIB = 256.0


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    layers = sorted(layers_of(folder), key=lambda path: path.name)
    layers = layers[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
    sizes = [job(path, relayed=False) for path in layers]
    eight = profiles.parse(EIGHT)
    contenders = {
        "scan": functools.partial(cpu_s, lambda path: job(path, relayed=False), layers, sizes),
        "eight": functools.partial(cpu_s, functools.partial(sweep, eight, False), layers, sizes),
        "zstd": functools.partial(cpu_s, functools.partial(sweep, eight, True), layers, sizes),
        "all": functools.partial(cpu_s, functools.partial(sweep, profiles.ALL, True), layers, sizes),
    }
    seconds = take_turns(contenders, ROUNDS)
    results = table(f"{folder.name}: {len(layers)} layers", seconds, sum(sizes), "scan")
    times = [one / other for one, other in zip(seconds["eight"], seconds["scan"], strict=True)]
    bars = [
        Bar(
            "CPU of eight gear rules, to a scan's",
            statistics.median(times),
            MOST_TIMES,
            spread=(min(times), max(times)),
        )
    ]
    memory_mib, seconds_s = memory(folder)
    print(
        f"\nchunkd sweep with {len(profiles.ALL)} rules: {seconds_s:.1f} s, {memory_mib:.0f} MiB in its largest process"
    )
    bars.append(Bar("memory of the largest process of a sweep", memory_mib, MOST_MEMORY_MIB, "MiB"))
    save("sweep", {"cpu": results, "memory_mib": memory_mib, "sweep_s": seconds_s}, bars)


def cpu_s(read: Any, layers: list[Path], sizes: list[int]) -> float:
    """Seconds of the processor for all layers. Exits when one has other bytes than it should."""
    begun_s = time.process_time()
    if [read(path) for path in layers] != sizes:
        sys.exit("the layers decompress to other sizes than before")
    return time.process_time() - begun_s


def sweep(rules: tuple[profiles.Profile, ...], baselines: bool, path: Path) -> int:
    with FolderSource(str(path.parent)).view() as view:
        descriptor, seen = view.open(path.name)
    whole = SweepJob(Digest("sha256", path.name), seen.mark)
    found = swept(whole, descriptor, rules, MeasureRule(), Caps(), lambda *_: None, lambda _: None, baselines=baselines)
    if any(totals.bytes != found.uncompressed_bytes for totals in found.totals):
        sys.exit(f"{path.name}: the chunks do not add up to the layer")
    return found.uncompressed_bytes


def memory(folder: Path) -> tuple[float, float]:
    """The most memory that one process of `chunkd sweep` takes, in MiB, and the seconds until it ends."""
    most_kib = 0
    with tempfile.TemporaryDirectory() as state:
        begun_s = time.monotonic()
        words = [sys.executable, "-m", "chunkd", "sweep", str(folder), "--state", state, "--quiet", "--nice", "0"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                most_kib = max(most_kib, *map(peak_kib, below(process.pid)))
                time.sleep(0.05)
        if process.returncode:
            sys.exit(f"chunkd sweep ended with {process.returncode}")
        return most_kib / 1024, time.monotonic() - begun_s


def below(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    return found + list(itertools.chain.from_iterable(below(int(child)) for child in children))


def peak_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
