"""The look-up against a plain dictionary: every entry with the right prefix is found, wherever it has come to lie."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chunkd.index.blocks import Numbers
from chunkd.index.chunks import lookup
from chunkd.index.chunks.entries import Entries, unpack_entries
from chunkd.index.chunks.lookup import DENSE_ENTRIES, SLICES, Lookup

Model = dict[int, list[int]]


class Aborted(Exception):
    """Raised by a test in the middle of a transaction."""


class Tables:
    """A look-up with its two tables, the numbers that an index keeps for it, and the model."""

    def __init__(self, folder: str | Path) -> None:
        # Nothing here has to outlive the process.
        self.env = lmdb.open(str(folder), map_size=1 << 32, max_dbs=2, sync=False)
        self.young, self.dense = self.env.open_db(b"young"), self.env.open_db(b"dense")
        self.lookup = Lookup(self.young, self.dense)
        self.young_entries = self.hand = self.next_number = 0
        self.model: Model = defaultdict(list)

    def begin(self) -> contextlib.AbstractContextManager[lmdb.Transaction]:
        return self.env.begin(write=True, buffers=True)

    def insert(self, wanted: list[int], *, abort: bool = False) -> None:
        """One transaction of so many new entries with these prefixes."""
        numbers = np.arange(self.next_number, self.next_number + len(wanted))
        prefixes = np.array(wanted, np.uint32)
        order = np.argsort(prefixes)
        try:
            with self.begin() as txn:
                self.lookup.insert(txn, Entries.of(prefixes[order], numbers[order]))
                young, hand = self.lookup.merge(
                    txn, self.young_entries + len(wanted), self.hand, len(wanted), self.next_number + len(wanted)
                )
                if abort:
                    raise Aborted
        except Aborted:
            self.lookup.forget()
            return
        self.young_entries, self.hand = young, hand
        self.next_number += len(wanted)
        for prefix, number in zip(wanted, numbers.tolist(), strict=True):
            self.model[prefix].append(number)

    def merge_slice(self, slice_: int) -> None:
        """Move one slice of `young` into `dense`, whatever is in it."""
        with self.begin() as txn:
            left, hand = self.lookup.merge(txn, 1 << 40, slice_, 0, 0)
        assert hand == (slice_ + 1) % SLICES
        self.young_entries -= (1 << 40) - left

    def found(self, wanted: Iterable[int]) -> Model:
        """The numbers that are found for each of these prefixes."""
        prefixes = np.array(sorted(wanted), np.uint32)
        found: Model = defaultdict(list)
        with self.begin() as txn:
            positions, numbers = self.lookup.candidates(txn, prefixes)
        for position, number in zip(positions.tolist(), numbers.tolist(), strict=True):
            found[int(prefixes[position])].append(number)
        return found

    def values(self, table: lmdb._Database) -> dict[int, tuple[list[int], list[int]]]:
        with self.env.begin(db=table) as txn, txn.cursor() as cursor:
            values = {int.from_bytes(key, "big"): unpack_entries(value) for key, value in cursor}
            return {key: (entries.prefixes.tolist(), entries.numbers.tolist()) for key, entries in values.items()}

    def check(self) -> None:
        """All entries are there once, in the value that their prefix belongs to, and all are found."""
        dense, young = self.values(self.dense), self.values(self.young)
        bounds = [*dense, 1 << 32]
        for at, (prefixes, _) in enumerate(dense.values()):
            assert prefixes == sorted(prefixes)
            assert not prefixes or bounds[at] <= prefixes[0] <= prefixes[-1] < bounds[at + 1]
        for slice_, (prefixes, _) in young.items():
            assert prefixes == sorted(prefixes)
            assert {prefix >> 24 for prefix in prefixes} <= {slice_}
        assert self.young_entries == sum(len(numbers) for _, numbers in young.values())
        entries = [
            entry for values in (dense, young) for value in values.values() for entry in zip(*value, strict=True)
        ]
        assert sorted(entries) == sorted((prefix, number) for prefix in self.model for number in self.model[prefix])
        self.check_found(self.model)

    def check_found(self, wanted: Iterable[int]) -> None:
        found = self.found(wanted)
        for prefix in wanted:
            assert sorted(found[prefix]) == self.model.get(prefix, [])


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Tables]:
    opened = Tables(tmp_path)
    with opened.env:
        yield opened


@contextlib.contextmanager
def small_tables() -> Iterator[Tables]:
    """With bounds so small that a few entries reach them all."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(lookup, "DENSE_ENTRIES", 8)
        patch.setattr(lookup, "MERGE_VALUES", 3)
        patch.setattr(lookup, "YOUNG_FLOOR", 4)
        patch.setattr(lookup, "CHUNKS_PER_MERGE", 4)
        opened = Tables(folder)
        with opened.env:
            yield opened


# --- against the model ----------------------------------------------------------------------------------------------

# Few prefixes, so that many are equal; at both ends of their slices and of all.
CROWDED = st.sampled_from([0, 1, 2, 0x00FFFFFF, 0x01000000, 0x01000001, 0x7F000000, 0xFF000000, 0xFFFFFFFE, 0xFFFFFFFF])
PREFIXES = CROWDED | st.integers(0, 0x02FFFFFF) | st.integers(0, 2**32 - 1)
TRANSACTIONS = st.lists(
    st.tuples(
        st.lists(PREFIXES, max_size=40),
        st.sampled_from(["insert", "insert", "insert", "abort", "reopen"]),
        st.sampled_from([0, 0, 1, 0x7F, 0xFF]),
    ),
    max_size=12,
)


@given(TRANSACTIONS, st.lists(PREFIXES, max_size=5), st.lists(st.integers(0, 255) | st.integers(0, 2), max_size=6))
def test_every_entry_is_found_after_any_transactions(
    transactions: list[tuple[list[int], str, int]], absent: list[int], slices: list[int]
) -> None:
    with small_tables() as tables:
        for wanted, how, tables.hand in transactions:
            tables.insert(wanted, abort=how == "abort")
            if how == "reopen":
                tables.lookup = Lookup(tables.young, tables.dense)
            tables.check_found({*absent, *wanted})
        tables.check()
        for slice_ in slices:
            tables.merge_slice(slice_)
        tables.check()


@pytest.mark.parametrize("seed", range(2))
def test_tiny_and_large_transactions_at_full_size(tables: Tables, seed: int) -> None:
    chance = random.Random(seed)
    for size in (30_000, 1, 0, 2, 20_000, 1, 1, 5000, 60_000, 3, 1):
        tables.insert([chance.getrandbits(32) for _ in range(size)], abort=size == 5000)
    assert 0 < tables.young_entries < tables.next_number
    tables.check()


def test_candidates_are_of_the_positions_that_were_asked_for(tables: Tables) -> None:
    tables.insert([7, 7, 9, 0xFF000000])
    tables.merge_slice(0)
    tables.insert([7, 8, 9])
    with tables.begin() as txn:
        positions, numbers = tables.lookup.candidates(txn, np.array([1, 7, 7, 9, 0xFF000000], np.uint32))
    found = sorted(zip(positions.tolist(), numbers.tolist(), strict=True))
    assert found == [(1, 0), (1, 1), (1, 4), (2, 0), (2, 1), (2, 4), (3, 2), (3, 6), (4, 3)]


# --- splitting ------------------------------------------------------------------------------------------------------


def test_a_dense_value_is_split_as_it_outgrows_its_bound(tables: Tables) -> None:
    chance = random.Random(1)
    for _ in range(3):
        tables.insert([0x05000000 | chance.getrandbits(24) for _ in range(30_000)])
        tables.merge_slice(5)
    dense = tables.values(tables.dense)
    assert all(0 < len(numbers) <= DENSE_ENTRIES for _, numbers in dense.values())
    assert len(dense) >= 90_000 // DENSE_ENTRIES
    assert min(dense) == 0x05000000
    tables.check()


def test_a_slice_of_many_values_is_merged_batch_by_batch(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "DENSE_ENTRIES", 100)
    monkeypatch.setattr(lookup, "MERGE_VALUES", 4)
    chance = random.Random(1)
    for count in (3000, 2000, 1):
        tables.insert([0x05000000 | chance.getrandbits(24) for _ in range(count)])
        tables.merge_slice(5)
        tables.check()
    assert max(len(numbers) for _, numbers in tables.values(tables.dense).values()) <= 100


@pytest.mark.parametrize("seed", range(2))
def test_equal_prefixes_are_never_parted_by_a_split(tables: Tables, seed: int) -> None:
    chance = random.Random(seed)
    crowd = 0x05000000 | chance.getrandbits(24)
    for count in (9000, 20_000, 1):
        tables.insert([crowd] * count + [0x05000000 | chance.getrandbits(24) for _ in range(12_000)])
        tables.merge_slice(5)
    holders = [key for key, (prefixes, _) in tables.values(tables.dense).items() if crowd in prefixes]
    assert len(holders) == 1
    tables.check()


def test_a_crowd_at_the_very_end_of_the_range_is_split_off(tables: Tables) -> None:
    tables.insert([0xFFFFFFFF] * 20_000 + list(range(0xFFF00000, 0xFFF00000 + 20_000)))
    tables.merge_slice(255)
    assert 0xFFFFFFFF in tables.values(tables.dense)
    tables.check()


# --- what a transaction may cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [0, 1, 4095, 4096, 20_000])
def test_one_transaction_merges_a_bounded_number_of_slices(tables: Tables, new: int) -> None:
    tables.insert([slice_ << 24 | entry for slice_ in range(256) for entry in range(20)])
    with tables.begin() as txn:
        left, hand = tables.lookup.merge(txn, 1 << 40, 0, new, 0)
    assert hand == 1 + new // 4096
    assert (1 << 40) - left == 20 * hand


def test_few_young_entries_are_not_worth_merging(tables: Tables) -> None:
    tables.insert(list(range(lookup.YOUNG_FLOOR)))
    assert tables.hand == 0
    assert not tables.values(tables.dense)


def test_the_hand_goes_round(tables: Tables) -> None:
    tables.insert([slice_ << 24 for slice_ in (254, 255, 0, 1, 2)])
    with tables.begin() as txn:
        left, hand = tables.lookup.merge(txn, 1 << 40, 255, 2 * lookup.CHUNKS_PER_MERGE, 0)
    assert (left, hand) == ((1 << 40) - 3, 2)
    assert set(tables.values(tables.young)) == {254, 2}


# --- aborted transactions -------------------------------------------------------------------------------------------


def test_after_an_aborted_split_the_old_bounds_hold(tables: Tables) -> None:
    chance = random.Random(1)
    wanted = [0x05000000 | chance.getrandbits(24) for _ in range(200_000)]
    tables.insert(wanted[:15_000])
    tables.merge_slice(5)
    tables.hand = 5
    tables.insert(wanted, abort=True)
    assert len(tables.values(tables.dense)) == 1
    tables.check()
    tables.insert(wanted[15_000:60_000])
    tables.merge_slice(5)
    tables.check()


# --- sweeping -------------------------------------------------------------------------------------------------------


def dead_if(wanted: Callable[[int], bool]) -> Callable[[Numbers], NDArray[np.bool_]]:
    return lambda numbers: np.array([wanted(number) for number in numbers.tolist()], bool)


def sweep(tables: Tables, dead: Callable[[Numbers], NDArray[np.bool_]]) -> list[int]:
    """Compaction both tables to their ends; how many entries were dropped from each."""
    dropped = []
    for dense in (False, True):
        after, entries = -1, 0
        while True:
            with tables.begin() as txn:
                after, some = tables.lookup.drop(txn, dense, after, dead)
            entries += some
            if after < 0:
                break
        dropped.append(entries)
    return dropped


@pytest.mark.parametrize("every", [1, 7])
def test_a_sweep_drops_the_dead_entries_and_no_others(tables: Tables, every: int) -> None:
    chance = random.Random(every)
    for _ in range(3):
        tables.insert([chance.choice([0, 5, 255]) << 24 | chance.getrandbits(24) for _ in range(20_000)])
        tables.merge_slice(5)
    dropped = sweep(tables, dead_if(lambda number: number % every == 0))
    assert sum(dropped) == sum(number % every == 0 for numbers in tables.model.values() for number in numbers)
    tables.young_entries -= dropped[0]
    for prefix in tables.model:
        tables.model[prefix] = [number for number in tables.model[prefix] if number % every]
    tables.check()
    tables.insert([chance.getrandbits(32) for _ in range(20_000)])
    tables.check()


def test_a_sweep_ends_behind_a_value_of_the_last_prefix(tables: Tables) -> None:
    tables.insert([0xFFFFFFFF] * 20_000 + list(range(0xFFF00000, 0xFFF00000 + 20_000)))
    tables.merge_slice(255)
    assert sweep(tables, dead_if(lambda number: number % 2 == 0)) == [0, 20_000]
    assert sum(len(numbers) for _, numbers in tables.values(tables.dense).values()) == 20_000
