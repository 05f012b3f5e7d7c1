"""Comparing in one run: contenders take turns, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def take_turns(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each contender in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
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


def save(name: str, content: Mapping[str, Any]) -> None:
    """Write the results as JSON, with the machine that they are of."""
    machine = {"python": sys.version.split()[0], "platform": platform.platform(), "cores": os.cpu_count()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine} | dict(content), indent=1) + "\n")
    print(f"\nwritten to {path}")
