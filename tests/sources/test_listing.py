"""What a listing says of folders as they are."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from breaking import breaking
from chunkd.model import FileMark
from chunkd.sources import listing as module
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import Listing, name_hash, walk
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, Content, distribution, land, oci


def listings(root: Path, folder: str = "") -> dict[str, Listing]:
    """By folder. Each was entered before it was listed."""
    entered: list[str] = []
    found = {}
    for listing in walk(FolderSource(str(root)), folder, entered.append):
        assert entered[-1] == listing.folder
        found[listing.folder] = listing
    assert sorted(entered) == sorted(found)
    return found


def blobs(listing: Listing) -> list[str]:
    """The paths of its blobs."""
    return sorted(map(listing.blob_path, listing.blobs))


def test_an_empty_root_is_one_empty_listing(tmp_path: Path) -> None:
    assert listings(tmp_path) == {"": Listing("")}


def test_a_root_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert listings(tmp_path / "gone") == {"": Listing("")}
    (tmp_path / "file").write_bytes(b"")
    assert listings(tmp_path / "file") == {"": Listing("")}


def test_every_layout_is_found_at_once(tmp_path: Path) -> None:
    flat = land(tmp_path / LAYER.hex, b"")
    plain = land(oci(tmp_path, LIKE_IT), b"")
    nested = land(oci(tmp_path, PLAIN, "library/debian"), b"")
    split = land(distribution(tmp_path / "docker" / "registry" / "v2", OTHER), b"")
    quay = land(tmp_path / "registry" / "sha256" / OTHER.hex[:2] / OTHER.hex, b"")
    found = listings(tmp_path)
    assert {path for listing in found.values() for path in blobs(listing)} == {
        str(path.relative_to(tmp_path)) for path in (flat, plain, nested, split, quay)
    }
    assert set.union(*(listing.layouts for listing in found.values())) == {"flat", "oci", "distribution", "quay"}
    assert not any(listing.problem or listing.ignored or listing.expected for listing in found.values())


@pytest.mark.parametrize("cut", ["", "docker", "docker/registry/v2", "docker/registry/v2/blobs"])
def test_a_root_may_be_any_folder_on_the_way(tmp_path: Path, cut: str) -> None:
    path = land(distribution(tmp_path / "docker" / "registry" / "v2", OTHER), b"")
    found = listings(tmp_path / cut)
    assert [p for listing in found.values() for p in blobs(listing)] == [str(path.relative_to(tmp_path / cut))]


def test_a_blob_folder_without_its_blob_expects_it(tmp_path: Path) -> None:
    path = distribution(tmp_path, OTHER)
    path.parent.mkdir(parents=True)
    found = listings(tmp_path)[f"blobs/sha256/{OTHER.hex[:2]}"]
    assert found.expected == [str(path.relative_to(tmp_path))]
    assert (found.blobs, found.folders, found.ignored) == (set(), set(), [])


def test_strange_entries_are_told_each_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / "README").write_bytes(b"?")
    (folder / LAYER.hex).symlink_to("/dev/null")
    os.mkfifo(folder / LIKE_IT.hex)
    (folder / PLAIN.hex).mkdir()
    (folder / "lost+found").mkdir()
    (folder / f"{OTHER.hex}0").write_bytes(b"")
    good = land(folder / OTHER.hex, b"")
    found = listings(tmp_path)["blobs/sha256"]
    assert {Path(path).name: reason for path, reason in found.ignored} == {
        "README": "not the name of a digest",
        LAYER.hex: "a symbolic link",
        LIKE_IT.hex: "a FIFO",
        PLAIN.hex: "a folder",
        "lost+found": "a folder, and no digest's",
        f"{OTHER.hex}0": "not the name of a digest",
    }
    assert blobs(found) == [str(good.relative_to(tmp_path))]
    assert found.folders == set()


def test_folders_that_writers_work_in_are_not_entered(tmp_path: Path) -> None:
    for folder in (".uploads", ".sync", ".umoci-1", "_uploads", "_layers"):
        land(oci(tmp_path / folder, LAYER), b"")
    assert list(listings(tmp_path)) == [""]


def test_a_symbolic_link_is_followed_for_the_root_alone(tmp_path: Path) -> None:
    real = tmp_path / "real"
    land(oci(real, LAYER), b"")
    (tmp_path / "link").symlink_to(real)
    assert listings(tmp_path / "link")["blobs/sha256"].blobs
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(real)
    assert list(listings(tmp_path / "root")) == [""]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_folder_that_breaks_off_has_a_problem(tmp_path: Path, after: int) -> None:
    for content in (LAYER, LIKE_IT, OTHER):
        land(oci(tmp_path, content), b"")
    with breaking(tmp_path / "blobs" / "sha256", after):
        found = listings(tmp_path)
    assert found["blobs/sha256"].problem == f"{tmp_path}/blobs/sha256: Input/output error"
    assert len(found["blobs/sha256"].blobs) == after
    assert not found[""].problem


@pytest.mark.parametrize("breaks_after", [None, 5, 8])
def test_a_large_folder_comes_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks_after: int | None
) -> None:
    """The last one knows the names of all, so that what is under another name is known to be gone."""
    monkeypatch.setattr(module, "SLICE_NAMES", 4)
    names = {f"{number:064x}".encode() for number in range(8)}
    for name in names:
        (tmp_path / name.decode()).write_bytes(b"")
    (tmp_path / "blobs").mkdir()
    with contextlib.ExitStack() as stack:
        if breaks_after is not None:
            stack.enter_context(breaking(tmp_path, breaks_after))
        slices = [one for one in walk(FolderSource(str(tmp_path)), "", lambda _: None) if one.folder == ""]
    assert [one.last for one in slices] == [False] * (len(slices) - 1) + [True]
    assert max(len(list(one.names())) for one in slices) <= 4
    assert [bool(one.problem) for one in slices[:-1]] == [False] * (len(slices) - 1)
    found = {name for one in slices for name in one.names()}
    before = [name for one in slices[:-1] for name in one.names()]
    assert sorted(slices[-1].earlier) == sorted(map(name_hash, before))
    if breaks_after is None:
        assert len(slices) == 3
        assert found == names | {b"blobs/"}
        assert slices[-1].problem == ""
    else:
        assert found <= names | {b"blobs/"}
        assert len(found) == breaks_after
        assert slices[-1].problem.endswith("Input/output error")


def test_a_blob_folder_that_has_long_been_empty_expects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, OTHER).parent.mkdir(parents=True)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 11)
    assert listings(tmp_path)[f"blobs/sha256/{OTHER.hex[:2]}"].expected == []


def test_a_blob_folders_mark_comes_with_the_listing(tmp_path: Path) -> None:
    """It is looked at anyway, and so another file is found by a listing."""
    path = land(distribution(tmp_path, LAYER), b"a blob")
    status = path.stat()
    found = listings(tmp_path)[f"blobs/sha256/{LAYER.hex[:2]}"]
    mark = FileMark(status.st_dev, status.st_ino, 6, status.st_ctime_ns)
    assert found.marks == {f"{LAYER.hex}/".encode(): mark}


def test_a_tree_without_end_has_one_here(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(60):
        folder /= "d"
    folder.mkdir(parents=True)
    assert len(listings(tmp_path)) < 40


def test_part_of_a_cache_can_be_listed(tmp_path: Path) -> None:
    land(oci(tmp_path, LAYER, "a"), b"")
    path = land(oci(tmp_path, LAYER, "b"), b"")
    found = listings(tmp_path, "b")
    assert list(found) == ["b", "b/blobs", "b/blobs/sha256"]
    assert blobs(found["b/blobs/sha256"]) == [str(path.relative_to(tmp_path))]


def test_strange_entries_of_distribution_are_told_as_well(tmp_path: Path) -> None:
    pair = distribution(tmp_path, LAYER).parent.parent
    for content in (LAYER, LIKE_IT, PLAIN):
        (pair / f"{pair.name}{content.hex[2:]}").mkdir(parents=True)
    data = pair / f"{pair.name}{LIKE_IT.hex[2:]}" / "data"
    data.symlink_to("/dev/null")
    (pair / f"{pair.name}{PLAIN.hex[2:]}" / "data").mkdir()
    other = "00" if pair.name != "00" else "01"
    (pair / f"{other}{OTHER.hex[2:]}").mkdir()
    (pair / f"{pair.name}{OTHER.hex[2:]}").write_bytes(b"a file where a folder should be")
    good = land(distribution(tmp_path, LAYER), b"")
    found = listings(tmp_path)[f"blobs/sha256/{pair.name}"]
    assert dict(found.ignored) == {
        str(data.relative_to(tmp_path)): "a symbolic link",
        f"blobs/sha256/{pair.name}/{pair.name}{PLAIN.hex[2:]}/data": "a folder",
        f"blobs/sha256/{pair.name}/{other}{OTHER.hex[2:]}": "a folder, and no digest's",
        f"blobs/sha256/{pair.name}/{pair.name}{OTHER.hex[2:]}": "not the name of a digest",
    }
    assert blobs(found) == [str(good.relative_to(tmp_path))]
    assert (found.folders, found.expected) == (set(), [])


def test_in_a_root_only_what_has_a_digests_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"{}")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / LAYER.hex)
    (tmp_path / OTHER.hex).mkdir()
    assert dict(listings(tmp_path)[""].ignored) == {LAYER.hex: "a FIFO", OTHER.hex: "a folder"}


@pytest.mark.parametrize("make", [oci, distribution])
def test_a_path_that_no_key_holds_is_a_problem(tmp_path: Path, make: Callable[[Path, Content], Path]) -> None:
    long = "/".join(["d" * 200] * 2)
    land(make(tmp_path / long, LAYER), b"")
    land(make(tmp_path, OTHER), b"")
    found = listings(tmp_path)
    problems = [listing for listing in found.values() if listing.problem]
    assert [listing.folder.startswith(long) for listing in problems] == [True]
    assert problems[0].problem.endswith("its blobs' paths are longer than 440 bytes")
    assert problems[0].blobs == set()
    assert sum(len(listing.blobs) for listing in found.values()) == 1


def test_names_that_are_no_text_are_kept_as_they_are(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9/blobs/sha256"
    os.makedirs(folder)
    with open(os.path.join(folder, LAYER.hex.encode()), "wb"):
        pass
    with open(os.path.join(folder, b"\xff"), "wb"):
        pass
    found = listings(tmp_path)["caf\udce9/blobs/sha256"]
    assert blobs(found) == [f"caf\udce9/blobs/sha256/{LAYER.hex}"]
    assert found.ignored == [("caf\udce9/blobs/sha256/\udcff", "not the name of a digest")]
