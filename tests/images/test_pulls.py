"""What a pull moves, out of an index: the layers and chunks that the oracle finds, of the images that were meant."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkd.errors import UsageError
from chunkd.images import answers
from chunkd.images.diff import planned
from chunkd.images.read import read
from counts import counted
from image_oracle import Oracle, World
from indexed import put
from indexing import Bench, recounted, small_bounds
from moves_oracle import Pull, pulled
from worlds import Maker, worlds


def diff(bench: Bench, client: list[str], to: str, platform: str = "") -> dict[str, Any]:
    return answers.asked(bench.index.store, (answers.diff, (tuple(client), to, platform)))


def expected(oracle: Oracle, client: list[str], to: str, platform: str = "") -> dict[str, Any]:
    """The same for the oracle; a UsageError where an image has no such platform."""
    world = oracle.world
    has: dict[str, bool] = {}
    absent: set[str] = set()
    for root in client:
        found = pulled(oracle, root, platform)
        if found is None:
            raise UsageError(root)
        has |= found[0]
        absent |= set(found[1])
    image = pulled(oracle, to, platform)
    if image is None:
        raise UsageError(to)
    blobs, missing = image
    lacking = [digest for digest in blobs if digest not in has]
    unknown = {digest: size for digest, size in missing.items() if digest not in absent}
    cut = [(digest, world.size(digest), [chunk for chunk, _ in world.layers[digest]]) for digest in blobs
           if digest in world.layers]  # fmt: skip
    chunks = {chunk for digest in has for chunk, _ in world.layers.get(digest, ())}
    known = {chunk: y for chunk, y in world.measured.items() if chunk in oracle.all_chunks()}
    found_chunks = Pull(chunks, set(has), cut, oracle.all_chunks(), known).expected()
    stored = sum(map(world.size, lacking))
    whole_bytes = stored - sum(row[1] for row in found_chunks["layers"])
    reply: dict[str, Any] = {
        "from": sorted(client, key=oracle.roots.index), "to": to, "platform": platform or None,
        "partial": {"from": len(absent), "to": len(unknown), "to_bytes": sum(unknown.values())},
        "pulled": {"layers": sum(blobs.values()), "stored_bytes": sum(map(world.size, blobs))},
        "layers": {"missing": sum(blobs[one] for one in lacking), "blobs": len(lacking), "stored_bytes": stored},
    }  # fmt: skip
    if unknown:
        return reply | {"chunks": None, "cheaper": None, "measured_by": None, "by_layer": []}
    rows, least = [], 0
    for digest, size, places, count, bytes_, recompressed, runs in found_chunks["layers"]:
        as_chunks = None if recompressed is None else recompressed + 40 * places
        cheaper = None if as_chunks is None else "whole" if size <= as_chunks else "chunks"
        least += min(size, size if as_chunks is None else as_chunks)
        rows.append(
            {"digest": digest, "stored_bytes": size, "chunks": places, "missing": count, "bytes": bytes_,
             "recompressed_bytes": recompressed, "recipe_bytes": 40 * places, "runs": runs, "cheaper": cheaper}
        )  # fmt: skip
    recompressed, measured_by = found_chunks["recompressed"], found_chunks["measured_by"]
    total = None if recompressed is None else recompressed + found_chunks["recipe_bytes"] + whole_bytes
    whole_layers = sum(row["cheaper"] == "whole" for row in rows)
    return reply | {
        "chunks": {
            **{name: found_chunks[name] for name in ("missing", "bytes", "recipe_bytes", "runs")},
            "recompressed_bytes": recompressed,
            "ranges": [dict(zip(("gap_bytes", "ranges", "bytes"), one, strict=True)) for one in found_chunks["ranges"]],
            "whole_blobs": len(lacking) - len(rows), "whole_bytes": whole_bytes, "total_bytes": total,
        },
        "cheaper": None if recompressed is None else {"bytes": least + whole_bytes, "whole_layers": whole_layers},
        "measured_by": measured_by,
        "by_layer": rows,
    }  # fmt: skip


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    """Without what the oracle does not say: names, the moment, and errors, which `estimate` has a test for."""
    found = {name: value for name, value in reply.items() if name not in ("as_of", "names_as_of", "commit", "next")}
    del found["from_names"], found["to_names"]
    if found["chunks"]:
        error_bytes = found["chunks"].pop("recompressed_error_bytes")
        assert error_bytes in (0, None)  # for fewer than 31
        if found["cheaper"]:
            assert found["cheaper"].pop("error_bytes") == error_bytes
    return found


@settings(max_examples=counted(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds(), seed=st.integers(0, 1 << 30))
def test_the_reply_is_that_of_the_oracle(tmp_path_factory: pytest.TempPathFactory, world: World, seed: int) -> None:
    draw = random.Random(seed)
    with small_bounds(), recounted(tmp_path_factory.mktemp("index")) as bench:
        oracle = put(bench, world)
        for root in oracle.roots:
            assert set((pulled(oracle, root) or ({}, {}))[0]) == oracle.holds[root]
            client = draw.sample(oracle.roots, draw.randint(0, min(3, len(oracle.roots))))
            platform = draw.choice(["", "", "linux/amd64", "linux", "linux/arm64"])
            try:
                wanted = expected(oracle, client, root, platform)
            except UsageError:
                with pytest.raises(UsageError):
                    diff(bench, client, root, platform)
                continue
            assert plain(diff(bench, client, root, platform)) == wanted


@settings(max_examples=counted(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds())
def test_what_must_hold_to_the_byte(tmp_path_factory: pytest.TempPathFactory, world: World) -> None:
    """For all pairs and triples of images, in stored bytes and in those of chunks."""
    with small_bounds(), recounted(tmp_path_factory.mktemp("index")) as bench:
        oracle = put(bench, world)
        roots = [root for root in oracle.roots if not oracle.missing(root)][:5]
        rows = {row["digest"]: row for row in answers.asked(bench.index.store, (answers.images, ("image",)))["images"]}
        moved = {(one, other): diff(bench, [one], other) for one, other in itertools.product(roots, roots)} | {
            ("", root): diff(bench, [], root) for root in roots
        }
        columns: tuple[tuple[str, str], ...] = (("layers", "stored_bytes"), ("chunks", "bytes"))
        for column, name in columns:

            def of(reply: dict[str, Any], column: str = column, name: str = name) -> int:
                return int(reply[column][name])

            def held(root: str, column: str = column) -> int:
                return int(rows[root]["stored" if column == "layers" else column]["referenced_bytes"])

            for root in roots:
                assert of(moved["", root]) == held(root)
                assert of(moved[root, root]) == 0
            for a, b in itertools.product(roots, roots):
                assert held(a) + of(moved[a, b]) == held(b) + of(moved[b, a])
            for a, b, c in itertools.product(roots, roots, roots):
                assert of(moved[a, c]) <= of(moved[a, b]) + of(moved[b, c])


def test_layers_come_in_the_order_of_the_pull(bench: Bench) -> None:
    """Depth first through the index, as listed; a layer that two platforms have is moved with the first."""
    make = Maker()
    base, one, other = make.layer(5), make.layer(3), make.layer(1)
    make.name("a:1", make.index((make.image(other, base), "arm64"), (make.image(base, one, base), "amd64")))
    put(bench, make.world)
    assert [row["digest"] for row in diff(bench, [], "a:1")["by_layer"]] == [other, base, one]
    assert [row["digest"] for row in diff(bench, [], "a:1", "linux/amd64")["by_layer"]] == [base, one]
    with pytest.raises(UsageError, match="linux/amd64, linux/arm64"):
        diff(bench, [], "a:1", "linux/s390x")


def test_a_twin_of_a_layer_moves_its_recipe_alone(bench: Bench) -> None:
    """The same chunks behind another digest, as after a change of the compression."""
    make = Maker()
    make.name("a:gzip", make.image(make.layer(1, 2, 3, size=200)))
    make.name("a:zstd", make.image(make.layer(1, 2, 3, size=150)))
    put(bench, make.world)
    found = diff(bench, ["a:gzip"], "a:zstd")
    assert found["layers"]["missing"] == 1
    assert (found["chunks"]["missing"], found["chunks"]["recompressed_bytes"]) == (0, 0)
    assert found["chunks"]["recipe_bytes"] == 120
    assert found["by_layer"][0]["cheaper"] == "chunks"


def test_what_a_partial_image_lacks_is_unknown_unless_the_client_has_it(bench: Bench) -> None:
    make = Maker()
    lost, base = make.absent(), make.layer(1, 2)
    make.name("a:1", make.image(base, lost))
    make.name("a:2", make.image(base, lost, make.layer(3)))
    put(bench, make.world)
    first, second = diff(bench, [], "a:2"), diff(bench, ["a:1"], "a:2")
    assert (first["chunks"], first["cheaper"], first["by_layer"]) == (None, None, [])
    assert first["partial"] == {"from": 0, "to": 1, "to_bytes": 50}
    assert second["partial"] == {"from": 1, "to": 0, "to_bytes": 0}
    assert second["chunks"]["missing"] == 1


def test_several_images_of_a_client_count_together(bench: Bench) -> None:
    make = Maker()
    make.name("other:1", make.name("a:1", make.image(make.layer(1, 2))))
    make.name("b:1", make.image(make.layer(3, 4)))
    make.name("c:1", make.image(make.layer(1, 2, 3, 4, 5)))
    put(bench, make.world)
    assert diff(bench, ["a:1", "b:1"], "c:1")["chunks"]["missing"] == 1
    assert diff(bench, ["[ab]:1"], "c:1")["from"] == diff(bench, ["b:1", "a:1"], "c:1")["from"]
    # Who has pulled a:1 has the image, whatever its other names.
    assert diff(bench, ["[ab]:1"], "c:1")["chunks"]["missing"] == 1
    assert diff(bench, ["a:1", "b:1"], "c:1")["from_names"] == diff(bench, ["[ab]:*"], "c:1")["from_names"]


def test_with_every_length_known_the_reply_is_exact(bench: Bench) -> None:
    """As `--measure` asks for it: each layer, and each gap, has its own bytes."""
    make = Maker()
    make.name("a:1", make.image(make.layer(2, 4)))
    make.name("a:2", make.image(make.layer(1, 2, 3, 4, 5, size=9000), make.layer(6, 7, size=100)))
    put(bench, make.world)
    own = {1: 50, 2: 8000, 3: 60, 4: 300, 5: 70, 6: 11, 7: 12}
    with bench.index.store.snapshot() as txn:
        plan = planned(read(bench.index.store, txn), ["a:1"], "a:2", "")
        lengths = plan.recipes.lengths

        def recompressed(numbers: Any) -> Any:
            return np.array([own[int(length) - 100] for length in lengths(numbers)], np.int64)

        found = plan.reply(replace(plan.recipes, measured=recompressed))
    assert found["measured_by"] == "decoded"
    assert (found["chunks"]["recompressed_bytes"], found["chunks"]["recompressed_error_bytes"]) == (203, 0)
    assert [row["recompressed_bytes"] for row in found["by_layer"]] == [180, 23]
    assert [row["cheaper"] for row in found["by_layer"]] == ["chunks", "whole"]
    assert [(one["ranges"], one["bytes"]) for one in found["chunks"]["ranges"]][:2] == [(4, 203), (2, 203 + 8300)]
