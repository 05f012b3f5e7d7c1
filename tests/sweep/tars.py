"""Tars for the tests, block by block where Python's tarfile would refuse to make them, and how the reader saw them."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from chunkd.sweep.tar_stream import TarEntry, TarStream

BLOCK = 512
END = bytes(2 * BLOCK)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def header(
    name: bytes = b"a", size: int | bytes = 0, kind: bytes = b"0", *, magic: bytes = b"ustar\x0000",
    prefix: bytes = b"", more: Callable[[bytearray], object] = lambda _: None, signed: bool = False,
) -> bytes:  # fmt: skip
    """A header block with a right checksum."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[136:148] = b"0000644\0", octal(0)
    block[124:136] = octal(size) if isinstance(size, int) else size
    block[156:157], block[257:265], block[345 : 345 + len(prefix)] = kind, magic, prefix
    more(block)
    block[148:156] = b" " * 8
    summed = sum(byte - 256 * (signed and byte > 127) for byte in block)
    block[148:156] = b"%06o\0 " % summed
    return bytes(block)


def entry(name: bytes, data: bytes = b"", kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A PAX record, with its own length in front."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size += 1
    return b"%d" % size + rest


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    return entry(b"PaxHeaders/a", b"".join(record(*one) for one in records.items()), kind)


class Seen(NamedTuple):
    begin: int
    kind: str
    path: bytes
    payload_bytes: int
    payload: bytes
    rest_bytes: int  # headers and padding


class Outcome(NamedTuple):
    entries: list[Seen]
    outside_bytes: int
    damaged: str


def cuts(data: bytes, buffer_bytes: int | random.Random) -> Iterator[memoryview]:
    at = 0
    while at < len(data):
        size = buffer_bytes if isinstance(buffer_bytes, int) else buffer_bytes.choice((1, 7, 511, 512, 513, 4000))
        yield memoryview(data)[at : at + size]
        at += size


def seen(data: bytes, buffer_bytes: int | random.Random = 1 << 18) -> Outcome:
    """What the reader makes of a tar, however it is cut, with all that a piece must hold checked."""
    stream = TarStream()
    payloads: dict[TarEntry, list[bytes]] = {}
    rests: dict[TarEntry, int] = {}
    ended: set[TarEntry] = set()
    outside = 0
    for buffer in cuts(data, buffer_bytes):
        at = 0
        for piece in stream.feed(buffer):
            assert (piece.begin, piece.end > piece.begin) == (at, True), "a gap, or an empty piece"
            at = piece.end
            if piece.entry is None:
                assert not piece.payload
                outside += piece.end - piece.begin
            elif piece.payload:
                assert piece.entry not in ended
                payloads.setdefault(piece.entry, []).append(bytes(buffer[piece.begin : piece.end]))
            else:
                rests[piece.entry] = rests.get(piece.entry, 0) + piece.end - piece.begin
            if piece.ends:
                assert piece.payload
                assert piece.entry is not None
                ended.add(piece.entry)
        assert at == len(buffer)
    stream.finish()
    found = []
    for one, rest in rests.items():
        payload = b"".join(payloads.get(one, []))
        if one.kind:
            found.append(Seen(one.begin, one.kind, one.path, one.payload_bytes, payload, rest))
            assert len(payload) == one.payload_bytes or one not in ended
        else:
            assert not payload
            outside += rest
    assert [one.begin for one in found] == sorted(one.begin for one in found)
    assert sum(len(one.payload) + one.rest_bytes for one in found) + outside == len(data)
    return Outcome(found, outside, stream.damaged)


def seen_however_cut(data: bytes) -> Outcome:
    found = seen(data)
    for buffer_bytes in (512, random.Random(len(data))):
        assert seen(data, buffer_bytes) == found
    return found


def made(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def by_tarfile(data: bytes) -> list[tuple[int, bytes, int, bytes | None]]:
    """Begin, path, size and payload of each member as Python's own reader has them; no payload for a sparse file."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        return [
            (
                member.offset, member.name.encode("utf-8", "surrogateescape"), member.size if member.isreg() else 0,
                None if member.issparse() else data[member.offset_data :][: member.size * member.isreg()],
            )
            for member in archive.getmembers()
        ]  # fmt: skip
