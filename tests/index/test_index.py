"""The index against a plain model: whatever was added, removed and aborted, every figure and recipe is the model's."""

from __future__ import annotations

import contextlib
import random
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.errors import (
    BadIndex,
    ChunkdError,
    CopiesOverflow,
    FormatMismatch,
    IndexBusy,
    IndexDamaged,
    IndexUnreachable,
    IndexUnwritable,
    ParamsMismatch,
    RecipeImpossible,
)
from chunkd.figures import histogram
from chunkd.figures.totals import Totals
from chunkd.index import records
from chunkd.index.index import MOST_DOUBTED, Index, RecipeContradicts
from chunkd.index.records import Held, Rules
from chunkd.index.storage import environment
from chunkd.model import Blob, Cache, Caps, ChunkParams, FileMark, Place, Recipe
from counts import counted, some
from indexing import (
    CACHE,
    SLOTS,
    Bench,
    Chunk,
    add,
    blob_of,
    chunk,
    chunks_of,
    digest_of,
    edit,
    histogram_of,
    measured_of,
    picked,
    recipe_of,
    recipes_of,
    recompressed,
    records_of,
    recounted,
    remove,
    slot,
    small_bounds,
    totals_of,
)

MAX_COPIES = 2**40 - 1
Counted = dict[int, Sequence[Chunk]]


class Aborted(Exception):
    """Raised by a test in the middle of a transaction."""


def crowded(number: int) -> Chunk:
    """A chunk whose hash begins as those of many others do."""
    return chunk(number, bytes([number % 3, 0, 0, number % 2]))


def check(bench: Bench, counted: Counted) -> None:
    """The figures are the model's, and so are the recipes and copies as they lie on disk."""
    assert bench.totals == totals_of(counted)
    with bench.index.snapshot() as txn:
        rows = bench.index.store.histogram(txn)
    assert histogram.to_json(rows, 65536) == histogram_of(counted)
    bench.close()
    found = records_of(bench.state_dir)
    assert measured_of(found) == {
        chunk: recompressed(chunk) for chunks in counted.values() for chunk in chunks if picked(chunk)
    }
    assert recipes_of(found) == {
        blob_of(number, chunks).digest.hex: list(chunks) for number, chunks in counted.items() if chunks
    }
    head = records.unpack_head(found["meta"][b"head"])
    slots = [slot(found, number) for number in range(head.next_number)]
    assert Counter({slot[:2]: slot[2] for slot in slots if slot[2]}) == Counter(
        chunk for chunks in counted.values() for chunk in chunks
    )
    assert head.dead_chunks == sum(slot[2] == 0 for slot in slots)
    bench.reopen()


# --- any history ----------------------------------------------------------------------------------------------------

# Ranges of chunks that overlap, repeat and go back, as the layers of images do.
RANGES = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 250)), max_size=4)
CHUNKS = st.one_of(
    RANGES.map(lambda ranges: [crowded(number) for first, count in ranges for number in range(first, first + count)]),
    st.lists(st.integers(0, 9).map(crowded), max_size=30),
)
STEP = st.tuples(st.sampled_from(["add", "add", "remove"]), st.integers(0, 9), CHUNKS)
HISTORY = st.lists(
    st.tuples(st.lists(STEP, max_size=4), st.sampled_from(["commit", "commit", "commit", "abort", "reopen"])),
    max_size=10,
)


def work(bench: Bench, counted: Counted, steps: Sequence[tuple[str, int, Sequence[Chunk]]], how: str) -> Counted:
    """One transaction of those steps that make sense, in the index and in the model."""
    after = dict(counted)
    try:
        with bench.index.transaction() as change:
            for verb, number, chunks in steps:
                if verb == "add" and number not in after:
                    add(change, number, chunks)
                    after[number] = chunks
                elif verb == "remove" and number in after:
                    remove(change, number)
                    del after[number]
            if how == "abort":
                raise Aborted
    except Aborted:
        return counted
    if how == "reopen":
        bench.reopen()
    return after


@given(HISTORY)
def test_after_any_history_the_index_is_what_the_model_says(
    history: list[tuple[list[tuple[str, int, list[Chunk]]], str]],
) -> None:
    with small_bounds(), tempfile.TemporaryDirectory() as folder, recounted(Path(folder)) as bench:
        counted: Counted = {}
        for steps, how in history:
            counted = work(bench, counted, steps, how)
            assert bench.totals == totals_of(counted)
        check(bench, counted)


@settings(max_examples=counted(50))
@given(st.lists(CHUNKS, min_size=1, max_size=6), st.sets(st.integers(0, 5)), st.randoms(use_true_random=False))
def test_the_order_of_arrivals_and_removals_does_not_matter(
    layers: list[list[Chunk]], passing: set[int], chance: object
) -> None:
    """Some of the blobs are there only for a while: what is left at the end decides everything."""
    events = [("add", number) for number in range(len(layers))]
    getattr(chance, "shuffle")(events)  # noqa: B009 - Hypothesis' Random has no public type
    for number in sorted(passing & set(range(len(layers)))):
        at = events.index(("add", number))
        events.insert(getattr(chance, "randint")(at + 1, len(events)), ("remove", number))  # noqa: B009
    with small_bounds(), tempfile.TemporaryDirectory() as folder, recounted(Path(folder)) as bench:
        for verb, number in events:
            if verb == "add":
                bench.add(number, layers[number])
            else:
                bench.remove(number)
        check(bench, {number: chunks for number, chunks in enumerate(layers) if number not in passing})


def test_large_layers_at_full_size(bench: Bench) -> None:
    """More than one merge, one split and one block of everything, with the bounds that are in use."""
    counted: Counted = {}
    for number, (first, count) in enumerate([(0, 60_000), (30_000, 60_000), (5, 1), (0, 90_000), (90_000, 30_000)]):
        counted[number] = chunks_of(range(first, first + count))
        new = bench.add(number, counted[number])
        assert new == [60_000, 30_000, 0, 0, 30_000][number]
        assert bench.totals == totals_of(counted)
    for number in (3, 0):
        del counted[number]
        bench.remove(number)
    check(bench, counted)


# --- blobs of each kind ---------------------------------------------------------------------------------------------


def test_an_empty_index_has_zeros(bench: Bench) -> None:
    check(bench, {})
    assert bench.totals == Totals()


def test_blobs_that_are_no_layers_count_as_stored_bytes(bench: Bench) -> None:
    bench.add(1, [])
    bench.add(2, [])
    bench.add(3, [chunk(1)])
    assert bench.totals == Totals(1, 2, 1001 + 1002 + 1003, 1003, chunk(1)[1], 1, 1, chunk(1)[1])
    bench.remove(1)
    check(bench, {2: [], 3: [chunk(1)]})


def test_a_chunk_that_repeats_in_one_layer_has_as_many_copies(bench: Bench) -> None:
    chunks = chunks_of([1, 1, 2, 1, 1, 2, 3, 3, 3])
    assert bench.add(1, chunks) == 3
    check(bench, {1: chunks})


def test_a_chunk_of_many_layers_is_unique_once(bench: Bench) -> None:
    with bench.index.transaction() as change:
        assert [add(change, number, [chunk(7)]) for number in range(200)] == [1] + [0] * 199
    check(bench, {number: [chunk(7)] for number in range(200)})
    with bench.index.transaction() as change:
        for number in range(199):
            remove(change, number)
    check(bench, {199: [chunk(7)]})


def test_a_new_chunk_takes_the_next_number_in_order_of_first_sight(bench: Bench) -> None:
    bench.add(1, chunks_of([9, 3, 9, 5]))
    bench.add(2, chunks_of([5, 1, 9, 0]))
    bench.close()
    found = records_of(bench.state_dir)
    assert [slot(found, number)[:2] for number in range(5)] == chunks_of([9, 3, 5, 1, 0])
    assert found["recipes"][records.digest_key(blob_of(1, []).digest)] == bytes([0, 2, 3, 1, 2, 1])
    bench.reopen()


def test_first_sight_is_the_first_of_many(bench: Bench) -> None:
    wanted = random.Random(1).choices(range(100), k=1000)
    bench.add(1, chunks_of(wanted))
    with bench.closed() as found:
        assert [slot(found, number)[:2] for number in range(100)] == chunks_of(dict.fromkeys(wanted))


def test_equal_prefixes_with_other_hashes_are_other_chunks(bench: Bench) -> None:
    """Each candidate is held against the full hash: the first is seldom the right one here."""
    crowd = [chunk(number, b"same") for number in range(500)]
    counted: Counted = {1: crowd[:300], 2: crowd[::-1], 3: crowd[250:260] * 3}
    assert [bench.add(number, chunks) for number, chunks in counted.items()] == [300, 200, 0]
    check(bench, counted)


@pytest.mark.parametrize("seed", range(3))
def test_hashes_that_part_in_their_second_half_are_found_again(bench: Bench, seed: int) -> None:
    """Sorted by their first half alone, equal ones need not be neighbours."""
    chance = random.Random(seed)
    crowd = [(bytes([half]) * 8 + bytes(7) + bytes([last]), 4096 + last) for half in (1, 2) for last in range(40)]
    chunks = chance.sample(crowd, 80) + chance.sample(crowd, 60) + chance.sample(chunks_of(range(50)), 50)
    assert bench.add(1, chunks) == 130
    assert bench.add(2, chunks[::-1]) == 0
    check(bench, {1: chunks, 2: chunks[::-1]})


def test_hashes_that_differ_in_their_last_byte_alone_are_other_chunks(bench: Bench) -> None:
    chunks = [(bytes(15) + bytes([last]), 4096) for last in range(1, 256)]
    assert bench.add(1, chunks) == 255
    assert bench.add(2, chunks[::-1]) == 0
    check(bench, {1: chunks, 2: chunks[::-1]})


def test_the_removal_of_all_gives_zeros(bench: Bench) -> None:
    for number in range(5):
        bench.add(number, chunks_of(range(number * 100, 300)))
    for number in (3, 0, 4, 1, 2):
        bench.remove(number)
    assert bench.totals == Totals()
    check(bench, {})


def test_a_dead_chunk_revives_under_its_number(bench: Bench) -> None:
    chunks = chunks_of(range(400))
    bench.add(1, chunks)
    bench.close()
    before = records_of(bench.state_dir)
    bench.reopen()
    bench.remove(1)
    check(bench, {})
    assert bench.add(1, chunks) == 0
    check(bench, {1: chunks})
    bench.close()
    after = records_of(bench.state_dir)
    assert (after["recipes"], after["chunks"], after["meta"]) == (before["recipes"], before["chunks"], before["meta"])
    bench.reopen()


# --- what is refused, and changes nothing ---------------------------------------------------------------------------


@contextlib.contextmanager
def refused(bench: Bench, error: type[Exception] = IndexDamaged) -> Iterator[None]:
    """What happens inside is refused with this error, and not a byte of the index is another one after."""
    bench.close()
    before = records_of(bench.state_dir)
    bench.reopen()
    with pytest.raises(error):
        yield
    bench.close()
    assert records_of(bench.state_dir) == before
    bench.reopen()


def test_adding_twice_is_refused(bench: Bench) -> None:
    bench.add(1, chunks_of(range(9)))
    with refused(bench):
        bench.add(1, chunks_of(range(5, 15)))
    with refused(bench), bench.index.transaction() as change:
        add(change, 2, chunks_of(range(5, 15)))
        add(change, 2, chunks_of(range(5, 15)))
    bench.add(4, [])
    with refused(bench):
        bench.add(4, [])


def test_removing_what_is_absent_is_refused(bench: Bench) -> None:
    bench.add(1, chunks_of(range(9)))
    absent, present = blob_of(2, []).digest, blob_of(1, []).digest
    with refused(bench), bench.index.transaction() as change:
        change.remove(absent)
    with refused(bench), bench.index.transaction() as change:
        change.remove(present)
        change.remove(present)


def test_a_live_chunk_with_another_length_is_refused_and_its_holders_are_named(bench: Bench) -> None:
    name, length = chunk(1)
    bench.add(1, [(name, length)])
    for holders in range(1, MOST_DOUBTED + 3):
        with refused(bench, RecipeContradicts):
            bench.add(99, [chunk(2), (name, length + 1)])
        with pytest.raises(RecipeContradicts) as caught:
            bench.add(99, [chunk(2), (name, length + 1)])
        named = {blob_of(number, []).digest for number in range(1, holders + 1)}
        assert caught.value.chunk_hash == name
        assert set(caught.value.digests) == (named if holders <= MOST_DOUBTED else set())
        bench.add(holders + 1, [chunk(100 + holders), (name, length)])


def test_a_chunk_without_copies_contradicts_nothing(bench: Bench) -> None:
    """What a blob that was removed said of a chunk's length is gone with it, both ways, and so is its frame's."""
    truth = chunks_of(range(400))
    lie = [(name, length + (1 if length < 65536 else -1)) for name, length in truth[3:300:7]]
    assert any(map(picked, lie))
    bench.add(1, lie)
    bench.remove(1)
    assert bench.add(2, truth) == len(truth) - len(lie)
    check(bench, {2: truth})
    bench.remove(2)
    assert bench.add(1, lie) == 0
    check(bench, {1: lie})


def test_a_refused_recipe_leaves_no_length_behind(bench: Bench) -> None:
    name, length = chunk(7)
    lie = [(name, length - 1), chunk(8)]
    blob = replace(blob_of(1, lie), uncompressed_bytes=blob_of(1, lie).uncompressed_bytes + 5)
    with refused(bench, RecipeImpossible), bench.index.transaction() as change:
        change.add(blob, recipe_of(lie))
    bench.add(3, lie)
    bench.remove(3)
    with bench.index.transaction() as change, contextlib.suppress(RecipeImpossible):
        change.add(blob, recipe_of(lie))
    bench.add(2, [chunk(7), chunk(9)])
    check(bench, {2: [chunk(7), chunk(9)]})


def test_a_hash_with_two_lengths_in_one_recipe_is_refused(bench: Bench) -> None:
    name = chunk(1)[0]
    for lengths in ((5000, 5001), (5000, 6000, 4000), (6000, 5000, 7000)):
        with refused(bench, RecipeImpossible):
            bench.add(1, [(name, length) for length in lengths])


@pytest.mark.parametrize("length", [0, 65537, 1 << 24, (1 << 24) + 4096, (1 << 32) - 1])
def test_a_length_that_no_chunk_has_is_refused(bench: Bench, length: int) -> None:
    """A worker reads hostile bytes: what it says must not be able to spill into the copies."""
    name = chunk(1)[0]
    for claimed in (length, length & 0xFFFFFF):
        blob = replace(blob_of(1, [(name, length)]), uncompressed_bytes=claimed)
        with refused(bench, RecipeImpossible), bench.index.transaction() as change:
            change.add(blob, recipe_of([(name, length)]))


def test_a_recipe_that_does_not_go_with_its_blob_is_refused(bench: Bench) -> None:
    chunks = chunks_of(range(5))
    layer = blob_of(1, chunks)
    for blob, recipe in (
        (replace(layer, uncompressed_bytes=layer.uncompressed_bytes + 1), recipe_of(chunks)),
        (replace(layer, chunks=4), recipe_of(chunks)),
        (replace(layer, chunks=6), recipe_of(chunks)),
        (replace(layer, chunks=0, uncompressed_bytes=0), Recipe()),
        (replace(layer, state="other"), recipe_of(chunks)),
        (replace(layer, state="failed"), recipe_of(chunks)),
        (Blob(layer.digest, "failed", 5), Recipe()),
    ):
        with refused(bench, ChunkdError), bench.index.transaction() as change:
            change.add(blob, recipe)


def test_copies_that_do_not_fit_their_40_bits_are_refused(bench: Bench) -> None:
    chunks = chunks_of(range(200))
    bench.add(1, chunks)
    bench.close()
    key = (180 // SLOTS).to_bytes(8, "big")
    block = bytearray(records_of(bench.state_dir)["chunks"][key])
    true = bytes(block)
    struct.pack_into("<Q", block, 180 % SLOTS * 24 + 16, (MAX_COPIES - 2) << 24 | chunks[180][1])
    edit(bench.state_dir, "chunks", key, bytes(block))
    bench.reopen()
    with refused(bench, CopiesOverflow):
        bench.add(2, [chunk(500), *[chunks[180]] * 3])
    with pytest.raises(CopiesOverflow) as caught:
        bench.add(2, [chunk(500), *[chunks[180]] * 4])
    assert (caught.value.number, caught.value.copies) == (180, MAX_COPIES + 2)
    bench.add(2, [chunks[180]] * 2)
    bench.close()
    assert slot(records_of(bench.state_dir), 180) == (*chunks[180], MAX_COPIES)
    bench.reopen()
    bench.remove(2)
    bench.close()
    edit(bench.state_dir, "chunks", key, true)
    bench.reopen()


def test_a_name_that_no_file_has_is_damage(bench: Bench) -> None:
    key = records.place_key(Place(CACHE, "folder/name")).replace(b"name", b"na\0e")
    with bench.closed():
        edit(bench.state_dir, "places", key, b"")
    with pytest.raises(IndexDamaged), bench.index.snapshot() as txn:
        list(bench.index.store.under(txn, "places", CACHE, "folder"))
    with bench.closed():
        edit(bench.state_dir, "places", key, None)


def at_rest(bench: Bench) -> bool:
    with bench.index.snapshot() as txn:
        return bench.index.store.at_rest(txn)


def test_that_nothing_is_left_holds_until_something_is_changed(bench: Bench) -> None:
    bench.add(1, [chunk(1)])
    assert not at_rest(bench)
    for change_something in (
        lambda change: add(change, 2, [chunk(2)]),
        lambda change: change.ignore(Place(CACHE, "link"), "a symbolic link"),
        lambda change: change.unignore(Place(CACHE, "link")),
        lambda change: change.require_rehash(digest_of(2)),
        lambda change: change.rehashed(digest_of(2)),
        lambda change: change.scanned(99),
        lambda change: change.verified(99),
        lambda change: change.set_caches({CACHE: Cache("/cache", 5)}),
    ):
        bench.index.record_at_rest()
        bench.index.record_at_rest()
        bench.reopen()
        with bench.index.transaction() as change:  # nothing is changed
            change.unignore(Place(CACHE, "not there"))
            change.rehashed(digest_of(99))
            change.clear_failure(digest_of(99))
        with contextlib.suppress(Aborted), bench.index.transaction() as change:
            change_something(change)
            raise Aborted
        assert at_rest(bench)
        with bench.index.transaction() as change:
            change_something(change)
        assert not at_rest(bench)
    bench.index.record_at_rest()
    bench.index.record_at_rest(False)
    assert not at_rest(bench)


def test_what_is_raised_inside_a_transaction_undoes_all_of_it(bench: Bench) -> None:
    bench.add(1, chunks_of(range(300)))
    with refused(bench, Aborted), bench.index.transaction() as change:
        remove(change, 1)
        add(change, 2, chunks_of(range(200, 900)))
        change.fail(Blob(blob_of(3, []).digest, "failed", 7))
        change.ignore(Place(CACHE, "link"), "a symbolic link")
        change.require_rehash(blob_of(2, []).digest)
        change.set_caches({})
        change.set_rules(Rules(caps=Caps(ratio=7)))
        change.scanned(99)
        raise Aborted
    assert bench.index.rules == Rules()


def test_after_a_large_aborted_transaction_the_next_ones_are_right(bench: Bench) -> None:
    """The aborted one had split the look-up; what was remembered of that must be forgotten."""
    with small_bounds():
        for number in range(20):
            bench.add(number, [crowded(each) for each in range(number * 10, number * 10 + 10)])
        work(bench, {}, [("add", 99, [crowded(each) for each in range(5000)])], "abort")
        counted: Counted = {
            number: [crowded(each) for each in range(number * 10, number * 10 + 10)] for number in range(20)
        }
        for number in (30, 31):
            counted[number] = [crowded(each) for each in range(300)]
            bench.add(number, counted[number])
        check(bench, counted)


# --- failures, places, times ----------------------------------------------------------------------------------------


def test_failed_blobs_are_in_no_figure_but_their_own(bench: Bench) -> None:
    failed = Blob(blob_of(1, []).digest, "failed", 500, reason="gzip: cut short", tries=1, retry_at=9)
    with bench.index.transaction() as change:
        change.fail(failed)
        change.fail(replace(failed, stored_bytes=600, tries=2))
        assert change.failed(failed.digest) == replace(failed, stored_bytes=600, tries=2)
    assert bench.totals == totals_of({}, [600])
    bench.add(1, [chunk(1)])
    check(bench, {1: [chunk(1)]})
    with bench.index.transaction() as change:
        change.clear_failure(failed.digest)
        assert change.failed(failed.digest) is None
    check(bench, {1: [chunk(1)]})


def test_the_places_of_a_digest_stand_beside_it_alone(bench: Bench) -> None:
    one, other = blob_of(1, []).digest, blob_of(2, []).digest
    mark = FileMark(1, 2, 3, 4)
    places = [Place(CACHE, path) for path in ("a", "a/b", "caf\udce9", "z" * 440)]
    with bench.index.transaction() as change:
        for place in places:
            change.hold(place, Held(one, "untested", mark))
        change.hold(Place(CACHE, "other"), Held(other, "bad", mark))
    with bench.index.transaction() as change:
        assert list(change.holders(one)) == [(place, Held(one, "untested", mark)) for place in places]
        assert [place.path for place, _ in change.holders(other)] == ["other"]
        change.hold(places[0], Held(one, "verified", mark))
        change.release(places[1], one)
        assert [place for place, _ in change.holders(one)] == [places[0], *places[2:]]
        assert change.held(places[0]) == Held(one, "verified", mark)
        assert change.held(places[1]) is None
    with refused(bench), bench.index.transaction() as change:
        change.release(places[1], one)
    with bench.index.transaction() as change:  # a recount knows of no place without its blob
        for place in (places[0], *places[2:]):
            change.release(place, one)
        change.release(Place(CACHE, "other"), other)


def test_a_thing_is_ignored_once_for_each_reason(bench: Bench) -> None:
    place = Place(CACHE, "x")
    with bench.index.transaction() as change:
        assert [change.ignore(place, why) for why in ("a FIFO", "a FIFO", "a socket")] == [True, False, True]
        change.unignore(place)
        change.unignore(place)
        assert change.ignore(place, "a socket")


def test_a_suspect_is_one_until_it_is_acquitted_or_removed(bench: Bench) -> None:
    bench.add(1, [chunk(1)])
    digest = blob_of(1, []).digest
    with bench.index.transaction() as change:
        change.require_rehash(digest)
        assert change.needs_rehash(digest)
        change.rehashed(digest)
        assert not change.needs_rehash(digest)
        change.require_rehash(digest)
    bench.remove(1)
    with bench.index.transaction() as change:
        assert not change.needs_rehash(digest)


def test_the_head_says_when_it_was_last_changed(tmp_path: Path) -> None:
    now = [5]
    index = Index(str(tmp_path), Rules(), "a test", clock_ns=lambda: now[0])
    with contextlib.closing(index):

        def times() -> tuple[int, int]:
            with index.snapshot() as txn:
                head = index.store.head(txn)
            return head.as_of_ns, head.scanned_at_ns

        assert times() == (0, 0)
        with index.transaction() as change:
            change.scanned(3)
        assert times() == (5, 3)
        now[0] = 9
        with index.transaction() as change:
            change.add(blob_of(1, [chunk(1)]), recipe_of([chunk(1)]))
            change.remove(blob_of(1, []).digest)
        assert times() == (9, 3)
        now[0] = 11
        with index.transaction():
            pass
        assert times() == (9, 3)


def test_rules_are_kept_but_parameters_never_change(bench: Bench) -> None:
    rules = Rules(caps=Caps(ratio=9), decoder="another")
    with bench.index.transaction() as change:
        change.set_rules(rules)
    assert bench.index.rules == rules
    bench.reopen()
    assert bench.index.rules == rules


# --- opening --------------------------------------------------------------------------------------------------------


def opened(bench: Bench, params: ChunkParams | None = None) -> Index:
    return Index(str(bench.state_dir), Rules(params or ChunkParams()), "another test")


def test_a_second_index_is_refused_by_the_name_of_the_first(bench: Bench) -> None:
    bench.add(1, chunks_of(range(5)))
    with pytest.raises(IndexBusy) as caught:
        opened(bench)
    assert caught.value.holder.startswith("a test (pid ")
    bench.add(2, chunks_of(range(5)))


def test_other_parameters_are_another_index(bench: Bench) -> None:
    bench.close()
    with pytest.raises(ParamsMismatch) as caught:
        opened(bench, ChunkParams(mask_bits=13))
    assert "mask_bits=14" in caught.value.found
    assert "mask_bits=13" in caught.value.expected
    bench.reopen()


@pytest.mark.parametrize("found", [0, 1, records.FORMAT + 1, 99])
def test_another_format_is_named(bench: Bench, found: int) -> None:
    """Also to a reader, and where a database of this format is missing: none is made."""
    bench.close()
    before = edit(bench.state_dir, "meta", b"format", records.seal(found.to_bytes(4, "little")))
    for opens in (lambda: opened(bench), lambda: environment.Store(str(bench.state_dir / "index"), readonly=True)):
        with pytest.raises(FormatMismatch, match="chunkd rebuild") as caught:
            opens()
        assert (caught.value.found, caught.value.expected) == (found, records.FORMAT)
    edit(bench.state_dir, "meta", b"format", before)
    bench.reopen()


@pytest.mark.parametrize("key", [b"format", b"rules", b"head", b"caches", b"histogram"])
@pytest.mark.parametrize("chunks", [[], [chunk(1)]], ids=["no-chunks", "chunks"])
def test_a_record_that_is_missing_is_damage_and_not_a_new_index(bench: Bench, key: bytes, chunks: list[Chunk]) -> None:
    bench.add(1, chunks)
    bench.close()
    before = edit(bench.state_dir, "meta", key, None)
    with pytest.raises(IndexDamaged, match=key.decode()), contextlib.closing(opened(bench)) as index:
        read_sealed(index.store)
    edit(bench.state_dir, "meta", key, before)
    bench.reopen()


def read_sealed(one: environment.Store) -> None:
    with one.env.begin() as txn:
        one.check_format(txn, None)
        one.head(txn)
        one.caches(txn)
        one.histogram(txn)


@pytest.mark.counted
def test_every_altered_byte_of_a_sealed_record_is_noticed(bench: Bench) -> None:
    bench.add(1, chunks_of(range(5)))
    bench.close()
    for key in (b"format", b"rules", b"head", b"caches", b"histogram"):
        before = edit(bench.state_dir, "meta", key, None)
        assert before is not None
        for at in some(range(len(before))):
            edit(bench.state_dir, "meta", key, before[:at] + bytes([before[at] ^ 1 << at % 8]) + before[at + 1 :])
            with pytest.raises(IndexDamaged, match=key.decode()), environment.reading(str(bench.state_dir)) as one:
                read_sealed(one)
        edit(bench.state_dir, "meta", key, before)
    bench.reopen()


def test_a_file_in_the_place_of_the_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for state_dir in (tmp_path / "file", tmp_path / "file" / "state"):
        with pytest.raises(IndexUnreachable):
            Index(str(state_dir), Rules(), "a test")


def test_a_file_that_is_no_index_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(b"no such thing " * 1000)
    with pytest.raises(BadIndex):
        Index(str(tmp_path), Rules(), "a test")
    assert (tmp_path / "index" / "data.mdb").read_bytes() == b"no such thing " * 1000
    assert (tmp_path / "lock").read_bytes() == b""


# --- a disk that does not take it -----------------------------------------------------------------------------------


class FailingEnvironment:
    """An environment whose commits fail."""

    def __init__(self, env: lmdb.Environment, error: Exception) -> None:
        self.env, self.error = env, error

    @contextlib.contextmanager
    def begin(self, *, write: bool, buffers: Literal[True]) -> Iterator[lmdb.Transaction[memoryview[int]]]:
        txn = self.env.begin(write=write, buffers=buffers)
        try:
            yield txn
        finally:
            txn.abort()
        raise self.error


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (lmdb.DiskError("mdb_txn_commit: No space left on device"), IndexUnwritable),
        (lmdb.MapFullError("mdb_txn_commit: MDB_MAP_FULL"), IndexUnwritable),
        (lmdb.Error("mdb_txn_commit: Input/output error"), IndexUnwritable),
        (lmdb.Error("mdb_txn_commit: Disk quota exceeded"), IndexUnwritable),
        (lmdb.Error("mdb_txn_commit: File too large"), IndexUnwritable),
        (lmdb.Error("mdb_txn_commit: Read-only file system"), IndexUnwritable),
        (lmdb.PanicError("mdb_txn_begin: MDB_PANIC"), IndexUnreachable),
        (lmdb.Error("mdb_txn_commit: Permission denied"), IndexUnreachable),
        (lmdb.CorruptedError("mdb_txn_commit: MDB_CORRUPTED"), IndexDamaged),
        (lmdb.PageNotFoundError("mdb_txn_commit: MDB_PAGE_NOTFOUND"), IndexDamaged),
        (lmdb.InvalidError("mdb_txn_commit: MDB_INVALID"), IndexDamaged),
        (lmdb.BadValsizeError("mdb_put: MDB_BAD_VALSIZE"), lmdb.BadValsizeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_a_commit_that_fails_leaves_the_index_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, named: type[Exception]
) -> None:
    bench.add(1, chunks_of(range(300)))
    with monkeypatch.context() as patch:
        patch.setattr(bench.index.store, "env", FailingEnvironment(bench.index.store.env, error))
        with pytest.raises(named):
            bench.add(2, chunks_of(range(200, 500)))
    assert bench.totals == totals_of({1: chunks_of(range(300))})
    bench.add(2, chunks_of(range(200, 500)))
    check(bench, {1: chunks_of(range(300)), 2: chunks_of(range(200, 500))})


def add_all(bench: Bench, counted: Counted, layers: Sequence[list[Chunk]]) -> None:
    for number, chunks in enumerate(layers):
        bench.add(number, chunks)
        counted[number] = chunks


def test_a_map_that_is_full_can_be_worked_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 20)
    with recounted(tmp_path) as bench:
        counted: Counted = {}
        layers = [chunks_of(range(start, start + 1000)) for start in range(0, 100_000, 1000)]
        with pytest.raises(IndexUnwritable):
            add_all(bench, counted, layers)
        assert 3 < len(counted) < 100
        assert bench.totals == totals_of(counted)
        assert not bench.differences()
        bench.add(100, [])
        counted[100] = []
        monkeypatch.setattr(environment, "MAP_BYTES", 1 << 30)
        bench.reopen()
        bench.add(101, chunks_of(range(50_000, 52_000)))
        counted[101] = chunks_of(range(50_000, 52_000))
        check(bench, counted)


# --- the figures over unique chunks ---------------------------------------------------------------------------------


def test_what_is_removed_and_lands_again_brings_every_figure_back(bench: Bench) -> None:
    counted: Counted = {number: chunks_of(range(150 * number, 150 * number + 400)) for number in range(8)}
    for number, chunks in counted.items():
        bench.add(number, chunks)
    check(bench, counted)
    for number in range(0, 8, 2):
        bench.remove(number)
    check(bench, {number: chunks for number, chunks in counted.items() if number % 2})
    for number in (6, 2, 0, 4):
        bench.add(number, counted[number])
    check(bench, counted)


@pytest.mark.parametrize(
    "measured",
    [(), (1000, 1000, 1000), (1000, 0), (9, 1000), (65536 * 2, 1000), (1000, 1001, 1000)],
    ids=["none", "one-too-many", "nothing", "shorter-than-a-frame", "longer-than-any", "two-for-one"],
)
def test_recompressed_lengths_that_no_worker_finds_are_refused(bench: Bench, measured: tuple[int, ...]) -> None:
    chunks = [one for one in chunks_of(range(200)) if picked(one)][:2]
    if len(measured) == 3 and len(set(measured)) == 2:
        chunks.append(chunks[0])
        measured = (1000, 1000, 1001)
    recipe = replace(recipe_of(chunks), measured=struct.pack(f"<{len(measured)}I", *measured))
    with pytest.raises(RecipeImpossible, match="recompressed"), bench.index.transaction() as change:
        change.add(blob_of(1, chunks), recipe)
    assert bench.totals == Totals()
