"""Where each rule of another product cuts, in plain Python, from its definition: it shares no code with chunkd. Slow
and short on purpose. And the input of the vectors in tests/vectors/rules.json, which tests/vectors/make_rules.py makes.

Each rule is a function of a file's bytes that returns the lengths of its chunks; the one with holes gives these as
negative.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

from blake3 import blake3

WORD32, WORD64 = 1 << 32, 1 << 64


# --- input


def noise(seed: int, size: int) -> bytes:
    return hashlib.shake_128(b"chunkd %d" % seed).digest(size)


def mixed(seed: int, scale: int) -> bytes:
    """Noise, runs of one byte, of zeros around `scale`, periods, and text."""
    pieces = [
        noise(seed, 40 * scale),
        bytes(3 * scale),
        b"".join(noise(seed + n, n % 90 + 1) + bytes(scale + n - 3) for n in range(7)),
        b"\xa5" * (5 * scale),
        noise(seed + 100, 300) * (scale // 20),
        b"".join(b"the %dth line of a text\n" % n for n in range(2 * scale)),
        noise(seed + 101, 50 * scale),
        bytes(2 * scale),
    ]
    return b"".join(pieces)


def tar(seed: int, files: int) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(files):
            data = noise(seed + number, number * 977 % 60_000)
            data += b"".join(b"%d %d\n" % (line, line * number) for line in range(number % 90))
            entry = tarfile.TarInfo(f"usr/share/{number % 7}/file{number}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def xet_hits(padding: int) -> bytes:
    """The pattern of xet-core's own test, repeated: one cut each, `padding` zeros apart."""
    pattern = bytes.fromhex(
        "9a342a229f4b7ee046ec0cc44fecb27c7f3263b22cb0ae7efaebcdaefc7a230a1465d645c10873699ee4786f88a2c6fb"
        "d3b7fdfca4933f10baa27517aa24cdbbae4cd2aed3af0cad913b0246deb59fe3b69cbd33e26a1832b79d8c0a0817d446"
        "0aea1721dbfe27ec4631bf7409730f651a9fa5dc0faa387d5ca35eeb26283151"
    )
    data = pattern + bytes(padding)
    return (data * (65536 // len(data) + 1))[:65536]


def splitmix64(seed: int, size: int) -> bytes:
    """As xet-core's tests make their data."""
    words = []
    for _ in range((size + 7) // 8):
        seed = (seed + 0x9E3779B97F4A7C15) % WORD64
        word = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % WORD64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD64
        words.append((word ^ word >> 31).to_bytes(8, "little"))
    return b"".join(words)[:size]


INPUTS: dict[str, Callable[..., bytes]] = {
    "noise": noise,
    "mixed": mixed,
    "tar": tar,
    "xet_hits": xet_hits,
    "splitmix64": splitmix64,
    "byte": lambda byte, size: bytes([byte]) * size,
}


def made(words: Sequence[Any]) -> bytes:
    """The input of a vector: the name of its maker, and the numbers for it."""
    return INPUTS[words[0]](*words[1:])


# --- the rules


def rotated(value: int, bits: int) -> int:
    bits %= 32
    return (value << bits | value >> (32 - bits)) % WORD32


def buz(table: Sequence[int], data: bytes) -> int:
    found = 0
    for distance, byte in enumerate(reversed(data)):
        found ^= rotated(table[byte], distance)
    return found


def behind(fires: Callable[[bytes], bool], window: int, least: int, most: int, data: bytes) -> list[int]:
    """Cuts after the first byte from the least length on where the hash of the last `window` bytes fires."""
    lengths, begin = [], 0
    for end in range(1, len(data) + 1):
        length = end - begin
        if (length >= least and fires(data[end - window : end])) or length == most:
            lengths.append(length)
            begin = end
    return lengths + [len(data) - begin] * (begin < len(data))


def buzhash(table: Sequence[int], window: int, least: int, most: int, divisor: int, data: bytes) -> list[int]:
    return behind(lambda last: buz(table, last) % divisor == divisor - 1, window, least, most, data)


def gear64(table: Sequence[int], mask: int, least: int, most: int, data: bytes) -> list[int]:
    def fires(last: bytes) -> bool:
        value = 0
        for byte in last:
            value = 2 * value + table[byte]
        return value & mask == 0

    return behind(fires, 64, least, most, data)


def rabin(polynomial: int, mask: int, least: int, most: int, data: bytes) -> list[int]:
    def fires(last: bytes) -> bool:
        value = int.from_bytes(last, "big")
        while value.bit_length() >= polynomial.bit_length():
            value ^= polynomial << value.bit_length() - polynomial.bit_length()
        return value & mask == 0

    return behind(fires, 64, least, most, data)


def buzhash_ahead(table: Sequence[int], window: int, least: int, most: int, mask: int, data: bytes) -> list[int]:
    """Cuts before the first bytes that fire, which and one more are within the most, and the data."""
    lengths = []
    while data:
        room = min(most, len(data)) - window - 1
        fired = (at for at in range(least, room + 1) if buz(table, data[at : at + window]) & mask == 0)
        length = next(fired, min(most, len(data)))
        lengths.append(length)
        data = data[length:]
    return lengths


def fastcdc(table: Sequence[int], masks: tuple[int, int], least: int, mean: int, most: int, data: bytes) -> list[int]:
    """As the crate's `cut`: two bytes a turn, and never half a turn."""

    def cut(data: bytes) -> int:
        value = 0
        for at in range(least, len(data) // 2 * 2):
            value = (2 * value + table[data[at]]) % WORD64
            if value & masks[at >= mean] == 0:
                return at
        return len(data)

    lengths = []
    while data:
        lengths.append(cut(data[:most]))
        data = data[lengths[-1] :]
    return lengths


def rolling_sum(bits: int, threshold: int, data: bytes) -> list[int]:
    """The sum of bup as two sums over a ring, as it was published; holes are negative."""
    lengths: list[int] = []
    ring, first, second, length = [0] * 64, 64 * 31, 64 * 63 * 31, 0
    position = 0
    for is_zero, run in itertools.groupby(data, lambda byte: byte == 0):
        found = bytes(run)
        is_hole = is_zero and len(found) >= threshold
        if is_hole and length:
            lengths.append(length)
            length = 0
        for byte in found:
            dropped, ring[position % 64] = ring[position % 64], byte
            position += 1
            first += byte - dropped
            second += first - 64 * (dropped + 31)
            length += 1
            if not is_hole and second % (1 << bits) == (1 << bits) - 1:
                lengths.append(length)
                length = 0
        if is_hole:
            lengths.append(-length)
            length = 0
    lengths += [length] * (length > 0)
    return [len(data)] if len(lengths) == 1 else lengths


# --- the hash that xet names a file by

XET_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
XET_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")


def xet_file_hash(chunks: Sequence[bytes]) -> str:
    """A tree over the chunks' hashes and lengths, whose nodes have 2 to 9 children: one ends where its hash says so."""

    def text(value: bytes) -> str:
        return "".join(value[at : at + 8][::-1].hex() for at in range(0, 32, 8))

    level = [(blake3(chunk, key=XET_CHUNK_KEY).digest(), len(chunk)) for chunk in chunks]
    while len(level) > 1:
        above = []
        while level:
            ends = (at + 1 for at in range(2, min(9, len(level))) if level[at][0][24] % 4 == 0)
            children = level[: next(ends, 9)]
            lines = "".join(f"{text(name)} : {length}\n" for name, length in children)
            above.append((blake3(lines.encode(), key=XET_NODE_KEY).digest(), sum(length for _, length in children)))
            level = level[len(children) :]
        level = above
    return text(blake3(level[0][0], key=bytes(32)).digest() if level else bytes(32))
