"""How long a chunk is when a store compresses it: one zstd frame of its own, with its content size and no checksum."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

from chunkd.model import MeasureRule

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from typing_extensions import Buffer


def library() -> str:
    """The library that makes the frames; another version may make other frames."""
    return f"libzstd {zstd.zstd_version}"


# How many lengths are remembered, by hash: 1.5 MB. Chunks that repeat do so soon.
REMEMBERED = 8192


class Recompressor:
    """Measures the chunks that the rule picks. For one thread at a time."""

    def __init__(self, rule: MeasureRule) -> None:
        self.rule = rule
        self._compress = zstd.ZstdCompressor(rule.level).compress
        self._known: dict[bytes, int] = {}

    def length(self, name: bytes, chunk: Buffer) -> int:
        """The bytes of the chunk's frame, equal to that of `zstd.compress`; `name` is its hash. Raises MemoryError."""
        length = self._known.get(name)
        if length is None:
            try:
                # A whole frame in one call: so its size is known, and goes into the header.
                length = len(self._compress(chunk, zstd.ZstdCompressor.FLUSH_FRAME))
            except zstd.ZstdError as error:
                # With a valid level and a whole chunk, only memory can be lacking.
                raise MemoryError(str(error)) from error
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[name] = length
        return length


class StreamLength:
    """How long a whole stream is as one zstd frame. `spent_s` is the time of the processor that this took; after
    `most_s` of it the length is unknown.
    """

    def __init__(self, level: int, most_s: float = math.inf) -> None:
        self._compressor: zstd.ZstdCompressor | None = zstd.ZstdCompressor(level)
        self._length = 0
        self._most_s = most_s
        self.spent_s = 0.0

    def feed(self, data: Buffer) -> None:
        """Take in the stream's next bytes. Raises MemoryError."""
        self._step(data)

    def finish(self) -> int | None:
        """The length, None if it took too long. Raises MemoryError."""
        self._step(b"", ends=True)
        return self._length if self._compressor else None

    def _step(self, data: Buffer, *, ends: bool = False) -> None:
        if self._compressor is None:
            return
        begun_s = time.process_time()
        try:
            made = self._compressor.flush() if ends else self._compressor.compress(data)
            self._length += len(made)
        except zstd.ZstdError as error:
            raise MemoryError(str(error)) from error  # with a valid level only memory can be lacking
        self.spent_s += time.process_time() - begun_s
        if self.spent_s > self._most_s:
            self._compressor = None
