"""Look-up entries: there and back, golden bytes, merging against sorting, and nothing but `Damaged` for other bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.index.chunks.entries import ENTRY_BYTES, Entries, join_entries, prefixes_of, unpack_entries
from chunkd.index.records import Damaged

Pair = tuple[int, int]
# Few prefixes, so that many are equal, and numbers up to the top.
PAIRS = st.lists(
    st.tuples(st.integers(0, 3) | st.integers(0, 2**32 - 1), st.integers(0, 300) | st.integers(0, 2**40 - 1)),
    unique=True,
).map(sorted)


def entries(pairs: list[Pair]) -> Entries:
    return Entries.of(
        np.array([prefix for prefix, _ in pairs], np.uint32), np.array([number for _, number in pairs], np.int64)
    )


def pairs(entries: Entries) -> list[Pair]:
    return list(zip(entries.prefixes.tolist(), entries.numbers.tolist(), strict=True))


def test_the_bytes_of_entries() -> None:
    (packed,) = entries([(0x01020304, 0x0102030405), (0xFFFEFDFC, 2**40 - 1)]).packed([0, 2])
    assert packed.hex() == "04030201" + "fcfdfeff" + "05040302" + "ffffffff" + "01" + "ff"


@given(PAIRS)
def test_entries_come_back(wanted: list[Pair]) -> None:
    (packed,) = entries(wanted).packed([0, len(wanted)])
    assert len(packed) == ENTRY_BYTES * len(wanted)
    assert pairs(unpack_entries(packed)) == wanted


@given(PAIRS, st.lists(st.integers(0, 20), min_size=2).map(sorted))
def test_entries_come_back_from_several_values(wanted: list[Pair], edges: list[int]) -> None:
    values = list(entries(wanted).packed(edges))
    assert [pairs(unpack_entries(value)) for value in values] == [
        wanted[start:end] for start, end in itertools.pairwise(edges)
    ]
    assert pairs(join_entries(values)) == wanted[edges[0] : edges[-1]]


@given(PAIRS, st.integers(0, 20), st.integers(0, 20))
def test_some_of_the_entries(wanted: list[Pair], start: int, end: int) -> None:
    assert pairs(entries(wanted).pick(slice(start, end))) == wanted[start:end]
    odd = np.array([number % 2 == 1 for _, number in wanted], bool)
    assert pairs(entries(wanted).pick(odd)) == [pair for pair in wanted if pair[1] % 2]


@given(PAIRS, PAIRS)
def test_two_sorted_runs_become_one(some: list[Pair], others: list[Pair]) -> None:
    merged = pairs(entries(some).merged(entries(others)))
    assert sorted(merged) == sorted(some + others)
    assert [prefix for prefix, _ in merged] == sorted(prefix for prefix, _ in merged)


@given(st.binary(max_size=50))
def test_any_bytes_are_entries_or_damaged(value: bytes) -> None:
    if len(value) % ENTRY_BYTES:
        with pytest.raises(Damaged):
            unpack_entries(value)
        with pytest.raises(Damaged):
            join_entries([bytes(ENTRY_BYTES), value])
    else:
        assert len(pairs(unpack_entries(value))) == len(value) // ENTRY_BYTES


@given(st.lists(st.binary(min_size=8, max_size=8)))
def test_a_prefix_sorts_as_the_first_four_bytes_do(names: list[bytes]) -> None:
    leading = np.frombuffer(b"".join(names), "<u8")
    assert prefixes_of(leading).tolist() == [int.from_bytes(name[:4], "big") for name in names]
