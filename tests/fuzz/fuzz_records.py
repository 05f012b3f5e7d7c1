"""The index's record decoders on whatever bytes: what one takes comes back as the same bytes, the rest is Damaged."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TypeVar

import numpy as np

import fuzzing

with fuzzing.instrumented():
    from chunkd.figures.totals import Totals
    from chunkd.index import blocks, records
    from chunkd.index.chunks.entries import ENTRY_BYTES, join_entries, unpack_entries
    from chunkd.model import Blob, Cache, Digest, FileMark, Place

Found = TypeVar("Found")

# A recipe's memory is bounded by the chunks that its blob says it has.
MOST_CHUNKS = 1 << 16
SHA256 = Digest("sha256", "ab" * 32)


def digest(value: bytes) -> bytes:
    return records.digest_key(records.digest_from_key(value))


def place(value: bytes) -> bytes:
    return records.place_key(records.place_from_key(value))


def blob(value: bytes) -> bytes:
    return records.pack_blob(records.unpack_blob(SHA256, value))


def held(value: bytes) -> bytes:
    return records.pack_held(records.unpack_held(value))


def varints(value: bytes) -> bytes:
    return blocks.pack_varints(blocks.unpack_varints(value))


def recipe(value: bytes) -> bytes:
    """Behind 4 bytes of how many chunks are claimed; 0 claims what its runs add up to."""
    chunks = int.from_bytes(value[:4], "little")
    if not chunks:
        chunks = sum(map(int, blocks.unpack_varints(value[4:])[1::2]))
    if chunks > MOST_CHUNKS:
        return value
    numbers = blocks.unpack_recipe(value[4:], chunks)
    assert len(numbers) == chunks
    assert all(0 <= number < 1 << 40 for number in numbers.tolist())
    return value[:4] + blocks.pack_recipe(numbers)


def entries(value: bytes) -> bytes:
    parts = [part.tobytes() for part in unpack_entries(value)]
    assert [part.tobytes() for part in join_entries([value, value])] == [part * 2 for part in parts]
    return b"".join(parts)


def sealed(
    unpack: Callable[[bytes], Found], pack: Callable[[Found], bytes] = lambda _: b""
) -> Callable[[bytes], bytes]:
    """The value as a payload: sealed by another than chunkd, it may be any of the errors that `Store.sealed` names."""

    def check(value: bytes) -> bytes:
        try:
            unpack(bytes(records.SEAL_BYTES) + value)
        except records.Damaged:
            pass
        else:
            raise AssertionError("a wrong seal was taken")
        try:
            found = unpack(records.seal(value))
        except (ValueError, KeyError, TypeError):
            return value
        assert not (again := pack(found)) or unpack(again) == found
        return value

    return check


CHECKS = (
    digest, place, blob, held, varints, recipe, entries,
    sealed(records.unpack_head, records.pack_head), sealed(records.unpack_rules, records.pack_rules),
    sealed(records.unpack_caches, records.pack_caches), sealed(records.unpack_format),
    sealed(records.unpack_totals, records.pack_totals),
)  # fmt: skip


def check(data: bytes) -> None:
    """The first byte says which decoder."""
    if not data:
        return
    value = data[1:]
    with contextlib.suppress(records.Damaged):
        assert CHECKS[data[0] % len(CHECKS)](value) == value


def seeds() -> list[bytes]:
    """One record of each kind, as chunkd writes them."""
    numbers = np.array([*range(170, 400), 5, 7, *range(170, 400), (1 << 40) - 1], np.int64)
    written = [
        records.digest_key(SHA256),
        records.place_key(Place(7, "blobs/sha256/\udcff")),
        records.pack_blob(Blob(SHA256, "layer", 1 << 30, 1 << 32, 99, "zstd")),
        records.pack_held(records.Held(Digest("sha512", "cd" * 64), "bad", FileMark(1, 2, 3, 4))),
        blocks.pack_varints(numbers.view(np.uint64)),
        bytes(4) + blocks.pack_recipe(numbers),
        bytes(range(3 * ENTRY_BYTES)),
        records.pack_head(records.Head())[records.SEAL_BYTES :],
        records.pack_rules(records.Rules())[records.SEAL_BYTES :],
        records.pack_caches({7: Cache("/cache", 1, 2, ("flat",), "xz")})[records.SEAL_BYTES :],
        records.pack_format()[records.SEAL_BYTES :],
        records.pack_totals(Totals(layers=1, measured_xx=1 << 70))[records.SEAL_BYTES :],
    ]
    return [bytes([kind]) + value for kind, value in enumerate(written)]


if __name__ == "__main__":
    fuzzing.run(sys.argv, check, seeds())
