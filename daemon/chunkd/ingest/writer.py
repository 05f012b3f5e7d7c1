"""Hints and listings to workers to the index: the one writer, turn by turn.

A turn collects what workers found, looks at what was hinted, commits both in one transaction, and hands out work. What
is there is committed at once where a worker has nothing to do; while all are at work, more is waited for, but not long:
a transaction has a price of its own, whatever is in it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from chunkd.errors import IndexUnwritable
from chunkd.index.compaction import Compaction
from chunkd.index.index import Change, Index
from chunkd.index.records import digest_from_key
from chunkd.ingest.counters import Counters
from chunkd.ingest.diff import LISTED, differences
from chunkd.ingest.places import RETRY_S, AfterCommit, PlaceChanges, Task, retries
from chunkd.ingest.reconcile import Reconciler
from chunkd.ingest.verify_round import VerifyRound
from chunkd.model import Blob, Digest, Finding, Hint, Place
from chunkd.sources import layouts
from chunkd.sources.cache import ServedCache, warnings
from chunkd.sources.hints import HintQueue
from chunkd.sources.listing import Listed, ScanEnd
from chunkd.worker.pool import Pool, Result

log = logging.getLogger(__name__)

MAX_TASKS = 65536
HINTS_A_TURN = 1000
# A blob whose worker died is tried once more; the second death is its own fault.
TRIES = 2
PAUSE_S = 5.0
# While every worker is busy, what was gathered is committed together, so long after the first of it at most.
GROUP_S = 0.5
RETRY_EVERY_S = 30.0
# What has no hurry is done while nothing else is to do, and so often where there is always something.
TIDY_EVERY_S = 1.0


@dataclass(slots=True)
class Progress:
    """What the writer has done since it started, for progress bars and for the proof of life."""

    turns: int = 0
    scans: int = 0
    done_blobs: int = 0
    done_bytes: int = 0
    decoded_blobs: int = 0
    paused: str = ""


@dataclass(slots=True)
class Ingest:
    index: Index
    pool: Pool
    hint_queue: HintQueue
    caches: dict[int, ServedCache]
    listings: queue.Queue[Listed | ScanEnd]
    verify_interval_s: float = 86400.0
    clock_s: Callable[[], float] = time.time
    reconciler: Reconciler = field(default_factory=Reconciler)
    progress: Progress = field(default_factory=Progress)
    counters: Counters = field(default_factory=Counters)
    _waiting: dict[Digest, Task] = field(default_factory=dict)
    _running: dict[Digest, Task] = field(default_factory=dict)
    _results: list[Result] = field(default_factory=list)
    _hints: list[Hint] = field(default_factory=list)
    _found: deque[Hint] = field(default_factory=deque)
    _found_new: int = 0
    _ignored: list[tuple[Place, str]] = field(default_factory=list)
    _ends: list[ScanEnd] = field(default_factory=list)
    _scans: list[ScanEnd] = field(default_factory=list)
    _order: list[tuple[bool, int, int, Digest]] = field(default_factory=list)
    _sequence: int = 0
    _task_blobs: int = 0
    _task_bytes: int = 0
    _kinds_at: tuple[int, int] = (0, 0)
    _commit_at: float = 0.0
    _paused_until: float = 0.0
    _retry_at: float = 0.0
    _tidy_at: float = 0.0
    _in_hand: bool = False
    compaction: Compaction = field(init=False)
    verify_round: VerifyRound = field(init=False)

    def __post_init__(self) -> None:
        self.compaction = Compaction(self.index)
        self.verify_round = VerifyRound(self.index, self.hint_queue, self.verify_interval_s, self.clock_s)

    # --- how it stands --------------------------------------------------------------------------------------------

    def pending(self) -> tuple[int, int]:
        """Blobs and stored bytes that are known and in no figure yet. Safe to call from any thread."""
        unsettled = [
            one
            for one in self.reconciler.unsettled.copy().values()
            if one.digest not in self._waiting and one.digest not in self._running
        ]
        blobs = self._task_blobs + self._found_new + len({one.digest for one in unsettled})
        return blobs, self._task_bytes + sum(one.seen.stored_bytes for one in unsettled)

    @property
    def working(self) -> bool:
        """Whether anything is left to be done now. Safe to call from any thread."""
        return bool(
            self._waiting or self._running or self._results or self._hints or self._found or self._ignored
            or self._ends or self._scans or len(self.hint_queue) or not self.listings.empty()
        )  # fmt: skip

    @property
    def busy(self) -> bool:
        """Whether work is left, or a file is still being waited for. Safe to call from any thread."""
        turns = self.progress.turns
        busy = self._in_hand or self.working or self.reconciler.unsettled or self.reconciler.expected
        # A turn that began meanwhile may have moved something from what was not looked at yet to what was.
        return bool(busy) or turns != self.progress.turns

    # --- a turn ---------------------------------------------------------------------------------------------------

    def _take_up(self, holdings: PlaceChanges, why: str) -> None:
        """See to the digests that need a rehash and have no task: there was no room for it, or a root was gone."""
        change = holdings.change
        room = MAX_TASKS - len(self._waiting)
        for key, _ in list(itertools.islice(self.index.store.walk(change.txn, "needs_rehash"), max(0, room))):
            digest = digest_from_key(key)
            if digest not in self._waiting and digest not in self._running:
                holdings.hand_over(digest, None, why)

    def turn(self, timeout_s: float) -> None:
        """Wait for something to do, at most so long, and do it. Raises BadIndex when the index is damaged."""
        self._results += self.pool.collect(self._wait_s(timeout_s), self.hint_queue)
        self.hint_queue.drain_wakeups()
        # What is taken out of one queue is in none for a while. Told before the turn counts, for who compares both.
        self._in_hand = not self._waits(self._paused_until, PAUSE_S)
        self.progress.turns += 1
        if not self._in_hand:
            return
        self._gather()
        due = self._due() or not self._waits(self._retry_at, RETRY_EVERY_S)
        self._in_hand = due or self.working
        try:
            if due:
                self._commit()
            if not self._in_hand or not self._waits(self._tidy_at, TIDY_EVERY_S):
                self._tidy()
            if not self._in_hand:
                self._look_at_kinds()
        except IndexUnwritable as error:
            self._retry_at = 0.0  # what a round of retries found is not known any longer
            self._pause(str(error))
            return
        self.progress.paused = ""
        self._give()
        self._in_hand = False

    def _waits(self, until_s: float, most_s: float) -> bool:
        """Whether a moment is still to come; not when the clock was set back since, and it would be too far away."""
        return 0 < until_s - self.clock_s() <= most_s

    def drain(self, timeout_s: float) -> None:
        """Let what is being read come to its end, if that takes no longer, and commit it. Gives out nothing more."""
        deadline = time.monotonic() + timeout_s
        self._paused_until = 0.0
        while self._running and (left_s := deadline - time.monotonic()) > 0:
            self._results += self.pool.collect(min(left_s, 1.0))
            if self._results:
                self._hints.clear()
                try:
                    self._commit()
                except IndexUnwritable as error:
                    log.error("what was read last is read again at the next start: %s", error)
                    return

    def _wait_s(self, timeout_s: float) -> float:
        """How long to wait for workers and hints."""
        if self._waits(self._paused_until, PAUSE_S):
            return min(timeout_s, self._paused_until - self.clock_s())
        if self._may_gather() and (self._found or not self.listings.empty()):
            return 0.0
        if self._gathered():
            return max(0.0, min(timeout_s, self._commit_at - self.clock_s()))
        return min(timeout_s, self.hint_queue.wait_s())

    def _gathered(self) -> bool:
        return bool(self._results or self._hints or self._ignored or self._ends or self._finished())

    def _due(self) -> bool:
        """Whether what was gathered, if anything, is to be committed now."""
        if not self._gathered():
            return False
        if not self._commit_at:
            self._commit_at = self.clock_s() + GROUP_S
        idle, full = self.pool.idle > len(self._waiting), len(self._hints) >= HINTS_A_TURN
        return idle or full or not self._waits(self._commit_at, GROUP_S)

    def _may_gather(self) -> bool:
        return len(self._hints) < HINTS_A_TURN and len(self._waiting) < MAX_TASKS // 2

    def _gather(self) -> None:
        """Take the hints for this turn: events first, then what the scan found, as far as there is room for work."""
        self._hints += self.hint_queue.take(HINTS_A_TURN - len(self._hints))
        while self._may_gather():
            if self._found:
                hint = self._found.popleft()
                self._found_new -= hint.why == LISTED
                self._hints.append(hint)
                continue
            try:
                item = self.listings.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, ScanEnd):
                self._ends.append(item)
                return
            self._compare(item)

    def _compare(self, listed: Listed) -> None:
        cache = self.caches.get(listed.cache)
        if cache is None or cache.stale:
            return
        cache.layouts |= listed.listing.layouts
        with self.index.snapshot() as txn:
            hints, ignored = differences(self.index.store, txn, cache.number, listed.listing, verify=listed.verify)
        self._found += hints
        self._found_new += sum(hint.why == LISTED for hint in hints)
        self._ignored += ignored

    def _commit(self) -> None:
        """Everything that was gathered, in one transaction; what follows from it only when that is on disk."""
        self._commit_at = 0.0
        after_commit = AfterCommit()
        settled = {result.job.digest for result in self._results}
        with self.index.transaction() as change:
            holdings = PlaceChanges(change, self.caches, after_commit, self.clock_s())
            for result in self._results:
                self._settle(holdings, self._running[result.job.digest], result)
            for hint in self._hints:
                self._look(holdings, hint, settled)
            for place, reason in self._ignored:
                self.reconciler.ignore(holdings, place, reason)
            self._retry(holdings)
            self._end_scans(change)
        for end in self._finished():
            totals = change.head.totals
            log.info("scan %d: done: %d blobs, %d layers", end.number, totals.layers + totals.others, totals.layers)
            self._scans.remove(end)
        for result in self._results:
            self._done(self._running.pop(result.job.digest), result.finding)
        self._scans += self._ends
        self.progress.scans = max([self.progress.scans, *(end.number for end in self._ends)])
        for pending in (self._results, self._hints, self._ignored, self._ends):
            pending.clear()
        self._follow(after_commit)

    def _settle(self, holdings: PlaceChanges, task: Task, result: Result) -> None:
        if result.finding is not None:
            self.reconciler.settle(holdings, task, result.finding)
        elif task.tries + 1 < TRIES:
            holdings.say(logging.WARNING, f"{task.job.digest}: {result.died}; it is tried once more")
            holdings.after_commit.tasks.append(replace(task, tries=task.tries + 1, given=False))
        else:
            self.reconciler.settle(holdings, task, Finding("unreadable", reason=result.died))

    def _look(self, holdings: PlaceChanges, hint: Hint, settled: set[Digest]) -> None:
        cache = self.caches.get(hint.place.cache)
        if cache is None:
            return
        found = layouts.identify(cache.path, hint.place.path)
        task = None
        if found is not None and found[0] not in settled:
            task = self._waiting.get(found[0]) or self._running.get(found[0])
        self.reconciler.look(holdings, hint, task)

    def _retry(self, holdings: PlaceChanges) -> None:
        """Failed blobs whose time has come, and all of them where a scan was asked to."""
        now_s = self.clock_s()
        if self._ends:
            holdings.after_commit.hints += self.reconciler.waited_for()
        if any(end.retry_failed for end in self._ends):
            holdings.after_commit.hints += retries(holdings.change, lambda _: True)
        elif self._ends:
            # A listing has names only, and no event tells what happened while nobody watched.
            holdings.after_commit.hints += holdings.put_right()
        elif not self._waits(self._retry_at, RETRY_EVERY_S):
            holdings.after_commit.hints += retries(holdings.change, lambda blob: _due(blob, now_s))
            self._retry_at = now_s + RETRY_EVERY_S
            self._take_up(holdings, "a round of retries")

    def _finished(self) -> list[ScanEnd]:
        """The scans whose every blob is in the index, or has failed: what a scan found is not known before."""
        return [] if self._waiting or self._running else self._scans.copy()

    def _end_scans(self, change: Change) -> None:
        for end in self._finished():
            if end.complete:
                change.scanned(end.at_ns)
        recorded = {number: cache.record() for number, cache in self.caches.items()}
        if recorded != change.caches():
            change.set_caches(recorded)

    def _tidy(self) -> None:
        """What has no hurry, a slice at a time: the compaction, and the round that compares every place."""
        self._tidy_at = self.clock_s() + TIDY_EVERY_S
        if self.compaction.turn():
            self.hint_queue.wake_writer()  # there may be more to compact: not a second's wait for each slice
        self.verify_round.turn()

    def _look_at_kinds(self) -> None:
        """Whether a cache holds blobs and no layer."""
        done = self.progress.scans, self.progress.decoded_blobs
        if self._kinds_at == done:
            return
        self._kinds_at = done
        for cache in self.caches.values():
            with self.index.snapshot() as txn:
                kinds = self.index.store.kinds(txn, cache.number)
                cache.layerless = next(kinds, "layer") != "layer" and "layer" not in kinds
            told, cache.warned = cache.warned, warnings(cache.record())
            for warning in set(cache.warned) - set(told):
                log.warning("cache %s: %s", cache.path, warning)

    def _done(self, task: Task, finding: Finding | None) -> None:
        self._task_blobs -= not task.counted
        self._task_bytes -= 0 if task.counted else task.stored_bytes
        self.progress.done_blobs += 1
        self.progress.done_bytes += task.stored_bytes
        self.progress.decoded_blobs += finding is not None and task.job.decode
        for place in task.others:
            self.hint_queue.put(Hint(place, task.why))

    def _follow(self, after_commit: AfterCommit) -> None:
        self.counters.take(after_commit.failures, after_commit.landings, self.clock_s())
        for level, text in after_commit.log:
            log.log(level, "%s", text)
        for hint in after_commit.hints:
            self.hint_queue.put(hint)
        for hint, delay_s in after_commit.later:
            self.hint_queue.put_later(hint, delay_s)
        for task in after_commit.tasks:
            self._queue(task)

    def _queue(self, task: Task) -> None:
        known = self._waiting.get(task.job.digest) or self._running.get(task.job.digest)
        if known is not None:
            if task.place != known.place and task.place not in known.others:
                known.others.append(task.place)
        elif len(self._waiting) >= MAX_TASKS:
            self.hint_queue.doubt("too many blobs wait for a worker")
        else:
            self._waiting[task.job.digest] = task
            self._sequence += 1
            self._task_blobs += not task.counted
            self._task_bytes += 0 if task.counted else task.stored_bytes
            # What only has to be hashed again first, then the largest, so that no core ends idle.
            heapq.heappush(self._order, (not task.counted, -task.stored_bytes, self._sequence, task.job.digest))

    def _give(self) -> None:
        while self._order and self.pool.idle:
            task = self._waiting[self._order[0][3]]
            try:
                self.pool.give(replace(task.job, relayed=self._leaves_idle(task)))
            except OSError as error:
                self._pause(f"no worker can be started: {error.strerror}")
                return
            heapq.heappop(self._order)
            task.given = True
            self._running[task.job.digest] = self._waiting.pop(task.job.digest)

    def _leaves_idle(self, task: Task) -> bool:
        """Whether the other workers will have nothing to do before one is done with this: they share out the rest."""
        return self._task_bytes - task.stored_bytes < (self.pool.count - 1) * task.stored_bytes

    def _pause(self, why: str) -> None:
        if why != self.progress.paused:
            log.error("paused: %s", why)
        self.progress.paused = why
        self._paused_until = self.clock_s() + PAUSE_S


def _due(blob: Blob, now_s: float) -> bool:
    """Whether a failed blob is to be tried again; also when the clock was set back since it failed."""
    return 0 < blob.retry_at <= now_s or blob.retry_at > now_s + RETRY_S[-1]
