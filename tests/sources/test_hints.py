"""Hints wait here: bounded, once a place, in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from chunkd.model import Cause, Hint, Place
from chunkd.sources.hints import HintQueue


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hint_queue(clock: Clock) -> Iterator[HintQueue]:
    made = HintQueue(max_hints=4, clock=clock)
    yield made
    made.close()


def hint(number: int, why: str = Cause.MOVED_IN) -> Hint:
    return Hint(Place(1, str(number)), why)


def rung(hint_queue: HintQueue) -> bool:
    try:
        return bool(os.read(hint_queue.fileno(), 1))
    except BlockingIOError:
        return False


def test_the_oldest_come_first_and_a_place_comes_once(hint_queue: HintQueue) -> None:
    for number in (3, 1, 2, 1, 3):
        hint_queue.put(hint(number))
    assert len(hint_queue) == 3
    assert hint_queue.take(2) == [hint(3), hint(1)]
    assert hint_queue.take(2) == [hint(2)]
    assert hint_queue.take(2) == []
    assert hint_queue.take_doubt() == ""


def test_a_hint_that_does_not_fit_becomes_a_scan(hint_queue: HintQueue) -> None:
    for number in range(4):
        hint_queue.put(hint(number))
    hint_queue.put(hint(2))
    assert hint_queue.take_doubt() == ""
    assert not hint_queue.wake_scanner.is_set()
    hint_queue.put(hint(9))
    assert hint_queue.wake_scanner.is_set()
    assert hint_queue.take_doubt() == "the hint_queue was full"
    assert hint_queue.take_doubt() == ""
    assert len(hint_queue) == 4


def test_a_folder_that_does_not_fit_becomes_a_scan(hint_queue: HintQueue) -> None:
    for number in range(4):
        hint_queue.put_folder(hint(number))
    hint_queue.put_folder(hint(0))
    assert hint_queue.take_doubt() == ""
    hint_queue.put_folder(hint(9))
    assert hint_queue.take_doubt()
    assert hint_queue.take_folders() == [hint(number) for number in range(4)]
    assert hint_queue.take_folders() == []


def test_a_later_hint_that_does_not_fit_becomes_a_scan(hint_queue: HintQueue) -> None:
    for number in range(4):
        hint_queue.put_later(hint(number), 10)
    assert hint_queue.take_doubt() == ""
    hint_queue.put_later(hint(9), 1)
    assert hint_queue.take_doubt()


def test_later_hints_come_in_the_order_of_their_time(hint_queue: HintQueue, clock: Clock) -> None:
    assert hint_queue.wait_s() == 60.0
    for number, delay_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        hint_queue.put_later(hint(number), delay_s)
    assert hint_queue.wait_s() == 10.0
    assert hint_queue.take(9) == []
    assert len(hint_queue) == 0
    clock.now_s += 9.9
    assert hint_queue.take(9) == []
    clock.now_s += 10.1
    assert hint_queue.wait_s() == 0.0
    assert hint_queue.take(9) == [hint(2), hint(3)]
    assert hint_queue.wait_s() == 10.0
    hint_queue.put(hint(4))
    assert hint_queue.wait_s() == 0.0
    clock.now_s += 60
    assert hint_queue.take(9) == [hint(4), hint(1)]


def test_a_wait_is_never_longer_than_a_minute(hint_queue: HintQueue) -> None:
    hint_queue.put_later(hint(1), 1e9)
    assert hint_queue.wait_s() == 60.0


def test_later_hints_wait_until_there_is_room(hint_queue: HintQueue, clock: Clock) -> None:
    for number in range(4):
        hint_queue.put(hint(number))
        hint_queue.put_later(hint(10 + number), 1)
    clock.now_s += 2
    assert hint_queue.take(3) == [hint(0), hint(1), hint(2)]
    assert hint_queue.take(9) == [hint(3), hint(10), hint(11), hint(12)]
    assert hint_queue.take(9) == [hint(13)]
    assert hint_queue.take_doubt() == ""


def test_a_hint_that_is_there_already_is_not_doubled_by_a_later_one(hint_queue: HintQueue, clock: Clock) -> None:
    hint_queue.put_later(hint(1, "later"), 1)
    hint_queue.put(hint(1))
    clock.now_s += 2
    assert hint_queue.take(9) == [hint(1)]


def test_doubt_stirs_and_says_why(hint_queue: HintQueue) -> None:
    hint_queue.doubt("events were lost")
    assert hint_queue.wake_scanner.is_set()
    assert hint_queue.take_doubt() == "events were lost"


def test_what_is_taken_by_the_scanner_is_never_there_before_it_has_stirred(hint_queue: HintQueue) -> None:
    """Else there is a moment at which what was heard of is neither waiting nor done."""

    class Stirred(threading.Event):
        def set(self) -> None:
            assert hint_queue._lock.locked()  # noqa: SLF001
            super().set()
            sets.append(True)

    sets: list[bool] = []
    hint_queue.wake_scanner = Stirred()
    hint_queue.doubt("events were lost")
    for number in range(6):
        hint_queue.put_folder(hint(number))
        hint_queue.put(hint(number))
        hint_queue.put_later(hint(number), 1)
    assert len(sets) == 1 + 6 + 3 * 2


def test_the_bell_rings_at_a_hint_and_can_be_hushed(hint_queue: HintQueue) -> None:
    assert not rung(hint_queue)
    hint_queue.put(hint(1))
    hint_queue.put(hint(2))
    assert rung(hint_queue)
    hint_queue.drain_wakeups()
    assert not rung(hint_queue)


def test_the_bell_never_blocks_though_nobody_listens(hint_queue: HintQueue) -> None:
    for number in range(70_000):  # a pipe holds 65,536
        hint_queue.put(hint(number % 4))
    assert len(hint_queue) == 4
    hint_queue.drain_wakeups()
    assert not rung(hint_queue)


def test_any_thread_may_put_and_none_is_lost_or_doubled() -> None:
    hint_queue = HintQueue(max_hints=10_000)
    start = threading.Barrier(5)

    def put(first: int) -> None:
        start.wait(60)
        for number in range(first, first + 1000):
            hint_queue.put(hint(number))
            hint_queue.put_later(hint(number + 100_000), 0)
            hint_queue.put_folder(hint(number))

    threads = [threading.Thread(target=put, args=(first,)) for first in (0, 500, 1000, 1500)]
    for thread in threads:
        thread.start()
    start.wait(60)
    taken: list[Hint] = []
    while any(thread.is_alive() for thread in threads):
        taken += hint_queue.take(100)
    for thread in threads:
        thread.join(10)
    while more := hint_queue.take(1000):
        taken += more
    places = {int(one.place.path) for one in taken}
    assert places == set(range(2500)) | set(range(100_000, 102_500))
    assert len(hint_queue.take_folders()) == 2500
    assert hint_queue.take_doubt() == ""
    hint_queue.close()
