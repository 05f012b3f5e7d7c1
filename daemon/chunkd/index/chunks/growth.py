"""How a change of copies changes the figures over unique chunks: their sums, the sample's sums, and the histogram."""

from __future__ import annotations

from collections import Counter

import numpy as np

from chunkd.figures import histogram
from chunkd.figures.totals import sums
from chunkd.index.blocks import Numbers


class FigureDelta:
    """By how much figures grow, summed over batches: `totals` by their names, and the histogram."""

    def __init__(self, max_bytes: int) -> None:
        self._step_bytes = histogram.size_step_bytes(max_bytes)
        self.totals: Counter[str] = Counter()
        self.table = np.zeros((histogram.ROWS, len(histogram.COLUMNS)), np.int64)

    def turn(self, lengths: Numbers, before: Numbers, after: Numbers) -> Numbers:
        """Count chunks of these lengths from `before` to `after` copies. Returns 1 for chunks that came to life, -1 for
        chunks that died, else 0.
        """
        for copies, sign in ((before, -1), (after, 1)):
            there = np.flatnonzero(copies)
            if len(there):
                self._add(sign, "chunks", lengths[there], copies[there])
                self._spread(sign, lengths[there], copies[there])
        return (after > 0).astype(np.int64) - (before > 0)

    def _spread(self, sign: int, lengths: Numbers, copies: Numbers) -> None:
        # The exponent of copies - 1 is its bit length: 0, 1, 2, 2, 3 for 1, 2, 3, 4, 5 copies.
        by_copies = np.frexp((copies - 1).astype(np.float64))[1]
        by_size = (lengths - 1) // self._step_bytes
        # Summed by copies and size together, in one pass over the chunks; numpy sorts 16 bits by radix.
        kinds = (by_copies * histogram.SIZE_ROWS + by_size).astype(np.uint16)
        order = np.argsort(kinds, kind="stable")
        kinds = kinds[order]
        starts = np.flatnonzero(np.concatenate(([True], kinds[1:] != kinds[:-1]))[: len(kinds)])
        figures = sign * np.stack((np.ones_like(copies), copies, lengths, lengths * copies))
        added = np.add.reduceat(figures[:, order], starts, axis=1).T
        of_copies, of_size = np.divmod(kinds[starts].astype(np.int64), histogram.SIZE_ROWS)
        np.add.at(self.table, of_copies, added)
        np.add.at(self.table, histogram.COPIES_ROWS + of_size, added)

    def measure(self, lengths: Numbers, recompressed: Numbers, before: Numbers, after: Numbers) -> None:
        """Count measured chunks of these lengths from `before` to `after` copies."""
        for copies, sign in ((before, -1), (after, 1)):
            there = np.flatnonzero(copies)
            self._add(sign, "measured", lengths[there], recompressed[there], copies[there])

    def _add(self, sign: int, kind: str, *things: Numbers) -> None:
        for name, step in sums(kind, *things).items():
            self.totals[name] += sign * step
