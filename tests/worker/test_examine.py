from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import blobs
import oracle
import working
from chunkd.model import Caps, ChunkParams, Digest, FileMark, Finding, Job, MeasureRule
from chunkd.worker import decode, magic, manifest, manifest_record, protocol
from chunkd.worker import examine as worker
from chunkd.worker.pipeline import Relay

PARAMS = ChunkParams()
LAYER = blobs.layer()


def examine(
    digest: Digest,
    path: Path,
    *,
    decode: bool = True,
    caps: Caps = Caps(),
    progress: Callable[[int], object] = lambda _: None,
) -> Finding:
    """Without the time of reading, which must be that of this call where all was read, and only there."""
    begun_ns = time.time_ns()
    found = working.examined(digest, path, decode=decode, relayed=True, caps=caps, progress=progress)
    if found.kind in ("gone", "unreadable"):
        assert found.read_until_ns == 0
    else:
        assert begun_ns <= found.read_until_ns <= time.time_ns()
    return replace(found, read_until_ns=0)


@pytest.fixture(autouse=True, params=(0, 1 << 62), ids=("relayed", "in one thread"))
def relayed_from(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing but time depends on whether a second thread cuts and hashes."""
    monkeypatch.setattr(worker, "RELAYED_FROM_BYTES", request.param)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told at each read."""
    monkeypatch.setattr(worker, "_PROGRESS_S", 0)


@contextlib.contextmanager
def at_the_first_end(change: Callable[[], object]) -> Iterator[None]:
    """Something happens to the file right after a read has met its end."""
    changes = [change]

    class Ending(decode.Source):
        def _read(self, view: memoryview) -> int:
            got = super()._read(view)
            if not got and changes:
                changes.pop()()
            return got

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker, "Source", Ending)
        yield


STREAMS = {
    "tar": ("tar", LAYER),
    "gzip": ("gzip", blobs.gz(LAYER)),
    "estargz": ("gzip", blobs.estargz(LAYER)),
    "zstd": ("zstd", blobs.zst(LAYER)),
    "zstd_chunked": ("zstd", blobs.zstd_chunked(LAYER)),
}


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_layer_is_its_recipe(stream: str, algorithm: str, tmp_path: Path) -> None:
    codec, stored = STREAMS[stream]
    digest, path = blobs.write_blob(tmp_path, stored, algorithm)
    expected = Finding("layer", codec, len(LAYER), recipe=oracle.recipe(LAYER))
    assert len(expected.recipe) > 10
    assert examine(digest, path) == expected
    assert examine(digest, path, decode=False) == Finding("matched")


def manifest_of(size: int) -> bytes:
    """An image's manifest of so many bytes."""
    config = json.dumps({"config": {"digest": f"sha256:{1:064x}"}, "layers": [{"digest": f"sha256:{2:064x}"}]}).encode()
    return config[:-1].ljust(size - 1) + b"}"


@pytest.mark.parametrize("size", [300, magic.HEAD_BYTES, magic.HEAD_BYTES + 1, 300_000, manifest.MOST_BYTES])
def test_what_a_manifest_says_comes_with_it(size: int, tmp_path: Path) -> None:
    stored = manifest_of(size)
    digest, path = blobs.write_blob(tmp_path, stored)
    said = manifest.parse(stored)
    assert (said.kind, len(said.edges)) == (manifest.Kind.IMAGE, 2)
    assert examine(digest, path) == Finding("other", reason="image", manifest=manifest_record.encode(said))
    assert examine(digest, path, decode=False) == Finding("matched")


def test_what_is_larger_than_a_manifest_may_be_is_not_parsed(tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, manifest_of(manifest.MOST_BYTES + 1))
    assert examine(digest, path) == Finding("other", reason="JSON")


def test_a_manifest_that_is_not_its_name_says_nothing(tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, manifest_of(300))
    path.write_bytes(manifest_of(301))
    assert examine(digest, path) == Finding("mismatched")


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (b"", "empty"),
        (b'{"schemaVersion": 2}', "JSON"),
        (blobs.noise(3_000_000), magic.UNKNOWN),
        (blobs.gz(b""), "gzip of no bytes"),
        (blobs.zst(b""), "zstd of no bytes"),
    ],
)
def test_other_bytes_are_no_layer_and_named(stored: bytes, what: str, tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, stored)
    assert examine(digest, path) == Finding("other", reason=what)
    assert examine(digest, path, decode=False) == Finding("matched")


def test_many_buffers_are_one_stream(tmp_path: Path) -> None:
    data = blobs.tar({"large": blobs.text(5_000_000)})
    digest, path = blobs.write_blob(tmp_path, blobs.gz(data))
    finding = examine(digest, path)
    assert finding.uncompressed_bytes == len(data) > 4 * decode.BUFFER_BYTES
    assert finding.recipe == oracle.recipe(data)


def test_a_second_thread_is_for_large_blobs_and_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relays: list[object] = []

    class Counted(Relay):
        def __init__(self, feed: Callable[[memoryview], object]) -> None:
            super().__init__(feed)
            relays.append(self)

    monkeypatch.setattr(worker, "Relay", Counted)
    data = blobs.tar({"large": blobs.noise(100_000)})
    digest, path = blobs.write_blob(tmp_path, blobs.gz(data))
    for from_bytes, allowed, used in (
        (path.stat().st_size, True, 1), (path.stat().st_size + 1, True, 0), (0, False, 0), (0, True, 1),
    ):  # fmt: skip
        monkeypatch.setattr(worker, "RELAYED_FROM_BYTES", from_bytes)
        relays.clear()
        finding = working.examined(digest, path, relayed=allowed)
        assert (finding.recipe, len(relays)) == (oracle.recipe(data), used)


def test_a_mismatch_outranks_a_failure_to_decode(tmp_path: Path) -> None:
    whole = blobs.gz(blobs.tar({"large": blobs.noise(3_000_000)}))
    for stored in (whole, whole[:-1], whole + b"trailing garbage", whole[:1000] + b"damage" + whole[1006:], b"{}", b""):
        digest, path = blobs.write_blob(tmp_path, stored)
        wrong = blobs.digest_of(b"something else")
        for decodes in (True, False):
            assert examine(wrong, path, decode=decodes) == Finding("mismatched")
        assert examine(digest, path).kind in ("layer", "undecodable", "other")


def test_matching_bytes_that_do_not_decode(tmp_path: Path) -> None:
    whole = blobs.zst(LAYER)
    for stored, caps, reason in (
        (whole[:-1], Caps(), "truncated"),
        (whole, Caps(uncompressed_bytes=len(LAYER) - 1), f"max_uncompressed_bytes = {len(LAYER) - 1}"),
        (blobs.zst(LAYER, window_log=21), Caps(zstd_window_bytes=1 << 20), "max_zstd_window_bytes = 1048576"),
    ):
        digest, path = blobs.write_blob(tmp_path, stored)
        found = examine(digest, path, caps=caps)
        assert found == Finding("undecodable", codec="zstd", reason=found.reason)
        assert reason in found.reason


def test_a_blob_of_too_many_chunks_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the cap has cuts by chance: without this, a hostile 256 GiB would be 134 million chunks of 2 KiB."""
    assert Caps().most_chunks(PARAMS) == 1 << 24
    assert Caps(uncompressed_bytes=1).most_chunks(PARAMS) == 1 << 19
    data = blobs.tar({"large": blobs.noise(3_000_000)})
    chunks = len(oracle.recipe(data))
    digest, path = blobs.write_blob(tmp_path, blobs.gz(data))
    for most in (1, 10, chunks - 1, chunks):
        monkeypatch.setattr(Caps, "most_chunks", lambda *_, most=most: most)
        finding = examine(digest, path)
        if most < chunks:
            assert (finding.kind, finding.codec) == ("undecodable", "gzip")
            assert f"{most} chunks" in finding.reason
            assert f"max_uncompressed_bytes = {Caps().uncompressed_bytes}" in finding.reason
            assert examine(blobs.digest_of(b"another"), path).kind == "mismatched"
        else:
            assert (finding.kind, len(finding.recipe)) == ("layer", chunks)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE, errno.ECONNRESET])
def test_a_file_that_can_not_be_read_is_no_bad_blob(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))

    def fail(*_: object) -> int:
        raise OSError(code, "in the test's words")

    for owner, name in ((decode.Source, "readinto"), (decode.Source, "drain")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            assert examine(digest, path) == Finding("unreadable", reason=os.strerror(code)), name


def test_a_bug_is_not_taken_for_a_bad_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))
    for bug in (RuntimeError("bug"), io.UnsupportedOperation("bug"), MemoryError("bug")):

        def fail(*_: object, bug: Exception = bug) -> int:
            raise bug

        with monkeypatch.context() as patched:
            patched.setattr(decode.Source, "readinto", fail)
            with pytest.raises(type(bug), match="bug"):
                examine(digest, path)


@pytest.mark.usefixtures("eager")
class TestAFileThatChangesWhileItIsRead:
    def test_matching_bytes_hold_whatever_happens_to_the_path(self, tmp_path: Path) -> None:
        digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))

        def replace(_: int) -> None:
            (tmp_path / "new").write_bytes(b"new")
            (tmp_path / "new").replace(path)

        finding = examine(digest, path, progress=lambda _: path.chmod(0o600))
        assert (finding.kind, finding.recipe) == ("layer", oracle.recipe(LAYER))
        assert examine(digest, path, progress=replace) == Finding("gone")

    @pytest.mark.parametrize("decodes", [True, False])
    def test_a_file_cut_short_mismatches(self, decodes: bool, tmp_path: Path) -> None:
        stored = blobs.gz(blobs.tar({"large": blobs.noise(3_000_000)}))
        digest, path = blobs.write_blob(tmp_path, stored)
        finding = examine(digest, path, decode=decodes, progress=lambda _: os.truncate(path, 2_000_000))
        assert finding.kind == "mismatched"

    @pytest.mark.parametrize(
        ("early", "late"),
        [
            (blobs.gz(LAYER), blobs.gz(LAYER)),
            (blobs.zst(LAYER), blobs.zst(LAYER)),
            (blobs.gz(LAYER)[:2000], blobs.gz(LAYER)[2000:]),
            (blobs.gz(LAYER)[:2], blobs.gz(LAYER)[2:]),
            (LAYER[:5000], LAYER[5000:]),
        ],
    )
    def test_what_comes_after_the_end_was_met_is_not_left_out(self, early: bytes, late: bytes, tmp_path: Path) -> None:
        digest = blobs.digest_of(early + late)
        path = tmp_path / digest.hex
        path.write_bytes(early)
        with at_the_first_end(lambda: path.write_bytes(early + late)):
            finding = examine(digest, path)
        assert (finding.kind, finding.reason) == ("mismatched", "changed while it was read")
        path.write_bytes(early)
        with at_the_first_end(lambda: path.write_bytes(early + late)):
            assert examine(digest, path, decode=False).kind in ("matched", "mismatched")
        assert examine(digest, path).kind == "layer"

    def test_a_part_that_was_whole_for_a_moment_is_not_taken_for_the_blob(self, tmp_path: Path) -> None:
        member = blobs.gz(blobs.tar({"large": blobs.noise(100_000)}))
        digest, path = blobs.write_blob(tmp_path, member * 2)

        def cut_once(read_bytes: int) -> None:
            if read_bytes == magic.HEAD_BYTES:
                os.truncate(path, len(member))

        with at_the_first_end(lambda: path.write_bytes(member * 2)):
            finding = examine(digest, path, progress=cut_once)
        assert (finding.kind, finding.reason) == ("mismatched", "changed while it was read")

    @pytest.mark.parametrize("decodes", [True, False])
    @pytest.mark.parametrize("seen_bytes", [0, 4999, 5001, 1 << 20])
    def test_matching_bytes_must_be_as_many_as_their_opener_saw(
        self, seen_bytes: int, decodes: bool, tmp_path: Path
    ) -> None:
        """The file grew or shrank before the worker had it."""
        digest, path = blobs.write_blob(tmp_path, blobs.noise(5000))
        descriptor, mark = working.opened(path)
        job = Job(digest, mark._replace(stored_bytes=seen_bytes), decodes)
        finding = worker.examine(job, descriptor, PARAMS, Caps(), lambda _: None)
        assert (finding.kind, finding.reason) == ("mismatched", "changed while it was read")
        assert finding.read_until_ns


@pytest.mark.parametrize("stream", STREAMS)
def test_a_layer_may_come_through_a_pipe(stream: str) -> None:
    codec, stored = STREAMS[stream]
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(stored)

    writer = threading.Thread(target=write)
    writer.start()
    job = Job(blobs.digest_of(stored), FileMark(0, 0, len(stored), 0))
    finding = worker.examine(job, reading, PARAMS, Caps(), lambda _: None)
    writer.join()
    assert (finding.kind, finding.codec, finding.recipe) == ("layer", codec, oracle.recipe(LAYER))


def test_a_pipe_that_does_not_wait_has_no_end() -> None:
    """No byte yet is not the end: what came so far would pass for the blob."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.write(writing, b"half")
    job = Job(blobs.digest_of(b"half"), FileMark(0, 0, 4, 0))
    assert worker.examine(job, reading, PARAMS, Caps(), lambda _: None) == Finding(
        "unreadable", reason=os.strerror(errno.EAGAIN)
    )
    os.close(writing)


def test_the_descriptor_is_closed_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))
    before = set(os.listdir("/dev/fd"))
    for caps in (Caps(), Caps(uncompressed_bytes=1)):
        examine(digest, path, caps=caps)
    monkeypatch.setattr(decode.Source, "readinto", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        examine(digest, path)
    assert set(os.listdir("/dev/fd")) == before


def test_progress_is_told_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, blobs.noise(20_000_000))
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds) / 10)
    seen: list[int] = []
    assert examine(digest, path, progress=seen.append).kind == "other"
    looks = next(seconds)
    assert looks > 20
    assert len(seen) == (looks - 1) // 5
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] <= 20_000_000


# --- the process ---------------------------------------------------------------------------------------------------


SERVE = "import sys; from chunkd.worker import examine; examine.main(sys.argv[1:])"


class Worker:
    """A worker's process as the daemon has it, but that it is started by itself."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        settings = [json.dumps(asdict(value)) for value in (PARAMS, Caps(), MeasureRule())]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(theirs.fileno()), *settings, "0"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.raw = ours.dup()
        self.connection = protocol.DaemonsEnd(ours, PARAMS, Caps())

    def finding(self, digest: Digest, path: Path) -> Finding:
        return working.finding(self.connection, digest, path, relayed=True)

    def leave(self) -> None:
        self.connection.close()
        self.raw.close()

    def end(self) -> tuple[int, str]:
        return working.ended(self.process)


@pytest.fixture
def process() -> Iterator[Worker]:
    running = Worker()
    yield running
    running.leave()
    running.process.kill()
    running.process.communicate()


def test_a_process_serves_jobs_until_the_daemon_goes(process: Worker, tmp_path: Path) -> None:
    for _, stored in STREAMS.values():
        digest, path = blobs.write_blob(tmp_path, stored)
        finding = process.finding(digest, path)
        assert (finding.kind, finding.recipe) == ("layer", oracle.recipe(LAYER))
    process.leave()
    assert process.end() == (0, "")


def test_a_process_leaves_ctrl_c_to_the_daemon(process: Worker, tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, LAYER)
    assert process.finding(digest, path).kind == "layer"
    process.process.send_signal(signal.SIGINT)
    assert process.finding(digest, path).kind == "layer"
    process.process.terminate()
    assert process.end() == (-signal.SIGTERM, "")


def test_a_killed_process_is_an_end_of_file(process: Worker, tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, LAYER)
    assert process.finding(digest, path).kind == "layer"
    process.process.kill()
    process.process.wait()
    with pytest.raises((EOFError, ConnectionError)):
        process.finding(digest, path)


def test_a_process_whose_daemon_goes_in_the_middle_of_a_job_ends_quietly(process: Worker, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 200 << 30)  # minutes of reading, no space on the disk
    job = working.give(process.connection.send_job, blobs.digest_of(b""), path)
    told = working.word(process.connection, job)
    assert isinstance(told, int)
    assert told > 0
    process.leave()
    assert process.end() == (0, "")


def test_a_bug_ends_the_process_loudly(process: Worker) -> None:
    """Though it can't open its own source for the traceback."""
    process.raw.sendall(b'{"no": "job"}\n')
    code, stderr = process.end()
    assert code == 1
    assert "Traceback" in stderr
    assert "ValueError" in stderr
    assert "in receive_job" in stderr


def test_a_worker_imports_little() -> None:
    heavy = ["lmdb", "numpy", "click", "rich", "watchdog", "http", "asyncio", "sqlite3"]
    code = f"import sys, chunkd.worker.examine; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_a_file_larger_than_any_layer_may_be_is_not_read(tmp_path: Path) -> None:
    """Or a sparse file of terabytes would hold a worker for hours."""
    digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))
    size = path.stat().st_size
    found = examine(digest, path, caps=Caps(uncompressed_bytes=size - 1))
    assert found == Finding("unreadable", reason=found.reason)
    assert found.reason.endswith(f"max_uncompressed_bytes = {size - 1}")
    os.truncate(path, 1 << 42)
    assert examine(digest, path, decode=False).kind == "unreadable"


@pytest.mark.usefixtures("eager")
def test_a_file_that_is_unlinked_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 200 << 30)
    assert examine(blobs.digest_of(b""), path, progress=lambda _: path.unlink(missing_ok=True)) == Finding("gone")
