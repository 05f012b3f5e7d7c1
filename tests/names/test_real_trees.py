"""The names in trees that real programs wrote: skopeo, umoci, docker-registry and containerd."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobs import digest_of, tar
from chunkd.model import Digest
from chunkd.model import digest_of as digest_in
from chunkd.names.beside import read_names
from chunkd.names.containerd import read_containerd
from chunkd.names.name import Name, Part, Standing
from chunkd.sources.beneath import Beneath
from daemon import Home
from test_writers import copy, delete_image, make_image, make_images, need, registry
from test_writers_many import containerd, run

IMAGES = 4


@pytest.fixture
def images(home: Home) -> list[Path]:
    return make_images(home, IMAGES)


def digest_of_image(layout: Path) -> Digest:
    [row] = filter(None, read_names(str(layout), "x"))
    assert row.names is not None
    return row.names[0].digest


def only(parts: Iterator[Part]) -> dict[tuple[str, str], list[Name]]:
    """The names by source and place; nothing went wrong."""
    found = {}
    for part in parts:
        assert part.names is not None
        assert part.problem == ""
        found[part.source, part.where] = list(part.names)
    return found


def test_skopeo_into_an_oci_layout(home: Home, images: list[Path]) -> None:
    need("skopeo")
    layout = home.root / "layout"
    for number, image in enumerate(images):
        copy(home, image, f"oci:{layout}:v{number}")
    copy(home, images[1], f"oci:{layout}:other/app:v1")
    copy(home, images[2], f"oci:{layout}:v3")
    [(where, names)] = only(filter(None, read_names(str(layout), "shop/api"))).items()
    assert where == ("layout", "")
    expected = {f"shop/api:v{number}": digest_of_image(images[min(number, 2)]) for number in range(IMAGES)}
    # skopeo keeps the row of an image whose tag has moved.
    assert {name.text: name.digest for name in names} == expected | {
        "other/app:v1": digest_of_image(images[1]), "": digest_of_image(images[3]),
    }  # fmt: skip


def test_umoci(home: Home) -> None:
    need("umoci")
    layout = home.root / "layout"
    run(home, "umoci", "init", "--layout", layout)
    (home.root / "own.tar").write_bytes(tar({"own": b"own"}))
    for tag in ("a", "b"):
        run(home, "umoci", "new", "--image", f"{layout}:{tag}")
    run(home, "umoci", "raw", "add-layer", "--image", f"{layout}:a", "--tag", "c", home.root / "own.tar")
    run(home, "umoci", "tag", "--image", f"{layout}:c", "d")
    run(home, "umoci", "rm", "--image", f"{layout}:b")
    [names] = only(filter(None, read_names(str(layout), "app"))).values()
    by_tag = {name.tag: name.digest for name in names}
    assert set(by_tag) == {"a", "c", "d"}
    assert by_tag["c"] == by_tag["d"] != by_tag["a"]


def test_docker_registry(home: Home, images: list[Path]) -> None:
    need("skopeo", "docker-registry")
    store = home.root / "store"
    digests = [digest_of_image(image) for image in images]

    def push(number: int, name: str) -> None:
        copy(home, images[number], "--dest-tls-verify=false", f"docker://{address}/{name}")

    with registry(home, store) as (address, _):
        for number in (2, 0, 1):
            push(number, "team/app:latest")
        push(0, "team/app:v1")
        push(3, "team/app/deeper:v1")
        push(3, "gone:v1")
        delete_image(address, "gone", images[3])
        found = only(filter(None, read_names(str(store / "docker/registry/v2"), "unused")))
    assert set(found) == {("registry", where) for where in ("team/app", "team/app/deeper", "gone")}
    assert found["registry", "gone"] == []
    names = found["registry", "team/app"]
    by_standing = {
        standing: [(name.text, name.digest) for name in names if name.standing is standing] for standing in Standing
    }
    assert by_standing[Standing.NAMED] == [("team/app:latest", digests[1]), ("team/app:v1", digests[0])]
    assert set(by_standing[Standing.HELD]) == {("", digest) for digest in digests[:3]}
    pushes = sorted(
        (name.at_ns, name.digest) for name in names if name.tag == "latest" and name.standing is not Standing.HELD
    )
    assert [digest for _, digest in pushes] == [digests[2], digests[0], digests[1]]


def listed(home: Home, ctr: tuple[str, ...]) -> dict[str, Digest]:
    rows = [row.split() for row in run(home, *ctr, "images", "ls").splitlines()[1:]]
    return {row[0]: digest for row in rows if (digest := digest_in(row[2]))}


@contextlib.contextmanager
def archived(home: Home, number: int) -> Iterator[None]:
    """An archive `image.tar` for `ctr images import` in the home."""
    make_image(home.root / "image", number)
    with tarfile.open(home.root / "image.tar", "w") as archive:
        archive.add(home.root / "image", arcname=".")
    shutil.rmtree(home.root / "image")
    yield


def import_image(home: Home, ctr: tuple[str, ...], name: str) -> None:
    run(home, *ctr, "images", "import", "--no-unpack", "--all-platforms", "--index-name", name, "image.tar",
        cwd=home.root)  # fmt: skip


def containerd_names(home: Home) -> tuple[dict[str, Digest], str]:
    """The names of the namespace `default`, and what is wrong."""
    with Beneath(str(home.root / "containerd")) as root:
        parts = read_containerd(root)
    found = {part.where: part for part in parts}
    if "" in found:
        return {}, found[""].problem
    names = found["default"].names if "default" in found else ()
    assert names is not None
    return {name.text: name.digest for name in names}, ""


def test_containerd(home: Home) -> None:
    """While it runs, which is when nobody else can open its database."""
    need("containerd", "ctr")
    with containerd(home) as ctr:
        for number in range(IMAGES):
            with archived(home, number):
                import_image(home, ctr, f"docker.io/local/image{number}:v1")
            assert containerd_names(home) == (listed(home, ctr), "")
        run(home, *ctr, "images", "tag", "docker.io/local/image1:v1", "docker.io/local/other:v1")
        run(home, *ctr, "images", "rm", "docker.io/local/image0:v1")
        expected = listed(home, ctr)
        assert len(expected) == IMAGES
        assert containerd_names(home) == (expected, "")
        content = home.root / "containerd/io.containerd.content.v1.content"
        [(where, names)] = only(filter(None, read_names(str(content), "unused"))).items()
        assert where == ("containerd", "default")
        assert all(name.at_ns > 1 << 60 for name in names)
        assert {name.text: name.digest for name in names} == expected
        assert digest_of((content / "blobs/sha256" / names[0].digest.hex).read_bytes()) == names[0].digest
