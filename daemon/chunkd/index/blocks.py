"""The index's packed arrays, both ways: a block of chunk records, and a recipe as runs of chunk numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chunkd.index.records import Damaged

if TYPE_CHECKING:
    from typing_extensions import Buffer

Numbers = NDArray[np.int64]

# 170 slots of 24 bytes are 4080: with LMDB's header of 16 a block fills one page of 4096.
SLOTS = 170
SLOT = np.dtype([("low", "<u8"), ("high", "<u8"), ("use", "<u8")])
BLOCK_BYTES = SLOTS * SLOT.itemsize

# A measured chunk: its slot in the block, and its recompressed length.
MEASURED = np.dtype([("slot", "u1"), ("length", "<u4")])

# `use` holds the chunk's length in its low 24 bits and its copies in the 40 above.
LENGTH_BITS = np.uint64(24)
LENGTH_MASK = np.uint64((1 << 24) - 1)
MAX_COPIES = (1 << 40) - 1
# The most chunks of a recipe: more would be 8 TiB at the least. So no sum of counts can wrap, whatever a record says.
MAX_RECIPE_CHUNKS = 1 << 32
# The most chunks that an index has: a number has 5 bytes in the look-up's entries.
MAX_CHUNKS = 1 << 40


def block_key(block: int) -> bytes:
    return block.to_bytes(8, "big")


def block_of(key: bytes) -> int:
    """Raises Damaged for a key that `block_key` can't make, or a block beyond the largest chunk number."""
    block = int.from_bytes(key, "big")
    if len(key) != len(block_key(0)) or block * SLOTS >= MAX_CHUNKS:
        raise Damaged(f"{key.hex()} is not a block")
    return block


def zigzag(signed: Numbers) -> NDArray[np.uint64]:
    return ((signed << 1) ^ (signed >> 63)).view(np.uint64)


def unzigzag(folded: NDArray[np.uint64]) -> Numbers:
    return (folded >> np.uint64(1)).view(np.int64) ^ -(folded & np.uint64(1)).view(np.int64)


def pack_varints(values: NDArray[np.uint64]) -> bytes:
    """LEB128: 7 bits a byte, low ones first, the top bit set on all but the last."""
    widths = np.ones(len(values), np.int64)
    rest = values >> np.uint64(7)
    while rest.any():
        widths += rest != 0
        rest >>= np.uint64(7)
    ends = np.cumsum(widths)
    packed = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(widths.max(initial=0))):
        has = widths > place
        septet = (values[has] >> np.uint64(7 * place)) & np.uint64(0x7F)
        more = np.where(widths[has] > place + 1, np.uint64(0x80), np.uint64(0))
        packed[(ends - widths)[has] + place] = septet | more
    return packed.tobytes()


def unpack_varints(packed: bytes) -> NDArray[np.uint64]:
    """Raises Damaged when the last number has no end, or one is wider than 9 bytes (63 bits) or than it need be."""
    octets = np.frombuffer(packed, np.uint8)
    if not len(octets):
        return np.empty(0, np.uint64)
    last = np.flatnonzero(octets < 0x80)
    if not len(last) or last[-1] != len(octets) - 1:
        raise Damaged("its last number has no end")
    starts = np.concatenate(([0], last[:-1] + 1))
    widths = last - starts + 1
    if widths.max() > 9:
        raise Damaged("a number is wider than 63 bits")
    if (octets[last[widths > 1]] == 0).any():
        raise Damaged("a number is wider than it need be")
    places = np.arange(len(octets)) - np.repeat(starts, widths)
    parts = (octets & 0x7F).astype(np.uint64) << (places * 7).astype(np.uint64)
    return np.add.reduceat(parts, starts)


def pack_recipe(numbers: Numbers) -> bytes:
    """Runs of consecutive chunk numbers: the zigzag of (first - the previous run's end), then the count."""
    if not len(numbers):
        return b""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1))
    counts = np.diff(np.concatenate((starts, [len(numbers)])))
    firsts = numbers[starts]
    ends = np.concatenate(([0], (firsts + counts)[:-1]))
    runs = np.empty((len(starts), 2), np.uint64)
    runs[:, 0] = zigzag(firsts - ends)
    runs[:, 1] = counts
    return pack_varints(runs.ravel())


def unpack_recipe(packed: bytes, chunks: int) -> Numbers:
    """The chunk numbers of a recipe of `chunks` chunks. Raises Damaged, before unfolding, if it has another count.

    Only the bytes that `pack_recipe` makes of these numbers are accepted.
    """
    values = unpack_varints(packed)
    if len(values) % 2:
        raise Damaged("a run has no count")
    steps, counts = unzigzag(values[0::2]), values[1::2].view(np.int64)
    if chunks > MAX_RECIPE_CHUNKS or (counts <= 0).any() or (counts > chunks).any() or int(counts.sum()) != chunks:
        raise Damaged(f"its runs do not hold {chunks} chunks")
    if not len(counts):
        return np.empty(0, np.int64)
    if (steps[1:] == 0).any():
        raise Damaged("two of its runs should be one")
    bounds = np.cumsum(counts)
    firsts = np.cumsum(steps) + bounds - counts
    # Each step is within 63 bits, so a first number past the end shows here before a later step leads back.
    if (firsts < 0).any() or (firsts > MAX_CHUNKS - counts).any():
        raise Damaged("a chunk number is out of bounds")
    return np.repeat(firsts - (bounds - counts), counts) + np.arange(chunks)


def alive(block: bytes | memoryview) -> bool:
    """Whether any chunk of a packed block has copies."""
    use = np.frombuffer(block, SLOT)["use"]
    # The first slot usually answers.
    return bool(use[0] >> LENGTH_BITS) or bool((use >> LENGTH_BITS).any())


def used(block: bytes | memoryview) -> int:
    """How many slots of a packed block have a chunk."""
    return int(np.count_nonzero(np.frombuffer(block, SLOT)["use"]))


def picked(high: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    """Which chunks `model.MeasureRule` picks, by the second half of their hashes."""
    return high >> np.uint64(48) < np.uint64(threshold)


def frame_bounds(lengths: Numbers) -> tuple[Numbers, Numbers]:
    """The least and the most bytes of a chunk's zstd frame.

    Magic number 4, header 2, a block's header 3 and one byte (RFC 8878); and ZSTD_COMPRESSBOUND of zstd.h.
    """
    return np.full_like(lengths, 10), lengths + (lengths >> 8) + (np.maximum((128 << 10) - lengths, 0) >> 11)


def pack_measured(blocks: list[int], numbers: Numbers, lengths: Numbers) -> list[bytes]:
    """The recompressed lengths of sorted chunk numbers: one value for each of the blocks, empty for a block without."""
    packed = np.empty(len(numbers), MEASURED)
    packed["slot"], packed["length"] = numbers % SLOTS, lengths
    edges = [*numbers.searchsorted(np.array(blocks, np.int64) * SLOTS).tolist(), len(numbers)]
    return [packed[start:end].tobytes() for start, end in itertools.pairwise(edges)]


def unpack_measured(blocks: list[int], values: Sequence[Buffer]) -> tuple[Numbers, Numbers]:
    """The chunk numbers, sorted, and their recompressed lengths in these blocks' values.

    Raises Damaged for a value that `pack_measured` can't make.
    """
    sizes = np.array([len(value) for value in values], np.int64)  # type: ignore[arg-type]  # bytes, or views of them
    if (sizes % MEASURED.itemsize).any():
        raise Damaged("its last recompressed length is cut short")
    packed = np.frombuffer(bytearray().join(values), MEASURED)
    slots, lengths = packed["slot"].astype(np.int64), packed["length"].astype(np.int64)
    numbers = np.repeat(np.array(blocks, np.int64) * SLOTS, sizes // MEASURED.itemsize) + slots
    if (slots >= SLOTS).any() or (numbers[1:] <= numbers[:-1]).any() or (lengths == 0).any():
        raise Damaged("its recompressed lengths are impossible, or out of order")
    return numbers, lengths
