"""Buffers to hashed chunks. The only importer of the native core, with BLAKE3 for the hashes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from blake3 import blake3

from chunkd.chunkers import chunker
from chunkd.chunkers._cgear import ffi, lib
from chunkd.model import CHUNK_HASH_BYTES, ChunkParams

if TYPE_CHECKING:
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


@lru_cache(maxsize=2)
def _gear(seed: int) -> Array:
    """The table as the kernel takes it, which does not write to it."""
    return ffi.new("uint64_t[]", gear_table(seed))


class Chunker(chunker.Chunker):
    """The chunks by the gear hash. Also holds the open chunk's bytes."""

    def __init__(self, params: ChunkParams, kernel: str | None = None, measure: chunker.Measure | None = None) -> None:
        """`kernel` is one of `kernels()`, by default the first; all make the same cuts.

        Raises ValueError for any other name, and when `params.gear_seed` does not fit in 64 bits.
        """
        if kernel is not None and kernel not in kernels():
            raise ValueError(f"kernel {kernel}: this processor or build has {', '.join(kernels())}")
        super().__init__(measure)
        self._kernel = KERNELS[kernel or kernels()[0]]
        self._gear = _gear(params.gear_seed)
        self._params = (params.min_bytes, params.mask_bits, params.max_bytes)
        self._hash = ffi.new("uint64_t *")
        self._length = ffi.new("size_t *")
        self._cuts = ffi.new("size_t[]", CUTS_PER_CALL)
        # So many bytes that they can't have more cuts than one call returns, and that the call stays short.
        self._piece_bytes = min(CUTS_PER_CALL * params.min_bytes, PIECE_BYTES)
        self._open = bytearray()  # the open chunk's bytes in earlier buffers
        self._threshold = measure.rule.threshold if measure else 0

    def _cut(self, data: memoryview) -> None:
        opened = self._open
        with ffi.from_buffer("uint8_t[]", data) as pointer:
            begin = -self._length[0]  # of the open chunk: below 0 if it began in an earlier buffer
            for base in range(0, len(data), self._piece_bytes):
                piece_bytes = min(self._piece_bytes, len(data) - base)
                # Below 0 means no room for the cuts, or a missing kernel: ruled out above, and refused by `unpack`.
                count = self._kernel(
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

    def _end_file(self) -> None:
        if self._open:
            self._take(self._open)
