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
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import blobs
import oracle
import working
from chunkd.model import Caps, ChunkParams, Digest, FileMark, Finding, Job, MeasureRule, Recipe
from chunkd.worker import decode, magic, protocol
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
    return worker.examine(Job(digest, str(path), decode, relayed=True), PARAMS, caps, progress)


@pytest.fixture(autouse=True, params=(0, 1 << 62), ids=("relayed", "in one thread"))
def relayed_from(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing but time depends on whether a second thread cuts and hashes."""
    monkeypatch.setattr(worker, "RELAYED_FROM_BYTES", request.param)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands at a second after everything in this test was written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 1_000_000_000)


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


def mark_of(path: Path) -> FileMark:
    status = path.stat()
    return FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


STREAMS = {
    "tar": ("tar", LAYER),
    "gzip": ("gzip", blobs.gz(LAYER)),
    "estargz": ("gzip", blobs.estargz(LAYER)),
    "zstd": ("zstd", blobs.zst(LAYER)),
    "zstd_chunked": ("zstd", blobs.zstd_chunked(LAYER)),
}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_layer_is_its_recipe(stream: str, algorithm: str, tmp_path: Path) -> None:
    codec, stored = STREAMS[stream]
    digest, path = blobs.write_blob(tmp_path, stored, algorithm)
    expected = Finding("layer", mark_of(path), codec, len(LAYER), recipe=oracle.recipe(LAYER))
    assert len(expected.recipe) > 10
    assert examine(digest, path) == expected
    assert examine(digest, path, decode=False) == Finding("matched", mark_of(path))


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (b"", "empty"),
        (b'{"schemaVersion": 2}', "image manifest or index"),
        (blobs.noise(3_000_000), magic.UNKNOWN),
        (blobs.gz(b""), "gzip of no bytes"),
        (blobs.zst(b""), "zstd of no bytes"),
    ],
)
def test_other_bytes_are_no_layer_and_named(stored: bytes, what: str, tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, stored)
    assert examine(digest, path) == Finding("other", mark_of(path), reason=what)
    assert examine(digest, path, decode=False) == Finding("matched", mark_of(path))


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
        job = Job(digest, str(path))
        finding = worker.examine(replace(job, relayed=allowed), PARAMS, Caps(), lambda _: None)
        assert (finding.recipe, len(relays)) == (oracle.recipe(data), used)


@pytest.mark.usefixtures("later")
def test_a_mismatch_outranks_a_failure_to_decode(tmp_path: Path) -> None:
    whole = blobs.gz(blobs.tar({"large": blobs.noise(3_000_000)}))
    for stored in (whole, whole[:-1], whole + b"trailing garbage", whole[:1000] + b"damage" + whole[1006:], b"{}", b""):
        digest, path = blobs.write_blob(tmp_path, stored)
        wrong = blobs.digest_of(b"something else")
        for decodes in (True, False):
            assert examine(wrong, path, decode=decodes) == Finding("mismatched", mark_of(path))
        assert examine(digest, path).kind in ("layer", "undecodable", "other")


@pytest.mark.usefixtures("later")
def test_matching_bytes_that_do_not_decode(tmp_path: Path) -> None:
    whole = blobs.zst(LAYER)
    for stored, caps, reason in (
        (whole[:-1], Caps(), "truncated"),
        (whole, Caps(uncompressed_bytes=len(LAYER) - 1), f"max_uncompressed_bytes = {len(LAYER) - 1}"),
        (blobs.zst(LAYER, window_log=21), Caps(zstd_window_bytes=1 << 20), "max_zstd_window_bytes = 1048576"),
    ):
        digest, path = blobs.write_blob(tmp_path, stored)
        found = examine(digest, path, caps=caps)
        assert found == Finding("undecodable", mark_of(path), codec="zstd", reason=found.reason)
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


@pytest.fixture
def irregular(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Everything but a regular file, each under the name of a blob that it could be taken for."""
    _, path = blobs.write_blob(tmp_path, LAYER)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # a socket's path has 104 characters at most
        listener.bind("socket")
        os.chdir(here)
        yield {
            "symbolic link": tmp_path / "link",
            "directory": tmp_path / "folder",
            "FIFO": tmp_path / "fifo",
            "socket": tmp_path / "socket",
            "device": Path(os.devnull),
        }


def test_nothing_but_regular_files_is_opened(irregular: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments))
    for reason, path in irregular.items():
        for decodes in (True, False):
            assert examine(blobs.digest_of(LAYER), path, decode=decodes) == Finding("ignored", reason=reason)
    assert not opened


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that hangs fails after 20 s."""

    def too_late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("in_time")
def test_what_is_put_in_a_files_place_before_the_open_is_not_read(
    irregular: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.lstat(__file__)
    monkeypatch.setattr(os, "lstat", lambda _: regular)
    # The FIFO has no writer: an open without O_NONBLOCK would wait for ever.
    for kind in ("FIFO", "device"):
        assert examine(blobs.digest_of(LAYER), irregular[kind]) == Finding("ignored", reason=kind)
    for kind in ("symbolic link", "directory", "socket"):
        assert examine(blobs.digest_of(LAYER), irregular[kind]).kind == "unreadable"


def test_no_file_is_gone(tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, LAYER)
    assert examine(digest, tmp_path / "missing") == Finding("gone")
    assert examine(digest, path / "data") == Finding("gone")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE, errno.ECONNRESET])
def test_a_file_that_can_not_be_read_is_no_bad_blob(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))

    def fail(*_: object) -> int:
        raise OSError(code, "in the test's words")

    for owner, name in ((os, "lstat"), (os, "open"), (decode.Source, "readinto"), (decode.Source, "drain")):
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


def test_a_mark_is_no_proof_right_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, path = blobs.write_blob(tmp_path, LAYER)
    mark = mark_of(path)
    for after_ns, ctime_ns in ((50_000_000, mark.ctime_ns), (49_999_999, 0), (0, 0), (-10_000_000_000, 0)):
        monkeypatch.setattr(time, "time_ns", lambda after_ns=after_ns: mark.ctime_ns + after_ns)
        for decodes in (True, False):
            assert examine(digest, path, decode=decodes).mark == mark._replace(ctime_ns=ctime_ns)


@pytest.mark.usefixtures("later", "eager")
class TestAFileThatChangesWhileItIsRead:
    def test_matching_bytes_hold_whatever_happens_to_the_path(self, tmp_path: Path) -> None:
        digest, path = blobs.write_blob(tmp_path, blobs.gz(LAYER))
        mark = mark_of(path)

        def replace(_: int) -> None:
            (tmp_path / "new").write_bytes(b"new")
            (tmp_path / "new").replace(path)

        finding = examine(digest, path, progress=lambda _: path.chmod(0o600))
        assert (finding.kind, finding.recipe) == ("layer", oracle.recipe(LAYER))
        assert finding.mark == mark._replace(ctime_ns=0)
        assert examine(digest, path, progress=replace) == Finding("gone")

    @pytest.mark.parametrize("decodes", [True, False])
    def test_a_file_cut_short_mismatches(self, decodes: bool, tmp_path: Path) -> None:
        stored = blobs.gz(blobs.tar({"large": blobs.noise(3_000_000)}))
        digest, path = blobs.write_blob(tmp_path, stored)
        finding = examine(digest, path, decode=decodes, progress=lambda _: os.truncate(path, 2_000_000))
        assert finding.kind == "mismatched"
        assert finding.mark == mark_of(path)._replace(ctime_ns=0)

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

    def test_stored_bytes_are_those_that_were_hashed(self, tmp_path: Path) -> None:
        digest, path = blobs.write_blob(tmp_path, blobs.noise(80_000))
        with at_the_first_end(lambda: path.write_bytes(blobs.noise(80_004))):
            finding = examine(digest, path, decode=False)
        assert path.stat().st_size == 80_004
        assert (finding.kind, finding.mark) == ("matched", mark_of(path)._replace(stored_bytes=80_000, ctime_ns=0))


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


class Worker:
    """A worker's process as the daemon has it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        settings = [json.dumps(asdict(value)) for value in (PARAMS, Caps(), MeasureRule())]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chunkd.worker.examine", str(theirs.fileno()), *settings, "0"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        self.raw = ours.dup()
        self.connection = protocol.DaemonsEnd(ours, PARAMS, Caps())

    def finding(self, digest: Digest, path: Path) -> Finding:
        return working.finding(self.connection, Job(digest, str(path), relayed=True))

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
        assert finding.mark is not None
        assert finding.mark._replace(ctime_ns=0) == mark_of(path)._replace(ctime_ns=0)
    assert process.finding(digest, tmp_path / "missing") == Finding("gone", recipe=Recipe())
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
    job = Job(blobs.digest_of(b""), str(path))
    process.connection.send_job(job)
    told = working.word(process.connection, job)
    assert isinstance(told, int)
    assert told > 0
    process.leave()
    assert process.end() == (0, "")


def test_a_bug_ends_the_process_loudly(process: Worker) -> None:
    process.raw.sendall(b'{"no": "job"}\n')
    code, stderr = process.end()
    assert code == 1
    assert "Traceback" in stderr


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
