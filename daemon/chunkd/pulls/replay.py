"""Goes through the lines of logs, and adds up what was served and what caches would have made move."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np

from chunkd.figures.net_saving import estimate
from chunkd.pulls import log_lines
from chunkd.pulls.clients import Clients
from chunkd.pulls.layer_classes import LayerClasses
from chunkd.pulls.log_lines import Kind, Other, Pull, Unread
from chunkd.pulls.rows import Row, Rows

DAY_S = 86_400
# Rows beyond these share one.
MOST_DAYS = 1000
MOST_REPOSITORIES = 10_000
REPOSITORIES_SHOWN = 100
# Digests that are not in the index. Further ones are taken for new each time that they are pulled.
MOST_UNKNOWN = 1 << 18


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index has at one moment: for each blob its number and its bytes on disk, by the digest as a log has it.
    Layers have the first numbers, and `chunks` has for each the chunks of its recipe.
    """

    blobs: Mapping[bytes, tuple[int, int]]
    chunks: Sequence[int]
    classes: LayerClasses


class Replay:
    """The sums over all lines so far. Addresses are kept only as hashes with a key that is forgotten at the end."""

    def __init__(self, indexed: Indexed) -> None:
        self._indexed = indexed
        self._layers = len(indexed.chunks)
        self._clients = Clients(self._layers, indexed.classes)
        self._key = secrets.token_bytes(16)
        self._unknown: dict[bytes, int] = {}
        self._shared: set[int] = set()
        classes = indexed.classes
        self._shared_have = np.zeros(classes.bits_bytes, np.uint8)
        # How often each class moved to a client.
        self._times = np.zeros(len(classes.weights.bytes), np.int64)
        self._days, self._repositories = Rows(MOST_DAYS), Rows(MOST_REPOSITORIES)
        self._lines: Counter[Unread | Other] = Counter()
        self._pulls = 0
        self._from_s, self._to_s = log_lines.END_S, -1

    def file(self, lines: Iterable[bytes]) -> Iterator[int]:
        """Take the lines of one file; yields the number of pulls now and then.

        Where a file has lines with named fields, its lines of an access log are the same requests. A line that is more
        than a day older than the one before is not read.
        """
        structured, before_s = False, 0
        for number, line in enumerate(lines):
            if not number & 0xFFF:
                yield self._pulls
            pull = log_lines.read(line)
            if not isinstance(pull, Pull):
                self._lines[pull] += 1
                continue
            if structured and not pull.structured:
                self._lines[Other.TWICE] += 1
                continue
            structured |= pull.structured
            if pull.at_s < before_s - DAY_S:
                self._lines[Unread.CLOCK_BACK] += 1
            else:
                self._pull(pull)
            before_s = pull.at_s
        yield self._pulls

    def _pull(self, pull: Pull) -> None:
        self._pulls += 1
        if pull.at_s < self._from_s:
            self._from_s = pull.at_s
        if pull.at_s > self._to_s:
            self._to_s = pull.at_s
        rows = self._days.row(pull.at_s // DAY_S), self._repositories.row(pull.repository)
        found = self._indexed.blobs.get(pull.reference)
        by_tag = found is None and pull.kind is Kind.MANIFEST and b":" not in pull.reference
        for row in rows:
            row.served_bytes += pull.served_bytes
            row.served_requests += 1
            row.redirected += pull.redirected
            if found is None and not by_tag:
                row.not_indexed_bytes += pull.served_bytes
        blob, stored_bytes = found or (None if by_tag else self._number(pull.reference), pull.served_bytes)
        client = int.from_bytes(blake2b(pull.client, digest_size=8, key=self._key).digest())
        self._move(client, blob, stored_bytes, rows)

    def _number(self, reference: bytes) -> int | None:
        """Of a digest that is not in the index; None for one more than are remembered."""
        name = blake2b(reference, digest_size=12).digest()
        found = self._unknown.get(name)
        if found is None and len(self._unknown) < MOST_UNKNOWN:
            found = self._unknown[name] = len(self._indexed.blobs) + len(self._unknown)
        return found

    def _move(self, client: int, blob: int | None, stored_bytes: int, rows: tuple[Row, Row]) -> None:
        """A blob without a number moves to every cache each time."""
        chunks = 0 if blob is None or blob >= self._layers else self._indexed.chunks[blob]
        first = self._clients.pull(client, blob)
        if first is not None:
            if first.lacked is not None:
                self._times[first.lacked.classes] += 1
            for row in rows:
                row.each.add(stored_bytes, first.lacked, chunks)
        if blob in self._shared:
            return
        lacked = None
        if blob is not None:
            self._shared.add(blob)
            if blob < self._layers:
                lacked = self._clients.lacked(blob, self._shared_have)
                self._indexed.classes.put(blob, self._shared_have)
        for row in rows:
            row.shared.add(stored_bytes, lacked, chunks)

    def to_json(self) -> dict[str, Any]:
        """The object of `replay --json`, but for the index's time."""
        whole = self._days.rest
        for row in self._days.rows.values():
            whole = whole.plus(row)
        weights = self._indexed.classes.weights
        moved = [weights.totals(times) for times in (self._times, np.minimum(self._times, 1))]
        each, shared = (estimate(sample, chunks, size) for size, chunks, sample in moved)
        assert (moved[0][0], moved[1][0]) == (whole.each.chunk_bytes, whole.shared.chunk_bytes)
        return {
            "from": _time(self._from_s) if self._pulls else None,
            "to": _time(self._to_s) if self._pulls else None,
            "lines": {
                "pulls": self._pulls,
                "others": self._lines[Other.NOT_A_PULL],
                "twice": self._lines[Other.TWICE],
                "unread": {why.value: self._lines[why] for why in Unread},
            },
            "clients": self._clients.seen,
            "forgotten_clients": self._clients.forgotten,
            **whole.to_json(whole, (each, shared)),
            **self._by_day(whole),
            **self._by_repository(whole),
        }

    def _by_day(self, whole: Row) -> dict[str, Any]:
        days = sorted(self._days.rows.items())
        return {
            "days": [{"day": _time(day * DAY_S)[:10]} | row.to_json(whole) for day, row in days],
            "other_days": self._days.rest.to_json(whole),
        }

    def _by_repository(self, whole: Row) -> dict[str, Any]:
        named = sorted(self._repositories.rows.items(), key=lambda item: (-item[1].served_bytes, item[0]))
        rest = self._repositories.rest
        for _, row in named[REPOSITORIES_SHOWN:]:
            rest = rest.plus(row)
        return {
            "repositories": [
                {"repository": name.decode(errors="backslashreplace")} | row.to_json(whole)
                for name, row in named[:REPOSITORIES_SHOWN]
            ],
            "other_repositories": rest.to_json(whole),
        }


def _time(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
