"""Which paths name blobs, and which folders may lead to some."""

from __future__ import annotations

import pytest

from chunkd.model import Digest
from chunkd.sources import layouts

HEX = "9b301e670b4a2bc2b1e95cdb21c421679a8bc57eae4b8ed8aa582f1a11b31225"
HEX512 = HEX * 2
SHA256, SHA512 = Digest("sha256", HEX), Digest("sha512", HEX512)


@pytest.mark.parametrize(
    ("whole", "digest", "layout"),
    [
        (f"/reg/blobs/sha256/{HEX}", SHA256, "oci"),
        (f"/reg/blobs/sha512/{HEX512}", SHA512, "oci"),
        (f"/reg/library/debian/blobs/sha256/{HEX}", SHA256, "oci"),
        (f"/reg/blobs/sha256/9b/{HEX}/data", SHA256, "distribution"),
        (f"/reg/blobs/sha512/9b/{HEX512}/data", SHA512, "distribution"),
        (f"/reg/docker/registry/v2/blobs/sha256/9b/{HEX}/data", SHA256, "distribution"),
        (f"/quay/sha256/9b/{HEX}", SHA256, "quay"),
        (f"/quay/datastorage/registry/sha512/9b/{HEX512}", SHA512, "quay"),
    ],
)
def test_a_blob_is_known_from_any_root_above_it(whole: str, digest: Digest, layout: str) -> None:
    parts = whole.split("/")
    last = {"oci": 2, "distribution": 4, "quay": 2}[layout]
    for cut in range(2, len(parts) - (2 if layout == "distribution" else 1)):
        root, path = "/".join(parts[:cut]), "/".join(parts[cut:])
        assert layouts.identify(root, path) == (digest, layout), (root, path)
        assert layouts.identify("/mnt/sha256/blobs/x" + root, path) == (digest, layout)
    for cut in range(2, len(parts) - last):
        root = "/".join(parts[:cut])
        for end in range(cut, len(parts) - last):
            folder, name = "/".join(parts[cut:end]), parts[end]
            assert layouts.worth_entering(root, folder, name), (root, folder, name)


@pytest.mark.parametrize(("name", "digest"), [(HEX, SHA256), (HEX512, SHA512)])
@pytest.mark.parametrize("root", ["/cache", "/", "/a/b/c"])
def test_a_flat_folder(root: str, name: str, digest: Digest) -> None:
    assert layouts.identify(root, name) == (digest, "flat")
    assert layouts.identify(root, f"sub/{name}") is None


def test_a_root_that_lies_below_somebody_elses_blobs() -> None:
    root = "/mnt/blobs/sha256/old/registry"
    assert layouts.identify(root, f"blobs/sha256/{HEX}") == (SHA256, "oci")
    assert layouts.identify(root, f"blobs/sha256/9b/{HEX}/data") == (SHA256, "distribution")
    assert layouts.worth_entering(root, "", "blobs")
    assert layouts.naming(root, "blobs/sha256").digits
    assert not layouts.naming(root, "").strict


IN_FLIGHT = [
    "oci-put-blob1",  # skopeo, buildah
    f".umoci-1/blob-{HEX}",
    f".umoci-1/blobs/sha256/{HEX}",
    "docker/registry/v2/repositories/r/_uploads/11b7c9a0-e7c5-4f8e-8d7f-0b5d5b6a1f2e/data",
    f"docker/registry/v2/repositories/r/_layers/sha256/{HEX}/link",
    f"docker/registry/v2/repositories/r/_manifests/revisions/sha256/{HEX}/link",
    f"blobs/sha256/9b/{HEX}/data.11b7c9a0-e7c5-4f8e-8d7f-0b5d5b6a1f2e.tmp",
    f"ingest/{HEX}/data",  # containerd
    f"ingest/{HEX}_1234",  # oras-go
    f"ingest/11b7c9a0/{HEX}",  # Apple container
    "r/.uploads/11b7c9a0",  # zot
    f".sync/r/blobs/sha256/{HEX}",
    f"_trash/blobs/sha256/9b/{HEX}/data",
    f"blobs/sha256/{HEX}123456789",  # go-containerregistry
    f"blobs/sha256/{HEX[:-4]}.tmp",  # regclient
    "blobs/sha256/1234567890.tmp",
    "uploads/11b7c9a0-e7c5-4f8e-8d7f-0b5d5b6a1f2e",  # Quay
    f"uploads/{HEX}",
    f"blobs/sha256-{HEX}-partial",  # Ollama
    f"sha256-{HEX}",
    f"sha256-{HEX}-partial",
]


@pytest.mark.parametrize("path", IN_FLIGHT)
@pytest.mark.parametrize("root", ["/reg", "/reg/content"])
def test_what_writers_have_in_flight_is_no_blob(root: str, path: str) -> None:
    assert layouts.identify(root, path) is None


ODD = [
    HEX[:-1],
    HEX + "0",
    HEX.upper(),
    HEX[:-1] + "g",
    HEX[:-1] + "\u0663",  # a digit, and not one of ours
    HEX + "\n",
    " " + HEX,
    f"blobs/sha256/{HEX[:-1]}",
    f"blobs/sha256/{HEX}0",
    f"blobs/sha256/{HEX}\n",
    f"blobs/sha256/\n{HEX}",
    f"blobs/sha256/{HEX.upper()}",
    f"blobs/sha256/{HEX512}",
    f"blobs/sha512/{HEX}",
    f"blobs/sha1/{HEX}",
    f"blobs/md5/{HEX}",
    f"Blobs/sha256/{HEX}",
    f"myblobs/sha256/{HEX}",
    f"blobs/sha256/9c/{HEX}/data",
    f"blobs/sha256/9B/{HEX}/data",
    f"blobs/sha256/9b3/{HEX}/data",
    f"blobs/sha256/9/{HEX}/data",
    f"blobs/sha256/9b/{HEX}",
    f"blobs/sha256/9b/{HEX}/data\n",
    f"blobs/sha256/9b/{HEX}/Data",
    f"blobs/sha256/9b/{HEX}/x/data",
    f"blobs/sha256/9b/{HEX[:-1]}/data",
    f"sha256/9c/{HEX}",
    f"sha256/9B/{HEX}",
    f"sha256/{HEX}",
    f"sha256/9b/{HEX}/data",
    f"sha256/9b/{HEX}\n",
    f"sha256/9b/{HEX.upper()}",
    f"sha256/9b/{HEX512}",
    f"sha1/9b/{HEX}",
    f"mysha256/9b/{HEX}",
    f"sha256/9b/x/{HEX}",
    f"blobs/sha256/9b/sha256/9b/{HEX}",
    f"9b/{HEX}",
    f"blobs/sha256/{HEX}/data",
    f"blobs/sha256/ab/{HEX}/data",
    f"blobs/sha256/sub/{HEX}",
    "",
    "blobs",
    "blobs/sha256",
    "blobs/sha256/",
    "data",
]


@pytest.mark.parametrize("path", ODD)
def test_a_name_that_is_off_by_a_little_is_no_blob(path: str) -> None:
    assert layouts.identify("/reg", path) is None


@pytest.mark.parametrize(
    ("root", "folder", "holds", "strict"),
    [
        ("/reg", "", True, False),
        ("/reg/blobs", "", True, False),
        ("/reg/blobs/sha256", "", True, True),
        ("/reg/blobs/sha256/9b", "", True, True),
        ("/reg", "blobs", False, False),
        ("/reg", "blobs/sha256", True, True),
        ("/reg", "blobs/sha512", True, True),
        ("/reg", "r/blobs/sha256", True, True),
        ("/reg", "blobs/sha256/9b", True, True),
        ("/reg", "blobs/sha256/9B", False, False),
        ("/reg", "blobs/sha256\n", False, False),
        ("/reg", "blobs/sha1", False, False),
        ("/reg", f"blobs/sha256/9b/{HEX}", False, False),
        ("/quay", "sha256", False, False),
        ("/quay", "sha256/9b", True, True),
        ("/quay/sha256", "", True, False),
        ("/quay/sha256", "9b", True, True),
        ("/quay/sha256", "9B", False, False),
        ("/quay/sha256/9b", "", True, False),
        ("/quay", f"sha256/9b/{HEX}", False, False),
        ("/quay", "_x/sha256/9b", False, True),
    ],
)
def test_where_blobs_are_looked_for(root: str, folder: str, holds: bool, strict: bool) -> None:
    naming = layouts.naming(root, folder)
    assert bool(naming.digits) == holds
    assert naming.strict == strict


@pytest.mark.parametrize(
    ("folder", "name", "worth"),
    [
        ("", "blobs", True),
        ("", "any", True),
        ("any", "repository", True),
        ("", HEX, False),
        ("any", HEX, True),
        ("", ".sync", False),
        ("", "_uploads", False),
        (".sync", "r", False),
        ("a/_layers/b", "c", False),
        ("blobs", "sha256", True),
        ("blobs/sha256", "9b", True),
        ("blobs/sha256", "9B", False),
        ("blobs/sha256", "9", False),
        ("blobs/sha256", HEX, False),
        ("blobs/sha256/9b", "9b", False),
        ("blobs/sha256/9b", HEX, False),
        ("sha256", "9b", True),
        ("sha256/9b", "9b", False),
        ("sha256/9b", HEX, False),
        ("sha256/x", "blobs", True),
        ("/".join("d" * layouts.MAX_DEPTH), "e", True),
        ("/".join("d" * (layouts.MAX_DEPTH + 1)), "e", False),
    ],
)
def test_which_folders_are_entered(folder: str, name: str, worth: bool) -> None:
    assert layouts.worth_entering("/reg", folder, name) == worth


CONTAINERD = "io.containerd.content.v1.content"


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("/reg", "lost+found"),
        ("/reg", "any/lost+found"),
        ("/reg", ".snapshot"),
        ("/reg", "#recycle"),
        ("/reg", "blobs/@eaDir"),
        ("/reg", "$RECYCLE.BIN"),
        ("/reg", "System Volume Information"),
        ("/var/lib/containerd", "io.containerd.snapshotter.v1.overlayfs"),
        ("/var/lib", "containerd/io.containerd.runtime.v2.task"),
        ("/var/lib/docker", "overlay2"),
        ("/var/lib/docker", f"containers/{HEX}"),
        ("/var/lib/docker", f"volumes/{HEX}"),
        ("/var/lib/docker", "volumes/named/_data"),
        ("/var/lib/docker", "rootfs/overlayfs"),
        ("/var/lib/containers/storage", f"overlay/{HEX}"),
        ("/var/lib/containers/storage", "overlay-layers"),
        ("/var/lib/kubelet", "pods/1/volumes/kubernetes.io~empty-dir"),
        ("/reg", "docker/registry/v2/repositories"),
        ("/reg/docker", "registry/v2/repositories"),
        ("/reg/docker/registry", "v2/repositories"),
        ("/reg/docker/registry/v2", "repositories"),
    ],
)
def test_no_blob_of_the_cache_is_in_such_a_folder_unless_it_was_named(root: str, folder: str) -> None:
    parent, _, name = folder.rpartition("/")
    assert not layouts.worth_entering(root, parent, name)
    assert not layouts.worth_entering(root, folder, "any")
    for below in (f"blobs/sha256/{HEX}", f"3/fs/blobs/sha256/9b/{HEX}/data"):
        assert layouts.identify(root, f"{folder}/{below}") is None
        assert layouts.identify(f"{root}/{folder}", below) is not None
    assert not layouts.naming(root, f"{folder}/blobs/sha256").digits
    for below in ("", "any"):
        assert layouts.worth_entering(f"{root}/{folder}", below, "blobs")


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("/var/lib/containerd", CONTAINERD),
        ("/var/lib/docker", f"containerd/daemon/{CONTAINERD}"),
        ("/zot", "containers/podman"),
        ("/zot", "volumes"),
        ("/zot", "overlay/network"),
        ("/zot", "repositories/app"),
        ("/zot/v2", "repositories"),
        ("/zot", "lost-and-found"),
        ("/mnt", "@registry"),
        ("/mnt", "mydocker/registry/v2/repositories"),
    ],
)
def test_a_repository_is_found_whatever_its_name_is_like(root: str, folder: str) -> None:
    names = f"{folder}/blobs/sha256".split("/")
    for end, name in enumerate(names):
        assert layouts.worth_entering(root, "/".join(names[:end]), name)
    assert layouts.identify(root, f"{folder}/blobs/sha256/{HEX}") == (SHA256, "oci")


HEXES = (
    HEX,
    HEX.upper(),
    HEX[:-1],
    f"{HEX[:-1]}g",
    f"{HEX[:-1]}\n",
    f"{HEX}0",
    f"ab{HEX[2:]}",
    HEX * 2,
    HEX * 4,
    "9b",
    "",
)


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        (f"{top}{cut}", folder)
        for top in ("/reg", "/mnt/blobs/sha256/old")
        for cut, folders in {
            "": (
                "",
                "any",
                "blobs",
                "r/blobs/sha256",
                "blobs/sha256",
                "blobs/sha512",
                "blobs/sha256/9b",
                "blobs/sha512/9b",
                "sha256",
                "sha256/9b",
                "sha512/ab",
                "blobs/sha256/9b/sha256/9b",
            ),
            "/blobs": ("", "sha256", "sha512", "sha256/9b", "any"),
            "/blobs/sha256": ("", "9b", "ab"),
            "/blobs/sha512": ("", "9b"),
            "/blobs/sha256/9b": ("",),
            "/blobs/sha512/ab": ("",),
            "/.sync/blobs/sha256": ("",),
            "/sha256": ("", "9b", "ab", "x"),
            "/sha512/9b": ("", "ab"),
        }.items()
        for folder in (
            *folders,
            *(f"{name}/{folder}" for folder in folders if folder for name in (".sync", "_uploads")),
        )
    ],
)
def test_names_are_judged_as_their_paths_are(root: str, folder: str) -> None:
    """All at once or one by one: wherever a listing may come, and where it may not."""
    naming = layouts.naming(root, folder)
    suffix = f"/{layouts.DATA}" if naming.layout == "distribution" else ""
    found = {name: layouts.identify(root, "/".join(filter(None, (folder, name))) + suffix) for name in HEXES if name}
    assert naming.fit([name.encode() for name in HEXES]) == {name.encode() for name, blob in found.items() if blob}
    assert {blob[1] for blob in found.values() if blob} <= {naming.layout}


def test_a_name_that_is_no_text_fits_nowhere() -> None:
    assert layouts.naming("/reg", "").fit([b"\xff" * 64, b"", HEX.encode()]) == {HEX.encode()}


def test_the_blob_within_a_folder() -> None:
    assert layouts.blob_within("/reg", "blobs/sha256/9b", HEX) == f"blobs/sha256/9b/{HEX}/data"
    assert layouts.blob_within("/reg/blobs/sha256/9b", "", HEX) == f"{HEX}/data"
    assert layouts.blob_within("/reg", "blobs/sha256/9c", HEX) is None
    assert layouts.blob_within("/reg", "blobs/sha256", HEX) is None
    assert layouts.blob_within("/reg", "", HEX) is None
