"""A total that an index did not count yet is unknown: figures that need it are null, and a recount counts it."""

from __future__ import annotations

from chunkd.check.repair import repair_index
from chunkd.figures.names import FIGURES, GATED, KEPT, METRICS, value_of
from chunkd.figures.totals import TOTALS, Totals
from chunkd.index import records
from chunkd.index.history import moment_key
from chunkd.queries.history import figures_of, read_history
from chunkd.queries.read import read_stats
from indexing import NOW_NS, Bench, chunks_of, edit, totals_of

COUNTED = {1: chunks_of(range(300)), 2: chunks_of(range(200, 400)), 3: []}
LATER = ("unique_bytes", "failed_bytes")


def without(value: bytes) -> bytes:
    """The head, of a version that did not count these totals."""
    head = records.unpack_head(value)
    known = {name: figure for name, figure in vars(head.totals).items() if name not in LATER}
    own = {name: getattr(head, name) for name in ("next_number", "dead_chunks", "young_entries", "as_of_ns")}
    return records.pack_head(records.Head(Totals.of(known | {"of_a_later_version": 7}), **own))


def test_a_total_that_was_not_counted_is_unknown_until_it_is(bench: Bench) -> None:
    for number, chunks in COUNTED.items():
        bench.add(number, chunks)
    with bench.closed() as found:
        edit(bench.state_dir, "meta", b"head", without(found["meta"][b"head"]))
    stats = read_stats(bench.index.store).to_json()
    unknown = {name for name in FIGURES if stats[name] is None}
    assert unknown >= {"unique_bytes", "redundancy", "recompressed_bytes", "net", "failed_bytes"}
    assert not unknown & {"blobs", "layers", "stored_bytes", "uncompressed_bytes", "unique_chunks", "failed_blobs"}
    bench.remove(2)
    with bench.index.snapshot() as txn:
        totals = bench.index.store.head(txn).totals
    expected = vars(totals_of({1: COUNTED[1], 3: []}))
    assert vars(totals) == {name: value for name, value in expected.items() if name not in LATER}
    assert sorted(difference.split()[1] for difference in bench.differences()) == [f"{name}:" for name in sorted(LATER)]
    assert repair_index(bench.index, set()) == []
    assert bench.totals == totals_of({1: COUNTED[1], 3: []})


def test_a_row_of_history_has_what_was_counted_then(bench: Bench) -> None:
    bench.add(1, COUNTED[1])
    with bench.closed():
        row = records.pack_totals(Totals.of({"layers": 5, "others": 1}))
        edit(bench.state_dir, "history", moment_key(NOW_NS // 10**9 // 60 - 100), row)
    first, last = read_history(bench.index.store, "2000-01-01", 10, NOW_NS)["history"]
    assert {name: value for name, value in first.items() if value is not None and name != "at"} == {
        "blobs": 6, "layers": 5,
    }  # fmt: skip
    assert last == {"at": last["at"]} | figures_of(bench.totals)


def test_each_figure_is_of_the_totals_or_of_the_moment() -> None:
    of_the_moment = {"pending_blobs", "pending_bytes", "index_bytes", "unlisted_folders"}
    assert {name for name, figure in FIGURES.items() if figure.of is None and name not in TOTALS} == of_the_moment
    for name in FIGURES.keys() - of_the_moment:
        assert value_of(name, Totals.of({})) is None
    assert set(GATED) | set(KEPT) | set(METRICS) <= set(FIGURES)
    assert not of_the_moment & set(KEPT)
