"""Opens blobs and observes places of one cache, in its thread."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace

from chunkd.model import Cause, FileMark, Hint
from chunkd.sources import layouts
from chunkd.sources.activity import Token
from chunkd.sources.listing import is_young
from chunkd.sources.root import Root
from chunkd.sources.source import Observation, Opened, Presence, Seen, Source, View

# A single blob that was moved or written into place is opened as it is observed, while fewer than this are open: most
# likely it is new, and a worker is idle.
OPENED_UNASKED = 2


def _by_path(view: View, path: str, before: FileMark, opened: FileMark) -> FileMark:
    """The mark of an opened file as its path has it.

    Some file systems (overlayfs, some FUSE) give a file another device or inode by its path than by a descriptor. If
    the path had the same mark before and after the opening, the file was not replaced meanwhile.
    """
    if opened != before and opened[2:] == before[2:]:
        with contextlib.suppress(OSError):
            if view.look(path).mark == before:
                return before
    return opened


def _not_opened(number: int, error: OSError) -> Opened:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Opened(number, gone=True)
    return Opened(number, problem=error.strerror or str(error))


class Observer:
    """`layouts` has the layouts of all blobs seen."""

    def __init__(self, source: Source, root: Root, layouts_seen: set[str]) -> None:
        self._source, self._root, self.layouts = source, root, layouts_seen
        self._open = 0  # descriptors that have not been closed yet

    def open(self, wanted: list[tuple[int, str]]) -> list[Opened]:
        """The blobs at these paths, by their numbers, opened for reading; or why they could not be."""
        try:
            with self._source.view() as view:
                return [self._opened(view, number, path) for number, path in wanted]
        except OSError as error:
            return [_not_opened(number, error) for number, _ in wanted]

    def _opened(self, view: View, number: int, path: str, before: FileMark | None = None) -> Opened:
        try:
            before = before or view.look(path).mark
            descriptor, seen = view.open(path)
        except OSError as error:
            return _not_opened(number, error)
        self._open += descriptor >= 0
        return Opened(number, descriptor, _by_path(view, path, before, seen.mark), kind=seen.kind)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._open -= 1

    def observe(self, hints: list[tuple[Hint, Token]]) -> list[Observation]:
        """What is at each of these places now. If the root is not the recorded one, the places are unknown."""
        at_ns, problem = time.monotonic_ns(), ""
        try:
            with self._source.view() as view:
                if self._root.check() is not None and view.root.device in (0, self._root.device or view.root.device):
                    view.look_ahead([hint.place.path for hint, _ in hints])
                    found = [self._observe_place(view, *hint, at_ns) for hint in hints]
                    return [self._with_blob(view, found[0])] if len(found) == 1 else found
        except OSError as error:
            if self._root.check() is not None:  # it is there, and can't be opened
                problem = error.strerror or str(error)
        return [Observation(hint, Presence.UNKNOWN, at_ns, token, problem=problem) for hint, token in hints]

    def _observe_place(self, view: View, hint: Hint, token: Token, at_ns: int) -> Observation:
        path = hint.place.path
        try:
            seen = view.look(path)
        except (FileNotFoundError, NotADirectoryError):
            return self._observe_absence(Observation(hint, Presence.UNKNOWN, at_ns, token))
        except OSError as error:
            return Observation(hint, Presence.UNKNOWN, at_ns, token, problem=error.strerror or str(error))
        return self._observe_presence(view, hint, at_ns, token, seen)

    def _with_blob(self, view: View, observed: Observation) -> Observation:
        hint, seen = observed.hint, observed.seen
        complete = hint.by_event and hint.cause in (Cause.MOVED_IN, Cause.WRITTEN)
        if not complete or seen is None or seen.kind or observed.hidden or self._open >= OPENED_UNASKED:
            return observed
        if layouts.identify(self._source.path, hint.place.path) is None:
            return observed
        opened = self._opened(view, 0, hint.place.path, seen.mark)
        return replace(observed, opened=opened) if opened.descriptor >= 0 else observed

    def _observe_presence(self, view: View, hint: Hint, at_ns: int, token: Token, seen: Seen) -> Observation:
        path = hint.place.path
        away = self._root.away(view, path)
        found = layouts.identify(self._source.path, path)
        if found is not None and not seen.kind and not away:
            self.layouts.add(found[1])
            self._root.note_mount(view, path, seen.mark)
            self._root.empty = False
        return Observation(hint, Presence.PRESENT, at_ns, token, seen, hidden=bool(away))

    def _observe_absence(self, unknown: Observation) -> Observation:
        """Absent, then its root and mount there as recorded, and absent again in the root that is there now."""
        path = unknown.hint.place.path
        if self._root.check() is None:
            return unknown
        try:
            with self._source.view() as now:
                if now.root.device != (self._root.device or now.root.device) or self._root.away(now, path):
                    return unknown
                try:
                    return self._observe_presence(now, unknown.hint, unknown.at_ns, unknown.token, now.look(path))
                except (FileNotFoundError, NotADirectoryError):
                    folder = unknown.hint.folder and is_young(now, os.path.dirname(path))
                    return replace(unknown, presence=Presence.GONE, folder_is_there=folder)
        except OSError as error:
            return replace(unknown, problem=error.strerror or str(error))
