"""File systems by the index's own numbers, because many get another device number at each boot or mount.

A file system's own number is the device number under which the index first saw it. If its device number has changed,
its fsid or its files identify it: no other file system has files with the same inodes, sizes and ctimes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from chunkd.model import FileMark
from chunkd.sources.source import Entry, RootMark, Seen, Source, View

# Some places of a cache, spread over it, with their marks as recorded.
Known = tuple[tuple[str, FileMark], ...]
# Set in the own number of a file system whose device number another one has for its own. No device number has it.
_ANOTHER = 1 << 63


class Devices:
    """The own number of each device number. The caches of one index share it; their threads call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: dict[int, int] = {}
        # The device number that each cache's root was last seen on, if its places are recorded as on that.
        self._roots: dict[int, int] = {}

    def own(self, device: int) -> int:
        if (known := self._own.get(device)) is not None:
            return known
        with self._lock:
            if device not in self._own:
                self._own[device] = device | _ANOTHER if device in self._own.values() else device
            return self._own[device]

    def root_is_on(self, cache: int, device: int | None) -> None:
        with self._lock:
            self._roots.pop(cache, None)
            if device is not None:
                self._roots[cache] = device

    def rename(self, cache: int, device: int, own: int) -> bool:
        """Give a device number this own number, which is known to be its. Returns False if the root of another cache is
        on the device that has the number: then one of the two is a copy.
        """
        with self._lock:
            before = [other for other, number in self._own.items() if number == own and other != device]
            if any(on in before for other, on in self._roots.items() if other != cache):
                return False
            for other in before:
                del self._own[other]
            self._own[device] = own
            return True


class NumberedSource:
    """A source whose marks have own numbers for devices. Any thread may replace `known`, as a whole."""

    def __init__(self, source: Source, cache: int, devices: Devices, known: Known) -> None:
        self.path = source.path
        self.known = known
        self._source, self._cache, self._devices = source, cache, devices

    def look_at_root(self) -> RootMark:
        try:
            mark = self._source.look_at_root()
        except OSError:
            self._devices.root_is_on(self._cache, None)
            raise
        own = self._devices.own(mark.device)
        recorded = any(known.device == own for _, known in self.known)
        self._devices.root_is_on(self._cache, mark.device if recorded else None)
        return mark._replace(device=own)

    @contextlib.contextmanager
    def view(self) -> Iterator[NumberedView]:
        with self._source.view() as view:
            yield NumberedView(view, self._devices)

    def recognise(self, folder: str, own: int, by_fsid: bool) -> bool:
        """Whether the file system now mounted at a folder is the one of this number: because `by_fsid` says so, or
        because at least half of the known places are there with their inode, size and ctime. If so, its device has that
        number from then on.
        """
        places = [(path, mark) for path, mark in self.known if mark.device == own]
        alike = 0
        with self._source.view() as view:
            device = view.look(folder).mark.device if folder else view.root.device
            if folder and device == view.root.device:
                return False
            for path, mark in () if by_fsid else places:
                with contextlib.suppress(OSError):
                    alike += view.look(path).mark == mark._replace(device=device)
        alike_enough = by_fsid or 0 < len(places) <= 2 * alike
        return alike_enough and self._devices.rename(self._cache, device, own)


class NumberedView:
    def __init__(self, view: View, devices: Devices) -> None:
        self._view, self._devices = view, devices
        self.root = view.root._replace(device=devices.own(view.root.device))

    def _numbered(self, seen: Seen) -> Seen:
        own = self._devices.own(seen.mark.device)
        return seen if own == seen.mark.device else seen._replace(mark=seen.mark._replace(device=own))

    def look_ahead(self, paths: Sequence[str]) -> None:
        self._view.look_ahead(paths)

    def look(self, path: str) -> Seen:
        return self._numbered(self._view.look(path))

    def list(self, folder: str) -> Iterator[Entry]:
        for entry in self._view.list(folder):
            yield entry if entry.seen is None else entry._replace(seen=self._numbered(entry.seen))

    def open(self, path: str) -> tuple[int, Seen]:
        descriptor, seen = self._view.open(path)
        return descriptor, self._numbered(seen)
