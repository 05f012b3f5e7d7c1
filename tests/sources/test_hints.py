"""Hints wait here: bounded, once a place, in order; and each is counted as work until it is done."""

from __future__ import annotations

import threading

import pytest

from chunkd.model import Cause, Hint, Place
from chunkd.sources.activity import Activity, Token
from chunkd.sources.hints import HintQueue


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity() -> Activity:
    return Activity()


@pytest.fixture
def hint_queue(clock: Clock, activity: Activity) -> HintQueue:
    return HintQueue(1, activity, max_hints=4, clock=clock)


def hint(number: int, cause: Cause = Cause.MOVED_IN) -> Hint:
    return Hint(Place(1, str(number)), cause)


def taken(hint_queue: HintQueue, most: int = 9) -> list[Hint]:
    return [one for one, _ in hint_queue.take(most)]


def doubt(hint_queue: HintQueue) -> str:
    found: list[str] = []
    hint_queue.take_doubt(found.append)
    return "".join(found)


def folders(hint_queue: HintQueue) -> list[str]:
    found = []
    while (folder := hint_queue.take_folder()) is not None:
        found.append(folder[0])
    return found


def test_the_oldest_come_first_and_a_place_comes_once(hint_queue: HintQueue) -> None:
    for number in (3, 1, 2, 1, 3):
        hint_queue.put(hint(number))
    assert len(hint_queue) == 3
    assert taken(hint_queue, 2) == [hint(3), hint(1)]
    assert taken(hint_queue, 2) == [hint(2)]
    assert taken(hint_queue, 2) == []
    assert doubt(hint_queue) == ""


def test_what_a_worker_was_done_with_comes_before_all_else(hint_queue: HintQueue) -> None:
    for number in (1, 2):
        hint_queue.put(hint(number))
    hint_queue.put(hint(3, Cause.READ), first=True)
    hint_queue.put(hint(2), first=True)
    assert taken(hint_queue) == [hint(2), hint(3, Cause.READ), hint(1)]


def test_two_hints_for_a_place_ask_for_what_either_asked_for(hint_queue: HintQueue) -> None:
    place = Place(1, "1")
    hint_queue.put(Hint(place, Cause.RETRY, force=True))
    hint_queue.put(Hint(place, Cause.WRITTEN, by_event=True))
    hint_queue.put(Hint(place, Cause.BLOB_FOLDER, folder=True))
    assert taken(hint_queue) == [Hint(place, Cause.WRITTEN, by_event=True, force=True, folder=True)]


def test_a_hint_that_does_not_fit_becomes_a_scan(hint_queue: HintQueue) -> None:
    for number in range(4):
        hint_queue.put(hint(number))
    hint_queue.put(hint(2))
    assert doubt(hint_queue) == ""
    hint_queue.news.clear()
    hint_queue.put(hint(9))
    assert hint_queue.news.is_set()
    assert doubt(hint_queue) == "the queue of hints was full"
    assert doubt(hint_queue) == ""
    assert len(hint_queue) == 4


def test_a_folder_that_does_not_fit_becomes_a_scan(hint_queue: HintQueue) -> None:
    for number in range(4):
        hint_queue.put_folder(str(number))
    hint_queue.put_folder("0")
    assert doubt(hint_queue) == ""
    hint_queue.put_folder("9")
    assert doubt(hint_queue)
    assert folders(hint_queue) == [str(number) for number in range(4)]
    assert folders(hint_queue) == []


def test_a_later_hint_that_does_not_fit_is_left_to_the_next_scan(hint_queue: HintQueue, activity: Activity) -> None:
    """A file that is observed again is listed by every scan, and what is waited for is hinted at again at its end."""
    for number in range(4):
        hint_queue.put_later(hint(number), 10, waited_for=True)
    hint_queue.put_later(hint(9), 1, waited_for=True)
    assert doubt(hint_queue) == ""
    hint_queue.put_later(hint(2), 1, waited_for=True)  # one that is there has its room
    assert hint_queue.wait_s() == 1.0
    for number in range(4):
        hint_queue.put(hint(number))
    for _, token in hint_queue.take(9):
        activity.give_back(token)
    assert activity.idle(), "no place is waited for twice"


def test_later_hints_come_in_the_order_of_their_time(hint_queue: HintQueue, clock: Clock) -> None:
    assert hint_queue.wait_s() == 60.0
    for number, delay_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        hint_queue.put_later(hint(number), delay_s, waited_for=False)
    assert hint_queue.wait_s() == 10.0
    assert taken(hint_queue) == []
    assert len(hint_queue) == 0
    clock.now_s += 9.9
    assert taken(hint_queue) == []
    clock.now_s += 10.1
    assert hint_queue.wait_s() == 0.0
    assert taken(hint_queue) == [hint(2), hint(3)]
    assert hint_queue.wait_s() == 10.0
    hint_queue.put(hint(4))
    assert hint_queue.wait_s() == 0.0
    clock.now_s += 60
    assert taken(hint_queue) == [hint(4), hint(1)]


def test_the_sooner_of_two_later_hints_holds(hint_queue: HintQueue, clock: Clock) -> None:
    hint_queue.put_later(hint(1), 30, waited_for=False)
    hint_queue.put_later(hint(1), 10, waited_for=False)
    hint_queue.put_later(hint(1), 20, waited_for=False)
    clock.now_s += 10
    assert taken(hint_queue) == [hint(1)]
    clock.now_s += 30
    assert taken(hint_queue) == []


def test_a_wait_is_never_longer_than_a_minute(hint_queue: HintQueue) -> None:
    hint_queue.put_later(hint(1), 1e9, waited_for=False)
    assert hint_queue.wait_s() == 60.0


def test_later_hints_wait_until_there_is_room(hint_queue: HintQueue, clock: Clock) -> None:
    for number in range(4):
        hint_queue.put(hint(number))
        hint_queue.put_later(hint(10 + number), 1, waited_for=False)
    clock.now_s += 2
    assert taken(hint_queue, 3) == [hint(0), hint(1), hint(2)]
    assert taken(hint_queue) == [hint(3), hint(10), hint(11), hint(12)]
    assert taken(hint_queue) == [hint(13)]
    assert doubt(hint_queue) == ""


def test_a_hint_that_comes_before_a_later_one_takes_its_place(hint_queue: HintQueue, clock: Clock) -> None:
    hint_queue.put_later(hint(1, Cause.SETTLING)._replace(force=True), 1, waited_for=True)
    hint_queue.put(hint(1))
    clock.now_s += 2
    assert taken(hint_queue) == [hint(1)._replace(force=True)]
    assert taken(hint_queue) == []


def test_the_many_hints_that_were_replaced_take_no_memory(hint_queue: HintQueue) -> None:
    for number in range(50_000):
        hint_queue.put_later(hint(1), 1e6 - number, waited_for=False)
    assert len(hint_queue._heap) < 2000  # noqa: SLF001


def test_doubt_wakes_the_caches_thread_and_says_why(hint_queue: HintQueue) -> None:
    hint_queue.doubt("events were lost")
    assert hint_queue.news.is_set()
    assert doubt(hint_queue) == "events were lost"
    assert doubt(hint_queue) == ""


def test_whatever_is_put_wakes_the_caches_thread(hint_queue: HintQueue) -> None:
    puts = (
        lambda: hint_queue.put(hint(1)),
        lambda: hint_queue.put_later(hint(2), 1, waited_for=False),
        lambda: hint_queue.put_folder("3"),
        lambda: hint_queue.doubt("4"),
    )
    for put in puts:
        hint_queue.news.clear()
        put()
        assert hint_queue.news.is_set()


def test_what_was_heard_of_is_work_until_its_token_is_given_back(hint_queue: HintQueue, activity: Activity) -> None:
    """Else there is a moment at which what was heard of is neither waiting nor done."""
    hint_queue.put(hint(1))
    hint_queue.put(hint(1))
    [(_, token)] = hint_queue.take(9)
    assert activity.working()
    activity.give_back(token)
    assert activity.idle()

    hint_queue.put_folder("1")
    hint_queue.put_folder("1")
    folder = hint_queue.take_folder()
    assert folder is not None
    assert activity.working()
    activity.give_back(folder[1])
    assert activity.idle()

    hint_queue.doubt("events were lost")
    hint_queue.doubt("more events were lost")
    assert not activity.idle()
    tokens: list[Token] = []
    hint_queue.take_doubt(lambda _: tokens.append(activity.take(1)))
    assert not activity.idle(), "the scan that resolves it has its token before"
    activity.give_back(tokens[0])
    assert activity.idle()


def test_a_place_that_is_waited_for_is_never_neither_waited_for_nor_work(
    hint_queue: HintQueue, activity: Activity, clock: Clock
) -> None:
    hint_queue.put_later(hint(1), 10, waited_for=True)
    hint_queue.put_later(hint(1), 5, waited_for=False)
    hint_queue.put_later(hint(2), 10, waited_for=False)
    assert not activity.working()
    assert not activity.idle()
    clock.now_s += 20
    tokens = dict(hint_queue.take(9))
    activity.give_back(tokens[hint(2)])
    assert activity.working(), "its time has come"
    activity.give_back(tokens[hint(1)])
    assert activity.idle()


def test_any_thread_may_put_and_none_is_lost_or_doubled() -> None:
    activity = Activity()
    hint_queue = HintQueue(1, activity, max_hints=10_000)
    start = threading.Barrier(5)

    def put(first: int) -> None:
        start.wait(60)
        for number in range(first, first + 1000):
            hint_queue.put(hint(number))
            hint_queue.put_later(hint(number + 100_000), 0, waited_for=bool(number % 2))
            hint_queue.put_folder(str(number))

    threads = [threading.Thread(target=put, args=(first,)) for first in (0, 500, 1000, 1500)]
    for thread in threads:
        thread.start()
    start.wait(60)
    found: list[tuple[Hint, Token]] = []
    while any(thread.is_alive() for thread in threads):
        found += hint_queue.take(100)
    for thread in threads:
        thread.join(10)
    while more := hint_queue.take(1000):
        found += more
    places = {int(one.place.path) for one, _ in found}
    assert places == set(range(2500)) | set(range(100_000, 102_500))
    for _, token in found:
        activity.give_back(token)
    listed = 0
    while (folder := hint_queue.take_folder()) is not None:
        activity.give_back(folder[1])
        listed += 1
    assert listed == 2500
    assert doubt(hint_queue) == ""
    assert activity.idle()
