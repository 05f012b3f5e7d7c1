"""What a registry served by its logs, and what chunks would have moved."""

from __future__ import annotations

from typing import TypedDict


class Served(TypedDict):
    """What a registry served by its logs; `redirected` replies have no bytes there."""

    bytes: int
    requests: int
    redirected: int


class ReplayedLayers(TypedDict):
    """What would have moved as layers."""

    bytes: int
    requests: int


class ReplayedChunks(TypedDict):
    """What would have moved as chunks: `bytes` are compressed chunks, recipes, and what moves whole."""

    bytes: int | None
    error_bytes: int | None
    uncompressed_bytes: int
    recompressed_bytes: int | None
    recipe_bytes: int
    whole_bytes: int
    ranges: int
    requests: int


class Replayed(TypedDict):
    """What a kind of cache would have made move."""

    layers: ReplayedLayers
    chunks: ReplayedChunks


class Pulls(TypedDict):
    """What was pulled, with a cache in each client and with one for all. `not_indexed_bytes` are in no blob here."""

    served: Served
    not_indexed_bytes: int
    own_caches: Replayed
    shared_cache: Replayed


class DayPulls(Pulls):
    """The pulls of a day."""

    day: str


class RepositoryPulls(Pulls):
    """The pulls of a repository."""

    repository: str


class Unread(TypedDict):
    """The lines that were not read, by the reason."""

    too_long: int
    control_characters: int
    unknown_format: int
    bad_value: int
    clock_went_back: int


class Lines(TypedDict):
    """The lines of the logs. Those that are `twice` there count once."""

    pulls: int
    others: int
    twice: int
    unread: Unread


_FromTimes = TypedDict("_FromTimes", {"from": str | None, "to": str | None})


class Replay(_FromTimes, Pulls):
    """The pulls of a registry's logs. Of the clients, `forgotten_clients` count as new ones."""

    as_of: str | None
    lines: Lines
    clients: int
    forgotten_clients: int
    days: list[DayPulls]
    other_days: Pulls
    repositories: list[RepositoryPulls]
    other_repositories: Pulls
