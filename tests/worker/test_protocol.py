"""What is said between a daemon and a worker: honest words arrive, and all others cost the worker and nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import working
from chunkd.model import CODECS, Caps, ChunkParams, Digest, FileMark, Finding, Job, Recipe
from chunkd.worker import manifest_record
from chunkd.worker.manifest import Contents, Edge, Kind, Role
from chunkd.worker.protocol import LINE_BYTES, RECEIVE_BYTES, DaemonsEnd, WorkersEnd
from counts import counted

PARAMS, CAPS = ChunkParams(), Caps()
MARK = FileMark(1, 2, 5000, 4)
JOB = Job(Digest("sha256", "a" * 64), MARK)
UNTIL_NS = (1 << 64) - 1
HASH_JOB = dataclasses.replace(JOB, decode=False)
RECIPE = Recipe(b"h" * 32, b"\0\x10\0\0" + b"\1\0\0\0", b"\x0a\0\0\0")
LAYER = Finding("layer", "gzip", 4097, read_until_ns=UNTIL_NS, recipe=RECIPE)
HEAD: dict[str, Any] = {
    "kind": "layer", "codec": "gzip", "uncompressed_bytes": 4097, "reason": "", "read_until_ns": 5, "chunks": 2,
    "measured": 1, "manifest_bytes": 0,
}  # fmt: skip
NESTED = b"[" * 60_000
MANIFEST = manifest_record.encode(Contents(Kind.IMAGE, (Edge(Role.LAYER, Digest("sha256", "b" * 64), 7),)))


@dataclasses.dataclass
class Pair:
    daemon: DaemonsEnd
    worker: WorkersEnd
    raw: socket.socket

    def said(self, sent: bytes, job: Job | None = JOB) -> int | Finding | None:
        """What the daemon makes of these bytes, when it has them all."""
        self.raw.sendall(sent)
        self.daemon.read()
        return self.daemon.word(job)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with theirs:
        made = Pair(DaemonsEnd(ours, PARAMS, CAPS), WorkersEnd(theirs), theirs)
        yield made
        made.daemon.close()


@pytest.fixture
def blob(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file, and no other is left open at the end."""
    before = set(os.listdir("/dev/fd"))
    path = tmp_path / "blob"
    path.write_bytes(b"its bytes")
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)
    assert set(os.listdir("/dev/fd")) == before


def test_jobs_that_wait_are_received_one_by_one_each_with_its_own_blob(pair: Pair, tmp_path: Path) -> None:
    jobs = [dataclasses.replace(JOB, digest=Digest("sha256", f"{number:064x}")) for number in range(16)]
    for number, job in enumerate(jobs):
        path = tmp_path / str(number)
        path.write_text(str(number))
        with path.open("rb") as file:
            pair.daemon.send_job(job, file.fileno())
    for number, job in enumerate(jobs):
        received, descriptor = pair.worker.receive_job()
        assert received.digest == job.digest
        assert os.read(descriptor, 100) == str(number).encode()
        os.close(descriptor)


@pytest.mark.parametrize("stored_bytes", [0, 1 << 40])
@pytest.mark.parametrize("decode", [True, False])
def test_a_job_arrives_with_its_blob_and_without_a_path(pair: Pair, blob: int, stored_bytes: int, decode: bool) -> None:
    job = Job(Digest("sha512", "b" * 128), MARK._replace(stored_bytes=stored_bytes), decode, relayed=True)
    for sent in (job, JOB):
        pair.daemon.send_job(sent, blob)
        received, descriptor = pair.worker.receive_job()
        assert received == dataclasses.replace(sent, mark=FileMark(0, 0, sent.mark.stored_bytes, 0))
        assert descriptor != blob
        assert os.path.samestat(os.fstat(descriptor), os.fstat(blob))
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_a_job_may_come_in_pieces(blob: int) -> None:
    """The descriptor comes with the first of them."""
    ours, theirs = socket.socketpair()
    line = json.dumps([*JOB.digest, 5000, True, False]).encode() + b"\n"
    with ours, theirs:
        socket.send_fds(ours, [line[:7]], [blob])

        def send_the_rest() -> None:
            for at in range(7, len(line)):
                ours.sendall(line[at : at + 1])

        sender = threading.Thread(target=send_the_rest)
        sender.start()
        received, descriptor = WorkersEnd(theirs).receive_job()
        sender.join()
    os.close(descriptor)
    assert received.digest == JOB.digest


JOB_LINE = json.dumps([*JOB.digest, 5000, True, False]).encode() + b"\n"


@pytest.mark.parametrize(
    ("sent", "descriptors"),
    [
        (JOB_LINE, 0), (JOB_LINE, 2), (JOB_LINE, 3), (JOB_LINE, 50), (b"{}\n", 1), (b"\n", 1), (b"\xff\n", 1),
        (JOB_LINE * 2, 1), (b"[" + JOB_LINE, 1), (b'["sha256", "a", 1, true]\n', 1), (b" " * (LINE_BYTES + 1), 1),
    ],
)  # fmt: skip
def test_what_no_daemon_says_is_a_value_error(blob: int, sent: bytes, descriptors: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        socket.send_fds(ours, [sent], [blob] * descriptors)
        with pytest.raises(ValueError, match=r"\w"):
            WorkersEnd(theirs).receive_job()
    for copy in set(map(int, os.listdir("/dev/fd"))) - {blob}:  # the worker ends of it
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(copy), os.fstat(blob)):
                os.close(copy)


def test_the_end_is_told_to_both(pair: Pair) -> None:
    pair.daemon.close()
    with pytest.raises(EOFError):
        pair.worker.receive_job()
    with pytest.raises(ConnectionError):
        pair.worker.send_progress(1)


def test_a_daemon_that_listens_to_nobody_waits_for_nobody(pair: Pair, blob: int) -> None:
    pair.daemon.read()
    assert pair.daemon.word(JOB) is None

    def fill() -> None:
        for _ in range(1 << 20):
            pair.daemon.send_job(JOB, blob)

    # The kernel may count the descriptors on their way before it counts the bytes.
    with pytest.raises(OSError, match=r"unavailable|Too many references"):
        fill()


@pytest.mark.parametrize(
    ("job", "finding"),
    [
        (JOB, LAYER),
        (JOB, Finding("other", read_until_ns=UNTIL_NS)),
        (JOB, Finding("other", reason="image", read_until_ns=UNTIL_NS, manifest=MANIFEST)),
        (JOB, Finding("undecodable", "zstd", reason="checksum does not match", read_until_ns=UNTIL_NS)),
        (HASH_JOB, Finding("matched", read_until_ns=UNTIL_NS)),
        *[
            (job, finding)
            for job in (JOB, HASH_JOB)
            for finding in (
                Finding("mismatched", read_until_ns=UNTIL_NS),
                Finding("mismatched", reason="changed while it was read", read_until_ns=UNTIL_NS),
                Finding("unreadable", reason="Permission denied"),
                Finding("gone"),
            )
        ],
    ],
)
def test_a_finding_arrives_behind_its_progress(pair: Pair, job: Job, finding: Finding) -> None:
    pair.worker.send_progress(0)
    pair.worker.send_progress(1 << 40)
    pair.worker.send_finding(finding)
    assert [working.word(pair.daemon, job) for _ in range(3)] == [0, 1 << 40, finding]


def test_a_large_recipe_arrives_part_by_part(pair: Pair) -> None:
    chunks = 100_000
    recipe = Recipe(os.urandom(16 * chunks), b"\0\x10\0\0" * chunks, os.urandom(4 * 7777))
    finding = Finding("layer", "tar", 4096 * chunks, read_until_ns=UNTIL_NS, recipe=recipe)
    sender = threading.Thread(target=pair.worker.send_finding, args=(finding,))
    sender.start()
    assert working.word(pair.daemon, JOB) == finding
    sender.join()


def altered(**changes: object) -> bytes:
    return json.dumps(HEAD | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"\n", b"null\n", b"5\n", b'"read_bytes"\n', b"[]\n", b"{}\n", b"\xff\n", b"{\n", NESTED + b"\n",
        b'{"read_bytes": -1}\n', b'{"read_bytes": 1.5}\n', b'{"read_bytes": 1e999}\n', b'{"read_bytes": NaN}\n',
        b'{"read_bytes": true}\n', b'{"read_bytes": "1"}\n', b'{"read_bytes": [1]}\n',
        b'{"read_bytes": 18446744073709551616}\n', b'{"read_bytes": ' + b"9" * 5000 + b"}\n",
        b'{"read_bytes": 1, "kind": "gone"}\n', b'{"kind": "gone"}\n', b" " * LINE_BYTES,
        altered(recipe=[]), altered(kind="matched"), altered(kind="failed"), altered(kind=["layer"]),
        altered(kind=None),
        altered(mark=[1, 2, 3, 4]), altered(kind="ignored", read_until_ns=0, codec="", uncompressed_bytes=0, chunks=0),
        altered(read_until_ns=0), altered(read_until_ns=-1), altered(read_until_ns=1 << 64), altered(read_until_ns=5.0),
        altered(read_until_ns="5"), altered(read_until_ns=None), altered(read_until_ns=True),
        altered(codec=""), altered(codec="other"), altered(codec=["gzip"]), altered(codec=None),
        altered(uncompressed_bytes=0), altered(uncompressed_bytes=-4097), altered(uncompressed_bytes="4097"),
        altered(uncompressed_bytes=(1 << 30) + 1), altered(uncompressed_bytes=1 << 62),
        altered(chunks=0), altered(chunks=-1), altered(chunks=4), altered(chunks=1 << 40), altered(chunks=2.0),
        altered(measured=3), altered(measured=-1), altered(measured=1.0), altered(measured=None),
        altered(reason=7), altered(reason="\x1b[2J"), altered(reason="a\nb"), altered(reason="\ud800"),
        altered(reason="x" * 1001),
        altered(kind="gone"), altered(kind="other"), altered(kind="other", codec="", uncompressed_bytes=0),
        altered(kind="other", codec="", uncompressed_bytes=0, chunks=0),
        altered(kind="gone", read_until_ns=0, codec="", chunks=0),
        altered(kind="undecodable", uncompressed_bytes=0, chunks=0, codec=""),
    ],
    ids=lambda sent: repr(sent.removeprefix(b'{"kind": "layer", '))[:60],
)  # fmt: skip
def test_what_no_worker_says_is_a_value_error(pair: Pair, sent: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        pair.said(sent + RECIPE.hashes + RECIPE.lengths + RECIPE.measured)


@pytest.mark.parametrize(
    ("changes", "record"),
    [
        ({}, MANIFEST[:-1]), ({}, MANIFEST + b"\0"), ({}, b"garbage"), ({}, b""),
        ({"reason": "config"}, MANIFEST), ({"reason": "JSON"}, MANIFEST), ({"reason": ""}, MANIFEST),
        ({"kind": "mismatched"}, MANIFEST), ({"kind": "gone", "read_until_ns": 0}, MANIFEST),
        ({"manifest_bytes": -1}, MANIFEST), ({"manifest_bytes": None}, MANIFEST), ({"manifest_bytes": 1.0}, MANIFEST),
        ({"manifest_bytes": MARK.stored_bytes + 65}, MANIFEST),
    ],
)  # fmt: skip
def test_a_record_that_is_not_of_such_a_blob_is_a_value_error(
    pair: Pair, changes: dict[str, object], record: bytes
) -> None:
    head = {
        "kind": "other", "codec": "", "uncompressed_bytes": 0, "chunks": 0, "measured": 0, "reason": "image",
        "manifest_bytes": len(record),
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=r"\w"):
        pair.said(altered(**head) + record)


def test_each_job_has_its_own_findings_and_none_has_none(pair: Pair) -> None:
    with pytest.raises(ValueError, match="another kind"):
        pair.said(altered() + RECIPE.hashes + RECIPE.lengths + RECIPE.measured, HASH_JOB)
    with pytest.raises(ValueError, match="without a job"):
        pair.said(b"{", None)


def test_how_large_a_layer_may_be_is_its_openers_word(pair: Pair) -> None:
    """A worker could claim any size, and have the daemon wait for a recipe that fills its memory. The disk is not asked
    again: a layer that is unlinked as its worker ends would have no size there, and an honest worker be blamed for it.
    """
    for stored_bytes, most_bytes, most in (
        (0, 1 << 30, 1 << 19), (1 << 20, 2000 << 20, 2000 << 9), (1 << 40, 256 << 30, 1 << 24),
    ):  # fmt: skip
        job = dataclasses.replace(JOB, mark=MARK._replace(stored_bytes=stored_bytes))
        for size, chunks in ((most_bytes + 1, 1), (most_bytes, most + 1)):
            with pytest.raises(ValueError, match="of at most"):
                pair.said(altered(uncompressed_bytes=size, chunks=chunks), job)
    assert pair.said(altered(uncompressed_bytes=most_bytes, chunks=most), job) is None


def test_no_more_is_held_than_a_recipe_and_one_reading(pair: Pair) -> None:
    pair.said(altered())
    held = pair.daemon._heard  # noqa: SLF001
    pair.raw.sendall(bytes(200_000))
    pair.daemon.read()
    assert len(held) <= 44 + RECEIVE_BYTES
    assert pair.daemon.word(JOB) is not None
    with pytest.raises(ValueError, match="without a job"):
        pair.daemon.word(None)


WORDS = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*HEAD, "read_bytes"]), inner),
        max_leaves=8,
    ).map(lambda said: json.dumps(said).encode() + b"\n"),
    st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["layer", "other", "matched", "gone", "undecodable", "unreadable", "mismatched"]),
            "read_until_ns": st.integers(-1, 1 << 70) | st.integers(0, 1),
            "codec": st.sampled_from(CODECS),
            "uncompressed_bytes": st.integers(-1, 1 << 70) | st.integers(0, 100_000),
            "reason": st.text(max_size=20),
            "chunks": st.integers(-1, 1 << 70) | st.integers(0, 50),
        },
    ).map(lambda changes: altered(**changes)),
)


@settings(max_examples=counted(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=5), st.sampled_from([JOB, HASH_JOB]))
def test_whatever_is_sent_is_a_word_that_can_be_counted_or_a_value_error(sent: list[bytes], job: Job) -> None:
    ours, theirs = socket.socketpair()
    daemon = DaemonsEnd(ours, PARAMS, CAPS)
    with theirs:
        theirs.sendall(b"".join(sent) + bytes(2000))
        daemon.read()
    try:
        while (said := daemon.word(job)) is not None:
            if isinstance(said, Finding):
                assert len(said.recipe.hashes) == 16 * len(said.recipe) <= 16 * 50
                assert (said.kind == "layer") == bool(said.recipe)
                assert said.uncompressed_bytes <= 1 << 30
                assert 0 <= said.read_until_ns < 1 << 64
            else:
                assert 0 <= said < 1 << 64
    except ValueError:
        pass
    finally:
        daemon.close()
