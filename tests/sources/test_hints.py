"""Hints wait here: bounded, once a place, in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from chunkd.model import Hint, Place
from chunkd.sources.hints import Backlog


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backlog(clock: Clock) -> Iterator[Backlog]:
    made = Backlog(max_hints=4, clock=clock)
    yield made
    made.close()


def hint(number: int, why: str = "moved in (event)") -> Hint:
    return Hint(Place(1, str(number)), why)


def rung(backlog: Backlog) -> bool:
    try:
        return bool(os.read(backlog.fileno(), 1))
    except BlockingIOError:
        return False


def test_the_oldest_come_first_and_a_place_comes_once(backlog: Backlog) -> None:
    for number in (3, 1, 2, 1, 3):
        backlog.put(hint(number))
    assert len(backlog) == 3
    assert backlog.take(2) == [hint(3), hint(1)]
    assert backlog.take(2) == [hint(2)]
    assert backlog.take(2) == []
    assert backlog.take_doubt() == ""


def test_a_hint_that_does_not_fit_becomes_a_scan(backlog: Backlog) -> None:
    for number in range(4):
        backlog.put(hint(number))
    backlog.put(hint(2))
    assert backlog.take_doubt() == ""
    assert not backlog.stirred.is_set()
    backlog.put(hint(9))
    assert backlog.stirred.is_set()
    assert backlog.take_doubt() == "the backlog was full"
    assert backlog.take_doubt() == ""
    assert len(backlog) == 4


def test_a_folder_that_does_not_fit_becomes_a_scan(backlog: Backlog) -> None:
    for number in range(4):
        backlog.put_folder(hint(number))
    backlog.put_folder(hint(0))
    assert backlog.take_doubt() == ""
    backlog.put_folder(hint(9))
    assert backlog.take_doubt()
    assert backlog.take_folders() == [hint(number) for number in range(4)]
    assert backlog.take_folders() == []


def test_a_later_hint_that_does_not_fit_becomes_a_scan(backlog: Backlog) -> None:
    for number in range(4):
        backlog.put_later(hint(number), 10)
    assert backlog.take_doubt() == ""
    backlog.put_later(hint(9), 1)
    assert backlog.take_doubt()


def test_later_hints_come_in_the_order_of_their_time(backlog: Backlog, clock: Clock) -> None:
    assert backlog.wait_s() == 60.0
    for number, delay_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        backlog.put_later(hint(number), delay_s)
    assert backlog.wait_s() == 10.0
    assert backlog.take(9) == []
    assert len(backlog) == 0
    clock.now_s += 9.9
    assert backlog.take(9) == []
    clock.now_s += 10.1
    assert backlog.wait_s() == 0.0
    assert backlog.take(9) == [hint(2), hint(3)]
    assert backlog.wait_s() == 10.0
    backlog.put(hint(4))
    assert backlog.wait_s() == 0.0
    clock.now_s += 60
    assert backlog.take(9) == [hint(4), hint(1)]


def test_a_wait_is_never_longer_than_a_minute(backlog: Backlog) -> None:
    backlog.put_later(hint(1), 1e9)
    assert backlog.wait_s() == 60.0


def test_later_hints_wait_until_there_is_room(backlog: Backlog, clock: Clock) -> None:
    for number in range(4):
        backlog.put(hint(number))
        backlog.put_later(hint(10 + number), 1)
    clock.now_s += 2
    assert backlog.take(3) == [hint(0), hint(1), hint(2)]
    assert backlog.take(9) == [hint(3), hint(10), hint(11), hint(12)]
    assert backlog.take(9) == [hint(13)]
    assert backlog.take_doubt() == ""


def test_a_hint_that_is_there_already_is_not_doubled_by_a_later_one(backlog: Backlog, clock: Clock) -> None:
    backlog.put_later(hint(1, "later"), 1)
    backlog.put(hint(1))
    clock.now_s += 2
    assert backlog.take(9) == [hint(1)]


def test_doubt_stirs_and_says_why(backlog: Backlog) -> None:
    backlog.doubt("events were lost")
    assert backlog.stirred.is_set()
    assert backlog.take_doubt() == "events were lost"


def test_what_is_taken_by_the_scanner_is_never_there_before_it_has_stirred(backlog: Backlog) -> None:
    """Else there is a moment at which what was heard of is neither waiting nor done."""

    class Stirred(threading.Event):
        def set(self) -> None:
            assert backlog._lock.locked()  # noqa: SLF001
            super().set()
            sets.append(True)

    sets: list[bool] = []
    backlog.stirred = Stirred()
    backlog.doubt("events were lost")
    for number in range(6):
        backlog.put_folder(hint(number))
        backlog.put(hint(number))
        backlog.put_later(hint(number), 1)
    assert len(sets) == 1 + 6 + 3 * 2


def test_the_bell_rings_at_a_hint_and_can_be_hushed(backlog: Backlog) -> None:
    assert not rung(backlog)
    backlog.put(hint(1))
    backlog.put(hint(2))
    assert rung(backlog)
    backlog.hush()
    assert not rung(backlog)


def test_the_bell_never_blocks_though_nobody_listens(backlog: Backlog) -> None:
    for number in range(70_000):  # a pipe holds 65,536
        backlog.put(hint(number % 4))
    assert len(backlog) == 4
    backlog.hush()
    assert not rung(backlog)


def test_any_thread_may_put_and_none_is_lost_or_doubled() -> None:
    backlog = Backlog(max_hints=10_000)
    start = threading.Barrier(5)

    def put(first: int) -> None:
        start.wait(60)
        for number in range(first, first + 1000):
            backlog.put(hint(number))
            backlog.put_later(hint(number + 100_000), 0)
            backlog.put_folder(hint(number))

    threads = [threading.Thread(target=put, args=(first,)) for first in (0, 500, 1000, 1500)]
    for thread in threads:
        thread.start()
    start.wait(60)
    taken: list[Hint] = []
    while any(thread.is_alive() for thread in threads):
        taken += backlog.take(100)
    for thread in threads:
        thread.join(10)
    while more := backlog.take(1000):
        taken += more
    places = {int(one.place.path) for one in taken}
    assert places == set(range(2500)) | set(range(100_000, 102_500))
    assert len(backlog.take_folders()) == 2500
    assert backlog.take_doubt() == ""
    backlog.close()
