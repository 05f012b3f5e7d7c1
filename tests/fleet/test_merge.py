"""The figures of a store are those of one index that has the blobs of all its sources, however they came into it."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.fleet import tables
from chunkd.fleet.merge import NothingToMerge, merge, sources_of
from chunkd.fleet.store import RulesDiffer, blobs_name, rows_name
from chunkd.index.records import Rules
from chunkd.model import Caps, ChunkParams, MeasureRule
from counts import counted
from fleets import SECOND_NS, failed, figures, merged, of_one_index, put_host, source_of, split
from indexing import chunks_of
from stores import Blobs, entries_of, key_at, rows_in, store_at

# Layers that share a base and repeat themselves, and others; some are held by several hosts.
BLOBS: Blobs = {
    number: chunks_of([*range(100), *range(number * 170, number * 170 + 350), *range(number, number + 20)])
    for number in range(1, 13)
} | {40: [], 41: [], 42: []}
HOSTS = ([1, 2, 3, 4, 5, 40], [1, 2, 6, 7, 40, 41], [3, 8, 9, 10, 11, 12, 42])


def put_hosts(store: Any, hosts: Any = HOSTS, blobs: Blobs = BLOBS, **more: Any) -> None:
    for host, numbers in enumerate(hosts):
        put_host(store, host, [split(blobs, numbers[:3]), split(blobs, numbers[3:])], **more)


def test_the_figures_are_those_of_one_index(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_hosts(store)
    found = merged(store)
    expected = of_one_index(tmp_path / "state", BLOBS)
    assert expected["recompressed_bytes"]
    assert expected["net"]
    assert figures(found) == expected
    assert (found["pending_blobs"], found["warnings"], found["caches"]) == (0, [], [])


@settings(max_examples=counted(40))
@given(data=st.data())
def test_whatever_the_hosts_batches_orders_and_ranges(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Also with blobs that went, segments that nobody refers to, and sources that export again."""
    folder = tmp_path_factory.mktemp("fleet")
    store = store_at(folder / "store")
    numbers = st.lists(st.sampled_from(sorted(BLOBS)), unique=True, max_size=8)
    latest: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 5), "exports")):
        host, own = data.draw(st.integers(0, 2), "host"), data.draw(numbers, "blobs")
        cut = data.draw(st.integers(0, len(own)), "cut")
        put_host(store, host, [split(BLOBS, batch) for batch in (own[:cut], own[cut:])])
        latest[host] = own
    all_held = {number: BLOBS[number] for own in latest.values() for number in own}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_A_RANGE", data.draw(st.sampled_from([300, 1000, 1 << 30]), "rows a range"))
        found = merged(store)
    assert figures(found) == of_one_index(folder / "state", all_held)
    copies = [number for own in latest.values() for number in own if BLOBS[number]]
    assert found["fleet"]["waterfall"]["copies_layers"] == len(copies)
    assert found["fleet"]["waterfall"]["copies_bytes"] == sum(1000 + number for number in copies)


def test_adding_up_tables_of_hosts_is_wrong(tmp_path: Path) -> None:
    """What two hosts both hold would count twice."""
    store = store_at(tmp_path / "store")
    hosts = ([1, 2, 3], [2, 3, 4])
    put_hosts(store, hosts)
    tables_of_hosts = [Counter(chunk for number in own for chunk in BLOBS[number]) for own in hosts]
    naive: Counter[Any] = sum(tables_of_hosts, Counter())
    uncompressed_bytes = sum(length * copies for (_, length), copies in naive.items())
    naive_redundancy = 1 - sum(length for _, length in naive) / uncompressed_bytes
    found = merged(store)
    assert (
        found["redundancy"]
        == of_one_index(tmp_path / "state", {number: BLOBS[number] for number in (1, 2, 3, 4)})["redundancy"]
    )
    assert naive_redundancy > found["redundancy"] + 0.05


def test_a_digest_on_several_hosts_counts_once_and_in_their_copies_once_each(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    # Host 2 has it in two segments, of which its snapshot names one.
    put_host(store, 2, [split(BLOBS, [5, 6])])
    put_hosts(store, ([5], [5, 7], [5, 8]))
    found = merged(store)
    assert (found["layers"], found["layer_stored_bytes"]) == (4 - 1, 1005 + 1007 + 1008)
    waterfall = found["fleet"]["waterfall"]
    assert (waterfall["copies_layers"], waterfall["copies_bytes"]) == (5, 3 * 1005 + 1007 + 1008)
    assert (waterfall["distinct_layers"], waterfall["distinct_layers_bytes"]) == (3, 3020)
    assert waterfall["unique_chunks_bytes"] == found["unique_bytes"]
    assert waterfall["recompressed_with_index_bytes"] == found["recompressed_bytes"] + found["index_overhead_bytes"]
    assert [row["layers"] for row in found["fleet"]["sources"]] == [1, 2, 2]


def test_what_went_from_every_host_is_subtracted_and_no_row_of_it_is_read(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1, 2])])
    (gone,) = put_host(store, 1, [split(BLOBS, [3, 4])])
    put_host(store, 1, [split(BLOBS, [5])])
    for name in (rows_name(gone), blobs_name(gone)):
        (tmp_path / "store" / name).write_bytes(b"nobody reads this")
    assert figures(merged(store)) == of_one_index(tmp_path / "state", {number: BLOBS[number] for number in (1, 2, 5)})


def test_counted_wins_over_failed(tmp_path: Path) -> None:
    """Caps and decoders may differ: what one host could decode counts."""
    store = store_at(tmp_path / "store")
    put_host(store, 0, [[*split(BLOBS, [2, 3]), failed(6, 1006), failed(90, 5), failed(92, 9)]])
    put_host(store, 1, [[*split(BLOBS, [4, 6]), failed(90, 7)]], Rules(decoder="9", caps=Caps(ratio=9)))
    found = merged(store)
    expected = of_one_index(tmp_path / "state", {number: BLOBS[number] for number in (2, 3, 4, 6)})
    differing = {"failed_blobs", "failed_bytes", "params"}
    assert {name: value for name, value in figures(found).items() if name not in differing} == {
        name: value for name, value in expected.items() if name not in differing
    }
    assert found["failed_blobs"] == 2
    assert found["failed_bytes"] in (5 + 9, 7 + 9)
    assert found["params"]["caps"] is None
    assert found["fleet"]["waterfall"]["copies_layers"] == 5


def test_under_a_key_the_figures_are_the_same(tmp_path: Path) -> None:
    plain = store_at(tmp_path / "plain")
    key = key_at(tmp_path / "key")
    hidden = store_at(tmp_path / "hidden", key=key)
    put_hosts(plain)
    put_hosts(hidden, key=key)
    assert figures(merged(hidden)) == figures(merged(plain))


def test_unlike_rules_and_keys_never_merge(tmp_path: Path) -> None:
    """Also if somebody copied what is of another store into this one."""
    key, other = key_at(tmp_path / "key"), key_at(tmp_path / "other", "cd" * 32)
    for number, (rules, theirs) in enumerate(
        [(Rules(ChunkParams(mask_bits=13)), None), (Rules(), other), (Rules(), key)]
    ):
        ours = None if number != 1 else key
        store = store_at(tmp_path / f"store {number}", key=ours)
        put_host(store, 0, [split(BLOBS, [1])], key=ours)
        put_host(store, 1, [split(BLOBS, [2])], rules, theirs)
        with pytest.raises(RulesDiffer) as refused:
            merged(store)
        said = str(refused.value)
        assert "host-1" in said
        assert all(text in said for text in (("13", "14") if number == 0 else (theirs.id,) if theirs else ()))


def measured_by(rule: MeasureRule, numbers: list[int]) -> list[Any]:
    """The blobs as a host with this rule has them; a chunk's recompressed length is that of the tests."""
    entries = []
    for blob, recipe, manifest in entries_of({number: BLOBS[number] for number in numbers}):
        chunks = BLOBS[blob.stored_bytes - 1000]
        picked = [chunk for chunk in chunks if rule.picks(chunk[0])]
        lengths = b"".join((chunk[1] * (30 + chunk[0][13] % 61) // 100).to_bytes(4, "little") for chunk in picked)
        entries.append((blob, dataclasses.replace(recipe, measured=lengths), manifest))
    return entries


@pytest.mark.parametrize(
    ("rates", "as_if"),
    [((4, 16), 16), ((1, 16), 16), ((16, 16), 16), ((3, 16), 16), ((9, 12), 16), ((1, 1), 1), ((6, 6), 6), ((2, 1), 2)],
)
def test_the_coarsest_rate_counts(tmp_path: Path, rates: tuple[int, int], as_if: int) -> None:
    for name, key in ("plain", None), ("hidden", key_at(tmp_path / "key")):
        store = store_at(tmp_path / name, key=key)
        for host, one_in in enumerate(rates):
            rule = MeasureRule(one_in=one_in)
            put_host(store, host, [measured_by(rule, [1, 2, 3 + host])], Rules(measure=rule), key)
        expected = store_at(tmp_path / f"{name} expected")
        rule = MeasureRule(one_in=as_if)
        put_host(expected, 0, [measured_by(rule, [1, 2, 3, 4])], Rules(measure=rule))
        found = merged(store)
        assert figures(found) == figures(merged(expected))
        assert found["params"]["measure"]["one_in"] == as_if


@pytest.mark.parametrize(
    "rules",
    [
        Rules(measure=MeasureRule(level=9)),
        Rules(measure=MeasureRule(library="1.5.6")),
        Rules(asked=MeasureRule(library="1.5.6")),
    ],
    ids=["level", "library", "mixed library"],
)
def test_unlike_measuring_leaves_out_what_depends_on_it_and_names_the_hosts(tmp_path: Path, rules: Rules) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1, 2])])
    # The lengths contradict those of the other host, which is no fault here.
    numbers = [2, 3]
    entries = [
        (blob, dataclasses.replace(recipe, measured=b"\x0b\0\0\0" * (len(recipe.measured) // 4)), manifest)
        for blob, recipe, manifest in split(BLOBS, numbers)
    ]
    put_host(store, 1, [entries], rules)
    found = figures(merged(store))
    expected = of_one_index(tmp_path / "state", {number: BLOBS[number] for number in (1, 2, 3)})
    unknown = {name for name, value in found.items() if value is None and expected[name] is not None}
    assert unknown == {
        *("recompressed_bytes", "recompressed_error_bytes", "net_bytes", "net", "break_even_unique", "measured_chunks"),
        *("codec_saving_bytes", "deduplication_saving_bytes"),
    }
    assert expected["index_overhead_bytes"] == found["index_overhead_bytes"]
    same = found.keys() - unknown - {"params"}
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    (warning,) = merged(store)["warnings"]
    assert "host-0" in warning
    assert "host-1" in warning
    assert rules.measure.library in warning
    assert merged(store)["fleet"]["waterfall"]["recompressed_with_index_bytes"] is None


def test_two_lengths_of_a_chunk_name_both_segments(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    (one,) = put_host(store, 0, [split(BLOBS, [1])])
    (hash_, length), *others = BLOBS[2]
    lying = [(hash_, length + 1), *others]
    blobs = {2: lying}
    (other,) = put_host(store, 1, [entries_of(blobs)])
    with pytest.raises(tables.SegmentsDisagree) as refused:
        merged(store)
    assert {refused.value.one, refused.value.other} == {one, other}
    assert hash_.hex() in str(refused.value)


def test_two_recompressed_lengths_of_a_chunk_name_both_segments(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    (one,) = put_host(store, 0, [split(BLOBS, [1])])
    blob, recipe, _ = split(BLOBS, [2])[0]
    assert recipe.measured
    lying = dataclasses.replace(recipe, measured=b"\x0b\0\0\0" * (len(recipe.measured) // 4))
    (other,) = put_host(store, 1, [[(blob, lying, b"")]])
    with pytest.raises(tables.SegmentsDisagree) as refused:
        merged(store)
    assert {refused.value.one, refused.value.other} == {one, other}


def test_two_sizes_of_a_blob_name_both_segments(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    (one,) = put_host(store, 0, [split(BLOBS, [1])])
    blob, recipe, _ = split(BLOBS, [1])[0]
    (other,) = put_host(store, 1, [[(dataclasses.replace(blob, stored_bytes=5), recipe, b"")]])
    with pytest.raises(tables.SegmentsDisagree) as refused:
        merged(store)
    assert {refused.value.one, refused.value.other} == {one, other}


def test_old_sources_are_left_out_and_named(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1, 2])], as_of_s=100)
    put_host(store, 1, [split(BLOBS, [2, 3])], as_of_s=200)
    (tmp_path / "store" / "snapshots" / source_of(2)).mkdir()
    found = merged(store, 200 * SECOND_NS)
    assert figures(found) == of_one_index(tmp_path / "state", {number: BLOBS[number] for number in (2, 3)})
    assert [(row["source"], row["name"]) for row in found["fleet"]["left_out"]] == [
        (source_of(0), "host-0"), (source_of(2), ""),
    ]  # fmt: skip
    assert [row["name"] for row in found["fleet"]["sources"]] == ["host-1"]
    assert found["as_of"] == "1970-01-01T00:03:20.000Z"
    assert len(merged(store)["fleet"]["sources"]) == 2
    with pytest.raises(NothingToMerge):
        merged(store, 201 * SECOND_NS)


def test_hosts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_hosts(store)
    sources = sources_of(store)
    alike = tuple(
        dataclasses.replace(one, facts=dataclasses.replace(one.facts, name="pod")) for one in sources.counted[:2]
    )
    names = dataclasses.replace(sources, counted=(*alike, sources.counted[2])).names
    assert names == [f"pod ({source_of(0)[:8]})", f"pod ({source_of(1)[:8]})", "host-2"]


def test_a_fleet_without_a_layer(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    with pytest.raises(NothingToMerge):
        merged(store)
    put_host(store, 0, [split(BLOBS, [40])])
    put_host(store, 1, [])
    assert figures(merged(store)) == of_one_index(tmp_path / "state", {40: []})


def test_a_blob_that_no_segment_has_names_its_source(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1])])
    (made,) = put_host(store, 1, [split(BLOBS, [2, 3])])
    smaller = store_at(tmp_path / "smaller")
    (few,) = put_host(smaller, 1, [split(BLOBS, [2])])
    for name in (rows_name, blobs_name):
        (tmp_path / "store" / name(made)).write_bytes((tmp_path / "smaller" / name(few)).read_bytes())
    with pytest.raises(tables.BlobsMissing) as missing:
        merged(store)
    assert "host-1" in str(missing.value)
    assert made in str(missing.value)


def test_a_store_below_a_folder_whose_name_has_wildcards(tmp_path: Path) -> None:
    store = store_at(tmp_path / "a*b[c]?'d")
    put_hosts(store)
    assert merged(store)["layers"] == 12


def test_little_memory_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    put_hosts(store)
    with pytest.raises(tables.StoreTooLarge):
        merge(store, sources_of(store), memory_bytes=1 << 16)


def test_every_pair_of_ranges_covers_every_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(tmp_path / "store")
    put_hosts(store)
    monkeypatch.setattr(tables, "ROWS_A_RANGE", 100)
    with tables.Tables(store) as found:
        for number, one in enumerate(sources_of(store).counted):
            found.add_snapshot(number, one)
        for segment in store.names("segments", ".blobs.parquet"):
            found.add_segment(segment)
        found.choose(["a", "b", "c"])
        ranges = list(found.ranges())
    rows = sum(len(rows_in(store, segment)) for segment in store.names("segments", ".blobs.parquet"))
    assert len(ranges) // 2 * 100 < rows <= len(ranges) * 100
    assert (ranges[0][0], ranges[-1][1]) == (bytes(16), b"\xff" * 16)
    for (_, last), (first, _) in itertools.pairwise(ranges):
        assert int.from_bytes(last, "big") + 1 == int.from_bytes(first, "big")
