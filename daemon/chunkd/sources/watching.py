"""Whether events of one cache come, and what is done where they do not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from chunkd.sources import filesystems
from chunkd.sources.hints import HintQueue

if TYPE_CHECKING:
    from chunkd.sources.watch import Watcher

log = logging.getLogger(__name__)

WatchMaker = Callable[[HintQueue, str], "Watcher"]


class Watching:
    """Used by the cache's own thread. `polled` says why no events come, `unwatched` why a watch could not be set.

    Without a `make` nothing is watched at all: that is a scan.
    """

    def __init__(self, path: str, hints: HintQueue, make: WatchMaker | None) -> None:
        self._path, self._hints, self._make = path, hints, make
        self._watcher: Watcher | None = None
        self._refused = False
        self.polled = self.unwatched = ""

    @property
    def wanted(self) -> bool:
        return self._make is not None

    @property
    def alive(self) -> bool:
        """Whether events of every folder come."""
        return self._watcher is not None and self._watcher.alive and not self.unwatched

    def begin(self) -> None:
        """Learn what the cache lies on, and start a watcher."""
        if self._make is not None:
            self.learn()
            self._start()

    def learn(self) -> None:
        """Whether events come from the file system that the cache lies on now."""
        polled = filesystems.polled_because(self._path) or ""
        if self.wanted and polled != self.polled:
            self.polled = polled
            log.info("cache %s: %s", self._path, f"polled: {polled}" if polled else "its events come now")

    def _start(self) -> bool:
        """Whether there is a watcher now."""
        assert self._make is not None
        try:
            self._watcher = self._make(self._hints, self._path)
        except OSError as error:
            reason = f"can't be watched: {error.strerror}"
            if self.unwatched != reason:
                log.error("cache %s: %s; it is listed on a timer", self._path, reason)
            self.unwatched = reason
            return False
        return True

    def mend(self) -> bool:
        """Replace a watcher that has died, or could not be had; whether one has been, so that events may be lost."""
        if self._make is None:
            return False
        if self._watcher is not None and self._watcher.alive:
            self._watcher.check()
            return False
        if self._watcher is not None:
            log.error("cache %s: its watcher died; a new one is started and everything is scanned", self._path)
            with contextlib.suppress(OSError):
                self._watcher.close()
            self._watcher = None
        if not self._start():
            return False
        self.unwatched = ""
        return True

    def enter(self, folder: str) -> None:
        """Watch a folder that is about to be listed, if this cache is watched at all."""
        if self._watcher is None or self.polled:
            return
        try:
            self._watcher.enter(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # gone meanwhile, which the listing will find
        except OSError as error:
            if not self.unwatched:
                log.warning("cache %s: can't be watched: %s; it is listed on a timer", self._path, error.strerror)
            self.unwatched = f"can't be watched: {error.strerror}"
            self._refused = True

    def begin_listing(self, replaced: bool) -> None:
        """Everything is listed anew, and watched anew if another root has come in the place of the old one."""
        if self._watcher is not None and replaced:
            self._watcher.leave()
        self._refused = False

    def end_listing(self) -> bool:
        """Whether the cache can be watched again, and could not before."""
        again = self._watcher is not None and not self._refused and bool(self.unwatched)
        if again:
            self.unwatched = ""
        return again and not self.polled

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
