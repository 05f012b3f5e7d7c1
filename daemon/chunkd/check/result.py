"""What a recount finds: the true figures, and each difference as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

from chunkd.figures import histogram
from chunkd.figures.totals import TOTALS, sums
from chunkd.model import Difference

MAX_DIFFERENCES = 1000


@dataclass
class RecountResult:
    """The true figures, the differences, and the blobs whose own records are bad."""

    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOTALS, 0))
    dead_chunks: int = 0
    young_entries: int = 0
    histogram: list[list[int]] = field(
        default_factory=lambda: [[0] * len(histogram.COLUMNS) for _ in range(histogram.ROWS)]
    )
    differences: list[Difference] = field(default_factory=list)
    bad: set[bytes] = field(default_factory=set)
    # Blobs with a chunk whose true hash or recompressed length only reading them can tell.
    doubtful: set[bytes] = field(default_factory=set)

    def differ(self, record: str, key: object, expected: object, found: object) -> None:
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(Difference(record, str(key), str(expected), str(found)))

    def count(self, kind: str, *things: object) -> None:
        """Add things of a kind to the totals that are sums over that kind."""
        for name, more in sums(kind, *things).items():
            self.totals[name] += more

    def compare(self, record: str, key: object, expected: object, found: object) -> None:
        if expected != found:
            self.differ(record, key, expected, found)
