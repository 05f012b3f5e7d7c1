"""One folder of very many names: everything about it is bounded, and nothing of it is missed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest

from chunkd.index.index import Change, Index
from chunkd.index.records import Held
from chunkd.model import Blob, Digest, FileMark, Place
from chunkd.sources.cache import MAX_LISTINGS, MAX_OBSERVATIONS
from chunkd.sources.hints import MAX_HINTS
from chunkd.sources.listing import SLICE_NAMES
from chunkd.sources.source import Seen
from counts import counted
from faulty import Many
from ingesting import World, world_in

NAMES = counted(200_000, 50_000)
KNOWN = [f"{number:064x}" for number in range(0, NAMES, 100)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def mark(name: str) -> FileMark:
    return FileMark(7, int(name, 16) + 10, 100, 1_000_000_000)


def path_of(name: str) -> str:
    return f"blobs/sha256/{name}"


def know(world: World, names: list[str]) -> None:
    """The index has them, as blobs that failed for good, so that nothing is to be read."""
    with world.index.transaction() as change:
        for name in names:
            digest = Digest("sha256", name)
            change.hold(Place(1, path_of(name)), Held(digest, "verified", mark(name)))
            change.fail(Blob(digest, "failed", 100, reason="truncated", tries=1))


class Bounded:
    """Turns of the writer and steps of the cache, as in two threads; the most that ever waited."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hints = self.listings = self.observations = self.ignored = 0

    def note(self) -> None:
        cache = self.world.caches[1]
        self.hints = max(self.hints, len(cache.hints))
        self.listings = max(self.listings, len(cache.listings))
        self.observations = max(self.observations, len(cache.observations))
        self.ignored = max(self.ignored, len(self.world.writer.listings.ignored))

    def run(self, steps: int) -> None:
        """So many steps of the cache for each turn."""
        real = Index.transaction

        def transaction(index: Index) -> AbstractContextManager[Change]:
            self.note()
            return real(index)

        with mock.patch.object(Index, "transaction", transaction):
            for _ in range(100_000):
                for _ in range(steps):
                    self.note()
                    if not self.world.caches[1].step():
                        break
                self.note()
                self.world.writer.turn(0)
                if not self.world.activity.working():
                    return
        raise AssertionError(f"it never ends: {self.world.activity}")


@pytest.mark.counted
def test_a_folder_of_very_many_names_is_listed_in_slices(world: World) -> None:
    """All but a few of its names are new, and those few of the index are there, or gone from each of the slices."""
    removed = set(KNOWN[::2])
    names = [name for number in range(NAMES) if (name := f"{number:064x}") not in removed]
    known = set(KNOWN) - removed

    def look(path: str) -> Seen:
        name = path.removeprefix("blobs/sha256/")
        if name in known:
            return Seen(mark(name), 1)
        raise FileNotFoundError(path)  # gone as soon as it was listed: nothing is to be read

    source = Many(str(world.roots[0]), names, look)
    world.sources[source.path] = source
    world.restart()
    know(world, KNOWN)
    world.scanner.request("a test")
    bounded = Bounded(world)
    bounded.run(1000)
    assert bounded.hints <= MAX_HINTS // 2, "half of it is for events"
    assert bounded.hints > SLICE_NAMES // 2
    assert 0 < bounded.listings <= MAX_LISTINGS
    assert 0 < bounded.observations <= MAX_OBSERVATIONS
    assert world.writer.scans.finished == 1
    assert world.scanned_at_ns > 0, "it is complete"
    assert {digest.hex for digest in world.failed()} == known
    assert not world.writer.listings.unseen
    assert world.activity.idle()


def test_very_many_names_that_are_all_gone_are_found_in_slices(world: World) -> None:
    def look(path: str) -> Seen:
        raise FileNotFoundError(path)

    names = [f"{number:064x}" for number in range(3 * SLICE_NAMES)]
    source = Many(str(world.roots[0]), names[::3000], look)
    world.sources[source.path] = source
    world.restart()
    know(world, names)
    world.scanner.request("a test")
    bounded = Bounded(world)
    bounded.run(1)
    assert SLICE_NAMES // 4 < bounded.hints <= MAX_HINTS // 2
    assert {digest.hex for digest in world.failed()} == set(names[::3000])


def test_very_many_names_of_no_digest_are_ignored_in_slices(world: World) -> None:
    names = [f"README{number}" for number in range(6 * SLICE_NAMES)]
    source = Many(str(world.roots[0]), names, lambda _: Seen(FileMark(7, 5, 1, 1), 1))
    world.sources[source.path] = source
    world.restart()
    world.scanner.request("a test")
    bounded = Bounded(world)
    bounded.run(1000)
    assert 0 < bounded.ignored <= 5 * SLICE_NAMES
    assert len(world.ignored()) == len(names)
    source.names = names[: 5 * SLICE_NAMES : 2]
    world.scanner.request("a test")
    bounded.run(1000)
    assert set(world.ignored()) == {path_of(name) for name in source.names}
