"""The sums of one rule over all layers, from their results: exact, or estimated from the chunks below a threshold.

A rule's chunks are gone through in several passes, each for one range of hashes, so memory is bounded whatever the
layers have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chunkd.figures import net_saving
from chunkd.figures.totals import Sample, dot
from chunkd.model import CHUNK_HASH_BYTES
from chunkd.sweep.messages import Totals
from chunkd.sweep.results import Result, ResultChanged, Results
from chunkd.worker.protocol import LENGTH_BYTES

# In one pass; it takes some 100 bytes for each.
PASS_CHUNKS = 1 << 19


class Chunks(NamedTuple):
    """Chunks in the order of a layer: the two halves of each hash, as numbers that sort as the hash does, the lengths,
    and the recompressed lengths, 0 for a chunk that was not measured.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    recompressed: NDArray[np.int64]

    def only(self, wanted: NDArray[Any]) -> Chunks:
        return Chunks(*(one[wanted] for one in self))


class RuleSums(NamedTuple):
    """What `net_saving` needs of a rule. `one_in` is 1 if all is exact; else the sums over unique chunks are estimated
    from one chunk in so many, and `unique_error_bytes` is half of a 95 % interval.
    """

    layer_stored_bytes: int
    uncompressed_bytes: int
    chunks: int
    unique_chunks: int
    unique_bytes: int
    sample: Sample
    measured_copies: tuple[int, int]
    one_in: int
    unique_error_bytes: int


def read(results: Results, result: Result, rule: int) -> Iterator[Chunks]:
    """The chunks of a rule in one layer, one block at a time. Raises ResultChanged."""
    threshold = results.question.measure.threshold
    for block, data in results.blocks(result, rule):
        lengths_at = block.chunks * CHUNK_HASH_BYTES
        measured_at = lengths_at + block.chunks * LENGTH_BYTES
        hashes = np.frombuffer(data[:lengths_at], ">u8").astype(np.uint64).reshape(-1, 2)
        lengths = np.frombuffer(data[lengths_at:measured_at], "<u4").astype(np.int64)
        is_measured = _is_measured(hashes[:, 1], threshold)
        if np.count_nonzero(is_measured) != block.measured or not lengths.all():
            raise ResultChanged(str(results.path(result.digest)))
        recompressed = np.zeros(block.chunks, np.int64)
        recompressed[is_measured] = np.frombuffer(data[measured_at:], "<u4")
        yield Chunks(hashes[:, 0], hashes[:, 1], lengths, recompressed)


def _is_measured(low: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    """By the last two bytes of the hash, little-endian, as `MeasureRule.picks`."""
    last = low & np.uint64(0xFFFF)
    return ((last >> np.uint64(8)) | ((last & np.uint64(0xFF)) << np.uint64(8))) < threshold


def summed(results: Results, layers: Sequence[Result], rule: int, totals: Totals, shift: int) -> RuleSums:
    """The sums of one rule over some layers, whose `totals` these are."""
    kept = totals.chunks - totals.holes >> shift
    passes = (max(0, -(-kept // PASS_CHUNKS) - 1)).bit_length()
    unique = unique_bytes = squares = 0
    sample = Sample()
    copies_x = copies_y = 0
    for number in range(1 << passes):
        pieces = [
            chunks.only(_in_range(chunks.high, shift, passes, number))
            for layer in layers
            for chunks in read(results, layer, rule)
        ]
        if not pieces:
            continue
        chunks = Chunks(*map(np.concatenate, zip(*pieces, strict=True)))
        del pieces
        chunks = chunks.only(np.lexsort((chunks.low, chunks.high)))
        begins = np.flatnonzero(
            np.concatenate(([True], (np.diff(chunks.high) != 0) | (np.diff(chunks.low) != 0)))[: len(chunks.high)]
        )
        copies = np.diff(begins, append=len(chunks.high))
        x, y = chunks.lengths[begins], chunks.recompressed[begins]
        unique += len(x)
        unique_bytes += int(x.sum())
        squares += sum(length * length for length in x.tolist()) if shift else 0
        is_measured = y > 0
        x, y, copies = x[is_measured], y[is_measured], copies[is_measured]
        more = Sample(len(x), int(x.sum()), int(y.sum()), exact_dot(x, x), exact_dot(x, y), exact_dot(y, y))
        sample = Sample(*(one + another for one, another in zip(sample, more, strict=True)))
        copies_x += int(x @ copies)
        copies_y += int(y @ copies)
    stored_bytes = sum(layer.stored_bytes for layer in layers)
    one_in = 1 << shift
    # Each chunk is kept with a chance of 1 / one_in, by its hash alone (Horvitz and Thompson).
    error_bytes = math.ceil(net_saving.DEVIATIONS_95 * math.sqrt(squares * one_in * (one_in - 1)))
    return RuleSums(
        stored_bytes, totals.bytes - totals.hole_bytes, totals.chunks, unique * one_in, unique_bytes * one_in,
        sample, (copies_x, copies_y), one_in, error_bytes,
    )  # fmt: skip


def figures(sums: RuleSums) -> dict[str, Any]:
    """The figures of the net saving, and its parts. The error has that of the unique bytes in it."""
    found = net_saving.figures(sums) | net_saving.parts(sums)
    error_bytes = found["recompressed_error_bytes"]
    if sums.unique_error_bytes and error_bytes is not None:
        ratio = found["recompressed_bytes"] / max(1, sums.unique_bytes)
        found["recompressed_error_bytes"] = math.ceil(math.hypot(error_bytes, ratio * sums.unique_error_bytes))
    return found


def _in_range(high: NDArray[np.uint64], shift: int, passes: int, number: int) -> NDArray[np.bool_]:
    """Which of these hashes begin with `shift` zero bits and then with this number of `passes` bits."""
    if shift + passes == 0:
        return np.ones(len(high), np.bool_)
    found: NDArray[np.bool_] = high >> np.uint64(64 - shift - passes) == number
    return found


def exact_dot(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Exact for chunks of any length: `totals.dot` is for those below 16 MiB."""
    if len(one) and max(int(one.max()), int(other.max())) >= 1 << 24:
        return sum(left * right for left, right in zip(one.tolist(), other.tolist(), strict=True))
    return dot(one, other)
