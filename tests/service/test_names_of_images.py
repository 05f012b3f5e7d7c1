"""The real program: names get from the disk into the index, live and by a scan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import short_directory
from blobs import digest_of, write_blob
from chunkd.index.storage.environment import reading
from chunkd.names.record import decode, decode_reading, names_as_of_ns
from daemon import Home, opened, until

NEVER = {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400"}
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root) as found:
        yield found


def names(home: Home) -> dict[int, set[str]]:
    """The names by cache, as another process finds them in the index."""
    found: dict[int, set[str]] = {}
    with reading(str(home.state)) as store, store.snapshot() as txn:
        for key, value in store.names(txn):
            texts = {name.text for name in decode(value).part.names or ()}
            found.setdefault(int.from_bytes(key[:4], "big"), set()).update(texts)
    return found


def as_of_ns(home: Home) -> int | None:
    with reading(str(home.state)) as store, store.snapshot() as txn:
        readings = {number: decode_reading(value) for number, value in store.name_readings(txn).items()}
        return names_as_of_ns(readings, store.caches(txn))


def name(layout: Path, tag: str) -> None:
    row = {"digest": str(digest_of(EMPTY_INDEX)), "annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "index.json").write_text(json.dumps({"manifests": [row]}))


def layout_of(home: Home) -> Path:
    layout = home.cache()
    (layout / "blobs/sha256").mkdir(parents=True)
    return layout


def test_a_push_is_named_within_five_seconds(home: Home) -> None:
    layout = layout_of(home)
    daemon = home.start(layout, environ=NEVER)
    daemon.until(lambda stats: stats["scans"] and stats["settled"], "it has scanned")
    assert names(home) == {}
    write_blob(layout / "blobs/sha256", EMPTY_INDEX)
    name(layout, "v1")
    until(lambda: names(home), lambda found: found == {1: {"cache:v1"}}, "the name is there", 5 + 5)
    assert daemon.stop() == 0
    home.check()


def test_a_scan_ends_with_the_names_in_the_index(home: Home) -> None:
    layout = layout_of(home)
    write_blob(layout / "blobs/sha256", EMPTY_INDEX)
    name(layout, "v1")
    file = home.root / "names"
    file.write_text(f"shop/api:v1\t{digest_of(EMPTY_INDEX)}\n")
    home.settings["CHUNKD_NAMES_FILE"] = str(file)
    home.scan(layout)
    assert names(home) == {0: {"shop/api:v1"}, 1: {"cache:v1"}}
    first_ns = as_of_ns(home)
    assert first_ns
    del home.settings["CHUNKD_NAMES_FILE"]
    name(layout, "v2")
    home.scan(layout)
    assert names(home) == {1: {"cache:v2"}}
    assert (as_of_ns(home) or 0) > first_ns
    home.check()


def test_a_names_file_that_is_no_file_holds_nothing_up(home: Home) -> None:
    layout = layout_of(home)
    write_blob(layout / "blobs/sha256", EMPTY_INDEX)
    name(layout, "v1")
    os.mkfifo(home.root / "names")
    home.settings["CHUNKD_NAMES_FILE"] = str(home.root / "names")
    assert home.scan(layout)["settled"]
    assert names(home) == {1: {"cache:v1"}}
    assert as_of_ns(home)
