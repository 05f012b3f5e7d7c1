"""What a removal would free, against docker-registry's own garbage collection, digest by digest.

Let G(R) be what its dry run deletes of the tree R, and R-S the tree without the tags of a set S of images and without
the revision links of manifests that only S holds. Then freed(S) is G(R-S) without G(R). (A manifest of S that an index
outside of S contains keeps its links: without them the registry would collect that index's layers.)
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blobs import digest_of, gz, noise, tar
from chunkd.images.atoms import Chunks
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, build
from chunkd.model import Digest
from chunkd.names.beside import read_names
from chunkd.names.name import Name, Standing
from chunkd.worker import manifest
from daemon import PATIENCE_S, Home
from test_writers import copy, need, registry

IMAGE, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
CONFIG, LAYER = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"
NO_CHUNKS = Chunks(0, lambda _: pytest.fail("no layer"), lambda _low, _high: pytest.fail("no chunk"))


class Layout:
    """An OCI layout in which images are made. Layers are told apart by their number."""

    def __init__(self, path: Path) -> None:
        self.path, self._blobs = path, path / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        (self._blobs / digest.hex).write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    def image(self, *layers: int, architecture: str = "amd64", step: int = 0) -> dict[str, Any]:
        trees = [tar({f"layer{number}": noise(1000, number)}) for number in layers]
        config = {
            "architecture": architecture, "os": "linux", "config": {"Env": [f"STEP={step}"]},
            "rootfs": {"type": "layers", "diff_ids": [str(digest_of(tree)) for tree in trees]},
        }  # fmt: skip
        document = {
            "schemaVersion": 2, "mediaType": IMAGE, "config": self.put(json.dumps(config).encode(), CONFIG),
            "layers": [self.put(gz(tree), LAYER) for tree in trees],
        }  # fmt: skip
        return self.put(json.dumps(document).encode(), IMAGE)

    def attestation(self, number: int) -> dict[str, Any]:
        """As BuildKit makes one beside each image."""
        document = {
            "schemaVersion": 2, "mediaType": IMAGE, "config": self.put(b'{"number":%d}' % number, CONFIG),
            "layers": [self.put(json.dumps({"_type": IN_TOTO, "subject": number}).encode(), IN_TOTO)],
        }  # fmt: skip
        return self.put(json.dumps(document).encode(), IMAGE) | {
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        }

    def index(self, *attestations: dict[str, Any], **children: dict[str, Any]) -> dict[str, Any]:
        rows = [row | {"platform": {"os": "linux", "architecture": name}} for name, row in children.items()]
        rows += attestations
        return self.put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}).encode(), INDEX)

    def chosen(self, row: dict[str, Any]) -> Path:
        """The layout, with this image as the only one."""
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
        return self.path


def fill(home: Home, address: str) -> None:
    """Images that share layers, in two repositories; indexes of two platforms, also of shared children; two tags of one
    digest; a tag that moved.
    """
    layout = Layout(home.root / "made")

    def push(row: dict[str, Any], *names: str) -> None:
        for name in names:
            copy(home, layout.chosen(row), "--all", "--dest-tls-verify=false", f"docker://{address}/{name}")

    push(layout.image(1, 2), "app:v1", "app:stable")
    push(layout.image(1, 3), "app:latest")
    push(layout.image(1, 4), "app:latest")
    push(layout.image(1, 2, step=1), "team/other:v1")
    push(layout.image(5, 5), "team/other:twice")
    arm = layout.image(1, 6, architecture="arm64")
    push(layout.index(layout.attestation(1), amd64=layout.image(1, 7), arm64=arm), "app:both")
    push(layout.index(amd64=layout.image(1, 8), arm64=arm), "app:both2", "team/other:both2")
    push(layout.image(1, 7), "app:amd64")  # a child that has a name of its own


def read_tree(store: Path) -> tuple[Images, list[Name]]:
    base = store / "docker/registry/v2"
    names = [name for part in filter(None, read_names(str(base), "unused")) for name in part.names or ()]
    blobs = {}
    for path in base.glob("blobs/sha256/*/*/data"):
        data = path.read_bytes()
        contents = manifest.parse(data) if data.startswith(b"{") else None
        blobs[Digest("sha256", path.parent.name)] = BlobFacts(len(data), contents)
    return Images.of(build(blobs, names), blobs, {}, NO_CHUNKS), names


def collected(home: Home, store: Path) -> set[str]:
    """What docker-registry would delete of a tree."""
    settings = home.root / "collect.yml"
    settings.write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {store}}}}}\n")
    done = subprocess.run(
        ["docker-registry", "garbage-collect", "--dry-run", str(settings)],
        env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    return set(re.findall(r"blob eligible for deletion: (sha256:[0-9a-f]{64})", done.stdout + done.stderr))


def without(store: Path, to: Path, images: Images, names: list[Name], some: int) -> None:
    """The tree R-S."""
    shutil.copytree(store, to)
    only_theirs = {digest for digest, holders in images.graph.holders_of() if holders and not holders & ~some}
    roots = {root.digest for number, root in enumerate(images.graph.roots) if some >> number & 1}
    for name in names:
        manifests = to / "docker/registry/v2/repositories" / name.repository / "_manifests"
        if name.digest in roots and name.standing is Standing.NAMED:
            shutil.rmtree(manifests / "tags" / name.tag)
        if name.digest in only_theirs:
            shutil.rmtree(manifests / "revisions/sha256" / name.digest.hex, ignore_errors=True)


def test_freed_is_what_the_registry_would_collect(home: Home, seed: int) -> None:
    need("skopeo", "docker-registry")
    store = home.root / "store"
    with registry(home, store) as (address, _):
        fill(home, address)
    orphan = store / "docker/registry/v2/blobs/sha256/aa" / ("a" * 64)
    orphan.mkdir(parents=True)
    (orphan / "data").write_bytes(b"a push cut short")
    images, names = read_tree(store)
    roots = images.graph.roots
    assert len(roots) == 8
    kept = collected(home, store)
    assert (
        kept == {f"sha256:{'a' * 64}"} == {str(digest) for digest, holders in images.graph.holders_of() if not holders}
    )

    draw, everything = random.Random(seed), (1 << len(roots)) - 1
    sets = [everything, *(1 << number for number in range(len(roots)))]
    sets += [draw.randrange(1, everything) for _ in range(12)]
    freed_blobs = 0
    for number, some in enumerate(sets):
        tree = home.root / f"without{number}"
        without(store, tree, images, names, some)
        reply = images.freed(some)
        expected = collected(home, tree) - kept
        assert set(reply["stored"]["blobs"]) == expected, reply["images"]
        paths = (store / f"docker/registry/v2/blobs/sha256/{one[7:9]}/{one[7:]}/data" for one in expected)
        assert reply["stored"]["bytes"] == sum(path.stat().st_size for path in paths)
        freed_blobs += len(expected)
        shutil.rmtree(tree)
    assert freed_blobs > 50
