"""The one writer, turn by turn: puts observations, listings and findings into the index, and touches no cache's files.

If a worker is idle, a turn commits at once. While all are busy it waits a little for more, as each transaction has a
fixed cost.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chunkd.errors import IndexUnwritable
from chunkd.index.compaction import Compaction
from chunkd.index.index import Change, Index
from chunkd.index.records import digest_from_key
from chunkd.ingest.actions import Task
from chunkd.ingest.adopt import LeftCaches
from chunkd.ingest.cache_records import CacheRecords
from chunkd.ingest.counters import Counters, LogLines
from chunkd.ingest.listings import Listings
from chunkd.ingest.names import Names
from chunkd.ingest.places import RETRY_S, AfterCommit, PlaceChanges, Remembered
from chunkd.ingest.reconcile import decide, decide_finding
from chunkd.ingest.rounds import FailedRound, VerifyRound, put
from chunkd.ingest.scans import Scans
from chunkd.ingest.tasks import MAX_TASKS, Tasks
from chunkd.model import Blob, Cause, Digest, Finding, Hint, Place, Timing
from chunkd.sources import layouts
from chunkd.sources.activity import WRITER, Activity
from chunkd.sources.cache import MAX_OBSERVATIONS, ServedCache
from chunkd.sources.names_reader import NamesReader
from chunkd.sources.source import Observation
from chunkd.sources.wakeup import Wakeup
from chunkd.worker.pool import Pool

log = logging.getLogger(__name__)

OBSERVATIONS_A_TURN = 1000
# A blob whose worker died is tried once more; the second death is its own fault.
TRIES = 2
PAUSE_S = 5.0
# While every worker is busy, what was gathered is committed together, so long after the first of it at most.
GROUP_S = 0.5
RETRY_EVERY_S = 30.0
TIDY_EVERY_S = 1.0  # at least, where there is always something more urgent


@dataclass(slots=True)
class Progress:
    """What the writer has done since it started, for progress bars and for the watchdog."""

    turns: int = 0
    scans: int = 0
    done_blobs: int = 0
    done_bytes: int = 0
    decoded_blobs: int = 0
    paused: str = ""


@dataclass(slots=True)
class Found:
    """A worker's finding about a place, until the place has been observed once more."""

    task: Task
    finding: Finding
    at_ns: int


class Writer:
    """Raises BadIndex from `turn` when the index is damaged. The properties may be read by any thread."""

    def __init__(
        self,
        index: Index,
        pool: Pool,
        caches: dict[int, ServedCache],
        activity: Activity,
        wakeup: Wakeup,
        *,
        left: LeftCaches | None = None,
        names_file: NamesReader | None = None,
        verify_interval_s: float = 86400.0,
        settle_s: float = Timing().settle_s,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self.index, self.pool, self.caches, self.activity, self.wakeup = index, pool, caches, activity, wakeup
        self.clock_s, self._settle_s = clock_s, settle_s
        self.progress, self.counters, self._log_lines = Progress(), Counters(), LogLines()
        self.remembered = Remembered()
        self.tasks = Tasks(pool, caches, activity)
        self.listings = Listings(index, caches, activity)
        self.scans = Scans(caches, activity)
        self.compaction = Compaction(index)
        self.verify_round = VerifyRound(index, caches, verify_interval_s, clock_s)
        self.failed_round = FailedRound(index, caches, activity)
        self._records = CacheRecords(index, caches, left)
        self.names = Names(index, caches, names_file, activity, wakeup)
        self._left_token = None if left is None else activity.take(WRITER)
        self._sight: list[tuple[bool, str, frozenset[str]]] = []
        self._found: dict[Place, Found] = {}
        self._observed: list[Observation] = []
        self._commit_at = self._paused_until = self._retry_at = self._tidy_at = 0.0

    # --- how it stands --------------------------------------------------------------------------------------------

    @property
    def layerless(self) -> dict[int, str]:
        """What each cache holds that has blobs but no layer, by its number."""
        return self._records.layerless

    def pending(self) -> tuple[int, int]:
        """How many blobs, of how many stored bytes, are known but in no figure. Includes one that changes hands."""
        unseen, waits = len(self.listings.unseen), self.remembered.unsettled.copy()
        if not waits:
            blobs, stored_bytes = self.tasks.blobs, self.tasks.stored_bytes
            if not self.remembered.unsettled:  # still: none was in either, and none in both
                return blobs + unseen, stored_bytes
        tasks = self.tasks.uncounted()
        waits |= self.remembered.unsettled.copy()
        sizes_bytes = {one.digest: one.seen.stored_bytes for one in waits.values()} | tasks
        return len(sizes_bytes) + unseen, sum(sizes_bytes.values())

    # --- a turn ---------------------------------------------------------------------------------------------------

    def turn(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for something to do, and do it."""
        self._collect(self._wait_s(timeout_s))
        self.progress.turns += 1
        self._log_lines.sum_up()
        if self._waits(self._paused_until, PAUSE_S):
            return
        sight = [(cache.hung_s() > 0, cache.status.stale, cache.status.away) for cache in self.caches.values()]
        if sight != self._sight:
            self._sight, self._retry_at = sight, 0.0  # what is in sight again may take over
        self._gather()
        try:
            due, scan = self._due() or not self._waits(self._retry_at, RETRY_EVERY_S), self.scans.finished
            if due:
                self._commit()
            if self.failed_round.turn():
                self.wakeup.wake()
            self._end_scans()
            self.tasks.give()
            # Not in a turn that commits, but for a scan's last: who waits for the new figures would wait for this too.
            idle = (not due or self.scans.finished != scan) and not self.activity.working()
            if idle or not self._waits(self._tidy_at, TIDY_EVERY_S):
                self._tidy()
            self.names.turn()  # last: no blob's job waits for it
        except IndexUnwritable as error:
            self._retry_at = 0.0  # what a round of retries found is not known any longer
            self._pause(str(error))
        except OSError as error:
            self._pause(f"no worker can be started: {error.strerror}")
        else:
            self.progress.paused = ""

    def _collect(self, timeout_s: float) -> None:
        """Take the workers' results, and have each place that was read observed once more."""
        for result in self.pool.collect(timeout_s, self.wakeup):
            task = self.tasks.running(result.job.digest)
            if result.finding is not None:
                self._await_observation(task, result.finding)
            elif not result.begun or task.tries + 1 < TRIES:
                log.warning("%s: %s; it is tried once more", task.digest, result.died)
                self.tasks.try_again(task, died=result.begun)
            else:
                self._await_observation(task, Finding("unreadable", reason=result.died))
        self.wakeup.drain()

    def _await_observation(self, task: Task, finding: Finding) -> None:
        """A finding is applied only with an observation made after the worker was done."""
        self.tasks.note_read(task)
        self._found[task.place] = Found(task, finding, time.monotonic_ns())
        self.caches[task.place.cache].hints.put(Hint(task.place, Cause.READ), first=True)

    def _waits(self, until_s: float, most_s: float) -> bool:
        """Whether a moment is still to come. A moment too far away is not: the clock was set back."""
        return 0 < until_s - self.clock_s() <= most_s

    def _wait_s(self, timeout_s: float) -> float:
        """How long to wait for workers and caches."""
        if self._waits(self._paused_until, PAUSE_S):
            return min(timeout_s, self._paused_until - self.clock_s())
        if self._may_compare() and self.listings.any():
            return 0.0
        if self._observed and self._commit_at:
            return max(0.0, min(timeout_s, self._commit_at - self.clock_s()))
        return 0.0 if any(cache.observations for cache in self.caches.values()) else timeout_s

    def _may_compare(self) -> bool:
        return self.tasks.waiting < MAX_TASKS // 2

    def _gather(self) -> None:
        """Take what the caches' threads saw, places before folders, as far as there is room."""
        for task, finding in self.tasks.not_opened():
            self._await_observation(task, finding)
        for cache in self.caches.values():
            while cache.observations and len(self._observed) < OBSERVATIONS_A_TURN:
                self._observed.append(cache.observations.popleft())
                if len(cache.observations) == MAX_OBSERVATIONS - 1:  # it was full: its thread waits for room
                    cache.hints.news.set()
        for end in self.listings.compare(self._may_compare):
            if end.number:
                self.scans.note(end)
            for hint in self.remembered.waited_for():
                put(self.caches, hint)
            if end.retry_failed:
                self.failed_round.begin(lambda _: True, force=True)
            # A listing has names only, and no event tells what happened while nobody watched.
            self.failed_round.begin(lambda blob: blob.retry_at > self.clock_s(), force=False)
            if not end.number:
                self.activity.give_back(end.token)

    def _due(self) -> bool:
        """Whether to commit now what was gathered, if anything was."""
        if not (self._observed or self.listings.ignored):
            return False
        if not self._commit_at:
            self._commit_at = self.clock_s() + GROUP_S
        idle, full = self.pool.idle > self.tasks.not_given, len(self._observed) >= OBSERVATIONS_A_TURN
        return idle or full or not self._waits(self._commit_at, GROUP_S)

    # --- one transaction ------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Commit everything gathered in one transaction. What follows from it happens only after that."""
        self._commit_at = 0.0
        after = AfterCommit()
        retry = not self._waits(self._retry_at, RETRY_EVERY_S)
        done: dict[Place, Found] = {}
        with self.index.transaction() as change:
            places = self._places(change, after)
            looks: list[Observation] = []
            for observed in self._observed:
                place = observed.hint.place
                found = self._found.get(place)
                if found is not None and found.at_ns <= observed.at_ns and place not in done:
                    self._settle(places, found, observed)
                    done[place] = found
                else:
                    looks.append(observed)
            settled = {found.task.digest for found in done.values()}
            for observed in looks:
                self._look(places, observed, settled)
            for place, reason in self.listings.ignored:
                places.ignore(place, reason)
            if retry:
                self._take_up(places)
            self._records.write(change)
        self.progress.paused = ""  # at once: whoever reads the new figures must not be told of the pause
        self._follow(after, done.values())
        self._give_back()
        if retry:
            self._retry_at = self.clock_s() + RETRY_EVERY_S
            self.failed_round.begin(lambda blob: _due(blob, self.clock_s()), force=True)

    def _places(self, change: Change, after: AfterCommit) -> PlaceChanges:
        return PlaceChanges(change, self.caches, after, self.clock_s(), self.remembered, self._settle_s)

    def _settle(self, places: PlaceChanges, found: Found, observed: Observation) -> None:
        task = found.task
        known = places.known(observed, None)
        actions = decide_finding(task, found.finding, observed, known, time.monotonic_ns() / 1e9)
        places.apply(observed.hint, known, actions, task.why, task.token)

    def _look(self, places: PlaceChanges, observed: Observation, settled: set[Digest]) -> None:
        cache = self.caches.get(observed.hint.place.cache)
        if cache is None:
            return
        found = layouts.identify(cache.path, observed.hint.place.path)
        task = None if found is None or found[0] in settled else self.tasks.known(found[0])
        known = places.known(observed, task)
        actions = decide(observed, known, time.monotonic_ns() / 1e9)
        places.apply(observed.hint, known, actions, observed.hint.cause.value, observed.token)

    def _take_up(self, places: PlaceChanges) -> None:
        """Make tasks for digests that need a rehash and have none: there was no room, or a root was away."""
        room = MAX_TASKS - self.tasks.waiting
        for key, _ in list(itertools.islice(self.index.store.walk(places.change.txn, "needs_rehash"), max(0, room))):
            digest = digest_from_key(key)
            if self.tasks.known(digest) is None:
                places.hand_over(digest, None, "a round of retries")

    def _follow(self, after: AfterCommit, done: Iterable[Found] = ()) -> None:
        """What follows from a commit. Each thing that is still to be done takes its token here."""
        self.counters.take(after.failures, after.landings, self.clock_s())
        self._log_lines.add(after.log)
        self.remembered.update(after)
        if after.manifests:
            self.names.manifest_moved()
        for found in done:
            self._done(found)
        for hint in after.hints:
            put(self.caches, hint)
        for later in after.later:
            cache = self.caches.get(later.hint.place.cache)
            if cache is not None:
                cache.hints.put_later(later.hint, later.delay_s, waited_for=later.waited_for)
        for task in after.tasks:
            self.tasks.add(task)

    def _done(self, found: Found) -> None:
        task = found.task
        self.progress.done_blobs += 1
        self.progress.done_bytes += task.stored_bytes
        self.progress.decoded_blobs += not task.counted
        for place in task.others:
            put(self.caches, Hint(place, Cause.SAME_DIGEST, by_event=place == task.place), task.token)
        # Tasks for the digest that follow from this one are new ones.
        del self._found[task.place]
        self.tasks.finish(task)

    def _give_back(self) -> None:
        for observed in self._observed:
            self.listings.unseen.discard(observed.hint.place)
            if observed.opened is not None:
                self.tasks.offer(observed.hint.place, observed.opened)
        for token in [observed.token for observed in self._observed] + self.listings.ignored_tokens:
            self.activity.give_back(token)
        self._observed = []
        self.listings.ignored, self.listings.ignored_tokens = [], []

    # --- what has no hurry ----------------------------------------------------------------------------------------

    def _end_scans(self) -> None:
        """Report scans that have been listed, and scans whose every blob is in the index or has failed."""
        self.progress.scans = max(self.progress.scans, self.scans.listed())
        if self.failed_round.under_way:
            return
        finished = self.scans.ended()
        if finished is not None:
            if finished.at_ns:
                with self.index.transaction() as change:
                    self._records.write(change)
                    change.scanned(finished.at_ns)
            with self.index.snapshot() as txn:
                totals = self.index.store.head(txn).totals
            self.names.scanned()
            self.scans.finished = finished.number
            blobs = totals.layers + totals.others
            log.info("scan %d: done: %d blobs, %d layers", finished.number, blobs, totals.layers)
        left = self._records.left
        if left is not None and self.scans.finished and left.turn(self._places, self._follow):
            self._records.left = None
            if self._left_token is not None:
                self.activity.give_back(self._left_token)
        self.scans.give_back()

    def _tidy(self) -> None:
        """Work without hurry, a slice at a time: the compaction, the daily comparison, and odd caches."""
        self._tidy_at = self.clock_s() + TIDY_EVERY_S
        if self.compaction.turn():
            self.wakeup.wake()  # there may be more to compact: not a second's wait for each slice
        self.verify_round.turn()
        if not self.activity.working():
            self._records.look_at_kinds((self.progress.scans, self.progress.decoded_blobs))

    def drain(self, timeout_s: float) -> None:
        """Let workers finish what they read if that takes at most `timeout_s`, and commit it. Hand out nothing more."""
        deadline = time.monotonic() + timeout_s
        self._log_lines.sum_up(now=True)
        self._paused_until = 0.0
        while (self.tasks.being_read or self._found) and (left_s := deadline - time.monotonic()) > 0:
            self._collect(min(left_s, 0.2))
            for cache in self.caches.values():
                while cache.observations:
                    self._observed.append(cache.observations.popleft())
            if any(observed.hint.place in self._found for observed in self._observed):
                try:
                    self._commit()
                except IndexUnwritable as error:
                    log.error("what was read last is read again at the next start: %s", error)
                    return

    def _pause(self, why: str) -> None:
        if why != self.progress.paused:
            log.error("paused: %s", why)
        self.progress.paused = why
        self._paused_until = self.clock_s() + PAUSE_S


def _due(blob: Blob, now_s: float) -> bool:
    """Whether a failed blob is to be tried again. It also is if the clock was set back since it failed."""
    return 0 < blob.retry_at <= now_s or blob.retry_at > now_s + RETRY_S[-1]
