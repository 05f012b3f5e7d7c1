"""The reader of bbolt on whatever bytes, as containerd's names are read: names, or that the file is bad.

The checksums of the meta pages are mended, so that the pages behind them are reached; the first byte says of which.
"""

from __future__ import annotations

import struct
import sys

import fuzzing

with fuzzing.instrumented():
    from chunkd.model import Digest
    from chunkd.names import bolt, containerd
    from chunkd.names.name import MOST_NAME_CHARACTERS, Part

import bolts

# So that a file whose pages name one another costs little.
MOST_BYTES = 256 << 10
DIGEST = Digest("sha256", "ab" * 32)


def mended(data: bytes) -> bytes:
    """With right checksums where a meta page is, by the flags in the first byte."""
    found = bytearray(data[1:])
    for number in (0, 1):
        at = number * bolts.PAGE_BYTES
        if data[0] >> number & 1 and len(found) >= at + 80:
            found[at + 72 : at + 80] = struct.pack("<Q", bolt.fnv1a(bytes(found[at + 16 : at + 72])))
    return bytes(found)


def names(data: bytes) -> list[Part] | None:
    try:
        return bolt.read(
            lambda at, size: data[at : at + size],
            lambda state: list(containerd.parts_of(state)),
            MOST_BYTES,
        )
    except bolt.BadBolt:
        return None


def check(data: bytes) -> None:
    if not data:
        return
    file = mended(data)
    found = names(file)
    assert names(file) == found, "the same bytes, and other names"
    for part in found or ():
        for name in part.names or ():
            assert len(name.text) <= MOST_NAME_CHARACTERS
            assert 0 <= name.at_ns < 1 << 64
            assert len(name.digest.hex) in (64, 128)


def seeds() -> list[bytes]:
    """Databases with images in one page, in several, in branches, and with overflow."""
    label = {b"labels": {b"containerd.io/distribution.source.docker.io": b"library/a,b"}}
    found = [bolts.database({}), bolts.database({b"v1": b""})]
    for count, size in ((1, 0), (3, 1200), (30, 0)):
        images = {b"n%d" % at + b"x" * size: bolts.image(str(DIGEST), at + 1) for at in range(count)}
        content = {b"blob": {str(DIGEST).encode(): label}}
        found.append(bolts.database({b"v1": {b"version": b"1", b"ns": {b"images": images, b"content": content}}}))
    return [b"\3" + data for data in found]


if __name__ == "__main__":
    fuzzing.run(sys.argv, check, seeds())
