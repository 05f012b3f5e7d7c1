"""A daemon that dies, and dies again, while blobs land, are replaced and go; and what is asked of it each time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lmdb

import churn
from chunkd.check.recount import recount
from chunkd.errors import IndexMissing
from chunkd.index.records import digest_key, place_from_key, unpack_blob, unpack_held
from chunkd.index.storage.environment import Store, reading
from churn import Churn, Made, Opens
from counts import dealt
from daemon import BRISK, Daemon, Home, Stats, state_of, until

NEVER = BRISK | {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400"}
# A step gives one event; it may have a place read, another one of that digest after it, and either of them once more
# when it was read within the tick of the file system's clock in which it changed.
OPENS_A_STEP = 3
STEPS_A_LIFE = (5, 40)
REAL_CHECK_EVERY = 25
LOOK_FOR_READER_S = 0.3
# Where in a commit it dies: in the pages more often, as there are more of them.
STAGES = [("pages", moment) for moment in ("before", "half", "after")] * 2
STAGES += [("sync", "before"), ("sync", "after")]
STAGES += [("meta", moment) for moment in ("before", "half", "after")]
KINDS = (
    *(f"in a commit, {moment} {stage}" for stage, moment in STAGES),
    "daemon at a random moment", "worker while it read", "worker between two blobs",
)  # fmt: skip
DIED = "its worker was killed (signal 9)"


class Deaths:
    """Two caches with a daemon that dies and is started again; what it did in between is held to account."""

    def __init__(self, home: Home, shim: Path, contents: list[Made], rng: random.Random) -> None:
        self.home, self.rng = home, rng
        flat, oci = home.cache("flat"), home.cache("oci")
        (oci / "blobs" / "sha256").mkdir(parents=True)
        staging = home.cache("staging")
        self.caches = (flat, oci)
        self.churn = Churn((flat, oci / "blobs" / "sha256"), staging, contents, rng)
        self.opens = Opens(self.churn.folders)
        self.order = home.root / "order"
        self.environ = NEVER | {"LD_PRELOAD": str(shim), "KILL_AT": str(self.order)}
        self.sure: set[str] = set()
        # What workers that were killed in this life had in hand, and how often that could not be told.
        self.in_hand: Counter[str] = Counter()
        self.unknown = 0
        # What was failed when somebody asked for that to be read again: what is no whole stream is too, at each place.
        self.asked_for: Counter[str] = Counter()
        # Blobs that have failed of two such deaths.
        self.excused: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.stages: list[tuple[str, str]] = []
        self.opened = 0

    @property
    def workers_killed(self) -> int:
        return self.counts["worker while it read"] + self.counts["worker between two blobs"]

    @property
    def kills(self) -> int:
        return self.workers_killed + self.counts["in a commit"] + self.counts["daemon at a random moment"]

    # --- how it dies ----------------------------------------------------------------------------------------------

    def give_order(self) -> None:
        """From now on the daemon is to die inside a commit."""
        if not self.stages:
            self.stages = dealt(STAGES, len(STAGES), self.rng)
        stage, moment = self.stages.pop()
        partial = self.order.with_name("order.partial")
        partial.write_text(f"{stage} {moment} {self.rng.randint(1, 12)}\n")
        partial.rename(self.order)

    def die_inside_a_commit(self, daemon: Daemon) -> None:
        if not self.order.exists():
            self.give_order()
        deadline = time.monotonic() + 60
        while daemon.process.poll() is None:
            assert time.monotonic() < deadline, f"no commit is made:\n{daemon.log[-3000:]}"
            self.step()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.wait(self.rng.random() * 0.05)
        done = self.order.with_name("order.done")
        stage, moment, _ = done.read_text().split()
        self.counts[f"in a commit, {moment} {stage}"] += 1
        self.counts["in a commit"] += 1
        done.unlink()
        self.order.unlink()

    def die_somewhere(self, daemon: Daemon) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(self.rng.random() * 0.1)
        daemon.process.kill()
        daemon.process.wait(10)
        self.counts["daemon at a random moment"] += 1

    def kill_a_worker(self, daemon: Daemon) -> None:
        """Stopped first, so that what it reads can be told; mostly one that is reading."""
        deadline = time.monotonic() + (LOOK_FOR_READER_S if self.rng.random() < 0.8 else 0)
        while True:
            workers = daemon.workers()
            busy = [pid for pid in workers if reading_now(pid)]
            if busy or time.monotonic() >= deadline:
                break
            self.step()
        if not workers:
            return
        pid = self.rng.choice(busy or workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            if until(lambda: state_of(pid), lambda state: state in "TZ", "it is stopped") == "Z":
                return  # its death is another's
            name = reading_now(pid)
            os.kill(pid, signal.SIGKILL)
            self.in_hand[name] += bool(name)
            self.unknown += not name
            self.counts["worker while it read" if name else "worker between two blobs"] += 1

    def step(self) -> None:
        self.churn.step()
        self.opens.read()

    # --- a life ---------------------------------------------------------------------------------------------------

    def live(self, how: str, workers: int, early: bool, number: int) -> None:
        if early and how == "commit":
            self.give_order()
        for _ in range(self.rng.choice((0, 1, 4, 12))):
            self.step()
        daemon = self.home.spawn(*self.caches, environ=self.environ)
        lands_at_start = self.rng.random() < 0.5
        until(lambda: self._up_or_dead(daemon, lands_at_start), bool, "the daemon answers")
        if not early:
            self.caught_up(daemon)
            if number % REAL_CHECK_EVERY == 0:
                self.home.check()
                self.counts["`chunkd check` beside the daemon"] += 1
        for left in range(self.rng.randint(*STEPS_A_LIFE), 0, -1):
            if daemon.process.poll() is not None:
                break
            self.step()
            if workers and self.rng.random() < workers / left:
                workers -= 1
                self.kill_a_worker(daemon)
        if how == "commit":
            self.die_inside_a_commit(daemon)
        else:
            self.die_somewhere(daemon)
        assert daemon.process.returncode == -signal.SIGKILL, daemon.log[-3000:]
        until(lambda: left_of(self.home), lambda left: not left, "the workers end")
        self.account(daemon)

    def _up_or_dead(self, daemon: Daemon, lands: bool) -> bool:
        if daemon.process.poll() is not None:
            return True
        if lands:
            self.step()
        with contextlib.suppress(AssertionError):  # it ended as it was asked
            return daemon.answers()
        return False

    def caught_up(self, daemon: Daemon) -> Stats:
        """Nothing is left to do, and every figure is that of what is there."""
        self.churn.put_right()
        expected = churn.figures_of(self.churn.present().values())

        def ask() -> Stats:
            self.opens.read()
            stats = daemon.stats()
            if stats["settled"] and stats["scans"] and stats["failed_blobs"] != expected["failed_blobs"]:
                self._try_again(daemon)
            return stats

        stats = until(
            ask,
            lambda stats: stats["settled"] and {name: stats[name] for name in expected} == expected,
            f"caught up: {expected}:\n{daemon.log[-6000:]}",
        )
        self.counts["restarts that caught up"] += 1
        return stats

    def _try_again(self, daemon: Daemon) -> None:
        """A blob whose worker died twice has failed, and is tried again later, or when asked for."""
        failed = {blob["digest"].removeprefix("sha256:"): blob["reason"] for blob in daemon.blobs(failed=True)}
        died = {name for name, reason in failed.items() if DIED in reason}
        if died:
            self.asked_for.update({name: len(self.caches) for name in failed})
            self._died_twice(died)
            self.counts["blobs that failed of two deaths and counted later"] += len(died)
            daemon.settled_after_scan(retry_failed=True)
            self.excused -= died

    def _died_twice(self, names: set[str]) -> None:
        """One death is not a blob's own fault."""
        for name in names - self.excused:
            assert self.in_hand[name] + self.unknown >= 2, f"{name} has failed of {self.in_hand[name]} deaths"
        self.excused |= names

    # --- holding to account ---------------------------------------------------------------------------------------

    def account(self, daemon: Daemon) -> None:
        """The index as it lies there is sound, and nothing was opened for nothing since the last account."""
        opens = self.opens.take()
        touched, self.churn.touched = self.churn.touched, Counter()
        excess = {}
        for name, count in opens.items():
            known = 0 if name in self.sure else len(self.caches)
            allowed = known + OPENS_A_STEP * touched[name] + self.in_hand[name] + self.asked_for[name]
            if count > allowed:
                excess[name] = (count, allowed)
        wasted = sum(count - allowed for count, allowed in excess.values())
        assert wasted <= self.unknown, f"opened, and allowed: {excess}\n{daemon.log[-6000:]}"
        self.opened += opens.total()
        self.sure = set()
        with contextlib.suppress(IndexMissing), reading(str(self.home.state)) as store, store.env.begin() as txn:
            differences = [str(found) for found in recount(store, txn).differences]
            assert not differences, f"{differences}\n{daemon.log[-3000:]}"
            self._died_twice({blob.digest.hex for blob in store.blobs(txn, "failed") if DIED in blob.reason})
            places = [*self.churn.places, *self.churn.spoilt]
            self.sure = set(self._known(store, txn)) & {path.name for path in places}
        self.in_hand.clear()
        self.asked_for.clear()
        self.unknown = 0

    def _known(self, store: Store, txn: lmdb.Transaction) -> Iterator[str]:
        """The digests that need no reading as long as nobody touches them: verified at a place that is still there."""
        roots = {number: Path(cache.path) for number, cache in store.caches(txn).items()}
        for key, value in store.walk(txn, "places"):
            place, held = place_from_key(key), unpack_held(value)
            failed = store.get(txn, "failed", digest_key(held.digest))
            due = failed is not None and unpack_blob(held.digest, failed).retry_at
            suspect = store.get(txn, "needs_rehash", digest_key(held.digest)) is not None
            if held.state == "verified" and not due and not suspect and (roots[place.cache] / place.path).exists():
                yield held.digest.hex


def reading_now(pid: int) -> str:
    """The name of the blob that a worker has open."""
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = os.path.basename(os.readlink(link)).removesuffix(" (deleted)")
                if len(name) == 64:
                    return name
    return ""


def left_of(home: Home) -> list[int]:
    """The processes that were started in this home and are no zombies."""
    mark = os.fsencode(f"HOME={home.root}")
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
