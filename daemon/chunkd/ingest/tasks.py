"""The blobs that must be read: their order, their opening, and which worker reads them."""

from __future__ import annotations

import heapq
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping

from chunkd.ingest.actions import Task
from chunkd.model import Cause, Digest, Finding, Hint, Job, Place
from chunkd.sources import layouts
from chunkd.sources.activity import Activity
from chunkd.sources.cache import ServedCache
from chunkd.sources.source import Opened
from chunkd.worker.pool import SMALL_BYTES, Pool

MAX_TASKS = 65536
# The cache's thread opens so many more blobs than there are idle workers, so that none waits for it; and so many small
# ones in any case.
OPEN_AHEAD, SMALL_AHEAD = 2, 32


class Tasks:
    """One task for each digest. A task waits; then its cache's thread opens its place; then a worker reads it.

    A task holds a token of its cache from `add` to `finish`. `blobs` and `stored_bytes` count the tasks whose blobs are
    in no figure yet; any thread may read them.
    """

    def __init__(self, pool: Pool, caches: Mapping[int, ServedCache], activity: Activity) -> None:
        self._pool, self._caches, self._activity = pool, caches, activity
        self._waiting: dict[Digest, Task] = {}
        self._running: dict[Digest, Task] = {}
        # By cache, so that one whose file system does not answer holds up no other.
        self._order: dict[int, list[tuple[bool, int, int, Digest]]] = {number: [] for number in caches}
        self._opening: dict[int, Task] = {}
        self._opened: deque[Task] = deque()
        self._sequence = 0
        self.blobs = self.stored_bytes = self._read_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def __contains__(self, digest: Digest) -> bool:
        """Any thread may call this; `known` is for the writer's alone."""
        return digest in self._waiting or digest in self._running

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def not_given(self) -> int:
        """How many tasks no worker has yet."""
        return len(self._waiting) + len(self._opening) + len(self._opened)

    @property
    def being_read(self) -> int:
        """How many tasks a worker has."""
        return len(self._pool.jobs())

    def known(self, digest: Digest) -> Task | None:
        """The task for a digest. If no worker has it and its cache does not answer, it is dropped, so that a place in
        another cache can be read.
        """
        task = self._waiting.get(digest) or self._running.get(digest)
        if task is None or task.mark is not None or not self._caches[task.place.cache].hung_s():
            return task
        self._waiting.pop(digest, None)
        for place in (task.place, *task.others):
            self._caches[place.cache].hints.put(Hint(place, Cause.SAME_DIGEST))
        self.finish(task)
        return None

    def uncounted(self) -> dict[Digest, int]:
        """The stored bytes of each blob that has a task and is in no figure yet. Safe to call from any thread."""
        tasks = self._waiting.copy() | self._running.copy()
        return {digest: task.stored_bytes for digest, task in tasks.items() if not task.counted}

    def running(self, digest: Digest) -> Task:
        return self._running[digest]

    def add(self, task: Task) -> None:
        known = self.known(task.digest)
        if known is not None:
            if task.place != known.place and task.place not in known.others:
                known.others.append(task.place)
        elif len(self._waiting) >= MAX_TASKS:
            self._caches[task.place.cache].hints.doubt("too many blobs wait for a worker")
        elif task.place.cache in self._order:
            task.token = self._activity.take(task.place.cache, task.inherit)
            self._waiting[task.digest] = task
            self._sequence += 1
            self._note(task, +1)
            # What only has to be hashed again first, then the largest, so that no core ends idle.
            order = (not task.counted, -task.stored_bytes, self._sequence, task.digest)
            heapq.heappush(self._order[task.place.cache], order)

    def _note(self, task: Task, sign: int) -> None:
        if not task.counted:
            self.blobs += sign
            self.stored_bytes += sign * task.stored_bytes

    def offer(self, place: Place, opened: Opened) -> None:
        """Take a blob that was opened unasked, if a task waits for it at this place; else have it closed."""
        found = layouts.identify(self._caches[place.cache].path, place.path)
        task = None if found is None else self._waiting.get(found[0])
        if task is None or task.place != place:
            self._caches[place.cache].close_descriptor(opened.descriptor)
            return
        self._begin(task)
        self._take(task, opened)

    def _begin(self, task: Task) -> None:
        self._running[task.digest] = task  # in both for a moment, and never in none
        del self._waiting[task.digest]
        task.given = True

    def _take(self, task: Task, opened: Opened) -> None:
        task.mark, task.descriptor = opened.mark, opened.descriptor
        self._opened.append(task)

    def note_read(self, task: Task) -> None:
        """No worker has the task any longer. What was found is still to be committed."""
        task.was_read = True
        self._read_bytes += 0 if task.counted else task.stored_bytes

    def finish(self, task: Task) -> None:
        """The task is done, and what follows from it is committed."""
        self._read_bytes -= task.stored_bytes if task.was_read and not task.counted else 0
        self._running.pop(task.digest, None)
        self._note(task, -1)
        self._close(task)
        assert task.token is not None
        self._activity.give_back(task.token)

    def try_again(self, task: Task, *, died: bool = True) -> None:
        """Its worker died, which may have been another's fault, or could not be started."""
        self._close(task)
        self._running.pop(task.digest, None)
        self._note(task, -1)
        token = task.inherit = task.token
        task.tries, task.given, task.mark = task.tries + died, False, None
        self.add(task)
        if token is not None:
            self._activity.give_back(token)

    # --- opening and giving out -----------------------------------------------------------------------------------

    def not_opened(self) -> Iterator[tuple[Task, Finding]]:
        """Take what the caches' threads have opened. Yields the tasks without anything to read, with the finding that
        follows.
        """
        for cache in self._caches.values():
            while cache.opened:
                opened = cache.opened.popleft()
                task = self._opening.pop(opened.number)
                if self._running.get(task.digest) is not task:  # dropped meanwhile
                    if opened.descriptor >= 0:
                        cache.close_descriptor(opened.descriptor)
                    continue
                finding = _finding_of(opened)
                if finding is not None:
                    yield task, finding
                    continue
                self._take(task, opened)

    def give(self) -> None:
        """Hand opened blobs to idle workers, and have more opened. Raises OSError when no worker can be started."""
        stuck = {killed.cache: killed.at for killed in reversed(self._pool.stuck)}
        for number, served in self._caches.items():
            served.worker_stuck_since_s = stuck.get(number)
        for task in self._answering():
            assert task.mark is not None
            if not self._pool.takes(task.mark.stored_bytes, task.place.cache):
                break  # in this order, as those that are small would keep a large one out
            job = Job(task.digest, task.mark, decode=not task.counted, relayed=self._leaves_idle(task))
            self._pool.give(job, task.descriptor, task.place.cache)
            self._opened.remove(task)
            if sys.platform == "linux":  # elsewhere a descriptor under way is lost with the sender's
                self._close(task)
        self._open_more()

    def _open_more(self) -> None:
        """Have the next blobs opened, each time of the cache whose task comes first among those with room for it."""
        opened = len(self._answering())
        waits = self._pool.stalled | {number for number, cache in self._caches.items() if cache.hung_s()}
        room, small_room = self._pool.idle + OPEN_AHEAD - opened, SMALL_AHEAD - opened
        asked = Counter(task.place.cache for task in self._opening.values())
        while ready := [
            (order[0], number)
            for number, order in self._order.items()
            if order and asked[number] < (small_room if -order[0][1] <= SMALL_BYTES else room) and number not in waits
        ]:
            (*_, digest), number = min(ready)
            heapq.heappop(self._order[number])
            task = self._waiting.get(digest)
            if task is None or task.place.cache != number:
                continue  # dropped
            self._begin(task)
            self._sequence += 1
            self._opening[self._sequence] = task
            self._caches[number].open(self._sequence, task.place.path)
            asked[number] += 1

    def _answering(self) -> list[Task]:
        """The tasks whose blob is open, except those of caches on which a worker is stalled."""
        stalled = self._pool.stalled
        return [task for task in self._opened if task.place.cache not in stalled]

    def _leaves_idle(self, task: Task) -> bool:
        """Whether the other workers will run out of work before one worker is done with this task."""
        return self.stored_bytes - self._read_bytes - task.stored_bytes < (self._pool.count - 1) * task.stored_bytes

    def _close(self, task: Task) -> None:
        if task.descriptor >= 0:
            self._caches[task.place.cache].close_descriptor(task.descriptor)
            task.descriptor = -1


def _finding_of(opened: Opened) -> Finding | None:
    if opened.gone:
        return Finding("gone")
    if opened.problem:
        return Finding("unreadable", reason=opened.problem)
    return Finding("ignored", reason=opened.kind) if opened.kind else None
