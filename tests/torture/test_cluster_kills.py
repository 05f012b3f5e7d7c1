"""SIGKILL of the one who asks, of workers and of the scheduler while a cluster scans into a store (I3).

After each the command is run again: the figures are those of `chunkd scan`, and no finished segment was made again.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, noise, write_blob, zst
from chunkd.fleet.segment import read_blobs
from chunkd.fleet.store import Store
from clusters import Cluster, cluster
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Home, until
from deaths_of_tasks import Driver, kill_one, victims
from fleets import figures, merged
from test_scan_into_store import said, small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

KILLS = {"driver": share_of(20, 3), "worker": share_of(20, 3), "scheduler": share_of(10, 2)}
# A worker of the cluster, the process of a task, or one that decodes for it.
WORKERS = ("machine", "task", "worker")
LAYERS, BLOBS_A_TASK = 23, 3


def finished(store: Store) -> dict[str, tuple[int, int]]:
    """The inode of each finished segment, and how many blobs it has."""
    return {
        name: (Path(store.path, f"segments/{name}.blobs.parquet").stat().st_ino, read_blobs(store, name).table.num_rows)
        for name in store.names("segments", ".blobs.parquet")
    }


def kill(root: Path, what: str, found: Cluster, process: Driver, draw: random.Random) -> str:
    """Kill one of these, which is what the word says."""
    if what == "scheduler":
        found.kill(found.scheduler)
        return what
    if what == "driver":
        process.send_signal(signal.SIGKILL)
        return what
    victim = draw.choice(WORKERS)
    if victim == "machine":
        found.kill(draw.choice(found.workers))
        return victim
    until(lambda: process.poll() is not None or victims(root, process, victim), bool, f"a {victim}")
    return victim if kill_one(root, process, victim, draw) else f"no {victim} any more"


def drawn_cache(home: Home, draw: random.Random, sizes: Sequence[int]) -> Path:
    """LAYERS layers of these sizes, every other one as zstd, and a blob that is not a layer."""
    cache = home.cache()
    for number in range(LAYERS):
        data = layer(number, draw.choice(sizes))
        write_blob(cache, gz(data) if number % 2 else zst(data))
    write_blob(cache, noise(500, 1))
    return cache


@pytest.mark.long(130)
def test_kills_on_a_cluster_lose_nothing_and_redo_no_segment(home: Home, seed: int, tell: Tell) -> None:
    draw = random.Random(seed)
    cache = drawn_cache(home, draw, (60_000, 300_000, 2_000_000))
    blobs = LAYERS + 1
    expected: dict[str, Any] = figures(home.scan(cache))
    hows = [what for what, count in KILLS.items() for _ in range(count)]
    draw.shuffle(hows)
    counts, reread, kept = Counter[str](), 0, 0
    with cluster(home.root, home.environ) as found:
        engine = ("--engine", f"dask:{found.address}", "--workers", 1)
        began_s = time.monotonic()
        whole = said(home, small(home, BLOBS_A_TASK, cache, *engine, store="whole"))
        assert whole["segments"] == blobs // BLOBS_A_TASK
        longest_s = time.monotonic() - began_s
        for number, how in enumerate(hows):
            store = Store(str(home.root / f"store-{number}"))
            process = small(home, BLOBS_A_TASK, cache, *engine, store=Path(store.path).name)
            time.sleep(draw.uniform(0, longest_s))
            counts[kill(home.root, how, found, process, draw)] += 1
            code = process.wait(2 * PATIENCE_S)
            if how == "worker":
                assert code == 0, (home.root / "err").read_text()
            found.mend()
            before = finished(store)
            again = said(home, small(home, BLOBS_A_TASK, cache, *engine, store=Path(store.path).name))
            # What the tasks of one that was killed were about to put is put by them, or by this run.
            assert before.items() <= finished(store).items()
            done_before = sum(count for _, count in before.values())
            assert again["reused"] >= done_before
            assert again["read"] + again["reused"] == again["counted"] == blobs
            assert figures(merged(store)) == expected
            reread, kept = reread + again["read"], kept + again["reused"]
    tell(f"{len(hows)} kills: {dict(sorted(counts.items()))}")
    tell(
        f"of {len(hows) * blobs} blobs the runs after them found {kept} done, and read {reread}; no segment was redone"
    )
    assert counts["driver"] == KILLS["driver"]
    assert counts["scheduler"] == KILLS["scheduler"]
    assert kept > 0
