"""Decodes a blob file into a stream of buffers, within bounds: gzip, zstd or a plain tar, told by their first bytes.

One descriptor is read in one pass: the bytes that `Source` hashes for the blob's name are those that the decoder gets.
A stream is whole when all its gzip members or zstd frames are, and only a gzip's padding of NUL may follow. Whole zstd
frames followed by bytes that are not a frame are another format, and so not a layer.
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
from chunkd.worker.magic import HEAD_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Small enough to stay in a core's own cache from decoder to chunker. With 1 MiB a layer takes an eighth longer.
BUFFER_BYTES = 256 << 10

# A tar's header is one block. A tar without files is at least two blocks of NUL, and only NUL to its end.
_BLOCK_BYTES = 512

# Changes when the rule of what is a layer changes, so that blobs in doubt are read once more.
_KINDS_RULE = "kinds 3"

# ZstdFile reads 8 KiB at a time (a good size for it, as it copies the rest of a read once a frame). A buffer of this
# size below it saves the calls.
_ZSTD_READ_BYTES = 256 << 10

_REASON_CHARACTERS = 200

# isal's stubs declare its error as a value and not as a class.
# igzip raises OverflowError for a header that does not fit into its buffer.
_DECODER_ERRORS = (EOFError, OverflowError, BadGzipFile, cast("type[Exception]", isal_zlib.IsalError), zstd.ZstdError)

# libzstd's message if there is no magic number where a frame should begin. One was seen at the start, so whole frames
# come before.
_NO_FRAME = "Unknown frame descriptor"

# What the decoders' messages mean here. A magic number has been seen at the start, so a bad one comes later.
_REASONS = {
    "Not a gzipped file": "trailing bytes after the last member",
    "Corrupted gzip header": "CRC of a header does not match",
    "Gzip header exceeds": "a member's header does not fit into the decoder's buffer",
    "CRC check failed": "CRC does not match",
    "Incorrect length of data produced": "length does not match",
    "Restored data doesn't match checksum": "checksum does not match",
}


class Source(io.RawIOBase):
    """A blob file being read. Each byte handed out has been hashed, once and in order, and counted in `read_bytes`.

    `head` is the first bytes, at most HEAD_BYTES. `codec` is `gzip`, `zstd`, `tar` or `other`, by the head; `buffers`
    may later change it to `other`. `grew` is true when bytes came after the file's end had been met: what was decoded,
    or taken for the head, may then be a part. `progress` is called with `read_bytes` after each read; an exception from
    it ends the reading. Raises OSError when the file can't be read. Does not close the file.
    """

    def __init__(self, file: io.FileIO, algorithm: str, progress: Callable[[int], object]) -> None:
        self._file = file
        self._hash = hashlib.new(algorithm)
        self._progress = progress
        self.read_bytes = 0
        self.grew = False
        self._ended = False
        head = bytearray(HEAD_BYTES)
        filled = 0
        while filled < len(head) and (got := self._read(memoryview(head)[filled:])):
            filled += got
        self.head = bytes(head[:filled])
        self._unread = memoryview(self.head)
        self.codec = _codec(self.head)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io calls it with a memoryview only
        if not self._unread:
            return self._read(buffer)
        given = min(len(buffer), len(self._unread))
        buffer[:given] = self._unread[:given]
        self._unread = self._unread[given:]
        return given

    def _read(self, view: memoryview) -> int:
        got = self._file.readinto(view)
        if got is None:  # nothing has come yet, which is not the end
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._hash.update(view[:got])
        self.read_bytes += got
        self.grew = self.grew or (self._ended and got > 0)
        self._ended = got == 0
        self._progress(self.read_bytes)
        return got

    def drain(self, buffer: bytearray) -> None:
        """Hash the rest of the file."""
        view = memoryview(buffer)
        while self._read(view):
            pass

    def read_whole(self, most_bytes: int) -> bytes:
        """At most so many of the bytes that were not handed out yet, which are all of them if nothing was decoded."""
        buffer = bytearray(most_bytes)
        filled = 0
        while filled < most_bytes and (got := self.readinto(memoryview(buffer)[filled:])):
            filled += got
        return bytes(buffer[:filled])

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
    """Whether the first block is a header whose checksum holds, or all is NUL, as far as the head shows.

    The checksum is octal digits, the sum of the block's bytes with its own eight as spaces. Old writers summed signed
    bytes, and readers accept both (POSIX pax, "ustar Interchange Format").
    """
    block = head[:_BLOCK_BYTES]
    if len(block) < _BLOCK_BYTES:
        return False
    field = re.fullmatch(rb" *([0-7]+) *(?:\0.*)?", block[148:156], re.DOTALL)
    if field is None:
        return len(head) >= 2 * _BLOCK_BYTES and not any(head)
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    signed = unsigned - 256 * sum(byte > 127 for byte in summed)
    return int(field[1], 8) in (unsigned, signed)


def buffers(source: Source, take: Callable[[], bytearray], caps: Caps, stored_bytes: int) -> Iterator[memoryview]:
    """The uncompressed bytes in order, each time in the buffer that `take` gives; none when the codec is `other`.

    Changes the codec to `other` if the blob turns out not to be a layer: it begins with a block of NUL and has another
    byte, or bytes that are not a frame follow whole zstd frames. What was yielded must then be discarded.

    Raises BlobUndecodable when the stream is not whole or breaks a cap, with `source` left somewhere in the file;
    OSError when the file can't be read; MemoryError when the decoder gets no memory. If a stream is not whole and also
    breaks a cap, the buffers' size decides which is reported. A zstd window may be as large as the greatest power of
    two in `caps.zstd_window_bytes`. A frame so small that it is decoded at once needs no window, and is decoded
    whatever window it declares.
    """
    codec = source.codec
    blank = codec == "tar" and not any(source.head[:_BLOCK_BYTES])
    stream = _open(source, caps)
    ratio_bytes = caps.ratio_bytes(stored_bytes)
    uncompressed_bytes = 0
    while source.codec != "other":
        buffer = take()
        try:
            filled = stream.readinto(buffer) or 0
        except _DECODER_ERRORS as error:
            if codec != "zstd" or _NO_FRAME not in str(error):
                raise BlobUndecodable(codec, _reason(error, codec, caps)) from error
            # The frames before may break a cap, wherever this buffer began.
            source.codec = "other"
            filled = stream.tell() - uncompressed_bytes
        if not filled:
            return
        if blank and not bytes(filled).startswith(memoryview(buffer)[:filled]):
            source.codec = "other"
            return
        uncompressed_bytes += filled
        if uncompressed_bytes > caps.uncompressed_bytes:
            raise BlobUndecodable(
                codec, f"decompresses to more bytes than max_uncompressed_bytes = {caps.uncompressed_bytes}"
            )
        if uncompressed_bytes > ratio_bytes:
            raise BlobUndecodable(
                codec, f"decompresses to more than max_ratio = {caps.ratio} times its {stored_bytes} bytes"
            )
        yield memoryview(buffer)[:filled]


class _Gzip(igzip.IGzipFile):
    """Fills the caller's buffer, where `GzipFile` would copy from a new buffer for each read."""

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
    """The cap rounded down to a power of two, within libzstd's range (2^10 to 2^31 bytes)."""
    lowest, highest = zstd.DecompressionParameter.window_log_max.bounds()
    return min(max(caps.zstd_window_bytes.bit_length() - 1, lowest), highest)


def _reason(error: Exception, codec: str, caps: Caps) -> str:
    text = str(error)
    if "not enough memory" in text:
        # libzstd's own message for a lack of memory, which says nothing about the blob.
        raise MemoryError(text) from error
    if isinstance(error, EOFError):
        # igzip reports a few stray bytes, fewer than a header has, as a truncated member.
        return "truncated" if codec == "zstd" else "truncated, or a few trailing bytes after the last member"
    if "requires too much memory" in text:
        return f"needs a larger window than max_zstd_window_bytes = {caps.zstd_window_bytes}"
    for known, reason in _REASONS.items():
        if known in text:
            return reason
    return text[:_REASON_CHARACTERS]


def decoder_rule() -> str:
    """The versions that decide what decodes; after the semicolon, the version of the rule of what is a layer.

    When this changes, a blob that failed for good is tried again. When the rule changes, so are plain tars.
    """
    return f"isal {isal.__version__} ({isal.ISAL_VERSION}), libzstd {zstd.zstd_version}; {_KINDS_RULE}"
