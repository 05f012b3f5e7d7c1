"""Objects are read whole or not at all, whatever the bucket does meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from blobs import noise
from buckets import BUCKET, Served, served
from chunkd.objects import reader, store
from chunkd.objects.store import Archived, Bucket, Object, Replaced
from proxy import Request, by_chance

SIZE = 3_300_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("files")) as found:
        yield found


@pytest.fixture
def bucket(place: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in place.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "REQUEST_S", 1)
    monkeypatch.setattr(store, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(store, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(reader, "RANGE_BYTES", 1 << 20)
    monkeypatch.setattr(store, "PIECE_BYTES", 1 << 17)
    yield Bucket(place.url)
    place.proxy.fault = lambda _: ""
    place.proxy.requests.clear()
    place.proxy.faults.clear()
    place.proxy.generations.clear()


def put(place: Served, bucket: Bucket, content: bytes, key: str = "object") -> Object:
    place.client.put_object(Bucket=BUCKET, Key=key, Body=content)
    [found] = bucket.looks([key])
    assert isinstance(found, Object)
    place.proxy.requests.clear()
    return found


class Reading(threading.Thread):
    """Copies an object for a worker, whose end is `theirs`. `error` is what the copying raised."""

    def __init__(self, bucket: Bucket, of: Object) -> None:
        super().__init__()
        self.ours, self.theirs = reader.pair()
        self.bucket, self.of = bucket, of
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            with self.ours:
                reader.copy(self.bucket, self.of, self.ours)
        except OSError as error:
            self.error = error


def read(bucket: Bucket, of: Object) -> tuple[bytes, OSError | None, OSError | None]:
    """What a worker gets, what its reading raises, and what the copying raises."""
    reading, found, error = Reading(bucket, of), [], None
    reading.start()
    with reading.theirs:
        try:
            while piece := os.read(reading.theirs.fileno(), 100_000):
                found.append(piece)
        except OSError as raised:
            error = raised
    reading.join(30)
    return b"".join(found), error, reading.error


def begins(place: Served) -> list[int]:
    return [int(request.range[6:].partition("-")[0]) for request in place.proxy.data()]


def test_an_object_is_read_in_ranges_of_one_etag(place: Served, bucket: Bucket) -> None:
    content = noise(SIZE)
    of = put(place, bucket, content)
    assert read(bucket, of) == (content, None, None)
    asked = place.proxy.data()
    assert [request.range for request in asked] == [
        f"bytes={begin}-{min(begin + (1 << 20), SIZE) - 1}" for begin in range(0, SIZE, 1 << 20)
    ]
    assert {request.if_match for request in asked} == {of.tag} == {f'"{hashlib.md5(content).hexdigest()}"'}  # noqa: S324


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sizes_about_a_range(place: Served, bucket: Bucket, size: int) -> None:
    assert read(bucket, put(place, bucket, noise(size))) == (noise(size), None, None)
    assert len(place.proxy.data()) == -(-size // (1 << 20))


@pytest.mark.parametrize("fault", ["503", "cut", "reset", "stall"])
def test_a_fault_of_each_range_costs_no_byte(place: Served, bucket: Bucket, fault: str) -> None:
    """Each range begins with two faults, and goes on from the byte that it had."""
    of, seen = put(place, bucket, noise(SIZE)), dict[str, int]()

    def now_and_then(request: Request) -> str:
        end = request.range.rpartition("-")[2]
        seen[end] = seen.get(end, 0) + 1
        return fault if seen[end] <= (1 if fault == "stall" else 2) else ""

    place.proxy.fault = now_and_then
    assert read(bucket, of) == (noise(SIZE), None, None)
    assert len(place.proxy.faults) >= 4
    if fault != "503":
        assert any(begin % (1 << 20) for begin in begins(place)), "none went on within a range"


def test_faults_drawn_by_chance(place: Served, bucket: Bucket) -> None:
    of = put(place, bucket, noise(SIZE))
    place.proxy.fault = by_chance(random.Random(3), ("503", "cut", "reset"), 0.6)
    assert read(bucket, of)[0] == noise(SIZE)


def test_a_bucket_that_fails_for_good_is_no_end_of_file(place: Served, bucket: Bucket) -> None:
    of = put(place, bucket, noise(SIZE))
    place.proxy.fault = lambda request: "503" if request.range.endswith(f"-{SIZE - 1}") else ""
    found, seen, raised = read(bucket, of)
    assert found == noise(SIZE)[: 3 << 20]
    assert isinstance(seen, ConnectionResetError)
    assert raised is not None
    assert "503" in str(raised.strerror)
    assert place.proxy.faults == ["503"] * store.TRIES


def test_what_is_replaced_or_removed_meanwhile_ends_early(place: Served, bucket: Bucket) -> None:
    for fault, error in (("another", Replaced), ("404", FileNotFoundError)):
        of = put(place, bucket, noise(SIZE))
        place.proxy.fault = lambda request, fault=fault: (  # type: ignore[misc]
            fault if request.range.startswith(f"bytes={2 << 20}") else ""
        )
        found, seen, raised = read(bucket, of)
        assert (found, seen, type(raised)) == (noise(SIZE)[: 2 << 20], None, error)


def test_an_archived_object_says_so(place: Served, bucket: Bucket) -> None:
    place.client.put_object(Bucket=BUCKET, Key="cold", Body=b"cold", StorageClass="DEEP_ARCHIVE")
    [of] = bucket.looks(["cold"])
    assert isinstance(of, Object)
    found, seen, raised = read(bucket, of)
    assert (found, type(seen)) == (b"", ConnectionResetError)
    assert isinstance(raised, Archived)
    assert "DEEP_ARCHIVE" in str(raised.strerror)


def test_a_reader_that_dies_is_no_end_of_file() -> None:
    ours, theirs = reader.pair()
    ours.send(b"half")
    ours.close()  # as the kernel does for a process that is killed
    assert os.read(theirs.fileno(), 100) == b"half"
    with pytest.raises(ConnectionResetError):
        os.read(theirs.fileno(), 100)
    theirs.close()


def test_what_is_wrong_is_said_before_the_end_is_closed(place: Served, bucket: Bucket) -> None:
    of = put(place, bucket, noise(10))
    for fault, said in (("", None), ("404", ""), ("another", ""), ("503", "the bucket answers 503")):
        place.proxy.fault = lambda _, fault=fault: fault  # type: ignore[misc]
        here, there = socket.socketpair()
        ours, theirs = reader.pair()
        with here, there, theirs:
            reader.serve(there, bucket, of, ours)
            here.setblocking(False)
            try:
                line = json.loads(here.recv(1000))
            except BlockingIOError:
                line = None
            assert line == (None if said is None else [of.key, of.tag, said, False])
            assert ours.fileno() == -1


def test_a_worker_that_waits_for_longer_than_a_request_may_take_loses_no_byte(
    place: Served, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "RANGE_BYTES", 1 << 22)  # more than all buffers hold
    reading, found = Reading(bucket, put(place, bucket, noise(SIZE))), []
    reading.start()
    with reading.theirs:
        time.sleep(1.5)
        while piece := os.read(reading.theirs.fileno(), 100_000):
            found.append(piece)
    reading.join(30)
    assert (b"".join(found), reading.error) == (noise(SIZE), None)
    assert len(begins(place)) > 1, "no request took too long"


def test_a_worker_that_dies_ends_the_reading(place: Served, bucket: Bucket) -> None:
    reading = Reading(bucket, put(place, bucket, noise(SIZE)))
    reading.start()
    assert os.read(reading.theirs.fileno(), 10)
    reading.theirs.shutdown(socket.SHUT_RDWR)
    reading.theirs.close()
    reading.join(30)
    assert not reading.is_alive()
    assert reading.error is None


def test_tries_are_counted_anew_with_each_byte(place: Served, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow line that breaks again and again still gives the whole object."""
    monkeypatch.setattr(store, "TRIES", 2)
    monkeypatch.setattr(reader, "RANGE_BYTES", 1 << 22)
    of = put(place, bucket, noise(SIZE))

    def long_ones(request: Request) -> str:
        begin, _, end = request.range[6:].partition("-")
        return "cut" if int(end) - int(begin) > 600_000 else ""

    place.proxy.fault = long_ones
    assert read(bucket, of) == (noise(SIZE), None, None)
    assert len(place.proxy.faults) > 2


@contextlib.contextmanager
def process(place: Served, patch: str = "") -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """The reader as a process, which begins with this statement, and the connection to it."""
    program = f"import socket; from chunkd.objects import reader; {patch}\nreader.main(socket.socket(fileno=%d), %r)"
    here, there = socket.socketpair()
    asked = {"url": place.url, "environ": place.environ}
    with here, there:
        started = subprocess.Popen(
            [sys.executable, "-c", program % (there.fileno(), asked)],
            pass_fds=[there.fileno()], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        there.close()
        with started:
            try:
                assert here.recv(1) == reader.READY
                yield started, here
            finally:
                started.kill()


def ask_for(connection: socket.socket, request: bytes) -> socket.socket:
    """The worker's end of what is asked for."""
    ours, theirs = reader.pair()
    with ours:
        socket.send_fds(connection, [request], [ours.fileno()])
    return theirs


def drain(end: socket.socket) -> bytes:
    with end.makefile("rb") as file:
        return file.read()


def test_a_process_serves_each_object_whatever_the_others_wait_for(place: Served, bucket: Bucket) -> None:
    """A dozen workers that read nothing keep no other from its blob, before and after them."""
    large, small = put(place, bucket, noise(SIZE), "large"), put(place, bucket, noise(1000), "small")
    with process(place) as (_, connection), contextlib.ExitStack() as ends:
        for count in (0, 1, 12):
            waiting = [ask_for(connection, json.dumps(large).encode()) for _ in range(count)]
            for end in waiting:
                ends.enter_context(end)
                assert os.read(end.fileno(), 10) == noise(SIZE)[:10], "it has begun"
            for _ in range(3):
                with ask_for(connection, json.dumps(small).encode()) as end:
                    assert drain(end) == noise(1000)
        for end in waiting:
            assert drain(end) == noise(SIZE)[10:]


@pytest.mark.parametrize("unread", [False, True])
def test_the_process_ends_with_its_connection(place: Served, bucket: Bucket, unread: bool) -> None:
    """Even if a thread still waits for a worker, and if what the process has said was not read."""
    of = put(place, bucket, noise(SIZE))
    with process(place) as (started, connection), ask_for(connection, json.dumps(of).encode()) as end:
        assert os.read(end.fileno(), 10) == noise(SIZE)[:10]
        if unread:
            with ask_for(connection, json.dumps(of._replace(key="absent")).encode()) as other:
                assert os.read(other.fileno(), 10) == b""
        connection.close()
        assert started.wait(10) == 0
        with pytest.raises(ConnectionResetError):
            drain(end)


@pytest.mark.parametrize("where", ["request", "copy"])
def test_a_bug_ends_the_process_with_its_traceback(place: Served, bucket: Bucket, where: str) -> None:
    """Even if a thread still waits for a worker, which hears that its blob is not whole."""
    of, request = put(place, bucket, noise(SIZE)), b"[]" if where == "request" else b'["bug", 1, "", 1]'
    patch = (
        "copy = reader.copy; reader.copy = lambda bucket, of, end: 1 / 0 if of.key == 'bug' else copy(bucket, of, end)"
    )
    with process(place, patch) as (started, connection), ask_for(connection, json.dumps(of).encode()) as end:
        assert os.read(end.fileno(), 10) == noise(SIZE)[:10]
        with ask_for(connection, request):
            assert started.wait(10) == 1
        with pytest.raises(ConnectionResetError):
            drain(end)
        assert started.stderr is not None
        assert ("TypeError" if where == "request" else "ZeroDivisionError") in started.stderr.read()
