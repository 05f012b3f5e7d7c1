"""What does the index cost as it grows, and what do a further copy, a huge layer and a compaction cost?

    python bench/index.py [CHUNKS]     50,000,000 unless said, which take some minutes: the bars are for these

The index grows by layers of 50,000 new chunks. At 1, 2, 5, 10, 20 and 50 million chunks it is asked what a layer costs
(CPU seconds and bytes written, fsync on, decoding left out): one of new chunks, one that is known as a whole, one of
known chunks in runs from anywhere, the removal of each, and a small layer. In the end a layer of a million new chunks
lands in one transaction, and a tenth of all layers goes and is swept. After each transaction the totals are held
against a model's, and at the end the index is recounted.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from chunkd.index import compaction
from chunkd.index.blocks import Numbers
from made_up import Cost, Grown, Layer, grown, in_runs
from measure import RESULTS, Bar, of_runs, save

LAYER_CHUNKS = 50_000
SMALL_CHUNKS = 185  # the mean of the 90 npm layers
HUGE_CHUNKS = 1_000_000
STEPS = (1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000)
AGAIN = 5
# A sweep begins by itself when a quarter is dead. Here it is a tenth.
DEAD_PART = 10

# The most CPU seconds and bytes written for a layer.
NEW, KNOWN, REMOVED = (0.20, 36e6), (0.15, 3.5e6), (0.03, 3.5e6)
LAYER_BARS = {
    "new": NEW,
    "known": KNOWN,
    "known, removed": REMOVED,
    "in runs of 200": KNOWN,
    "in runs of 200, removed": REMOVED,
    "new, removed": REMOVED,
}
COPY_BARS = {"in runs of 200": 0.1, "in runs of 4": 2.0}


@dataclass
class Step:
    """What was found at a number of chunks."""

    chunks: int
    chunk_bytes: float
    file_to_used: float
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    copy_bytes: dict[str, float] = field(default_factory=dict)

    def told(self) -> None:
        print(
            f"\nat {self.chunks:,} chunks: {self.chunk_bytes:.2f} bytes each in used pages, "
            f"the file is {self.file_to_used:.2f} times those\n"
            f"{'a layer':<30}{'CPU s':>9}{'min':>9}{'max':>9}{'s':>9}{'MB written':>12}{'bytes a copy':>14}"
        )
        for kind, costs in self.costs.items():
            cpu_s = [cost.cpu_s for cost in costs]
            copy = f"{self.copy_bytes[kind]:>14.3f}" if kind in self.copy_bytes else ""
            print(
                f"{kind:<30}{statistics.median(cpu_s):>9.4f}{min(cpu_s):>9.4f}{max(cpu_s):>9.4f}"
                f"{statistics.median(cost.wall_s for cost in costs):>9.4f}"
                f"{statistics.median(cost.written_bytes for cost in costs) / 1e6:>12.2f}{copy}"
            )


def growth(made: Grown, chunks: int, landed: list[Layer]) -> Iterator[Step]:
    """Grow to so many chunks, noting each layer in `landed`, and tell at each step what was found."""
    random = np.random.default_rng(1)
    for goal in [*(step for step in STEPS if step < chunks), chunks]:
        costs = []
        while len(landed) * LAYER_CHUNKS < goal:
            layer, cost = made.new(LAYER_CHUNKS)
            landed.append(layer)
            costs.append(cost)
        used_bytes = made.used_bytes()
        step = Step(goal, used_bytes / made.chunks, made.index.store.index_bytes() / used_bytes)
        step.costs["new"] = costs[-2 * AGAIN :]
        known_again(made, step, landed, random)
        for layer in landed[-AGAIN:]:
            step.costs.setdefault("new, removed", []).append(made.remove(layer))
        for place, layer in enumerate(landed[-AGAIN:], len(landed) - len(landed[-AGAIN:])):
            landed[place], cost = made.add(layer.numbers.astype(np.int64))
            step.costs.setdefault("revived", []).append(cost)
        step.costs["small"] = [made.new(SMALL_CHUNKS)[1] for _ in range(AGAIN)]
        yield step


def known_again(made: Grown, step: Step, landed: list[Layer], random: np.random.Generator) -> None:
    """Layers of known chunks, what they add to the used pages, and their removal."""
    numbers: dict[str, Callable[[], Numbers]] = {
        "known": lambda: landed[random.integers(len(landed))].numbers.astype(np.int64),
        "in runs of 200": lambda: in_runs(random, LAYER_CHUNKS, 200, made.chunks),
        "in runs of 4": lambda: in_runs(random, LAYER_CHUNKS, 4, made.chunks),
    }
    for kind, drawn in numbers.items():
        before = made.used_bytes()
        added = [made.add(drawn()) for _ in range(AGAIN)]
        step.copy_bytes[kind] = (made.used_bytes() - before) / (AGAIN * LAYER_CHUNKS)
        step.costs[kind] = [cost for _, cost in added]
        step.costs[f"{kind}, removed"] = [made.remove(layer) for layer, _ in added]


def swept(made: Grown, landed: list[Layer]) -> list[tuple[float, float]]:
    """Remove a tenth of the layers, drawn at random, and sweep: wall and CPU seconds of each slice."""
    random = np.random.default_rng(2)
    for place in random.permutation(len(landed))[: -(-len(landed) // DEAD_PART)].tolist():
        made.remove(landed[place])
    slices = []
    with mock.patch.multiple(compaction, WORTH_PART=2 * DEAD_PART, WORTH_CHUNKS=1):
        sweeper, more = compaction.Compaction(made.index), True
        while more:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            more = sweeper.turn()
            slices.append((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    with made.index.snapshot() as txn:
        assert made.index.store.head(txn).dead_chunks < 400 * len(landed), "whole blocks of dead chunks are left"
    return slices


def bars_of(last: Step) -> list[Bar]:
    """The bars for layers, held against what was found at the last step."""
    bars = [
        Bar("used pages a chunk", last.chunk_bytes, 35, "bytes"),
        Bar("the file to its used pages", last.file_to_used, 1.4),
    ]
    for kind, most in COPY_BARS.items():
        bars.append(Bar(f"a further copy {kind}", last.copy_bytes[kind], most, "bytes"))
    for kind, (cpu_s, wrote_bytes) in LAYER_BARS.items():
        bars.append(of_runs(f"a layer {kind}", [cost.cpu_s for cost in last.costs[kind]], cpu_s, "CPU s"))
        wrote = [cost.written_bytes / 1e6 for cost in last.costs[kind]]
        bars.append(of_runs(f"a layer {kind}", wrote, wrote_bytes / 1e6, "MB written"))
    return bars


def asked(chunks: int, folder: str) -> tuple[dict[str, Any], list[Bar]]:
    """All figures and bars for an index of so many chunks."""
    landed: list[Layer] = []
    results: dict[str, Any] = {"chunks": chunks, "cost": Cost._fields, "steps": []}
    with grown(folder, chunks + HUGE_CHUNKS + len(STEPS) * AGAIN * SMALL_CHUNKS + SMALL_CHUNKS * AGAIN) as made:
        for step in growth(made, chunks, landed):
            step.told()
            results["steps"].append(dataclasses.asdict(step))
        bars = bars_of(step)
        _, huge = made.new(HUGE_CHUNKS)
        results["huge"] = huge
        bars.append(Bar(f"a layer of {HUGE_CHUNKS:,} new chunks", huge.wall_s, 2, "s"))
        slices = swept(made, landed)
        results["sweep"] = slices
        bars.append(Bar("a compaction of a tenth", sum(wall_s for wall_s, _ in slices), 6, "s"))
        bars.append(Bar("its longest slice", max(wall_s for wall_s, _ in slices), 0.25, "s"))
        print(
            f"\na layer of {HUGE_CHUNKS:,} new chunks: {huge.cpu_s:.3f} s CPU, {huge.wall_s:.3f} s, "
            f"{huge.written_bytes / 1e6:.1f} MB written\n"
            f"a compaction of a tenth: {sum(cpu_s for _, cpu_s in slices):.3f} s CPU in {len(slices)} slices"
        )
        start = time.perf_counter()
        made.recount()
        print(f"recount: no difference, in {time.perf_counter() - start:.1f} s")
    return results, bars


def plot(steps: list[dict[str, Any]], path: str) -> None:
    """CPU seconds and MB written for a layer over the number of chunks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, name, scale, label in zip(
        figure.subplots(1, 2), ("cpu_s", "written_bytes"), (1, 1e6), ("CPU seconds", "MB written"), strict=True
    ):
        for kind in steps[0]["costs"]:
            medians = [statistics.median(getattr(cost, name) for cost in step["costs"][kind]) / scale for step in steps]
            axes.plot([step["chunks"] for step in steps], medians, marker="o", label=kind)
        axes.set(xscale="log", yscale="log", xlabel="unique chunks in the index", title=f"{label} for a layer")
        axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def main() -> None:
    chunks = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000_000
    with tempfile.TemporaryDirectory(dir=".") as folder:
        results, bars = asked(chunks, folder)
    print()
    for bar in bars:
        missed = "" if bar.reached else ": not reached"
        print(f"{bar.what:<40}{bar.figure:>9.3f} {bar.unit:<11} at most {bar.bar:g}{missed}")
    save("index", results, bars)
    plot(results["steps"], str(RESULTS / "index.svg"))


if __name__ == "__main__":
    main()
