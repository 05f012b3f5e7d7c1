"""Stores that look like blobs and are not read as such: what is counted, and who is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.sources import lookalikes
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import walk
from chunkd.sources.lookalikes import CAPITALS, ELSEWHERE, FOLDER, LINK, PAIRED, PREFIXED, Lookalikes
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, World, distribution, land, oci, world_in

CONTENTS = (LAYER, LIKE_IT)
HEX = LAYER.hex


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def linked_folder(root: Path) -> None:
    real = root.parent / "elsewhere"
    for content in CONTENTS:
        land(oci(real, content), content.stored)
    (root / "blobs").mkdir()
    (root / "blobs" / "sha256").symlink_to(real / "blobs" / "sha256")


def linked_blobs(root: Path) -> None:
    for content in CONTENTS:
        real = land(root.parent / "elsewhere" / content.hex, content.stored)
        path = oci(root, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(real)


def linked_data(root: Path) -> None:
    for content in CONTENTS:
        real = land(root.parent / "elsewhere" / content.hex, content.stored)
        path = distribution(root, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(real)


def named(form: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for content in CONTENTS:
            name = form.format(pair=content.hex[:2], hex=content.hex, HEX=content.hex.upper())
            land(root / name, content.stored)

    return make


STORES = {
    "a linked folder": (linked_folder, {LINK: (1, "blobs/sha256")}),
    "linked blobs": (linked_blobs, {LINK: (2, "blobs/sha256/{hex}")}),
    "linked data": (linked_data, {LINK: (2, "blobs/sha256/{pair}/{hex}/data")}),
    "Ollama": (named("blobs/sha256-{hex}"), {PREFIXED: (2, "blobs/sha256-{hex}")}),
    "pairs": (named("registry/{pair}/{hex}"), {PAIRED: (2, "registry/{pair}/{hex}")}),
    "Quay's below blobs": (named("blobs/sha256/{pair}/{hex}"), {PAIRED: (2, "blobs/sha256/{pair}/{hex}")}),
    "capitals": (named("blobs/sha256/{HEX}"), {CAPITALS: (2, "blobs/sha256/{HEX}")}),
    "capitals, flat": (named("{HEX}"), {CAPITALS: (2, "{HEX}")}),
    "a repository": (named(f"{HEX}/blobs/sha256/{{hex}}"), {FOLDER: (1, HEX)}),
    "below a flat folder": (named("files/{hex}"), {ELSEWHERE: (2, "files/{hex}")}),
}


def counted(root: Path) -> Lookalikes:
    found: Lookalikes = {}
    for listing in walk(FolderSource(str(root)), "", lambda _: None):
        lookalikes.add(found, listing.lookalikes)
    return found


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_gives_no_blob_says_what_was_seen_in_it(world: World, store: str) -> None:
    make, expected = STORES[store]
    root = world.roots[0]
    make(root)
    examples = {
        kind: (count, {form.format(pair=c.hex[:2], hex=c.hex, HEX=c.hex.upper()) for c in CONTENTS})
        for kind, (count, form) in expected.items()
    }
    found = counted(root)
    assert {kind: count for kind, (count, _) in found.items()} == {kind: count for kind, (count, _) in examples.items()}
    assert all(path in examples[kind][1] for kind, (_, path) in found.items())

    world.settle()
    world.holds_exactly()
    told = world.caches[1].status.warnings
    assert told == world.caches[1].status.unread == lookalikes.told(found, found_blobs=False)
    for sentence, (kind, (count, path)) in zip(told, found.items(), strict=True):
        assert sentence.startswith(f"{count} ")
        assert path in sentence
        assert kind in expected
    with world.index.snapshot() as txn:
        assert world.index.store.caches(txn)[1].warnings == told, "who asks without a daemon is told too"

    land(oci(root, PLAIN) if store != "a linked folder" else root / PLAIN.hex, PLAIN.stored)
    world.settle()
    world.holds_exactly(PLAIN)
    assert world.caches[1].status.unread == ()
    missed = bool({LINK, CAPITALS, FOLDER} & found.keys())
    assert bool(world.caches[1].status.warnings) == missed, "what is missed beside others is told, and no more"


def test_stores_as_they_are_look_like_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    land(root / LAYER.hex, b"")
    land(oci(root, LIKE_IT), b"")
    land(oci(root, LIKE_IT, "library/debian"), b"")
    land(distribution(root, OTHER), b"")
    distribution(root, PLAIN).parent.mkdir(parents=True)  # about to come
    for name in ("ingest/" + HEX + "/data", f"blobs/sha256-{HEX}-partial", f"blobs/sha256/{HEX}.tmp", "blobs/README"):
        land(root / name, b"")
    (root / "ab").mkdir()
    (root / "current").symlink_to("ab")
    os.mkfifo(root / "blobs" / "sha256" / PLAIN.hex)
    assert counted(root) == {}


def test_a_store_is_counted_anew_each_time_and_never_by_a_part_of_it(world: World) -> None:
    root = world.roots[0]
    named("blobs/sha256-{hex}")(root)
    world.settle()
    world.settle(verify=True)
    [before] = world.caches[1].status.warnings
    assert before.startswith("2 ")
    world.event(root / "blobs", folder=True)
    world.rest()
    world.settle()
    assert list(world.caches[1].status.warnings) == [before]
    (root / "blobs" / f"sha256-{HEX}").rename(root / "blobs" / "sha256-x")
    world.settle()
    assert world.caches[1].status.warnings[0].startswith("1 ")
    (root / "blobs" / f"sha256-{LIKE_IT.hex}").unlink()
    world.settle()
    assert world.caches[1].status.warnings == ()


def test_a_path_that_is_no_text_is_told_as_well(world: World) -> None:
    folder = os.fsencode(world.roots[0]) + b"/caf\xe9"
    os.mkdir(folder)
    with open(os.path.join(folder, HEX.encode()), "wb"):
        pass
    world.settle()
    [told] = world.caches[1].status.warnings
    assert "caf\\udce9" in told
    world.restart()
    assert world.caches[1].status.warnings == (told,)
