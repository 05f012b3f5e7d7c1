"""What chunkd does beside LMDB about the index's disk. Full disks, I/O errors and power cuts are in tests/torture."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import blobs
from chunkd.errors import IndexUnreachable, IndexUnwritable
from chunkd.index.storage import durability
from daemon import Home, opened
from indexing import Bench, chunks_of
from ingesting import LAYER, land, oci, world_in

SPACE = "No space left on device"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path) as made:
        yield made


def free(bytes_free: int) -> os.statvfs_result:
    return os.statvfs_result((4096, 4096, 10**6, bytes_free // 4096, bytes_free // 4096, 0, 0, 0, 0, 255))


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "bytes_free", "said"),
    [
        (errno.ENOSPC, 8192, "No space left on device: 8,192 bytes are free on its disk"),
        (errno.EIO, 8192, "Input/output error: its disk is full, 8,192 bytes are free"),
        (errno.EIO, 1 << 30, "Input/output error"),
        (errno.EDQUOT, 0, "Disk quota exceeded"),
        (None, 0, "None"),
    ],
)
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, number: int | None, bytes_free: int, said: str) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: free(bytes_free))
    assert durability.said("/", number, os.strerror(number) if number else "None") == said


def test_a_disk_that_is_gone_says_what_it_said(tmp_path: Path) -> None:
    assert durability.said(str(tmp_path / "none"), errno.ENOSPC, SPACE) == SPACE


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [0, 1, durability.LOCK_BYTES - 1])
def test_the_lock_file_has_no_hole(tmp_path: Path, there: int) -> None:
    (tmp_path / "lock.mdb").write_bytes(b"x" * there)
    durability.write_out_lock(str(tmp_path))
    status = (tmp_path / "lock.mdb").stat()
    assert status.st_size == durability.LOCK_BYTES
    assert status.st_blocks * 512 >= durability.LOCK_BYTES
    assert (tmp_path / "lock.mdb").read_bytes().strip(b"\0") == b"x" * there


def test_a_lock_file_in_use_is_left_alone(tmp_path: Path) -> None:
    content = os.urandom(durability.LOCK_BYTES + 64)
    (tmp_path / "lock.mdb").write_bytes(content)
    durability.write_out_lock(str(tmp_path))
    assert (tmp_path / "lock.mdb").read_bytes() == content


def test_lmdb_finds_its_lock_file_long_enough(bench: Bench) -> None:
    """Or it would be made longer, with a hole."""
    assert (bench.state_dir / "index" / "lock.mdb").stat().st_size == durability.LOCK_BYTES


def test_starting_with_the_same_caches_writes_nothing(tmp_path: Path) -> None:
    """So that a full disk is no reason not to serve the figure."""
    with world_in(tmp_path, "cache") as world:
        land(oci(world.roots[0], LAYER), LAYER.stored)
        world.settle()
        world.stop()
        before = (tmp_path / "state" / "index" / "data.mdb").read_bytes()
        world.start()
        assert (tmp_path / "state" / "index" / "data.mdb").read_bytes() == before


# --- what is on disk for certain --------------------------------------------------------------------------------------


@pytest.fixture
def rewritten(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of what is written over itself, each time."""
    lengths: list[int] = []
    real = durability.rewrite

    def rewrite(path: str, size: int) -> None:
        lengths.append(size)
        real(path, size)

    monkeypatch.setattr(durability, "rewrite", rewrite)
    return lengths


def test_the_last_commit_is_made_certain_before_the_first_and_after_a_failed_one(
    bench: Bench, rewritten: list[int]
) -> None:
    bench.reopen()
    assert rewritten == []
    for number in (1, 2):
        bench.add(number, chunks_of(range(50)))
        assert rewritten == [8192]
    with pytest.raises(IndexUnwritable), bench.index.transaction():
        raise IndexUnwritable("index", SPACE)
    with pytest.raises(RuntimeError), bench.index.transaction():
        raise RuntimeError
    bench.add(3, [])
    bench.add(4, [])
    assert rewritten == [8192, 8192]


def test_nothing_is_written_before_it_is_certain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add(1, chunks_of(range(50)))
    before = bench.totals
    bench.reopen()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
        for _ in range(2):
            with pytest.raises(IndexUnwritable, match="Input/output error"):
                bench.add(2, chunks_of(range(50)))
    assert bench.totals == before
    bench.add(2, chunks_of(range(50)))


def test_a_commit_that_the_disk_took_back_is_found_out(bench: Bench) -> None:
    """As btrfs does when a sync fails: the meta page is again what it was two commits before."""
    bench.add(1, chunks_of(range(50)))
    data = bench.state_dir / "index" / "data.mdb"
    with data.open("r+b", buffering=0) as file:
        before = file.read(8192)
        bench.add(2, chunks_of(range(60)))
        file.seek(0)
        after = file.read(8192)
        os.pwrite(file.fileno(), before, 0)
        with pytest.raises(IndexUnreachable, match="took back its last commit"):
            bench.index.store.resync()
        os.pwrite(file.fileno(), after, 0)
    bench.index.store.resync()


# --- the process's limits ---------------------------------------------------------------------------------------------


def test_too_little_address_space_is_named(home: Home) -> None:
    blobs.write_blob(home.cache(), blobs.layer())
    done = home.command("scan", home.cache(), under=("prlimit", f"--as={8 << 30}"))
    assert done.returncode == 1
    assert "no address space for its map of 1 TiB" in done.stderr
    assert "ulimit -v" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_nothing_is_given_away_that_was_put_there(tmp_path: Path) -> None:
    """By whom the folder belongs to: a link to what is root's, or another name for it."""
    for name in ("given", "linked", "led to"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "linked", tmp_path / "other name")
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / name for name in ("given", "folder", "linked", "other name", "pipe")]
    owner = os.stat_result((0, 0, 0, 0, 65534, 65533, 0, 0, 0, 0))
    durability.give_away(paths, owner)
    assert [path.stat().st_uid for path in paths] == [65534, 65534, 0, 0, 0]
    assert (tmp_path / "given").stat().st_gid == 65533
    (tmp_path / "link").symlink_to("led to")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        durability.give_away([tmp_path / "link"], owner)
    assert (tmp_path / "led to").stat().st_uid == 0
    (tmp_path / "roots").touch()
    durability.give_away([tmp_path / "roots"], os.stat_result((0, 0, 0, 0, 0, 65533, 0, 0, 0, 0)))
    assert (tmp_path / "roots").stat().st_gid == 0
