"""The replies of `updates`: what a client moves from one version of a repository to the next ones, and the medians."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from chunkd.errors import UsageError
from chunkd.figures.words import shown
from chunkd.images.collection import MOST_SHOWN
from chunkd.images.diff import Plan, Side, between
from chunkd.images.moves import TooManyChunks
from chunkd.images.pages import Reply
from chunkd.images.pull import pulled
from chunkd.images.read import Reading
from chunkd.images.references import alike
from chunkd.images.versions import Order, Step, by_push, by_version
from chunkd.model import Digest
from chunkd.names.name import Name, Standing, split_reference
from chunkd.worker.manifest import Kind

DISTANCES = (1, 2, 5, 10)
# The latest versions of one repository, and of each when all are asked for.
MOST_VERSIONS, MOST_VERSIONS_EACH = 1000, 101
# For one reply: the chunks along the layers of both sides of each pair, and for each of their blobs as many as take as
# long. Some 60 s; 10,000 images of 16,000 chunks have three quarters of it.
MOST_WORK = 3 << 27
WORK_A_BLOB = 10
NAMES_SHOWN = 20

_MEDIANS = ("median_layer_bytes", "median_chunk_bytes", "median_cheaper_bytes")
_IMAGES = frozenset({Kind.IMAGE, Kind.SCHEMA_1, Kind.INDEX})

_Pair = tuple[tuple[int, int], Side, Side]


def updates(reading: Reading, reference: str, platform: str) -> Reply:
    """The object of `updates --json` for a repository, or for the history of a tag; for all repositories if the
    reference is "". Raises UsageError.
    """
    names = _by_repository(reading.names)
    if not reference:
        return _of_all(reading, names, platform)
    repository, tag = (reference, "") if reference in names else split_reference(reference)
    own = [name for name in names.get(repository, ()) if tag in ("", name.tag)]
    if not own:
        near = alike(reference, names)
        there = f"; there are {', '.join(map(shown, near))}" if near else ""
        raise UsageError(f"no image has a name in {shown(repr(reference))}{there}")
    return _of_one(reading, repository, tag, own, platform)


class _Found(NamedTuple):
    """The images of a repository in their order, the longest series last; and how many were left out."""

    order: Order
    series: list[list[Side]]
    left_out: dict[str, int]


class _Run:
    """What one reply is computed from, and the work that is left for it."""

    def __init__(self, reading: Reading, platform: str) -> None:
        self._reading, self._platform = reading, platform
        self._kinds = {root.digest: root.kind for root in reading.images.graph.roots}
        self._left = MOST_WORK

    def found(self, repository: str, tag: str, names: Sequence[Name], most: int) -> _Found:
        """At most so many images, those that are last in their series."""
        here = [name for name in names if name.digest in self._reading.blobs]
        images = [name for name in here if self._is_image(name.digest)]
        order = by_version(name for name in images if name.tag and name.standing is Standing.NAMED)
        if tag or order.kind is None:
            pushes = by_push(images)
            order = pushes if tag or pushes.kind or not order.steps else order
        series: list[list[Side]] = []
        for _, steps in groupby(order.steps, key=lambda step: step.series):
            series.append([self._side(repository, step) for step in steps])
        fitting = [[side for side in own if not self._platform or side.pulled.platforms] for own in series]
        latest = sorted((back, at) for at, own in enumerate(fitting) for back in range(len(own)))[:most]
        lengths = Counter(at for _, at in latest)
        kept = [own[len(own) - lengths[at] :] for at, own in enumerate(fitting) if lengths[at]]
        left_out = {
            "absent": len({name.digest for name in names} - {name.digest for name in here}),
            "not_images": len({name.digest for name in here} - {name.digest for name in images}),
            "unordered": len(order.unordered),
            "without_platform": sum(map(len, series)) - sum(map(len, fitting)),
            "earlier": sum(map(len, fitting)) - len(latest),
        }
        return _Found(order, sorted(kept, key=len), left_out)

    def pulls(self, pairs: Sequence[tuple[Any, Side | None, Side]]) -> Iterator[tuple[Any, Reply]]:
        """The replies of pairs, each beside its key, one after the other until all work is spent."""
        for key, client, to in pairs:
            if self._left <= 0:
                return
            clients = [client] if client else []
            plan = between(self._reading, clients, to, self._platform)
            self._left -= WORK_A_BLOB * sum(len(side.pulled.blobs) for side in (*clients, to))
            if plan.layers:
                counts = plan.recipes.counts
                self._left -= sum(counts[layer] for some in (plan.client, plan.image) for layer in some)
            yield key, _reply(plan)

    def _is_image(self, digest: Digest) -> bool:
        """An image that a tag pointed to before may be a part of another one now."""
        if digest in self._kinds:
            return self._kinds[digest] in ("image", "index")
        contents = self._reading.blobs[digest].contents
        return contents is not None and contents.kind in _IMAGES

    def _side(self, repository: str, step: Step) -> Side:
        names = tuple(f"{repository}:{tag}" for tag in step.tags[:NAMES_SHOWN])
        return Side(step.digest, names, pulled(self._reading.blobs, step.digest, self._platform))


def _of_one(reading: Reading, repository: str, tag: str, names: Sequence[Name], platform: str) -> Reply:
    run = _Run(reading, platform)
    found = run.found(repository, tag, names, MOST_VERSIONS)
    if not found.series and found.left_out["without_platform"]:
        raise UsageError(f"no image of {shown(repository)} has {shown(platform)} here")
    first = [reply for _, reply in run.pulls([(None, None, own[-1]) for own in found.series[-1:]])]
    replies: list[list[Reply]] = []
    distances = []
    for distance in DISTANCES:
        wanted = _pairs(found.series, distance)
        of_distance = list(run.pulls(sorted(wanted, key=lambda pair: pair[0][0])))
        replies.append(_in_order(of_distance))
        left_out = len(wanted) - len(of_distance)
        distances.append({"distance": distance} | _medians(replies[-1]) | {"left_out": left_out})
    return {
        "repository": repository,
        "tag": tag or None,
        "platform": platform or None,
        "order": found.order.kind,
        "versions": sum(map(len, found.series)),
        "series": len(found.series),
        "same_time": found.order.same_time,
        "left_out": found.left_out | {"tags": list(found.order.unordered[:MOST_SHOWN])},
        "first_pull": first[0] if first else None,
        "distances": distances,
        "pairs": replies[0],
    }


def _of_all(reading: Reading, names: Mapping[str, Sequence[Name]], platform: str) -> Reply:
    """A row for each repository, those first in which chunks would save most."""
    run = _Run(reading, platform)
    all_found = {repository: run.found(repository, "", own, MOST_VERSIONS_EACH) for repository, own in names.items()}
    wanted = [
        ((at, repository), client, to)
        for repository, found in all_found.items()
        for at, client, to in _pairs(found.series, 1)
    ]
    # The latest of each repository first, so that a bound takes the earlier ones of all.
    wanted.sort(key=lambda pair: pair[0][0][0])
    replies: dict[str, list[tuple[tuple[int, int], Reply]]] = {}
    for (at, repository), reply in run.pulls(wanted):
        replies.setdefault(repository, []).append((at, reply))
    rows = []
    for repository, found in all_found.items():
        pairs = _in_order(replies.get(repository, ()))
        known = [pair for pair in pairs if _is_known(pair)]
        layer_bytes = sum(pair["layers"]["stored_bytes"] for pair in known)
        chunk_bytes = sum(pair["chunks"]["total_bytes"] for pair in known)
        rows.append(
            {
                "repository": repository,
                "order": found.order.kind,
                "versions": sum(map(len, found.series)),
                "layer_bytes": layer_bytes,
                "chunk_bytes": chunk_bytes,
                "saved_bytes": layer_bytes - chunk_bytes,
                "saved": (layer_bytes - chunk_bytes) / layer_bytes if layer_bytes else None,
            }
            | _medians(pairs)
            | {"last": pairs[-1] if pairs else None}
        )
    rows.sort(key=lambda row: (row["pairs"] == row["unknown"], -row["saved_bytes"], row["repository"]))
    known_rows = [row for row in rows if row["pairs"] > row["unknown"]]
    saved = [row["saved"] for row in known_rows if row["saved"] is not None]
    return {
        "platform": platform or None,
        "most_pairs": MOST_VERSIONS_EACH - 1,
        "left_out": {"pairs": len(wanted) - sum(map(len, replies.values()))},
        "median": {"repositories": len(known_rows)}
        | {name: _median([row[name] for row in known_rows]) for name in _MEDIANS}
        | {"median_saved": statistics.median(saved) if saved else None},
        "repositories": rows,
    }


def _by_repository(names: Sequence[Name]) -> dict[str, list[Name]]:
    """What a tag points to, or pointed to before."""
    found: dict[str, list[Name]] = {}
    for name in names:
        if name.repository and name.standing is not Standing.HELD:
            found.setdefault(name.repository, []).append(name)
    return {
        repository: own
        for repository, own in sorted(found.items())
        if any(name.standing is Standing.NAMED for name in own)
    }


def _pairs(series: Sequence[Sequence[Side]], distance: int) -> list[_Pair]:
    """Those of a series that are so far apart. The key of each is how far it is from the end of its series, and its
    place among all.
    """
    found: list[_Pair] = []
    for own in series:
        for at in range(distance, len(own)):
            found.append(((len(own) - at, len(found)), own[at - distance], own[at]))
    return found


def _in_order(replies: Sequence[tuple[tuple[int, int], Reply]]) -> list[Reply]:
    return [reply for _, reply in sorted(replies, key=lambda one: one[0][1])]


def _reply(plan: Plan) -> Reply:
    """The reply of `diff`, without its layers. Chunks that are too many are unknown."""
    try:
        found = plan.reply()
    except TooManyChunks:
        found = replace(plan, is_whole=False).reply()
    of_all = ("to", "from_names", "to_names", "partial", "pulled", "layers", "chunks", "cheaper", "measured_by")
    return {"from": found["from"][0] if found["from"] else None} | {name: found[name] for name in of_all}


def _is_known(pair: Reply) -> bool:
    """Whether both schemes are known. Chunks of what a partial client has may count as missing, so they are not."""
    chunks = pair["chunks"]
    return chunks is not None and chunks["total_bytes"] is not None and not pair["partial"]["from"]


def _medians(pairs: Sequence[Reply]) -> Reply:
    """Over the pairs of which both schemes are known. `dearer` counts those that cost more as chunks, `without_error`
    those with too few measured chunks of their own.
    """
    known = [pair for pair in pairs if _is_known(pair)]
    as_layers = [pair["layers"]["stored_bytes"] for pair in known]
    as_chunks = [pair["chunks"]["total_bytes"] for pair in known]
    columns = (as_layers, as_chunks, [pair["cheaper"]["bytes"] for pair in known])
    return {
        "pairs": len(pairs),
        "unknown": len(pairs) - len(known),
        "dearer": sum(layers < chunks for layers, chunks in zip(as_layers, as_chunks, strict=True)),
        "without_error": sum(pair["chunks"]["recompressed_error_bytes"] is None for pair in known),
        "median_requests": _median([pair["chunks"]["runs"] for pair in known]),
        "median_blobs": _median([pair["layers"]["blobs"] for pair in known]),
    } | dict(zip(_MEDIANS, map(_median, columns), strict=True))


def _median(values: Sequence[int]) -> int | None:
    """The middle one; of two in the middle their mean, rounded down."""
    in_order, half = sorted(values), len(values) // 2
    return (in_order[half] + in_order[-half - 1]) // 2 if in_order else None
