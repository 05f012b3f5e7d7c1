"""SIGKILL at any step of an export or of a merge costs the work in hand: run again, all is as if it had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import forked
from chunkd.fleet.store import Store
from conftest import Tell
from counts import counted
from fleets import figures, fill, merged, of_one_index, put_host, split
from indexing import chunks_of, recounted
from stores import Blobs, store_at

pytestmark = pytest.mark.counted

BLOBS: Blobs = {number: chunks_of(range(number * 40, number * 40 + 60)) for number in range(1, 9)} | {20: [], 21: []}
KILLED = Path(__file__).parent / "killed.py"


def run(step: int, *args: object) -> tuple[int, list[int]]:
    """How it ended, and the numbers that it printed."""
    done = forked.run([str(step), *map(str, args)], os.environ, 60, script=KILLED)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, [int(word) for word in done.stdout.split()]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with recounted(tmp_path / "state") as bench:
        fill(bench, BLOBS)
        bench.close()
        yield bench.state_dir


def segments_in(store: Store) -> set[str]:
    return set(store.names("segments", ".blobs.parquet"))


def steps_of(tmp_path: Path, state: Path) -> tuple[int, int]:
    """How many steps an export has, and how many segments it makes."""
    copy = tmp_path / "copy"
    shutil.copytree(state, copy)
    (copy / "source").unlink(missing_ok=True)
    _, (segments, _, steps) = run(0, "export", copy, tmp_path / "another store")
    return steps, segments


def test_an_export_that_is_killed_at_any_step(tmp_path: Path, state: Path, seed: int, tell: Tell) -> None:
    expected = of_one_index(tmp_path / "expected", BLOBS)
    steps, segments = steps_of(tmp_path, state)
    assert segments >= 4
    assert steps > 60
    draw = random.Random(seed)
    # Its last steps put the snapshot, which is what it is all for.
    at = sorted({*draw.sample(range(1, steps), counted(40) - 2), steps - 3, steps})
    redone = found = 0
    for step in at:
        store = tmp_path / f"store {step}"
        (state / "source").unlink(missing_ok=True)
        code, _ = run(step, "export", state, store)
        assert code == -signal.SIGKILL, step
        finished = segments_in(Store(str(store)))
        found += len(finished)
        code, (made, reused, _) = run(0, "export", state, store)
        assert code == 0
        # When the kill came after the snapshot, nothing is left to do.
        assert made == segments - len(finished)
        assert reused in (len(finished), 0)
        redone += made + len(finished) - segments
        assert figures(merged(Store(str(store)))) == expected
    assert redone == 0
    tell(f"{len(at)} exports of {segments} segments killed at {steps} steps: none of {found} finished segments redone")


def test_a_merge_that_is_killed_at_any_step_leaves_the_store_as_it_was(tmp_path: Path, seed: int, tell: Tell) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1, 2, 3]), split(BLOBS, [4, 20])])
    put_host(store, 1, [split(BLOBS, [3, 4, 5]), split(BLOBS, [6, 7, 8, 21])])
    before = {path: path.read_bytes() for path in Path(store.path).rglob("*") if path.is_file()}
    expected = figures(merged(store))
    _, (layers, _, steps) = run(0, "merge", store.path)
    assert layers == 8
    at = random.Random(seed).sample(range(1, steps), min(steps - 1, counted(40)))
    for step in at:
        code, _ = run(step, "merge", store.path)
        assert code == -signal.SIGKILL
        assert {path: path.read_bytes() for path in Path(store.path).rglob("*") if path.is_file()} == before
    assert figures(merged(store)) == expected
    tell(f"{len(at)} merges killed at {steps} steps")
