from __future__ import annotations

import threading

import pytest

from chunkd.worker.pipeline import RELAY_BUFFER_BYTES, RELAY_BUFFERS, Relay

WAIT_S = 30.0


def hand_all(relay: Relay, pieces: list[bytes]) -> None:
    for piece in pieces:
        buffer = relay.take()
        buffer[: len(piece)] = piece
        relay.hand(memoryview(buffer)[: len(piece)])


def test_all_comes_through_in_order_from_another_thread() -> None:
    pieces = [bytes([number % 256]) * (1 + number * 37 % 5000) for number in range(1000)]
    fed: list[bytes] = []
    threads: set[int] = set()

    def feed(data: memoryview) -> None:
        fed.append(bytes(data))
        threads.add(threading.get_ident())

    with Relay(feed) as relay:
        hand_all(relay, pieces)
    assert fed == pieces
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert not any(thread.name == "relay" for thread in threading.enumerate())


def test_as_many_buffers_as_there_are_and_no_more() -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    def feed(_: memoryview) -> None:
        begun.release()
        assert go.wait(WAIT_S)

    with Relay(feed) as relay:
        hand_all(relay, [b"x"] * RELAY_BUFFERS)
        assert begun.acquire(timeout=WAIT_S)
        taken = threading.Event()

        def take() -> None:
            assert len(relay.take()) == RELAY_BUFFER_BYTES
            taken.set()

        another = threading.Thread(target=take)
        another.start()
        assert not taken.wait(0.05), "a buffer was given that is still being fed"
        go.set()
        assert taken.wait(WAIT_S)
        another.join()


def test_a_failure_comes_out_and_nothing_is_fed_after_it() -> None:
    fed: list[bytes] = []

    def feed(data: memoryview) -> None:
        fed.append(bytes(data))
        if len(fed) == 2:
            raise MemoryError("the second")

    handed = 0

    def more_than_there_are_buffers() -> None:
        nonlocal handed
        with Relay(feed) as relay:
            for handed in range(100):
                hand_all(relay, [bytes([handed])])

    with pytest.raises(MemoryError, match="the second"):
        more_than_there_are_buffers()
    assert fed == [b"\0", b"\1"]
    assert handed <= 2 + RELAY_BUFFERS, "it was not told while it went on"


def test_a_failure_of_the_last_is_raised_on_leaving() -> None:
    def feed(_: memoryview) -> None:
        raise MemoryError("the only one")

    relay = Relay(feed)
    with pytest.raises(MemoryError, match="the only one"), relay:
        hand_all(relay, [b"x"])


def test_what_the_first_thread_fails_of_outranks_it() -> None:
    def feed(_: memoryview) -> None:
        raise MemoryError("the second thread")

    def fail() -> None:
        with Relay(feed) as relay:
            hand_all(relay, [b"x"])
            raise EOFError("the first thread")

    with pytest.raises(EOFError):
        fail()
    assert not any(thread.name == "relay" for thread in threading.enumerate())
