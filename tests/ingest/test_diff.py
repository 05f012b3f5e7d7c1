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
from chunkd.ingest import diff
from chunkd.ingest.diff import KEYS_AT_ONCE, gone, news
from chunkd.model import Cause, FileMark, Hint, Place
from chunkd.sources import listing
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import Listing, walk
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
                    key = records.place_key(Place(cache, below))
                    txn.put(key, self.value(path), db=self.store.databases[database])

    def value(self, path: Path | str) -> bytes:
        """What is recorded of a place: that it holds what lies there now."""
        mark = FileMark(1, 2, 3, 4)
        if isinstance(path, Path) and path.exists():
            status = path.stat()
            mark = FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
        return records.pack_held(records.Held(LAYER.digest, "verified", mark))

    def listings(self) -> Iterator[Listing]:
        yield from walk(FolderSource(str(self.root)), "", lambda _: None)

    def hints(self, *, verify: bool = False, most: int = 1000) -> dict[str, Cause]:
        """All folders of the cache: the paths hinted at, with the causes."""
        found: dict[str, Cause] = {}
        for slice_ in self.listings():
            with self.store.env.begin() as txn:
                hints = list(news(self.store, txn, 1, slice_, verify=verify))
            assert len(hints) <= len(list(slice_.names())) + len(slice_.expected)
            if slice_.last and not slice_.problem:
                hints += self.gone(slice_, most)
            assert all(hint.place.cache == 1 for hint in hints)
            found |= {hint.place.path: hint.cause for hint in hints}
        return found

    def gone(self, slice_: Listing, most: int) -> list[Hint]:
        found: list[Hint] = []
        after: bytes | None = b""
        while after is not None:
            with self.store.env.begin() as txn:
                hints, after = gone(self.store, txn, 1, slice_, after, most)
            assert len(hints) < most + KEYS_AT_ONCE
            found += hints
        assert len(set(found)) == len(found)
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
    assert compared.hints() == {compared.path(path): Cause.LISTED for path in paths[1:]}


def test_after_a_doubt_all_is_looked_at(compared: Compared) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(*paths[1:])
    expected = {compared.path(path): Cause.VERIFY for path in paths} | {LAYER.hex: Cause.LISTED}
    assert compared.hints(verify=True) == expected


def test_what_is_gone_is_looked_at(compared: Compared) -> None:
    paths = in_all_layouts(compared.root)
    compared.know(*paths, f"gone/blobs/sha256/{LAYER.hex}", f"gone/blobs/sha256/aa/{LAYER.hex}/data")
    for path in paths:
        path.unlink()
    paths[3].parent.rmdir()
    expected = [*map(compared.path, paths), f"gone/blobs/sha256/{LAYER.hex}", f"gone/blobs/sha256/aa/{LAYER.hex}/data"]
    assert compared.hints() == dict.fromkeys(expected, Cause.NOT_LISTED)


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
    assert compared.hints() == {compared.path(path): Cause.NOT_LISTED}
    path.parent.parent.unlink()
    path.parent.parent.mkdir()
    path.parent.write_bytes(b"")
    assert compared.hints() == {compared.path(path): Cause.NOT_LISTED}


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


def test_another_file_where_the_metadata_are_at_hand_is_looked_at(compared: Compared) -> None:
    """Distribution's `data` is looked at by the listing; of other blobs only the names are."""
    paths = in_all_layouts(compared.root)
    compared.know(*paths)
    for path in paths:
        land(path, b"another")
    assert compared.hints() == {compared.path(paths[3]): Cause.VERIFY}


def test_a_folder_whose_blob_is_to_come_is_waited_for(compared: Compared) -> None:
    path = distribution(compared.root, OTHER)
    path.parent.mkdir(parents=True)
    assert compared.hints() == {compared.path(path): Cause.BLOB_FOLDER}


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_what_is_gone_is_found_in_slices(compared: Compared, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A name that an earlier slice of the folder had is none that is gone."""
    monkeypatch.setattr(listing, "SLICE_NAMES", 4)
    monkeypatch.setattr(diff, "KEYS_AT_ONCE", 3)
    paths = [land(compared.root / "blobs" / "sha256" / f"{number:064x}", b"") for number in range(30)]
    left = [land(distribution(compared.root, content), b"") for content in (LAYER, OTHER)]
    compared.know(*paths, *left)
    compared.know(paths[0].with_name("README"), database="ignored")
    removed = [path for number, path in enumerate(paths) if number % 7 in (0, 3)]
    for path in removed:
        path.unlink()
    expected = [*map(compared.path, removed), "blobs/sha256/README"]
    assert compared.hints(most=most) == dict.fromkeys(expected, Cause.NOT_LISTED)
