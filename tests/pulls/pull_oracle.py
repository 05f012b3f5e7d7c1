"""What a replay must say, in plain Python, from the definitions: it shares no code with chunkd.

Each client has a set of blobs and a set of chunks; every chunk is looked at, one after the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

RECIPE_BYTES = 40
SHOWN = 100


class Get(NamedTuple):
    """One GET. `reference` is a digest, or a tag of a manifest."""

    day: str
    client: str
    repository: str
    reference: str
    served_bytes: int
    redirected: bool = False


@dataclass
class Known:
    """What the index has: sizes on disk; of layers their chunks in order as (chunk, length); recompressed lengths."""

    sizes: dict[str, int]
    layers: dict[str, list[tuple[int, int]]]
    measured: dict[int, int]


@dataclass
class Side:
    """What moved into one kind of cache."""

    layers_bytes: int = 0
    layers_requests: int = 0
    whole_bytes: int = 0
    whole_requests: int = 0
    recipes: int = 0
    recipe_bytes: int = 0
    runs: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Cache:
    blobs: set[str] = field(default_factory=set)
    chunks: set[int] = field(default_factory=set)

    def pull(self, known: Known, get: Get, size: int, by_tag: bool, sides: Iterable[Side]) -> None:
        if get.reference in self.blobs:
            return
        if not by_tag:
            self.blobs.add(get.reference)
        layer = known.layers.get(get.reference)
        moved, runs, before = [], 0, False
        for chunk, length in layer or ():
            lacks = chunk not in self.chunks
            if lacks:
                self.chunks.add(chunk)
                moved.append((chunk, length))
                runs += not before
            before = lacks
        for side in sides:
            side.layers_bytes += size
            side.layers_requests += 1
            if layer is None:
                side.whole_bytes += size
                side.whole_requests += 1
            else:
                side.recipes += 1
                side.recipe_bytes += RECIPE_BYTES * len(layer)
                side.runs += runs
                side.chunks += moved


@dataclass
class Line:
    served_bytes: int = 0
    requests: int = 0
    redirected: int = 0
    not_indexed_bytes: int = 0
    own: Side = field(default_factory=Side)
    shared: Side = field(default_factory=Side)


class Oracle:
    def __init__(self, known: Known, gets: Sequence[Get], least_measured: int = 31) -> None:
        self.known, self.least = known, least_measured
        self.whole = Line()
        self.days: dict[str, Line] = {}
        self.repositories: dict[str, Line] = {}
        clients: dict[str, Cache] = {}
        everybody = Cache()
        for get in gets:
            rows = [
                self.whole,
                self.days.setdefault(get.day, Line()),
                self.repositories.setdefault(get.repository, Line()),
            ]
            by_tag = ":" not in get.reference
            indexed = get.reference in known.sizes
            size = known.sizes[get.reference] if indexed else get.served_bytes
            for row in rows:
                row.served_bytes += get.served_bytes
                row.requests += 1
                row.redirected += get.redirected
                row.not_indexed_bytes += 0 if indexed or by_tag else get.served_bytes
            clients.setdefault(get.client, Cache()).pull(known, get, size, by_tag, [row.own for row in rows])
            everybody.pull(known, get, size, by_tag, [row.shared for row in rows])
        self.clients = len(clients)

    def ratio(self, side: Side) -> Fraction | None:
        some = [(length, self.known.measured[chunk]) for chunk, length in side.chunks if chunk in self.known.measured]
        return Fraction(sum(y for _, y in some), sum(x for x, _ in some)) if some else None

    def estimated(self, side: Side, whole: Side) -> int | None:
        """With the ratio of its own measured chunks, unless they are few and not all."""
        if not side.chunks:
            return 0
        few = sum(chunk in self.known.measured for chunk, _ in side.chunks)
        ratio = self.ratio(side if few >= self.least or few == len(side.chunks) else whole)
        return None if ratio is None else rounded(ratio * sum(length for _, length in side.chunks))

    def error(self, side: Side) -> int | None:
        """Of the whole: a chunk that moves k times is one of k times its length. Cochran, sections 6.2 to 6.4."""
        times, lengths = Counter(chunk for chunk, _ in side.chunks), dict(side.chunks)
        some = [chunk for chunk in times if chunk in self.known.measured]
        if len(some) == len(times):
            return 0
        if len(some) < self.least:
            return None
        xs = [times[chunk] * lengths[chunk] for chunk in some]
        ys = [times[chunk] * self.known.measured[chunk] for chunk in some]
        ratio = Fraction(sum(ys), sum(xs))
        # Two chunks are assumed that do not compress.
        assumed = 2 * (1 - ratio) ** 2 * Fraction(sum(x * x for x in xs), len(xs))
        spread = (sum((y - ratio * x) ** 2 for x, y in zip(xs, ys, strict=True)) + assumed) / (len(some) - 1)
        all_bytes = sum(times[chunk] * lengths[chunk] for chunk in times)
        variance = (Fraction(all_bytes, sum(xs))) ** 2 * len(some) * (1 - Fraction(len(some), len(times))) * spread
        return math.ceil(1.96 * math.sqrt(math.floor(variance)))

    def side(self, side: Side, whole: Side, error: int | None) -> dict[str, Any]:
        found = self.estimated(side, whole)
        return {
            "layers": {"bytes": side.layers_bytes, "requests": side.layers_requests},
            "chunks": {
                "bytes": None if found is None else found + side.whole_bytes + side.recipe_bytes,
                "error_bytes": error,
                "uncompressed_bytes": sum(length for _, length in side.chunks),
                "recompressed_bytes": found,
                "recipe_bytes": side.recipe_bytes,
                "whole_bytes": side.whole_bytes,
                "ranges": side.runs,
                "requests": side.runs + side.recipes + side.whole_requests,
            },
        }

    def row(self, line: Line, *, errors: bool = False) -> dict[str, Any]:
        return {
            "served": {"bytes": line.served_bytes, "requests": line.requests, "redirected": line.redirected},
            "not_indexed_bytes": line.not_indexed_bytes,
            "own_caches": self.side(line.own, self.whole.own, self.error(line.own) if errors else None),
            "shared_cache": self.side(line.shared, self.whole.shared, self.error(line.shared) if errors else None),
        }

    def to_json(self) -> dict[str, Any]:
        names = sorted(self.repositories, key=lambda name: (-self.repositories[name].served_bytes, name))
        return {
            "clients": self.clients,
            "forgotten_clients": 0,
            **self.row(self.whole, errors=True),
            "days": [{"day": day} | self.row(self.days[day]) for day in sorted(self.days)],
            "repositories": [{"repository": name} | self.row(self.repositories[name]) for name in names[:SHOWN]],
        }


def rounded(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
