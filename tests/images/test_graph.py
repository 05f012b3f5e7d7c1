"""The shapes that images come in, each with its stated figures; and what hostile ones may cost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from chunkd.errors import TooManyImages
from chunkd.images import graph
from chunkd.images.atoms import Chunks
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, Root, build
from chunkd.model import Digest
from chunkd.names.name import Name
from chunkd.worker import manifest
from chunkd.worker.manifest import Contents, Edge, Kind, Role
from test_figures import assert_like_the_oracle
from worlds import ATTESTATION, LAYER, Maker, digest, images_of, real

Rows = dict[str, dict[str, Any]]
NO_CHUNKS = Chunks(0, lambda _: pytest.fail("no layer"), lambda _low, _high: pytest.fail("no chunk"))


@pytest.fixture
def make() -> Maker:
    return Maker()


def rows(make: Maker) -> Rows:
    """The rows of the reply by digest, in their order; they are the oracle's too."""
    images, _ = assert_like_the_oracle(make.world)
    return {row["digest"]: row for row in images.to_json()["images"]}


def chunk_bytes(*chunks: int) -> int:
    return sum(100 + chunk for chunk in chunks)


def test_one_tag_pushed_three_times(make: Maker) -> None:
    """Each push is a row, in the order of the pushes; only the last one has the name."""
    base = make.layer(0, 1)
    pushes = [make.image(base, make.layer(at, at + 1)) for at in (10, 20, 30)]
    for at_ns, push in zip((300, 100, 200), pushes, strict=True):
        make.name("shop/api:latest", push, at_ns, "earlier" if at_ns < 300 else "named")
    found = rows(make)
    assert list(found) == [pushes[1], pushes[2], pushes[0]]
    assert [row["names"] for row in found.values()] == [[], [], ["shop/api:latest"]]
    assert [row["chunks"]["new_bytes"] for row in found.values()] == [
        chunk_bytes(0, 1, 20, 21), chunk_bytes(30, 31), chunk_bytes(10, 11),
    ]  # fmt: skip


def test_two_tags_of_one_digest_are_one_image(make: Maker) -> None:
    image = make.image(make.layer(0))
    make.name("shop/api:v2", image, 7)
    make.name("shop/api:latest", image, 9)
    make.name("other/api:v2", image, 3)
    [row] = rows(make).values()
    assert row["names"] == ["other/api:v2", "shop/api:latest", "shop/api:v2"]
    assert row["chunks"]["exclusive_bytes"] == chunk_bytes(0)
    [root] = images_of(make.world).graph.roots
    assert (root.at_ns, root.repositories) == (3, ("other/api", "shop/api"))


def test_a_last_step_of_env_makes_another_image_of_the_same_layers(make: Maker) -> None:
    layer = make.layer(0, 1)
    one, other = (make.image(layer) for _ in range(2))
    found = rows(make)
    for image in (one, other):
        assert found[image]["chunks"]["exclusive_bytes"] == 0
        assert found[image]["stored"]["exclusive_bytes"] > 0
    assert sum(found[image]["chunks"]["fair_share_bytes"] for image in (one, other)) == chunk_bytes(0, 1)


def test_gzip_and_zstd_twins(make: Maker) -> None:
    """Equal recipes of two layers: nothing is shared on disk, everything as chunks."""
    one, other = make.image(make.layer(0, 1, 2)), make.image(make.layer(0, 1, 2))
    found = rows(make)
    for image in (one, other):
        assert found[image]["stored"]["shared_bytes"] == 0
        assert found[image]["chunks"]["exclusive_bytes"] == 0
    both = make.index(one, other)
    found = rows(make)
    assert list(found) == [both]
    assert found[both]["chunks"]["repeated_bytes"] == chunk_bytes(0, 1, 2)


def test_a_schema_2_twin_of_a_schema_1_image(make: Maker) -> None:
    layers = make.layer(0), make.layer(1)
    old = make.document({"schemaVersion": 1, "fsLayers": [{"blobSum": one} for one in reversed(layers)]})
    new = make.image(*layers)
    found = rows(make)
    assert (found[old]["kind"], found[new]["kind"]) == ("image", "image")
    assert found[old]["chunks"]["referenced_bytes"] == found[new]["chunks"]["referenced_bytes"] == chunk_bytes(0, 1)
    assert found[old]["platforms"] == ["unknown"]


def test_a_layer_listed_twice_counts_once(make: Maker) -> None:
    layer = make.layer(0, 0, 1)
    image = make.image(layer, layer)
    row = rows(make)[image]
    assert row["chunks"]["uncompressed_bytes"] == chunk_bytes(0, 0, 1)
    assert row["chunks"]["repeated_bytes"] == chunk_bytes(0)
    assert row["stored"]["exclusive_bytes"] == row["stored"]["referenced_bytes"]


def test_one_platform_of_five(make: Maker) -> None:
    """As pull-through caches hold: the others are absent, and the image is not partial by that."""
    here = make.image(make.layer(0))
    absent = ["arm", "ppc64le", "riscv64", "s390x"]
    index = make.index((here, "amd64"), *((make.absent(), one) for one in absent), attestations=[make.absent()])
    [row] = rows(make).values()
    assert (row["digest"], row["kind"]) == (index, "index")
    assert row["platforms"] == ["linux/amd64"]
    assert row["absent_platforms"] == [f"linux/{one}" for one in absent]
    assert (row["missing_blobs"], row["chunks"]["exclusive_bytes"]) == (0, chunk_bytes(0))


def test_an_index_with_deleted_children(make: Maker) -> None:
    gone = make.absent()
    index = make.index(gone)
    row = rows(make)[index]
    assert (row["platforms"], row["absent_platforms"], row["missing_blobs"]) == ([], [gone], 0)
    assert row["chunks"]["uncompressed_bytes"] == 0


def test_children_of_an_index_are_not_untagged_images(make: Maker) -> None:
    children = [make.image(make.layer(at)) for at in range(3)]
    index = make.index((children[0], "amd64"), (children[1], "arm64"), attestations=[children[2]])
    make.name("shop/api:v1", index)
    for child in children:
        make.name("shop/api:", child, 5, "held")
    [row] = rows(make).values()
    assert row["platforms"] == ["linux/amd64", "linux/arm64"]
    assert row["stored"]["referenced_bytes"] == sum(map(make.world.size, make.world.present))


def test_a_named_child_is_a_root_too(make: Maker) -> None:
    child = make.image(make.layer(0))
    index = make.index((child, "amd64"))
    make.name("shop/api:amd64", child)
    found = rows(make)
    assert set(found) == {index, child}
    assert found[child]["stored"]["exclusive_bytes"] == 0
    assert found[index]["stored"]["exclusive_bytes"] == make.world.size(index)


def test_a_nested_index(make: Maker) -> None:
    inner = make.index((make.image(make.layer(0)), "arm64"))
    outer = make.index(inner, (make.image(make.layer(1), config=make.config("s390x")), ""))
    [row] = rows(make).values()
    assert (row["digest"], row["platforms"]) == (outer, ["linux/arm64", "linux/s390x"])
    assert row["chunks"]["referenced_bytes"] == chunk_bytes(0, 1)


def test_a_referrer_of_an_absent_subject(make: Maker) -> None:
    referrer = make.image(make.layer(0), subject={"digest": make.absent(), "size": 1}, artifactType="x")
    [row] = rows(make).values()
    assert (row["digest"], row["kind"], row["missing_blobs"]) == (referrer, "referrer", 0)


def test_a_subject_is_not_held_by_its_referrer(make: Maker) -> None:
    image = make.image(make.layer(0))
    referrer = make.image(make.layer(1), subject={"digest": image, "size": 1})
    found = rows(make)
    assert {root: found[root]["kind"] for root in found} == {image: "image", referrer: "referrer"}
    assert found[image]["chunks"]["referenced_bytes"] == chunk_bytes(0)
    assert found[referrer]["chunks"]["referenced_bytes"] == chunk_bytes(1)


def test_an_index_that_contains_a_referrer_and_its_subject(make: Maker) -> None:
    subject = make.image(make.layer(0))
    referrer = make.image(make.layer(1), subject={"digest": subject, "size": 1})
    index = make.index(subject, referrer)
    assert list(rows(make)) == [index]
    # Hard and weak edges together make a cycle: only possible with claims, and harmless.
    make.world.documents[referrer]["subject"]["digest"] = index
    assert list(rows(make)) == [index]


def test_a_cycle_of_hard_edges_holds_nothing_but_what_names_say(make: Maker) -> None:
    one = make.index(make.image(make.layer(0)))
    other = make.index(one)
    make.world.documents[one]["manifests"].append({"digest": other})
    assert rows(make) == {}
    make.name("shop/api:v1", one)
    [row] = rows(make).values()
    assert row["stored"]["referenced_bytes"] == sum(map(make.world.size, make.world.present))


def test_referrers_lists_and_attestations_and_build_caches(make: Maker) -> None:
    signature = make.image(make.layer(0), artifactType="application/x")
    listed = make.index(signature)
    make.name(f"shop/api:sha256-{'a' * 64}", listed)
    make.name("shop/api", listed)
    attestation = make.image(make.layer(1), artifactType=ATTESTATION)
    cache = make.image(make.layer(2))
    make.world.documents[cache]["config"]["mediaType"] = "application/vnd.buildkit.cacheconfig.v0"
    artifact = make.image(make.layer(3), artifactType="application/x")
    assert {root: row["kind"] for root, row in rows(make).items()} == {
        listed: "referrers list", attestation: "attestation", cache: "build cache", artifact: "artifact",
    }  # fmt: skip


def test_buildkits_cache_as_an_index(make: Maker) -> None:
    """The oracle does not know this form."""
    document = {
        "manifests": [
            {"mediaType": LAYER, "digest": make.layer(0), "size": 1},
            {"mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": make.blob(), "size": 1},
            {"mediaType": LAYER, "digest": make.absent(), "size": 8},
        ]
    }
    make.document(document)
    [root] = images_of(make.world).graph.roots
    assert (root.kind, root.platforms, root.absent_platforms) == ("build cache", (), ())
    assert (root.missing_blobs, root.missing_bytes) == (1, 8)


def test_a_foreign_layer_is_not_missing(make: Maker) -> None:
    make.image(make.layer(0), foreign=[make.absent()])
    [row] = rows(make).values()
    assert (row["missing_blobs"], row["missing_bytes"]) == (0, 0)
    assert row["chunks"]["referenced_bytes"] == chunk_bytes(0)


def test_a_partial_image(make: Maker) -> None:
    """What is missing counts once, with the largest claim; its chunks are unknown, and close the sums."""
    gone, shared = make.absent(), make.layer(0, 1)
    one = make.image(shared, gone, gone)
    other = make.image(gone, shared)
    make.world.documents[other]["layers"][0]["size"] = 70
    config = make.world.documents[other]["config"] = {"digest": make.absent(), "size": 5}
    whole = make.image(shared)
    found = rows(make)
    assert [found[root]["missing_blobs"] for root in (one, other, whole)] == [1, 2, 0]
    assert [found[root]["missing_bytes"] for root in (one, other, whole)] == [50, 75, 0]
    assert [found[root]["chunks"] is None for root in (one, other, whole)] == [True, True, False]
    assert found[other]["stored"]["referenced_bytes"] == 50 + make.world.size(other)
    reply = images_of(make.world).to_json()
    told = found[whole]["chunks"]["fair_share_bytes"]
    assert reply["partial"]["fair_share_bytes"] + told == chunk_bytes(0, 1)
    assert reply["partial"]["images"] == 2
    assert config["digest"] not in make.world.present


def test_the_largest_claim_counts_in_whatever_order(make: Maker) -> None:
    gone = make.absent()
    for sizes in ((70, 50), (50, 70)):
        image = make.image(gone, gone)
        for row, size in zip(make.world.documents[image]["layers"], sizes, strict=True):
            row["size"] = size
    assert [row["missing_bytes"] for row in rows(make).values()] == [70, 70]


def test_what_no_image_holds(make: Maker) -> None:
    make.image(make.layer(0, 1), config=make.blob(3))
    make.layer(1, 2)  # whose manifest was collected
    make.blob(11)
    reply = images_of(make.world).to_json()
    assert reply["unheld"] == {"blobs": 2, "stored_bytes": 61, "unique_bytes": chunk_bytes(2)}


def test_names_that_point_nowhere_make_no_root(make: Maker) -> None:
    image = make.image(make.layer(0))
    make.name("shop/api:v1", make.absent())
    make.name("shop/api:v0", make.absent(), 5, "earlier")
    make.name("shop/api:v2", image)
    assert list(rows(make)) == [image]
    assert images_of(make.world).graph.names_without_blob == 1


def test_a_name_of_what_is_not_a_manifest(make: Maker) -> None:
    layer = make.layer(0)
    make.name("shop/data:v1", layer)
    row = rows(make)[layer]
    assert (row["kind"], row["platforms"], row["chunks"]["exclusive_bytes"]) == ("unknown", [], chunk_bytes(0))


def test_a_tree_without_tags(make: Maker) -> None:
    """As Harbor's from 2.15 on: the repository holds the image, and nothing names it."""
    image = make.image(make.layer(0))
    make.name("harbor/app:", image, 7, "held")
    reply = images_of(make.world)
    assert reply.to_json()["images"][0]["names"] == []
    [row] = reply.by_repository()["repositories"]
    assert (row["repository"], row["images"]) == ("", 1)


def test_the_order_is_push_then_created_then_last(make: Maker) -> None:
    def image(created_s: int = 0) -> str:
        return make.image(config=make.config(created_s=created_s))

    unknown = [image(), image()]
    created = [image(9), image(3)]
    annotated = make.index(image(50), annotations={"org.opencontainers.image.created": "1970-01-01T00:00:05Z"})
    pushed = [make.name("a:v1", image(1), 20), make.name("a:v2", image(2), 10)]
    make.name("b:v1", pushed[0], 40)
    make.name("c:", pushed[0], 5, "held")
    roots = [str(root.digest) for root in images_of(make.world).graph.roots]
    assert roots == [pushed[0], pushed[1], created[1], annotated, created[0], *unknown]


def test_by_repository(make: Maker) -> None:
    """An image in two repositories is in both; what several images of one hold counts once."""
    base, ring = make.layer(0, 1), make.layer(2)
    one, two, three = make.image(base), make.image(base, ring), make.image(make.layer(3))
    make.name("a:v1", one, 1)
    make.name("a:v2", two, 2)
    make.name("b:v1", two, 2)
    assert_like_the_oracle(make.world)
    reply = images_of(make.world).by_repository()
    found = {row["repository"]: row for row in reply["repositories"]}
    assert list(found) == ["a", "b", ""]
    assert {name: row["images"] for name, row in found.items()} == {"a": 2, "b": 1, "": 1}
    assert found["a"]["chunks"]["referenced_bytes"] == found["b"]["chunks"]["referenced_bytes"] == chunk_bytes(0, 1, 2)
    assert found["a"]["chunks"]["exclusive_bytes"] == 0
    assert found[""]["chunks"]["exclusive_bytes"] == chunk_bytes(3)
    assert three in str(images_of(make.world).to_json())


def test_freed(make: Maker) -> None:
    base, top = make.layer(0, 1), make.layer(2)
    one, other = make.image(base, top), make.image(base)
    images = images_of(make.world)
    numbers = images.graph.numbers()
    reply = images.freed(1 << numbers[real(one)])
    assert top in reply["stored"]["blobs"]
    assert base not in reply["stored"]["blobs"]
    assert (reply["images"], reply["chunks"]["bytes"], reply["held_by_others_bytes"]) == ([one], chunk_bytes(2), 50)
    both = images.freed(1 << numbers[real(one)] | 1 << numbers[real(other)])
    assert sorted(both["stored"]["blobs"]) == sorted(make.world.present)
    assert both["held_by_others_bytes"] == 0
    assert images.freed(0)["stored"] == {"bytes": 0, "blobs": []}


# --- hostile graphs ------------------------------------------------------------------------------------------------


def test_indexes_of_the_same_children_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 indexes of 2,000 images each: as many pairs as the bound allows, and no more."""
    monkeypatch.setattr(graph, "MOST_HOLDS", 100_000)
    children = [real(digest(number)) for number in range(2000)]
    blobs = {one: BlobFacts(1, Contents(Kind.IMAGE)) for one in children}
    edges = tuple(Edge(Role.MANIFEST, one) for one in children)
    blobs |= {real(digest(10_000 + at)): BlobFacts(1, Contents(Kind.INDEX, edges)) for at in range(100)}
    begun = time.process_time()
    with pytest.raises(TooManyImages):
        build(blobs, [])
    assert time.process_time() - begun < 10


@pytest.mark.parametrize(("kind", "role"), [(Kind.INDEX, Role.MANIFEST), (Kind.IMAGE, Role.LAYER)])
def test_what_images_lack_is_bounded(monkeypatch: pytest.MonkeyPatch, kind: Kind, role: Role) -> None:
    """100 indexes of one that lacks 2,000 platforms, or of an image that lacks as many layers: each lacks them."""
    monkeypatch.setattr(graph, "MOST_HOLDS", 100_000)
    child = real(digest(5))
    lacking = Contents(kind, tuple(Edge(role, real(digest(number))) for number in range(10, 2010)))
    blobs = {child: BlobFacts(1, lacking)}
    index = BlobFacts(1, Contents(Kind.INDEX, (Edge(Role.MANIFEST, child),)))
    few = blobs | {real(digest(10_000 + at)): index for at in range(40)}
    assert len(build(few, []).roots) == 40
    with pytest.raises(TooManyImages):
        build(few | {real(digest(20_000 + at)): index for at in range(60)}, [])


def test_sets_of_images_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 images with a blob of their own each: 101 sets of 13 bytes."""
    blobs = {
        real(digest(at)): BlobFacts(1, Contents(Kind.IMAGE, (Edge(Role.CONFIG, real(digest(1000 + at))),)))
        for at in range(100)
    }
    monkeypatch.setattr(graph, "MOST_HOLDERS_BYTES", 101 * 100 // 8 + 1)
    assert len(build(blobs, []).roots) == 100
    monkeypatch.setattr(graph, "MOST_HOLDERS_BYTES", 101 * 100 // 8 - 1)
    with pytest.raises(TooManyImages):
        build(blobs, [])


def test_a_chain_of_indexes_takes_no_recursion() -> None:
    count = 20_000
    blobs = {
        real(digest(at)): BlobFacts(1, Contents(Kind.INDEX, (Edge(Role.MANIFEST, real(digest(at + 1))),)))
        for at in range(count)
    }
    found = build(blobs, [])
    assert [root.digest for root in found.roots] == [real(digest(0))]
    assert found.roots[0].absent_platforms == (digest(count),)


def test_names_may_be_any_text() -> None:
    text = "\x1b]0;\ud800\n../../etc:passwd"
    blob = Digest("sha256", "a" * 64)
    found = build({blob: BlobFacts(1)}, [Name(text, text, "", blob), Name(text, text, "", blob)])
    assert found.roots == (Root(blob, "unknown", (text,), (text,)),)


def test_lies_about_sizes_are_only_told() -> None:
    blob, gone = Digest("sha256", "a" * 64), Digest("sha256", "b" * 64)
    document = {
        "config": {"digest": str(gone), "size": (1 << 63) - 1},
        "layers": [{"digest": str(blob), "size": 1 << 70}],
    }
    facts = BlobFacts(10, manifest.parse(json.dumps(document).encode()))
    found = build({Digest("sha256", "c" * 64): facts, blob: BlobFacts(5)}, [])
    assert (found.roots[0].missing_blobs, found.roots[0].missing_bytes) == (1, (1 << 63) - 1)
    images = Images.of(found, {Digest("sha256", "c" * 64): facts, blob: BlobFacts(5)}, {}, NO_CHUNKS)
    assert images.to_json()["images"][0]["stored"]["referenced_bytes"] == 15
