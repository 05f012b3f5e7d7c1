"""What a worker of a sweep may say, and what costs it its layer: it reads hostile bytes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkd.model import Caps, FileMark, MeasureRule, Recipe
from chunkd.sweep.messages import BLOCK, FOUND, FRAME, LayerFinding, SweepJob, Totals, WorkersEnd, finding_json
from chunkd.sweep.question import Question
from chunkd.sweep.results import OwnResults
from chunkd.sweep.sweeps_end import SweepsEnd
from indexing import chunks_of, digest_of, recipe_of

JOB = SweepJob(digest_of(1), FileMark(0, 0, 100_000, 0), level_19_s=1.5, shifts=(0, 3))
CHUNKS = recipe_of(chunks_of(range(40)))
SIZE = sum(length for _, length in chunks_of(range(40)))
GOOD = LayerFinding("layer", "gzip", SIZE, totals=(Totals(40, SIZE), Totals(1, SIZE)), zstd_3_bytes=7)


class Ends:
    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self.results = OwnResults(str(folder), Question(("2/16/64", "files"), MeasureRule(), Caps()))
        self.sweep = SweepsEnd(ours, self.results)
        self.worker, self.socket = WorkersEnd(theirs), theirs
        with open("/dev/null", "rb") as file:
            self.sweep.send_job(JOB, file.fileno())
        self.job, descriptor = self.worker.receive_job()
        socket.close(descriptor)

    def said(self) -> Any:
        self.sweep.read()
        return self.sweep.word(JOB)

    def close(self) -> None:
        self.sweep.close()
        self.socket.close()
        self.results.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    found = Ends(tmp_path)
    yield found
    found.close()


def test_a_job_its_progress_its_chunks_and_its_finding_come_through(ends: Ends) -> None:
    assert ends.job == JOB
    ends.worker.send_progress(77)
    assert ends.said() == 77
    ends.worker.send_block(0, CHUNKS)
    assert ends.said() is None
    ends.worker.send_found(finding_json(GOOD))
    assert ends.said() == GOOD
    kept = ends.results.result(JOB.digest, verify=True)
    assert kept is not None
    assert (kept.finding, kept.stored_bytes, kept.shifts) == (GOOD, 100_000, JOB.shifts)
    [(block, data)] = ends.results.blocks(kept, 0)
    assert data == CHUNKS.hashes + CHUNKS.lengths + CHUNKS.measured
    assert block == (0, 40, len(CHUNKS.measured) // 4)
    assert list(ends.results.blocks(kept, 1)) == []


def found_with(**changed: Any) -> bytes:
    said = json.dumps(finding_json(GOOD) | changed).encode()
    return FRAME.pack(FOUND, 0, len(said), 0) + said


IMPOSSIBLE = {
    "another kind of message": FRAME.pack(9, 0, 0, 0),
    "a block of no rule": FRAME.pack(BLOCK, 2, 0, 0),
    "a block that is too large": FRAME.pack(BLOCK, 0, 1 << 40, 0),
    "more measured than there are": FRAME.pack(BLOCK, 0, 1, 2),
    "a finding that is too large": FRAME.pack(FOUND, 0, 1 << 40, 0),
    "no JSON": FRAME.pack(FOUND, 0, 1, 0) + b"x",
    "a list": FRAME.pack(FOUND, 0, 2, 0) + b"[]",
    "another kind": found_with(kind="matched"),
    "another codec": found_with(codec="lz4"),
    "totals of one rule": found_with(totals=[[40, SIZE, 0, 0]]),
    "totals that do not add up": found_with(totals=[[40, SIZE, 0, 0], [1, SIZE - 1, 0, 0]]),
    "a negative number": found_with(zstd_3_bytes=-1),
    "a number that is true": found_with(uncompressed_bytes=True),
    "a terminal's code": found_with(damaged="\x1b[2J"),
    "a long reason": found_with(reason="x" * 10_000),
    "more bytes than the caps allow": found_with(
        uncompressed_bytes=1 << 50, totals=[[40, 1 << 50, 0, 0], [1, 1 << 50, 0, 0]]
    ),
    "more kept than there are": FRAME.pack(BLOCK, 1, 2, 0) + b"\xff" * 40 + found_with(),
    "one measured that is not picked": FRAME.pack(BLOCK, 1, 1, 1) + b"\xff" * 24,
    "one picked that is not measured": FRAME.pack(BLOCK, 1, 1, 0) + bytes(20),
    "lists in lists": FRAME.pack(FOUND, 0, 200_000, 0) + b"[" * 200_000,
    "an unknown key": found_with(more=1),
}  # fmt: skip


@pytest.mark.parametrize("said", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_no_worker_says_is_refused_and_leaves_nothing(ends: Ends, said: bytes) -> None:
    ends.socket.sendall(said)
    with pytest.raises(ValueError, match=" "):
        ends.said()
    ends.sweep.close()
    assert [path.name for path in ends.results.folder.iterdir()] == ["lock"]


def test_more_chunks_than_a_layer_can_have_are_refused(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    caps = Caps(uncompressed_bytes=4096, ratio=1)
    results = OwnResults(str(tmp_path), Question(("2/16/64",), MeasureRule(), caps))
    end = SweepsEnd(ours, results)
    with open("/dev/null", "rb") as file:
        end.send_job(SweepJob(digest_of(1), FileMark(0, 0, 10, 0)), file.fileno())
    many = Recipe(bytes(16 * 1000), bytes(4 * 1000))
    WorkersEnd(theirs).send_block(0, many)
    end.read()
    with pytest.raises(ValueError, match="more chunks"):
        end.word(SweepJob(digest_of(1), FileMark(0, 0, 10, 0)))
    end.close()
    theirs.close()
    results.close()


def test_a_word_without_a_job_is_refused(ends: Ends) -> None:
    ends.worker.send_progress(1)
    ends.sweep.read()
    with pytest.raises(ValueError, match="without a job"):
        ends.sweep.word(None)
