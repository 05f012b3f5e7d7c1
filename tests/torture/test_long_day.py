"""A long day: landings and removals with restarts between, and what the daemon holds on to meanwhile.

TORTURE_DAY_S is how many seconds they take at least, 0 by default: as fast as the daemon follows.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import blobs
import churn
from answering import short_directory
from churn import Churn, Made
from conftest import Tell
from counts import share_of
from daemon import BRISK, FIGURES, Daemon, Home, figures, opened, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# No scan by the timer, and no threads of numpy's algebra, of which the daemon has no use.
ENVIRON = BRISK | {
    "CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
STEPS = share_of(20_000, 4000)
DAY_S = float(os.environ.get("TORTURE_DAY_S", "0"))
# How many rounds the daemon lives, again and again; one life is long enough for a leak to show.
ROUNDS = (share_of(6, 4), share_of(22, 8), share_of(6, 4), share_of(6, 4))
# Of a life's rounds these come first: until then caches fill and arenas grow.
WARM_ROUNDS = 3
# Main, writer, endpoint, the summary of images, and for each of the two caches its own and watchdog's.
THREADS = 4 + 2 * 2
PLACES = 300
CONTENTS = 400
# What a life's last round may hold above its first warm one.
LEEWAY_BYTES = 3_000_000
# An index made anew takes 1.8 to 3.5 MB here. This one also has 100,000 removed chunks before it frees the first, and
# took 3.0 to 5.3 times as much; after 20,000 steps in which nothing was freed it took 15 times as much.
MOST_OF_FRESH = 8
# From so many steps on removals have made room for all that lands long before the day's end.
PLATEAU_STEPS = 20_000


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


@dataclass(frozen=True)
class Held:
    """What a daemon at rest holds: memory of its own (RssAnon), of its largest worker, descriptors, threads, index; and
    how many files of the caches it and its workers have open.
    """

    anon_bytes: int
    worker_anon_bytes: int
    descriptors: int
    worker_descriptors: int
    threads: int
    index_bytes: int
    read: int

    def __str__(self) -> str:
        return (
            f"{self.anon_bytes / 1e6:.1f} MB in the daemon, {self.worker_anon_bytes / 1e6:.1f} MB in a worker, "
            f"{self.descriptors} + {self.worker_descriptors} descriptors, {self.threads} threads, "
            f"index {self.index_bytes / 1e6:.1f} MB"
        )


def held_by(daemon: Daemon, caches: tuple[Path, ...]) -> Held:
    workers = daemon.workers()
    own_files, worker_files = files_of(daemon.pid), [files_of(pid) for pid in workers]
    return Held(
        status_of(daemon.pid, "RssAnon") * 1024,
        max((status_of(pid, "RssAnon") * 1024 for pid in workers), default=0),
        len(own_files),
        max(map(len, worker_files), default=0),
        status_of(daemon.pid, "Threads"),
        index_bytes_of(daemon.home.state),
        sum(file.startswith(tuple(map(str, caches))) for files in (own_files, *worker_files) for file in files),
    )


def status_of(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def index_bytes_of(state: Path) -> int:
    return (state / "index" / "data.mdb").stat().st_size


def files_of(pid: int) -> list[str]:
    """What each of its descriptors is of."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(descriptor))
    return found


class Writer:
    """Lands what was never seen before, and what was a while ago, and removes as much."""

    def __init__(self, home: Home, rng: random.Random) -> None:
        self.rng = rng
        self.cache, second = home.cache("cache"), home.cache("second")
        self.caches = (self.cache, second)
        self.contents = [self._fresh(number) for number in range(CONTENTS)]
        self.churn = Churn(self.caches, home.cache("staging"), self.contents, rng)
        self._number = CONTENTS

    def _fresh(self, number: int) -> Made:
        if number % 20 == 0:
            return churn.other(number)
        known = self.rng.randrange(1000)
        blocks = [
            *range(known, known + 20),
            *range(1000 * (number + 1), 1000 * (number + 1) + self.rng.randint(80, 240)),
        ]
        return churn.made(blocks, churn.gz if number % 10 == 1 else blobs.zst)

    @property
    def counted(self) -> int:
        """Landings and removals so far."""
        return self.churn.done["land"] + self.churn.done["remove"]

    def step(self) -> None:
        if len(self.churn.places) > PLACES:
            self.churn.remove()
            self.churn.done["remove"] += 1
            return
        self.churn.step()
        if self.rng.random() < 0.5:
            self.contents[self.rng.randrange(CONTENTS)] = self._fresh(self._number)
            self._number += 1

    def write(self, steps: int, pace_s: float) -> None:
        """So many landings and removals, each taking so long at least."""
        begin, before = time.monotonic(), self.counted
        while (done := self.counted - before) < steps:
            self.step()
            time.sleep(max(0.0, begin + done * pace_s - time.monotonic()))
        self.churn.put_right()
        self.churn.touched.clear()


def at_rest(daemon: Daemon, writer: Writer) -> Held:
    """What the daemon holds when it has caught up and its figures are right."""
    expected = churn.figures_of(writer.churn.present().values())
    stats = daemon.until_figures(expected)
    assert stats["scans"] == 1, "found by events alone"
    # The thread that answered ends a moment after its answer.
    until(lambda: status_of(daemon.pid, "Threads"), lambda threads: threads <= THREADS, "no thread is left over")
    # What was pushed again changes no figure, and the kernel may tell of it only now.
    return until(lambda: held_by(daemon, writer.caches), lambda held: not held.read, "no blob is read")


@pytest.mark.long(85)
def test_a_long_day_leaves_nothing_behind(home: Home, seed: int, tell: Tell) -> None:
    writer = Writer(home, random.Random(seed))
    begin = time.monotonic()
    day: list[list[Held]] = []
    slices = 0
    for rounds in ROUNDS:
        daemon = home.start(*writer.caches, environ=ENVIRON)
        day.append([])
        for _ in range(rounds):
            writer.write(STEPS // sum(ROUNDS), DAY_S / STEPS)
            day[-1].append(at_rest(daemon, writer))
            print(f"{time.monotonic() - begin:4.0f} s, {writer.counted:6} steps: {day[-1][-1]}")
        slices += daemon.log.count("INFO swept ")
        if len(day) % 2:
            daemon.kill()
        else:
            assert daemon.stop() == 0
    tell(f"{writer.counted} landings and removals in {time.monotonic() - begin:.0f} s: {dict(writer.churn.done)}")
    for lived in day:
        tell(f"{len(lived)} rounds: {lived[0]}")
        tell(f"        ... at their end: {lived[-1]}")
    tell(f"{slices} slices swept of what was removed")
    home.check()
    expected = churn.figures_of(writer.churn.present().values())
    anew = home.root / "anew"
    fresh = figures(home.scan(*writer.caches, state=anew))
    fresh_bytes = index_bytes_of(anew)
    tell(f"an index made anew takes {fresh_bytes / 1e6:.1f} MB")
    assert fresh == figures(json.loads(home.command("stats", "--json").stdout))
    assert fresh.items() >= {name: expected[name] for name in FIGURES if name in expected}.items()

    for lived in day:
        assert {held.threads for held in lived} == {THREADS}
        assert len({(held.descriptors, held.worker_descriptors) for held in lived}) == 1, lived
        warm = lived[WARM_ROUNDS:]
        assert warm[-1].anon_bytes < warm[0].anon_bytes + LEEWAY_BYTES, lived
        assert warm[-1].worker_anon_bytes < warm[0].worker_anon_bytes + LEEWAY_BYTES, lived
    index_bytes = [held.index_bytes for lived in day for held in lived]
    assert max(index_bytes) < MOST_OF_FRESH * fresh_bytes, index_bytes
    if STEPS >= PLATEAU_STEPS:
        full = 3 * len(index_bytes) // 5
        assert max(index_bytes[full:]) < 1.25 * max(index_bytes[:full]), index_bytes
    assert slices >= STEPS // 5000
