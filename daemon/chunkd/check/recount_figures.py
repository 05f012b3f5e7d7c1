"""The part of a recount that covers the histogram and the recompressed lengths, in a window of chunk numbers.

It is written differently from the counting that it checks.
"""

from __future__ import annotations

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.check.result import MAX_DIFFERENCES, RecountResult
from chunkd.figures import histogram
from chunkd.index import blocks, records
from chunkd.index.blocks import Numbers
from chunkd.index.storage.environment import Store
from chunkd.model import MeasureRule


def count_histogram(result: RecountResult, lengths: Numbers, copies: Numbers, max_bytes: int) -> None:
    """Add the live chunks to the result's rows."""
    live = copies > 0
    lengths, copies = lengths[live], copies[live]
    for row in range(histogram.ROWS):
        if row < histogram.COPIES_ROWS:
            least, most = histogram.copies_of(row)
            there = (copies >= least) & (copies <= most)
        else:
            least, most = histogram.sizes_of(row - histogram.COPIES_ROWS, max_bytes)
            there = (lengths >= least) & (lengths <= most)
        if there.any():
            own, times = lengths[there], copies[there]
            sums = (len(own), int(times.sum()), int(own.sum()), int(own @ times))
            result.histogram[row] = [old + new for old, new in zip(result.histogram[row], sums, strict=True)]


def count_measured(
    store: Store,
    txn: lmdb.Transaction,
    result: RecountResult,
    window: Numbers,
    slots: NDArray[np.void],
    copies: Numbers,
    rule: MeasureRule,
) -> NDArray[np.bool_]:
    """Sum up the recompressed lengths. Returns which chunks of the window lack a possible length that they must have.

    Reports lengths of other chunks as differences.
    """
    wanted = (copies > 0) & (slots["high"] >> np.uint64(48) < rule.threshold)
    recompressed = _read(store, txn, result, window)
    lengths = (slots["use"] & blocks.LENGTH_MASK).astype(np.int64)
    least, most = blocks.frame_bounds(lengths)
    possible = (recompressed >= least) & (recompressed <= most)
    for at in np.flatnonzero(wanted != (recompressed > 0))[:MAX_DIFFERENCES].tolist():
        expected = "a recompressed length" if wanted[at] else "none, as it is not one of the measured"
        result.differ("measured", f"chunk {int(window[at])}", expected, f"{recompressed[at]} bytes")
    for at in np.flatnonzero(wanted & (recompressed > 0) & ~possible)[:MAX_DIFFERENCES].tolist():
        result.differ("measured", f"chunk {int(window[at])}", "a frame's length", f"{recompressed[at]} bytes")
    result.count("measured", lengths[wanted], recompressed[wanted], copies[wanted])
    return wanted & ~possible


def _read(store: Store, txn: lmdb.Transaction, result: RecountResult, window: Numbers) -> Numbers:
    """The recompressed lengths of the chunks with these (consecutive) numbers, 0 where there is none."""
    found = np.zeros(len(window), np.int64)
    first, last = int(window[0]) // blocks.SLOTS, int(window[-1]) // blocks.SLOTS
    next_number = store.head(txn).next_number
    for key, value in store.walk(txn, "measured", blocks.block_key(first - 1) if first else b""):
        if key >= blocks.block_key(last + 1):
            break
        try:
            if not value:
                raise records.Damaged("no length")
            numbers, lengths = blocks.unpack_measured([blocks.block_of(key)], [value])
            if int(numbers[-1]) >= next_number:
                raise records.Damaged(f"it has chunk {int(numbers[-1])} of {next_number}")
        except records.Damaged as error:
            result.differ("measured", key.hex(), "recompressed lengths", error)
            continue
        found[numbers - window[0]] = lengths
    return found


def measured_beyond(store: Store, txn: lmdb.Transaction, result: RecountResult, next_number: int) -> None:
    """Check that no block of chunk numbers that are not given out yet has recompressed lengths."""
    blocks_begun = -(-next_number // blocks.SLOTS)
    for key, _ in store.walk(txn, "measured", blocks.block_key(blocks_begun - 1) if blocks_begun else b""):
        if key >= blocks.block_key(blocks_begun):
            result.differ("measured", key.hex(), f"nothing from chunk {next_number} on", "recompressed lengths")
