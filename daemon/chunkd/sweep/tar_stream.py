"""Reads a tar while it streams by: which bytes are the payload of which file, and which belong to its headers.

The tar is hostile input. A cost is at most some microseconds a block or a record, and memory is bounded by
MOST_EXTENSION_BYTES. Damage ends the reading of this tar and nothing else: what follows belongs to no entry.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_BYTES = 512
# As Linux has it. The rest of a longer path is dropped.
MOST_PATH_BYTES = 4096
# Of a long name, or of PAX records; Go's reader, which the container tools have, refuses more as well.
MOST_EXTENSION_BYTES = 1 << 20
# Of all PAX records of a tar together: each takes half a microsecond, however short it is.
MOST_RECORDS = 1 << 24
MOST_PAYLOAD_BYTES = (1 << 63) - 1

FILE, SPARSE, HARD_LINK, SYMBOLIC_LINK = "file", "sparse file", "hard link", "symbolic link"
DIRECTORY, DEVICE, FIFO, OTHER = "directory", "device", "fifo", "other"
_KINDS = {
    **dict.fromkeys(b"0\x007", FILE),
    **dict(zip(b"123456S", (HARD_LINK, SYMBOLIC_LINK, DEVICE, DEVICE, DIRECTORY, FIFO, SPARSE), strict=True)),
}
# Of other kinds nothing follows the header, whatever size it has: so Python's reader and Go's.
_WITH_PAYLOAD = frozenset((FILE, SPARSE, OTHER))

_ZEROS = bytes(BLOCK_BYTES)
# Header blocks whose payload tells something of the header that follows.
_LONG_NAME, _LONG_LINK, _GLOBAL = b"LKg"
_EXTENSIONS = frozenset(b"LKgxX")
_OLD_SPARSE = ord("S")
# Old GNU sparse: whether a block with more of the map follows a header, and such a block.
_MORE_AFTER_HEADER_AT, _MORE_AFTER_MAP_AT = 482, 504


@dataclass(slots=True, eq=False)
class TarEntry:
    """One file, directory or link of a tar.

    `begin` is where its first header begins in the stream; its bytes last until the next entry's. The rest is known
    once its headers have been read. `kind` is `""` before, and stays so if damage or the tar's end came instead: then
    these bytes belong to no entry. `path` is bytes of whatever kind, as the tar has them, MOST_PATH_BYTES at most.
    `payload_bytes` are those in the tar: of a sparse file without its holes.
    """

    begin: int
    kind: str = ""
    path: bytes = b""
    payload_bytes: int = 0


class Piece(NamedTuple):
    """A stretch of a buffer: `entry` is whose it is, None outside of all. `payload` is false for headers, padding and
    what is outside. `ends`: it is the last of its entry's payload. An empty payload has no piece.
    """

    begin: int
    end: int
    entry: TarEntry | None
    payload: bool
    ends: bool


class _Damage(Exception):
    """Why a tar can't be read on."""


class TarStream:
    """Takes the bytes of a tar in order. `damaged` says why it could not be read on, `""` if it could.

    Ustar, GNU and PAX headers are known. Global PAX headers are passed over, as Go's reader does. A block of zeros ends
    the tar; what follows is outside of entries, another tar too.
    """

    def __init__(self) -> None:
        self.damaged = ""
        self._at = 0  # of the buffer, in the stream
        self._entry: TarEntry | None = TarEntry(0)
        self._left = BLOCK_BYTES  # of the stretch in hand
        self._padding = 0  # that follows this payload
        self._in_payload = self._in_padding = False
        self._extension = 0  # the type of the header whose payload is in hand
        self._in_map = False  # a block with more of a sparse file's map
        self._held = bytearray()  # of a block or an extension that is not here yet as a whole
        self._extension_bytes = 0
        self._long_name = b""
        self._pax: dict[bytes, bytes] = {}
        self._records_left = MOST_RECORDS

    def feed(self, data: memoryview) -> list[Piece]:
        """The pieces of a buffer, in order and without a gap. Entries are the same objects from buffer to buffer."""
        pieces: list[Piece] = []
        at, size = 0, len(data)
        while at < size:
            entry = self._entry
            if entry is None:
                pieces.append(Piece(at, size, None, False, False))
                break
            end = min(size, at + self._left)
            self._left -= end - at
            if self._in_payload:
                pieces.append(Piece(at, end, entry, True, not self._left))
                if not self._left:
                    self._pad(self._at + end)
            elif self._in_padding:
                pieces.append(Piece(at, end, entry, False, False))
                if not self._left:
                    self._next(self._at + end)
            else:
                if self._left or self._held:
                    self._held += data[at:end]
                    block = b"" if self._left else bytes(self._held)
                else:
                    block = bytes(data[at:end])
                if not self._left:
                    self._held.clear()
                    self._take(block, self._at + end)
                pieces.append(Piece(at, end, entry if entry.kind or self._entry is entry else None, False, False))
            at = end
        self._at += size
        return pieces

    def finish(self) -> None:
        """Say that the stream is over. A tar may end where a header could begin, also without blocks of zeros."""
        if self._entry is not None and self._at > self._entry.begin:
            self._stop("it is cut short")

    def _stop(self, why: str = "") -> None:
        self.damaged = why
        self._entry = None

    def _next(self, at: int) -> None:
        """A new entry begins."""
        self._entry, self._left = TarEntry(at), BLOCK_BYTES
        self._in_payload = self._in_padding = False

    def _pad(self, at: int) -> None:
        if self._padding:
            self._in_payload, self._in_padding, self._left = False, True, self._padding
        else:
            self._next(at)

    def _take(self, block: bytes, end: int) -> None:
        """A block of a header, or an extension, is whole."""
        try:
            if self._extension:
                self._take_extension(block[: self._extension_bytes])
            elif self._in_map:
                self._after_header(bool(block[_MORE_AFTER_MAP_AT]), end)
            elif block == _ZEROS:
                # Between an extension and its header it is the end too.
                self._stop()
            else:
                self._take_header(block, end)
        except _Damage as damage:
            self._stop(str(damage))

    def _take_header(self, block: bytes, end: int) -> None:
        if not _checksum_holds(block):
            raise _Damage("the checksum of a header does not hold")
        size, kind = _number(block[124:136]), block[156]
        if kind in _EXTENSIONS:
            if size > MOST_EXTENSION_BYTES:
                raise _Damage(f"a long name or PAX records of more than {MOST_EXTENSION_BYTES} bytes")
            self._extension, self._extension_bytes = kind, size
            self._left = -(-size // BLOCK_BYTES) * BLOCK_BYTES
            if not size:
                self._take_extension(b"")
            return
        found = _KINDS.get(kind, OTHER)
        path = _text(block[:100])
        if not kind and path.endswith(b"/"):  # as directories were before there was a type for them
            found = DIRECTORY
        if block[345] and block[257:263] == b"ustar\0":
            path = _text(block[345:500]) + b"/" + path
        if self._pax:
            path = self._pax.get(b"GNU.sparse.name") or self._pax.get(b"path") or path
            size = _decimal(self._pax[b"size"]) if self._pax.get(b"size") else size
            if found == FILE and b"GNU.sparse" in self._pax:
                found = SPARSE
            self._pax = {}
        entry = self._entry
        assert entry is not None
        entry.kind, entry.path = found, (self._long_name or path)[:MOST_PATH_BYTES]
        entry.payload_bytes = size if found in _WITH_PAYLOAD else 0
        self._long_name = b""
        self._after_header(kind == _OLD_SPARSE and bool(block[_MORE_AFTER_HEADER_AT]), end)

    def _after_header(self, more: bool, end: int) -> None:
        entry = self._entry
        assert entry is not None
        self._in_map, self._left = more, BLOCK_BYTES
        if not more:
            self._padding = -entry.payload_bytes % BLOCK_BYTES
            if entry.payload_bytes:
                self._in_payload, self._left = True, entry.payload_bytes
            else:
                self._next(end)

    def _take_extension(self, data: bytes) -> None:
        kind, self._extension, self._left = self._extension, 0, BLOCK_BYTES
        if kind == _LONG_NAME:
            self._long_name = _text(data)
        elif kind not in (_LONG_LINK, _GLOBAL):
            self._pax = self._records(data)

    def _records(self, data: bytes) -> dict[bytes, bytes]:
        """Those of some PAX records that matter here: each is `LENGTH KEY=VALUE` and a newline."""
        found: dict[bytes, bytes] = {}
        at = 0
        while at < len(data) and data[at]:
            self._records_left -= 1
            if not self._records_left:
                raise _Damage(f"more than {MOST_RECORDS} PAX records")
            space = data.find(b" ", at, at + 8)
            digits = data[at : max(at, space)]
            end = at + int(digits) if digits.isdigit() else 0
            equals = data.find(b"=", space + 2, end)
            if equals < 0 or end > len(data) or data[end - 1] != 0x0A:
                raise _Damage("a PAX record that is not as long as it says")
            key = data[space + 1 : equals]
            if key in (b"path", b"size", b"GNU.sparse.name"):
                found[key] = data[equals + 1 : end - 1]
            if key.startswith(b"GNU.sparse."):
                found[b"GNU.sparse"] = b""
            at = end
        return found


def _checksum_holds(block: bytes) -> bool:
    """The sum of the block's bytes, its own eight as spaces. Old writers summed signed bytes, and readers take both.

    The low half of Adler-32 is one more than the sum of the bytes, as long as that is below 65,521.
    """
    try:
        claimed = _number(block[148:156])
    except _Damage:
        return False
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = (zlib.adler32(summed[:256]) & 0xFFFF) + (zlib.adler32(summed[256:]) & 0xFFFF) - 2
    return claimed == unsigned or claimed == unsigned - 256 * sum(byte > 127 for byte in summed)


def _number(field: bytes) -> int:
    """Octal digits, or in base 256 behind a byte of 0x80."""
    if field[0] >= 0x80:
        if field[0] != 0x80:
            raise _Damage("a size that is negative or too large")
        number = int.from_bytes(field[1:], "big")
        if number > MOST_PAYLOAD_BYTES:
            raise _Damage("a size that is negative or too large")
        return number
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits.isdigit():
        if digits:
            raise _Damage("a number that is not octal")
        return 0
    try:
        return int(digits, 8)
    except ValueError:
        raise _Damage("a number that is not octal") from None


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 19 or int(digits) > MOST_PAYLOAD_BYTES:
        raise _Damage("a size that is negative or too large")
    return int(digits)


def _text(field: bytes) -> bytes:
    """Up to the first NUL."""
    return field.partition(b"\0")[0]
