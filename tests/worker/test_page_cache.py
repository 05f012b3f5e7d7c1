"""What a read leaves in the page cache, as the kernel tells by mincore(2)."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

import blobs
import working
from chunkd.worker import page_cache
from chunkd.worker.page_cache import CacheNeutralFile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mincore(2) as it is called here is Linux's")

STRETCH_BYTES = 1 << 20
STAYS, DROPS = 5, 60
PAUSE_S = 0.1
Test = TypeVar("Test", bound=Callable[..., None])


def tried(times: int) -> Callable[[Test], Test]:
    """Advice is what the kernel may pass over: a page that another processor has in hand stays, and one is dropped when
    memory is short. So it is enough to be right once in so many times.

    And asking begins to read: where that is done at once, what was not in memory is answered to be (here of 1 in 100
    single pages, on a busy machine of more). So what is to be dropped is tried often: without the advice it never is.
    """

    def decorated(test: Test) -> Test:
        @functools.wraps(test)
        def again(tmp_path: Path, **given: Any) -> None:
            for number in range(times):
                folder = tmp_path / str(number)
                folder.mkdir()
                try:
                    return test(tmp_path=folder, **given)
                except AssertionError:
                    if number == times - 1:
                        raise
                    time.sleep(PAUSE_S)
            return None

        return cast("Test", again)

    return decorated


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "STRETCH_BYTES", STRETCH_BYTES)


def cached(path: Path) -> list[bool]:
    """Of each page of the file, whether it is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    size = path.stat().st_size
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    with path.open("rb") as file:
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        assert libc.mincore(at, size, pages) == 0
        libc.munmap(at, size)
    return [bool(page & 1) for page in pages.raw]


def drop(path: Path, begin: int = 0, length: int = 0) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), begin, length, os.POSIX_FADV_DONTNEED)


def cold_file(folder: Path, data: bytes) -> Path:
    path = folder / "blob"
    path.write_bytes(data)
    for _ in range(DROPS):
        drop(path)
        if not any(cached(path)):
            return path
        time.sleep(PAUSE_S)
    pytest.skip(f"the files of {folder} do not leave memory: a tmpfs?")


def read(path: Path, most: int = 1 << 62) -> bytes:
    buffer, out = memoryview(bytearray(100_000)), b""
    with CacheNeutralFile(os.open(path, os.O_RDONLY), path.stat().st_size) as file:
        while len(out) < most and (got := file.readinto(buffer)):
            out += buffer[:got]
    return out


@pytest.mark.parametrize("size", [1, 4096, STRETCH_BYTES, STRETCH_BYTES + 1, 7 * STRETCH_BYTES + 5000])
@tried(DROPS)
def test_what_was_not_in_memory_is_not_after(tmp_path: Path, size: int) -> None:
    data = blobs.noise(size)
    path = cold_file(tmp_path, data)
    assert read(path) == data
    assert sum(cached(path)) <= len(cached(path)) // 10


@pytest.mark.parametrize("size", [1, 4096, STRETCH_BYTES, 3 * STRETCH_BYTES + 5000])
@tried(STAYS)
def test_what_was_in_memory_stays(tmp_path: Path, size: int) -> None:
    data = blobs.noise(size)
    path = cold_file(tmp_path, data)
    path.read_bytes()
    assert read(path) == data
    assert all(cached(path))


@tried(DROPS)
def test_each_stretch_is_left_as_it_was(tmp_path: Path) -> None:
    path = cold_file(tmp_path, blobs.noise(8 * STRETCH_BYTES))
    path.read_bytes()
    drop(path, 2 * STRETCH_BYTES, 3 * STRETCH_BYTES)
    read(path)
    pages = STRETCH_BYTES // mmap.PAGESIZE
    still = [sum(cached(path)[at : at + pages]) for at in range(0, 8 * pages, pages)]
    assert [stretch == pages for stretch in still] == [True] * 2 + [False] * 3 + [True] * 3
    assert sum(still[2:5]) <= 3 * pages // 10


@tried(DROPS)
def test_what_is_read_in_part_is_given_back_too(tmp_path: Path) -> None:
    path = cold_file(tmp_path, blobs.noise(2 * STRETCH_BYTES))
    read(path, 1)
    # The kernel's reading ahead may have gone past what is given back.
    assert not any(cached(path)[: STRETCH_BYTES // mmap.PAGESIZE])


@tried(DROPS)
def test_a_large_file_takes_no_more_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "MOST_STRETCHES", 4)
    path = cold_file(tmp_path, blobs.noise(9 * STRETCH_BYTES))
    asked: list[int] = []

    def preadv(fd: int, buffers: list[bytearray], at: int, flags: int) -> int:
        asked.append(at)
        return os_preadv(fd, buffers, at, flags)

    os_preadv = os.preadv
    monkeypatch.setattr(os, "preadv", preadv)
    read(path)
    assert len(asked) == 4
    assert sum(cached(path)) <= len(cached(path)) // 10


@tried(STAYS)
def test_where_it_cannot_be_told_nothing_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cold_file(tmp_path, blobs.noise(2 * STRETCH_BYTES))

    def preadv(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", preadv)
    read(path)
    assert all(cached(path))


@tried(DROPS)
def test_a_worker_leaves_a_cold_blob_cold_and_a_hot_one_hot(tmp_path: Path) -> None:
    stored = blobs.gz(blobs.tar({"large": blobs.noise(5_000_000)}))
    path = cold_file(tmp_path, stored)
    digest = blobs.digest_of(stored)
    for decodes in (True, False):
        drop(path)
        found = working.examined(digest, path, decode=decodes, relayed=True)
        assert found.kind == ("layer" if decodes else "matched")
        assert sum(cached(path)) <= len(cached(path)) // 10
    path.read_bytes()
    working.examined(digest, path, relayed=True)
    assert all(cached(path))


def test_a_pipe_has_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[object] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: advised.append(arguments))
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    os.close(writing)
    buffer = memoryview(bytearray(100))
    with CacheNeutralFile(reading, 3 * STRETCH_BYTES) as file:
        assert (file.readinto(buffer), file.readinto(buffer)) == (5, 0)
    assert advised == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
