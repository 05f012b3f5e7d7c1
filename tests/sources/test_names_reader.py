"""The reading of names in a cache's thread: step by step, bounded, and only while the cache is in sight."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from chunkd.sources import names_reader
from chunkd.sources.names_reader import MOST_WAITING_BYTES, MOST_WAITING_PARTS, NamesEnd, NamesRead, NamesReader


def part(base: str, where: str, size: int = 5) -> NamesRead:
    return NamesRead(base, "layout", where, key=where.encode().rjust(16), record=bytes(size))


class Disk:
    """Bases with what is read at each, and a clock that goes on as they are read."""

    def __init__(self) -> None:
        self.bases: dict[str, list[NamesRead]] = {"/a": [part("/a", "one"), part("/a", "two")], "/b": [part("/b", "")]}
        self.away = ""
        self.now_s = 100.0
        self.takes_s = 1.0
        self.made = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def make(self) -> Callable[[str], Iterator[NamesRead]]:
        self.made += 1
        return self.read

    def read(self, base: str) -> Iterator[NamesRead]:
        if base not in self.bases:
            raise OSError(errno.EACCES, "Permission denied", base)
        for one in self.bases[base]:
            self.now_s += self.takes_s
            yield one
            self.meanwhile()

    def out_of_sight(self, base: str) -> str:
        return "its mount is away" if base == self.away else ""

    def clock_s(self) -> float:
        return self.now_s


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def reader(disk: Disk) -> NamesReader:
    return NamesReader(disk.make, out_of_sight=disk.out_of_sight, clock_s=disk.clock_s)


def all_of(reader: NamesReader) -> tuple[list[NamesRead], NamesEnd]:
    """What the writer takes, as the thread goes on."""
    found: list[NamesRead] = []
    while True:
        while reader.step():
            pass
        items = reader.waiting(3, 1 << 20)
        assert items, "the reading stands still"
        reader.took(len(items))
        found += [item for item in items if isinstance(item, NamesRead)]
        if isinstance(items[-1], NamesEnd):
            assert not reader.waiting(3, 1)
            return found, items[-1]


def test_nothing_is_read_unasked(disk: Disk, reader: NamesReader) -> None:
    assert not reader.step()
    assert disk.made == 0


def test_one_step_reads_one_part(disk: Disk, reader: NamesReader) -> None:
    reader.begin(("/a", "/b"))
    assert reader.news.is_set()
    for count in range(4):
        assert len(reader.waiting(9, 1 << 20)) == count
        assert reader.step()
    assert not reader.step()
    found, end = all_of(reader)
    assert found == [*disk.bases["/a"], *disk.bases["/b"]]
    assert end.complete
    assert end.begun_at_ns > 0
    assert disk.made == 1


def test_what_a_reading_takes_is_its_own_time_alone(disk: Disk, reader: NamesReader) -> None:
    for _ in range(2):
        reader.begin(("/a", "/b"))
        while reader.step():
            disk.now_s += 1000  # the thread does other work
        all_of(reader)
        assert reader.spent_s == 3.0


def test_a_base_that_can_not_be_opened_is_unread_and_the_others_are_read(reader: NamesReader, disk: Disk) -> None:
    reader.begin(("/a", "/none", "/b"))
    found, end = all_of(reader)
    assert found == [*disk.bases["/a"], NamesRead("/none", problem="Permission denied"), *disk.bases["/b"]]
    assert end.complete


def test_a_base_out_of_sight_leaves_the_reading_incomplete(reader: NamesReader, disk: Disk) -> None:
    disk.away = "/a"
    reader.begin(("/a", "/b"))
    found, end = all_of(reader)
    assert (found, end.complete) == (disk.bases["/b"], False)
    disk.away = ""
    reader.begin(("/a", "/b"))
    assert all_of(reader)[1].complete


def test_a_base_that_goes_out_of_sight_while_it_is_read(reader: NamesReader, disk: Disk) -> None:
    disk.meanwhile = lambda: setattr(disk, "away", "/b")
    reader.begin(("/b",))
    found, end = all_of(reader)
    assert (found, end.complete) == (disk.bases["/b"], False)


@pytest.mark.parametrize("size", [1, 100_000, 3 << 20])
def test_the_mailbox_is_bounded(disk: Disk, reader: NamesReader, size: int) -> None:
    count = 2000
    disk.bases["/a"] = [part("/a", str(number), size) for number in range(count)] if size < 1 << 20 else []
    disk.bases["/b"] = [part("/b", str(number), size) for number in range(3)]
    reader.begin(("/a", "/b"))
    steps = 0
    while reader.step():
        steps += 1
    waiting = reader.waiting(1 << 20, 1 << 40)
    assert 0 < len(waiting) == steps <= MOST_WAITING_PARTS
    assert sum(len(item.record) for item in waiting[:-1] if isinstance(item, NamesRead)) < MOST_WAITING_BYTES
    assert len(reader.waiting(9, size)) >= 1, "one that is too large is given too"
    found, end = all_of(reader)
    assert found == disk.bases["/a"] + disk.bases["/b"]
    assert end.complete


def test_what_waits_is_there_until_it_was_taken(reader: NamesReader) -> None:
    reader.begin(("/a",))
    while reader.step():
        pass
    assert reader.waiting(2, 1 << 20) == reader.waiting(2, 1 << 20)
    reader.took(2)
    [end] = reader.waiting(2, 1 << 20)
    assert isinstance(end, NamesEnd)


def test_the_writer_is_woken(disk: Disk) -> None:
    woken: list[int] = []
    reader = NamesReader(disk.make, wake_writer=lambda: woken.append(1))
    reader.begin(("/a",))
    while reader.step():
        pass
    assert len(woken) == 3
    assert names_reader.MOST_WAITING_PARTS > 3
