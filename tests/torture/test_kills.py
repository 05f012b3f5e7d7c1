"""kill -9 at any moment, of the daemon or of a worker, while blobs land, are replaced and go.

After each death the index is recounted as it lies there; after each restart the figures are those of the blobs that are
there, and nothing was opened that the index had already, but for what was touched or in a dead worker's hand.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import blobs
import churn
import indexing
import oracle
from answering import short_directory
from chunkd.check.recount import recount
from chunkd.errors import IndexMissing
from chunkd.index.storage.environment import reading
from churn import Made
from conftest import Tell
from counts import share_of
from daemon import FIGURES, Home, opened
from deaths import KINDS, NEVER, Deaths

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, preloads, and counts by inotify")

KILLS = share_of(300, 60)
IN_A_COMMIT = share_of(60, 15)
SOMEWHERE = share_of(30, 6)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("shim") / "kill_at.so"
    source = Path(__file__).with_name("kill_at.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-o", built, source], check=True)
    return built


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


def contents_for(rng: random.Random) -> list[Made]:
    """Layers of a few milliseconds to a few hundred that share blocks, and some that are none or are broken."""
    found = []
    for at in range(44):
        count = rng.choice((20, 60, 200, 400, 800, 3000)) + at
        shared = rng.randrange(2000)
        blocks = [*range(shared, shared + count // 2), *(10_000 * (at + 1) + number for number in range(count // 2))]
        rng.shuffle(blocks)
        found.append(churn.made(blocks, rng.choice((churn.gz, churn.gz, blobs.zst))))
    found += [churn.other(number) for number in range(8)]
    found += [churn.broken(range(number, number + 50)) for number in range(4)]
    return found


def test_a_block_is_one_chunk_whatever_comes_before() -> None:
    blocks = [5, 3, 3, 9]
    recipe = oracle.recipe(b"".join(map(churn.block, blocks)))
    chunks = [churn.chunk(seed) for seed in blocks]
    # What a made-up chunk takes when it is recompressed is made up.
    assert replace(recipe, measured=b"") == replace(indexing.recipe_of(chunks), measured=b"")


@pytest.mark.long(34)
def test_deaths_lose_nothing_and_read_nothing_twice(home: Home, shim: Path, seed: int, tell: Tell) -> None:
    rng = random.Random(seed)
    deaths = Deaths(home, shim, contents_for(rng), rng)
    hows = ["commit"] * IN_A_COMMIT + ["somewhere"] * SOMEWHERE
    rng.shuffle(hows)
    workers = KILLS - len(hows)
    for number, how in enumerate(hows, 1):
        due = workers * number // len(hows) - deaths.workers_killed
        deaths.live(how, due, rng.random() < 0.3, number)
    daemon = home.start(*deaths.caches, environ=NEVER)
    while deaths.workers_killed < workers:
        deaths.step()
        deaths.kill_a_worker(daemon)
    stats = deaths.caught_up(daemon)
    deaths.account(daemon)
    deaths.opens.close()

    assert {name: stats[name] for name in FIGURES} == home.fresh(*deaths.caches)
    home.check("--read")
    assert daemon.stop() == 0
    fresh = home.root / "fresh"
    home.scan(*deaths.caches, state=fresh)
    recipes = indexing.recipes_of(indexing.records_of(home.state))
    assert recipes == indexing.recipes_of(indexing.records_of(fresh))
    assert recipes == churn.recipes_of(one for one in deaths.churn.present().values() if not one.broken)

    for what, count in sorted(deaths.counts.items()):
        tell(f"{count:4} {what}")
    tell(f"{deaths.churn.done.total()} steps: {dict(deaths.churn.done)}; {deaths.opened} blobs opened")
    assert deaths.counts["in a commit"] == IN_A_COMMIT
    assert deaths.kills >= KILLS
    assert [kind for kind in KINDS if not deaths.counts[kind]] == []


# --- an index that is being made --------------------------------------------------------------------------------------

# Each death is that of a fork, which alone has LMDB open: an import for each would take a minute.
MAKE = """
import itertools, os, sys
from pathlib import Path
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.model import Cache

folder, moment = Path(sys.argv[1]), sys.argv[2]
for number in itertools.count(1):
    Path(os.environ["KILL_AT"]).write_text(f"any {moment} {number}")
    pid = os.fork()
    if not pid:
        index = Index(str(folder / f"{moment}-{number}"), Rules(), "a test")
        with index.transaction() as change:
            change.set_caches({1: Cache("/cache")})
        index.close()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status != 9:
        sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_death_at_every_write_of_an_index_that_is_being_made(tmp_path: Path, shim: Path, tell: Tell) -> None:
    environ = os.environ | {
        "LD_PRELOAD": str(shim), "KILL_AT": str(tmp_path / "order"), "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    for moment in ("before", "half"):
        subprocess.run([sys.executable, "-c", MAKE, tmp_path, moment], env=environ, check=True)
    states = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(states) > 20
    for state in states:
        with contextlib.suppress(IndexMissing), reading(str(state)) as store, store.env.begin() as txn:
            assert recount(store, txn).differences == [], state.name
        with indexing.recounted(state) as bench:
            bench.add(1, indexing.chunks_of(range(9)))
    tell(f"{len(states) - 2} deaths at a write or sync of a new index")
