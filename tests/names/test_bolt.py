from __future__ import annotations

import random
import struct
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bolts
from chunkd.names import bolt
from chunkd.names.bolt import BadBolt, Pread, Snapshot


def pread_of(data: bytes | bytearray) -> Pread:
    return lambda at, size: bytes(data[at : at + size])


def everything(state: Snapshot) -> dict[bytes, Any]:
    """All that is in the database, as nested mappings."""
    top = state.bucket()
    assert top is not None

    def inside(bucket: bolt.Bucket) -> dict[bytes, Any]:
        values, buckets = state.contents(bucket)
        return values | {key: inside(below) for key, below in buckets.items()}

    return inside(top)


def read(data: bytes | bytearray) -> dict[bytes, Any]:
    return bolt.read(pread_of(data), everything)


KEYS = st.binary(min_size=1, max_size=12)
CONTENTS = st.recursive(
    st.dictionaries(KEYS, st.binary(max_size=60), max_size=8),
    lambda inner: st.dictionaries(KEYS, st.one_of(st.binary(max_size=3000), inner), max_size=12),
    max_leaves=40,
)


@given(CONTENTS, st.sampled_from([1024, 4096, 65536]), st.integers(2, 5))
def test_what_was_written_is_read(contents: dict[bytes, Any], page_bytes: int, children: int) -> None:
    assert read(bolts.database(contents, page_bytes, children)) == contents


LARGE = {b"a": {b"%04d" % at: b"x" * (at % 90) for at in range(600)}, b"b": b"y" * 5000, b"c": {b"d": {b"e": b"f"}}}


def test_branches_overflow_and_inline_buckets() -> None:
    data = bolts.database(LARGE)
    flags = {
        struct.unpack_from("<QHHI", data, at)[1]
        for at in range(0, len(data), bolts.PAGE_BYTES)
        if data[at + 8 : at + 10]
    }
    assert {bolts.BRANCH, bolts.LEAF, bolts.META, bolts.FREELIST} <= flags
    assert read(data) == LARGE

    def deep(state: Snapshot) -> object:
        found = state.bucket(b"c", b"d")
        assert found
        return state.contents(found), state.bucket(b"c", b"e"), state.bucket(b"b"), state.bucket(b"none", b"d")

    assert bolt.read(pread_of(data), deep) == (({b"e": b"f"}, {}), None, None, None)


def test_the_newest_valid_meta_counts() -> None:
    old, new = bolts.database({b"a": b"old"}), bolts.database({b"a": b"new"})
    writer_pages = len(old) // 1024
    moved = bolts.Writer()
    moved.next = writer_pages
    root, _ = moved.bucket({b"a": b"new"}, inline=False)
    for transaction in (8, 9):  # of which one goes into each place
        metas = [bolts.meta(0, 6, 3, writer_pages), bolts.meta(1, 7, 3, writer_pages)]
        metas[transaction % 2] = bolts.meta(transaction % 2, transaction, root, moved.next)
        data = bytearray(b"".join(metas) + old[2048:] + b"".join(moved.pages))
        assert read(data) == {b"a": b"new"} == read(new)
        data[transaction % 2 * 1024 + 40] ^= 1  # its checksum does not match any more
        assert read(data) == {b"a": b"old"}
        data[(transaction + 1) % 2 * 1024 + 16] ^= 1
        with pytest.raises(BadBolt):
            read(data)


@pytest.mark.parametrize("transaction", [6, 7])
@pytest.mark.parametrize("page_bytes", [1024, 4096, 16384])
def test_a_damaged_first_meta_is_no_obstacle(transaction: int, page_bytes: int) -> None:
    data = bytearray(bolts.database({b"a": b"b"}, page_bytes, transaction=transaction))
    data[:100] = bytes(100)
    assert read(data) == {b"a": b"b"}


class Changing:
    """A file whose meta changes between two reads, `changes` times."""

    def __init__(self, changes: int) -> None:
        self.states = [bolts.database({b"a": b"%d" % number}, transaction=10 + number) for number in range(changes + 1)]
        self.reads = 0

    def pread(self, at: int, size: int) -> bytes:
        self.reads += at == 3 * 1024  # the root: after it the next transaction is committed
        return self.states[min(self.reads, len(self.states) - 1)][at : at + size]


def test_a_state_that_was_overtaken_is_read_again() -> None:
    file = Changing(bolt.MOST_TRIES - 1)
    assert bolt.read(file.pread, everything) == {b"a": b"%d" % (bolt.MOST_TRIES - 1)}


def test_a_file_that_never_stands_still_is_given_up() -> None:
    file = Changing(10 * bolt.MOST_TRIES)
    with pytest.raises(BadBolt, match="changed"):
        bolt.read(file.pread, everything)
    assert file.reads == bolt.MOST_TRIES


def test_what_looks_damaged_in_an_overtaken_state_is_no_damage() -> None:
    good = bolts.database(LARGE, transaction=8)
    bad = bytearray(bolts.database(LARGE, transaction=7))
    bad[3 * 1024 :] = bytes(len(bad) - 3 * 1024)
    seen = []

    def pread(at: int, size: int) -> bytes:
        seen.append(at)
        return bytes((bad if len(seen) < 4 else good)[at : at + size])

    assert bolt.read(pread, everything) == LARGE


# --- damaged and hostile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", bytes(100), bytes(70_000), b"SQLite format 3\0" * 1000])
def test_what_is_no_database(data: bytes) -> None:
    with pytest.raises(BadBolt):
        read(data)


def test_another_version_is_refused() -> None:
    data = bolts.database({b"a": b"b"})
    metas = b"".join(bolts.meta(number, number, 3, 4, version=3) for number in (0, 1))
    with pytest.raises(BadBolt):
        read(metas + data[2048:])


def test_a_file_that_is_cut_short() -> None:
    data = bolts.database(LARGE)
    for end in range(0, len(data), 512):
        with pytest.raises(BadBolt):
            read(data[:end])


def raw(*pages: bytes, root: int = 3) -> bytes:
    body = b"".join(pages)
    count = 3 + len(body) // 1024
    return bolts.meta(0, 0, root, count) + bolts.meta(1, 1, root, count) + bolts.page(2, 16, 0, b"") + body


def branch(number: int, *children: int) -> bytes:
    return bolts.page(number, bolts.BRANCH, len(children), bolts.branch_body([(b"k", child) for child in children]))


def leaf(number: int, *items: tuple[int, bytes, bytes]) -> bytes:
    return bolts.page(number, bolts.LEAF, len(items), bolts.leaf_body(items))


HOSTILE = {
    "a cycle of one": raw(branch(3, 3)),
    "a cycle of two": raw(branch(3, 4), branch(4, 3)),
    "a page named twice": raw(branch(3, 4, 4), leaf(4, (0, b"a", b"b"))),
    "a page named by two": raw(branch(3, 4, 5), branch(4, 6), branch(5, 6), leaf(6)),
    "a branch of nothing": raw(branch(3)),
    "a page of no kind": raw(bolts.page(3, 0, 0, b"")),
    "a meta page in the tree": raw(branch(3, 0)),
    "a page beyond the end": raw(branch(3, 1 << 60)),
    "a page with another number": raw(branch(3, 4), leaf(5)),
    "a root beyond the end": raw(leaf(3), root=99),
    "too deep": raw(*(branch(number, number + 1) for number in range(3, 40)), leaf(40)),
    "overflow beyond the end": raw(struct.pack("<QHHI", 3, 2, 0, 1 << 31).ljust(1024, b"\0")),
    "more elements than fit": raw(struct.pack("<QHHI", 3, 2, 65535, 0).ljust(1024, b"\0")),
    "an element outside": raw(bolts.page(3, 2, 1, struct.pack("<4I", 0, 16, 1 << 31, 1 << 31))),
    "a position outside": raw(bolts.page(3, 2, 1, struct.pack("<4I", 0, (1 << 32) - 1, 1, 0))),
    "a bucket cut short": raw(leaf(3, (1, b"a", bytes(15)))),
    "an inline bucket cut short": raw(leaf(3, (1, b"a", bytes(20)))),
    "an inline bucket with elements that do not fit": raw(
        leaf(3, (1, b"a", bytes(16) + struct.pack("<QHHI", 0, 2, 9, 0)))
    ),
}


def overlapping(count: int) -> bytes:
    """A page of so many values, each of which is the rest of the page."""
    total_bytes = 16 + count * 20
    keys = b"".join(struct.pack(">I", at) for at in range(count))
    elements = [(16 * (count - at) + 4 * at, 4, total_bytes - 16 - 16 * count - 4 * at - 4) for at in range(count)]
    return bolts.page(3, bolts.LEAF, count, b"".join(struct.pack("<4I", 0, *one) for one in elements) + keys)


HOSTILE["elements that overlap"] = raw(overlapping(40))


def test_values_that_overlap_take_bounded_memory() -> None:
    """All values of a small bucket are in memory at once: here 800,000,000 bytes from a page of 400,000."""
    data = raw(overlapping(20_000).ljust(400 << 10, b"\0"))
    tracemalloc.start()
    try:
        with pytest.raises(BadBolt):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("which", HOSTILE)
def test_hostile_files_are_refused(which: str) -> None:
    with pytest.raises(BadBolt):
        read(HOSTILE[which])


def test_buckets_that_contain_one_another_take_bounded_work() -> None:
    """Each bucket of the first page is the first page again."""
    data = raw(leaf(3, *((1, b"%d" % at, struct.pack("<2Q", 3, 0)) for at in range(10))))
    begun = time.process_time()

    def forever(state: Snapshot) -> None:
        pending = [state.bucket()]
        while bucket := pending.pop():
            pending += [below for _, below in state.buckets(bucket)]

    with pytest.raises(BadBolt, match="more bytes"):
        bolt.read(pread_of(data), forever, 4 << 20)
    assert time.process_time() - begun < 5


def test_any_changed_byte_is_refused_or_another_database() -> None:
    contents = {b"v1": {b"ns": {b"images": {b"n%d" % at: bolts.image("sha256:" + "a" * 64) for at in range(9)}}}}
    data, draw = bolts.database(contents), random.Random(1)
    refused = 0
    for _ in range(2000):
        changed = bytearray(data)
        changed[draw.randrange(3 * 1024, len(data))] ^= 1 << draw.randrange(8)
        try:
            read(changed)
        except BadBolt:
            refused += 1
        except RecursionError:  # of this test's own `everything`
            pass
    assert refused > 50
