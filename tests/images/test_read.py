"""Images out of an index: the figures are those of the oracle, and of one moment."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkd.errors import IndexDamaged, TooManyImages, UsageError
from chunkd.images import answers, atoms, read
from chunkd.index import records
from chunkd.names import record
from chunkd.queries.read import moment
from counts import counted
from image_oracle import World
from indexed import put
from indexing import CACHE, NOW_NS, Bench, recounted, small_bounds
from worlds import Maker, real, worlds

ADDED = {"as_of", "names_as_of", "commit", "next", "order", "names_without_blob"}


def ask(bench: Bench, function: Any, *arguments: Any) -> dict[str, Any]:
    return answers.asked(bench.index.store, (function, arguments))


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    """Without what the oracle does not say."""
    found = {name: value for name, value in reply.items() if name not in ADDED}
    for row in found.get("images", ()):
        assert row.pop("left_out") == 0
    return found


@settings(max_examples=counted(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds(), seed=st.integers(0, 1 << 30), range_numbers=st.integers(1, 13))
def test_the_figures_are_those_of_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, world: World, seed: int, range_numbers: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, small_bounds(), recounted(tmp_path_factory.mktemp("index")) as bench:
        patch.setattr(atoms, "MOST_NUMBERS", range_numbers)
        oracle = put(bench, world)
        reply = ask(bench, answers.images, "image")
        assert plain(reply) == oracle.images()
        assert plain(ask(bench, answers.images, "repository")) == oracle.by_repository()
        assert reply["names_as_of"] is None
        totals = bench.totals
        partial, unheld = reply["partial"], reply["unheld"]
        known = [row["chunks"]["fair_share_bytes"] for row in reply["images"] if row["chunks"]]
        assert sum(known) + partial["fair_share_bytes"] + unheld["unique_bytes"] == totals.unique_bytes
        stored = [row["stored"]["new_bytes"] for row in reply["images"]]
        assert sum(stored) + unheld["stored_bytes"] == totals.stored_bytes
        some = [root for root in oracle.roots if random.Random(seed).random() < 0.5]
        if some:
            found = ask(bench, answers.freed, some, 0)
            assert {name: found[name] for name in oracle.freed(some)} == oracle.freed(some)


def test_what_is_freed_is_what_the_index_loses(bench: Bench) -> None:
    """Removing the blobs lowers the unique bytes by exactly the chunk column."""
    make = Maker()
    base = make.layer(1, 2, 3)
    first = make.name("a:1", make.image(base, make.layer(3, 4, 5)))
    make.name("a:2", make.image(base, make.layer(5, 6)))
    put(bench, make.world)
    before, reply = bench.totals, ask(bench, answers.freed, [first], 0)
    with bench.index.transaction() as change:
        for name in reply["stored"]["blobs"]:
            digest = real(name)
            change.release(next(place for place, _ in change.holders(digest)), digest)
            change.remove(digest)
    assert before.unique_bytes - bench.totals.unique_bytes == reply["chunks"]["bytes"] == 104
    assert before.stored_bytes - bench.totals.stored_bytes == reply["stored"]["bytes"] > 0


def test_dead_chunks_are_not_counted(bench: Bench) -> None:
    make = Maker()
    make.name("a:1", make.image(make.layer(1, 2)))
    gone = make.layer(7, 8, 9)
    put(bench, make.world)
    assert ask(bench, answers.images, "image")["unheld"]["unique_bytes"] == 107 + 108 + 109
    with bench.index.transaction() as change:
        change.release(next(place for place, _ in change.holders(real(gone))), real(gone))
        change.remove(real(gone))
    assert ask(bench, answers.images, "image")["unheld"] == {"blobs": 0, "stored_bytes": 0, "unique_bytes": 0}


def test_similar_images(bench: Bench) -> None:
    make = Maker()
    one = make.name("a:1", make.image(make.layer(*range(10))))
    other = make.name("b:1", make.image(make.layer(*range(1, 11))))
    make.name("c:1", make.image(make.layer(20, 21)))
    put(bench, make.world)
    reply = ask(bench, answers.similar, 500)
    both = sum(100 + chunk for chunk in range(1, 10))
    assert {row["digest"] for row in reply["alike"]} == {one, other}
    assert {row["cluster"] for row in reply["alike"]} == {1}
    [pair] = reply["pairs"]
    assert [row["names"] for row in pair["images"]] == [["a:1"], ["b:1"]]
    assert pair["overlap_bytes"] == both
    assert pair["similarity"] == both / (both + 100 + 110)
    assert pair["contained"] == [both / (both + 100), both / (both + 110)]
    assert ask(bench, answers.similar, 900)["alike"] == []


def test_a_revision_that_another_image_holds_too_is_not_deleted(bench: Bench) -> None:
    make = Maker()
    shared = make.image(make.layer(1))
    one = make.name("a:1", make.index(shared))
    other = make.name("a:2", make.index(shared, make.image(make.layer(2))))
    for revision in (shared, one):
        make.name("a:", revision, standing="held")
    put(bench, make.world)

    def deleted(*images: str) -> set[str]:
        return {row["digest"] for row in ask(bench, answers.freed, images, 0)["collection"]["delete"]}

    assert deleted(one) == {one}
    assert deleted(other) == set()
    assert deleted(one, other) == {one, shared}


def test_names_are_as_old_as_the_oldest_last_reading(bench: Bench) -> None:
    with bench.index.transaction() as change:
        change.put_names(records.names_key(CACHE, b""), record.encode_reading(record.Reading(NOW_NS)))
    assert ask(bench, answers.images, "image")["names_as_of"] == moment(NOW_NS)
    with bench.index.transaction() as change:
        change.put_names(records.names_key(0, b""), record.encode_reading(record.Reading(NOW_NS - 10**9)))
    assert ask(bench, answers.similar, 500)["names_as_of"] == moment(NOW_NS - 10**9)


def test_an_empty_index(bench: Bench) -> None:
    assert ask(bench, answers.images, "image")["images"] == []
    assert ask(bench, answers.images, "repository")["repositories"] == []
    assert ask(bench, answers.similar, 500)["pairs"] == []
    with pytest.raises(UsageError):
        ask(bench, answers.freed, ["*"], 0)


# --- bounds and damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["MOST_BLOBS", "MOST_EDGES", "MOST_NAMES"])
def test_more_than_memory_is_meant_for(bench: Bench, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    make = Maker()
    layer = make.layer(1)
    make.name("a:1", make.image(layer))
    make.name("a:2", make.image(layer))
    put(bench, make.world)
    most = {"MOST_BLOBS": 5, "MOST_EDGES": 4, "MOST_NAMES": 2}[bound]
    monkeypatch.setattr(read, bound, most)
    assert len(ask(bench, answers.images, "image")["images"]) == 2
    monkeypatch.setattr(read, bound, most - 1)
    with pytest.raises(TooManyImages):
        ask(bench, answers.images, "image")


def test_names_without_end_are_left_out_and_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    image = make.image(make.layer(1))
    for number in range(5):
        make.name(f"a:{number}", image)
    put(bench, make.world)
    monkeypatch.setattr(answers, "MOST_SHOWN", 3)
    [row] = ask(bench, answers.images, "image")["images"]
    assert (row["names"], row["left_out"]) == (["a:0", "a:1", "a:2"], 2)
    reply = ask(bench, answers.freed, [image], 0)
    assert (len(reply["names"]), reply["names_left_out"]) == (3, 2)


@pytest.mark.parametrize("database", ["manifests", "names", "recipes"])
def test_a_damaged_record_is_damage(bench: Bench, database: str) -> None:
    make = Maker()
    make.name("a:1", make.image(make.layer(1)))
    put(bench, make.world)
    store = bench.index.store
    with store.env.begin(write=True) as txn, txn.cursor(db=store.databases[database]) as cursor:
        assert cursor.first()
        key, value = bytes(cursor.key()), bytes(cursor.value())
        cursor.put(key, records.seal(b"[]") if database == "names" else value[:-1])
    with pytest.raises(IndexDamaged):
        ask(bench, answers.images, "image")
    with store.env.begin(write=True) as txn:
        txn.put(key, value, db=store.databases[database])
