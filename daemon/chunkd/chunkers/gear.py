"""Buffers to hashed chunks. The only importer of the native core, with BLAKE3 for the hashes."""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from chunkd.chunkers._cgear import ffi, lib
from chunkd.errors import KernelMissing
from chunkd.model import CHUNK_HASH_BYTES, ChunkParams, MeasureRule, Recipe

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from chunkd.chunkers._cgear import Array

GEAR_VALUES = 256
CUTS_PER_CALL = 4096
PIECE_BYTES = 16 << 20
# The fastest first. All cut alike; "plain" is the definition.
KERNELS = {"avx2": lib.cgear_cut_avx2, "scalar": lib.cgear_cut, "plain": lib.cgear_cut_plain}


@lru_cache(maxsize=1)
def kernels() -> tuple[str, ...]:
    """The names of the kernels that this build and this processor have, the fastest first."""
    return tuple(name for name in KERNELS if name != "avx2" or lib.cgear_has_avx2())


@lru_cache(maxsize=2)
def gear_table(seed: int) -> tuple[int, ...]:
    """256 values of 64 bits: SplitMix64, its state starting at `seed` and advanced before each value by the golden
    gamma.

    The generator and its constants are those of Vigna's public-domain splitmix64.c (2015), after Steele, Lea and Flood,
    "Fast Splittable Pseudorandom Number Generators" (OOPSLA 2014). The first value is thus that of `seed` advanced
    once, even if `seed` is the gamma itself, as in `ChunkParams`. Raises ValueError when `seed` does not fit in 64
    bits.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"gear_seed is of 64 bits, not {seed:#x}")
    values = []
    state = seed
    for _ in range(GEAR_VALUES):
        state = (state + 0x9E3779B97F4A7C15) % (1 << 64)
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % (1 << 64)
        values.append(mixed ^ (mixed >> 31))
    return tuple(values)


class Measure(Protocol):
    """Decides which chunks are recompressed, and measures their length then (`recompress.Recompressor`)."""

    rule: MeasureRule

    def length(self, name: bytes, chunk: Buffer, /) -> int: ...


@lru_cache(maxsize=2)
def _gear(seed: int) -> Array:
    """The table as the kernel takes it, which does not write to it."""
    return ffi.new("uint64_t[]", gear_table(seed))


class Chunker:
    """The chunks of one stream, fed as buffers and returned as a `Recipe` that does not depend on where buffers end.

    For one stream and one thread at a time. Holds 20 to 24 bytes a chunk and the open chunk's bytes, and no view of a
    buffer after `feed` returns. After `finish`, or an exception in `feed` other than for its argument, it can't be used
    again.
    """

    def __init__(self, params: ChunkParams, kernel: str | None = None, measure: Measure | None = None) -> None:
        """`kernel` is one of `kernels()`, by default the first; all make the same cuts. Without `measure` the recipe
        has no recompressed lengths.

        Raises KernelMissing for any other name, and ValueError when `params.gear_seed` does not fit in 64 bits.
        """
        if kernel is not None and kernel not in kernels():
            raise KernelMissing(kernel, kernels())
        self._cut = KERNELS[kernel or kernels()[0]]
        self._gear = _gear(params.gear_seed)
        self._params = (params.min_bytes, params.mask_bits, params.max_bytes)
        self._hash = ffi.new("uint64_t *")
        self._length = ffi.new("size_t *")
        self._cuts = ffi.new("size_t[]", CUTS_PER_CALL)
        # So many bytes that they can't have more cuts than one call returns, and that the call stays short.
        self._piece_bytes = min(CUTS_PER_CALL * params.min_bytes, PIECE_BYTES)
        self._open = bytearray()  # the open chunk's bytes in earlier buffers
        self._measure = measure
        self._threshold = measure.rule.threshold if measure else 0
        self._hashes = bytearray()
        self._lengths = array("I")
        self._measured = array("I")
        self._finished = False
        self._drained = 0

    def feed(self, buffer: Buffer) -> None:
        """Take in the stream's next bytes, any number of them.

        Raises TypeError when `buffer` is not bytes-like and contiguous, ValueError after `finish`.
        """
        if self._finished:
            raise ValueError("this chunker has finished: take a new one for each stream")
        opened = self._open
        with memoryview(buffer) as shaped, shaped.cast("B") as data, ffi.from_buffer("uint8_t[]", data) as pointer:
            begin = -self._length[0]  # of the open chunk: below 0 if it began in an earlier buffer
            for base in range(0, len(data), self._piece_bytes):
                piece_bytes = min(self._piece_bytes, len(data) - base)
                # Below 0 means no room for the cuts, or a missing kernel: ruled out above, and refused by `unpack`.
                count = self._cut(
                    self._gear,
                    *self._params,
                    self._hash,
                    self._length,
                    pointer + base,
                    piece_bytes,
                    self._cuts,
                    CUTS_PER_CALL,
                )
                for cut in ffi.unpack(self._cuts, count):
                    end = base + cut
                    if begin < 0:
                        opened += data[:end]
                        self._take(opened)
                        opened.clear()
                    else:
                        self._take(data[begin:end])
                    begin = end
            opened += data[max(begin, 0) :]

    def _take(self, chunk: bytearray | memoryview) -> None:
        """Hash a whole chunk, while the processor still has it in its cache."""
        digest = blake3(chunk).digest(CHUNK_HASH_BYTES)
        self._hashes += digest
        self._lengths.append(len(chunk))
        # The test of `MeasureRule.picks`, without a call for each chunk.
        if self._measure is not None and digest[14] | digest[15] << 8 < self._threshold:
            self._measured.append(self._measure.length(digest, chunk))

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
        if self._finished:
            raise ValueError("this chunker has finished: its recipe was given")
        self._finished = True
        if self._open:
            self._take(self._open)
        return self.drain()
