"""A blob file as a stream of buffers, bounded: gzip, zstd or a plain tar, told apart by their first bytes.

One pass over one descriptor: the bytes that `Source` hashes for the blob's name are those that the decoder is given.
A stream is whole when all its gzip members or zstd frames are, and nothing but a gzip's padding of NUL comes after.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from gzip import BadGzipFile
from typing import cast

import isal
from isal import igzip, isal_zlib

from chunkd.errors import BlobUndecodable
from chunkd.model import Caps

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Small enough to stay in a core's own cache from decoder to chunker: with 1 MiB a layer takes an eighth longer.
BUFFER_BYTES = 256 << 10

# Enough to tell the codec: a tar's header is 512 bytes, and an empty tar is two such blocks of NUL.
_HEAD_BYTES = 1024

# ZstdFile reads 8 KiB at a time (a good size for it: it copies what is left of a read once a frame); a buffer of this
# size under it saves the calls.
_ZSTD_READ_BYTES = 256 << 10

_REASON_CHARACTERS = 200

# isal's stubs have its error as a value and not as a class.
# OverflowError is igzip's word for a header that its buffer has no room for.
_DECODER_ERRORS = (EOFError, OverflowError, BadGzipFile, cast("type[Exception]", isal_zlib.IsalError), zstd.ZstdError)

# What the decoders' texts mean here. A magic number has been seen at the start, so a bad one comes later.
_REASONS = {
    "Not a gzipped file": "trailing bytes after the last member",
    "Corrupted gzip header": "CRC of a header does not match",
    "Gzip header exceeds": "a member's header does not fit into the decoder's buffer",
    "CRC check failed": "CRC does not match",
    "Incorrect length of data produced": "length does not match",
    "Unknown frame descriptor": "trailing bytes after the last frame",
    "Restored data doesn't match checksum": "checksum does not match",
}


class Source(io.RawIOBase):
    """A blob file being read: each byte handed out has been hashed, once and in order, and counted in `read_bytes`.

    `codec` is `gzip`, `zstd`, `tar` or `other`. `grew` is true when bytes came after the file's end had been met: what
    was decoded, or taken for the head, may then be a part. `progress` is called with `read_bytes` after each read, and
    what it raises ends the reading. Raises OSError when the file can't be read. Does not close the file.
    """

    def __init__(self, file: io.FileIO, algorithm: str, progress: Callable[[int], object]) -> None:
        self._file = file
        self._hash = hashlib.new(algorithm)
        self._progress = progress
        self.read_bytes = 0
        self.grew = False
        self._ended = False
        head = bytearray(_HEAD_BYTES)
        filled = 0
        while filled < len(head) and (got := self._read(memoryview(head)[filled:])):
            filled += got
        self._head = memoryview(bytes(head[:filled]))
        self.codec = _codec(self._head.tobytes())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io calls it with a memoryview only
        if not self._head:
            return self._read(buffer)
        given = min(len(buffer), len(self._head))
        buffer[:given] = self._head[:given]
        self._head = self._head[given:]
        return given

    def _read(self, view: memoryview) -> int:
        got = self._file.readinto(view)
        if got is None:  # nothing came yet, which must not pass for the end
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._hash.update(view[:got])
        self.read_bytes += got
        self.grew = self.grew or (self._ended and got > 0)
        self._ended = got == 0
        self._progress(self.read_bytes)
        return got

    def drain(self, buffer: bytearray) -> None:
        """Hash what is left of the file."""
        view = memoryview(buffer)
        while self._read(view):
            pass

    def hexdigest(self) -> str:
        """The hash of all bytes read so far: the blob's name after `drain`."""
        return self._hash.hexdigest()


def _codec(head: bytes) -> str:
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    return "tar" if _is_tar(head) else "other"


def _is_tar(head: bytes) -> bool:
    """The first block is a header whose checksum holds, or the tar is empty (two blocks of NUL).

    The checksum is octal digits, the sum of the block's bytes with its own eight as spaces; old writers summed signed
    bytes, and readers take both (POSIX pax, "ustar Interchange Format").
    """
    block = head[:512]
    if len(block) < 512:
        return False
    field = re.fullmatch(rb" *([0-7]+) *(?:\0.*)?", block[148:156], re.DOTALL)
    if field is None:
        return head == bytes(_HEAD_BYTES)
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    signed = unsigned - 256 * sum(byte > 127 for byte in summed)
    return int(field[1], 8) in (unsigned, signed)


def buffers(source: Source, take: Callable[[], bytearray], caps: Caps, stored_bytes: int) -> Iterator[memoryview]:
    """The uncompressed bytes in order, each time in the buffer that `take` gives; none when the codec is `other`.

    Raises BlobUndecodable when the stream is not whole or breaks a cap, with `source` left somewhere in the file;
    OSError when the file can't be read; MemoryError when the decoder gets no memory. Where a stream is not whole and
    breaks a cap, the buffers' size decides which is told. A zstd window may be as large as the greatest power of two in
    `caps.zstd_window_bytes`; a frame so small that it is decoded at once needs no window, and decodes whatever it asks
    for.
    """
    codec = source.codec
    if codec == "other":
        return
    window_bytes = 1 << _window_log(caps)
    stream = _open(source, caps)
    ratio_bytes = caps.ratio_bytes(stored_bytes)
    uncompressed_bytes = 0
    while True:
        buffer = take()
        try:
            filled = stream.readinto(buffer) or 0
        except _DECODER_ERRORS as error:
            raise BlobUndecodable(codec, _reason(error, codec, window_bytes)) from error
        if not filled:
            return
        uncompressed_bytes += filled
        if uncompressed_bytes > caps.uncompressed_bytes:
            raise BlobUndecodable(codec, f"more than {caps.uncompressed_bytes} bytes uncompressed")
        if uncompressed_bytes > ratio_bytes:
            raise BlobUndecodable(codec, f"more than {caps.ratio} times its {stored_bytes} bytes uncompressed")
        yield memoryview(buffer)[:filled]


class _Gzip(igzip.IGzipFile):
    """Fills the buffer that it is given, where `GzipFile` would have it copied out of one made for each read."""

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # `buffers` calls it, with nothing else
        return self._buffer.readinto(buffer)


def _open(source: Source, caps: Caps) -> io.RawIOBase | io.BufferedIOBase:
    if source.codec == "gzip":
        return _Gzip(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
    if source.codec == "zstd":
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _window_log(caps)}
        return zstd.ZstdFile(io.BufferedReader(source, _ZSTD_READ_BYTES), options=options)
    return source


def _window_log(caps: Caps) -> int:
    """The cap rounded down to a power of two, within what libzstd takes (2^10 to 2^31 bytes)."""
    lowest, highest = zstd.DecompressionParameter.window_log_max.bounds()
    return min(max(caps.zstd_window_bytes.bit_length() - 1, lowest), highest)


def _reason(error: Exception, codec: str, window_bytes: int) -> str:
    text = str(error)
    if "not enough memory" in text:
        # libzstd's own word for it: this says nothing of the blob.
        raise MemoryError(text) from error
    if isinstance(error, EOFError):
        # To igzip, fewer stray bytes than a header has are a member cut short.
        return "truncated" if codec == "zstd" else "truncated, or a few trailing bytes after the last member"
    if "requires too much memory" in text:
        return f"window over the limit of {window_bytes} bytes"
    for known, reason in _REASONS.items():
        if known in text:
            return reason
    return text[:_REASON_CHARACTERS]


def decoder_rule() -> str:
    """The versions that decide what decodes. A blob that failed for good is tried again when this changes."""
    return f"isal {isal.__version__} ({isal.ISAL_VERSION}), libzstd {zstd.zstd_version}"
