"""Varints and recipes: there and back, golden bytes, and nothing but `Damaged` for any other bytes."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chunkd.index import blocks
from chunkd.index.blocks import Numbers
from chunkd.index.records import Damaged
from indexing import numbers_of

TOP = 2**40
# (first, count) of each run, with firsts that are anywhere, near one another, and at the top.
RUNS = st.lists(
    st.tuples(st.integers(0, TOP - 300) | st.integers(0, 300) | st.integers(TOP - 600, TOP - 300), st.integers(1, 300)),
    max_size=40,
)


def array(numbers: list[int]) -> Numbers:
    return np.array(numbers, np.int64)


def unpacked(packed: bytes, chunks: int) -> list[int]:
    numbers: list[int] = blocks.unpack_recipe(packed, chunks).tolist()
    return numbers


def varint(value: int) -> bytes:
    """LEB128, one septet at a time."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def run(step: int, count: int) -> bytes:
    return varint(2 * step if step >= 0 else -2 * step - 1) + varint(count)


# --- varints --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 300)))
@example([])
@example([0, 127, 128, 2**14 - 1, 2**14, 2**56 - 1, 2**56, 2**63 - 1])
def test_varints_are_leb128_and_come_back(values: list[int]) -> None:
    packed = blocks.pack_varints(np.array(values, np.uint64))
    assert packed == b"".join(map(varint, values))
    assert blocks.unpack_varints(packed).tolist() == values


@pytest.mark.parametrize("width", range(1, 10))
def test_each_width_of_a_varint_at_its_edges(width: int) -> None:
    edges = [1 << 7 * (width - 1), (1 << 7 * width) - 1]
    packed = blocks.pack_varints(np.array(edges, np.uint64))
    assert len(packed) == 2 * width
    assert blocks.unpack_varints(packed).tolist() == edges


@pytest.mark.parametrize(
    "packed",
    [b"\x80", b"\x01\x80", b"\xff" * 9, b"\x80" * 9 + b"\x01", b"\x80" * 99 + b"\0", b"\x80\0", b"\x05\xff\0\x05"],
)
def test_a_varint_without_an_end_or_too_wide_is_damaged(packed: bytes) -> None:
    with pytest.raises(Damaged):
        blocks.unpack_varints(packed)


@given(st.lists(st.integers(-(2**62), 2**62 - 1)))
@example([0, -1, 1, -2, 2, -(2**62), 2**62 - 1])
def test_zigzag_folds_the_sign_into_the_low_bit(values: list[int]) -> None:
    folded = blocks.zigzag(array(values))
    assert folded.tolist() == [2 * value if value >= 0 else -2 * value - 1 for value in values]
    assert blocks.unzigzag(folded).tolist() == values


# --- recipes --------------------------------------------------------------------------------------------------------


@given(RUNS)
@example([])
@example([(TOP - 1, 1), (0, 1), (TOP - 1, 1)])
@example([(0, 3), (3, 3)])
@example([(5, 2), (5, 2), (5, 2)])
def test_a_recipe_comes_back(runs: list[tuple[int, int]]) -> None:
    numbers = [number for first, count in runs for number in range(first, first + count)]
    packed = blocks.pack_recipe(array(numbers))
    assert unpacked(packed, len(numbers)) == numbers
    assert numbers_of(packed) == numbers


@given(st.lists(st.integers(0, 12), max_size=60))
def test_a_recipe_of_repeats_comes_back(numbers: list[int]) -> None:
    assert unpacked(blocks.pack_recipe(array(numbers)), len(numbers)) == numbers


def test_a_recipe_of_many_jumps_comes_back() -> None:
    numbers = [random.Random(1).randrange(TOP) for _ in range(50_000)]
    assert unpacked(blocks.pack_recipe(array(numbers)), len(numbers)) == numbers


def test_a_recipe_of_new_chunks_is_one_run() -> None:
    assert blocks.pack_recipe(np.arange(TOP - 2_000_000, TOP - 1_000_000)) == run(TOP - 2_000_000, 1_000_000)


@pytest.mark.parametrize(
    ("numbers", "golden"),
    [
        pytest.param([], "", id="empty"),
        pytest.param([0], "00 01", id="first"),
        pytest.param([5, 6, 7], "0a 03", id="run"),
        pytest.param([5, 6, 7, 7], "0a 03 01 01", id="back-by-one"),
        pytest.param([100, 101, 5, 5], "c801 02 c101 01 01 01", id="jumps"),
        pytest.param([TOP - 1], "feffffffff3f 01", id="top"),
        pytest.param(list(range(300)), "00 ac02", id="long"),
    ],
)
def test_the_bytes_of_a_recipe(numbers: list[int], golden: str) -> None:
    assert blocks.pack_recipe(array(numbers)).hex() == golden.replace(" ", "")


def test_a_block_is_170_slots_of_24_bytes_that_fill_a_page() -> None:
    slot = np.zeros(1, blocks.SLOT)
    slot["low"], slot["high"] = np.frombuffer(bytes(range(16)), "<u8")
    slot["use"] = (np.uint64(0x0102030405) << blocks.LENGTH_BITS) | np.uint64(0x0A0B0C)
    assert slot.tobytes().hex() == bytes(range(16)).hex() + "0c0b0a" + "0504030201"
    assert (blocks.SLOTS, blocks.BLOCK_BYTES, blocks.MAX_COPIES) == (170, 4080, 2**40 - 1)
    assert blocks.block_key(0x0102) == bytes([0, 0, 0, 0, 0, 0, 1, 2])


# --- other bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "chunks"),
    [
        pytest.param(b"\x00", 1, id="no-count"),
        pytest.param(run(0, 3) + b"\x00", 3, id="no-last-count"),
        pytest.param(run(0, 0), 0, id="empty-run"),
        pytest.param(run(0, 3) + run(1, 0), 3, id="empty-last-run"),
        pytest.param(run(0, 3), 2, id="too-many"),
        pytest.param(run(0, 3), 4, id="too-few"),
        pytest.param(run(0, 3), 0, id="none-wanted"),
        pytest.param(b"", 1, id="none-there"),
        pytest.param(run(-1, 1), 1, id="negative"),
        pytest.param(run(0, 3) + run(-4, 2), 5, id="negative-later"),
        pytest.param(run(0, 3) + run(0, 2), 5, id="two-runs-that-are-one"),
        pytest.param(run(TOP - 2, 3), 3, id="beyond-the-last-number"),
        pytest.param(run(2**62 - 1, 1) * 2 + run(4, 5), 7, id="numbers-that-wrap"),
        pytest.param(run(0, 2**62), 5, id="huge-count"),
        pytest.param(run(0, 2**33), 2**33, id="huge-and-claimed"),
        pytest.param(run(0, 2**62) + run(0, 2**62 - 1), 2**63 - 1, id="all-of-63-bits"),
        pytest.param(run(0, 2**62) * 4 + run(0, 5), 5, id="counts-that-wrap"),
        pytest.param(run(0, 2**63 - 1) * 2 + run(2, 7), 5, id="counts-and-numbers-that-wrap"),
    ],
)
def test_what_is_no_recipe_is_damaged(packed: bytes, chunks: int) -> None:
    with pytest.raises(Damaged):
        blocks.unpack_recipe(packed, chunks)


@given(st.binary(max_size=60), st.integers(0, 100_000) | st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_recipe_or_damaged(packed: bytes, chunks: int) -> None:
    try:
        numbers = blocks.unpack_recipe(packed, chunks)
    except Damaged:
        return
    assert len(numbers) == chunks
    assert not len(numbers) or int(numbers.min()) >= 0


@given(st.lists(st.tuples(st.integers(-(2**61), 2**61), st.integers(0, 1000)), max_size=10))
def test_any_runs_are_a_recipe_or_damaged(runs: list[tuple[int, int]]) -> None:
    """With the right number of chunks, so that it is the numbers that matter."""
    packed = b"".join(run(step, count) for step, count in runs)
    chunks = sum(count for _, count in runs)
    try:
        numbers = unpacked(packed, chunks)
    except Damaged:
        return
    assert numbers == numbers_of(packed)


@given(st.binary(max_size=60))
def test_any_bytes_are_varints_or_damaged(packed: bytes) -> None:
    try:
        values = blocks.unpack_varints(packed)
    except Damaged:
        return
    assert len(values) == sum(octet < 0x80 for octet in packed)


@pytest.mark.parametrize("count", [2**24, 2**40, 2**62])
def test_a_recipe_that_claims_more_than_its_blob_has_is_not_unfolded(count: int) -> None:
    packed = run(0, count)
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            blocks.unpack_recipe(packed, 1000)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
