"""The data of a report: everything that chunkd can be asked, reduced to what fits on a page."""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chunkd.client.ask import Client
from chunkd.errors import IndexMoves, RequestRefused, TooManyImages
from chunkd.index.history import minute_of
from chunkd.queries.history import shown as shown_minute
from chunkd.queries.history import since_minute

LAYERS_SHOWN = 10
REPOSITORIES_SHOWN = 10
PAIRS_SHOWN = 10
POINTS_SHOWN = 300

Row = Mapping[str, Any]


class Layers(NamedTuple):
    """The layers that share most, and those that share the smallest part of their bytes.

    The former are at most ten, each with a shared byte. `alone` are layers without one, and `alone_stored_bytes` is
    what they take.
    """

    most: Sequence[Row]
    least: Sequence[Row]
    alone: int
    alone_stored_bytes: int


class ImagesSeen(NamedTuple):
    """The reply of `images` by repository and the pairs of `similar`; without the first, the `problem` why not. And the
    reply of `updates` for all repositories, or the `updates_problem`.
    """

    repositories: Row | None = None
    pairs: Sequence[Row] = ()
    problem: str = ""
    updates: Row | None = None
    updates_problem: str = ""


class Pulls(NamedTuple):
    """What was pulled on a day or of a repository: `bytes` as served, as layers, and as chunks if that is known."""

    name: str
    served_bytes: int
    layers_bytes: int
    chunks_bytes: int | None
    ranges: int


class Replayed(NamedTuple):
    """A replay: its sentences, what makes it less than the truth, its days, and the repositories pulled most."""

    sentences: tuple[str, ...]
    remarks: tuple[str, ...]
    days: tuple[Pulls, ...]
    repositories: tuple[Pulls, ...]


class Material(NamedTuple):
    """`moments` are rows of the history, with the `times` at which each begins and at which the last one ends.

    `moved` is true if the index changed in between, so that the parts show different moments.
    """

    stats: Row
    source: str
    histogram: Row
    moments: Sequence[Row]
    times: list[dt.datetime]
    layers: Layers
    images: ImagesSeen
    made_at: dt.datetime
    moved: bool
    replayed: Replayed | None = None


def gathered(client: Client, since: str, replayed: Replayed | None = None) -> Material:
    """From the daemon, or from the index if none answers. Raises as a `Client` does; UsageError for a bad `since`."""
    now = dt.datetime.fromtimestamp(int(time.time()), dt.UTC)
    start = _time(shown_minute(since_minute(since, minute_of(int(now.timestamp()) * 10**9))))
    before = client.stats()
    histogram = client.histogram()
    history = list(thinned(client.history(since), start, now))
    layers = chosen(client.layers())
    images = images_seen(client)
    stats = client.stats()
    times = _times(history, start, known_until(client.socket, stats, now))
    return Material(
        stats, client.source(stats["as_of"]), histogram, history, times, layers, images, now,
        moved=before["as_of"] != stats["as_of"], replayed=replayed,
    )  # fmt: skip


def images_seen(client: Client) -> ImagesSeen:
    """The other parts of a report do not depend on the images: there may be too many of them, or too many changes."""
    refusals = (IndexMoves, RequestRefused, TooManyImages)
    try:
        repositories = client.repositories()
        pairs = client.similar()["pairs"]
    except refusals as error:
        return ImagesSeen(problem=str(error))
    found = ImagesSeen(repositories, pairs[:PAIRS_SHOWN])
    try:
        return found._replace(updates=client.all_updates())
    except refusals as error:
        return found._replace(updates_problem=str(error))


def thinned(rows: Iterable[Row], start: dt.datetime, end: dt.datetime) -> Iterator[Row]:
    """At most 300 rows: the last one of each part of the time, because it holds until the next part.

    The time begins at `start`, or with the first row if that is later.
    """
    rest = iter(rows)
    for first in rest:
        begin = max(_time(first["at"]), start)
        part = max((end - begin) / POINTS_SHOWN, dt.timedelta(minutes=1))
        kept: dict[int, Row] = {}
        for row in itertools.chain([first], rest):
            # Rows that a clock ahead of time wrote belong to the last part.
            kept[min(max(_time(row["at"]) - begin, dt.timedelta()) // part, POINTS_SHOWN - 1)] = row
        yield from kept.values()


def chosen(layers: Iterable[Row]) -> Layers:
    """The layers that a report lists, chosen in one pass."""
    most: list[Row] = []
    least: list[Row] = []
    alone = alone_stored_bytes = 0
    rest = iter(layers)
    while some := list(itertools.islice(rest, 1000)):
        lonely = [layer for layer in some if not layer["shared_bytes"]]
        alone += len(lonely)
        alone_stored_bytes += sum(layer["stored_bytes"] for layer in lonely)
        sharing = [layer for layer in some if layer["shared_bytes"]]
        most = heapq.nsmallest(LAYERS_SHOWN, [*most, *sharing], lambda layer: (-layer["shared_bytes"], layer["digest"]))
        least = heapq.nsmallest(LAYERS_SHOWN, [*least, *some], _by_part_shared)
    return Layers(most, least, alone, alone_stored_bytes)


def _by_part_shared(layer: Row) -> tuple[float, int, str]:
    part = layer["shared_bytes"] / layer["uncompressed_bytes"]
    return part, -layer["uncompressed_bytes"], layer["digest"]


def known_until(socket: str, stats: Row, now: dt.datetime) -> dt.datetime:
    """Where the history's last row ends. Without a daemon's socket the present figures are unknown."""
    if socket:
        return now
    said = [stats["as_of"], stats["scanned_at"]]
    return max((_time(at) for at in said if at), default=now)


def _times(history: list[Row], start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    begins = [max(_time(row["at"]), start) for row in history]
    return [*begins, max([end, *begins])]


def _time(at: str) -> dt.datetime:
    return dt.datetime.fromisoformat(at)
