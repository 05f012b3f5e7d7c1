"""A cache's folder whose file system answers as a test wants it to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from chunkd.sources.folder import FolderSource, FolderView
from chunkd.sources.source import Entry, RootMark, Seen
from ingesting import World


class FaultySource(FolderSource):
    """Each of these may be replaced; it gets what would be called, and what with."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.root: Callable[[RootMark], RootMark] = lambda mark: mark
        self.look: Callable[[Callable[[str], Seen], str], Seen] = lambda look, path: look(path)
        self.list: Callable[[Callable[[str], Iterator[Entry]], str], Iterator[Entry]] = lambda list_, path: list_(path)
        self.open: Callable[[Callable[[str], tuple[int, Seen]], str], tuple[int, Seen]] = lambda open_, path: open_(
            path
        )

    def look_at_root(self) -> RootMark:
        return self.root(super().look_at_root())

    @contextlib.contextmanager
    def view(self) -> Iterator[FaultyView]:
        with super().view() as view:
            yield FaultyView(self, view)


class FaultyView(FolderView):
    def __init__(self, source: FaultySource, view: FolderView) -> None:
        self._source, self._view = source, view
        self.root = source.root(view.root)

    def look(self, path: str) -> Seen:
        return self._source.look(self._view.look, path)

    def list(self, folder: str) -> Iterator[Entry]:
        return self._source.list(self._view.list, folder)

    def open(self, path: str) -> tuple[int, Seen]:
        return self._source.open(self._view.open, path)

    def read(self, path: str, most_bytes: int) -> bytes:
        return self._view.read(path, most_bytes)


def faulty(world: World, number: int = 1, source: type[FaultySource] = FaultySource) -> FaultySource:
    """The source of the cache of that number, from now on: the daemon is started anew with it."""
    made = source(str(world.roots[number - 1]))
    world.sources[made.path] = made
    world.restart()
    return made


def on_device(seen: Seen, device: int) -> Seen:
    return seen._replace(mark=seen.mark._replace(device=device))
