"""Before the first scan: the caches and the rules that are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import blobs
from chunkd.check.recount import recount
from chunkd.errors import BlobUndecodable
from chunkd.index.index import Change, Index
from chunkd.index.records import Rules
from chunkd.ingest import adopt
from chunkd.ingest.adopt import holds_nothing, number_caches
from chunkd.model import Caps
from chunkd.worker import decode, examine
from ingesting import (
    BROKEN,
    CAPS,
    CONTENTS,
    LAYER,
    LIKE_IT,
    OTHER,
    PARAMS,
    PLAIN,
    Content,
    World,
    land,
    oci,
    world_in,
    wrong,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path, "one", "two", "three") as made:
        yield made


def start_with(world: World, *numbers: int) -> None:
    """A new start with these of the roots, counted from 0."""
    roots = world.roots
    world.stop()
    world.roots = [roots[number] for number in numbers]
    world.start()
    assert world.differences() == []


def serve(world: World, *numbers: int) -> None:
    """A new start with these of the roots, and its first scan."""
    start_with(world, *numbers)
    world.settle()
    assert world.suspects() == 0
    assert set(recorded(world).values()) == set(map(str, world.roots))
    with world.index.snapshot() as txn:
        ignored = {place.cache for place, _ in world.index.store.ignored(txn)}
    assert ignored <= set(recorded(world))


def recorded(world: World) -> dict[int, str]:
    """The paths of the caches that the index knows, by number."""
    with world.index.snapshot() as txn:
        return {number: cache.path for number, cache in world.index.store.caches(txn).items()}


def test_caches_keep_their_numbers(world: World) -> None:
    first = {cache.path: cache.number for cache in world.writer.caches.values()}
    assert sorted(first.values()) == [1, 2, 3]
    roots = world.roots
    serve(world, 2, 0)
    assert {cache.path: cache.number for cache in world.writer.caches.values()} == {
        str(roots[2]): first[str(roots[2])],
        str(roots[0]): first[str(roots[0])],
    }


def test_a_cache_that_is_dropped_is_subtracted(world: World) -> None:
    for root, content in zip(world.roots, (LAYER, OTHER, BROKEN), strict=True):
        land(oci(root, content), content.stored)
    (world.roots[1] / "blobs" / "sha256" / "README").write_bytes(b"?")
    world.settle()
    roots = world.roots
    serve(world, 0)
    world.holds_exactly(LAYER)
    assert world.ignored() == {}
    world.roots = roots
    world.restart()
    world.settle()
    world.holds_exactly(LAYER, OTHER, failed=[BROKEN.digest])


@pytest.mark.parametrize("good", [True, False])
def test_a_digest_that_a_dropped_cache_shared_is_hashed_where_it_is_left(world: World, good: bool) -> None:
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.scan()
    land(oci(world.roots[1], LAYER), LAYER.stored if good else wrong(LAYER))
    world.scan()
    serve(world, 1)
    world.holds_exactly(*([LAYER] if good else []), failed=[] if good else [LAYER.digest])


def test_several_caches_that_shared_a_digest_are_dropped_at_once(world: World) -> None:
    for number, root in enumerate(world.roots):
        for content in (LAYER, OTHER)[: 2 - (number == 2)]:
            land(oci(root, content), content.stored)
        world.scan()
    serve(world, 2)
    world.holds_exactly(LAYER)


def test_dropping_goes_on_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "PLACES_AT_ONCE", 2)
    for content in (LAYER, LIKE_IT, PLAIN, OTHER, BROKEN):
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    serve(world, 1)
    world.holds_exactly()


def test_the_index_is_that_of_exactly_these_caches(world: World) -> None:
    served, left = number_caches(world.index, (str(world.roots[0]),))
    assert {number: cache.path for number, cache in served.items()} == {1: str(world.roots[0])}
    assert left == {2, 3}
    assert recorded(world) == dict(enumerate(map(str, world.roots), 1)), "they are known until they are subtracted"
    serve(world, 0)
    assert recorded(world) == {1: str(world.roots[0])}


def test_a_cache_that_is_dropped_is_kept_until_the_others_are_listed(world: World) -> None:
    for root, content in zip(world.roots, (LAYER, OTHER, PLAIN), strict=True):
        land(oci(root, content), content.stored)
    world.settle()
    start_with(world, 0)
    world.run_turns(5)
    world.holds_exactly(LAYER, OTHER, PLAIN)
    assert not world.activity.idle(), "they are still to be subtracted"
    land(oci(world.roots[0], OTHER), OTHER.stored)  # so it has moved
    world.pool.held = True
    world.scan()
    world.pool.held = False
    world.settle()
    world.holds_exactly(LAYER, OTHER)
    assert (world.pool.decoded, world.pool.hashed_again) == ([], [OTHER.digest])


def moved(world: World, *, copied: bool) -> None:
    """The first cache's root gets another path, and is served by it from the next start on."""
    old, new = world.roots[0], world.folder / "another"
    if copied:
        shutil.copytree(old, new)
        shutil.rmtree(old)
    else:
        old.rename(new)
    world.roots[0] = new


@pytest.mark.parametrize("copied", [False, True])
def test_a_cache_that_gets_another_path_is_hashed_at_most_and_not_decoded(world: World, copied: bool) -> None:
    """The very files that were verified need not even be hashed."""
    for content in (LAYER, LIKE_IT, OTHER, BROKEN):
        land(oci(world.roots[0], content), content.stored)
    (world.roots[0] / "blobs" / "sha256" / "README").write_bytes(b"?")
    world.settle()
    first = recorded(world)
    world.stop()
    moved(world, copied=copied)
    world.start()
    serve(world, 0, 1, 2)
    counted = [LAYER.digest, LIKE_IT.digest, OTHER.digest]
    assert (world.pool.decoded, sorted(world.pool.hashed_again)) == ([], sorted(counted) if copied else [])
    world.holds_exactly(LAYER, LIKE_IT, OTHER, failed=[BROKEN.digest])
    assert world.ignored() == {"blobs/sha256/README": "not the name of a digest"}
    assert recorded(world) == {2: first[2], 3: first[3], 4: str(world.roots[0])}
    assert holds_nothing(world.index, 1)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 6, 9])
def test_a_cache_that_gets_another_path_is_not_decoded_though_the_daemon_is_killed(
    world: World, turns: int, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "PLACES_AT_ONCE", 1)
    for content in (LAYER, LIKE_IT, OTHER):
        land(oci(world.roots[0], content), content.stored)
    (world.roots[0] / "blobs" / "sha256" / "README").write_bytes(b"?")
    world.settle()
    world.stop()
    moved(world, copied=copied)
    for _ in range(3):
        world.start()
        world.scanner.request("the start")
        world.run_turns(turns)
        assert world.pool.decoded == []
        assert world.counted() == {content.digest for content in (LAYER, LIKE_IT, OTHER)}
        assert world.differences() == []
        world.stop()
    world.start()
    serve(world, 0, 1, 2)
    assert world.pool.decoded == []
    world.holds_exactly(LAYER, LIKE_IT, OTHER)
    assert set(recorded(world)) == {2, 3, 4}
    assert holds_nothing(world.index, 1)


def test_lower_caps_drop_what_breaks_them(world: World) -> None:
    for content in (LAYER, LIKE_IT, PLAIN, OTHER):
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    smallest = min((LAYER, LIKE_IT, PLAIN), key=lambda content: len(content.data))
    small = [content for content in (LAYER, LIKE_IT, PLAIN) if len(content.data) == len(smallest.data)]
    large = [content for content in (LAYER, LIKE_IT, PLAIN) if content not in small]
    caps = replace(CAPS, uncompressed_bytes=len(smallest.data))
    world.restart(caps)
    assert world.counted() == {content.digest for content in (*small, OTHER)}
    assert world.differences() == []
    world.settle()
    world.holds_exactly(*small, OTHER, failed=[content.digest for content in large])
    world.restart(CAPS)
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT, PLAIN, OTHER)


def test_a_lower_window_reads_zstd_again_and_nothing_else(world: World) -> None:
    for content in (LAYER, LIKE_IT, OTHER):
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    world.restart(replace(CAPS, zstd_window_bytes=1 << 10))
    world.settle()
    assert world.pool.decoded == [LIKE_IT.digest]


def test_a_lower_ratio_drops_what_breaks_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Caps, "RATIO_FROM_BYTES", 1000)
    for content in (LAYER, OTHER):
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    world.restart(replace(CAPS, ratio=1))
    world.settle()
    world.holds_exactly(OTHER, failed=[LAYER.digest])


def test_the_same_rules_read_nothing_again(world: World) -> None:
    for content in (LAYER, LIKE_IT, OTHER, BROKEN):
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    world.restart()
    world.settle()
    assert world.pool.given == []


def test_what_failed_is_tried_again_by_other_rules(world: World) -> None:
    land(oci(world.roots[0], BROKEN), BROKEN.stored)
    land(oci(world.roots[0], LAYER), wrong(LAYER))
    world.settle()
    world.restart(decoder="2")
    world.run()
    assert sorted(world.pool.decoded) == sorted([BROKEN.digest, LAYER.digest])
    world.pass_s(11)
    world.holds_exactly(failed=[BROKEN.digest, LAYER.digest])


IMAGE = Content("IMAGE", "other", bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(124) + blobs.noise(3000, 9))
NYDUS = Content("NYDUS", "other", blobs.zst(blobs.text(500)) + blobs.noise(3000, 8))


def as_before(source: decode.Source, *rest: Any) -> Iterator[memoryview]:
    """The first rule: 1,024 bytes of NUL are a tar, and what follows a frame is damage."""
    if source.head == IMAGE.stored:
        source.codec = "tar"
        yield memoryview(source.head)
    elif source.head == NYDUS.stored:
        raise BlobUndecodable("zstd", "trailing bytes after the last frame")
    else:
        yield from decode.buffers(source, *rest)


def test_what_another_rule_of_kinds_may_judge_otherwise_is_read_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = (LAYER, LIKE_IT, PLAIN, OTHER, IMAGE, NYDUS, BROKEN)
    monkeypatch.setattr(examine, "buffers", as_before)
    for content in held:
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    assert world.totals.layers == 4
    monkeypatch.undo()
    world.restart(decoder="1; kinds 2")
    assert world.counted() == {LAYER.digest, LIKE_IT.digest}
    assert world.differences() == []
    world.settle()
    assert sorted(world.pool.decoded) == sorted(content.digest for content in (PLAIN, OTHER, IMAGE, NYDUS, BROKEN))
    assert world.counted() == {content.digest for content in held} - {BROKEN.digest}
    assert world.totals.layers == 3
    assert world.totals.failed_blobs == 1
    assert world.differences() == []
    with world.index.snapshot() as txn:
        told = {blob.digest: blob.reason for blob in world.index.store.blobs(txn, "blobs")}
    assert told[IMAGE.digest] == "EROFS image"
    assert told[LAYER.digest] == ""
    world.restart(decoder="2; kinds 2")
    world.settle()
    assert world.pool.decoded == [BROKEN.digest]


def test_blobs_of_both_algorithms_are_dropped(world: World) -> None:
    digest = blobs.digest_of(OTHER.stored, "sha512")
    land(world.roots[0] / "blobs" / "sha512" / digest.hex, OTHER.stored)
    world.settle()
    assert world.counted() == {digest}
    serve(world, 1)
    world.holds_exactly()


def test_rules_that_were_taken_over_half_way_are_taken_over_by_the_next_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded part of the blobs in a transaction, and the rules last: whenever it ends, it begins again."""
    monkeypatch.setattr(adopt, "BLOBS_AT_ONCE", 1)
    for content in CONTENTS:
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    world.stop()
    rules = Rules(PARAMS, Caps(uncompressed_bytes=100), "1")
    counted = [LAYER, LIKE_IT, PLAIN, OTHER]
    before = len(counted)
    real = Index.transaction
    for transactions in range(100):
        index = Index(str(world.folder / "state"), rules, "a test")
        left = [transactions]

        def cut_off(self: Index, left: list[int] = left) -> AbstractContextManager[Change]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(self)

        with monkeypatch.context() as patch:
            patch.setattr(Index, "transaction", cut_off)
            try:
                adopt.adopt_rules(index, rules)
                ended = True
            except KeyboardInterrupt:
                ended = False
        with index.snapshot() as txn:
            found = index.store.check_format(txn, None)
            blobs_left = len(list(index.store.blobs(txn, "blobs")))
            assert recount(index.store, txn).differences == []
        index.close()
        assert found == (rules if ended else Rules(PARAMS, CAPS, "1"))
        assert before - blobs_left <= transactions
        if ended:
            break
    assert blobs_left == 1
    world.start(rules.caps)
    world.settle()
    world.holds_exactly(OTHER, failed=[content.digest for content in CONTENTS if content is not OTHER])
