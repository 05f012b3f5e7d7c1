"""Log files as lines: plain, gzip or zstd by their first bytes, each line bounded. `-` is standard input.

A file that begins with `[` is one JSON array, as the published traces are; each object in it is a line.
"""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from chunkd.errors import ChunkdError
from chunkd.pulls import log_lines
from chunkd.pulls.log_lines import MOST_LINE_BYTES, Pull

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIN = "-"
# So much of a file is read to learn when it begins.
MOST_HEAD_BYTES = 1 << 20
HEAD_BYTES = 4
_PIECE_BYTES = 256 << 10
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_DECODER_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)
# An object without objects in it. No two branches begin alike, so a match takes linear time. As in JSON, a string has
# no line end, and a backslash stands in a string only: so of two objects of which one would begin in a string of the
# other, one ends with its line, and all matches together take linear time as well.
_OBJECT = re.compile(rb'\{(?:[^{}"\\]|"(?:[^"\\\n]|\\[^\n])*+")*+\}')


class LogUnreadable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"log {path}: can't be read: {problem}")


class LogFiles:
    """The lines of all files, oldest file first by the time of its first pull; in the order given if one is not a
    regular file. `known_bytes` is the size of the regular files, and `done_bytes` how much was read of all.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Raises LogUnreadable."""
        self.known_bytes = self.done_bytes = 0
        kinds = [self._status(path) for path in paths]
        self.paths = list(paths)
        if len(paths) > 1 and all(kinds):
            begins = {path: _first_time(path) for path in paths}
            self.paths.sort(key=lambda path: begins[path])

    def _status(self, path: str) -> bool:
        """Whether it is a regular file."""
        if path == STDIN:
            return False
        try:
            status = os.stat(path)
        except OSError as error:
            raise LogUnreadable(path, error.strerror or str(error)) from None
        if stat.S_ISREG(status.st_mode):
            self.known_bytes += status.st_size
        return stat.S_ISREG(status.st_mode)

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of one file, without their ends; one that is too long comes as a part of it, still too long to be
        read. Raises LogUnreadable.
        """

        def count(size_bytes: int) -> None:
            self.done_bytes += size_bytes

        return _lines(path, count)


class _Counted(io.RawIOBase):
    """A file whose bytes are counted as they are read. `head` is its first bytes, HEAD_BYTES if it has as many."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file, self._count = file, count
        self.head = b""
        while len(self.head) < HEAD_BYTES and (more := file.read(HEAD_BYTES - len(self.head))):
            self.head += more  # a pipe may have one byte at a time
        self._unread = self.head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._unread[: len(buffer)] or self._file.read(len(buffer))
        self._unread = self._unread[len(data) :]
        buffer[: len(data)] = data
        self._count(len(data))
        return len(data)


def _lines(path: str, count: Callable[[int], None]) -> Iterator[bytes]:
    try:
        with open(0, "rb", buffering=0, closefd=False) if path == STDIN else open(path, "rb", buffering=0) as raw:
            counted = _Counted(raw, count)
            file = io.BufferedReader(cast("io.RawIOBase", counted), _PIECE_BYTES)
            content: Any = file
            if counted.head.startswith(_GZIP):
                content = gzip.GzipFile(fileobj=file)
            elif counted.head == _ZSTD:
                content = zstd.ZstdFile(file)
            pieces: Iterator[bytes] = iter(lambda: content.read(_PIECE_BYTES), b"")
            yield from _split(pieces)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise LogUnreadable(path, str(error)) from None
        raise LogUnreadable(path, error.strerror or str(error)) from None
    except _DECODER_ERRORS as error:
        raise LogUnreadable(path, str(error)) from None


def _split(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    split = _objects if first.lstrip().startswith(b"[") else _plain_lines
    return split(itertools.chain([first], pieces))


def _plain_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        rest = rest[: MOST_LINE_BYTES + 2]  # which is too long, whatever follows
    if rest:
        yield rest


def _objects(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """After what is not an object without objects in it, the next one begins behind the end of that line, or behind as
    many bytes as a line may have. In its place comes its first byte.
    """
    text = b""
    ended = False
    while not ended:
        piece = next(pieces, b"")
        ended = not piece
        text += piece
        at = text.find(b"{")
        while at >= 0:
            end = at + MOST_LINE_BYTES
            found = _OBJECT.match(text, at, end)
            if found is None and len(text) < end and not ended:
                break
            if found is not None:
                yield found[0]
                at = found.end()
            else:
                yield text[at : at + 1]
                line_end = text.find(b"\n", at, end)
                at = end if line_end < 0 else line_end
            at = text.find(b"{", at)
        text = b"" if at < 0 else text[at:]


def _first_time(path: str) -> int:
    """Of the first pull near the beginning of a file; 0 if there is none."""
    seen_bytes = 0
    for line in _lines(path, lambda _: None):
        found = log_lines.read(line)
        if isinstance(found, Pull):
            return found.at_s
        seen_bytes += len(line)
        if seen_bytes > MOST_HEAD_BYTES:
            break
    return 0
