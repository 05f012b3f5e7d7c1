"""A compaction frees what no blob uses, whatever lands and goes while it is under way."""

from __future__ import annotations

import pytest

from chunkd.errors import IndexUnwritable
from chunkd.index import compaction
from indexing import Bench, chunks_of

LAYERS, CHUNKS = 12, 500


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "WORTH_CHUNKS", 1000)
    monkeypatch.setattr(compaction, "BLOCKS_A_SLICE", 3)
    monkeypatch.setattr(compaction, "TABLE_VALUES_A_SLICE", 40)


def layer(number: int) -> list[tuple[bytes, int]]:
    return chunks_of(range(number * CHUNKS, (number + 1) * CHUNKS))


def records(bench: Bench) -> tuple[int, int]:
    """How many blocks of chunk records and how many dead chunks there are."""
    with bench.index.snapshot() as txn:
        store = bench.index.store
        return txn.stat(store.databases["chunks"])["entries"], store.head(txn).dead_chunks


def half_removed(bench: Bench) -> None:
    for number in range(LAYERS):
        bench.add(number, layer(number))
    for number in range(0, LAYERS, 2):
        bench.remove(number)


def swept(bench: Bench, sweeper: compaction.Compaction) -> int:
    slices = 0
    while sweeper.turn():
        slices += 1
        assert not bench.differences()
        assert slices < 200
    return slices


def test_dead_blocks_go_and_the_figures_stay(bench: Bench) -> None:
    half_removed(bench)
    blocks, dead = records(bench)
    before = bench.totals
    sweeper = compaction.Compaction(bench.index)
    assert swept(bench, sweeper) > 5
    left_blocks, left_dead = records(bench)
    assert left_blocks <= blocks - LAYERS // 2 * (CHUNKS // 170 - 1)
    assert left_dead == dead - 170 * (blocks - left_blocks)
    assert bench.totals == before
    assert not sweeper.turn(), "a second compaction would find nothing"
    for number in range(0, LAYERS, 2):
        bench.add(number, layer(number))
    assert bench.totals.unique_chunks == LAYERS * CHUNKS


def test_few_dead_chunks_are_left_alone(bench: Bench) -> None:
    bench.add(1, layer(1))
    bench.add(2, layer(2))
    bench.remove(1)
    assert not compaction.Compaction(bench.index).turn()


SLICES = range(0, 24, 2)


@pytest.mark.parametrize("at", SLICES)
def test_what_lands_and_goes_between_two_slices_is_not_swept_away(bench: Bench, at: int) -> None:
    half_removed(bench)
    sweeper = compaction.Compaction(bench.index)
    for slices in range(200):
        if slices == at:
            bench.add(2, layer(2))
            bench.add(20, layer(4)[100:400])
        if slices == at + 2:
            bench.remove(2)
        if not sweeper.turn():
            break
        # Up to there all are the same, and recounted once.
        assert (slices < at < SLICES[-1]) or not bench.differences()
    bench.add(2, layer(2))


def test_a_slice_that_could_not_be_written_ends_the_sweep(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    half_removed(bench)
    sweeper = compaction.Compaction(bench.index)
    blocks, _ = records(bench)
    while not bench.index.dead_blocks:
        assert sweeper.turn()

    def full(*_: object) -> None:
        raise IndexUnwritable("index", "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("chunkd.index.index.Change.write_head", full)
        with pytest.raises(IndexUnwritable):
            swept(bench, sweeper)
    assert not bench.index.dead_blocks
    assert records(bench)[0] == blocks
    assert not bench.differences()
    assert swept(bench, sweeper) > 5
