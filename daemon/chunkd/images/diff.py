"""The reply of `diff`: what a client that has some images moves to pull another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from chunkd.errors import UsageError
from chunkd.figures.words import shown
from chunkd.images import references
from chunkd.images.atoms import members
from chunkd.images.collection import MOST_SHOWN
from chunkd.images.graph import Graph
from chunkd.images.moves import Layer, Moves, Recipes, moves
from chunkd.images.pages import Reply
from chunkd.images.pull import Pulled, pulled
from chunkd.images.read import Reading
from chunkd.model import Digest

DECODED = "decoded"


def diff(reading: Reading, client: Sequence[str], to: str, platform: str) -> Reply:
    """The object of `diff --json` for what references mean; without any, the client has nothing. Raises UsageError."""
    return planned(reading, client, to, platform).reply()


class Side(NamedTuple):
    """An image that a client has or pulls, and what it pulls of it."""

    digest: Digest
    names: tuple[str, ...]
    pulled: Pulled


@dataclass(frozen=True, slots=True)
class Plan:
    """A pull, as far as it is known without the chunks of any layer.

    `client` are the cut layers that the client has. `layers` are those that it lacks, with their stored bytes, and
    `image` all cut layers of the image, both in the order of the pull. `is_whole`: all that the client lacks is here.
    """

    head: Reply
    client: tuple[Digest, ...]
    layers: dict[Digest, int]
    image: tuple[Digest, ...]
    recipes: Recipes
    is_whole: bool

    def reply(self, recipes: Recipes | None = None) -> Reply:
        """The whole reply. With recipes of their own, in which every chunk of `layers` is measured, it is exact.

        `chunks` and `cheaper` are null when a blob is not here that the client lacks. The `total_bytes` of `chunks` are
        recompressed chunks, recipes, and what is moved whole either way: manifests, configs, and layers that are not
        cut. `cheaper` has these too. `by_layer` are the cut layers that the client lacks. Raises TooManyChunks.
        """
        if not self.is_whole:
            return self.head | {"chunks": None, "cheaper": None, "measured_by": None, "by_layer": []}
        client = self.recipes.along(self.client if self.layers else ())
        found = moves(client, self.layers, recipes or self.recipes, self.image)
        if recipes is not None:
            found = replace(found, measured_by=DECODED)
        lacking = self.head["layers"]
        whole_blobs = lacking["blobs"] - len(self.layers)
        whole_bytes = lacking["stored_bytes"] - sum(self.layers.values())
        least_bytes, least_error_bytes = found.cheaper()
        cheaper = None if least_bytes is None else {
            "bytes": least_bytes + whole_bytes,
            "error_bytes": least_error_bytes,
            "whole_layers": sum(layer.is_cheaper_whole for layer in found.layers),
        }  # fmt: skip
        return self.head | {
            "chunks": _chunks(found) | {"whole_blobs": whole_blobs, "whole_bytes": whole_bytes}
            | {"total_bytes": _total(found, whole_bytes)},
            "cheaper": cheaper,
            "measured_by": found.measured_by,
            "by_layer": [_row(layer) for layer in found.layers],
        }  # fmt: skip


def planned(reading: Reading, client: Sequence[str], to: str, platform: str) -> Plan:
    """Raises UsageError for a reference that means nothing, and for a platform that an image does not have."""
    graph = reading.images.graph

    def side(number: int) -> Side:
        root = graph.roots[number]
        found = Side(root.digest, root.names, pulled(reading.blobs, root.digest, platform))
        if platform and not found.pulled.platforms:
            there = f"; there are {', '.join(root.platforms)}" if root.platforms else ""
            raise UsageError(f"{root.digest} has no {shown(platform)} here{there}")
        return found

    numbers, target = _meant(graph, client), references.one(graph, to)
    return between(reading, [side(number) for number in numbers], side(target), platform)


def between(reading: Reading, client: Sequence[Side], to: Side, platform: str) -> Plan:
    """What a client with these images pulls of another one, each for `platform`."""
    blobs, recipes, image = reading.blobs, reading.recipes, to.pulled
    has: dict[Digest, bool] = {}
    absent: set[Digest] = set()
    for side in client:
        has |= side.pulled.blobs
        absent |= side.pulled.missing.keys()
    lacking = [digest for digest in image.blobs if digest not in has]
    missing = {digest: size for digest, size in image.missing.items() if digest not in absent}
    head = {
        "from": [str(side.digest) for side in client],
        "from_names": [name for side in client for name in side.names][:MOST_SHOWN],
        "to": str(to.digest),
        "to_names": list(to.names[:MOST_SHOWN]),
        "platform": platform or None,
        "partial": {"from": len(absent), "to": len(missing), "to_bytes": sum(missing.values())},
        "pulled": {
            "layers": sum(image.blobs.values()),
            "stored_bytes": sum(blobs[digest].stored_bytes for digest in image.blobs),
        },
        "layers": {
            "missing": sum(image.blobs[digest] for digest in lacking),
            "blobs": len(lacking),
            "stored_bytes": sum(blobs[digest].stored_bytes for digest in lacking),
        },
    }
    return Plan(
        head,
        tuple(digest for digest in has if digest in recipes.counts),
        {digest: blobs[digest].stored_bytes for digest in lacking if digest in recipes.counts},
        tuple(digest for digest in image.blobs if digest in recipes.counts),
        recipes,
        not missing,
    )


def _meant(graph: Graph, client: Sequence[str]) -> list[int]:
    """The images of a client: a glob takes each image that has a name which matches, whatever its other names."""
    meant = references.resolve(graph, client)
    return sorted({*(members(meant.images).tolist() if meant.images else ()), *meant.kept})


def _total(found: Moves, whole_bytes: int) -> int | None:
    recompressed_bytes = found.recompressed.recompressed_bytes
    return None if recompressed_bytes is None else recompressed_bytes + found.recipe_bytes + whole_bytes


def _chunks(found: Moves) -> dict[str, Any]:
    return {
        "missing": found.missing,
        "bytes": found.bytes,
        "recompressed_bytes": found.recompressed.recompressed_bytes,
        "recompressed_error_bytes": found.recompressed.error_bytes,
        "recipe_bytes": found.recipe_bytes,
        "runs": found.runs,
        "ranges": [one._asdict() for one in found.ranges],
    }


def _row(layer: Layer) -> dict[str, Any]:
    return {
        "digest": str(layer.digest),
        "stored_bytes": layer.stored_bytes,
        "chunks": layer.chunks,
        "missing": layer.missing,
        "bytes": layer.bytes,
        "recompressed_bytes": layer.recompressed_bytes,
        "recipe_bytes": layer.recipe_bytes,
        "runs": layer.runs,
        "cheaper": None if layer.as_chunks_bytes is None else "whole" if layer.is_cheaper_whole else "chunks",
    }
