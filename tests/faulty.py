"""A cache's folder whose file system answers as a test wants it to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from chunkd.model import FileMark
from chunkd.sources.folder import FolderSource, FolderView
from chunkd.sources.source import Entry, RootMark, Seen
from ingesting import World

Answer = TypeVar("Answer")


def as_it_is(real: Callable[[str], Answer], path: str) -> Answer:
    return real(path)


class FaultySource(FolderSource):
    """Each of these may be replaced; it gets what would be called, and what with."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.root: Callable[[RootMark], RootMark] = lambda mark: mark
        self.look: Callable[[Callable[[str], Seen], str], Seen] = as_it_is
        self.list: Callable[[Callable[[str], Iterator[Entry]], str], Iterator[Entry]] = as_it_is
        self.open: Callable[[Callable[[str], tuple[int, Seen]], str], tuple[int, Seen]] = as_it_is

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


def faulty(world: World, number: int = 1, source: type[FaultySource] = FaultySource) -> FaultySource:
    """The source of the cache of that number, from now on: the daemon is started anew with it."""
    made = source(str(world.roots[number - 1]))
    world.sources[made.path] = made
    world.restart()
    return made


def on_device(seen: Seen, device: int) -> Seen:
    return seen._replace(mark=seen.mark._replace(device=device))


class Many:
    """A cache with a folder of many names and no files. `look` says what lies at each of its paths."""

    def __init__(self, path: str, names: list[str], look: Callable[[str], Seen]) -> None:
        self.path, self.names = path, names
        self.root = RootMark(7, 1)
        self._look = look

    def look_at_root(self) -> RootMark:
        return self.root

    @contextlib.contextmanager
    def view(self) -> Iterator[Many]:
        yield self

    def look_ahead(self, paths: Sequence[str]) -> None:
        pass

    def look(self, path: str) -> Seen:
        if path in ("blobs", "blobs/sha256"):
            return Seen(FileMark(7, 2, 0, 0), 1, "a folder")
        return self._look(path)

    def list(self, folder: str) -> Iterator[Entry]:
        if folder == "blobs/sha256":
            yield from (Entry(name, True, False) for name in self.names)
        else:
            below = {"": "blobs", "blobs": "sha256"}[folder]
            yield Entry(below, False, True)

    def open(self, path: str) -> tuple[int, Seen]:
        raise AssertionError(path)
