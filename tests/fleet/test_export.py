"""An export puts into the store what the index has, and nothing twice."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkd.errors import IndexMissing
from chunkd.fleet import export as export_module
from chunkd.fleet import segment, snapshot
from chunkd.fleet.export import Exported, export, source_id
from chunkd.fleet.key import Key
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import GRACE_S, RulesDiffer, Store, rows_name
from chunkd.index.records import Held, Rules, digest_key
from chunkd.model import Blob, FileMark
from indexing import NOW_NS, Bench, add, blob_of, chunks_of, digest_of, place_of, recounted
from stores import Blobs, blobs_in, entries_of, key_at, rows_in, rows_of

BLOBS: Blobs = {number: chunks_of(range(number * 40, number * 40 + 60)) for number in range(1, 9)} | {20: [], 21: []}


OPEN: dict[str, Bench] = {}


def fill(bench: Bench, blobs: Blobs) -> None:
    OPEN[str(bench.state_dir)] = bench
    with bench.index.transaction() as change:
        for number, chunks in blobs.items():
            add(change, number, chunks)


def fail(bench: Bench, number: int, stored_bytes: int) -> None:
    fill(bench, {})
    blob = Blob(digest_of(number), "failed", stored_bytes, reason="a test", tries=1)
    with bench.index.transaction() as change:
        mark = FileMark(1, number, stored_bytes, NOW_NS)
        change.hold(place_of(blob.digest), Held(blob.digest, "bad", mark))
        change.fail(blob)


def exported(bench: Bench, store: Store, key: Key | None = None) -> Exported:
    return export(str(bench.state_dir), store, Facts("a host", 1), key)


def held(store: Store, source: str) -> dict[bytes, dict[str, Any]]:
    found = snapshot.latest(store, source)
    assert found is not None
    return {row["digest"]: row for row in found.held.to_pylist()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "SEGMENT_CHUNKS", 100)


@pytest.fixture(autouse=True)
def beside_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB opens an index once in a process: a test that writes it reads it through the writer's environment."""
    monkeypatch.setattr(export_module, "reading", read_beside)


@contextlib.contextmanager
def read_beside(state_dir: str) -> Iterator[Any]:
    if not Path(state_dir).exists():
        raise IndexMissing(state_dir)
    yield OPEN[state_dir].index.store


def segments_in(store: Store) -> list[str]:
    return store.names("segments", ".blobs.parquet")


def test_a_segment_is_that_of_the_blobs_and_the_snapshot_lists_them(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    fail(bench, 90, 77)
    done = exported(bench, store)
    (made,) = segments_in(store)
    assert (done.blobs, done.read, done.segments, done.reused) == (11, 11, 1, 0)
    rows = rows_in(store, made)
    blobs = blobs_in(store, made)
    assert {blob["digest"]: blob["kind"] for blob in blobs} == {
        digest_key(blob_of(number, chunks).digest): "layer" if chunks else "other" for number, chunks in BLOBS.items()
    } | {digest_key(digest_of(90)): "failed"}
    # The failed one has no rows, and moves the others' numbers.
    numbers = [at for at, blob in enumerate(blobs) if blob["kind"] != "failed"]
    assert rows == [row | {"blob": numbers[row["blob"]]} for row in rows_of(BLOBS)]
    assert {row["segment"] for row in held(store, done.source).values()} == {made}
    assert held(store, done.source).keys() == {blob["digest"] for blob in blobs}


def test_only_what_the_last_snapshot_lacked_is_read(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    first = exported(bench, store)
    again = exported(bench, store)
    assert (again.read, again.segments, again.blobs) == (0, 0, 10)
    assert again.moment > first.moment
    bench.add(30, chunks_of(range(1000, 1100)))
    bench.remove(1)
    third = exported(bench, store)
    assert (third.read, third.segments, third.blobs) == (1, 1, 10)
    found = held(store, third.source)
    assert digest_key(digest_of(1, "sha512")) not in found
    assert digest_key(digest_of(30)) in found
    assert len(segments_in(store)) == 2


def test_a_blob_that_counts_after_it_had_failed_is_read_again(bench: Bench, store: Store) -> None:
    fail(bench, 2, 1002)
    assert exported(bench, store).read == 1
    with bench.index.transaction() as change:
        change.clear_failure(digest_of(2))
        add(change, 2, BLOBS[2])
    done = exported(bench, store)
    assert (done.read, done.blobs) == (1, 1)
    assert [row["kind"] for row in held(store, done.source).values()] == ["layer"]


@pytest.mark.usefixtures("small_segments")
def test_an_export_that_was_cut_short_finds_its_segments(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, BLOBS)
    written: list[str] = []

    def dies(*arguments: Any) -> str:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(segment.write(*arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            exported(bench, store)
    assert len(segments_in(store)) == 2
    assert snapshot.moments(store, source_id(str(bench.state_dir))) == []
    done = exported(bench, store)
    assert done.reused == 2
    assert done.segments == len(segments_in(store)) - 2 > 0
    assert done.blobs == 10


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("seed", range(5))
def test_blobs_that_go_and_come_while_they_are_read(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A snapshot shows one moment: all that was there then, and nothing that was not."""
    fill(bench, BLOBS)
    draw = random.Random(seed)
    numbers = set(BLOBS)
    moves = iter(range(3))
    moments: list[set[bytes]] = []
    listed = vars(export_module)["_list"]

    def there() -> set[bytes]:
        with bench.index.snapshot() as txn:
            return {digest_key(blob.digest) for blob in bench.index.store.blobs(txn, "blobs")}

    def noted(state_dir: str, **names: bool) -> Any:
        moments.append(there())
        return listed(state_dir, **names)

    def moved(*arguments: Any) -> str:
        if next(moves, None) is not None:
            gone = draw.choice(sorted(numbers))
            numbers.discard(gone)
            bench.remove(gone)
            came = max(numbers) + 100
            numbers.add(came)
            bench.add(came, chunks_of(range(came, came + 50)))
        return segment.write(*arguments)

    monkeypatch.setattr(export_module, "_list", noted)
    monkeypatch.setattr(export_module, "write", moved)
    done = exported(bench, store)
    assert held(store, done.source).keys() == moments[-1]
    # Each of them is in the segment that the snapshot names.
    for digest, row in held(store, done.source).items():
        assert digest in {blob["digest"] for blob in blobs_in(store, row["segment"])}
    monkeypatch.setattr(export_module, "write", segment.write)
    assert held(store, exported(bench, store).source).keys() == there()


@pytest.mark.usefixtures("small_segments")
def test_an_index_that_never_rests_is_named(bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench, {number: chunks_of([number]) for number in range(40)})
    numbers = itertools.count(100)
    listed = vars(export_module)["_list"]

    def moves(state_dir: str, **names: bool) -> Any:
        number = next(numbers)
        bench.add(number, chunks_of([number]))
        found = listed(state_dir, **names)
        bench.remove(number)
        return found

    monkeypatch.setattr(export_module, "_list", moves)
    with pytest.raises(export_module.IndexMoves):
        exported(bench, store)
    assert snapshot.moments(store, source_id(str(bench.state_dir))) == []


def test_a_segment_of_which_less_than_a_half_is_held_is_made_anew(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    first = exported(bench, store)
    (old,) = segments_in(store)
    for number in (1, 2, 3):
        bench.remove(number)
    assert exported(bench, store).read == 0
    for number in (4, 5):
        bench.remove(number)
    done = exported(bench, store)
    assert (done.read, done.segments) == (5, 1)
    (new,) = set(segments_in(store)) - {old}
    assert {row["segment"] for row in held(store, first.source).values()} == {new}
    assert len(blobs_in(store, new)) == 5


def test_what_no_snapshot_refers_to_is_removed_when_it_is_old(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    source = exported(bench, store).source
    (old,) = segments_in(store)
    fill(bench, {50: chunks_of(range(5000, 5900))})
    for number in (1, 2, 3, 4, 5):
        bench.remove(number)
    exported(bench, store)
    exported(bench, store)
    exported(bench, store)
    assert old in segments_in(store), "somebody may be about to refer to it"
    assert len(snapshot.moments(store, source)) == 3, "that which names it is kept as well"
    left = Path(store.path, "segments", ".abc.new")
    left.touch()
    aged(store)
    with recounted(bench.state_dir.parent / "other") as other:
        fill(other, BLOBS)
        theirs = exported(other, store)
        assert (theirs.reused, theirs.segments) == (1, 0), "the same blobs are the same segment"
        aged(store)
        exported(bench, store)
        assert old in segments_in(store), "another source refers to it"
        assert not left.exists()
        assert len(snapshot.moments(store, source)) == export_module.SNAPSHOTS_KEPT
        for number in BLOBS:
            other.remove(number)
        for _ in range(3):
            aged(store)
            exported(other, store)
    assert old not in segments_in(store)
    assert rows_name(old) not in {str(path.relative_to(store.path)) for path in Path(store.path).rglob("*")}
    assert len(snapshot.moments(store, theirs.source)) == export_module.SNAPSHOTS_KEPT
    assert exported(bench, store).read == 0


def aged(store: Store) -> None:
    for path in Path(store.path).rglob("*.*"):
        os.utime(path, (0, time.time() - GRACE_S - 1))


def test_a_snapshot_is_the_latest_though_the_clock_went_back(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, BLOBS)
    first = exported(bench, store)
    monkeypatch.setattr(time, "time_ns", lambda: int(first.moment) - 3600 * 10**9)
    fill(bench, {30: chunks_of(range(5))})
    for _ in range(3):
        done = exported(bench, store)
        assert snapshot.moments(store, done.source)[-1] == done.moment
        assert len(held(store, done.source)) == done.blobs == len(BLOBS) + 1


def test_only_files_that_were_being_made_are_removed_as_such(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    done = exported(bench, store)
    for folder in ("segments", f"snapshots/{done.source}"):
        Path(store.path, folder, ".snapshot").mkdir()  # as file servers have it
        Path(store.path, folder, ".abcdef.new").mkdir()  # as nobody has
        os.utime(Path(store.path, folder, ".abcdef.new"), (1, 1))
        for name in (".bashrc", f".{'0a' * 8}.new", ".snapshot"):
            Path(store.path, folder, name).touch()
            os.utime(Path(store.path, folder, name), (1, 1))
    exported(bench, store)
    for folder in ("segments", f"snapshots/{done.source}"):
        found = {path.name for path in Path(store.path, folder).iterdir()}
        assert {name for name in found if name[0] == "."} == {".bashrc", ".snapshot", ".abcdef.new"}


def test_names_of_a_snapshot_that_was_cut_short_are_removed(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    folder = Path(store.path, "snapshots", exported(bench, store).source)
    for moment, age_s in ((1, GRACE_S + 9), (2, 0)):
        (folder / f"{moment:020}.names.parquet").touch()
        os.utime(folder / f"{moment:020}.names.parquet", (0, time.time() - age_s))
    done = exported(bench, store)
    assert not (folder / f"{1:020}.names.parquet").exists()
    assert (folder / f"{2:020}.names.parquet").exists(), "it may be being made"
    assert (folder / f"{done.moment}.names.parquet").exists()


def test_another_host_may_remove_its_snapshots_meanwhile(
    bench: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also another export of the same host."""
    fill(bench, BLOBS)
    source = exported(bench, store).source
    for number in range(3):
        fill(bench, {40 + number: chunks_of(range(number, number + 5))})
        exported(bench, store)
    moments = snapshot.moments
    gone = f"{1:020}"
    monkeypatch.setattr(snapshot, "moments", lambda *of: [gone, *moments(*of)])
    assert exported(bench, store).source == source


def test_a_source_keeps_its_id(bench: Bench, tmp_path: Path) -> None:
    found = source_id(str(bench.state_dir))
    assert source_id(str(bench.state_dir)) == found
    (bench.state_dir / "source").write_text("not one")
    with pytest.raises(export_module.SourceUnusable):
        source_id(str(bench.state_dir))
    with pytest.raises(export_module.SourceUnusable):
        source_id(str(tmp_path / "none"))
    (bench.state_dir / "source").unlink()


def test_a_segment_that_was_lost_is_made_again(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    exported(bench, store)
    (old,) = segments_in(store)
    for path in Path(store.path, "segments").iterdir():
        path.unlink()
    assert exported(bench, store).segments == 1
    assert segments_in(store) == [old]


def test_after_a_change_of_the_rules_all_is_exported_anew(bench: Bench, store: Store) -> None:
    fill(bench, BLOBS)
    exported(bench, store)
    (old,) = segments_in(store)
    with bench.index.transaction() as change:
        change.set_rules(Rules(decoder="another"))
    done = exported(bench, store)
    assert (done.read, done.segments) == (10, 1)
    assert old not in {row["segment"] for row in held(store, done.source).values()}


def test_a_segment_that_is_found_counts_as_new(bench: Bench, store: Store) -> None:
    """So that nobody removes it meanwhile."""
    fill(bench, BLOBS)
    exported(bench, store)
    aged(store)
    with recounted(bench.state_dir.parent / "other") as other:
        fill(other, BLOBS)
        assert exported(other, store).reused == 1
    for path in Path(store.path, "segments").iterdir():
        assert path.stat().st_mtime > time.time() - GRACE_S / 2


def test_an_index_of_other_rules_or_another_key_does_not_get_in(bench: Bench, store: Store, tmp_path: Path) -> None:
    fill(bench, BLOBS)
    exported(bench, store)
    before = sorted(Path(store.path).rglob("*"))
    with pytest.raises(RulesDiffer):
        exported(bench, store, key_at(tmp_path / "key"))
    assert sorted(Path(store.path).rglob("*")) == before
    with pytest.raises(IndexMissing):
        export(str(tmp_path / "none"), store, Facts("a host", 1))


@pytest.mark.usefixtures("small_segments")
def test_blobs_without_chunks_make_no_segment_that_is_too_large_to_read(bench: Bench, store: Store) -> None:
    fill(bench, dict.fromkeys(range(100, 500), ()))
    exported(bench, store)
    assert len(segments_in(store)) == 4
    assert max(len(blobs_in(store, one)) for one in segments_in(store)) < 200


def test_neither_names_nor_order_tell_digests_under_a_key(bench: Bench, store: Store, tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    fill(bench, BLOBS)
    source = exported(bench, store, key).source
    (made,) = segments_in(store)
    blobs = [blob_of(number, chunks) for number, chunks in BLOBS.items()]
    assert made != segment.segment_id(segment.SegmentRules.of(Rules(), key), blobs), "anybody could compute it"
    for digests in ([row["digest"] for row in blobs_in(store, made)], list(held(store, source))):
        assert digests == sorted(digests)
        assert len(digests) == len(BLOBS)


def test_no_path_and_no_name_leaves_under_a_key(bench: Bench, store: Store, tmp_path: Path) -> None:
    fill(bench, BLOBS)
    key = key_at(tmp_path / "key")
    done = exported(bench, store, key)
    found = snapshot.latest(store, done.source)
    assert found is not None
    assert list(snapshot.names(store, found)) == []
    assert found.rules.key == key.id
    assert {row["digest"] for row in found.held.to_pylist()} == {
        segment.digest_bytes(blob.digest, key) for blob, _, _ in entries_of(BLOBS)
    }
