"""`check --repair` leaves nothing for a recount to find, or says that it can't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_recount import (
    CHUNKS,
    DAMAGES,
    INDEX,
    MANIFEST_KEY,
    MORE_CHUNKS,
    Damage,
    add_manifest,
    copy,
    damaged,
    differences,
    slot_with,
    to,
    whole,
)

from chunkd.check import recount as recount_module
from chunkd.check import repair
from chunkd.check.recount import recount
from chunkd.index import records
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.index.storage.environment import reading
from chunkd.model import Cache
from counts import some
from indexing import CACHE, SLOTS, Bench, add, blob_of, chunk, chunks_of, edit, totals_of

__all__ = ["copy", "whole"]


@pytest.mark.counted
@pytest.mark.parametrize(
    ("damage", "window"),
    [
        *(pytest.param(damage, recount_module.WINDOW, id=damage.name) for damage in DAMAGES),
        *(pytest.param(damage, 2 * SLOTS, id=f"{damage.name}-windows") for damage in some(DAMAGES)),
    ],
)
def test_every_damage_is_repaired(copy: Path, damage: Damage, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recount_module, "WINDOW", window)
    damaged(copy, damage)
    with reading(str(copy)) as store, store.snapshot() as txn:
        result = recount(store, txn)
    assert result.differences
    index = Index(str(copy), Rules(), "the test")
    try:
        assert repair.repair_index(index, set(result.bad)) == []
        with index.snapshot() as txn:
            assert recount(index.store, txn).differences == []
        read_again(index, plausible=damage.name == "measured-longer")
    finally:
        index.close()
    assert differences(copy) == []


@pytest.mark.parametrize("altered", range(16))
def test_an_altered_hash_that_the_lookup_contradicts_does_not_meet_its_chunk_again(copy: Path, altered: int) -> None:
    """Two layers have the chunk, and the recipe of one is lost: read again, it finds its chunks by their hashes.

    Beyond the prefix an altered hash is taken for true, and the chunk is counted twice: that is for `check --read`.
    """
    hash_ = bytearray(chunk(120)[0])
    hash_[altered] ^= 1
    damaged(copy, Damage("", slot_with(120, name=bytes(hash_)), set()))
    lost = records.digest_key(blob_of(2, MORE_CHUNKS).digest)
    damaged(copy, Damage("", to("recipes", lost, None), set()))
    with reading(str(copy)) as store, store.snapshot() as txn:
        bad = set(recount(store, txn).bad)
    index = Index(str(copy), Rules(), "the test")
    try:
        assert repair.repair_index(index, bad) == []
        with index.transaction() as change:
            change.set_caches({CACHE: Cache("/cache")})
            for number, chunks in {1: CHUNKS, 2: MORE_CHUNKS}.items():
                if change.blob(blob_of(number, chunks).digest) is None:
                    add(change, number, chunks)
        with index.snapshot() as txn:
            unique_chunks = index.store.head(txn).totals.unique_chunks
    finally:
        index.close()
    assert unique_chunks - totals_of({1: CHUNKS, 2: MORE_CHUNKS}).unique_chunks == (altered >= 4)


def read_again(index: Index, *, plausible: bool) -> None:
    """What the repair took out is found by the next scan, and nothing of the damage comes back with it."""
    counted = {1: CHUNKS, 2: MORE_CHUNKS, 3: [], 9: []}
    with index.transaction() as change:
        change.set_caches({CACHE: Cache("/cache")})
        for number, chunks in counted.items():
            if change.blob(blob_of(number, chunks).digest) is None:
                add_manifest(change) if number == 9 else add(change, number, chunks)
    with index.snapshot() as txn:
        assert index.store.get(txn, "manifests", MANIFEST_KEY) == INDEX
        totals = index.store.head(txn).totals
    expected = totals_of(counted)
    if plausible:  # what the record says was taken for true: of these, only `check --read` can tell
        names = (
            "measured_recompressed_bytes", "measured_xy", "measured_yy", "measured_copies_recompressed_bytes",
        )  # fmt: skip
        expected = replace(expected, **{name: getattr(totals, name) for name in names})
    assert replace(totals, failed_blobs=0, failed_bytes=0, archived_blobs=0, archived_bytes=0) == expected


def test_a_repaired_index_goes_on_as_if_nothing_had_been(bench: Bench) -> None:
    chunks = chunks_of(range(400))
    bench.add(1, chunks)
    bench.add(2, chunks[100:300])
    before = bench.totals
    with bench.index.transaction() as change:
        for database in ("young", "dense", "holders"):
            change.txn.drop(change.store.databases[database], delete=False)
    assert bench.differences()
    assert repair.repair_index(bench.index, set()) == []
    assert bench.totals == before
    bench.remove(2)
    bench.add(2, chunks[100:300])
    assert bench.totals == before


def test_a_recompressed_length_where_there_is_no_chunk_is_found_and_dropped(bench: Bench) -> None:
    with bench.closed():
        edit(bench.state_dir, "measured", bytes(8), b"\0\xe8\3\0\0")
    assert bench.differences() == [
        f"measured {bytes(8).hex()}: expected nothing from chunk 0 on, found recompressed lengths"
    ]
    assert repair.repair_index(bench.index, set()) == []
