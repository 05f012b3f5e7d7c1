"""When what is listed: at start, after any doubt, on request, on a timer. A watch is set before a folder is listed."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from chunkd.model import Hint
from chunkd.sources import filesystems
from chunkd.sources.cache import ServedCache
from chunkd.sources.hints import HintQueue
from chunkd.sources.listing import Listed, Listing, ScanEnd, walk
from chunkd.sources.watch import Watcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds from the end of one round to the start of the next."""

    scan_s: float
    polled_s: float


@dataclass(slots=True)
class Request:
    """A scan of everything. What several callers ask for before it starts is done in one."""

    why: str
    number: int = 0
    verify: bool = False
    accept: bool = False
    retry_failed: bool = False


@dataclass(slots=True)
class Scanner:
    """Lists caches and hands the listings to the writer, which takes them as it has room. Run by one thread."""

    caches: dict[int, ServedCache]
    hint_queue: HintQueue
    listings: queue.Queue[Listed | ScanEnd]
    intervals: Intervals
    watcher: Callable[[], Watcher | None]
    clock_s: Callable[[], float] = time.monotonic
    running: bool = False
    turns: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    _refused: set[int] = field(default_factory=set)
    _requested: Request | None = None
    _number: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def request(self, why: str, *, verify: bool = False, accept: bool = False, retry_failed: bool = False) -> int:
        """Ask for a scan of everything; the number by which its end is known."""
        with self._lock:
            if self._requested is None:
                self._number += 1
                self._requested = Request(why, self._number)
            self._requested.verify |= verify
            self._requested.accept |= accept
            self._requested.retry_failed |= retry_failed
            self.hint_queue.wake_scanner.set()
            return self._number

    @property
    def busy(self) -> bool:
        """Whether folders are being listed, or are to be now. Safe to call from any thread."""
        return self.hint_queue.wake_scanner.is_set() or self.running

    def stop(self) -> None:
        self._stopping.set()
        self.hint_queue.wake_scanner.set()

    def run(self) -> None:
        """Scan when it is time, or asked for, until stopped."""
        now = self.clock_s()
        scanned = polled = now
        while not self._stopping.is_set():
            self.turns += 1
            due_s = min(scanned + self.intervals.scan_s, polled + self.intervals.polled_s)
            self.hint_queue.wake_scanner.wait(max(0.0, min(1.0, due_s - self.clock_s())))
            # Set before that is cleared: at any moment one of the two tells of what is to be listed.
            self.running = True
            self.hint_queue.wake_scanner.clear()
            if doubt := self.hint_queue.take_doubt():
                self.request(doubt, verify=True)
            if self.clock_s() >= scanned + self.intervals.scan_s:
                self.request("the timer")
            if (request := self._next()) is not None:
                self._scan(request)
                scanned = polled = self.clock_s()
            # Also after a scan: what stirred for these and what stirred for it may have been one.
            self._scan_folders(self.hint_queue.take_folders())
            if self.clock_s() >= polled + self.intervals.polled_s:
                for cache in list(self.caches.values()):
                    if cache.polled or cache.unwatched or cache.stale or self._problem_below(f"{cache.path}/"):
                        self._scan_cache(cache, Request("polled"))
                polled = self.clock_s()
            self.running = False

    def _next(self) -> Request | None:
        with self._lock:
            request, self._requested = self._requested, None
        return request

    def _scan(self, request: Request) -> None:
        log.info("scan %d: %s", request.number, request.why)
        # They are compared with all the rest, as far as that can be reached from its root.
        folders = self.hint_queue.take_folders() if request.verify else []
        complete = True
        for cache in list(self.caches.values()):
            complete &= self._scan_cache(cache, request)
        if not complete:
            self._scan_folders(folders)
        self._put(ScanEnd(request.number, complete, time.time_ns(), request.retry_failed))

    def _scan_cache(self, cache: ServedCache, request: Request) -> bool:
        """List a whole cache; whether that was possible to the end."""
        was_stale = cache.stale
        status = cache.check_root()
        other = bool(was_stale) or cache.inode not in (0, status.st_ino if status else 0)
        if status is None and request.accept and os.path.isdir(cache.path):
            status = os.stat(cache.path)
            log.warning("cache %s: taken as it is now, as asked for: %s", cache.path, cache.stale)
            cache.device = 0
        if status is None:
            if cache.stale != was_stale:
                log.warning("cache %s: stale, its figures are kept: %s", cache.path, cache.stale)
            return False
        if was_stale:
            log.info("cache %s: it is there again", cache.path)
        watcher = self.watcher()
        if watcher is not None and cache.inode and cache.inode != status.st_ino:
            watcher.leave(cache.number)
        cache.accept(status)
        # Of what was out of sight meanwhile, names prove nothing.
        doubtful = request.verify or request.accept or other
        if (
            watcher is not None
            and doubtful
            and cache.polled != (polled := filesystems.polled_because(cache.path) or "")
        ):
            cache.polled = polled
            log.info("cache %s: %s", cache.path, f"polled: {polled}" if polled else "its events come now")
        if request.accept:
            cache.forget_mounts()
        self._refused.discard(cache.number)
        complete = self._walk(cache, "", doubtful)
        if watcher is not None and cache.number not in self._refused and cache.unwatched:
            cache.unwatched = ""
            if not doubtful and not cache.polled:
                self.request(f"{cache.path} is watched again", verify=True)
        return complete

    def _scan_folders(self, hints: list[Hint]) -> None:
        for hint in hints:
            if self._stopping.is_set():
                return
            self._scan_folder(hint)

    def _scan_folder(self, hint: Hint) -> None:
        cache = self.caches.get(hint.place.cache)
        if cache is not None and not cache.stale and cache.check_root() is not None:
            log.debug("cache %s: listing %r: %s", cache.path, hint.place.path, hint.why)
            self._walk(cache, hint.place.path, verify=True)

    def _walk(self, cache: ServedCache, folder: str, verify: bool) -> bool:
        complete = True
        top = f"{cache.path}/{folder}".rstrip("/")
        unseen = {path for path in self.problems if path.rstrip("/") == top or path.startswith(f"{top}/")}
        healed: list[str] = []
        for listing in walk(cache.path, folder, lambda entered: self.enter(cache, entered)):
            path = f"{cache.path}/{listing.folder}"
            if away := cache.away(listing.folder):
                listing.problem = away
            else:
                complete &= self._note(cache, listing)
                if listing.blobs:
                    cache.note_mount(listing.folder)
                if path in unseen and not listing.problem:
                    healed.append(path.rstrip("/") + "/")
                unseen.discard(path)
            # Of what was out of sight meanwhile, names prove nothing.
            doubtful = verify or f"{path}/".startswith(tuple(healed))
            self._put(Listed(cache.number, listing, doubtful))
            if self._stopping.is_set():
                return False
        for mount in cache.mounts:
            if away := cache.away(mount):
                complete &= self._note(cache, Listing(mount, problem=away))
                unseen.discard(f"{cache.path}/{mount}")
        for path in unseen:  # a folder that is gone has no problem any longer
            del self.problems[path]
        return complete

    def _problem_below(self, path: str) -> bool:
        return any(problem.startswith(path) for problem in self.problems)

    def _note(self, cache: ServedCache, listing: Listing) -> bool:
        path = f"{cache.path}/{listing.folder}"
        known = self.problems.pop(path, "")
        if listing.problem:
            self.problems[path] = listing.problem
            if known != listing.problem:
                log.warning("%s; nothing below it is subtracted", listing.problem)
        return not listing.problem

    def enter(self, cache: ServedCache, folder: str) -> None:
        """Watch a folder that is about to be listed, if this cache is watched at all."""
        watcher = self.watcher()
        if watcher is None or cache.polled:
            return
        try:
            watcher.enter(cache.number, cache.path, folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # gone meanwhile, which the listing will find
        except OSError as error:
            if not cache.unwatched:
                log.warning("cache %s: can't be watched: %s; it is listed on a timer", cache.path, error.strerror)
            cache.unwatched = f"can't be watched: {error.strerror}"
            self._refused.add(cache.number)

    def _put(self, item: Listed | ScanEnd) -> None:
        """Hand over a listing, waiting until the writer has room."""
        while not self._stopping.is_set():
            try:
                self.listings.put(item, timeout=0.5)
            except queue.Full:
                self.turns += 1
            else:
                self.hint_queue.wake_writer()
                return
