"""What was served and what would have moved, for a day, a repository or a whole log; and as the JSON of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from chunkd.figures.net_saving import LEAST_MEASURED, STORE_BYTES_A_CHUNK, Estimate
from chunkd.pulls.layer_classes import Lacked


@dataclass(slots=True)
class Moved:
    """What one kind of cache makes move. Layers as they are: `layers_bytes` in `layers_requests`. As chunks:
    `whole_bytes` of all that has no chunks, in as many requests as blobs; recipes, one request each; and chunks, with
    `chunk_bytes` before compression, in `runs`. The rest are sums over the measured ones among these.
    """

    layers_bytes: int = 0
    layers_requests: int = 0
    whole_bytes: int = 0
    whole_requests: int = 0
    recipes: int = 0
    recipe_chunks: int = 0
    chunk_bytes: int = 0
    runs: int = 0
    n: int = 0
    x: int = 0
    y: int = 0

    def add(self, stored_bytes: int, lacked: Lacked | None, chunks: int) -> None:
        """A blob that the cache did not have: a layer of so many chunks, or one that moves as it is."""
        self.layers_bytes += stored_bytes
        self.layers_requests += 1
        if lacked is None:
            self.whole_bytes += stored_bytes
            self.whole_requests += 1
            return
        self.recipes += 1
        self.recipe_chunks += chunks
        self.chunk_bytes += lacked.bytes
        self.runs += lacked.runs
        n, x, y = lacked.measured
        self.n += n
        self.x += x
        self.y += y

    def recompressed_bytes(self, whole: Moved) -> int | None:
        """Estimated by the measured chunks among them, or by those of the whole log if there are too few."""
        own = self if self.n >= LEAST_MEASURED or self.x == self.chunk_bytes else whole
        if not self.chunk_bytes:
            return 0
        return (2 * self.chunk_bytes * own.y + own.x) // (2 * own.x) if own.x else None

    def to_json(self, recompressed: Estimate) -> dict[str, Any]:
        others_bytes = self.whole_bytes + STORE_BYTES_A_CHUNK * self.recipe_chunks
        found, error_bytes = recompressed
        return {
            "layers": {"bytes": self.layers_bytes, "requests": self.layers_requests},
            "chunks": {
                "bytes": None if found is None else found + others_bytes,
                "error_bytes": error_bytes,
                "uncompressed_bytes": self.chunk_bytes,
                "recompressed_bytes": found,
                "recipe_bytes": STORE_BYTES_A_CHUNK * self.recipe_chunks,
                "whole_bytes": self.whole_bytes,
                "ranges": self.runs,
                "requests": self.runs + self.recipes + self.whole_requests,
            },
        }


@dataclass(slots=True)
class Row:
    """`not_indexed_bytes` are those of `served_bytes` that are of a digest which is not in the index."""

    served_bytes: int = 0
    served_requests: int = 0
    redirected: int = 0
    not_indexed_bytes: int = 0
    each: Moved = field(default_factory=Moved)
    shared: Moved = field(default_factory=Moved)

    def plus(self, other: Row) -> Row:
        """The sums of both."""
        found: Row = _plus(self, other)
        return found

    def to_json(self, whole: Row, errors: tuple[Estimate, Estimate] | None = None) -> dict[str, Any]:
        """`errors` are the estimates with their errors, for a cache in each client and for one, if they are known."""
        each, shared = errors or (
            Estimate(self.each.recompressed_bytes(whole.each), None),
            Estimate(self.shared.recompressed_bytes(whole.shared), None),
        )
        return {
            "served": {"bytes": self.served_bytes, "requests": self.served_requests, "redirected": self.redirected},
            "not_indexed_bytes": self.not_indexed_bytes,
            "own_caches": self.each.to_json(each),
            "shared_cache": self.shared.to_json(shared),
        }


def _plus(one: Any, other: Any) -> Any:
    if isinstance(one, int):
        return one + other
    return type(one)(*(_plus(getattr(one, name.name), getattr(other, name.name)) for name in fields(one)))


class Rows:
    """Rows by a name that comes from a log: the first `most` names have their own, the others share one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows: dict[Any, Row] = {}
        self.rest = Row()

    def row(self, name: Any) -> Row:
        found = self.rows.get(name)
        if found is None:
            if len(self.rows) >= self._most:
                return self.rest
            found = self.rows[name] = Row()
        return found
