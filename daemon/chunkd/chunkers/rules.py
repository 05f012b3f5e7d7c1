"""The rules of other products, with the kernels of crules.c. Each function makes a `RuleChunker`, and names the source.

A size that a kernel can't take is a ValueError: all sizes come from `profiles`, and none from a user.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, cast

from chunkd.chunkers import tables
from chunkd.chunkers._crules import ffi, lib
from chunkd.chunkers.chunker import Measure, RuleChunker

if TYPE_CHECKING:
    from chunkd.chunkers._crules import Array, Piece

CUTS_PER_CALL = 4096
PIECE_BYTES = 1 << 20  # what is copied, to be joined to the bytes before it

# The masks of the crate fastcdc, by their number of bits.
FASTCDC_MASKS = {15: 0x0000D90F03530000, 17: 0x0000D90703537000, 20: 0x0000D91747537000, 22: 0x0000D93767537000}


class KernelChunker(RuleChunker):
    """The chunks that a kernel of crules.c finds, given the bytes that it needs again."""

    def __init__(
        self, kernel: Callable[[Piece], int], window_bytes: int, before: bytes, measure: Measure | None = None
    ) -> None:
        """`window_bytes` is the kernel's window; `before` stands before the first byte of each file."""
        super().__init__(measure)
        self._kernel = kernel
        self._window_bytes = window_bytes
        self._before = before
        self._cuts = ffi.new("ptrdiff_t[]", CUTS_PER_CALL)
        self._begin_file()

    def _begin_file(self) -> None:
        self._kept = self._before  # the last bytes, of which so many are settled
        self._piece = cast("Piece", ffi.new("crules_piece *"))
        self._piece.cuts, self._piece.capacity = self._cuts, CUTS_PER_CALL
        self._piece.settled = len(self._kept)
        self._hole_length = 0
        self._chunks_before = self.chunks

    def _cut(self, data: memoryview) -> None:
        for begin in range(0, len(data), PIECE_BYTES):
            self._scan(data[begin : begin + PIECE_BYTES])

    def _end_file(self) -> None:
        self._piece.last = 1
        self._scan(b"")
        self._end_chunk()
        if self.chunks == self._chunks_before and self._hole_length:  # zstd:chunked names no holes in such a file
            for begin in range(0, self._hole_length, PIECE_BYTES):
                self._add(memoryview(bytes(min(PIECE_BYTES, self._hole_length - begin))))
            self._end_chunk()
        else:
            self._hole(self._hole_length)
        self._begin_file()

    def _scan(self, data: memoryview | bytes) -> None:
        piece, joined = self._piece, b"".join((self._kept, data))
        view = memoryview(joined)
        pointer = ffi.from_buffer("uint8_t[]", joined)
        piece.data, piece.n = pointer, len(joined)
        count = CUTS_PER_CALL
        while count == CUTS_PER_CALL:
            begin = piece.settled
            count = self._kernel(piece)
            for cut in ffi.unpack(self._cuts, count):
                if cut < 0:
                    self._hole(self._hole_length - cut - begin)
                    self._hole_length = 0
                else:
                    self._add(view[begin:cut])
                    self._end_chunk()
                begin = abs(cut)
            if piece.hole:
                self._hole_length += piece.settled - begin
            else:
                self._add(view[begin : piece.settled])
        dropped = max(piece.settled - self._window_bytes, 0)
        self._kept = joined[dropped:]
        piece.settled -= dropped


@lru_cache(maxsize=8)
def words(values: tuple[int, ...], bits: int) -> Array:
    """As C's array of words of so many bits, made once."""
    return ffi.new(f"uint{bits}_t[]", values)


def _holds(condition: bool, *sizes: int) -> None:
    if not condition:
        raise ValueError(f"these sizes do not go together: {', '.join(map(str, sizes))}")


def buzhash(
    table: tuple[int, ...], window: int, sizes: tuple[int, int], divisor: int, measure: Measure | None
) -> KernelChunker:
    """A cut where the hash of the last `window` bytes leaves divisor - 1. casync: src/cachunker.c."""
    _holds(1 <= window <= sizes[0] <= sizes[1] and 2 <= divisor < 1 << 31, window, *sizes, divisor)
    kernel = partial(lib.crules_buzhash, words(table, 32), window, *sizes, divisor, divisor - 1)
    return KernelChunker(kernel, window, b"", measure)


def buzhash_ahead(
    table: tuple[int, ...], window: int, sizes: tuple[int, int], mask_bits: int, measure: Measure | None
) -> KernelChunker:
    """A cut where the low bits of the hash of the next `window` bytes are 0. borg 1: src/borg/_chunker.c."""
    _holds(
        min(window, sizes[0]) >= 1 and window + sizes[0] < sizes[1] and 1 <= mask_bits <= 30, window, *sizes, mask_bits
    )
    kernel = partial(lib.crules_buzhash_ahead, words(table, 32), window, *sizes, 1 << mask_bits, 0)
    return KernelChunker(kernel, 0, b"", measure)


def gear64(table: tuple[int, ...], mask: int, sizes: tuple[int, int], measure: Measure | None) -> KernelChunker:
    """A cut where the bits of `mask` of the gear hash are 0. xet: xet_data/src/deduplication/chunking.rs."""
    _holds(64 <= sizes[0] <= sizes[1], *sizes)
    return KernelChunker(partial(lib.crules_gear, words(table, 64), mask, *sizes), 64, b"", measure)


def rabin(polynomial: int, mask_bits: int, sizes: tuple[int, int], measure: Measure | None) -> KernelChunker:
    """A cut where the low bits of Rabin's fingerprint of the last 64 bytes are 0. restic: github.com/restic/chunker."""
    shift = tables.degree(polynomial) - 8
    _holds(64 <= sizes[0] <= sizes[1] and 0 <= shift <= 45, *sizes, shift + 8)
    out, mod = (words(table, 64) for table in tables.rabin(polynomial, 64))
    kernel = partial(lib.crules_rabin, out, mod, shift, (1 << mask_bits) - 1, *sizes)
    return KernelChunker(kernel, 64, b"", measure)


def fastcdc(masks: tuple[int, int], sizes: tuple[int, int, int], measure: Measure | None) -> KernelChunker:
    """FastCDC of 2020, with the mask until the mean size and the one from there on. The crate fastcdc: src/v2020."""
    _holds(2 <= sizes[0] <= sizes[1] <= sizes[2] and all(size % 2 == 0 for size in sizes), *sizes)
    return KernelChunker(partial(lib.crules_fastcdc, words(tables.FASTCDC, 64), *masks, *sizes), 0, b"", measure)


def rolling_sum(bits: int, hole_bytes: int, measure: Measure | None) -> KernelChunker:
    """A cut where the low bits of bup's sum of the last 64 bytes are 1, and about runs of at least `hole_bytes` zeros,
    which are holes. zstd:chunked: containers/storage, pkg/chunked/compressor.
    """
    _holds(1 <= bits <= 16 and hole_bytes >= 1, bits, hole_bytes)
    return KernelChunker(partial(lib.crules_rolling_sum, bits, hole_bytes), 64, bytes(64), measure)
