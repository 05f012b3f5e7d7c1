"""Walks over one cache, in its thread. Keeps which folders could not be listed, and so must be compared later."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator

from chunkd.sources import lookalikes
from chunkd.sources.listing import Listing, walk
from chunkd.sources.root import Root
from chunkd.sources.source import Source

log = logging.getLogger(__name__)

# A folder that was not listable and is again must be compared. Beyond so many all of the cache is.
MAX_PROBLEMS = 4096


class Lister:
    """`problems` has the folders that could not be listed, by path, with the reason. `forgotten` counts those beyond
    the most that it keeps. `layouts` has the layouts of all blobs seen, `lookalikes` what the last walk over the whole
    cache found that looks like blobs but can't be read as such.
    """

    def __init__(self, source: Source, root: Root, layouts_seen: set[str]) -> None:
        self._source, self._root, self.layouts = source, root, layouts_seen
        self.problems: dict[str, str] = {}
        self.forgotten = 0
        self.lookalikes: lookalikes.Lookalikes = {}

    def walk(
        self, folder: str, compare: bool, enter: Callable[[str], None]
    ) -> Generator[tuple[Listing, bool], None, bool]:
        """List a folder and what is below it, slice by slice. Yields each slice with whether its places must be
        compared. Returns whether all of it could be listed.
        """
        complete = True
        top = f"{self._source.path}/{folder}".rstrip("/")
        unseen = {path for path in self.problems if path == top or path.startswith(f"{top}/")}
        healed: list[str] = []
        seen: lookalikes.Lookalikes = {}
        for listing in walk(self._source, folder, enter):
            path = f"{self._source.path}/{listing.folder}".rstrip("/")
            if away := self._away(listing.folder):
                listing.problem = away
            else:
                complete &= self._note(path, listing)
                self._note_mount(listing)
                if path in unseen and not listing.problem:
                    healed.append(f"{path}/")
                unseen.discard(path)
            self.layouts |= listing.layouts
            lookalikes.add(seen, listing.lookalikes)
            # We may have missed events while this was unreachable, so compare file metadata, not just names.
            doubtful = compare or f"{path}/".startswith(tuple(healed))
            yield listing, doubtful
        for mount in self._root.mounts:
            if away := self._away(mount):
                complete &= self._note(f"{self._source.path}/{mount}", Listing(mount, problem=away))
                unseen.discard(f"{self._source.path}/{mount}")
        if not folder:
            self.lookalikes = seen
        for path in unseen:  # a folder that is gone has no problem any longer
            self.problems.pop(path, None)
        return complete

    def _away(self, folder: str) -> str:
        if not self._root.mounts:
            return ""
        try:
            with self._source.view() as view:
                return self._root.away(view, folder)
        except OSError:
            return ""

    def _note_mount(self, listing: Listing) -> None:
        """Record the mount of a folder's blobs, from one of them."""
        if not listing.blobs:
            return
        path = listing.blob_path(next(iter(listing.blobs)))
        with contextlib.suppress(OSError), self._source.view() as view:
            self._root.note_mount(view, path, view.look(path).mark)

    def _note(self, path: str, listing: Listing) -> bool:
        """Keep a folder's problem. Returns whether it has none; a slice that is not the last says nothing yet."""
        if not listing.last:
            return True
        known = self.problems.pop(path, "")
        if not listing.problem:
            return True
        if len(self.problems) < MAX_PROBLEMS:
            self.problems[path] = listing.problem
        else:
            self.forgotten += 1
        if known != listing.problem:
            log.warning("%s; nothing below it is subtracted", listing.problem)
        return False
