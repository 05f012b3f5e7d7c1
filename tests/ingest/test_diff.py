"""A listing against the index: what differs is hinted at, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from breaking import breaking
from chunkd.index import records
from chunkd.index.storage.environment import Store
from chunkd.ingest.diff import differences
from chunkd.model import Place
from chunkd.sources.listing import walk
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, distribution, land, oci


class Compared:
    """A cache and an index that knows some of its paths."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store

    def know(self, *paths: Path | str, database: str = "places") -> None:
        with self.store.env.begin(write=True) as txn:
            for path in paths:
                below = str(path.relative_to(self.root)) if isinstance(path, Path) else path
                for cache in (1, 2):  # another cache's places are nobody's business
                    txn.put(records.place_key(Place(cache, below)), b"", db=self.store.databases[database])

    def hints(self, *, verify: bool = False) -> dict[str, str]:
        """All folders of the cache: the paths hinted at, with the reasons."""
        found: dict[str, str] = {}
        for listing in walk(str(self.root), "", lambda _: None):
            with self.store.env.begin() as txn:
                hints, ignored = differences(self.store, txn, 1, listing, verify=verify)
            assert all(hint.place.cache == 1 for hint in hints)
            assert [(place.path, reason) for place, reason in ignored] == listing.ignored
            found |= {hint.place.path: hint.why for hint in hints}
        return found

    def path(self, path: Path) -> str:
        return str(path.relative_to(self.root))


@pytest.fixture
def compared(tmp_path: Path) -> Iterator[Compared]:
    (tmp_path / "cache").mkdir()
    with contextlib.closing(Store(str(tmp_path / "index"), readonly=False)) as store:
        yield Compared(tmp_path / "cache", store)


def in_all_layouts(root: Path) -> list[Path]:
    return [
        land(root / LAYER.hex, b""),
        land(oci(root, LIKE_IT), b""),
        land(oci(root, PLAIN, "library/debian"), b""),
        land(distribution(root, OTHER), b""),
    ]


def test_what_is_known_and_there_is_no_news(compared: Compared) -> None:
    compared.know(*in_all_layouts(compared.root))
    assert compared.hints() == {}


def test_what_is_new_is_looked_at(compared: Compared) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(paths[0])
    assert compared.hints() == {compared.path(path): "listed by a scan" for path in paths[1:]}


def test_after_a_doubt_all_is_looked_at(compared: Compared) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(*paths[1:])
    expected = {compared.path(path): "verify" for path in paths} | {LAYER.hex: "listed by a scan"}
    assert compared.hints(verify=True) == expected


def test_what_is_gone_is_looked_at(compared: Compared) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(*paths, f"gone/blobs/sha256/{LAYER.hex}", f"gone/blobs/sha256/aa/{LAYER.hex}/data")
    for path in paths:
        path.unlink()
    paths[3].parent.rmdir()
    expected = [*map(compared.path, paths), f"gone/blobs/sha256/{LAYER.hex}", f"gone/blobs/sha256/aa/{LAYER.hex}/data"]
    assert compared.hints() == dict.fromkeys(expected, "not listed by a scan")


def test_data_that_is_gone_alone_is_looked_at(compared: Compared) -> None:
    path = land(distribution(compared.root, OTHER), b"")
    compared.know(path)
    path.unlink()
    assert list(compared.hints()) == [compared.path(path)]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/null"), Path.mkdir, os.mkfifo])
def test_a_known_name_that_is_no_file_any_longer_is_looked_at(compared: Compared, make: Callable[[Path], None]) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(*paths)
    for path in paths:
        path.unlink()
        make(path)
    assert set(compared.hints()) == set(map(compared.path, paths))


def test_a_file_in_the_place_of_a_folder_of_blobs_is_no_alibi_for_them(compared: Compared) -> None:
    """Neither where it has a folder's name, nor where it has that of a blob's own folder."""
    path = distribution(compared.root, OTHER)
    compared.know(path)
    path.parent.parent.parent.mkdir(parents=True)
    path.parent.parent.write_bytes(b"")
    assert compared.hints() == {compared.path(path): "not listed by a scan"}
    path.parent.parent.unlink()
    path.parent.parent.mkdir()
    path.parent.write_bytes(b"")
    assert compared.hints() == {compared.path(path): "not listed by a scan"}


def test_a_folder_that_is_not_listed_to_its_end_proves_nothing(compared: Compared) -> None:
    paths = [land(oci(compared.root, content), b"") for content in (LAYER, LIKE_IT, OTHER)]
    compared.know(*paths)
    with breaking(compared.root / "blobs" / "sha256", 1):
        assert compared.hints() == {}
    for path in paths:
        path.unlink()
    with breaking(compared.root / "blobs" / "sha256", 0):
        assert set(compared.hints()) == set(map(compared.path, paths))  # empty, and so listed to its end


def test_what_was_ignored_and_is_gone_or_mended_is_looked_at(compared: Compared) -> None:
    folder = compared.root / "blobs" / "sha256"
    link, fixed = folder / LAYER.hex, distribution(compared.root, OTHER)
    land(fixed, b"")
    compared.know(link, folder / "README", folder / "0x", fixed, database="ignored")
    compared.know(fixed)
    (folder / "README").write_bytes(b"")
    assert set(compared.hints()) == {compared.path(link), compared.path(folder / "0x"), compared.path(fixed)}


def test_what_is_ignored_below_a_listed_folder_is_that_listings_business(compared: Compared) -> None:
    path = distribution(compared.root, OTHER)
    path.mkdir(parents=True)
    compared.know(path, database="ignored")
    assert compared.hints() == {}
