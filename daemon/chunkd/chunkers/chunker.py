"""What all chunkers do alike; and chunks of any length by any rule, hashed as they come and never held whole."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from array import array
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from chunkd.model import CHUNK_HASH_BYTES, MeasureRule, Recipe

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The hash of each chunk that is a hole: zeros that the rule's product stores nowhere. Holes differ in length.
HOLE = bytes(CHUNK_HASH_BYTES)
MOST_MEASURED_BYTES = 16 << 20
# What a recipe's length can say, and its measured length too: frames of so many pieces that do not compress.
MOST_CHUNK_BYTES = 255 * MOST_MEASURED_BYTES


class Measure(Protocol):
    """Decides which chunks are recompressed, and measures their length then (`recompress.Recompressor`)."""

    rule: MeasureRule

    def length(self, name: bytes, chunk: Buffer, /) -> int: ...


class Chunker(ABC):
    """The chunks of one stream, fed as buffers and returned as a `Recipe` that does not depend on where buffers end.

    For one stream and one thread at a time. Holds 20 to 24 bytes a chunk, and no view of a buffer after `feed` returns.
    After `finish`, or an exception in `feed` other than for its argument, it can't be used again.
    """

    def __init__(self, measure: Measure | None) -> None:
        """Without `measure` the recipe has no recompressed lengths."""
        self._measure = measure
        self._hashes = bytearray()
        self._lengths = array("I")
        self._measured = array("I")
        self._finished = False
        self._drained = 0

    def feed(self, buffer: Buffer) -> None:
        """Take in the stream's next bytes, any number of them.

        Raises TypeError when `buffer` is not bytes-like and contiguous, ValueError after `finish`.
        """
        self._check_open()
        with memoryview(buffer) as shaped, shaped.cast("B") as data:
            self._cut(data)

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this chunker has finished: take a new one for each recipe")

    @property
    def chunks(self) -> int:
        """How many chunks have ended. Safe to call from any thread."""
        return self._drained + len(self._lengths)

    def drain(self) -> Recipe:
        """The chunks that have ended since the last call, which are then no longer held: `finish` has those after."""
        if sys.byteorder == "big":
            self._lengths.byteswap()
            self._measured.byteswap()
        recipe = Recipe(bytes(self._hashes), self._lengths.tobytes(), self._measured.tobytes())
        self._drained += len(recipe)
        self._hashes.clear()
        del self._lengths[:], self._measured[:]
        return recipe

    def finish(self) -> Recipe:
        """The chunks of all that was fed but drained ones; the last ends with the data. Raises ValueError when called
        twice.
        """
        self._check_open()
        self._end_file()
        self._finished = True
        return self.drain()

    @abstractmethod
    def _cut(self, data: memoryview) -> None:
        """Take in the stream's next bytes."""

    @abstractmethod
    def _end_file(self) -> None:
        """The stream has ended, and its last chunk with it."""


class RuleChunker(Chunker):
    """The chunks of files, one after the other, in one recipe. A rule that knows no files has one, the whole stream.

    With a `measure` it also holds the open chunk's bytes, at most MOST_MEASURED_BYTES. A chunk that is longer is
    measured as the sum of its pieces of so many bytes.
    """

    def __init__(self, measure: Measure | None = None) -> None:
        super().__init__(measure)
        self._hash = blake3()
        self._length = 0
        self._bytes = bytearray()
        self._measured_length = 0

    def end_file(self) -> None:
        """End the file, and its last chunk with it: the next bytes are another file's. Without bytes it has no chunk.

        Raises ValueError after `finish`.
        """
        self._check_open()
        self._end_file()

    # --- what a rule says: `_cut` calls these three, and what they take adds up to the file's bytes

    def _end_file(self) -> None:
        """The file has ended: add what was held back, end the last chunk and begin anew."""
        self._end_chunk()

    def _add(self, piece: memoryview) -> None:
        """The open chunk goes on with these bytes. Where a length can't hold it, it ends."""
        room = MOST_CHUNK_BYTES - self._length
        if len(piece) > room:
            self._add(piece[:room])
            self._end_chunk()
            self._add(piece[room:])
            return
        self._hash.update(piece)
        self._length += len(piece)
        if self._measure is None:
            return
        self._bytes += piece
        while len(self._bytes) > MOST_MEASURED_BYTES:
            self._measure_first(MOST_MEASURED_BYTES)

    def _end_chunk(self) -> None:
        """The open chunk ends, if it has any bytes."""
        if not self._length:
            return
        digest = self._hash.digest(CHUNK_HASH_BYTES)
        self._hashes += digest
        self._lengths.append(self._length)
        self._hash = blake3()
        if self._measure is not None:
            if self._measure.rule.picks(digest):
                self._measure_first(len(self._bytes))
                self._measured.append(self._measured_length)
            self._measured_length = 0
            self._bytes.clear()
        self._length = 0

    def _hole(self, length: int) -> None:
        """After the last chunk, which has ended, so many zeros are stored nowhere."""
        for begin in range(0, length, MOST_CHUNK_BYTES):
            self._hashes += HOLE
            self._lengths.append(min(length - begin, MOST_CHUNK_BYTES))
            if self._measure is not None and self._measure.rule.picks(HOLE):
                self._measured.append(0)

    def _measure_first(self, length: int) -> None:
        assert self._measure is not None
        piece = self._bytes[:length]
        self._measured_length += self._measure.length(blake3(piece).digest(CHUNK_HASH_BYTES), piece)
        del self._bytes[:length]


class WholeChunker(RuleChunker):
    """A file is one chunk, or as few as lengths can hold."""

    def _cut(self, data: memoryview) -> None:
        self._add(data)


class FixedChunker(RuleChunker):
    """Chunks of `chunk_bytes` each, but for a file's last."""

    def __init__(self, chunk_bytes: int, measure: Measure | None = None) -> None:
        super().__init__(measure)
        self._chunk_bytes = chunk_bytes

    def _cut(self, data: memoryview) -> None:
        begin = 0
        while begin < len(data):
            piece = data[begin : begin + self._chunk_bytes - self._length]
            self._add(piece)
            if self._length == self._chunk_bytes:
                self._end_chunk()
            begin += len(piece)
