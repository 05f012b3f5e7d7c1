"""Whatever is altered in an index, the recount names it; and of an index that is whole it says nothing."""

from __future__ import annotations

import dataclasses
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chunkd.check import recount as recount_module
from chunkd.check.recount import recount
from chunkd.check.result import MAX_DIFFERENCES
from chunkd.errors import IndexDamaged
from chunkd.figures import histogram
from chunkd.figures.totals import Totals
from chunkd.index import blocks, records
from chunkd.index.index import Change
from chunkd.index.records import Head, Held
from chunkd.index.storage.environment import reading
from chunkd.model import Blob, Cache, Difference, Digest, FileMark, Place, Recipe
from chunkd.names import record as names_record
from chunkd.names.name import Name, Part
from chunkd.worker import manifest_record
from chunkd.worker.manifest import Contents, Edge, Kind, Role
from indexing import (
    CACHE,
    SLOTS,
    Bench,
    add,
    blob_of,
    chunk,
    chunks_of,
    edit,
    picked,
    place_of,
    records_of,
    recounted,
    small_bounds,
)

LAYER, OTHER, FAILED, GONE, MANIFEST = (blob_of(number, []).digest for number in (1, 3, 5, 7, 9))
ARCHIVED = blob_of(11, []).digest
LAYER_KEY, OTHER_KEY, FAILED_KEY, GONE_KEY, MANIFEST_KEY = map(
    records.digest_key, (LAYER, OTHER, FAILED, GONE, MANIFEST)
)
INDEX = manifest_record.encode(Contents(Kind.INDEX, (Edge(Role.MANIFEST, OTHER, 1003),)))
PLACE_KEY = records.place_key(place_of(LAYER))
KEPT = names_record.Kept(
    "/cache", Part("layout", "", (Name("caf\udce9", "", "", MANIFEST), Name("a:b", "a", "b", MANIFEST, 7))), 9
)
NAMES, NAMES_KEY = names_record.encode(KEPT), records.names_key(CACHE, names_record.key_of(KEPT.base, KEPT.part))
READING_KEY = records.names_key(CACHE, b"")
READING = names_record.encode_reading(names_record.Reading(7, ("/cache: Permission denied",), 1))
CHUNKS = chunks_of([*range(300), 5, 5, 7])
MORE_CHUNKS = chunks_of([*range(400, 500), *range(100, 150)])
MARK = FileMark(1, 2, 3, 4)
Records = dict[str, dict[bytes, bytes]]
# (database, key, the record that stands there from now on or None)
Edit = tuple[str, bytes, bytes | None]


@dataclass(frozen=True)
class Damage:
    """What is altered, and the (record, part of the key) that the recount must name for it, nothing else."""

    name: str
    edits: Callable[[Records], list[Edit]]
    named: set[tuple[str, str]]


# --- the index that is damaged --------------------------------------------------------------------------------------


def build(bench: Bench) -> None:
    """Layers that share chunks, one that is gone, a blob that is no layer, a failed one; all of the look-up in use."""
    bench.add(1, CHUNKS)
    bench.add(7, chunks_of(range(300, 400)))
    bench.add(2, MORE_CHUNKS)
    bench.remove(7)
    with bench.index.transaction() as change:
        add(change, 3, [])
        add_manifest(change)
        change.put_names(NAMES_KEY, NAMES)
        change.put_names(READING_KEY, READING)
        change.fail(Blob(FAILED, "failed", 500, reason="its bytes do not match its name", tries=1, retry_at=99))
        change.fail(Blob(ARCHIVED, "archived", 700, reason="archived (GLACIER)", tries=1, retry_at=99))
        change.hold(place_of(FAILED), Held(FAILED, "bad", MARK))
        change.hold(place_of(ARCHIVED), Held(ARCHIVED, "bad", MARK))
        change.ignore(Place(CACHE, "link"), "a symbolic link")
        change.verified(1.0)


def add_manifest(change: Change) -> None:
    said = replace(blob_of(9, []), reason=Kind.INDEX.value)
    change.hold(place_of(MANIFEST), Held(MANIFEST, "verified", MARK._replace(stored_bytes=said.stored_bytes)))
    change.add(said, Recipe(), INDEX)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "state"
    with small_bounds(), recounted(folder) as bench:
        build(bench)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "state"))


@pytest.fixture(params=[recount_module.WINDOW, 2 * SLOTS], ids=["one-window", "windows"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(recount_module, "WINDOW", request.param)
    return int(request.param)


def differences(state_dir: Path) -> list[Difference]:
    with reading(str(state_dir)) as store, store.snapshot() as txn:
        return recount(store, txn).differences


# --- how to damage it -----------------------------------------------------------------------------------------------


def to(database: str, key: bytes, value: bytes | None) -> Callable[[Records], list[Edit]]:
    return lambda _: [(database, key, value)]


def head_with(**fields: int) -> Callable[[Records], list[Edit]]:
    """The head sealed again with these steps added to its fields or totals."""

    def edits(found: Records) -> list[Edit]:
        head = records.unpack_head(found["meta"][b"head"])
        own = {name: getattr(head, name) + step for name, step in fields.items() if hasattr(head, name)}
        totals = {name: getattr(head.totals, name) + step for name, step in fields.items() if name not in own}
        return [("meta", b"head", records.pack_head(replace(head, totals=replace(head.totals, **totals), **own)))]

    return edits


def slot_with(
    number: int, *, name: bytes | None = None, length: int = 0, copies: int = 0
) -> Callable[[Records], list[Edit]]:
    """A chunk's record with another hash, or these steps added to its length or copies."""

    def edits(found: Records) -> list[Edit]:
        key = (number // SLOTS).to_bytes(8, "big")
        block = bytearray(found["chunks"][key])
        old, use = struct.unpack_from("<16sQ", block, number % SLOTS * 24)
        struct.pack_into("<16sQ", block, number % SLOTS * 24, name or old, use + length + (copies << 24))
        return [("chunks", key, bytes(block))]

    return edits


def blob_with(**fields: int | str) -> Callable[[Records], list[Edit]]:
    def edits(found: Records) -> list[Edit]:
        blob = replace(records.unpack_blob(LAYER, found["blobs"][LAYER_KEY]), **fields)  # type: ignore[arg-type]
        return [("blobs", LAYER_KEY, records.pack_blob(blob))]

    return edits


def recipe_with(alter: Callable[[bytes], bytes | None]) -> Callable[[Records], list[Edit]]:
    return lambda found: [("recipes", LAYER_KEY, alter(found["recipes"][LAYER_KEY]))]


Entries = list[tuple[int, int]]


def entries_of(value: bytes) -> Entries:
    count = len(value) // 9
    prefixes, low = struct.unpack_from(f"<{count}I", value), struct.unpack_from(f"<{count}I", value, 4 * count)
    return [
        (prefix, below + (high << 32)) for prefix, below, high in zip(prefixes, low, value[8 * count :], strict=True)
    ]


def packed(entries: Entries) -> bytes:
    count = len(entries)
    return (
        struct.pack(f"<{count}I", *(prefix for prefix, _ in entries))
        + struct.pack(f"<{count}I", *(number & 0xFFFFFFFF for _, number in entries))
        + bytes(number >> 32 for _, number in entries)
    )


def entries_with(database: str, alter: Callable[[Entries], Entries], least: int = 2) -> Callable[[Records], list[Edit]]:
    """Alter the first value of a look-up table with so many entries of live chunks at its start."""

    def edits(found: Records) -> list[Edit]:
        for key, value in found[database].items():
            entries = entries_of(value)
            if len({prefix for prefix, _ in entries[:least]}) == least and not any(
                300 <= number < 400 for _, number in entries
            ):
                return [(database, key, packed(alter(list(entries))))]
        raise AssertionError(f"no value of {database} has {least} entries")

    return edits


def both(*parts: Callable[[Records], list[Edit]]) -> Callable[[Records], list[Edit]]:
    return lambda found: [edit for part in parts for edit in part(found)]


def young_in_dense(found: Records) -> list[Edit]:
    """An entry that is in `young` is put into its value of `dense` as well."""
    value = next(value for value in found["young"].values() if value)
    prefix, number = entries_of(value)[0]
    target = max(key for key in found["dense"] if int.from_bytes(key, "big") <= prefix)
    return [("dense", target, packed(sorted([*entries_of(found["dense"][target]), (prefix, number)])))]


def dense_in_the_value_before(found: Records) -> list[Edit]:
    """The first entry of a value of `dense` is put at the end of the value before."""
    (before, less), (key, more) = [(key, entries_of(value)) for key, value in found["dense"].items() if value][:2]
    return [("dense", before, packed([*less, more[0]])), ("dense", key, packed(more[1:]))]


def held(digest: Digest, state: str) -> bytes:
    return records.pack_held(Held(digest, state, MARK))


def block_with(value: bytes | None) -> Callable[[Records], list[Edit]]:
    return to("chunks", bytes(8), value)


TOTALS = [
    Damage(f"totals-{name}", head_with(**{name: step}), {("totals", name)})
    for name in (*(field.name for field in dataclasses.fields(Totals)), "dead_chunks", "young_entries")
    for step in (1, 1 << 40)
]


def measured_with(alter: Callable[[list[tuple[int, int]]], list[tuple[int, int]]]) -> Callable[[Records], list[Edit]]:
    """The first block's recompressed lengths, as (slot, length), with other ones."""

    def edits(found: Records) -> list[Edit]:
        packed = b"".join(
            struct.pack("<BI", *entry) for entry in alter(list(struct.iter_unpack("<BI", found["measured"][bytes(8)])))
        )
        return [("measured", bytes(8), packed)]

    return edits


def histogram_with(row: int, column: int, step: int) -> Callable[[Records], list[Edit]]:
    def edits(found: Records) -> list[Edit]:
        rows = histogram.unpack(records.unseal(found["meta"][b"histogram"]))
        rows[row][column] += step
        return [("meta", b"histogram", records.seal(histogram.pack(rows)))]

    return edits


# The first chunk of the first block that is measured, and the first that is not.
MEASURED = next(number for number in range(SLOTS) if picked(chunk(number)))
UNMEASURED = next(number for number in range(SLOTS) if not picked(chunk(number)))
COUNTED = {
    ("totals", name) for name in ("layers", "chunks", "uncompressed_bytes", "stored_bytes", "layer_stored_bytes")
}
DAMAGES = [
    *TOTALS,
    # chunk records
    Damage("copies-more", slot_with(7, copies=1), {("chunks", "7")}),
    Damage("copies-less", slot_with(50, copies=-1), {("chunks", "50")}),
    Damage("copies-of-the-dead", slot_with(350, copies=1), {("chunks", "350")}),
    Damage(
        "length",
        slot_with(50, length=1),
        {("recipes", str(LAYER)), ("totals", "uncompressed_bytes"), ("totals", "unique_bytes")},
    ),
    Damage("hash", slot_with(450, name=bytes(16)), {("young", "chunk 450")}),
    Damage("hash-of-another", slot_with(450, name=chunk(451)[0]), {("young", "chunk 450"), ("chunks", "451")}),
    Damage("block-missing", block_with(None), {("chunks", "0"), ("chunks", "169"), ("recipes", str(LAYER))}),
    Damage("block-short", block_with(bytes(4079)), {("chunks", "block 0")}),
    Damage("block-of-zeros", block_with(bytes(4080)), {("chunks", "0")}),
    Damage("slot-of-a-chunk-to-come", slot_with(505, copies=1), {("chunks", f"block {blocks.block_key(2).hex()}")}),
    Damage(
        "block-of-chunks-to-come",
        to("chunks", blocks.block_key(9), b"\1" * 4080),
        {("chunks", f"block {blocks.block_key(9).hex()}")},
    ),
    Damage("block-with-another-key", to("chunks", b"\0", bytes(4080)), {("chunks", "block 0")}),
    # the figures over unique chunks
    *(
        Damage(f"histogram-{row}-{column}", histogram_with(row, column, 1), {("histogram", f"row {row}")})
        for row in (0, 1, 40, 41, 56)
        for column in range(4)
    ),
    Damage(
        "measured-longer",
        measured_with(lambda entries: [(entries[0][0], entries[0][1] + 1), *entries[1:]]),
        {("totals", "measured_recompressed_bytes"), ("totals", "measured_xy"), ("totals", "measured_yy")},
    ),
    Damage(
        "measured-impossible",
        measured_with(lambda entries: [(entries[0][0], 70_000), *entries[1:]]),
        {("measured", f"chunk {MEASURED}"), ("totals", "measured_yy")},
    ),
    Damage(
        "measured-too-short",
        measured_with(lambda entries: [(entries[0][0], 9), *entries[1:]]),
        {("measured", f"chunk {MEASURED}")},
    ),
    Damage(
        "measured-missing",
        measured_with(lambda entries: entries[1:]),
        {("measured", f"chunk {MEASURED}"), ("totals", "measured_recompressed_bytes")},
    ),
    Damage(
        "measured-another",
        measured_with(lambda entries: sorted([*entries, (UNMEASURED, 1000)])),
        {("measured", f"chunk {UNMEASURED}")},
    ),
    Damage("measured-twice", measured_with(lambda entries: [entries[0], *entries]), {("measured", bytes(8).hex())}),
    Damage("measured-unsorted", measured_with(lambda entries: entries[::-1]), {("measured", bytes(8).hex())}),
    Damage(
        "measured-of-no-slot", measured_with(lambda entries: [*entries, (SLOTS, 9)]), {("measured", bytes(8).hex())}
    ),
    Damage("measured-of-no-bytes", measured_with(lambda entries: [(entries[0][0], 0)]), {("measured", bytes(8).hex())}),
    Damage("measured-cut", to("measured", bytes(8), b"\1\2\3\4"), {("measured", bytes(8).hex())}),
    Damage("measured-empty", to("measured", bytes(8), b""), {("measured", bytes(8).hex())}),
    Damage("measured-record-missing", to("measured", bytes(8), None), {("measured", f"chunk {MEASURED}")}),
    Damage("measured-of-no-block", to("measured", bytes(7) + b"\x63", b"\0\xe8\3\0\0"), {("measured", "63")}),
    Damage("measured-with-another-key", to("measured", b"\0", b"\0\xe8\3\0\0"), {("measured", "00")}),
    Damage("measured-with-a-longer-key", to("measured", bytes(9), b"\0\xe8\3\0\0"), {("measured", bytes(9).hex())}),
    Damage("measured-of-a-far-block", to("measured", b"\xff" * 8, b"\0\xe8\3\0\0"), {("measured", "ff" * 8)}),
    # recipes
    Damage("recipe-missing", to("recipes", LAYER_KEY, None), {("recipes", str(LAYER))}),
    Damage("recipe-empty", to("recipes", LAYER_KEY, b""), {("recipes", str(LAYER))}),
    Damage("recipe-shorter", recipe_with(lambda recipe: recipe[:-2]), {("recipes", str(LAYER))}),
    Damage("recipe-longer", recipe_with(lambda recipe: recipe + b"\0\1"), {("recipes", str(LAYER))}),
    Damage("recipe-cut", recipe_with(lambda recipe: recipe[:-1]), {("recipes", str(LAYER))}),
    Damage("recipe-garbage", to("recipes", LAYER_KEY, b"\xff" * 40), {("recipes", str(LAYER))}),
    Damage("recipe-negative", to("recipes", LAYER_KEY, b"\1" + b"\xaf\2"), {("recipes", str(LAYER))}),
    Damage("recipe-elsewhere", recipe_with(lambda recipe: b"\2" + recipe[1:]), {("chunks", "0")}),
    Damage("recipe-beyond", recipe_with(lambda recipe: b"\xd0\x0f" + recipe[1:]), {("recipes", str(LAYER))}),
    Damage("recipe-of-another-chunk", recipe_with(lambda recipe: recipe[:-2] + b"\4\1"), {("chunks", "7")}),
    Damage("recipe-of-nobody", to("recipes", GONE_KEY, b"\0\1"), {("recipes", GONE_KEY.hex())}),
    Damage("recipe-of-no-layer", to("recipes", OTHER_KEY, b"\0\1"), {("recipes", OTHER_KEY.hex())}),
    Damage("recipe-with-a-garbage-key", to("recipes", b"garbage", b"\0\1"), {("recipes", b"garbage".hex())}),
    # manifests
    Damage("manifest-missing", to("manifests", MANIFEST_KEY, None), {("manifests", str(MANIFEST))}),
    Damage("manifest-cut", to("manifests", MANIFEST_KEY, INDEX[:-1]), {("manifests", str(MANIFEST))}),
    Damage("manifest-empty", to("manifests", MANIFEST_KEY, b""), {("manifests", str(MANIFEST))}),
    Damage(
        "manifest-of-another-kind",
        to("manifests", MANIFEST_KEY, manifest_record.encode(Contents(Kind.CONFIG))),
        {("manifests", str(MANIFEST))},
    ),
    Damage("manifest-of-a-layer", to("manifests", LAYER_KEY, INDEX), {("manifests", LAYER_KEY.hex())}),
    Damage("manifest-of-another-blob", to("manifests", OTHER_KEY, INDEX), {("manifests", str(OTHER))}),
    Damage("manifest-of-nobody", to("manifests", GONE_KEY, INDEX), {("manifests", GONE_KEY.hex())}),
    Damage("manifest-with-a-garbage-key", to("manifests", b"garbage", INDEX), {("manifests", b"garbage".hex())}),
    # names
    Damage("names-garbage", to("names", NAMES_KEY, b"garbage"), {("names", NAMES_KEY.hex())}),
    Damage("names-not-of-names", to("names", NAMES_KEY, records.seal(b"[]")), {("names", NAMES_KEY.hex())}),
    Damage("names-otherwise", to("names", NAMES_KEY, records.seal(NAMES + b" ")), {("names", NAMES_KEY.hex())}),
    Damage("names-of-another", to("names", b"\0\0\0\1" + bytes(16), records.seal(NAMES)), {("names", bytes(16).hex())}),
    Damage(
        "names-of-no-cache",
        to("names", b"\0\0\0\x09" + NAMES_KEY[4:], records.seal(NAMES)),
        {("names", NAMES_KEY[4:].hex())},
    ),
    Damage("reading-garbage", to("names", READING_KEY, b"garbage"), {("names", READING_KEY.hex())}),
    Damage("reading-that-is-none", to("names", READING_KEY, records.seal(b"[0,[],0]")), {("names", READING_KEY.hex())}),
    Damage("reading-of-no-cache", to("names", b"\0\0\0\x09", records.seal(READING)), {("names", "00000009")}),
    # blobs
    Damage("blob-missing", to("blobs", LAYER_KEY, None), {("recipes", LAYER_KEY.hex()), ("totals", "layers")}),
    Damage("blob-garbage", to("blobs", LAYER_KEY, b"garbage"), {("blobs", LAYER_KEY.hex())}),
    Damage("blob-with-a-garbage-key", to("blobs", b"garbage", b"garbage"), {("blobs", b"garbage".hex())}),
    Damage(
        "blob-stored",
        blob_with(stored_bytes=5),
        {("blobs", str(LAYER)), ("totals", "stored_bytes"), ("totals", "layer_stored_bytes")},
    ),
    Damage("blob-uncompressed", blob_with(uncompressed_bytes=5), {("recipes", str(LAYER))}),
    Damage("blob-chunks", blob_with(chunks=302), {("recipes", str(LAYER))}),
    Damage("blob-huge", blob_with(chunks=2**63, uncompressed_bytes=2**64 - 1), {("recipes", str(LAYER))}),
    Damage("blob-other", blob_with(state="other"), {("blobs", str(LAYER))}),
    Damage("blob-without-a-codec", blob_with(codec=""), {("blobs", str(LAYER))}),
    Damage("blob-with-a-reason", blob_with(reason="?"), {("blobs", str(LAYER))}),
    Damage("blob-with-tries", blob_with(tries=1), {("blobs", str(LAYER))}),
    Damage("blob-with-a-retry", blob_with(retry_at=1), {("blobs", str(LAYER))}),
    Damage("blob-failed", blob_with(state="failed"), {("blobs", str(LAYER))}),
    Damage(
        "blob-other-and-bare",
        blob_with(state="other", chunks=0, uncompressed_bytes=0),
        {("recipes", LAYER_KEY.hex()), ("totals", "others")},
    ),
    Damage(
        "blob-extra",
        to("blobs", GONE_KEY, records.pack_blob(Blob(GONE, "other", 5))),
        {("totals", "others"), ("totals", "stored_bytes"), ("places", str(GONE))},
    ),
    # the look-up
    Damage("dense-missing", entries_with("dense", lambda entries: entries[1:]), {("look-up", "chunk")}),
    Damage("dense-twice", entries_with("dense", lambda entries: [entries[0], *entries]), {("look-up", "chunk")}),
    Damage(
        "dense-prefix",
        entries_with("dense", lambda entries: [(entries[0][0] + 1, entries[0][1]), *entries[1:]]),
        {("dense", "chunk")},
    ),
    Damage("dense-unsorted", entries_with("dense", lambda entries: entries[::-1]), {("dense", "")}),
    Damage("dense-beyond", entries_with("dense", lambda entries: [*entries, (2**32 - 1, 7)]), {("dense", "")}),
    Damage(
        "dense-of-no-chunk",
        entries_with("dense", lambda entries: [(entries[0][0], 500), *entries]),
        {("dense", "")},
    ),
    Damage("dense-in-the-value-before", dense_in_the_value_before, {("dense", "")}),
    Damage("dense-garbage", to("dense", bytes(4), b"garbage"), {("dense", "00000000")}),
    Damage("dense-all-missing", lambda found: [("dense", key, None) for key in found["dense"]], {("look-up", "chunk")}),
    Damage("young-and-dense", young_in_dense, {("look-up", "chunk")}),
    Damage(
        "young-missing",
        both(entries_with("young", lambda entries: entries[1:], 1), head_with(young_entries=-1)),
        {("look-up", "chunk")},
    ),
    Damage(
        "young-twice",
        both(entries_with("young", lambda entries: [entries[0], *entries], 1), head_with(young_entries=1)),
        {("look-up", "chunk")},
    ),
    Damage(
        "young-prefix",
        entries_with("young", lambda entries: [(entries[0][0] ^ 1, entries[0][1]), *entries[1:]], 1),
        {("young", "chunk")},
    ),
    Damage("young-unsorted", entries_with("young", lambda entries: entries[::-1]), {("young", "")}),
    Damage("young-garbage", to("young", bytes(4), b"garbage"), {("young", "00000000")}),
    Damage(
        "young-in-another-slice",
        lambda found: [
            ("young", next(iter(found["young"])), None),
            ("young", (999).to_bytes(4, "big"), next(iter(found["young"].values()))),
        ],
        {("young", "000003e7")},
    ),
    Damage(
        "young-with-another-key",
        lambda found: [
            ("young", next(iter(found["young"])), None),
            ("young", b"\0" + next(iter(found["young"])), next(iter(found["young"].values()))),
        ],
        {("young", "")},
    ),
    # failures
    Damage(
        "failed-missing",
        to("failed", FAILED_KEY, None),
        {("totals", "failed_blobs"), ("totals", "failed_bytes"), ("places", f"1:{FAILED.hex}")},
    ),
    Damage(
        "failed-without-a-place",
        lambda _: [
            ("places", records.place_key(place_of(FAILED)), None),
            ("holders", records.holder_key(FAILED, place_of(FAILED)), None),
        ],
        {("failed", str(FAILED))},
    ),
    Damage(
        "place-of-a-blob-that-is-not-there",
        lambda _: [
            ("places", records.place_key(Place(CACHE, GONE.hex)), held(GONE, "untested")),
            ("holders", records.holder_key(GONE, Place(CACHE, GONE.hex)), b""),
        ],
        {("places", f"{CACHE}:{GONE.hex}")},
    ),
    Damage("failed-garbage", to("failed", FAILED_KEY, b"garbage"), {("failed", FAILED_KEY.hex())}),
    Damage("failed-with-a-garbage-key", to("failed", b"garbage", b"garbage"), {("failed", b"garbage".hex())}),
    Damage(
        "failed-and-counted",
        to("failed", LAYER_KEY, records.pack_blob(Blob(LAYER, "failed", 5))),
        {("failed", str(LAYER)), ("totals", "failed_blobs")},
    ),
    Damage(
        "failed-as-a-layer",
        to("failed", FAILED_KEY, records.pack_blob(Blob(FAILED, "other", 500))),
        {("failed", str(FAILED))},
    ),
    # places
    Damage(
        "place-missing",
        to("places", PLACE_KEY, None),
        {("holders", "entries"), ("places", str(LAYER))},
    ),
    Damage("place-garbage", to("places", PLACE_KEY, b"garbage"), {("places", PLACE_KEY.hex())}),
    Damage("place-with-a-garbage-key", to("places", b"key", held(LAYER, "verified")), {("places", b"key".hex())}),
    Damage("place-untested", to("places", PLACE_KEY, held(LAYER, "untested")), {("places", str(LAYER))}),
    Damage("place-bad", to("places", PLACE_KEY, held(LAYER, "bad")), {("places", str(LAYER))}),
    Damage(
        "place-of-another",
        to("places", PLACE_KEY, held(GONE, "verified")),
        {("holders", str(GONE)), ("places", str(LAYER))},
    ),
    Damage(
        "place-of-no-cache",
        lambda _: [
            ("places", records.place_key(Place(9, "x")), held(LAYER, "verified")),
            ("holders", records.holder_key(LAYER, Place(9, "x")), b""),
        ],
        {("places", "9:x")},
    ),
    Damage(
        "caches-gone",
        to("meta", b"caches", records.pack_caches({2: Cache("/another")})),
        {("places", f"1:{LAYER.hex}"), ("places", f"1:{FAILED.hex}")},
    ),
    Damage(
        "holder-missing",
        to("holders", records.holder_key(LAYER, place_of(LAYER)), None),
        {("holders", str(LAYER)), ("holders", "entries")},
    ),
    Damage("holder-extra", to("holders", records.holder_key(GONE, place_of(LAYER)), b""), {("holders", "entries")}),
    Damage("holder-garbage", to("holders", b"garbage", b""), {("holders", "entries")}),
    Damage("ignored-garbage", to("ignored", b"key", b"a symbolic link"), {("ignored", b"key".hex())}),
    Damage(
        "ignored-of-no-cache",
        to("ignored", records.place_key(Place(9, "link")), b"a symbolic link"),
        {("ignored", "9:link")},
    ),
    Damage("suspect-of-nothing", to("needs_rehash", GONE_KEY, b""), {("needs_rehash", str(GONE))}),
    Damage("suspect-of-a-failed-one", to("needs_rehash", FAILED_KEY, b""), {("needs_rehash", str(FAILED))}),
    Damage("suspect-garbage", to("needs_rehash", b"garbage", b""), {("needs_rehash", b"garbage".hex())}),
]


def damaged(state_dir: Path, damage: Damage) -> None:
    found = records_of(state_dir)
    for database, key, value in damage.edits(found):
        assert found[database].get(key) != value, "this would alter nothing"
        edit(state_dir, database, key, value)


# --- the tests ------------------------------------------------------------------------------------------------------


def test_the_index_that_is_damaged_has_something_of_everything(whole: Path) -> None:
    found = records_of(whole)
    assert {name for name, table in found.items() if not table} == {"needs_rehash"}
    head = records.unpack_head(found["meta"][b"head"])
    assert all(getattr(head.totals, field.name) for field in dataclasses.fields(Totals))
    assert (head.next_number, head.dead_chunks) == (500, 100)
    assert head.young_entries > 2


@pytest.mark.usefixtures("window")
def test_a_whole_index_has_no_differences(whole: Path) -> None:
    assert differences(whole) == []


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damage_is_named(copy: Path, damage: Damage) -> None:
    damaged(copy, damage)
    found = differences(copy)
    for record, key in damage.named:
        assert any(
            difference.record == record
            and (key in difference.key if record not in ("chunks", "totals") else key == difference.key)
            for difference in found
        ), (record, key, [str(difference) for difference in found])
    assert all(difference.expected != difference.found for difference in found)


@pytest.mark.usefixtures("window")
@pytest.mark.parametrize("damage", TOTALS, ids=lambda damage: damage.name)
def test_a_wrong_total_is_the_only_difference_and_both_values_are_told(copy: Path, damage: Damage) -> None:
    before: Head = records.unpack_head(records_of(copy)["meta"][b"head"])
    damaged(copy, damage)
    after = records.unpack_head(records_of(copy)["meta"][b"head"])
    [(_, name)] = damage.named
    values = [str(getattr(head if hasattr(head, name) else head.totals, name)) for head in (before, after)]
    assert differences(copy) == [Difference("totals", name, *values)]


def test_a_difference_says_what_was_expected_and_what_was_found(copy: Path) -> None:
    for key, value in ((LAYER_KEY, b"garbage"), (b"garbage", b"")):
        edit(copy, "blobs", key, value)
    assert f"blobs {LAYER_KEY.hex()}: expected a blob record, found 7 bytes are not a blob record" in map(
        str, differences(copy)
    )


def test_the_differences_are_bounded(copy: Path) -> None:
    for number in range(MAX_DIFFERENCES // 2):
        edit(copy, "needs_rehash", records.digest_key(blob_of(1000 + number, []).digest), b"")
    for block in range(3):
        edit(copy, "chunks", block.to_bytes(8, "big"), bytes(4080))
    assert len(differences(copy)) == MAX_DIFFERENCES


@pytest.mark.parametrize("key", [b"format", b"rules", b"head", b"caches", b"histogram", b"verified"])
def test_a_sealed_record_that_is_wrong_is_an_error_and_no_difference(copy: Path, key: bytes) -> None:
    value = records_of(copy)["meta"][key]
    # An index has no `verified` until its first round has come to an end.
    absent = [] if key == b"verified" else [None]
    for other in (value[:-1], b"", value[:8] + bytes([255]) * (len(value) - 8), *absent):
        edit(copy, "meta", key, other)
        with pytest.raises(IndexDamaged, match=key.decode()):
            differences(copy)


def test_a_suspect_needs_no_verified_place(bench: Bench) -> None:
    """Its verified place is gone and another is about to be hashed: that is no difference."""
    bench.add(1, [chunk(1)])
    with bench.index.transaction() as change:
        change.hold(place_of(LAYER), Held(LAYER, "untested", MARK))
    assert [line.partition(" ")[0] for line in bench.differences()] == ["places"]
    with bench.index.transaction() as change:
        change.require_rehash(LAYER)
    assert bench.differences() == []


def test_the_recount_tells_how_far_it_is(bench: Bench) -> None:
    build(bench)
    told: list[str] = []
    with bench.index.snapshot() as txn:
        result = recount(bench.index.store, txn, told.append)
    assert told == ["blobs", "chunks 0 of 500", "look-up", "places"]
    assert Totals(**result.totals) == bench.totals
