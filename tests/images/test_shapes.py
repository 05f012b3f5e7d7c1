"""Every shape that images have in practice, on disk in a layout and in a registry's tree: through the whole program the
figures are those of the oracle.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from blobs import digest_of, noise, tar, zst
from chunkd.model import Digest
from chunkd.model import digest_of as digest_in
from daemon import Home
from image_oracle import Oracle
from invariants import assert_invariants
from test_commands import compare
from test_registry import Tree
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout
from trees import world_of

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
BUILD_CACHE = "application/vnd.buildkit.cacheconfig.v0"
DOCKER = "application/vnd.docker."
Row = dict[str, Any]


def absent(number: int) -> Row:
    return {"mediaType": IMAGE, "digest": str(digest_of(b"absent %d" % number)), "size": 1000 + number}


def layer(made: Layout, number: int) -> Row:
    """The layer of that number, without an image."""
    image = made.image(number, step=99)
    found: Row = document(made, image)["layers"][0]
    path_of(made, image).unlink()
    return found


def path_of(made: Layout, row: Row) -> Path:
    return made.path / "blobs/sha256" / str(row["digest"]).removeprefix("sha256:")


def document(made: Layout, row: Row) -> Row:
    found: Row = json.loads(path_of(made, row).read_bytes())
    return found


def changed(made: Layout, row: Row, **more: Any) -> Row:
    """Another manifest that says the same and more."""
    return made.put(json.dumps(document(made, row) | more).encode(), IMAGE)


def shapes(made: Layout) -> dict[str, Row]:
    """By the names of the images."""
    plain, config = (
        made.image(1, 2),
        made.put(b'{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}', CONFIG),
    )
    twin = made.put(zst(tar({"layer1": noise(1000, 1)})), LAYER.replace("gzip", "zstd"))
    docker = {
        "schemaVersion": 2,
        "config": config | {"mediaType": f"{DOCKER}container.image.v1+json"},
        "layers": [layer(made, number) | {"mediaType": f"{DOCKER}image.rootfs.diff.tar.gzip"} for number in (1, 2)],
    }
    schema_1 = {"schemaVersion": 1, "fsLayers": [{"blobSum": layer(made, number)["digest"]} for number in (2, 1)]}
    arm, inner = made.image(4, architecture="arm64"), made.index(amd64=made.image(5), s390x=absent(7))
    subject = made.image(6)
    referrer = changed(made, made.image(7), subject=subject, artifactType="application/spdx+json")
    cache = made.put(b'{"layers":[{"blob":"sha256:x","parent":-1}],"records":[]}', BUILD_CACHE)
    elsewhere = {name: absent(at) for at, name in enumerate(("arm", "s390x", "ppc64le", "386"))}
    return {
        "a:plain": plain,
        "a:again": plain,
        "b/c/d:plain": plain,
        "a:env": made.image(1, 2, step=1),
        "a:zstd": made.put(json.dumps(document(made, plain) | {"layers": [twin]}).encode(), IMAGE),
        "a:schema2": made.put(json.dumps(docker).encode(), f"{DOCKER}distribution.manifest.v2+json"),
        "a:schema1": made.put(json.dumps(schema_1).encode(), f"{DOCKER}distribution.manifest.v1+prettyjws"),
        "a:twice": made.image(3, 3, 1),
        "b/c/d:one-of-five": made.index(arm64=arm, **elsewhere),
        "b/c/d:deleted": made.index(amd64=absent(8)),
        "b/c/d:nested": made.index(amd64=inner, arm64=arm),
        "b/c/d:attested": made.index(made.attestation(1), amd64=made.image(1, 8), arm64=arm),
        "e:referrer": changed(made, made.image(9), subject=absent(9)),
        "e:cycle": made.index(amd64=subject, arm64=referrer),
        "e:buildcache": changed(made, made.image(1, 10), config=cache),
        "e:foreign": changed(made, made.image(11), layers=[layer(made, 11), absent(11) | {"mediaType": FOREIGN}]),
        "e:partial": changed(made, made.image(12), layers=[layer(made, 12), absent(12) | {"mediaType": LAYER}]),
        f"e:sha256-{subject['digest'][7:]}": made.index(amd64=referrer),
    }  # fmt: skip


def as_layout(made: Layout, images: dict[str, Row], history: list[Row]) -> Path:
    rows = [row | {"annotations": {"org.opencontainers.image.ref.name": name}} for name, row in images.items()]
    (made.path / "index.json").write_text(json.dumps({"manifests": [*rows, *history]}))
    return made.path


def as_registry(made: Layout, images: dict[str, Row], history: list[Row]) -> Path:
    """With a tag that was pushed three times, and a repository without `tags`, as Harbor's."""
    base = made.path.parent / "registry/docker/registry/v2"
    for path in (made.path / "blobs" / "sha256").iterdir():
        to = base / "blobs" / "sha256" / path.name[:2] / path.name
        to.mkdir(parents=True)
        path.rename(to / "data")
    shutil.rmtree(made.path)
    tree = Tree(base)

    def digest(row: Row) -> Digest:
        found = digest_in(row["digest"])
        assert found
        return found

    for at_ns, (name, row) in enumerate(images.items(), 100):
        repository, _, tag = name.partition(":")
        tree.push(repository, tag, digest(row), at_ns)
    for at_ns, row in enumerate(history, 10):
        tree.push("a", "moving", digest(row), at_ns)
    tree.hold("harbor/proxy", digest(history[0]), 5)
    return base


@pytest.mark.parametrize("tree", [as_layout, as_registry])
def test_every_shape_has_the_oracles_figures(home: Home, tree: Any) -> None:
    made = Layout(home.root / "cache")
    images = shapes(made)
    base = tree(made, images, [made.image(1, 20, step=step) for step in range(3)])
    home.scan(base)
    expected = Oracle(world_of(base, called="cache"))
    found = compare(home, expected)
    assert_invariants(home, expected, found, random.Random(2))
    rows = {name: row for row in found["images"]["images"] for name in row["names"]}
    assert {*images} <= {*rows}
    [referrers] = [name for name in images if name.startswith("e:sha256-")]
    assert len(rows["a:plain"]["names"]) == 3
    assert {name: rows[name]["kind"] for name in rows if rows[name]["kind"] not in ("image", "index")} == {
        "e:referrer": "referrer", "e:buildcache": "build cache", referrers: "referrers list",
    }  # fmt: skip
    assert rows["b/c/d:one-of-five"]["absent_platforms"] == ["linux/386", "linux/arm", "linux/ppc64le", "linux/s390x"]
    assert {name for name in rows if rows[name]["chunks"] is None} == {"e:partial"}
    assert rows["a:zstd"]["chunks"]["exclusive_bytes"] == 0 < rows["a:zstd"]["stored"]["exclusive_bytes"]
    assert (len(rows["a:moving"]["names"]) if tree is as_registry else 1) == 1
    home.check()
