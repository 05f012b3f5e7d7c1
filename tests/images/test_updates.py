"""What updates move, out of an index: each pair is what `diff` says of it, and the medians are those of the pairs."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkd.errors import UsageError
from chunkd.images import answers, moves
from chunkd.images import updates as updates_module
from counts import counted
from image_oracle import World
from indexed import measured, put, put_world
from indexing import Bench, recounted, small_bounds
from test_pulls import diff
from worlds import Maker, worlds


def updates(bench: Bench, reference: str, platform: str = "") -> dict[str, Any]:
    return answers.asked(bench.index.store, (answers.updates, (reference, platform)))


def versions(make: Maker, repository: str, count: int, step: int = 2) -> list[str]:
    """Images of two layers: one that all have, and one of 39 chunks, `step` of which each version replaces."""
    base = make.layer(*range(900, 920), size=1500)
    found = []
    for number in range(count):
        own = make.layer(*(chunk + 200 * (chunk <= step * number) for chunk in range(1, 40)), size=4000)
        found.append(make.name(f"{repository}:1.{number}", make.image(base, own), 1000 - number))
    return found


SAME = ("from", "to", "partial", "pulled", "layers", "chunks", "cheaper", "measured_by")


def of_diff(bench: Bench, client: str | None, to: str, platform: str = "") -> dict[str, Any]:
    found = diff(bench, [client] if client else [], to, platform)
    found["from"] = client
    return {name: found[name] for name in SAME}


def plain(pair: dict[str, Any]) -> dict[str, Any]:
    return {name: pair[name] for name in SAME}


def test_each_pair_is_what_diff_says_and_the_medians_are_theirs(bench: Bench) -> None:
    make = Maker()
    images = versions(make, "shop/api", 14)
    make.name("shop/api:latest", images[4], 5)
    put(bench, make.world)
    found = updates(bench, "shop/api")
    assert (found["order"], found["versions"], found["tag"]) == ("versions", 14, None)
    assert found["left_out"]["tags"] == ["latest"]
    assert [plain(pair) for pair in found["pairs"]] == [
        of_diff(bench, one, other) for one, other in itertools.pairwise(images)
    ]
    assert [pair["to_names"] for pair in found["pairs"]] == [[f"shop/api:1.{number}"] for number in range(1, 14)]
    assert plain(found["first_pull"]) == of_diff(bench, None, images[-1])
    assert [row["distance"] for row in found["distances"]] == [1, 2, 5, 10]
    for row in found["distances"]:
        apart = row["distance"]
        pairs = [of_diff(bench, one, other) for one, other in zip(images, images[apart:], strict=False)]
        assert (row["pairs"], row["unknown"], row["left_out"]) == (14 - apart, 0, 0)
        as_layers = [pair["layers"]["stored_bytes"] for pair in pairs]
        as_chunks = [pair["chunks"]["total_bytes"] for pair in pairs]
        assert row["median_layer_bytes"] == int(statistics.median(as_layers))
        assert row["median_chunk_bytes"] == int(statistics.median(as_chunks))
        assert row["median_cheaper_bytes"] == int(statistics.median(pair["cheaper"]["bytes"] for pair in pairs))
        assert row["median_requests"] == int(statistics.median(pair["chunks"]["runs"] for pair in pairs))
        assert row["without_error"] == sum(pair["chunks"]["recompressed_error_bytes"] is None for pair in pairs)
        assert row["dearer"] == sum(map(int.__lt__, as_layers, as_chunks))
    nearest, farthest = found["distances"][0], found["distances"][-1]
    assert 0 < nearest["median_chunk_bytes"] < nearest["median_layer_bytes"]
    assert nearest["median_chunk_bytes"] < farthest["median_chunk_bytes"]


@settings(max_examples=counted(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds(), platform=st.sampled_from(["", "", "linux/amd64"]))
def test_any_images_and_names(tmp_path_factory: pytest.TempPathFactory, world: World, platform: str) -> None:
    """Whatever the graph is, each pair is one of `diff`, and the row of a repository is that of its own reply."""
    with small_bounds(), recounted(tmp_path_factory.mktemp("index")) as bench:
        oracle = put(bench, world)
        for row in updates(bench, "", platform)["repositories"]:
            try:
                found = updates(bench, row["repository"], platform)
            except UsageError:
                assert (platform, row["pairs"]) == ("linux/amd64", 0)
                continue
            assert [row[name] for name in ("pairs", "dearer", "median_chunk_bytes", "order")] == [
                *(found["distances"][0][name] for name in ("pairs", "dearer", "median_chunk_bytes")), found["order"],
            ]  # fmt: skip
            for pair in found["pairs"]:
                if {pair["from"], pair["to"]} <= set(oracle.roots):
                    assert plain(pair) == of_diff(bench, pair["from"], pair["to"], platform)


def test_the_history_of_a_tag_is_that_of_its_pushes(bench: Bench) -> None:
    """Also of an image that is now a part of an index, and without those that are gone or no image."""
    make = Maker()
    first, second, third = (make.image(make.layer(1, 2, number), config=make.config()) for number in (3, 4, 5))
    make.name("a/b:multi", make.index((first, "amd64")), 50)
    make.name("a/b:latest", third, 30)
    for to, at_ns in ((second, 20), (first, 10), (make.absent(), 15), (make.blob(), 16)):
        make.name("a/b:latest", to, at_ns, "earlier")
    make.name("a/b:latest", make.layer(7), 17, "held")
    put(bench, make.world)
    found = updates(bench, "a/b:latest")
    assert (found["repository"], found["tag"], found["order"]) == ("a/b", "latest", "pushes")
    assert [(pair["from"], pair["to"]) for pair in found["pairs"]] == [(first, second), (second, third)]
    assert found["pairs"][1]["chunks"] == of_diff(bench, second, third)["chunks"]
    assert (found["left_out"]["absent"], found["left_out"]["not_images"]) == (1, 1)
    # No two of its tags are versions, so its pushes make the order.
    whole = updates(bench, "a/b")
    assert [pair["to"] for pair in whole["pairs"]] == [second, third, make.world.names[0][4]]


def test_where_no_order_is_known_that_is_said(bench: Bench) -> None:
    make = Maker()
    make.name("a:one", make.image(make.layer(1)))
    make.name("a:two", make.image(make.layer(2)))
    make.name("b:1.0", make.image(make.layer(3)))
    put(bench, make.world)
    found, lone = updates(bench, "a"), updates(bench, "b")
    assert (found["order"], found["pairs"], found["first_pull"]) == (None, [], None)
    assert found["left_out"]["tags"] == ["one", "two"]
    assert (lone["order"], lone["pairs"], lone["first_pull"]["to_names"]) == (None, [], ["b:1.0"])
    for reference in ("c", "a:three", "a:", "A", "sha256:" + "a" * 64):
        with pytest.raises(UsageError):
            updates(bench, reference)


def test_one_platform(bench: Bench) -> None:
    make = Maker()
    shared = make.layer(1, 2)
    images = []
    for number in range(3):
        arm = make.image(make.layer(9, 9 + number), config=make.config("arm64"))
        amd = make.image(shared, make.layer(20, 30 + number), config=make.config("amd64"))
        images.append(make.name(f"a:v{number}", make.index((arm, "arm64"), *([(amd, "amd64")] * (number != 1)))))
    put(bench, make.world)
    found = updates(bench, "a", "linux/amd64")
    assert [plain(pair) for pair in found["pairs"]] == [of_diff(bench, images[0], images[2], "linux/amd64")]
    assert found["left_out"]["without_platform"] == 1
    assert [row["versions"] for row in updates(bench, "", "linux/amd64")["repositories"]] == [2]
    with pytest.raises(UsageError):
        updates(bench, "a", "linux/s390x")


def test_a_partial_image_makes_its_pairs_unknown(bench: Bench) -> None:
    make = Maker()
    images = versions(make, "a", 3)
    make.name("a:1.3", make.image(make.layer(1, 2), make.absent()))
    make.name("a:1.4", make.image(make.layer(1, 5)))
    put(bench, make.world)
    found = updates(bench, "a")
    assert [pair["chunks"] is None for pair in found["pairs"]] == [False, False, True, False]
    # What the client has is not known as a whole, so neither is what it lacks.
    assert found["pairs"][3]["partial"]["from"] == 1
    assert (found["distances"][0]["pairs"], found["distances"][0]["unknown"]) == (4, 2)
    known = [of_diff(bench, *pair)["layers"]["stored_bytes"] for pair in (images[:2], images[1:])]
    assert found["distances"][0]["median_layer_bytes"] == sum(known) // 2


def test_all_repositories_and_the_median_over_them(bench: Bench) -> None:
    make = Maker()
    versions(make, "small", 3, step=13)
    versions(make, "large", 8)
    make.name("alone:1.0", make.image(make.layer(1)))
    make.name("twins:1", make.name("twins:2", make.image(make.layer(5))))
    dear = [make.image(make.layer(*range(100 * number, 100 * number + 50), size=10)) for number in (3, 4)]
    for number, image in enumerate(dear):
        make.name(f"dear:{number}", image)
    put(bench, make.world)
    found = updates(bench, "")
    rows = {row["repository"]: row for row in found["repositories"]}
    assert list(rows) == ["large", "small", "dear", "alone", "twins"]
    for name in ("small", "large", "dear"):
        own = updates(bench, name)
        assert {key: rows[name][key] for key in ("pairs", "median_layer_bytes", "median_chunk_bytes", "dearer")} == {
            key: own["distances"][0][key] for key in ("pairs", "median_layer_bytes", "median_chunk_bytes", "dearer")
        }
        layer_bytes = sum(pair["layers"]["stored_bytes"] for pair in own["pairs"])
        chunk_bytes = sum(pair["chunks"]["total_bytes"] for pair in own["pairs"])
        assert rows[name]["saved_bytes"] == layer_bytes - chunk_bytes
        assert rows[name]["last"] == own["pairs"][-1]
    assert rows["dear"]["saved_bytes"] < 0
    assert (rows["dear"]["dearer"], rows["alone"]["pairs"], rows["alone"]["last"]) == (1, 0, None)
    assert found["median"]["repositories"] == 3
    saved = [rows[one]["saved_bytes"] / rows[one]["layer_bytes"] for one in ("large", "small", "dear")]
    assert [rows[one]["saved"] for one in ("large", "small", "dear", "twins")] == [*saved, None]
    assert found["median"]["median_saved"] == statistics.median(saved)
    for name in ("median_layer_bytes", "median_chunk_bytes", "median_cheaper_bytes"):
        assert found["median"][name] == statistics.median(rows[one][name] for one in ("small", "large", "dear"))


def test_the_bounds_keep_the_latest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    images = versions(make, "a", 9)
    versions(make, "b", 4)
    put(bench, make.world)
    monkeypatch.setattr(updates_module, "MOST_VERSIONS", 4)
    found = updates(bench, "a")
    assert (found["versions"], found["left_out"]["earlier"]) == (4, 5)
    assert [pair["to"] for pair in found["pairs"]] == images[-3:]
    monkeypatch.setattr(updates_module, "MOST_VERSIONS_EACH", 3)
    every = updates(bench, "")
    assert sorted((row["repository"], row["pairs"]) for row in every["repositories"]) == [("a", 2), ("b", 2)]
    assert every["most_pairs"] == 2
    # With work for some pairs only, these are the latest: those of each repository if all are asked for.
    a_pair = 2 * (20 + 39) + 8 * updates_module.WORK_A_BLOB
    monkeypatch.setattr(updates_module, "MOST_WORK", a_pair + 1)
    every = updates(bench, "")
    assert [row["pairs"] for row in every["repositories"]] == [1, 1]
    assert sorted(row["last"]["to_names"] for row in every["repositories"]) == [["a:1.8"], ["b:1.3"]]
    assert every["left_out"]["pairs"] == 2
    monkeypatch.setattr(updates_module, "MOST_WORK", a_pair // 2 + 1)
    assert [pair["to"] for pair in updates(bench, "a")["pairs"]] == images[-1:]
    monkeypatch.setattr(updates_module, "MOST_WORK", 3 * a_pair)
    found = updates(bench, "a")
    assert found["first_pull"] is not None
    assert [row["left_out"] for row in found["distances"]] == [0, 2, 0, 0]
    monkeypatch.setattr(moves, "MOST_CHUNKS", 50)
    monkeypatch.setattr(updates_module, "MOST_WORK", 1 << 28)
    assert [row["unknown"] for row in updates(bench, "a")["distances"]][:2] == [3, 2]


def test_two_variants_are_two_series(bench: Bench) -> None:
    make = Maker()
    for number in range(3):
        make.name(f"a:1.{number}-alpine", make.image(make.layer(number)))
    for number in range(2):
        make.name(f"a:1.{number}", make.image(make.layer(10 + number)))
    put(bench, make.world)
    found = updates(bench, "a")
    assert [(pair["from_names"], pair["to_names"]) for pair in found["pairs"]] == [
        (["a:1.0"], ["a:1.1"]), (["a:1.0-alpine"], ["a:1.1-alpine"]), (["a:1.1-alpine"], ["a:1.2-alpine"]),
    ]  # fmt: skip
    assert found["series"] == 2
    assert found["first_pull"]["to_names"] == ["a:1.2-alpine"]


def test_images_are_compared_whatever_else_has_a_name(bench: Bench) -> None:
    """Referrers and their lists, whose tags no client pulls, are no versions by push."""
    make = Maker()
    one, other = make.image(make.layer(1)), make.image(make.layer(2))
    make.name("a:x", one, 1)
    make.name("a:y", other, 3)
    make.name("a:sha256-" + "a" * 64, make.index(one), 2)
    make.name("a:signature", make.image(make.layer(3), subject={"digest": one, "size": 3}), 4)
    with bench.index.transaction() as change:
        put_world(change, measured(make.world))
    found = updates(bench, "a")
    assert [(pair["from"], pair["to"]) for pair in found["pairs"]] == [(one, other)]
    assert found["left_out"]["not_images"] == 2
