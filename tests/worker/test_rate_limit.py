"""The rate holds by a clock that stands still but for the reading and the waiting itself."""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

import blobs
import working
from chunkd.model import Digest, Finding
from chunkd.worker import examine as worker
from chunkd.worker import rate_limit as module
from chunkd.worker.decode import BUFFER_BYTES
from chunkd.worker.rate_limit import BURST_S, WORD_S, Pace

RATE = 1_000_000
LAYER = blobs.layer()


class Time:
    """A clock, and a sleep that moves it on; `late_s` is how much too long each sleep takes."""

    def __init__(self, late_s: float = 0.0) -> None:
        self.now_s, self.late_s = 1000.0, late_s
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now_s += seconds + self.late_s

    def pace(self, bytes_per_s: int = RATE) -> Pace:
        return Pace(bytes_per_s, self, self.sleep)


def silent(_: int) -> None:
    pass


def most_ahead(reads: list[tuple[float, int]], largest_bytes: int) -> float:
    """By how many bytes the worst span of time between two reads went over the rate; a read is (when, bytes)."""
    worst = -1.0
    for begin, (from_s, _) in enumerate(reads):
        taken = 0
        for to_s, size in reads[begin:]:
            taken += size
            worst = max(worst, taken - RATE * (to_s - from_s + BURST_S) - largest_bytes)
    return worst


@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.03])
@pytest.mark.parametrize("read_bytes", [1, 8192, 262_144, 3_000_000])
def test_the_rate_holds_in_every_span_of_time_and_is_reached(read_bytes: int, late_s: float) -> None:
    time = Time(late_s)
    wait = time.pace().paced(silent)
    reads = []
    for number in range(1, 301):
        reads.append((time.now_s, read_bytes))
        wait(number * read_bytes)
    assert most_ahead(reads, read_bytes) <= 1
    ideal_s = 300 * read_bytes / RATE
    took_s = time.now_s - 1000
    assert ideal_s - BURST_S - 1e-6 <= took_s <= ideal_s + late_s + 1e-6


def test_what_was_not_read_for_long_is_not_made_up_for() -> None:
    time = Time()
    wait = time.pace().paced(silent)
    wait(500_000)
    time.now_s += 3600
    came_s = time.now_s
    for read_bytes in range(600_000, 1_600_000, 100_000):
        wait(read_bytes)
    assert time.now_s - came_s == pytest.approx(1.0 - BURST_S)


def test_many_small_jobs_are_one_reading() -> None:
    time = Time()
    pace = time.pace()
    for _ in range(1000):
        wait = pace.paced(silent)
        wait(1000)
        wait(5000)
        wait(5000)  # a report with nothing read costs nothing
    assert time.now_s - 1000 == pytest.approx(5.0)


def test_a_long_wait_is_not_a_silence() -> None:
    time = Time()
    told: list[tuple[float, int]] = []
    time.pace(1000).paced(lambda read_bytes: told.append((time.now_s, read_bytes)))(1_000_000)
    assert time.now_s - 1000 == pytest.approx(1000)
    assert {read_bytes for _, read_bytes in told} == {1_000_000}
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(told)]
    assert max(gaps) <= WORD_S
    assert told[0][0] == 1000.0


def test_a_wait_ends_with_what_the_report_raises() -> None:
    """The blob was unlinked, or the daemon has gone."""
    time = Time()
    reports = iter(range(4))

    def report(_: int) -> None:
        if next(reports) == 3:
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        time.pace(1).paced(report)(1_000_000)
    assert time.now_s == 1000 + 3 * WORD_S


def test_without_a_limit_nothing_stands_between() -> None:
    time = Time()
    assert time.pace(0).paced(silent) is silent


# --- a worker's job -----------------------------------------------------------------------------------------------


def examine(digest: Digest, path: Path, pace: Pace | None, *, decode: bool = True, relayed: bool = False) -> Finding:
    found = working.examined(digest, path, pace=pace, decode=decode, relayed=relayed)
    return replace(found, read_until_ns=0)


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("stored", [blobs.gz(LAYER), blobs.zst(LAYER), LAYER, b"other" * 100_000], ids=len)
def test_a_job_is_read_at_its_rate_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bytes, decode: bool, relayed: bool
) -> None:
    monkeypatch.setattr(worker, "RELAYED_FROM_BYTES", 0)
    digest, path = blobs.write_blob(tmp_path, stored)
    time = Time()
    paced, unpaced = (examine(digest, path, pace, decode=decode, relayed=relayed) for pace in (time.pace(), None))
    assert paced == unpaced
    assert len(stored) / RATE - BURST_S <= time.now_s - 1000 <= len(stored) / RATE + 1e-6


def test_a_blob_that_is_unlinked_meanwhile_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_PROGRESS_S", 0)
    digest, path = blobs.write_blob(tmp_path, LAYER)
    time = Time()

    def unlink(seconds: float) -> None:
        path.unlink(missing_ok=True)
        time.sleep(seconds)

    assert examine(digest, path, Pace(1, time, unlink)) == Finding("gone")
    assert time.slept == [WORD_S]


def test_no_read_is_large() -> None:
    """How far a burst goes depends on it."""
    assert BUFFER_BYTES <= 262_144


def test_the_wait_is_shorter_than_what_is_taken_for_hanging() -> None:
    from chunkd.worker.pool import SILENCE_S

    assert 10 * (module.WORD_S + worker._PROGRESS_S) < SILENCE_S  # noqa: SLF001


def test_a_sparse_file_is_read_at_its_rate(tmp_path: Path) -> None:
    """Hashing alone, in reads of the whole buffer, none of them larger than it."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 10_000_000)
    time = Time()
    reads: list[tuple[float, int]] = []
    last = 0

    def note(read_bytes: int, then: object) -> None:
        nonlocal last
        reads.append((time.now_s, read_bytes - last))
        last = read_bytes
        assert callable(then)
        then(read_bytes)

    class Noted(Pace):
        def paced(self, report: object) -> object:  # type: ignore[override]
            return functools.partial(note, then=super().paced(report))  # type: ignore[arg-type]

    pace = Noted(RATE, time, time.sleep)
    assert examine(Digest("sha256", "0" * 64), path, pace).kind == "mismatched"
    assert sum(size for _, size in reads) == 10_000_000
    assert max(size for _, size in reads) <= BUFFER_BYTES
    assert most_ahead(reads, BUFFER_BYTES) <= 1
