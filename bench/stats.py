"""What does it cost to ask? `chunkd stats` as a whole process, with a daemon up, against `python -c pass`.

    python bench/stats.py [CHUNKS]     10,000,000 unless said

Asks through the console script beside this Python, as a user does. Taking turns with it: the other short questions,
`stats` where there is a settings file, `--version` and `--help`, and a bare request by curl.
The figures must be those of the index, as a model has them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chunkd import __version__
from chunkd.figures.totals import Totals
from chunkd.model import Cache
from made_up import grown
from measure import of_runs, save, take_turns
from running import daemon, environ

LAYER_CHUNKS = 500_000
ROUNDS = 30
BAR = 8.0
PYTHON, STATS = "python -c pass", "chunkd stats"
STALE = 7  # the made-up cache lies on no device of this machine


def make(state: Path, cache: Path, chunks: int) -> Totals:
    """An index of so many chunks, all different, said to be of an empty cache."""
    layers = chunks // LAYER_CHUNKS
    with grown(str(state), layers * LAYER_CHUNKS) as index:
        for _ in range(layers):
            index.new(LAYER_CHUNKS)
        root = cache.stat()
        with index.index.transaction() as change:
            # A root on another device than recorded: the daemon keeps its figures, and says so beside them.
            change.set_caches({1: Cache(str(cache), root.st_dev + 1, root.st_ino)})
        return index.totals


def check(stats: dict[str, Any], totals: Totals) -> None:
    expected = {name: value for name, value in dataclasses.asdict(totals).items() if name in stats}
    found = {name: stats[name] for name in expected}
    if found != expected or stats["unique_chunks"] == 0:
        sys.exit(f"the figures are {found}, and the index has {expected}")


def process(*command: str, says: str = "", exit_code: int = 0, environment: dict[str, str]) -> Callable[[], None]:
    """Runs the command to its end. Exits when its code is another, or `says` is not in what it prints."""

    def run() -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=False)
        if done.returncode != exit_code or says not in done.stdout:
            sys.exit(f"{' '.join(command)}: ended with {done.returncode}, and said {done.stdout!r}")

    return run


def main() -> None:
    script = shutil.which("chunkd", path=str(Path(sys.executable).parent))
    if script is None:
        sys.exit("there is no console script beside this Python: install the package")
    with tempfile.TemporaryDirectory(dir=".", prefix="stats-") as folder:
        state, cache, home = Path(folder, "state").absolute(), Path(folder, "cache").absolute(), Path(folder).absolute()
        cache.mkdir()
        totals = make(state, cache, int(sys.argv[1] if len(sys.argv) > 1 else 10_000_000))
        with daemon(state, cache) as running:
            # The usual places are looked at for a settings file, and have none. Modules are compiled, as installed.
            unset = ("CHUNKD_CONFIG", "PYTHONDONTWRITEBYTECODE")
            bare = {name: value for name, value in environ(home).items() if name not in unset}
            (home / "one.toml").write_text("workers = 1\n")
            filed = bare | {"CHUNKD_CONFIG": str(home / "one.toml")}
            asks = ("--socket", str(running.socket))
            told = subprocess.run([script, "stats", "--json", *asks], env=bare, capture_output=True, check=False)
            check(json.loads(told.stdout), totals)
            figure = f"{totals.unique_chunks:,}"
            contenders = {
                PYTHON: process(sys.executable, "-c", "pass", environment=bare),
                STATS: process(script, "stats", *asks, says=figure, exit_code=STALE, environment=bare),
                "chunkd stats --json": process(
                    script, "stats", "--json", *asks, says=str(totals.unique_bytes), exit_code=STALE, environment=bare
                ),
                "chunkd stats, with a settings file": process(
                    script, "stats", *asks, says=figure, exit_code=STALE, environment=filed
                ),
                "chunkd health": process(script, "health", *asks, says="stale", exit_code=6, environment=bare),
                "chunkd --version": process(script, "--version", says=__version__, environment=bare),
                "chunkd --help": process(script, "--help", says="scan", environment=bare),
            }
            if curl := shutil.which("curl"):
                command = (curl, "--silent", "--unix-socket", str(running.socket), "http://chunkd/v1/stats")
                contenders["curl --unix-socket"] = process(
                    *command, says=str(totals.unique_bytes), environment=dict(os.environ)
                )
            seconds = take_turns(contenders, ROUNDS)
            check(running.stats(), totals)
    tell(totals, seconds)


def tell(totals: Totals, seconds: dict[str, list[float]]) -> None:
    base_s = statistics.median(seconds[PYTHON])
    print(f"{totals.unique_chunks:,} chunks in {totals.layers:,} layers; medians of {ROUNDS}")
    print(f"{'':<36}{'median ms':>10}{'min':>9}{'max':>9}{'ratio':>8}   to {PYTHON}")
    for name, taken in seconds.items():
        median_s = statistics.median(taken)
        low, middle, high = (1000 * value for value in (min(taken), median_s, max(taken)))
        print(f"{name:<36}{middle:>10.1f}{low:>9.1f}{high:>9.1f}{median_s / base_s:>8.2f}")
    what = f"{STATS} as a whole process at {totals.unique_chunks:,} chunks, to {PYTHON}"
    ratios = [taken_s / base_s for taken_s in seconds[STATS]]
    save("stats", {"chunks": totals.unique_chunks, "seconds": seconds}, [of_runs(what, ratios, BAR)])


if __name__ == "__main__":
    main()
