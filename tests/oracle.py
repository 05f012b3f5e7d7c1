"""What chunkd must say of some bytes, in plain Python, from the contract's words: it shares no code with chunkd
beside `Recipe`, the value that is compared.

Slow and short on purpose. Where chunkd and the oracle differ, tests/vectors decides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from chunkd.model import Recipe

GAMMA = 0x9E3779B97F4A7C15
WORD = 1 << 64

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "gear_vectors.json").read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in VECTORS["cases"]}


def splitmix64(state: int) -> Iterator[int]:
    while True:
        state = (state + GAMMA) % WORD
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
        yield z ^ z >> 31


def gear(seed: int = GAMMA) -> list[int]:
    return list(itertools.islice(splitmix64(seed), 256))


def lengths(data: bytes, min_bytes: int = 2048, mask_bits: int = 14, max_bytes: int = 65536) -> list[int]:
    """The chunks' lengths, with the last one, which ends with the data."""
    return list(_lengths(bytes(data), min_bytes, mask_bits, max_bytes))


@lru_cache(maxsize=256)  # several tests ask for those of the same bytes
def _lengths(data: bytes, min_bytes: int, mask_bits: int, max_bytes: int) -> list[int]:
    table, mask = gear(), (1 << mask_bits) - 1
    found, h, length = [], 0, 0
    for byte in data:
        h = (2 * h + table[byte]) % WORD
        length += 1
        if (length >= min_bytes and h & mask == 0) or length == max_bytes:
            found.append(length)
            h = length = 0
    return found + [length] * (length > 0)


def chunks(data: bytes) -> list[bytes]:
    ends = list(itertools.accumulate(lengths(data), initial=0))
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


def chunk_hash(chunk: bytes) -> bytes:
    return blake3(chunk).digest()[:16]


def recompressed(chunk: bytes, level: int = 3) -> bytes:
    """What a store keeps of it: a zstd frame of its own."""
    return zstd.compress(chunk, level)


def recompressed_bytes(chunk: bytes, level: int = 3) -> int:
    return len(recompressed(chunk, level))


def is_picked(name: bytes, one_in: int = 16) -> bool:
    """Whether the chunk of that hash is one of those that are recompressed."""
    return (name[14] + 256 * name[15]) * one_in < 65536


def packed(numbers: Iterable[int]) -> bytes:
    """As little-endian u32, as a recipe's lengths are and as the vectors hash them."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)


def recipe(data: bytes) -> Recipe:
    found = chunks(data)
    picked = [chunk for chunk in found if is_picked(chunk_hash(chunk))]
    return Recipe(b"".join(map(chunk_hash, found)), packed(map(len, found)), packed(map(recompressed_bytes, picked)))


def figures(layers: Iterable[bytes], stored_bytes: Iterable[int]) -> dict[str, int]:
    """The figures of layers that decompress to `layers` and are stored as files of `stored_bytes`, in that order."""
    layers = list(layers)
    found = [chunk for layer in layers for chunk in chunks(layer)]
    unique = {chunk_hash(chunk): len(chunk) for chunk in found}
    return {
        "layers": len(layers),
        "layer_stored_bytes": sum(stored_bytes),
        "uncompressed_bytes": sum(map(len, layers)),
        "chunks": len(found),
        "unique_chunks": len(unique),
        "unique_bytes": sum(unique.values()),
    }


def _noise(seed: int, size: int) -> bytes:
    words = itertools.islice(splitmix64(seed), (size + 7) // 8)
    return b"".join(word.to_bytes(8, "little") for word in words)[:size]


def _piece(words: str) -> bytes:
    """`byte HH`, or `CASE bytes A..B` with B left out for the end."""
    if words.startswith("byte "):
        return bytes.fromhex(words.removeprefix("byte "))
    name, begin, end = re.fullmatch(r"(\S+) bytes (\d+)\.\.(\d*)", words).groups()  # type: ignore[union-attr]
    return case_data(name)[int(begin) : int(end) if end else None]


def _make(make: dict[str, Any]) -> bytes:
    if "splitmix64" in make:
        return _noise(make["splitmix64"]["seed"], make["splitmix64"]["bytes"])
    if "concat" in make:
        return b"".join(map(_piece, make["concat"]))
    if "repeat" in make:
        repeat = make["repeat"]
        unit = bytes.fromhex(repeat["hex"]) if "hex" in repeat else _make(repeat)
        size: int = repeat["bytes"]
        return (unit * (size // len(unit) + 1))[:size]
    data = bytearray(make["zeros"])
    patch = bytes.fromhex(make["patch"]["hex"])
    for end in make["patch"]["ending_at"]:
        data[end - len(patch) : end] = patch
    return bytes(data)


def sample(measured: Sequence[tuple[int, int, int]]) -> dict[str, int]:
    """The sums of the totals over measured chunks: each its length, its recompressed length and its copies."""
    return {
        "measured_chunks": len(measured),
        "measured_bytes": sum(x for x, _, _ in measured),
        "measured_recompressed_bytes": sum(y for _, y, _ in measured),
        "measured_xx": sum(x * x for x, _, _ in measured),
        "measured_xy": sum(x * y for x, y, _ in measured),
        "measured_yy": sum(y * y for _, y, _ in measured),
        "measured_copies_bytes": sum(x * times for x, _, times in measured),
        "measured_copies_recompressed_bytes": sum(y * times for _, y, times in measured),
    }


@cache
def case_data(name: str) -> bytes:
    """The bytes of one case of the vectors, proved by their SHA-256."""
    data = _make(CASES[name]["make"])
    assert hashlib.sha256(data).hexdigest() == CASES[name]["sha256"], name
    return data
