"""Comparing in one run: contenders take turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class Bar(NamedTuple):
    """What was reached, and what is asked for: `figure` is at most `bar`, or at least where `at_least` is true.

    `spread` is the least and the most of the runs, where there were several.
    """

    what: str
    figure: float
    bar: float
    unit: str = "times"
    at_least: bool = False
    spread: tuple[float, float] | None = None

    @property
    def reached(self) -> bool:
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar


def of_runs(what: str, figures: Sequence[float], bar: float, unit: str = "times", at_least: bool = False) -> Bar:
    """A bar held against the median of several runs."""
    return Bar(what, statistics.median(figures), bar, unit, at_least, (min(figures), max(figures)))


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each contender in each round, after one round that is not counted.

    A contender that returns a float has timed itself: that is taken for its seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            timed = run()
            taken = timed if isinstance(timed, float) else time.perf_counter() - start
            if turn:
                seconds[name].append(taken)
    return seconds


def table(title: str, seconds: Mapping[str, list[float]], work_bytes: int, against: str) -> dict[str, Any]:
    """Print median, least and most seconds with the rate, and the ratio of rates to one contender; as values, too."""
    base = statistics.median(seconds[against])
    rows = {}
    print(f"\n{title}\n{'':<34}{'median s':>10}{'min':>9}{'max':>9}{'MB/s':>9}{'ratio':>8}   to {against}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rows[name] = {
            "median_s": median, "min_s": min(taken), "max_s": max(taken),
            "rate_bytes_per_s": work_bytes / median, "ratio": base / median,
        }  # fmt: skip
        rate = work_bytes / median / 1e6
        print(f"{name:<34}{median:>10.4f}{min(taken):>9.4f}{max(taken):>9.4f}{rate:>9.0f}{base / median:>8.2f}")
    return {"title": title, "against": against, "work_bytes": work_bytes, "rows": rows}


def save(name: str, content: Mapping[str, Any], bars: Sequence[Bar] = ()) -> None:
    """Write the results as JSON, with the machine that they are of; `bench/bars.py` shows all bars in one table."""
    machine = {"python": sys.version.split()[0], "platform": platform.platform(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    named = [bar._asdict() for bar in bars]
    path.write_text(json.dumps({"machine": machine} | dict(content) | {"bars": named}, indent=1) + "\n")
    print(f"\nwritten to {path}")
