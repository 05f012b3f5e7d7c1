"""What is told of blobs that are no layers. The golden beginnings are what each format's own tool wrote."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blobs
from chunkd.model import METADATA_ALONE, Blob
from chunkd.worker import magic

# Of a superblock as mkfs wrote it: what lies at 1024.
EXT2 = bytes.fromhex("00100000 00400000 33030000 7d360000 f50f0000 01000000 00000000") + bytes(28) + b"\x53\xef\1\0"
EROFS = bytes.fromhex("e2e1f5e0 6b1a0b2d 03000000 0c002400")
RAFS_V6 = bytes.fromhex("e2e1f5e0 00000000 00000040 0c000000")
PARTITIONS = b"\x80" + bytes(15) + bytes(48) + b"\x55\xaa"


def at(offset: int, data: bytes, *, size: int = 100_000) -> bytes:
    return (bytes(offset) + data).ljust(size, b"\0")


HEADS = {
    "Nydus RAFS v6 bootstrap": [at(1024, RAFS_V6)],
    "Nydus RAFS v5 bootstrap": [struct.pack("<4I", 0x52414653, 0x500, 0x2000, 0x100000) + bytes(8000)],
    "EROFS image": [at(1024, EROFS), at(1024, b"\xe2\xe1\xf5\xe0", size=1028)],
    "ext2/3/4 image": [at(1024, EXT2)],
    "btrfs image": [at(65_536, bytes(64) + b"_BHRfS_M")],
    "XFS image": [bytes.fromhex("5846534200001000 0000000000014000") + bytes(496)],
    "squashfs image": [bytes.fromhex("6873717303000000b38a0a6b00000200") + bytes(80)],
    "ISO 9660 image": [at(32_768, b"\1CD001\1"), blobs.noise(32_768) + b"\1CD001\1"],
    "SIF image": [b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\0"],
    "disk image": [at(446, PARTITIONS), blobs.noise(446) + PARTITIONS, at(512, b"EFI PART\0\0\1\0")],
    "qcow2 image": [b"QFI\xfb\0\0\0\3" + bytes(96)],
    "LUKS volume": [b"LUKS\xba\xbe\0\2" + bytes(4000)],
    "zstd and then other data, as in Nydus blobs": [
        blobs.zst(b"a") + b"other",
        blobs.skippable(b"first") * 2 + blobs.zst(b"a"),
    ],
    "lz4": [
        bytes.fromhex("04224d186440a7d70400003f642f0001"),
        bytes.fromhex("02214c18d70400003f642f0001004e71"),
        blobs.skippable(b"first", 15) + b"\x04\x22\x4d\x18",
    ],
    "xz": [bytes.fromhex("fd377a585a000004e6d6b44602002101")],
    "lzma": [bytes.fromhex("5d00008000ffffffffffffffff00320b"), bytes.fromhex("5d00000001b80b00000000000000320b")],
    "bzip2": [bytes.fromhex("425a683931415926535983d67d940003"), bytes.fromhex("425a683917724538509000000000")],
    "zip": [bytes.fromhex("504b03041400000000005d407c5db040"), b"PK\5\6" + bytes(18)],
    "cpio": [b"070701000A1B2C"],
    "ELF": [b"\x7fELF\2\1\1" + bytes(57)],
    "WebAssembly": [b"\0asm\1\0\0\0"],
    "GGUF model": [b"GGUF\3\0\0\0"],
    "JSON": [b"{}", b' [1, 2, "\xc3\xa9"]', b'{"a":' + b" " * 200_000, b'[{"a":1}]', b"[]"],
    "text": [b"#!/bin/sh\n", b"a", b"x" * 200_000],
    "empty": [b""],
    "NUL bytes first": [bytes(1), bytes(1023), bytes(100_000)],
    magic.UNKNOWN: [b"\x1f\x8b\x07" + bytes(20), b"\xff" * 2000, b'{"a": \0}', blobs.skippable(b"only")],
}


@pytest.mark.parametrize("words", HEADS)
def test_what_formats_begin_with(words: str) -> None:
    for data in HEADS[words]:
        assert magic.describe(data[: magic.HEAD_BYTES]) == words


def test_every_kind_has_an_example() -> None:
    told = re.findall(r'_Kind\(\s*"([^"]+)"', Path(magic.__file__).read_text())
    assert len(told) > 20
    assert set(told) <= HEADS.keys()


def test_noise_is_taken_for_nothing() -> None:
    """No pattern may be so short that a cache of encrypted layers has a bit of everything."""
    draw = random.Random(1)
    for _ in range(300):
        assert magic.describe(draw.randbytes(magic.HEAD_BYTES)) == magic.UNKNOWN
    # The two bytes alone of ext2 and of a boot sector say nothing.
    noise = b"\xa5" * 2000
    assert magic.describe(noise[:1080] + b"\x53\xef" + noise) == magic.UNKNOWN
    assert magic.describe(noise[:510] + b"\x55\xaa" + noise) == magic.UNKNOWN


@given(st.lists(st.sampled_from([head for heads in HEADS.values() for head in heads]), max_size=3), st.binary())
def test_whatever_it_is_it_is_told_in_a_few_printable_words(heads: list[bytes], tail: bytes) -> None:
    words = magic.describe((b"".join(heads) + tail)[: magic.HEAD_BYTES])
    assert words.isascii()
    assert words.isprintable()
    assert 0 < len(words) < 50


@pytest.mark.parametrize("slow", [b" ", b"[", b'{"', b"{ ", blobs.skippable(b""), b'{"schemaVersion', b"BZh", b"\0"])
def test_no_pattern_looks_twice_at_the_same_bytes(slow: bytes) -> None:
    """As fast on what is made to cost much: some milliseconds, and with backtracking it would be minutes."""
    for _ in range(20):
        magic.describe((slow * magic.HEAD_BYTES)[: magic.HEAD_BYTES])


def blob(state: str, reason: str = "", stored_bytes: int = 300_000) -> Blob:
    return Blob(blobs.digest_of(b""), state, stored_bytes, reason=reason)


SMALL = blob("other", "xz", 100)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([], ""),
        ([blob("layer")], ""),
        ([blob("other", "xz"), blob("layer"), blob("other", "xz")], ""),
        ([SMALL], METADATA_ALONE),
        ([blob("other", "JSON"), blob("other", "config"), blob("other")], METADATA_ALONE),
        ([blob("other", "xz"), blob("other", "JSON"), blob("other", "EROFS image"), blob("other", "xz")],
         "EROFS image, xz"),
    ],
)  # fmt: skip
def test_what_a_cache_without_a_layer_holds_instead(held: list[Blob], words: str) -> None:
    assert magic.instead_of_layers(held) == words


def test_the_kinds_that_are_told_of_a_cache_are_bounded() -> None:
    """What a worker says is whatever a worker says that was taken over."""
    held = [blob("other", f"kind {number}") for number in range(1000)]
    assert magic.instead_of_layers(held).count("kind") == 8
