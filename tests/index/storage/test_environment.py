"""The environment under the index: its locks, reading beside and without a writer, and walking its tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chunkd.errors import BadIndex, IndexBusy, IndexDamaged, IndexMissing, IndexUnreachable, ProcessNumberTaken
from chunkd.index import records
from chunkd.index.index import Index
from chunkd.index.records import Held, Rules
from chunkd.index.storage import environment, lock
from chunkd.index.storage.environment import Store, reading
from chunkd.index.storage.lock import IndexLock
from chunkd.model import MAX_PATH_BYTES, Blob, Cache, Digest, FileMark, Place, Recipe
from indexing import Bench, chunks_of, edit, recounted

WRITER = "chunkd run (pid 1)"
PAGE_BYTES = 4096


@contextlib.contextmanager
def waits_for(monkeypatch: pytest.MonkeyPatch, end: contextlib.ExitStack) -> Iterator[list[float]]:
    """While a lock is waited for, the first wait lets `end` happen; the lengths of the waits."""
    waited_s: list[float] = []

    def sleep(duration_s: float) -> None:
        waited_s.append(duration_s)
        end.close()

    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        yield waited_s


# --- the lock -------------------------------------------------------------------------------------------------------


def test_a_process_of_the_same_number_in_another_container_is_named(bench: Bench) -> None:
    path = bench.index.store.path
    bench.close()
    # LMDB locks the byte of LOCK that a process's number counts to, and asks the kernel who is alive.
    hold = (
        "import fcntl, sys; lock = open(sys.argv[1], 'r+b'); fcntl.lockf(lock, fcntl.LOCK_EX, 1, int(sys.argv[2]));"
        " print(flush=True); input()"
    )
    command = [sys.executable, "-c", hold, f"{path}/lock.mdb", str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for readonly in (False, True):
            with pytest.raises(ProcessNumberTaken, match=f"process {os.getpid()} "):
                Store(path, readonly=readonly)
        other.communicate(b"\n")
    Store(path, readonly=True).close()


def test_there_is_one_writer_and_others_are_told_its_name(tmp_path: Path) -> None:
    with IndexLock(str(tmp_path), exclusive=True, holder="chunkd run"):
        for exclusive in (True, False):
            with pytest.raises(IndexBusy) as caught:
                IndexLock(str(tmp_path), exclusive=exclusive, holder="chunkd scan")
            assert caught.value.holder == f"chunkd run (pid {os.getpid()})"
    with IndexLock(str(tmp_path), exclusive=True, holder="chunkd scan"):
        pass
    assert (tmp_path / "lock").read_bytes() == b""


def test_readers_share_and_leave_no_name(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with IndexLock(str(tmp_path), exclusive=False), IndexLock(str(tmp_path), exclusive=False):
        assert (tmp_path / "lock").read_bytes() == b""


def test_a_reader_needs_a_lock_file_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing):
        IndexLock(str(tmp_path), exclusive=False)
    assert not list(tmp_path.iterdir())


def test_a_reader_that_ends_lets_a_new_writer_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").touch()
    reader = contextlib.ExitStack()
    reader.enter_context(IndexLock(str(tmp_path), exclusive=False))
    with waits_for(monkeypatch, reader) as waited_s, IndexLock(str(tmp_path), exclusive=True, holder="x"):
        assert len(waited_s) == 1


def test_readers_keep_a_writer_waiting_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").touch()
    clock_s = [0.0]

    def sleep(duration_s: float) -> None:
        clock_s[0] += duration_s

    with IndexLock(str(tmp_path), exclusive=False), monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", lambda: clock_s[0])
        with pytest.raises(IndexBusy, match="a reader"):
            IndexLock(str(tmp_path), exclusive=True, holder="x")
    assert lock.LOCK_WAIT_S <= clock_s[0] < lock.LOCK_WAIT_S + 1


def test_the_name_of_a_writer_that_was_killed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is still in the file, and a reader has it locked: that is waited for as any reader is."""
    (tmp_path / "lock").write_text(WRITER)
    reader = contextlib.ExitStack()
    reader.enter_context(IndexLock(str(tmp_path), exclusive=False))
    with waits_for(monkeypatch, reader) as waited_s, IndexLock(str(tmp_path), exclusive=True, holder="x"):
        assert len(waited_s) == 1
        assert (tmp_path / "lock").read_text() == f"x (pid {os.getpid()})"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Whatever ended it: no name that is left behind has to be cleaned up."""
    code = (
        "import os, sys; from chunkd.index.storage.lock import IndexLock;"
        "IndexLock(sys.argv[1], exclusive=True, holder='killed'); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert ended.returncode == -9
    assert (tmp_path / "lock").read_text().startswith("killed (pid ")
    with IndexLock(str(tmp_path), exclusive=True, holder="x"):
        pass


def test_a_lock_is_not_followed_to_another_file(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(IndexUnreachable):
        IndexLock(str(tmp_path), exclusive=True, holder="x")
    assert (tmp_path / "precious").read_text() == "precious"


# --- reading --------------------------------------------------------------------------------------------------------


def layers(opened: Store) -> int:
    with opened.env.begin() as txn:
        opened.check_format(txn, None)
        return opened.head(txn).totals.layers


def test_an_index_is_read_when_nobody_writes_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_WAIT_S", 0.0)
    bench.add(1, chunks_of(range(5)))
    bench.close()
    before = sorted(path.name for path in (bench.state_dir / "index").iterdir())
    with reading(str(bench.state_dir)) as opened:
        assert layers(opened) == 1
        assert opened.index_bytes() == (bench.state_dir / "index" / "data.mdb").stat().st_size
        with pytest.raises(IndexBusy, match="a reader"):
            Index(str(bench.state_dir), Rules(), "a writer")
    assert sorted(path.name for path in (bench.state_dir / "index").iterdir()) == before


def test_an_index_is_read_beside_its_writer(bench: Bench) -> None:
    """From another process: LMDB opens an environment once in each."""
    bench.add(1, chunks_of(range(5)))
    code = (
        "import sys; from chunkd.index.storage.environment import reading\n"
        "with reading(sys.argv[1]) as store, store.env.begin() as txn: print(store.head(txn).totals.layers)"
    )
    for number in (2, 3):
        bench.add(number, chunks_of(range(number, 50)))
        read = subprocess.run(
            [sys.executable, "-c", code, str(bench.state_dir)], check=True, timeout=60, capture_output=True, text=True
        )
        assert (read.stdout, read.stderr) == (f"{number}\n", "")


def test_where_there_is_no_index_it_is_said_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing), reading(str(tmp_path)):
        pass
    with pytest.raises(IndexMissing), reading(str(tmp_path / "none")):
        pass
    (tmp_path / "lock").touch()
    with pytest.raises(IndexMissing), reading(str(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_index_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    """A writer that was killed while it made the index has left none."""
    Store(str(tmp_path / "index.new"), readonly=False).close()
    (tmp_path / "lock").touch()
    with pytest.raises(IndexMissing), reading(str(tmp_path)):
        pass
    with recounted(tmp_path):
        assert not (tmp_path / "index.new").exists()


def test_an_environment_without_a_format_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    Store(str(tmp_path / "index"), readonly=False).close()
    with reading(str(tmp_path)) as opened, pytest.raises(IndexDamaged, match="format"):
        layers(opened)
    with pytest.raises(IndexDamaged, match="format"):
        Index(str(tmp_path), Rules(), "a test")


@pytest.mark.parametrize("content", [b"", b"x", bytes(8192), b"no such thing " * 1000], ids=len)
def test_a_file_that_is_no_index_is_a_bad_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(content)
    with pytest.raises(BadIndex), reading(str(tmp_path)):
        pass


def test_a_record_that_is_no_blob_is_damage_with_a_name(bench: Bench) -> None:
    bench.add(1, chunks_of(range(5)))
    bench.close()
    edit(bench.state_dir, "blobs", b"\1" + bytes(32), b"garbage")
    with (
        reading(str(bench.state_dir)) as opened,
        pytest.raises(IndexDamaged, match="7 bytes are not a blob record"),
        opened.guarded(),
        opened.env.begin() as txn,
    ):
        list(opened.blobs(txn, "blobs"))
    edit(bench.state_dir, "blobs", b"\1" + bytes(32), None)


# --- walking --------------------------------------------------------------------------------------------------------


def test_blobs_are_read_in_pages(bench: Bench) -> None:
    for number in range(10):
        bench.add(number, chunks_of(range(number)))
    with bench.index.snapshot() as txn:
        everything = list(bench.index.store.blobs(txn, "blobs"))
        assert len(everything) == 10
        for at, blob in enumerate(everything):
            key = records.digest_key(blob.digest)
            assert list(bench.index.store.blobs(txn, "blobs", key)) == everything[at + 1 :]
        assert list(bench.index.store.blobs(txn, "failed")) == []


NAMES = st.lists(st.sampled_from(["a", "a-b", "a.", "a0", "a1", "a\udcff", "b"]), min_size=1, max_size=3).map("/".join)


@given(st.lists(st.tuples(st.integers(1, 3), NAMES), max_size=20), NAMES)
@example([(2, path) for path in ("a", "a-b", "a/b", "a/b0", "a/b/c", "a0", "a0/b", "a1")] + [(1, "b"), (3, "b")], "a0")
def test_places_are_found_by_their_folders(listed: list[tuple[int, str]], probe: str) -> None:
    """Names that sort around "/" must not hide one another: a, a-b, a/b, a0."""
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Store(folder, readonly=False)) as opened:
        table = opened.databases["places"]
        with opened.env.begin(write=True) as txn:
            for cache, path in listed:
                txn.put(records.place_key(Place(cache, path)), b"", db=table)
        paths = {path for cache, path in listed if cache == 2}
        with opened.env.begin() as txn:
            for asked in ("", probe, "a", "a/b", *paths):
                below = {path for path in paths if not asked or path.startswith(f"{asked}/")}
                found = [place.path for place in opened.under(txn, "places", 2, asked)]
                assert sorted(found) == sorted(below | ({asked} & paths))


def test_what_is_ignored_is_listed_with_its_reason(bench: Bench) -> None:
    places = [Place(1, "link"), Place(1, "caf\udce9"), Place(2, "fifo")]
    with bench.index.transaction() as change:
        change.set_caches({1: Cache("/one"), 2: Cache("/two")})
        for place in places:
            change.ignore(place, f"why {place.cache}")
    with bench.index.snapshot() as txn:
        assert sorted(bench.index.store.ignored(txn)) == sorted((place, f"why {place.cache}") for place in places)


def test_the_longest_path_of_the_longest_digest_is_stored(bench: Bench) -> None:
    digest = Digest("sha512", "ab" * 64)
    place = Place(2**32 - 1, "p" * MAX_PATH_BYTES)
    with bench.index.transaction() as change:
        change.hold(place, Held(digest, "verified", FileMark(1, 2, 3, 4)))
        change.add(Blob(digest, "other", 3), Recipe())
        assert [found for found, _ in change.holders(digest)] == [place]
    with bench.index.transaction() as change:
        change.release(place, digest)
        change.remove(digest)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(20, b"\x21", id="a version that no engine of LMDB's writes"),
        pytest.param(43, b"\xff", id="a page size that can't be"),
        pytest.param(PAGE_BYTES + 142, b"\xff", id="more pages than there are addresses"),
    ],
)
def test_a_meta_page_that_can_not_be_is_a_damage(bench: Bench, tmp_path: Path, at: int, value: bytes) -> None:
    shutil.copytree(bench.index.store.path, tmp_path / "copy" / "index")
    data = tmp_path / "copy" / "index" / "data.mdb"
    with data.open("r+b") as file:
        file.seek(at)
        file.write(value)
        if at > PAGE_BYTES:  # the newer of the two is the one that is used
            file.seek(PAGE_BYTES + 144)
            file.write((1 << 40 | 1).to_bytes(8, "little"))
    with pytest.raises(IndexDamaged), reading(str(tmp_path / "copy")):
        pass


def test_a_small_index_is_followed_by_the_writer_that_opens_it(bench: Bench) -> None:
    """Each of its pages in turn is zeros. A writer would else find no record where one was, and count it again."""
    for number in range(40):
        bench.add(number, chunks_of(range(number, 60)))
    bench.close()
    data = Path(bench.index.store.path, "data.mdb")
    whole, named = data.read_bytes(), 0
    for page in range(2 * PAGE_BYTES, len(whole), PAGE_BYTES):
        data.write_bytes(whole[:page] + bytes(PAGE_BYTES) + whole[page + PAGE_BYTES :])
        try:
            Index(str(bench.state_dir), Rules(), WRITER).close()
        except IndexDamaged:
            named += 1
        else:  # a free page
            data.write_bytes(whole)
    data.write_bytes(whole)
    assert named > 5


def with_raised_separators(data: bytes) -> Iterator[bytes]:
    """An index's file once for each copy of a key in a branch page, with that copy's last byte raised: a look-up of the
    key itself then goes to the page before. (A page's flags are at byte 10, where its nodes begin is listed from 16 on,
    and a node's key has its length at byte 6 and begins at byte 8: `MDB_page` and `MDB_node` of LMDB's mdb.c.)
    """
    for page in range(2 * PAGE_BYTES, len(data), PAGE_BYTES):
        flags, lower = struct.unpack_from("=HH", data, page + 10)
        if not flags & 0x01:
            continue
        for at in range(page + 18, page + lower, 2):  # the first node has no key
            node = page + int.from_bytes(data[at : at + 2], sys.byteorder)
            last = node + 7 + int.from_bytes(data[node + 6 : node + 8], sys.byteorder)
            yield data[:last] + bytes([data[last] + 1]) + data[last + 1 :]


def test_a_look_up_that_is_led_astray_is_a_damage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer would else count a place a second time, and going on from place to place would never end."""
    for number in range(150):
        bench.add(number, chunks_of(range(3)))
    bench.close()
    data = Path(bench.index.store.path, "data.mdb")
    whole = data.read_bytes()
    damaged = []
    for content in with_raised_separators(whole):
        data.write_bytes(content)
        try:
            Index(str(bench.state_dir), Rules(), WRITER).close()
        except IndexDamaged:
            damaged.append(content)
        else:  # a free page
            data.write_bytes(whole)
    # An index that is too large to be followed at each start.
    monkeypatch.setattr(environment, "AUDITED_BYTES", 0)
    found = 0
    for content in damaged:
        data.write_bytes(content)
        place = Place(1, "")
        try:
            with reading(str(bench.state_dir)) as store, store.snapshot() as txn:
                while there := store.place_from(txn, place):
                    place = Place(1, there.path + "\0")
        except IndexDamaged:
            found += 1
    data.write_bytes(whole)
    assert len(damaged) > found > 0
