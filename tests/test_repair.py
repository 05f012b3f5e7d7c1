"""`check --repair` leaves nothing for a recount to find, or says that it can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunkd import recount as recount_module
from chunkd import repair
from chunkd.index import Index
from chunkd.records import Rules
from chunkd.recount import recount
from chunkd.store import reading
from indexing import SLOTS, Bench, chunks_of
from test_recount import DAMAGES, Damage, copy, damaged, differences, whole

__all__ = ["copy", "whole"]

# Two live chunks with one hash: which of the two the recipes mean is not known.
BEYOND_REPAIR = {"hash-of-another"}


@pytest.mark.parametrize("window", [recount_module.WINDOW, 2 * SLOTS])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_every_damage_is_repaired(copy: Path, damage: Damage, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recount_module, "WINDOW", window)
    monkeypatch.setattr(repair, "WINDOW", window)
    damaged(copy, damage)
    with reading(str(copy)) as store, store.guarded(), store.env.begin() as txn:
        tally = recount(store, txn)
    assert tally.differences
    index = Index(str(copy), Rules(), "the test")
    try:
        left = repair.repair_index(index, set(tally.bad))
    finally:
        index.close()
    assert bool(left) == (damage.name in BEYOND_REPAIR)
    assert differences(copy) == left


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
