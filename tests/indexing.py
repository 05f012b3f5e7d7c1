"""What the index's tests share: an index that is recounted when its test ends, made-up blobs, and a plain model of it.

`recipes_of` reads the index's bytes in plain Python from DESIGN.md's words: it shares no codec with chunkd.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import lmdb
import pytest

import oracle
from chunkd.check import recount as recount_module
from chunkd.figures.totals import Totals
from chunkd.index.chunks import lookup
from chunkd.index.chunks import table as chunks_module
from chunkd.index.index import Change, Index
from chunkd.index.records import Held, Rules
from chunkd.index.storage.environment import DATABASES, Store
from chunkd.model import Blob, Cache, Digest, FileMark, Place, Recipe

Chunk = tuple[bytes, int]

CACHE = 1
NOW_NS = 1_700_000_000_000_000_000
SLOTS = 170
NAMES = ("sha256", "sha512")


# --- blobs that are made up -----------------------------------------------------------------------------------------


def digest_of(number: int, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, str(number).encode()).hexdigest())


def chunk(number: int, prefix: bytes = b"") -> Chunk:
    """The hash and length of a made-up chunk; its hash begins with `prefix`."""
    named = hashlib.blake2b(str(number).encode(), digest_size=16).digest()
    return (prefix + named)[:16], 2048 + number * 7919 % 63489


def chunks_of(numbers: Iterable[int]) -> list[Chunk]:
    return [chunk(number) for number in numbers]


def picked(chunk: Chunk) -> bool:
    """Whether the rule as it comes measures it: 1 in 16, by the last 16 bits of its hash."""
    return chunk[0][15] < 16


def recompressed(chunk: Chunk) -> int:
    """A made-up length of its frame: between 30 % and 90 % of its own, as its hash has it."""
    return chunk[1] * (30 + chunk[0][13] % 61) // 100


def recipe_of(chunks: Sequence[Chunk]) -> Recipe:
    measured = [recompressed(chunk) for chunk in chunks if picked(chunk)]
    return Recipe(
        b"".join(name for name, _ in chunks),
        struct.pack(f"<{len(chunks)}I", *(length for _, length in chunks)),
        struct.pack(f"<{len(measured)}I", *measured),
    )


def blob_of(number: int, chunks: Sequence[Chunk]) -> Blob:
    """A layer of these chunks; without any, a blob that is no layer."""
    digest = digest_of(number, NAMES[number % 2])
    stored_bytes = 1000 + number
    if not chunks:
        return Blob(digest, "other", stored_bytes)
    return Blob(digest, "layer", stored_bytes, sum(length for _, length in chunks), len(chunks), "gzip")


def place_of(digest: Digest) -> Place:
    return Place(CACHE, digest.hex)


# --- an index that is always recounted ------------------------------------------------------------------------------


class Bench:
    """An index in a state directory, with a place for each blob that is counted in it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.open()
        with self.index.transaction() as change:
            change.set_caches({CACHE: Cache("/cache")})

    def open(self) -> None:
        self.index = Index(str(self.state_dir), Rules(), "a test", clock_ns=lambda: NOW_NS)
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self.index.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    @contextlib.contextmanager
    def closed(self) -> Iterator[dict[str, dict[bytes, bytes]]]:
        """Closes the index for a while: all of its records, as they lie on disk."""
        self.close()
        yield records_of(self.state_dir)
        self.open()

    def add(self, number: int, chunks: Sequence[Chunk]) -> int:
        with self.index.transaction() as change:
            return add(change, number, chunks)

    def remove(self, number: int) -> None:
        with self.index.transaction() as change:
            remove(change, number)

    @property
    def totals(self) -> Totals:
        with self.index.snapshot() as txn:
            return self.index.store.head(txn).totals

    def differences(self) -> list[str]:
        with self.index.snapshot() as txn:
            return [str(difference) for difference in recount_module.recount(self.index.store, txn).differences]


def add(change: Change, number: int, chunks: Sequence[Chunk]) -> int:
    blob = blob_of(number, chunks)
    change.hold(place_of(blob.digest), Held(blob.digest, "verified", FileMark(1, number, blob.stored_bytes, NOW_NS)))
    return change.add(blob, recipe_of(chunks))


def remove(change: Change, number: int) -> None:
    digest = digest_of(number, NAMES[number % 2])
    change.release(place_of(digest), digest)
    change.remove(digest)


@contextlib.contextmanager
def recounted(state_dir: Path) -> Iterator[Bench]:
    """A fresh index. Whatever the test did, it is opened once more in the end and recounted, and nothing may differ."""
    bench = Bench(state_dir)
    try:
        yield bench
    finally:
        bench.close()
    store = Store(str(state_dir / "index"), readonly=True)
    try:
        with store.snapshot() as txn:
            assert [str(difference) for difference in recount_module.recount(store, txn).differences] == []
    finally:
        store.close()


# --- the same, read and counted in plain Python ---------------------------------------------------------------------


def totals_of(counted: Mapping[int, Sequence[Chunk]], failed_bytes: Sequence[int] = ()) -> Totals:
    """What the totals of these blobs must be, by their numbers."""
    layers = {number: chunks for number, chunks in counted.items() if chunks}
    copies = Counter(chunk for chunks in layers.values() for chunk in chunks)
    stored = {number: blob_of(number, chunks).stored_bytes for number, chunks in counted.items()}
    measured = [(chunk[1], recompressed(chunk), times) for chunk, times in copies.items() if picked(chunk)]
    return Totals(
        layers=len(layers),
        others=len(counted) - len(layers),
        stored_bytes=sum(stored.values()),
        layer_stored_bytes=sum(stored[number] for number in layers),
        uncompressed_bytes=sum(length * times for (_, length), times in copies.items()),
        chunks=copies.total(),
        unique_chunks=len(copies),
        unique_bytes=sum(length for _, length in copies),
        failed_blobs=len(failed_bytes),
        failed_bytes=sum(failed_bytes),
        **oracle.sample(measured),
    )


def histogram_of(counted: Mapping[int, Sequence[Chunk]]) -> dict[str, list[dict[str, int]]]:
    """What the histogram of these blobs must be."""
    copies = Counter(chunk for chunks in counted.values() for chunk in chunks)
    tables: dict[str, dict[tuple[int, int], list[int]]] = {
        "copies": {}, "sizes": {(4096 * row + 1, 4096 * row + 4096): [0] * 4 for row in range(16)},
    }  # fmt: skip
    for (_, length), times in copies.items():
        most = 1
        while most < times:
            most *= 2
        size = (length + 4095) // 4096 * 4096
        for name, bounds in ("copies", (most // 2 + 1, most)), ("sizes", (size - 4095, size)):
            row = tables[name].setdefault(bounds, [0] * 4)
            for column, figure in enumerate((1, times, length, times * length)):
                row[column] += figure
    last = max((most for _, most in tables["copies"]), default=0)
    for most in (1 << power for power in range(last.bit_length())):
        tables["copies"].setdefault((most // 2 + 1, most), [0] * 4)
    names = ("unique_chunks", "chunks", "unique_bytes", "uncompressed_bytes")
    return {
        name: [
            {f"from{unit}": least, f"to{unit}": most} | dict(zip(names, row, strict=True))
            for (least, most), row in sorted(tables[name].items())
        ]
        for name, unit in (("copies", ""), ("sizes", "_bytes"))
    }


def records_of(state_dir: Path) -> dict[str, dict[bytes, bytes]]:
    """Every record of a closed index, by database."""
    with lmdb.open(str(state_dir / "index"), readonly=True, lock=False, max_dbs=len(DATABASES)) as env:
        tables = {name: env.open_db(name.encode(), create=False) for name in DATABASES}
        with env.begin() as txn:
            found: dict[str, dict[bytes, bytes]] = {}
            for name, table in tables.items():
                with txn.cursor(db=table) as cursor:
                    found[name] = {bytes(key): bytes(value) for key, value in cursor}
            return found


def numbers_of(packed: bytes) -> list[int]:
    """The chunk numbers of a packed recipe."""
    varints, value, shift = [], 0, 0
    for octet in packed:
        value |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            varints.append(value)
            value = shift = 0
    numbers: list[int] = []
    end = 0
    for folded, count in zip(varints[0::2], varints[1::2], strict=True):
        first = end + (folded >> 1 if folded % 2 == 0 else -(folded + 1) // 2)
        end = first + count
        numbers += range(first, end)
    return numbers


def recipes_of(records: dict[str, dict[bytes, bytes]]) -> dict[str, list[Chunk]]:
    """Each layer's chunks, in order, by the hex digits of its digest."""
    return {
        key[1:].hex(): [slot(records, number)[:2] for number in numbers_of(packed)]
        for key, packed in records["recipes"].items()
    }


def slot(records: dict[str, dict[bytes, bytes]], number: int) -> tuple[bytes, int, int]:
    """Hash, length and copies of a chunk."""
    block = records["chunks"][(number // SLOTS).to_bytes(8, "big")]
    name, use = struct.unpack_from("<16sQ", block, number % SLOTS * 24)
    return name, use & 0xFFFFFF, use >> 24


def measured_of(records: dict[str, dict[bytes, bytes]]) -> dict[Chunk, int]:
    """The recompressed lengths that are kept, by chunk."""
    return {
        slot(records, int.from_bytes(key, "big") * SLOTS + at)[:2]: length
        for key, packed in records["measured"].items()
        for at, length in struct.iter_unpack("<BI", packed)
    }


def edit(state_dir: Path, database: str, key: bytes, value: bytes | None) -> bytes | None:
    """Write a record of a closed index past all care, or delete it; what was there before."""
    with lmdb.open(str(state_dir / "index"), map_size=1 << 40, max_dbs=len(DATABASES)) as env:
        table = env.open_db(database.encode(), create=False)
        with env.begin(db=table, write=True) as txn:
            before: bytes | None = txn.get(key)
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)
    return before


@contextlib.contextmanager
def small_bounds() -> Iterator[None]:
    """A few hundred chunks fill every batch, merge, split and window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "DENSE_ENTRIES", 8)
        patch.setattr(lookup, "MERGE_VALUES", 3)
        patch.setattr(lookup, "YOUNG_FLOOR", 4)
        patch.setattr(lookup, "CHUNKS_PER_MERGE", 4)
        patch.setattr(chunks_module, "BATCH_BLOCKS", 2)
        patch.setattr(recount_module, "WINDOW", 2 * SLOTS)
        yield
