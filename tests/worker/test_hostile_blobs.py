"""Blobs made to mislead or to cost much: each has the result stated here, however it is read."""

from __future__ import annotations

import io
import random
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip

import blobs
import fuzz_bolt
import fuzz_decode
import fuzz_manifest
import fuzz_records
import oracle
import working
from blobs import gz, skippable, zst
from chunkd.model import Finding
from chunkd.worker import magic
from counts import counted

TEXT = blobs.text(2000)
MIB = 1 << 20
# The byte of a zstd frame's header that asks for a window of so much.
MIB_2, MIB_256, GIB_2 = 0x58, 0x90, 0xA8


def examined(folder: Path, stored: bytes) -> Finding:
    digest, path = blobs.write_blob(folder, stored)
    return working.examined(digest, path)


def member(data: bytes, *, flags: int = 0, fields: bytes = b"", header_crc: bool = False) -> bytes:
    """A gzip member with these fields in its header."""
    head = b"\x1f\x8b\x08" + bytes([flags | 2 * header_crc]) + bytes(4) + b"\0\xff" + fields
    if header_crc:
        head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    return head + gz(data)[10:]


def trailer(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


def frame(blocks: bytes, window: int = MIB_2, size: int | None = None) -> bytes:
    """A zstd frame without a checksum. With its size (256 or more) told, it may be decoded at once."""
    told = b"" if size is None else (size - 256).to_bytes(2, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([0x40 if told else 0, window]) + told + blocks + b"\1\0\0"


def raw_block(data: bytes) -> bytes:
    return (len(data) << 3).to_bytes(3, "little") + data


# A deflate stream whose code of distances has gaps, and what it holds. zlib refuses it; ISA-L takes it, as nothing of
# it falls into a gap.
GAPS = bytes.fromhex("edc1010d00301003a159e5fc8b781f4b0b6f666666be27" + "499224" * 12 + "4907")
OF_GAPS = b"aa" + b"\0a" * 1016 + b"ab" * 100
# What a header, with a byte behind it, must fit into.
LONG = igzip.READ_BUFFER_SIZE

LAYERS = {
    "a name, a comment, an extra field and a CRC in the header": (
        member(TEXT, flags=4 | 8 | 16, fields=b"\4\0abcd" + b"name\0" + b"comment\0", header_crc=True), TEXT,
    ),
    "a name as long as may be": (member(TEXT, flags=8, fields=b"n" * (LONG - 12) + b"\0"), TEXT),
    "an extra field as long as may be": (member(TEXT, flags=4, fields=b"\xff\xff" + bytes(65535)), TEXT),
    "flags that are reserved": (member(TEXT, flags=0xE0), TEXT),
    "the first of its members is empty": (gz(b"") + gz(TEXT), TEXT),
    "NULs between members": (gz(TEXT) + bytes(600_000) + gz(TEXT), TEXT * 2),
    "a code with gaps": (gz(b"")[:10] + GAPS + trailer(OF_GAPS), OF_GAPS),
    "stored blocks of no bytes": (gz(b"")[:10] + b"\0\0\0\xff\xff" * 9000 + gz(TEXT)[10:], TEXT),
    "10,000 members of one byte": (gz(b"a") * 10_000, b"a" * 10_000),
    "1,000 frames of one byte": (zst(b"a") * 1000, b"a" * 1000),
    "skippable frames of every kind": (b"".join(skippable(bytes(n), n) for n in range(16)) + zst(TEXT), TEXT),
    "a skippable frame of 2 MB": (skippable(bytes(2_000_000)) + zst(TEXT), TEXT),
    "empty blocks": (frame(b"\0\0\0" * 9000 + raw_block(TEXT)), TEXT),
    "a frame decoded at once, of any window": (zst(TEXT) + frame(raw_block(TEXT), GIB_2, len(TEXT)), TEXT * 2),
}  # fmt: skip

UNDECODABLE = {
    "a name longer than may be": (
        member(TEXT, flags=8, fields=b"n" * LONG + b"\0"), "a member's header does not fit into the decoder's buffer",
    ),
    "a name without an end": (
        member(TEXT, flags=8)[:10] + b"n" * 2_000_000, "a member's header does not fit into the decoder's buffer",
    ),
    "a short name without an end": (
        member(TEXT, flags=8)[:10] + b"n" * 100, "truncated, or a few trailing bytes after the last member",
    ),
    "a later member's name is too long": (
        gz(TEXT) + member(TEXT, flags=8, fields=b"n" * LONG + b"\0"),
        "a member's header does not fit into the decoder's buffer",
    ),
    "a wrong CRC of the header": (
        member(TEXT, flags=8, fields=b"name\0", header_crc=True).replace(b"name", b"Name"),
        "CRC of a header does not match",
    ),
    "a wrong CRC in the last of many members": (
        gz(TEXT) * 50 + gz(TEXT)[:-5] + b"!" + gz(TEXT)[-4:], "CRC does not match",
    ),
    "a wrong length in the first of many": (gz(TEXT)[:-1] + b"!" + gz(TEXT) * 50, "length does not match"),
    "a distance before the beginning": (gz(b"")[:10] + b"\3\2\0" + bytes(20), "Invalid lookback distance"),
    "a reserved kind of block": (gz(b"")[:10] + b"\x07" + bytes(20), "Error -1 Invalid deflate block found"),
    "a skippable frame that claims 4 GiB": (skippable(b"")[:4] + b"\xff" * 4 + bytes(1000), "truncated"),
    "a window over the limit": (
        zst(TEXT) + frame(raw_block(bytes(100_000)), MIB_256), f"max_zstd_window_bytes = {128 * MIB}",
    ),
    "a block over the limit": (frame((200_000 << 3).to_bytes(3, "little") + bytes(200_000)), "corruption detected"),
    "a dictionary that nobody has": (zst(TEXT)[:4] + b"\x01\x58\x07" + zst(TEXT)[6:], "Dictionary mismatch"),
    "a damaged frame behind a whole one": (zst(TEXT) + zst(TEXT)[:20] + bytes(50), ""),
    "a frame without its end behind a whole one": (zst(TEXT) * 2 + zst(TEXT)[:-1], "truncated"),
    "the begin of a frame's magic behind a whole one": (zst(TEXT) + zst(TEXT)[:1], "truncated"),
    "a zstd behind a gzip": (gz(TEXT) + zst(TEXT), "trailing bytes after the last member"),
    "a tar behind a gzip": (gz(TEXT) + blobs.tar({"a": b"a"}), "trailing bytes after the last member"),
}  # fmt: skip


OTHERS = {
    "a gzip behind a zstd": zst(TEXT) + gz(TEXT),
    "a tar behind a zstd": zst(TEXT) + blobs.tar({"a": b"a"}),
    "NULs behind a zstd": zst(TEXT) + bytes(600_000),
    "a Nydus blob: a chunk of zstd, and chunks that are stored": zst(TEXT) + blobs.noise(700_000),
    "lz4 behind a skippable frame": skippable(b"s") + b"\x04\x22\x4d\x18" + blobs.noise(100),
    "noise behind skippable frames": skippable(bytes(100_000)) * 2 + blobs.noise(100),
}
EMPTY = {
    "gzip of no bytes": gz(b"") * 3,
    "zstd of no bytes": zst(b"") + skippable(b"only"),
    "empty": b"",
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("relayed", [True, False])
def test_whole_frames_and_then_another_format_are_no_layer(what: str, relayed: bool, tmp_path: Path) -> None:
    digest, path = blobs.write_blob(tmp_path, OTHERS[what])
    found = working.examined(digest, path, relayed=relayed)
    assert (found.kind, found.codec, found.uncompressed_bytes, len(found.recipe)) == ("other", "", 0, 0)
    assert found.reason == magic.describe(OTHERS[what][: magic.HEAD_BYTES])


@pytest.mark.parametrize("what", EMPTY)
def test_streams_of_no_bytes_are_named_and_no_layers(what: str, tmp_path: Path) -> None:
    found = examined(tmp_path, EMPTY[what])
    assert (found.kind, found.reason) == ("other", what)


@pytest.mark.parametrize("what", LAYERS)
def test_odd_streams_that_are_whole_are_layers(what: str, tmp_path: Path) -> None:
    stored, data = LAYERS[what]
    found = examined(tmp_path, stored)
    assert (found.kind, found.reason, found.uncompressed_bytes) == ("layer", "", len(data))
    assert found.recipe == oracle.recipe(data)


@pytest.mark.parametrize("what", UNDECODABLE)
def test_streams_that_are_not_whole_have_their_reason(what: str, tmp_path: Path) -> None:
    stored, reason = UNDECODABLE[what]
    found = examined(tmp_path, stored)
    assert (found.kind, found.recipe.hashes) == ("undecodable", b"")
    assert reason in found.reason


# --- however it is read ---------------------------------------------------------------------------------------------

PIECES = [
    gz(TEXT), gz(b""), bytes(9000), gz(bytes(600_000)), member(TEXT, flags=8, fields=b"n" * 300_000 + b"\0"),
    zst(TEXT), zst(b""), skippable(bytes(9000)), zst(blobs.noise(9000)), zst(bytes(600_000)),
    frame(raw_block(TEXT), GIB_2, len(TEXT)), frame(raw_block(TEXT), MIB_256), b"x", blobs.tar({"a": TEXT}),
]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=40).map(b"".join),
    st.integers(0, 3000),
    st.sampled_from([1, 100, 4093, 8192, 100_000]),
)
@settings(max_examples=counted(60))
def test_the_result_does_not_depend_on_how_it_is_read(stored: bytes, cut: int, most: int) -> None:
    """A window over the limit, too, is no matter of luck: whether a frame is decoded at once is its place's affair."""
    stored = stored[: len(stored) - cut]
    if most == 1:
        stored = stored[:20_000]
    fuzz_decode.outcome_however_read(stored, most)


# --- tars -----------------------------------------------------------------------------------------------------------


def tar_of(kind: int, change: Callable[[tarfile.TarInfo], object] = lambda _: None, data: bytes = TEXT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        info = tarfile.TarInfo("usr/lib/some")
        info.size = len(data)
        change(info)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def with_field(tar: bytes, at: int, value: bytes) -> bytes:
    """The first header with other bytes in it, and a checksum that holds."""
    header = bytearray(tar[:512])
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar[512:]


PLAIN = tar_of(tarfile.USTAR_FORMAT)
TARS = {
    "ustar": PLAIN,
    "old, without a magic": with_field(PLAIN, 257, bytes(255)),
    "GNU, with a long name first": tar_of(tarfile.GNU_FORMAT, lambda info: setattr(info, "name", "n" * 300)),
    "pax, with a long name first": tar_of(tarfile.PAX_FORMAT, lambda info: setattr(info, "name", "é" * 300)),
    "a global header first": with_field(PLAIN, 156, b"g"),
    "a device first": tar_of(tarfile.USTAR_FORMAT, lambda info: setattr(info, "type", tarfile.BLKTYPE), b""),
    "a kind that nobody knows": with_field(PLAIN, 156, b"\xff"),
    "GNU's sparse file": with_field(PLAIN, 156, b"S"),
    "a size in base 256": with_field(PLAIN, 124, b"\x80" + bytes(9) + b"\x07\xd0"),
    "a negative size": with_field(PLAIN, 124, b"\xff" * 12),
    "a size of 8 GiB that is not there": with_field(PLAIN, 124, b"77777777777\0"),
    "a size that is no number": with_field(PLAIN, 124, b"a size......"),
    "a name of no text": with_field(PLAIN, 0, bytes(range(128, 228))),
    "a name that leads out": with_field(PLAIN, 0, b"../../../etc/passwd\0"),
    "no name": with_field(PLAIN, 0, bytes(100)),
    "cut within a file": PLAIN[:1000],
    "cut behind the first header": PLAIN[:512],
    "no end": PLAIN[: 512 + 2048],
    "garbage behind its end": PLAIN + b"garbage",
    "two, one behind the other": PLAIN * 2,
    "a header of noise behind the first file": PLAIN[:2560] + blobs.noise(512) + PLAIN,
}
NO_TARS = {
    "a checksum that is one off": PLAIN[:148] + b"%06o\0 " % (int(PLAIN[148:154], 8) + 1) + PLAIN[156:],
    "a block of NUL first": bytes(512) + PLAIN,
    "many blocks of NUL first": bytes(1024) + PLAIN,
    "more NULs than the head first": bytes(2_000_000) + PLAIN,
    "cut within the first header": PLAIN[:511],
    "a checksum in base 256": PLAIN[:148] + b"\x80" + int(PLAIN[148:154], 8).to_bytes(7, "big") + PLAIN[156:],
    "a gzip's magic before it": b"\x1f\x8b\x07" + PLAIN,
}


@pytest.mark.parametrize("what", TARS)
def test_a_tar_is_known_by_its_first_header_alone_and_counts_whole(what: str, tmp_path: Path) -> None:
    """A layer's bytes are cut and never unpacked, so that no header further in can mislead."""
    for stored in (TARS[what], gz(TARS[what]), zst(TARS[what])):
        found = examined(tmp_path, stored)
        assert (found.kind, found.uncompressed_bytes) == ("layer", len(TARS[what]))
        assert found.recipe == oracle.recipe(TARS[what])


@pytest.mark.parametrize("what", NO_TARS)
def test_what_has_no_header_at_its_start_is_no_tar_and_a_layer_only_where_it_is_compressed(
    what: str, tmp_path: Path
) -> None:
    assert examined(tmp_path, NO_TARS[what]).kind == "other"
    assert examined(tmp_path, gz(NO_TARS[what])).recipe == oracle.recipe(NO_TARS[what])


# --- a little of what `make torture` does at length -----------------------------------------------------------------


def changed(seeds: list[bytes], draw: random.Random) -> bytes:
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randrange(4)):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(4)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at : at + draw.randrange(9)]
        elif kind == 2:
            data[at:at] = draw.choice(seeds)[: draw.randrange(40)]
        else:
            data[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in data[at : at + 1])
    return bytes(data)


@pytest.mark.parametrize(
    "target", [fuzz_bolt, fuzz_decode, fuzz_manifest, fuzz_records], ids=["bolt", "decode", "manifest", "records"]
)
def test_the_fuzz_targets_find_nothing_near_their_seeds(target: Any) -> None:
    seeds = [seed for seed in target.seeds() if len(seed) < 20_000]
    draw = random.Random(1)
    for seed in target.seeds():
        target.check(seed)
    for _ in range(4000):
        target.check(changed(seeds, draw))
