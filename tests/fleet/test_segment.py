"""A segment is a function of its blobs and of the rules, and no file of it is believed."""

from __future__ import annotations

import dataclasses
import os
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.errors import RecipeImpossible
from chunkd.fleet import segment
from chunkd.fleet.key import Key, KeyUnusable
from chunkd.fleet.store import GRACE_S, RulesDiffer, Store, StoreUnusable, blobs_name, rows_name
from chunkd.index.records import Rules, digest_key
from chunkd.model import Blob, ChunkParams, MeasureRule, Recipe
from indexing import blob_of, chunks_of, digest_of, recipe_of
from stores import blobs_in, entries_of, key_at, rows_in, rows_of, store_at

BLOBS = {1: chunks_of([1, 2, 3, 1]), 2: chunks_of([2, 5, *range(100, 400)]), 3: []}


def names_of(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.path)) for path in Path(store.path).rglob("*") if path.is_file())


@given(st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 60), max_size=80).map(chunks_of), max_size=6))
def test_a_segment_has_each_chunk_of_each_blob_once(tmp_path_factory: pytest.TempPathFactory, blobs: dict) -> None:  # type: ignore[type-arg]
    store = store_at(tmp_path_factory.mktemp("store"))
    found = segment.write(store, Rules(), entries_of(blobs))
    assert rows_in(store, found) == rows_of(blobs)
    said = blobs_in(store, found)
    wanted = sorted(
        (blob_of(number, chunks) for number, chunks in blobs.items()), key=lambda one: digest_key(one.digest)
    )
    assert [row["digest"] for row in said] == [digest_key(blob.digest) for blob in wanted]
    for name, column in (
        ("kind", "state"),
        *((one, one) for one in ("codec", "stored_bytes", "uncompressed_bytes", "chunks")),
    ):
        assert [row[name] for row in said] == [getattr(blob, column) for blob in wanted]


def test_its_id_is_that_of_the_blobs_and_the_rules_alone(tmp_path: Path) -> None:
    entries = entries_of(BLOBS)
    store = store_at(tmp_path)
    found = segment.write(store, Rules(), entries)
    names = names_of(store)
    assert names == ["rules.json", blobs_name(found), rows_name(found)]
    before = os.stat(tmp_path / rows_name(found)).st_ino
    assert segment.write(store, Rules(), random.Random(1).sample(entries, len(entries))) == found
    assert (names_of(store), os.stat(tmp_path / rows_name(found)).st_ino) == (names, before)
    others = {
        segment.write(store, Rules(), entries[:2]),
        segment.write(store, Rules(decoder="2"), entries),
        segment.write(store, Rules(asked=MeasureRule(library="9")), entries),
        segment.write(store, Rules(), [(Blob(digest_of(2), "failed", 7), Recipe(), b"")]),
        segment.write(store, Rules(), [(Blob(digest_of(2), "other", 7), Recipe(), b"")]),
    }
    assert len(others | {found}) == 6


def test_a_segment_without_its_blobs_file_is_written_again(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    found = segment.write(store, Rules(), entries_of(BLOBS))
    (tmp_path / blobs_name(found)).unlink()
    assert not store.has_segment(found)
    assert segment.write(store, Rules(), entries_of(BLOBS)) == found
    assert store.has_segment(found)


def test_rules_of_a_segment_come_back(tmp_path: Path) -> None:
    rules = Rules(ChunkParams(1024, 12, 8192), decoder="a b", measure=MeasureRule(16, 7, "1.5.7"))
    store = store_at(tmp_path, rules)
    small = [(hash_, 1024 + n) for n, (hash_, _) in enumerate(chunks_of(range(20)))]
    entry = (Blob(digest_of(2), "layer", 5, sum(size for _, size in small), 20, "tar"), recipe_of(small), b"")
    if any(len(entry[1].measured) for _ in "1"):
        measured = struct.pack(f"<{len(entry[1].measured) // 4}I", *[100] * (len(entry[1].measured) // 4))
        entry = (entry[0], dataclasses.replace(entry[1], measured=measured), b"")
    found, table, _ = segment.read_blobs(store, segment.write(store, rules, [entry]))
    assert found == segment.SegmentRules.of(rules)
    assert table.num_rows == 1


CHUNKS = chunks_of(range(40))
GOOD = recipe_of(CHUNKS)


@pytest.mark.parametrize(
    "recipe",
    [
        dataclasses.replace(GOOD, hashes=GOOD.hashes[:-16]),
        dataclasses.replace(GOOD, lengths=GOOD.lengths[:-4]),
        dataclasses.replace(GOOD, lengths=struct.pack("<I", 70000) + GOOD.lengths[4:]),
        dataclasses.replace(GOOD, lengths=bytes(4) + GOOD.lengths[4:]),
        dataclasses.replace(GOOD, measured=GOOD.measured[:-4]),
        dataclasses.replace(GOOD, measured=struct.pack("<I", 9) + GOOD.measured[4:]),
        dataclasses.replace(GOOD, hashes=GOOD.hashes[:16] + GOOD.hashes[:-16]),
    ],
    ids=["hash short", "length short", "too long", "empty", "measured short", "no frame", "two lengths"],
)
def test_a_recipe_that_no_chunker_makes_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    store = store_at(tmp_path)
    segment.write(store, Rules(), [(blob_of(2, CHUNKS), GOOD, b"")])
    assert GOOD.measured
    with pytest.raises(RecipeImpossible):
        segment.write(store, Rules(), [(blob_of(4, CHUNKS), recipe, b"")])


def test_a_store_holds_what_was_made_by_one_rule(tmp_path: Path) -> None:
    store_at(tmp_path)
    store_at(tmp_path)
    with pytest.raises(RulesDiffer) as refused:
        store_at(tmp_path, Rules(ChunkParams(mask_bits=13)))
    assert "13" in str(refused.value)
    assert "14" in str(refused.value)
    key = key_at(tmp_path / "key")
    with pytest.raises(RulesDiffer) as refused:
        store_at(tmp_path, key=key)
    assert key.id in str(refused.value)
    with pytest.raises(StoreUnusable):
        Store(str(tmp_path / "none")).rules()


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', "{" * 9999, "\0"])
def test_what_is_no_store_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "rules.json").write_text(content)
    with pytest.raises(StoreUnusable):
        Store(str(tmp_path)).begin(ChunkParams(), "")


def test_a_file_is_put_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def half(path: str) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("segments/a", half)
    assert names_of(store) == []
    store.put("segments/a", lambda path: Path(path).write_bytes(b"one"))
    store.put("segments/a", lambda path: Path(path).write_bytes(b"two"))
    assert (tmp_path / "segments/a").read_bytes() == b"one"
    assert names_of(store) == ["segments/a"]
    (tmp_path / "link").symlink_to("segments/a")
    assert not store.exists("link")
    with pytest.raises(StoreUnusable):
        store.read("link", 10)
    with pytest.raises(StoreUnusable):
        store.read("segments/a", 2)


def test_only_what_is_old_and_unwanted_is_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for name in "abc":
        store.put(f"segments/{name}", lambda path: Path(path).write_bytes(b"x"))
    for name in "ab":
        os.utime(tmp_path / "segments" / name, (0, time.time() - GRACE_S - 1))
    store.remove_old("segments", lambda name: name == "a")
    assert names_of(store) == ["segments/a", "segments/c"]
    store.remove_old("segments", lambda name: name == "a", 0)
    store.remove_old("snapshots", lambda _: False)
    assert names_of(store) == ["segments/a"]


def test_a_key_maps_blocks_one_to_one(tmp_path: Path) -> None:
    key, other = key_at(tmp_path / "key"), key_at(tmp_path / "other", "cd" * 32)
    plain = b"".join(hash_ for hash_, _ in chunks_of(range(50)))
    mapped = key.map(plain)
    assert len({mapped[at : at + 16] for at in range(0, len(mapped), 16)}) == 50
    assert mapped == key.map(plain) != other.map(plain) != plain
    assert key.id != other.id
    # FIPS 197, appendix C.3.
    fips = key_at(tmp_path / "fips", bytes(range(32)).hex())
    assert fips.map(bytes.fromhex("00112233445566778899aabbccddeeff")).hex() == "8ea2b7ca516745bfeafc49904b496089"


def test_under_a_key_the_figures_are_the_same_and_no_hash_is_told(tmp_path: Path) -> None:
    key = key_at(tmp_path / "key")
    plain, hidden = store_at(tmp_path / "plain"), store_at(tmp_path / "hidden", key=key)
    entries = [(blob, recipe, b"says") for blob, recipe, _ in entries_of(BLOBS)]
    one, other = segment.write(plain, Rules(), entries), segment.write(hidden, Rules(), entries, key)
    assert one != other
    told = [
        segment.digest_bytes(blob.digest, key)
        for blob, _, _ in sorted(entries, key=lambda entry: digest_key(entry[0].digest))
    ]
    place = [sorted(told).index(digest) for digest in told]
    rows = [row | {"hash": key.map(row["hash"]), "blob": place[row["blob"]]} for row in rows_in(plain, one)]
    assert rows_in(hidden, other) == sorted(rows, key=lambda row: (row["hash"], row["blob"]))
    digests = {blob.digest for blob, _, _ in entries}
    assert {row["digest"] for row in blobs_in(hidden, other)} == {segment.digest_bytes(one, key) for one in digests}
    plain_hashes = {row["hash"] for row in rows_in(plain, one)}
    assert not plain_hashes & {row["hash"] for row in rows_in(hidden, other)}
    assert not {digest_key(digest) for digest in digests} & {row["digest"] for row in blobs_in(hidden, other)}
    assert {row["manifest"] for row in blobs_in(hidden, other)} == {b""}


@pytest.mark.parametrize(
    ("text", "mode"),
    [("ab" * 32, 0o640), ("ab" * 32, 0o604), ("ab" * 32, 0o620), ("ab" * 31, 0o600), ("zz" * 32, 0o600), ("", 0o600)],
)
def test_a_key_file_that_others_may_read_or_without_a_key_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(KeyUnusable):
        Key(str(path))


def test_a_key_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("fifo", "none", "."):
        with pytest.raises(KeyUnusable):
            Key(str(tmp_path / name))


def test_a_blobs_file_that_chunkd_does_not_make_is_named(tmp_path: Path) -> None:
    """Cut short anywhere, or with any byte altered, it is refused or says something that it may say."""
    store = store_at(tmp_path)
    found = segment.write(store, Rules(), entries_of(BLOBS))
    path = tmp_path / blobs_name(found)
    whole = path.read_bytes()
    draw = random.Random(1)
    refused = 0
    for number in range(300):
        hurt = bytearray(whole)
        if number % 2:
            del hurt[draw.randrange(len(whole)) :]
        else:
            hurt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(hurt)
        try:
            segment.read_blobs(store, found)
        except segment.SegmentBad:
            refused += 1
    assert refused > 250
    path.write_bytes(whole)
    assert segment.read_blobs(store, found).table.num_rows == len(BLOBS)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{}",
        segment.SegmentRules.of(Rules()).pack() + b" ",
        segment.SegmentRules.of(Rules()).pack().replace(b"2048", b"true"),
        segment.SegmentRules.of(Rules()).pack().replace(b"2048", b"-1"),
        segment.SegmentRules.of(Rules()).pack().replace(b"2048", b"99999999"),
        segment.SegmentRules.of(Rules()).pack().replace(b"blake3-128", b"md5"),
        b"[" * 100_000,
    ],
)
def test_rules_that_are_none_are_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match="rules"):
        segment.SegmentRules.unpack(said)
