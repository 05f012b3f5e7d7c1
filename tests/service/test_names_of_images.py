"""The real program: names get from the disk into the index, live and by a scan."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from blobs import digest_of, write_blob
from chunkd.index.storage.environment import reading
from chunkd.model import Digest
from chunkd.names.record import decode, decode_reading, names_as_of_ns
from daemon import Home, until

NEVER = {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400"}
# 5 s, and as much again for a machine that others keep busy.
WITHIN_S = 10
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()


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


def tag_in_registry(registry: Path, repository: str, tag: str, digest: Digest) -> None:
    """As distribution does, after it has taken the manifest."""
    link = f"{digest.algorithm}/{digest.hex}/link"
    manifests = registry / "repositories" / repository / "_manifests"
    for path in (f"revisions/{link}", f"tags/{tag}/index/{link}", f"tags/{tag}/current/link"):
        (manifests / path).parent.mkdir(parents=True, exist_ok=True)
        (manifests / path).write_text(str(digest))


def layout_of(home: Home) -> Path:
    layout = home.cache()
    (layout / "blobs/sha256").mkdir(parents=True)
    return layout


def test_a_push_is_named_within_five_seconds(home: Home) -> None:
    layout, registry = layout_of(home), home.cache("registry")
    landed = registry / "blobs/sha256" / digest_of(EMPTY_INDEX).hex[:2] / digest_of(EMPTY_INDEX).hex
    landed.parent.mkdir(parents=True)
    daemon = home.start(layout, registry, environ=NEVER)
    daemon.until(lambda stats: stats["scans"] and stats["settled"], "it has scanned")
    assert names(home) == {}

    write_blob(layout / "blobs/sha256", EMPTY_INDEX)
    name(layout, "v1")
    shown(home, {1: {"cache:v1"}})

    partial = home.root / "partial"
    partial.mkdir()
    (partial / "data").write_bytes(EMPTY_INDEX)
    partial.rename(landed)
    tag_in_registry(registry, "team/app", "latest", digest_of(EMPTY_INDEX))
    shown(home, {1: {"cache:v1"}, 2: {"team/app:latest", ""}})

    name(layout, "v2")  # no manifest lands, and the event of index.json tells
    shown(home, {1: {"cache:v2"}, 2: {"team/app:latest", ""}})
    assert daemon.stop() == 0
    home.check()


def shown(home: Home, expected: dict[int, set[str]]) -> None:
    until(lambda: names(home), lambda found: found == expected, "the names are there", WITHIN_S)


def read_since(home: Home, moment_ns: int) -> None:
    until(lambda: as_of_ns(home) or 0, lambda found: found > moment_ns, "names were read again")


def test_a_broken_index_keeps_the_names_and_says_so_once(home: Home) -> None:
    layout = layout_of(home)
    write_blob(layout / "blobs/sha256", EMPTY_INDEX)
    name(layout, "v1")
    daemon = home.start(layout, environ=NEVER)
    daemon.settled_after_scan()
    shown(home, {1: {"cache:v1"}})
    (layout / "index.json").write_text('{"manifests": [')
    for _ in range(3):
        before_ns = time.time_ns()
        daemon.settled_after_scan()
        read_since(home, before_ns)
    assert names(home) == {1: {"cache:v1"}}
    assert sum("index.json" in line for line in daemon.log.splitlines()) == 1
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
