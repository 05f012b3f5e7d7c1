"""Files that change while they are read, or seem to: reading in vain is bounded, and each gets a result."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import blobs
from chunkd.ingest import reconcile
from chunkd.ingest.reconcile import CAN_NOT_BE_READ, DISAGREES, VAIN_READS, WRONG_NAME
from chunkd.model import Cause, FileMark
from chunkd.sources.folder import FolderSource
from chunkd.sources.source import Entry, RootMark, Seen, View
from ingesting import LAYER, Content, World, land, layer_of, oci, world_in, write_in_place, wrong

Change = Callable[[FileMark], FileMark]
LARGE = layer_of("LARGE", blobs.tar({"a": blobs.noise(160_000, 9)}))
HALF = LAYER.stored[: len(LAYER.stored) // 2]


class Altered(FolderSource):
    """A folder whose files' metadata are others, by their path (`looked`) or by their descriptor (`opened`)."""

    def __init__(self, path: str, looked: Change = lambda mark: mark, opened: Change = lambda mark: mark) -> None:
        super().__init__(path)
        self.looked, self.opened = looked, opened

    @contextlib.contextmanager
    def view(self) -> Iterator[View]:  # type: ignore[override]  # a view of what is altered
        with super().view() as view:
            yield AlteredView(view, self)


class AlteredView:
    def __init__(self, view: View, source: Altered) -> None:
        self._view, self._source = view, source
        self.root: RootMark = view.root

    def look_ahead(self, paths: Sequence[str]) -> None:
        pass

    def look(self, path: str) -> Seen:
        seen = self._view.look(path)
        return seen if seen.kind else seen._replace(mark=self._source.looked(seen.mark))

    def open(self, path: str) -> tuple[int, Seen]:
        descriptor, seen = self._view.open(path)
        return descriptor, seen._replace(mark=self._source.opened(seen.mark))

    def list(self, folder: str) -> Iterator[Entry]:
        return self._view.list(folder)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path, "a") as made:
        yield made


def altered(world: World, looked: Change = lambda mark: mark, opened: Change = lambda mark: mark) -> Altered:
    source = Altered(str(world.roots[0]), looked, opened)
    world.sources = {source.path: source}
    world.restart()
    return source


# --- whose clock ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [-7200, 0, 3600])
def test_a_file_is_at_rest_by_our_own_watch_whatever_its_times_are(world: World, ahead_s: int) -> None:
    change = lambda mark: mark._replace(ctime_ns=mark.ctime_ns + ahead_s * 10**9)  # noqa: E731
    altered(world, change, change)
    path = write_in_place(oci(world.roots[0], LAYER), HALF)
    world.heard(path, Cause.CREATED)
    for _ in range(3):
        world.pass_s(3)
        assert world.writer.pending() == (1, len(HALF))
    world.pass_s(3)
    assert world.activity.idle()
    assert world.writer.pending() == (0, 0)
    assert world.failed()[LAYER.digest].reason == WRONG_NAME
    assert len(world.pool.given) == 1
    path.write_bytes(LAYER.stored)
    world.heard(path, Cause.WRITTEN)
    world.rest()
    world.holds_exactly(LAYER)


def test_a_clock_that_is_put_back_holds_up_no_failure(world: World) -> None:
    world.heard(write_in_place(oci(world.roots[0], LAYER), HALF), Cause.CREATED)
    world.pass_s(3)
    world.writer.clock_s = lambda: world.clock_s() - 3600
    for _ in range(3):
        world.pass_s(3)
    world.holds_exactly(failed=[LAYER.digest])
    assert len(world.pool.given) == 1


# --- a writer that pauses ---------------------------------------------------------------------------------------------


def read_bytes(world: World, content: Content) -> int:
    """As many as the opener saw: a worker reads no more."""
    return sum(job.mark.stored_bytes for job in world.pool.given if job.digest == content.digest)


def written_in_pieces(world: World, pieces: int, *, closes: bool) -> Iterator[None]:
    """LARGE is written in place; after each piece its writer pauses, and has closed the file if it `closes`."""
    path = write_in_place(oci(world.roots[0], LARGE), b"")
    world.heard(path, Cause.CREATED)
    size = len(LARGE.stored)
    piece = size // pieces
    for end in itertools.chain(range(piece, size, piece), [size]):
        with path.open("ab") as file:
            file.write(LARGE.stored[path.stat().st_size : end])
        if closes:
            world.heard(path, Cause.WRITTEN)
        yield


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("pause_s", [0.1, 1.0, 5.0, 9.0])
def test_a_blob_that_is_written_with_pauses_is_read_a_few_times_its_size(
    world: World, pause_s: float, closes: bool
) -> None:
    size = len(LARGE.stored)
    for _ in written_in_pieces(world, 100, closes=closes):
        for _ in range(5):
            world.pass_s(pause_s / 5)
            assert world.writer.pending()[0] == (LARGE.digest not in world.counted())
    for _ in range(7):
        world.pass_s(2)
    assert world.counted() == {LARGE.digest}
    assert world.activity.idle()
    assert read_bytes(world, LARGE) <= (VAIN_READS + 1 + closes) * size


@pytest.mark.parametrize("closes", [True, False])
def test_a_large_blob_that_fails_in_a_pause_is_not_read_in_each_that_follows(
    world: World, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    """The pauses are longer than 10 s, and short beside the time that so large a blob must be at rest."""
    monkeypatch.setattr(reconcile, "VAIN_BYTES_PER_S", 2000)
    size = len(LARGE.stored)
    for _ in written_in_pieces(world, 60, closes=closes):
        for _ in range(5):
            world.pass_s(2.4)
        world.scan()
    world.pass_s((VAIN_READS + 2) * size / 2000)
    assert world.counted() == {LARGE.digest}
    assert read_bytes(world, LARGE) <= (VAIN_READS + 2) * size


def test_a_reader_does_not_chase_a_writer(world: World) -> None:
    path = write_in_place(oci(world.roots[0], LARGE), LARGE.stored[:20_000])
    world.pool.held = True
    world.heard(path, Cause.CREATED)
    read: list[int] = []

    def written_on(_: object) -> None:
        read.append(1)
        with path.open("ab") as file:
            file.write(bytes(10_000))

    world.pool.read(written_on)
    assert len(read) < 5
    path.write_bytes(LARGE.stored)
    world.event(path, Cause.WRITTEN)
    world.pool.held = False
    world.run()
    world.pass_s(0.1)
    assert world.counted() == {LARGE.digest}


# --- a descriptor and a path that disagree ----------------------------------------------------------------------------


def other_numbers(mark: FileMark) -> FileMark:
    return mark._replace(device=mark.device + 1, inode=mark.inode + 1000)


def same_ctime(mark: FileMark) -> FileMark:
    return mark._replace(ctime_ns=10**18)


def another_file(mark: FileMark) -> FileMark:
    return other_numbers(mark)._replace(ctime_ns=mark.ctime_ns - 10**9)


def test_a_descriptor_of_another_device_and_inode_is_the_same_file(world: World) -> None:
    """As overlayfs and some FUSE file systems have it."""
    altered(world, opened=other_numbers)
    world.heard(land(oci(world.roots[0], LAYER), LAYER.stored))
    world.holds_exactly(LAYER)
    world.pass_s(60)
    assert world.pool.decoded == [LAYER.digest]
    assert len(world.pool.given) <= 2
    assert world.activity.idle()


@pytest.mark.parametrize("opened", [other_numbers, another_file])
def test_bytes_that_do_not_match_fail_though_path_and_descriptor_disagree(world: World, opened: Change) -> None:
    altered(world, opened=opened)
    world.heard(land(oci(world.roots[0], LAYER), wrong(LAYER)))
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])
    assert world.failed()[LAYER.digest].reason == WRONG_NAME
    assert len(world.pool.given) <= VAIN_READS + 2


def test_a_file_system_that_numbers_a_file_anew_at_each_look(world: World) -> None:
    """Nothing tells there that what was read is what lies at the path, so each blob fails with its reason."""
    numbers = itertools.count(1000)
    source = altered(world, lambda mark: mark._replace(inode=next(numbers)))
    source.opened = source.looked
    good = land(oci(world.roots[0], LAYER), LAYER.stored)
    bad = land(oci(world.roots[0], LARGE), wrong(LARGE))
    world.heard(good)
    world.heard(bad)
    world.rest()
    world.holds_exactly(failed=[LAYER.digest, LARGE.digest])
    assert world.failed()[LAYER.digest].reason == CAN_NOT_BE_READ + DISAGREES
    assert world.failed()[LARGE.digest].reason == WRONG_NAME
    assert len(world.pool.given) <= 6


def test_a_good_blob_in_the_place_of_a_bad_one_of_its_size_and_ctime_counts(world: World) -> None:
    """A clock of a file system ticks as seldom as every 4 ms: both may be moved in within one tick."""
    altered(world, same_ctime, same_ctime)
    path = land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.heard(path)
    assert world.writer.pending() == (1, len(LAYER.stored))
    land(path, LAYER.stored)  # and no event tells of it
    world.rest()
    world.holds_exactly(LAYER)


def test_a_bad_blob_in_the_place_of_a_good_one_as_it_is_read_does_not_count(world: World) -> None:
    altered(world, same_ctime, same_ctime)
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.pool.held = True
    world.event(path)
    world.run()
    land(path, wrong(LAYER))
    world.pool.held = False
    world.run()
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


def test_a_whole_blob_whose_descriptor_is_always_another_file_is_failed_with_the_reason(world: World) -> None:
    altered(world, opened=another_file)
    world.heard(land(oci(world.roots[0], LAYER), LAYER.stored))
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])
    assert world.failed()[LAYER.digest].reason == CAN_NOT_BE_READ + DISAGREES
    given = len(world.pool.given)
    assert given <= 4
    assert world.activity.idle()
    for _ in range(10):
        world.pass_s(10)
    assert len(world.pool.given) <= given + 4
    source = world.sources[str(world.roots[0])]
    assert isinstance(source, Altered)
    source.opened = source.looked
    for _ in range(10):
        world.pass_s(100)
    world.holds_exactly(LAYER)


@pytest.mark.parametrize("opened", [another_file, lambda mark: mark._replace(ctime_ns=1)])
def test_a_counted_blob_whose_descriptor_becomes_another_file_stands(world: World, opened: Change) -> None:
    source = altered(world)
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.heard(path)
    source.opened = opened
    path.chmod(0o600)
    world.heard(path, Cause.CHANGED)
    before = len(world.pool.given)
    for _ in range(30):
        world.pass_s(60)
    world.holds_exactly(LAYER)
    assert len(world.pool.given) <= before + 2
    assert world.activity.idle()


def test_a_file_whose_ctime_is_another_at_each_look_is_hashed_once_more_and_not_for_ever(world: World) -> None:
    moments = itertools.count(1)
    altered(world, lambda mark: mark._replace(ctime_ns=mark.ctime_ns + 3600 * 10**9 + next(moments)))
    world.heard(land(oci(world.roots[0], LAYER), LAYER.stored))
    world.holds_exactly(LAYER)
    assert len(world.pool.given) <= 2
    assert world.activity.idle()
