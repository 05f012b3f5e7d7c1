"""The pool with real processes that do as they are told by the bytes of their blob."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from chunkd.model import Caps, ChunkParams, Digest, FileMark, Finding, Job, Recipe
from chunkd.sources.wakeup import Wakeup
from chunkd.worker import pool as module
from chunkd.worker import protocol
from chunkd.worker.pool import Pool, Result, Worker

PATIENCE_S = 20.0

# Knows nothing of chunkd: what is on the wire is written out here.
WORKER = """
import json, os, signal, socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
while True:
    line, descriptors, _, _ = socket.recv_fds(connection, 65536, 5)
    if not line:
        break
    algorithm, digits, stored_bytes, decode, relayed = json.loads(line)
    [blob] = descriptors
    told = os.read(blob, 100).decode()
    if told.startswith("pause"):
        os.read(blob, 1)
    os.close(blob)
    if told == "close":
        connection.close()
        time.sleep(600)
    if told == "close and die":
        connection.close()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if told == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if told == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if told == "exit":
        sys.exit(3)
    if told == "no memory":
        sys.exit(12)
    if told == "half":
        connection.sendall(b'{"kind":')
        os._exit(4)
    if told == "half and hang":
        connection.sendall(b'{"kind":')
        time.sleep(600)
    if told == "drip":
        while True:
            connection.sendall(b" ")
            time.sleep(0.01)
    if told == "endless":
        connection.sendall(b" " * (1 << 20))
    if told == "talkative":
        connection.sendall(b'{"read_bytes": 1}\\n' * 1000)
    if told.startswith(("hang", "progress")):
        connection.sendall(b'{"read_bytes": 1234}\\n')
        time.sleep(600)
    head = {"kind": "layer", "codec": "gzip", "uncompressed_bytes": 9, "reason": str(os.getpid()), "read_until_ns": 7,
            "chunks": 1, "measured": 0, "manifest_bytes": 0}
    head = json.dumps(head).encode() + b"\\n"
    if told == "piece by piece":
        for byte in head + b"h" * 16 + b"l" * 3:
            connection.sendall(bytes([byte]))
        connection.sendall(b"l")
    else:
        connection.sendall(b'{"read_bytes": 5}\\n' + head + b"h" * 16 + b"l" * 4)
    if told == "unasked":
        connection.sendall(b'{"read_bytes": 1234}\\n')
    if told == "leave":
        sys.exit(0)
    if told == "deaf":
        time.sleep(600)
"""


class Scripted(subprocess.Popen[bytes]):
    refused: OSError | None = None


class Start:
    """Starts scripted workers, and remembers them."""

    def __init__(self) -> None:
        self.started: list[Scripted] = []
        self.error: OSError | None = None
        self._news = Wakeup()

    def fileno(self) -> int:
        return self._news.fileno()

    def read(self) -> None: ...

    def close(self) -> None: ...

    def run(self, module: str, asked: object) -> socket.socket:
        raise AssertionError(f"{module} was to be run: {asked}")

    def start(self) -> Worker:
        if self.error:
            raise self.error
        ours, theirs = socket.socketpair()
        with theirs:
            process = Scripted([sys.executable, "-c", WORKER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        self.started.append(process)
        return Worker(process, protocol.DaemonsEnd(ours, ChunkParams(), Caps()))


Pause = Callable[[str, int], Callable[[], None]]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def start() -> Start:
    return Start()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(start: Start, clock: Clock) -> Iterator[Pool]:
    made = Pool(start, 2, clock)
    yield made
    made.close()
    assert [process for process in start.started if process.returncode is None] == []


def job(told: str) -> Job:
    return Job(Digest("sha256", hashlib.sha256(told.encode()).hexdigest()), FileMark(1, 2, 4000, 4))


def give(pool: Pool, told: str, cache: int = 0) -> None:
    os.close(give_part(pool, told, cache))


def give_part(pool: Pool, told: str, cache: int = 0) -> int:
    """Give a blob whose end comes when the descriptor that is returned is closed."""
    reading, writing = os.pipe()
    os.write(writing, told.encode())
    try:
        pool.give(job(told), reading, cache)
    finally:
        os.close(reading)
    return writing


@pytest.fixture
def pause(pool: Pool) -> Iterator[Pause]:
    """Gives a blob that a worker waits for, until what is returned is called."""
    left = set[int]()

    def begin(told: str, cache: int) -> Callable[[], None]:
        writing = give_part(pool, f"pause {told}", cache)
        left.add(writing)

        def end() -> None:
            left.remove(writing)
            os.close(writing)

        return end

    yield begin
    for writing in left:
        os.close(writing)


def results(pool: Pool, count: int = 1) -> list[Result]:
    found: list[Result] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline
        found += pool.collect(1.0)
    assert len(found) == count
    return found


def killed(pool: Pool, process: subprocess.Popen[bytes]) -> bool:
    """Whether the process was killed, and reaped without anybody waiting for it."""
    deadline = time.monotonic() + PATIENCE_S
    while process.returncode is None:
        assert time.monotonic() < deadline
        assert pool.collect(0.1) == []
    return process.returncode == -9


def test_a_job_comes_back_with_its_finding(pool: Pool, start: Start) -> None:
    assert (pool.idle, pool.jobs(), start.started) == (2, [], [])
    give(pool, "fine")
    assert (pool.idle, pool.jobs()) == (1, [job("fine")])
    [result] = results(pool)
    pid = str(start.started[0].pid)
    recipe = Recipe(b"h" * 16, b"l" * 4)
    assert result == Result(job("fine"), Finding("layer", "gzip", 9, pid, 7, recipe))
    assert (pool.idle, pool.jobs()) == (2, [])


def test_workers_are_started_when_they_are_needed_and_used_again(pool: Pool, start: Start) -> None:
    for _ in range(3):
        give(pool, "fine")
        results(pool)
    assert len(start.started) == 1
    give(pool, "one")
    give(pool, "two")
    assert pool.idle == 0
    assert {result.job for result in results(pool, 2)} == {job("one"), job("two")}
    assert len(start.started) == 2


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("die", "its worker was killed (signal 9), as the kernel does when memory is short"),
        ("crash", "its worker died (signal 11)"),
        ("no memory", "its worker ran out of memory"),
        ("exit", "its worker died (exit code 3)"),
        ("half", "its worker died (exit code 4)"),
    ],
)
def test_a_worker_that_dies_costs_its_job_and_is_replaced(pool: Pool, start: Start, told: str, said: str) -> None:
    give(pool, told)
    assert results(pool) == [Result(job(told), None, said)]
    assert pool.idle == 2
    give(pool, "fine")
    assert results(pool)[0].finding is not None
    assert len(start.started) == 2


@pytest.mark.parametrize("told", ["half and hang", "drip"])
def test_a_worker_that_does_not_end_a_word_holds_nobody_up_and_is_killed(
    pool: Pool, start: Start, clock: Clock, told: str
) -> None:
    give(pool, told)
    give(pool, "fine")
    assert [result.job for result in results(pool)] == [job("fine")]
    assert pool.collect(0) == []
    clock.now_s = module.SILENCE_S + 1
    assert Result(job(told), None, "no progress in 300 s") in results(pool)
    assert killed(pool, start.started[0])
    give(pool, "fine")
    assert results(pool)[0].finding is not None


@pytest.mark.parametrize(
    ("told", "said"),
    [("endless", "a line of more than 65536 bytes"), ("talkative", "too many words")],
)
def test_a_word_and_their_number_are_bounded(pool: Pool, start: Start, told: str, said: str) -> None:
    give(pool, told)
    assert results(pool) == [Result(job(told), None, f"its worker said what none does: {said}")]
    assert killed(pool, start.started[0])


def test_words_that_waited_for_a_busy_daemon_are_not_too_many(pool: Pool, clock: Clock) -> None:
    give(pool, "talkative")
    clock.now_s = 100.0
    assert results(pool)[0].finding is not None


def test_a_word_may_come_in_pieces(pool: Pool) -> None:
    give(pool, "piece by piece")
    [result] = results(pool)
    assert result.finding is not None
    assert result.finding.recipe == Recipe(b"h" * 16, b"l" * 4)


def test_a_worker_that_speaks_unasked_loses_no_finding_and_is_replaced(pool: Pool, start: Start) -> None:
    give(pool, "unasked")
    assert results(pool)[0].finding is not None
    deadline = time.monotonic() + PATIENCE_S
    while start.started[0].returncode is None:
        assert time.monotonic() < deadline
        assert pool.collect(0.1) == []
    assert killed(pool, start.started[0])
    give(pool, "fine")
    assert results(pool)[0].finding is not None
    assert len(start.started) == 2


def test_a_worker_that_closes_its_connection_and_lives_on_holds_nobody_up(
    pool: Pool, start: Start, clock: Clock
) -> None:
    give(pool, "close")
    give(pool, "fine")
    begun = time.monotonic()
    assert [result.job for result in results(pool)] == [job("fine")]
    while (took := time.monotonic() - begun) < 2.0:
        assert pool.collect(PATIENCE_S) == []
        assert time.monotonic() - begun - took < 1.0, "somebody was waited for"
    assert (pool.idle, pool.jobs()) == (1, [job("close")])
    clock.now_s += module.LEAVE_S + 0.1
    assert pool.collect(PATIENCE_S) == [Result(job("close"), None, "its worker closed its connection")]
    assert killed(pool, start.started[0])
    assert (pool.idle, pool.stuck) == (2, [])


def test_a_worker_that_the_kernel_kills_is_told_from_one_that_closed_its_connection(pool: Pool, start: Start) -> None:
    """Its connection ends before its process has."""
    give(pool, "close and die")
    [result] = results(pool)
    assert result.died == "its worker was killed (signal 9), as the kernel does when memory is short"
    assert [process.returncode for process in start.started] == [-9]


def test_a_worker_that_takes_no_job_is_killed_and_the_job_comes_back(pool: Pool, start: Start) -> None:
    give(pool, "deaf")
    assert results(pool)[0].finding is not None
    connection = pool._workers[0].connection._socket  # noqa: SLF001
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(bytes(4096))
    give(pool, "fine")
    assert pool.jobs() == [job("fine")]
    [result] = pool.collect(PATIENCE_S)
    assert (result.job, result.finding) == (job("fine"), None)
    assert result.died.startswith("its worker did not take the job")
    assert killed(pool, start.started[0])
    assert (pool.idle, pool.jobs()) == (2, [])
    give(pool, "fine")
    assert results(pool)[0].finding is not None


def test_closing_waits_for_all_together(
    pool: Pool, start: Start, monkeypatch: pytest.MonkeyPatch, pause: Pause
) -> None:
    for told in "12":
        pause(told, 7)
    monkeypatch.setattr(module, "END_S", 1.0)
    with monkeypatch.context() as stuck:
        for process in start.started:
            stuck.setattr(process, "kill", lambda: None)
            stuck.setattr(process, "poll", lambda: None)
        begun = time.monotonic()
        pool.close()
        assert 1.0 <= time.monotonic() - begun < 1.9
    for process in start.started:
        process.kill()
        process.wait()


# --- workers that wait for a file system ----------------------------------------------------------------------------


def test_a_stalled_worker_leaves_its_place_to_another_caches_blob(
    pool: Pool, start: Start, clock: Clock, pause: Pause
) -> None:
    pause("1", 7)
    pause("2", 7)
    clock.now_s = module.STALLED_S
    assert (pool.idle, pool.stalled) == (0, set())
    clock.now_s += 0.1
    assert (pool.idle, pool.stalled) == (2, {7})
    give(pool, "one", cache=8)
    give(pool, "two", cache=8)
    assert (pool.idle, pool.stalled) == (0, {7})
    assert {result.job for result in results(pool, 2)} == {job("one"), job("two")}
    assert pool.idle == 2
    give(pool, "three", cache=8)
    results(pool)
    assert len(start.started) == 4, "a worker that is lent is used again"


def test_there_are_never_more_than_twice_as_many_processes(
    pool: Pool, start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch, pause: Pause
) -> None:
    """Be they stalled, or killed and stuck."""
    for cache in (7, 8):
        pause(f"1 of {cache}", cache)
        pause(f"2 of {cache}", cache)
        clock.now_s += module.STALLED_S + 0.1
        assert pool.collect(0) == []
    assert (pool.idle, pool.stalled, len(start.started)) == (0, {7, 8}, 4)
    with monkeypatch.context() as stuck:
        for process in start.started[:2]:
            stuck.setattr(process, "kill", lambda: None)
        clock.now_s = module.SILENCE_S + 1
        assert {result.job for result in results(pool, 2)} == {job("pause 1 of 7"), job("pause 2 of 7")}
        clock.now_s += module.STALLED_S
        assert (pool.idle, pool.stalled) == (0, {7, 8}), "two stalled, two killed"
        assert pool.stuck == []
        clock.now_s += module.END_S
        assert (pool.idle, [killed.cache for killed in pool.stuck]) == (0, [7, 7])
    for process, idle in zip(start.started[:2], (1, 2), strict=True):
        process.kill()
        process.wait(PATIENCE_S)
        pool.collect(0)
        assert pool.idle == idle


def test_a_worker_that_speaks_again_is_no_longer_stalled_and_the_lent_ones_end(
    pool: Pool, start: Start, clock: Clock, pause: Pause
) -> None:
    ends = [pause("1", 7), pause("2", 7)]
    clock.now_s = module.STALLED_S + 0.1
    give(pool, "one", cache=8)
    give(pool, "two", cache=8)
    results(pool, 2)
    for end in ends:
        end()
    assert {result.job for result in results(pool, 2)} == {job("pause 1"), job("pause 2")}
    assert pool.stalled == set()
    deadline = time.monotonic() + PATIENCE_S
    while sum(process.returncode is None for process in start.started) > 2:
        assert time.monotonic() < deadline, "there are more than wanted"
        assert pool.collect(0.1) == []
    assert sorted(process.returncode for process in start.started if process.returncode is not None) == [0, 0]
    assert pool.collect(0.1) == []
    assert (pool.idle, len(start.started)) == (2, 4)


def test_no_job_is_given_while_more_than_wanted_are_at_work(
    pool: Pool, start: Start, clock: Clock, pause: Pause
) -> None:
    """Stalled ones that go on, beside those that took their place."""
    for at in range(2):
        give(pool, f"progress {at}", 7)
    clock.now_s = module.STALLED_S + 0.1
    ends = [pause("1", 8), pause("2", 8)]
    assert pool.idle == 0
    while pool.stalled:
        assert pool.collect(PATIENCE_S) == []
    assert (pool.idle, len(pool.jobs())) == (0, 4)
    for end in ends:
        end()
    results(pool, 2)
    assert pool.idle == 0, "two are at work"
    assert len(start.started) == 4


def test_a_worker_that_the_system_refuses_costs_no_blob(
    pool: Pool, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That becomes known after its job was given: the next one is not."""
    give(pool, "exit")
    monkeypatch.setattr(start.started[0], "refused", OSError(11, "Resource temporarily unavailable"))
    [result] = results(pool)
    assert (result.job, result.finding, result.begun) == (job("exit"), None, False)
    with pytest.raises(OSError, match="temporarily"):
        give(pool, "fine")
    assert (pool.idle, pool.jobs()) == (2, [])
    give(pool, "fine")
    [result] = results(pool)
    assert (result.finding is None, result.begun) == (False, True)


def test_a_worker_that_can_not_be_ended_holds_nobody_up_but_its_cache(
    pool: Pool, start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that the kernel lets wait for a file system that does not answer."""
    give(pool, "hang", cache=7)
    deadline = time.monotonic() + PATIENCE_S
    while not pool.read_bytes:
        assert time.monotonic() < deadline
        pool.collect(1.0)
    process = start.started[0]
    with monkeypatch.context() as stuck:
        stuck.setattr(process, "kill", lambda: None)
        clock.now_s = module.SILENCE_S + 1
        assert results(pool) == [Result(job("hang"), None, "no progress in 300 s")]
        assert (pool.idle, pool.stalled, pool.stuck) == (2, {7}, [])
        clock.now_s += module.END_S + 1
        assert (pool.idle, pool.stalled) == (2, {7})
        assert pool.stuck == [module.Killed(process, 7, module.SILENCE_S + 1)]
        assert pool.collect(0) == []
        assert pool.stuck == [module.Killed(process, 7, module.SILENCE_S + 1)]
    process.kill()
    process.wait(PATIENCE_S)
    assert pool.collect(0) == []
    assert (pool.idle, pool.stalled, pool.stuck) == (2, set(), [])


def test_a_worker_that_dies_while_idle_costs_nothing(pool: Pool, start: Start) -> None:
    give(pool, "leave")
    assert results(pool)[0].finding is not None
    start.started[0].wait(PATIENCE_S)
    assert pool.collect(PATIENCE_S) == []
    give(pool, "fine")
    assert results(pool)[0].finding is not None
    assert len(start.started) == 2


def test_a_job_is_not_given_to_a_dead_worker(pool: Pool, start: Start) -> None:
    give(pool, "leave")
    results(pool)
    start.started[0].wait(PATIENCE_S)
    give(pool, "fine")  # before anybody noticed
    assert results(pool)[0].finding is not None
    assert len(start.started) == 2


def test_a_job_given_to_a_dying_worker_comes_back_as_died(
    pool: Pool, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(pool, "leave")
    results(pool)
    start.started[0].wait(PATIENCE_S)
    with monkeypatch.context() as dying:
        dying.setattr(start.started[0], "poll", lambda: None)
        give(pool, "fine")
    assert results(pool) == [Result(job("fine"), None, "its worker died (exit code 0)")]


def test_progress_is_proof_of_life_and_food_for_the_bar(pool: Pool, clock: Clock) -> None:
    give(pool, "progress")
    clock.now_s = module.SILENCE_S - 1
    assert pool.read_bytes == 0
    deadline = time.monotonic() + PATIENCE_S
    while not pool.read_bytes:
        assert time.monotonic() < deadline
        assert pool.collect(1.0) == []
    assert pool.read_bytes == 1234
    clock.now_s += module.SILENCE_S - 1
    assert pool.collect(0) == []
    assert pool.jobs() == [job("progress")]


def test_a_worker_that_says_nothing_is_killed(pool: Pool, start: Start, clock: Clock) -> None:
    give(pool, "hang")
    give(pool, "fine")
    deadline = time.monotonic() + PATIENCE_S
    while not pool.read_bytes:
        assert time.monotonic() < deadline
        pool.collect(1.0)
    clock.now_s = module.SILENCE_S + 1
    found = pool.collect(0) or results(pool)
    assert Result(job("hang"), None, "no progress in 300 s") in found
    assert killed(pool, start.started[0])
    assert job("hang") not in pool.jobs()


def test_an_idle_worker_may_be_silent(pool: Pool, start: Start, clock: Clock) -> None:
    give(pool, "fine")
    results(pool)
    clock.now_s = 10 * module.SILENCE_S
    assert pool.collect(0) == []
    assert start.started[0].poll() is None


def test_the_bell_ends_a_wait(pool: Pool) -> None:
    give(pool, "hang")
    wakeup = Wakeup()
    wakeup.wake()
    begun = time.monotonic()
    while not pool.read_bytes:
        pool.collect(PATIENCE_S, wakeup)
    assert pool.collect(PATIENCE_S, wakeup) == []
    assert time.monotonic() - begun < PATIENCE_S
    wakeup.close()


def test_no_worker_can_be_started(pool: Pool, start: Start) -> None:
    start.error = OSError(11, "Resource temporarily unavailable")
    with pytest.raises(OSError, match="temporarily"):
        give(pool, "fine")
    assert (pool.idle, pool.jobs()) == (2, [])


def test_closing_ends_every_worker(pool: Pool, start: Start) -> None:
    give(pool, "hang")
    give(pool, "fine")
    pool.close()
    assert [process.returncode for process in start.started] != [None, None]
    assert pool.jobs() == []
    pool.close()


# --- several small jobs at once -----------------------------------------------------------------------------------


def test_small_jobs_wait_at_busy_workers_and_are_found_in_their_order(pool: Pool, start: Start, pause: Pause) -> None:
    ends = [pause("1", 0), pause("2", 0)]
    for told in "abcd":
        assert (pool.idle, pool.takes(4000, 0)) == (0, True)
        give(pool, told)
    assert [job.digest for job in pool.jobs()] == [
        job(told).digest for told in ("pause 1", "a", "c", "pause 2", "b", "d")
    ]
    ends[0]()
    found = results(pool, 3)
    assert [result.job for result in found] == [job("pause 1"), job("a"), job("c")]
    assert {result.finding.reason for result in found if result.finding} == {str(start.started[0].pid)}
    assert (pool.idle, len(start.started)) == (1, 2)
    ends[1]()
    assert [result.job for result in results(pool, 3)] == [job("pause 2"), job("b"), job("d")]


def test_as_many_small_jobs_wait_as_are_said_and_fewer_where_there_are_many_workers(start: Start, pool: Pool) -> None:
    give(pool, "hang")
    give(pool, "hang 2")
    for number in range(2 * (module.JOBS_AT_ONCE - 1)):
        assert pool.takes(4000, 0)
        give(pool, f"fine {number}")
    assert not pool.takes(4000, 0)
    many = Pool(start, module.MOST_AHEAD // 2, Clock())
    for number in range(many.count):
        many._workers.append(Worker(start.started[0], None, deque([job(str(number))])))  # type: ignore[arg-type] # noqa: SLF001
    assert many.takes(4000, 0)
    for worker in many._workers:  # noqa: SLF001
        worker.jobs.append(job("more"))
    assert not many.takes(4000, 0)


def test_a_job_waits_only_at_a_worker_with_small_ones_of_its_own_cache(pool: Pool, clock: Clock, pause: Pause) -> None:
    pause("1", 7)
    give_large = functools.partial(pool.give, replace(job("hang"), mark=FileMark(1, 2, module.SMALL_BYTES + 1, 4)))
    reading, writing = os.pipe()
    give_large(reading, 8)
    os.close(reading)
    assert pool.takes(module.SMALL_BYTES - 4000, 7)
    assert not pool.takes(module.SMALL_BYTES - 3999, 7), "together they are too large"
    assert not pool.takes(1, 8), "it would wait for a large one"
    assert not pool.takes(1, 9), "it would wait for another cache's file system"
    clock.now_s = module.STALLED_S + 0.1
    assert pool._with_room(1, 7) is None, "it is stalled"  # noqa: SLF001
    os.close(writing)


@pytest.mark.parametrize("told", ["die", "exit", "half", "endless"])
def test_a_worker_that_dies_costs_the_job_it_was_at_and_no_other(
    pool: Pool, start: Start, pause: Pause, told: str
) -> None:
    end, end_other = pause("1", 0), pause("2", 0)
    for waiting in ("before", "x", told, "y", "after"):
        give(pool, waiting)
    mine = [job(waiting) for waiting in ("pause 1", "before", told, "after")]
    assert pool.jobs()[:4] == mine
    end()
    found = results(pool, 4)
    assert [result.job for result in found] == mine
    assert [bool(result.finding) for result in found] == [True, True, False, False]
    assert [result.begun for result in found] == [True, True, True, False]
    end_other()
    assert [result.finding is not None for result in results(pool, 3)] == [True] * 3
    give(pool, "fine")
    assert results(pool)[0].finding is not None
    assert len(start.started) <= 3


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("told", ["die", "close", "half and hang", "talkative"])
def test_wherever_in_a_batch_a_worker_fails_each_job_keeps_its_own_fate(
    start: Start, clock: Clock, told: str, at: int
) -> None:
    """It is killed, closes its connection, takes too long, or says what none does."""
    batch = [f"fine {number}" for number in range(4)]
    batch.insert(at, told)
    pool = Pool(start, 1, clock)
    try:
        hold = give_part(pool, "pause first")
        for each in batch:
            give(pool, each)
        assert pool.jobs() == [job("pause first"), *map(job, batch)]
        os.close(hold)
        found: list[Result] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < 1 + len(batch):
            assert time.monotonic() < deadline
            if len(found) == 1 + at:  # all that it can find
                clock.now_s += module.SILENCE_S + 1 if told == "half and hang" else module.LEAVE_S + 0.1
            found += pool.collect(0.1)
        assert [result.job for result in found] == [job("pause first"), *map(job, batch)]
        assert [result.finding is not None for result in found] == [True] * (1 + at) + [False] * (5 - at)
        assert [result.begun for result in found] == [True] * (2 + at) + [False] * (4 - at)
        for each in batch[at + 1 :]:
            give(pool, each)
        again = results(pool, 4 - at)
        assert [(result.job, result.finding is not None) for result in again] == [
            (job(each), True) for each in batch[at + 1 :]
        ]
    finally:
        pool.close()


def test_a_worker_has_room_again_for_small_jobs_when_others_are_done(start: Start, clock: Clock) -> None:
    pool = Pool(start, 1, clock)
    try:
        for number in range(module.SMALL_BYTES // 4000 // 2 + 2):
            hold = give_part(pool, f"pause {number}")
            assert pool.takes(4000, 0)
            give(pool, "fine")
            os.close(hold)
            results(pool, 2)
        assert len(start.started) == 1
    finally:
        pool.close()


def test_a_silent_worker_costs_the_job_it_was_at_alone(pool: Pool, clock: Clock, pause: Pause) -> None:
    pause("2", 9)
    give(pool, "hang")
    give(pool, "after")
    clock.now_s = module.SILENCE_S + 1
    found = [result for result in pool.collect(0) if result.job.digest != job("pause 2").digest]
    assert [(result.job, result.begun) for result in found] == [(job("hang"), True), (job("after"), False)]


def test_what_was_found_before_a_worker_died_is_kept_though_it_was_given_more(
    pool: Pool, start: Start, pause: Pause
) -> None:
    pause("2", 9)
    end = pause("1", 0)
    give(pool, "exit")
    end()
    start.started[1].wait(PATIENCE_S)
    give(pool, "late")  # before anybody noticed
    found = results(pool, 3)
    assert [(result.job, result.finding is not None, result.begun) for result in found] == [
        (job("pause 1"), True, True),
        (job("exit"), False, True),
        (job("late"), False, False),
    ]
