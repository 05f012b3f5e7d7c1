"""SIGKILL of the one who asks, of workers and of the scheduler while a cluster sweeps into a store.

After each the command is run again: its reply is that of `chunkd sweep`, and no finished result was made again.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

import pytest

from blobs import gz, layer, write_blob
from clusters import cluster
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Home
from sweeping import swept
from test_cluster_kills import LAYERS, drawn_cache, kill
from test_sweep_command import figures_of
from test_sweep_into_store import results, said, small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

KILLS = {"driver": share_of(10, 2), "worker": share_of(10, 2), "scheduler": share_of(5, 1)}


def test_kills_of_a_sweep_on_a_cluster_redo_no_result(home: Home, seed: int, tell: Tell) -> None:
    draw = random.Random(seed)
    cache = drawn_cache(home, draw, (60_000, 300_000, 1_000_000))
    expected = figures_of(swept(home, cache))
    hows = [what for what, count in KILLS.items() for _ in range(count)]
    draw.shuffle(hows)
    counts, kept = Counter[str](), 0
    with cluster(home.root, home.environ) as found:
        engine = ("--engine", f"dask:{found.address}", "--workers", 1)
        began_s = time.monotonic()
        assert figures_of(said(small(home, cache, *engine, store="whole"))) == expected
        longest_s = time.monotonic() - began_s
        for number, how in enumerate(hows):
            store = f"store-{number}"
            process = small(home, cache, *engine, store=store)
            time.sleep(draw.uniform(0, longest_s))
            counts[kill(home.root, how, found, process, draw)] += 1
            process.communicate(timeout=2 * PATIENCE_S)
            if how == "worker":
                assert process.returncode == 0
            found.mend()
            before = results(home, store)
            again = said(small(home, cache, *engine, store=store))
            # What the tasks of one that was killed were about to put is put by them, or by this run.
            assert before.items() <= results(home, store).items()
            assert again["layers"]["from_earlier_runs"] >= len(before)
            assert figures_of(again) == expected
            assert len(results(home, store)) == LAYERS + 1
            kept += again["layers"]["from_earlier_runs"]
    tell(f"{len(hows)} kills: {dict(sorted(counts.items()))}")
    tell(f"of {len(hows) * (LAYERS + 1)} results the runs after them found {kept}; none was made again")
    assert counts["driver"] == KILLS["driver"]
    assert kept > 0


def test_two_sweeps_at_once_are_as_good_as_one(home: Home) -> None:
    cache = home.cache()
    for number in range(12):
        write_blob(cache, gz(layer(number, 200_000)))
    expected = figures_of(swept(home, cache))
    both = [small(home, cache, "--workers", 1) for _ in range(2)]
    assert [figures_of(said(one)) for one in both] == [expected, expected]
    assert len(results(home)) == 12
    assert not list((home.root / "store").glob("sweeps/*/.*.new"))
