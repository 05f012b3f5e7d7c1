"""What a change of copies does to the figures over unique chunks: their sums, the sample's, and the histogram."""

from __future__ import annotations

import numpy as np

from chunkd.figures import histogram
from chunkd.index.blocks import Numbers

# Products of two lengths (24 bits each) that are summed up in 63 bits.
PRODUCTS_AT_ONCE = 1 << 14


class FigureDelta:
    """By how much figures grow, batch by batch: `totals` by the names of `model.Totals`, and the histogram."""

    def __init__(self, max_bytes: int) -> None:
        self._step_bytes = histogram.size_step_bytes(max_bytes)
        self.totals = dict.fromkeys(("uncompressed_bytes", "unique_chunks", "unique_bytes"), 0)
        self.table = np.zeros((histogram.ROWS, len(histogram.COLUMNS)), np.int64)

    def turn(self, lengths: Numbers, before: Numbers, after: Numbers) -> Numbers:
        """Chunks of these lengths had so many copies and now have others; 1 for what came to life, -1 for what died."""
        turned = (after > 0).astype(np.int64) - (before > 0)
        self.totals["uncompressed_bytes"] += int(lengths @ (after - before))
        self.totals["unique_chunks"] += int(turned.sum())
        self.totals["unique_bytes"] += int(lengths @ turned)
        # What had copies leaves its rows, what has some comes into them.
        both = np.concatenate((before, after))
        there = np.flatnonzero(both)
        self._spread(lengths[there % len(lengths)], both[there], np.where(there < len(lengths), -1, 1))
        return turned

    def _spread(self, lengths: Numbers, copies: Numbers, signs: Numbers) -> None:
        # The exponent of copies - 1 is its bit length: 0, 1, 2, 2, 3 for 1, 2, 3, 4, 5 copies.
        by_copies = np.frexp((copies - 1).astype(np.float64))[1]
        by_size = (lengths - 1) // self._step_bytes
        # Summed up by both at once, in one pass over the chunks; numpy sorts 16 bits by radix.
        kinds = (by_copies * histogram.SIZE_ROWS + by_size).astype(np.uint16)
        order = np.argsort(kinds, kind="stable")
        kinds = kinds[order]
        starts = np.flatnonzero(np.concatenate(([True], kinds[1:] != kinds[:-1]))[: len(kinds)])
        figures = signs * np.stack((np.ones_like(copies), copies, lengths, lengths * copies))
        sums = np.add.reduceat(figures[:, order], starts, axis=1).T
        of_copies, of_size = np.divmod(kinds[starts].astype(np.int64), histogram.SIZE_ROWS)
        np.add.at(self.table, of_copies, sums)
        np.add.at(self.table, histogram.COPIES_ROWS + of_size, sums)

    def measure(self, lengths: Numbers, recompressed: Numbers, sign: int) -> None:
        """Measured chunks came to life, or died."""
        x, y = lengths, recompressed
        sums = {
            "measured_chunks": len(x), "measured_bytes": int(x.sum()), "measured_recompressed_bytes": int(y.sum()),
            "measured_xx": dot(x, x), "measured_xy": dot(x, y), "measured_yy": dot(y, y),
        }  # fmt: skip
        for name, figure in sums.items():
            self.totals[name] = self.totals.get(name, 0) + sign * figure


def dot(left: Numbers, right: Numbers) -> int:
    """The sum of products, exact however many there are."""
    pieces = range(0, len(left), PRODUCTS_AT_ONCE)
    return sum(int(left[at : at + PRODUCTS_AT_ONCE] @ right[at : at + PRODUCTS_AT_ONCE]) for at in pieces)
