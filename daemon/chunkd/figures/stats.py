"""The figures of one moment and how fresh they are, as the one JSON object of `stats`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chunkd.figures.names import FIGURES, value_of
from chunkd.figures.totals import Totals
from chunkd.model import CacheState, Caps, ChunkParams, MeasureRule


@dataclass(frozen=True, slots=True)
class Stats:
    """The figures and how fresh they are: a read-only snapshot. Times are RFC 3339 in UTC.

    The pending figures are None without a daemon, unless the last writer ended with nothing left to do.
    `unlisted_folders` counts folders whose last listing failed, None without a daemon; `problems` are at most 20
    sentences on what the figures may lack.
    """

    totals: Totals
    pending_blobs: int | None
    pending_bytes: int | None
    as_of: str | None
    scanned_at: str | None
    watching: bool
    index_bytes: int
    params: ChunkParams
    caps: Caps
    caches: tuple[CacheState, ...]
    measure: MeasureRule = MeasureRule()
    warnings: tuple[str, ...] = ()
    changes: Mapping[str, Mapping[str, Any] | None] = field(default_factory=lambda: {"day": None, "week": None})
    unlisted_folders: int | None = None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The one object of `stats --json`, `GET /v1/stats` and `scan --json`. docs/figures.md explains its names."""
        own = {
            "pending_blobs": self.pending_blobs, "pending_bytes": self.pending_bytes, "index_bytes": self.index_bytes,
            "unlisted_folders": self.unlisted_folders,
        }  # fmt: skip
        return {
            **{name: own[name] if name in own else value_of(name, self.totals) for name in FIGURES},
            "as_of": self.as_of,
            "scanned_at": self.scanned_at,
            "watching": self.watching,
            "params": _fields(self.params) | {"caps": _fields(self.caps), "measure": _fields(self.measure)},
            "caches": [
                _fields(cache) | {"layouts": list(cache.layouts), "warnings": list(cache.warnings)}
                for cache in self.caches
            ],
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "changes": dict(self.changes),
            "images": None,  # only a daemon computes them beside its work
        }


def _fields(of: Any) -> dict[str, Any]:
    """As `asdict`, but for its copy of each value, which takes seven times as long."""
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
