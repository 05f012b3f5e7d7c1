"""What a listing says of folders as they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkd.scan import Listing, walk
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, distribution, land, oci


def listings(root: Path, folder: str = "") -> dict[str, Listing]:
    """By folder. Each was entered before it was listed."""
    entered: list[str] = []
    found = {}
    for listing in walk(str(root), folder, entered.append):
        assert entered[-1] == listing.folder
        found[listing.folder] = listing
    assert sorted(entered) == sorted(found)
    return found


@contextlib.contextmanager
def breaking(folder: Path, after: int) -> Iterator[None]:
    """Listing that folder fails after so many entries, as on a bad disk."""
    real = os.scandir

    class Entries:
        def __init__(self, path: str) -> None:
            self.path, self.entries = path, real(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            if not Path(self.path).samefile(folder):
                return self.entries
            return self._some()

        def _some(self) -> Iterator[os.DirEntry[str]]:
            for number, entry in enumerate(self.entries):
                if number == after:
                    raise OSError(5, "Input/output error")
                yield entry

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", Entries)
        yield


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
    found = listings(tmp_path)
    assert {path for listing in found.values() for path in listing.blobs} == {
        str(path.relative_to(tmp_path)) for path in (flat, plain, nested, split)
    }
    assert set.union(*(listing.layouts for listing in found.values())) == {"flat", "oci", "distribution"}
    assert not any(listing.problem or listing.ignored or listing.expected for listing in found.values())


@pytest.mark.parametrize("cut", ["", "docker", "docker/registry/v2", "docker/registry/v2/blobs"])
def test_a_root_may_be_any_folder_on_the_way(tmp_path: Path, cut: str) -> None:
    path = land(distribution(tmp_path / "docker" / "registry" / "v2", OTHER), b"")
    found = listings(tmp_path / cut)
    assert [p for listing in found.values() for p in listing.blobs] == [str(path.relative_to(tmp_path / cut))]


def test_a_blob_folder_without_its_blob_expects_it(tmp_path: Path) -> None:
    path = distribution(tmp_path, OTHER)
    path.parent.mkdir(parents=True)
    found = listings(tmp_path)[f"blobs/sha256/{OTHER.hex[:2]}"]
    assert found.expected == [str(path.relative_to(tmp_path))]
    assert (found.blobs, found.names, found.ignored) == ([], set(), [])


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
    assert found.blobs == [str(good.relative_to(tmp_path))]
    assert found.names == {good.name}


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
    assert found["b/blobs/sha256"].blobs == [str(path.relative_to(tmp_path))]
