"""One cache and the one thread that touches its file system: it lists, observes, watches, opens and closes.

What it sees goes to the writer as values. A file system that does not answer stops this thread and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from chunkd.model import Cache, Hint, Timing
from chunkd.sources import lookalikes
from chunkd.sources.activity import Activity, Token
from chunkd.sources.hints import HintQueue
from chunkd.sources.lister import Lister
from chunkd.sources.listing import Listed, ScanEnd
from chunkd.sources.names_reader import NamesReader, ReadBase
from chunkd.sources.numbered import Devices, Known, NumberedSource
from chunkd.sources.observer import Observer
from chunkd.sources.root import Root
from chunkd.sources.source import Observation, Opened, RootMark, Source
from chunkd.sources.status import PROBLEMS_SHOWN, CacheStatus, warnings_of
from chunkd.sources.watching import Watching, WatchMaker

log = logging.getLogger(__name__)

# How much the thread may be ahead of the writer.
MAX_OBSERVATIONS = 2000
MAX_LISTINGS = 16
OBSERVATIONS_A_STEP, OPENED_A_STEP = 100, 16
ENTRIES_JUDGED = 1000
MAX_EARLY = 65536
# A doubt asks for a whole comparison. When doubts keep coming, so long passes between two, up to the longer of these.
DOUBT_S, MOST_DOUBT_S = 1.0, 600.0


@dataclass(slots=True)
class Request:
    """A scan of the whole cache. Requests that come before it starts are merged into it. The number 0 means that nobody
    waits for the scan.
    """

    why: str
    number: int = 0
    verify: bool = False
    accept: bool = False
    retry_failed: bool = False

    def merge(self, later: Request) -> None:
        self.number = max(self.number, later.number)
        self.verify |= later.verify
        self.accept |= later.accept
        self.retry_failed |= later.retry_failed


class ServedCache:
    """One cache. Other threads may use `hints`, `request_scan`, `open`, `close_descriptor`, `status` and `hung_s`;
    `step` and `run` are for the cache's own thread.

    This thread fills the mailboxes `observations`, `listings`, `opened` and that of `names`, and calls `wake_writer`.
    The writer empties them and wakes this thread once there is room. The caches of an index share `devices`. `known`
    are some places of this cache. `read_names` is what `NamesReader` makes its function with.
    """

    def __init__(
        self,
        number: int,
        record: Cache,
        source: Source,
        activity: Activity,
        *,
        wake_writer: Callable[[], None] = lambda: None,
        make_watcher: WatchMaker | None = None,
        polled_s: float = 60.0,
        empty: bool = True,
        devices: Devices | None = None,
        known: Known = (),
        timing: Timing = Timing(),
        read_names: Callable[[], ReadBase] = lambda: lambda _: iter(()),
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.path = number, record.path
        self.hints = HintQueue(number, activity, clock=clock_s)
        self.observations: deque[Observation] = deque()
        self.listings: deque[Listed | ScanEnd] = deque()
        self.opened: deque[Opened] = deque()
        self._source = source = NumberedSource(source, number, devices or Devices(), known)
        self._activity, self._wake_writer = activity, wake_writer
        self.polled_s, self._clock_s, self._timing = polled_s, clock_s, timing
        self._root = Root(source, record, empty=empty, recognise=source.recognise)
        self._told_stale = ""
        self._layouts, self._warnings = set(record.layouts), record.warnings
        self._watching = Watching(self.path, self.hints, make_watcher)
        self.names = NamesReader(read_names, self._root.out_of_sight, self.hints.news, wake_writer, clock_s)
        self._observer = Observer(source, self._root, self._layouts)
        self._lister = Lister(source, self._root, self._layouts)
        self._lock = threading.Lock()
        self._requested: tuple[Request, Token] | None = None
        self._to_open: deque[tuple[int, str]] = deque()
        self._to_close: deque[int] = deque()
        self._scan: Iterator[None] | None = None
        self._folder: Iterator[None] | None = None
        self._begun = False
        # Until the first listing has ended: the folders that are watched, and the hints for places in others.
        self._entered: set[str] | None = set() if make_watcher else None
        self._early: list[tuple[Hint, Token]] = []
        self._look_at_root_s = self._listed_s = self._doubt_allowed_s = 0.0
        self._doubt_pause_s = DOUBT_S
        self._asking_since_s: float | None = None
        self.worker_stuck_since_s: float | None = None  # set by the writer: a killed one waits for this file system
        self._stopping = False
        self.scanning = False
        self.status = self._status()

    # --- other threads --------------------------------------------------------------------------------------------

    def request_scan(self, request: Request) -> None:
        with self._lock:
            if self._requested is None:
                self._requested = Request(request.why), self._activity.take(self.number)
            self._requested[0].merge(request)
        self.hints.wake()

    def open(self, number: int, path: str) -> None:
        """Ask for the blob at `path` to be opened: the answer is an `Opened` of this number."""
        self._to_open.append((number, path))
        self.hints.wake()

    def close_descriptor(self, descriptor: int) -> None:
        """Close a descriptor in the cache's thread, because closing a file may wait for its file system too. It does so
        with its next piece of work, or within a second.
        """
        self._to_close.append(descriptor)

    def remember(self, known: Known) -> None:
        """Use these places when a file system must be recognised."""
        self._source.known = known

    def hung_s(self) -> float:
        """For how long the file system has not answered a call, once that is long enough to call it hung; else 0."""
        waiting = [since_s for since_s in (self._asking_since_s, self.worker_stuck_since_s) if since_s is not None]
        asked_s = time.monotonic() - min(waiting) if waiting else 0.0
        return asked_s if asked_s > self._timing.hung_s else 0.0

    def stop(self) -> None:
        self._stopping = True
        self.hints.wake()

    # --- the thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._stopping:
            self.hints.news.wait(self._wait_s())
            self.hints.news.clear()
            while not self._stopping and self.step():
                pass
        while self._to_close:
            self._observer.close(self._to_close.popleft())
        self._watching.close()

    def _wait_s(self) -> float:
        return 1.0 if len(self.observations) >= MAX_OBSERVATIONS else min(1.0, self.hints.wait_s())

    def step(self) -> bool:
        """Do the most urgent piece of work. Returns whether there was one."""
        self._asking_since_s = time.monotonic()
        try:
            if not self._begun:
                self._begin()
                return True
            while self._to_close:
                self._asking_since_s = time.monotonic()
                self._observer.close(self._to_close.popleft())
            if self._to_open:
                some = [self._to_open.popleft() for _ in range(min(len(self._to_open), OPENED_A_STEP))]
                self.opened.extend(self._observer.open(some))
                self._wake_writer()
                return True
            return self._look_at_root() or self._observe() or self.names.step() or self._list()
        finally:
            self._asking_since_s = None

    def _begin(self) -> None:
        """Watch the root. The scan watches each folder below it right before it lists the folder. So one listing is
        enough: a new blob is in it, or gives an event.
        """
        self._begun = True
        self._listed_s = self._clock_s()
        if self._watching.wanted:
            self._watching.begin()
            if self._root.check() is not None:
                self._enter("")
        self._publish()

    def _enter(self, folder: str) -> None:
        self._watching.enter(folder)
        if self._entered is not None:
            self._entered.add(folder)

    def _status(self) -> CacheStatus:
        root = self._root
        return CacheStatus(
            root.device, root.inode, tuple(sorted(self._layouts)), tuple(sorted(root.mounts.items())),
            frozenset(root.missing), root.stale, self._watching.polled, self._watching.unwatched, self._watching.alive,
            self._warnings, tuple(itertools.islice(self._lister.problems.values(), PROBLEMS_SHOWN)),
            len(self._lister.problems) + self._lister.forgotten,
            () if self._layouts else lookalikes.told(self._lister.lookalikes, found_blobs=False),
            root.fsid,
        )  # fmt: skip

    def _publish(self) -> None:
        self.status = self._status()

    # --- the root -------------------------------------------------------------------------------------------------

    def _look_at_root(self) -> bool:
        """A root that vanished, came back or was replaced gives no event: compare its device and inode now and then."""
        if self._clock_s() < self._look_at_root_s + self._timing.look_at_root_s:
            return False
        mark = self._root.check()
        self._look_at_root_s = self._clock_s()  # its end: it may take longer than the pause, and other work has a turn
        self._tell_stale()
        if mark is not None and (self._root.missed or self._root.inode not in (0, mark.inode)):
            self.request_scan(Request("its root was away, or is another than before", verify=True))
        if self._watching.mend():
            self.request_scan(Request("there was no watcher", verify=True))
        self._publish()
        return True

    def _observe(self) -> bool:
        room = MAX_OBSERVATIONS - len(self.observations)
        taken = self.hints.take(min(OBSERVATIONS_A_STEP, room))
        if not taken:
            return False
        hints = [hint for hint in taken if not self._is_early(*hint)]
        if not hints:
            return True
        before = self._root.stale, len(self._root.mounts), len(self._root.missing), len(self._layouts)
        found = self._observer.observe(hints)
        if before != (self._root.stale, len(self._root.mounts), len(self._root.missing), len(self._layouts)):
            self._warnings = self._judge_root()
            self._publish()
        self.observations.extend(found)
        self._wake_writer()
        return True

    def _is_early(self, hint: Hint, token: Token) -> bool:
        """Keep the hint if its folder is not watched yet. A file replaced between such an observation and the watch
        would give no event, and the listing has only its name.
        """
        folder = hint.place.path.rpartition("/")[0]
        # Distribution's blob is `data` in a folder of its own, which is not entered.
        if self._entered is None or folder in self._entered or folder.rpartition("/")[0] in self._entered:
            return False
        if len(self._early) < MAX_EARLY:
            self._early.append((hint, token))
        else:
            self.hints.doubt("too many places were to be observed before they were watched")
            self._activity.give_back(token)
        return True

    def _release_early(self) -> None:
        early, self._early, self._entered = self._early, [], None
        for hint, token in early:
            self.hints.put(hint)
            self._activity.give_back(token)

    # --- listing --------------------------------------------------------------------------------------------------

    def _list(self) -> bool:
        """List the next slice. Folders that appeared come before the scan that is under way."""
        if len(self.listings) >= MAX_LISTINGS:
            return False
        if self._folder is None and (folder := self.hints.take_folder()) is not None:
            self._folder = self._list_folder(*folder)
        if self._folder is not None:
            if next(self._folder, self) is self:
                self._folder = None
            return True
        if self._scan is None:
            self._scan = self._next_scan()
        if self._scan is None:
            return False
        self.scanning = True
        if next(self._scan, self) is self:
            self._scan, self.scanning = None, False
        return True

    def _next_scan(self) -> Iterator[None] | None:
        """The next scan, if one was requested, a doubt asks for one, or one is due because no events come."""
        now_s = self._clock_s()
        if now_s >= self._doubt_allowed_s:
            self.hints.take_doubt(self._resolve_doubt)
        with self._lock:
            requested, self._requested = self._requested, None
        if requested is None:
            watching = self._watching
            unseen = watching.polled or watching.unwatched or self._root.stale or self._lister.problems
            if not unseen or not watching.wanted or now_s < self._listed_s + self.polled_s:
                return None
            requested = Request("polled"), self._activity.take(self.number)
        return self._list_all(*requested)

    def _resolve_doubt(self, why: str) -> None:
        log.info("cache %s: everything is compared: %s", self.path, why)
        now_s = self._clock_s()
        quiet = now_s > self._doubt_allowed_s + self._doubt_pause_s
        self._doubt_pause_s = DOUBT_S if quiet else min(2 * self._doubt_pause_s, MOST_DOUBT_S)
        self._doubt_allowed_s = now_s + self._doubt_pause_s
        self.request_scan(Request(why, verify=True))

    def _list_all(self, request: Request, token: Token) -> Iterator[None]:
        """List the whole cache. The token goes to the end of the scan, or is given back if nobody waits for that."""
        mark = self._accepted(request)
        self._tell_stale()
        complete = False
        if mark is not None:
            replaced = self._root.inode not in (0, mark.inode)
            # We may have missed events while this was unreachable, so compare file metadata, not just names.
            doubtful = self._root.missed or replaced or bool(self._lister.forgotten)
            compare = request.verify or request.accept or doubtful
            self._root.accept(mark)
            self._learn_what_it_lies_on(request, compare)
            self._watching.begin_listing(replaced)
            self._lister.forgotten = 0
            self._publish()  # before the first listing: those of a stale cache are not compared
            complete = yield from self._walk("", compare)
            self._warnings = self._judge_root()
            if self._watching.end_listing() and not compare:
                self.request_scan(Request(f"{self.path} is watched again", verify=True))
        self._release_early()
        self._listed_s = self._clock_s()
        self._publish()
        if request.number or request.verify:
            end = ScanEnd(self.number, request.number, complete, time.time_ns(), token, request.retry_failed)
            self.listings.append(end)
            self._wake_writer()
        else:
            self._activity.give_back(token)

    def _tell_stale(self) -> None:
        if self._root.stale == self._told_stale:
            return
        self._told_stale = self._root.stale
        if self._told_stale:
            log.warning("cache %s: stale, its figures are kept: %s", self.path, self._told_stale)
        else:
            log.info("cache %s: it is there again", self.path)

    def _accepted(self, request: Request) -> RootMark | None:
        mark = self._root.check()
        if mark is None and request.accept:
            with contextlib.suppress(OSError):
                mark = self._source.look_at_root()
                log.warning("cache %s: taken as it is now, as asked for: %s", self.path, self._root.stale)
                self._root.accept(mark)
                self._root.missed = True
        return mark

    def _learn_what_it_lies_on(self, request: Request, compare: bool) -> None:
        if self._watching.wanted and compare:
            self._watching.learn()
        if request.accept:
            with contextlib.suppress(OSError), self._source.view() as view:
                self._root.forget_mounts(view)

    def _judge_root(self) -> tuple[str, ...]:
        try:
            with self._source.view() as view:
                entries = list(itertools.islice(view.list(""), ENTRIES_JUDGED))
        except OSError:
            return self._warnings
        told = lookalikes.told(self._lister.lookalikes, found_blobs=bool(self._layouts))
        return told + warnings_of(entries, found_blobs=bool(self._layouts or told))

    def _list_folder(self, folder: str, token: Token) -> Iterator[None]:
        if not self._root.stale and self._root.check() is not None:
            yield from self._walk(folder, compare=True)
            self._publish()
        self._activity.give_back(token)

    def _walk(self, folder: str, compare: bool) -> Generator[None, None, bool]:
        """List a folder and what is below it, one slice a step. Returns whether all of it could be listed."""
        walk = self._lister.walk(folder, compare, self._enter)
        while True:
            try:
                listing, doubtful = next(walk)
            except StopIteration as end:
                return bool(end.value)
            self.listings.append(Listed(self.number, listing, self._activity.take(self.number), doubtful))
            self._wake_writer()
            yield
            if self._stopping:
                return False
