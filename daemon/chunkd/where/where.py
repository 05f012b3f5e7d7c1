"""`chunkd where`: layers are read again, and each byte that a chunk store would not keep twice gets its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chunkd.check.check import compare
from chunkd.check.read_again import read_again
from chunkd.errors import UsageError
from chunkd.images import answers, references
from chunkd.images.atoms import members
from chunkd.images.graph import Graph
from chunkd.images.read import Reading, read
from chunkd.index.storage.environment import Store, reading_first
from chunkd.model import Digest
from chunkd.settings.config import Config
from chunkd.where import groups
from chunkd.where.causes import Layers
from chunkd.where.traced import Traced, Tracers

if TYPE_CHECKING:
    import lmdb

# Without a reference, so many uncompressed bytes are read at most: some minutes on two cores.
SAMPLE_BYTES = 16 << 30
MOST_UNREAD_NAMED = 100

Show = Callable[[int, int, int], object]


@dataclass(frozen=True, slots=True)
class Question:
    """Of which layers, and how they are shown. `reference` is an image, a repository or `""`; `one_in` is which part of
    the layers is read, 0 for what SAMPLE_BYTES allow.
    """

    reference: str = ""
    by: str = groups.DIRECTORY
    depth: int = 3
    one_in: int = 0


def part_of(text: str) -> int:
    """The N of `1/N`. Raises UsageError."""
    found = re.fullmatch(r"1/([1-9][0-9]{0,5})", text)
    if found is None:
        raise UsageError("--layers takes a part of the layers, such as 1/4")
    return int(found[1])


def where(config: Config, states: Sequence[str], question: Question, show: Show) -> tuple[dict[str, Any], str]:
    """The whole reply, and the state directory of the index that says which layers there are. `show` is called with the
    stored bytes read, those to read, and the layers to go.

    Raises IndexMissing, UsageError for a reference to nothing that is there, TooMuchToTrace.
    """
    with reading_first(states) as (store, state_dir), store.snapshot() as txn:
        return _where(store, txn, config, question, show), state_dir


def _where(store: Store, txn: lmdb.Transaction, config: Config, question: Question, show: Show) -> dict[str, Any]:
    rules = store.check_format(txn, None)
    known = read(store, txn)
    sizes = {blob.digest: blob.uncompressed_bytes for blob in store.blobs(txn, "blobs") if blob.state == "layer"}
    chosen = _chosen(known, sizes, question)
    layers = Layers(rules.params)
    unread: dict[Digest, str] = {}
    damaged: dict[Digest, str] = {}
    to_read = {digest: known.blobs[digest].stored_bytes for digest in chosen.layers}
    total_bytes, done_bytes = sum(to_read.values()), 0

    def tell(read_bytes: int) -> None:
        show(min(total_bytes, done_bytes + read_bytes), total_bytes, len(to_read))

    found = read_again(
        store, txn, config, replace(rules.measure, one_in=1 << 16), chosen.layers, start=Tracers, progress=tell
    )
    for digest, finding in found:
        done_bytes += to_read.pop(digest)
        if not isinstance(finding, Traced):
            unread[digest] = "can't be read" if finding is None else finding.reason or finding.kind
        elif difference := compare(store, txn, digest, finding):
            unread[digest] = f"is not what the index says: {difference}"
        else:
            layers.add(digest, finding.recipe, finding.trace)
            if finding.trace.damaged:
                damaged[digest] = finding.trace.damaged
    attribution = layers.attribute(
        {digest: known.recipes.recipe(digest) for digest in chosen.layers if digest not in unread}
    )
    made, left_out = groups.rows(attribution, question.by, question.depth, chosen.images)
    causes = attribution.by_cause()
    return answers.head(store, txn) | {
        "of": chosen.said,
        "one_in": chosen.one_in,
        "layers": len(chosen.layers) - len(unread),
        "uncompressed_bytes": attribution.uncompressed_bytes,
        "unique_bytes": attribution.unique_bytes,
        "copied_bytes": attribution.uncompressed_bytes - attribution.unique_bytes,
        "causes": {f"{cause}_bytes": size for cause, size in causes.items()},
        "by": question.by,
        "depth": question.depth if question.by == groups.DIRECTORY else None,
        "rows": made,
        "left_out": left_out,
        "outside_bytes": attribution.outside_bytes,
        "unread": _named(unread),
        "unread_layers": len(unread),
        "damaged": _named(damaged),
        "damaged_layers": len(damaged),
    }


def _named(problems: dict[Digest, str]) -> list[dict[str, str]]:
    return [{"digest": str(digest), "reason": problems[digest]} for digest in sorted(problems)[:MOST_UNREAD_NAMED]]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The layers to read, in order, the images that hold each, and what they are, for the reply."""

    layers: list[Digest]
    images: dict[Digest, list[str]]
    said: dict[str, Any]
    one_in: int


def _chosen(known: Reading, layers: dict[Digest, int], question: Question) -> _Chosen:
    """`layers` has the uncompressed bytes of each."""
    graph = known.images.graph
    wanted, what = _meant(graph, question.reference)
    held = {digest: holders & wanted for digest, holders in graph.holders_of() if digest in layers}
    digests = sorted(digest for digest, holders in held.items() if holders or not question.reference)
    one_in = question.one_in or (1 if question.reference else part_within(digests, layers))
    digests = [digest for digest in digests if is_picked(digest, one_in)]
    called = [root.names[0] if root.names else str(root.digest) for root in graph.roots]
    images = {
        digest: [called[number] for number in members(held[digest]).tolist()] for digest in digests if held[digest]
    }
    meant = [graph.roots[number] for number in members(wanted).tolist()] if wanted else []
    said = {
        "what": what,
        "reference": question.reference or None,
        "images": len(meant),
        "missing_blobs": sum(root.missing_blobs for root in meant) if question.reference else 0,
    }
    return _Chosen(digests, images, said, one_in)


def _meant(graph: Graph, reference: str) -> tuple[int, str]:
    """The set of images, and whether that is `all`, a `repository` or `images`."""
    if not reference:
        return (1 << len(graph.roots)) - 1, "all"
    own = sum(1 << number for number, root in enumerate(graph.roots) if reference in root.repositories)
    if own:
        return own, "repository"
    return references.resolve(graph, [reference]).images, "image"


def part_within(digests: list[Digest], layers: dict[Digest, int]) -> int:
    """The largest part that SAMPLE_BYTES allow, a power of two."""
    one_in = 1
    while sum(layers[digest] for digest in digests if is_picked(digest, one_in)) > SAMPLE_BYTES:
        one_in *= 2
    return one_in


def is_picked(digest: Digest, one_in: int) -> bool:
    """By the digest alone: the same layers each time, whatever others there are."""
    return int(digest.hex[:16], 16) * one_in < 1 << 64
