"""The index's records: what is packed comes back, the bytes are a contract, and no other bytes pass for them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.figures.totals import Totals
from chunkd.index import records
from chunkd.index.records import Damaged, Head, Held, Rules
from chunkd.model import (
    CODECS,
    MAX_PATH_BYTES,
    METADATA_ALONE,
    Blob,
    Cache,
    Caps,
    ChunkParams,
    Digest,
    FileMark,
    MeasureRule,
    Place,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
DIGESTS = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda raw: Digest("sha256", raw.hex())),
    st.binary(min_size=64, max_size=64).map(lambda raw: Digest("sha512", raw.hex())),
)
# A path is bytes that the file system gave: any but 0, and as Python shows them.
PATHS = st.binary(min_size=1, max_size=MAX_PATH_BYTES).map(
    lambda raw: raw.replace(b"\0", b"/").decode("utf-8", "surrogateescape")
)
PLACES = st.builds(Place, U32, PATHS)
MARKS = st.builds(FileMark, U64, U64, U64, U64)
BLOBS = st.builds(
    Blob,
    DIGESTS,
    st.sampled_from(records.STATES),
    U64,
    U64,
    U64,
    st.sampled_from(CODECS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=400),
    U32,
    U64,
)
HELD = st.builds(Held, DIGESTS, st.sampled_from(records.HELD_STATES), MARKS)
HEADS = st.builds(Head, st.builds(Totals, *[U64] * 10), *[U64] * 6)
ROOT = st.text(max_size=50) | PATHS
CACHES = st.dictionaries(
    U32,
    st.builds(
        Cache, ROOT, U64, U64, st.lists(st.text(max_size=9), max_size=3).map(tuple), st.text(max_size=9), fsid=U64
    ),
)

SHA256 = Digest("sha256", bytes(range(32)).hex())
SHA512 = Digest("sha512", bytes(range(64)).hex())
MARK = FileMark(0x0102, 0x0304, 0x0506, 0x0708090A0B0C0D0E)
RULES = Rules(ChunkParams(), Caps(1, 2, 3), "a decoder", MeasureRule(4, 5, "a library"), MeasureRule(6, 7, "another"))
SOME_CACHES = {7: Cache("/caf\udce9", 1, 2, ("flat",), "squashfs image, xz", fsid=3)}


# --- there and back -------------------------------------------------------------------------------------------------


@given(DIGESTS)
def test_a_digests_key_comes_back(digest: Digest) -> None:
    assert records.digest_from_key(records.digest_key(digest)) == digest


@given(PLACES)
def test_a_places_key_comes_back(place: Place) -> None:
    assert records.place_from_key(records.place_key(place)) == place


@given(PLACES, PLACES)
def test_places_sort_by_cache_and_then_by_path(one: Place, other: Place) -> None:
    def order(place: Place) -> tuple[int, bytes]:
        return place.cache, place.path.encode("utf-8", "surrogateescape")

    assert (records.place_key(one) < records.place_key(other)) == (order(one) < order(other))


def test_the_longest_key_is_one_that_lmdb_takes() -> None:
    place = Place(2**32 - 1, "p" * MAX_PATH_BYTES)
    assert len(records.holder_key(SHA512, place)) <= 511


@given(BLOBS)
def test_a_blobs_record_comes_back(blob: Blob) -> None:
    assert records.unpack_blob(blob.digest, records.pack_blob(blob)) == blob


def test_a_reason_that_is_no_unicode_is_kept_readable() -> None:
    blob = Blob(SHA256, "failed", 1, reason="no such file: caf\udce9")
    assert records.unpack_blob(SHA256, records.pack_blob(blob)).reason == "no such file: caf\\udce9"


@given(HELD)
def test_a_places_record_comes_back(held: Held) -> None:
    assert records.unpack_held(records.pack_held(held)) == held


@given(HEADS)
def test_the_head_comes_back(head: Head) -> None:
    assert records.unpack_head(records.pack_head(head)) == head


@given(CACHES)
def test_the_caches_come_back(caches: dict[int, Cache]) -> None:
    assert records.unpack_caches(records.pack_caches(caches)) == caches


@pytest.mark.parametrize(("before", "now"), [(b"true", METADATA_ALONE), (b"false", "")])
def test_a_cache_without_layers_of_an_older_record_is_one_of_metadata_alone(before: bytes, now: str) -> None:
    value = records.seal(b'{"7": ["/c", 1, 2, ["flat"], ' + before + b", []]}")
    assert records.unpack_caches(value) == {7: Cache("/c", 1, 2, ("flat",), now)}


def test_a_cache_of_an_older_record_has_no_fsid() -> None:
    value = records.seal(b'{"7": ["/c", 1, 2, ["flat"], "", [["m", 9]], ["odd"]]}')
    assert records.unpack_caches(value) == {7: Cache("/c", 1, 2, ("flat",), "", (("m", 9),), ("odd",))}


@given(st.builds(Rules, st.builds(ChunkParams, gear_seed=U64), st.builds(Caps, U64, U64, U64), st.text(max_size=99)))
def test_the_rules_come_back(rules: Rules) -> None:
    assert records.unpack_rules(records.pack_rules(rules)) == rules


def test_the_format_comes_back() -> None:
    assert records.unpack_format(records.pack_format()) == records.FORMAT


# --- the bytes, which are a contract: a change of any is a new FORMAT -----------------------------------------------


def test_a_head_has_room_for_just_these_fields() -> None:
    assert [field.name for field in dataclasses.fields(Totals)] == [
        "layers", "others", "stored_bytes", "layer_stored_bytes", "uncompressed_bytes", "chunks",
        "unique_chunks", "unique_bytes", "failed_blobs", "failed_bytes", "measured_chunks", "measured_bytes",
        "measured_recompressed_bytes", "measured_xx", "measured_xy", "measured_yy",
        "measured_copies_bytes", "measured_copies_recompressed_bytes", "archived_blobs", "archived_bytes",
    ]  # fmt: skip
    assert [field.name for field in dataclasses.fields(Head)] == [
        "totals", "next_number", "dead_chunks", "young_entries", "hand", "as_of_ns", "scanned_at_ns",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("packed", "golden"),
    [
        pytest.param(records.digest_key(SHA256), "01" + bytes(range(32)).hex(), id="sha256"),
        pytest.param(records.digest_key(SHA512), "02" + bytes(range(64)).hex(), id="sha512"),
        pytest.param(records.place_key(Place(258, "a/\udcff")), "00000102" + "612fff", id="place"),
        pytest.param(
            records.holder_key(SHA256, Place(1, "p")), "01" + bytes(range(32)).hex() + "00000001" + "70", id="holder"
        ),
        pytest.param(
            records.pack_blob(Blob(SHA256, "layer", 0x0102, 0x0304, 0x0506, "zstd")),
            "00 02 0000 00000000 0201000000000000 0403000000000000 0605000000000000 0000000000000000",
            id="layer",
        ),
        pytest.param(
            records.pack_blob(Blob(SHA256, "other", 2**64 - 1)),
            "01 00 0000 00000000 ffffffffffffffff 0000000000000000 0000000000000000 0000000000000000",
            id="other",
        ),
        pytest.param(
            records.pack_blob(Blob(SHA256, "failed", 1, reason="é!", tries=0x01020304, retry_at=0x0506)),
            "02 00 0000 04030201 0100000000000000 0000000000000000 0000000000000000 0605000000000000 c3a921",
            id="failed",
        ),
        pytest.param(
            records.pack_held(Held(SHA256, "untested", MARK)),
            "01 00000000000000 0201000000000000 0403000000000000 0605000000000000 0e0d0c0b0a090807"
            + "01"
            + bytes(range(32)).hex(),
            id="held",
        ),
    ],
)
def test_the_bytes_of_a_record(packed: bytes, golden: str) -> None:
    assert packed.hex() == golden.replace(" ", "")


@pytest.mark.parametrize(
    ("packed", "payload"),
    [
        pytest.param(records.pack_format(), bytes.fromhex("03000000"), id="format"),
        pytest.param(
            records.pack_head(Head(Totals(*range(1, 21)), *range(21, 27))),
            b'{"totals":{"layers":1,"others":2,"stored_bytes":3,"layer_stored_bytes":4,"uncompressed_bytes":5,"chunks":6,'
            b'"unique_chunks":7,"unique_bytes":8,"failed_blobs":9,"failed_bytes":10,"measured_chunks":11,'
            b'"measured_bytes":12,"measured_recompressed_bytes":13,"measured_xx":14,"measured_xy":15,"measured_yy":16,'
            b'"measured_copies_bytes":17,"measured_copies_recompressed_bytes":18,'
            b'"archived_blobs":19,"archived_bytes":20},'
            b'"next_number":21,"dead_chunks":22,"young_entries":23,"hand":24,"as_of_ns":25,"scanned_at_ns":26}',
            id="head",
        ),
        pytest.param(
            records.pack_rules(RULES),
            b'{"asked": {"level": 7, "library": "another", "one_in": 6}, '
            b'"caps": {"ratio": 2, "uncompressed_bytes": 1, "zstd_window_bytes": 3}, "decoder": "a decoder", '
            b'"measure": {"level": 5, "library": "a library", "one_in": 4}, '
            b'"params": {"gear_seed": 11400714819323198485, "hash_name": "blake3-128", "mask_bits": 14, '
            b'"max_bytes": 65536, "min_bytes": 2048}}',
            id="rules",
        ),
        pytest.param(
            records.pack_caches(SOME_CACHES),
            b'{"7": ["/caf\\udce9", 1, 2, ["flat"], "squashfs image, xz", [], [], 3]}',
            id="caches",
        ),
    ],
)
def test_the_bytes_of_a_sealed_record(packed: bytes, payload: bytes) -> None:
    assert packed == hashlib.blake2b(payload, digest_size=8).digest() + payload


# --- other bytes ----------------------------------------------------------------------------------------------------

SEALED = [
    pytest.param(records.pack_format(), records.unpack_format, id="format"),
    pytest.param(records.pack_head(Head(Totals(*range(1, 21)), *range(21, 27))), records.unpack_head, id="head"),
    pytest.param(records.pack_rules(RULES), records.unpack_rules, id="rules"),
    pytest.param(records.pack_caches(SOME_CACHES), records.unpack_caches, id="caches"),
]


@pytest.mark.parametrize(("packed", "unpack"), SEALED)
def test_a_sealed_record_that_was_altered_is_damaged(packed: bytes, unpack: object) -> None:
    assert callable(unpack)
    altered = [packed[:length] for length in range(len(packed))] + [packed + b"\0"]
    altered += [
        packed[:at] + bytes([packed[at] ^ bit]) + packed[at + 1 :] for at in range(len(packed)) for bit in (1, 0x80)
    ]
    for value in altered:
        with pytest.raises(Damaged):
            unpack(value)


OWN = b'"next_number":1,"dead_chunks":1,"young_entries":1,"hand":1,"as_of_ns":1,"scanned_at_ns":1'


@pytest.mark.parametrize(
    "payload",
    [
        b"{" + OWN + b"}",
        b'{"totals":[],' + OWN + b"}",
        b'{"totals":{},"dead_chunks":1}',
        b'{"totals":{},"more":1,' + OWN + b"}",
        *(b'{"totals":{"layers":%b},%b}' % (value, OWN) for value in (b"-1", b"1.0", b"true", b"null", b'"1"', b"[1]")),
        b'{"totals":{"a layer":1},' + OWN + b"}",
        b'{"totals":{"layers":' + b"9" * 5000 + b"}," + OWN + b"}",
        b'{"totals":{},' + OWN.replace(b"1", b"-1") + b"}",
    ],
)
def test_what_is_no_head_is_damaged_even_when_sealed(payload: bytes) -> None:
    with pytest.raises(Damaged):
        records.unpack_head(records.seal(payload))


def test_totals_are_read_by_name_however_large() -> None:
    named = {"unique_chunks": 7, "layers": 10**40, "of_a_later_version": 3}
    totals = records.unpack_totals(records.pack_totals(Totals.of(named)))
    assert totals == Totals.of(named)
    assert (totals.layers, totals.unique_chunks) == (10**40, 7)
    with pytest.raises(AttributeError):
        _ = totals.others
    # What was not counted stays unknown, and what this version can't count does not stay as it was.
    assert vars(totals.plus({"layers": 1, "others": 1})) == {"layers": 10**40 + 1, "unique_chunks": 7}


def test_a_row_of_totals_is_bounded() -> None:
    with pytest.raises(Damaged):
        records.unpack_totals(records.pack_totals(Totals.of({f"t{number}": 1 for number in range(2000)})))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\1",
        b"\0" + bytes(32),
        b"\3" + bytes(32),
        b"\1" + bytes(31),
        b"\1" + bytes(33),
        b"\1" + bytes(64),
        b"\2" + bytes(32),
        b"\2" + bytes(63),
    ],
)
def test_what_is_no_digests_key_is_damaged(key: bytes) -> None:
    with pytest.raises(Damaged):
        records.digest_from_key(key)


@pytest.mark.parametrize("key", [b"", b"\0\0\0\1", b"\0\0\0\1a\0b"])
def test_what_is_no_places_key_is_damaged(key: bytes) -> None:
    with pytest.raises(Damaged):
        records.place_from_key(key)


LAYER = records.pack_blob(Blob(SHA256, "layer", 1, 2, 3, "gzip"))
VERIFIED = records.pack_held(Held(SHA256, "verified", MARK))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(LAYER[:-1], id="short"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\4" + LAYER[1:], id="state"),
        pytest.param(LAYER[:1] + b"\4" + LAYER[2:], id="codec"),
        pytest.param(LAYER[:2] + b"\1" + LAYER[3:], id="spare"),
        pytest.param(LAYER[:3] + b"\1" + LAYER[4:], id="spare-too"),
        pytest.param(LAYER + b"no text: \xff", id="reason"),
    ],
)
def test_what_is_no_blob_record_is_damaged(value: bytes) -> None:
    with pytest.raises(Damaged):
        records.unpack_blob(SHA256, value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="empty"),
        pytest.param(VERIFIED[:39], id="short"),
        pytest.param(VERIFIED[:40], id="no-digest"),
        pytest.param(VERIFIED[:-1], id="short-digest"),
        pytest.param(VERIFIED + b"\0", id="long"),
        pytest.param(b"\3" + VERIFIED[1:], id="state"),
        pytest.param(VERIFIED[:7] + b"\1" + VERIFIED[8:], id="spare"),
        pytest.param(VERIFIED[:40] + b"\3" + VERIFIED[41:], id="algorithm"),
    ],
)
def test_what_is_no_place_record_is_damaged(value: bytes) -> None:
    with pytest.raises(Damaged):
        records.unpack_held(value)


@given(st.binary(max_size=120))
def test_any_other_bytes_are_a_record_or_damaged(value: bytes) -> None:
    for unpack in (
        records.digest_from_key,
        records.place_from_key,
        records.unpack_held,
        records.unpack_head,
        records.unpack_rules,
        records.unpack_caches,
        records.unpack_format,
        lambda value: records.unpack_blob(SHA256, value),
    ):
        with contextlib.suppress(Damaged):
            unpack(value)


@pytest.mark.parametrize("payload", [b"", b"9", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_sealed_and_no_json_object_is_damaged(payload: bytes) -> None:
    for unpack in (records.unpack_rules, records.unpack_caches):
        with pytest.raises(Damaged):
            unpack(records.seal(payload))
