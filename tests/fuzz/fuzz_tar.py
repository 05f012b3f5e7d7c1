"""The streaming reader of tars on whatever bytes: pieces that cover all, however it is cut, and Python's own entries.

Python's reader is less strict with numbers and knows no bounds, so what it reads further proves nothing. Checksums of
headers are mended, so that what is behind them is reached.
"""

from __future__ import annotations

import io
import sys
import tarfile

import fuzzing

with fuzzing.instrumented():
    from chunkd.sweep import tar_stream

import tars

BLOCK = tar_stream.BLOCK_BYTES


def mended(data: bytes) -> bytes:
    """With a right checksum in each block that has a magic number."""
    found = bytearray(data)
    for at in range(0, len(found) - BLOCK + 1, BLOCK):
        if found[at + 257 : at + 262] == b"ustar":
            found[at + 148 : at + 156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + BLOCK])
    return bytes(found)


def check(data: bytes) -> None:
    data = mended(data)
    found = tars.seen(data)
    assert tars.seen(data, 333) == found, "it depends on how it is cut"
    if found.damaged or any(data[at + 156] in b"gxXLKS" for at in range(0, len(data) - 156, BLOCK)):
        return  # Python's has other bounds, and other ways where extensions meet
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            expected = [
                (one.offset, one.size if one.isreg() or one.type not in tarfile.SUPPORTED_TYPES else 0)
                for one in archive.getmembers()
            ]
    except (tarfile.TarError, ValueError, UnicodeError, OverflowError):
        return
    # It stops without a word at a header of which it can't read a field that does not matter here.
    entries = [(one.begin, one.payload_bytes) for one in found.entries]
    assert entries[: len(expected)] == expected, "Python sees other entries"


def seeds() -> list[bytes]:
    """Each kind of header, and an end of each kind."""
    good = tars.entry(b"a/b", b"c" * 600)
    found = [b"", tars.END, good, good + tars.END, good + bytes(BLOCK) + good, good[:700], tars.END + good]
    known = {b"path": b"p", b"size": b"3", b"GNU.sparse.major": b"1", b"GNU.sparse.name": b"n"}
    heads = [tars.header(b"n", 3, bytes([kind])) + tars.padded(b"abc") for kind in b"0\x001234567SVQ"]
    heads += [tars.pax(known, bytes([kind])) + tars.entry(b"s", b"abc") for kind in b"xgX"]
    heads += [tars.entry(b"././@LongLink", b"long" * 150, bytes([kind])) for kind in b"LK"]
    found += [head + good + tars.END for head in heads]
    found.append(tars.header(b"n", b"\x80" + bytes(10) + b"\x03") + tars.padded(b"abc") + tars.END)
    return found


if __name__ == "__main__":
    fuzzing.run(sys.argv, check, seeds())
