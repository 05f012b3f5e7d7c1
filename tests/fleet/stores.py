"""What the tests of stores share: blobs as entries of a segment, and a segment's rows in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from chunkd.fleet.key import Key
from chunkd.fleet.segment import Entry
from chunkd.fleet.store import Store, blobs_name, rows_name
from chunkd.index.records import Rules, digest_key
from chunkd.model import Recipe
from indexing import Chunk, blob_of, picked, recipe_of, recompressed

Blobs = Mapping[int, Sequence[Chunk]]


def entries_of(blobs: Blobs) -> list[Entry]:
    return [
        (blob_of(number, chunks), recipe_of(chunks) if chunks else Recipe(), b"") for number, chunks in blobs.items()
    ]


def store_at(path: Path, rules: Rules = Rules(), key: Key | None = None) -> Store:  # noqa: B008
    store = Store(str(path))
    store.begin(rules.params, key.id if key else "")
    return store


def key_at(path: Path, digits: str = "ab" * 32) -> Key:
    path.write_text(digits + "\n")
    path.chmod(0o600)
    return Key(str(path))


def level(chunk: Chunk) -> int:
    """By how many of the leading bits of its last two bytes, turned round, are 0."""
    bits = f"{chunk[0][15]:08b}{chunk[0][14]:08b}"
    return len(bits) - len(bits.lstrip("0"))


def rows_of(blobs: Blobs) -> list[dict[str, Any]]:
    """What the rows of a segment of these blobs must be."""
    in_order = sorted(blobs, key=lambda number: digest_key(blob_of(number, ()).digest))
    rows = [
        {
            "hash": chunk[0], "length": chunk[1], "blob": at, "copies": copies,
            "measured": recompressed(chunk) if picked(chunk) else None, "level": level(chunk),
        }
        for at, number in enumerate(in_order)
        for chunk, copies in Counter(blobs[number]).items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["hash"], row["blob"]))


def rows_in(store: Store, segment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(Path(store.path, rows_name(segment))).to_pylist()
    return found


def blobs_in(store: Store, segment: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parquet.read_table(Path(store.path, blobs_name(segment))).to_pylist()
    return found


def content_of(path: Path) -> str:
    """All that is in the files of a store, decompressed."""
    found = []
    for file in path.rglob("*"):
        if file.suffix == ".parquet":
            found += [repr(parquet.read_metadata(file).metadata), repr(parquet.read_table(file).to_pylist())]
        elif file.is_file():
            found.append(file.read_text())
    return "\n".join(found)
