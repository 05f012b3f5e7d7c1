"""What is left to be done is counted at every moment, and asked for at one."""

from __future__ import annotations

import queue
import threading

import pytest

from chunkd.sources.activity import WRITER, Activity, Token


@pytest.fixture
def activity() -> Activity:
    return Activity()


def test_nothing_is_left_of_nothing(activity: Activity) -> None:
    assert (activity.working(), activity.idle(), activity.done(activity.end_generation())) == (False, True, True)


def test_a_thing_is_left_until_its_token_is_given_back(activity: Activity) -> None:
    token, same = activity.take(1), activity.take(1)
    assert token == same
    activity.give_back(token)
    assert (activity.working(), activity.idle()) == (True, False)
    activity.give_back(same)
    assert (activity.working(), activity.idle()) == (False, True)


def test_a_token_is_given_back_once(activity: Activity) -> None:
    token = activity.take(1)
    activity.give_back(token)
    with pytest.raises(AssertionError):
        activity.give_back(token)


def test_what_is_waited_for_is_no_work_and_not_idle(activity: Activity) -> None:
    activity.wait(1, 2)
    activity.wait(1, -1)
    assert (activity.working(), activity.idle()) == (False, False)
    activity.wait(1, -1)
    assert activity.idle()
    with pytest.raises(AssertionError):
        activity.wait(1, -1)


def test_a_cache_may_be_left_out(activity: Activity) -> None:
    first, second = activity.take(1), activity.take(WRITER)
    activity.wait(2, 1)
    generation = activity.end_generation()
    assert [activity.working(but) for but in ({1}, {1, WRITER}, {WRITER})] == [True, False, True]
    assert [activity.idle(but) for but in ({1, WRITER}, {1, 2}, {1, 2, WRITER})] == [False, False, True]
    assert [activity.done(generation, but) for but in ({1}, {1, WRITER}, {WRITER})] == [False, True, False]
    activity.give_back(second)
    assert not activity.working({1})
    activity.give_back(first)


def test_what_was_known_is_done_though_there_is_more_by_now(activity: Activity) -> None:
    before = activity.take(1)
    generation = activity.end_generation()
    after = activity.take(1)
    assert not activity.done(generation)
    activity.give_back(before)
    assert activity.done(generation)
    assert not activity.done(activity.end_generation())
    activity.give_back(after)


def test_what_follows_from_what_was_known_is_of_it_however_late(activity: Activity) -> None:
    before = activity.take(1)
    generation = activity.end_generation()
    follows = activity.take(2, inherit=before)
    assert follows == Token(2, before.generation)
    activity.give_back(before)
    activity.end_generation()
    again = activity.take(3, inherit=follows)
    activity.give_back(follows)
    assert not activity.done(generation)
    activity.give_back(again)
    assert activity.done(generation)


def test_threads_that_hand_over_to_each_other_are_never_seen_idle(activity: Activity) -> None:
    """Each takes the token of what follows before it gives back that of what it follows from."""
    seen: list[bool] = []
    boxes: tuple[queue.Queue[Token], queue.Queue[Token]] = queue.Queue(), queue.Queue()
    ended = threading.Event()

    def hand_over(mine: int) -> None:
        for _ in range(2000):
            token = boxes[mine].get(timeout=60)
            follows = activity.take(1 + mine, inherit=token)
            activity.give_back(token)
            boxes[1 - mine].put(follows)

    def ask() -> None:
        while not ended.is_set():
            seen.append(activity.idle() or not activity.working() or activity.done(1))

    boxes[0].put(activity.take(1))
    activity.end_generation()
    asking = threading.Thread(target=ask)
    threads = [threading.Thread(target=hand_over, args=(mine,)) for mine in (0, 1)]
    for thread in (asking, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    ended.set()
    asking.join(60)
    assert set(seen) == {False}
    activity.give_back(boxes[0].get(timeout=60))
    assert activity.idle()
