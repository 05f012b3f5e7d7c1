"""The images of an index at one moment: blobs, what they say and their names; recipes and chunk records when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkd.errors import TooManyImages
from chunkd.images.atoms import Chunks, Numbers
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, build
from chunkd.images.moves import Recipes
from chunkd.index import blocks, records
from chunkd.index.chunks.table import BATCH_BLOCKS, batches
from chunkd.index.storage.environment import Store
from chunkd.model import Digest
from chunkd.names import record
from chunkd.names.name import Name, Standing
from chunkd.queries.read import moment
from chunkd.worker import manifest_record
from chunkd.worker.manifest import Contents, Kind

if TYPE_CHECKING:
    import lmdb

# Each takes some 300 bytes while the figures are computed.
MOST_BLOBS = MOST_EDGES = MOST_NAMES = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """The images, and where their names come from. Images and recipes read chunk records while the transaction of the
    reading is open, and not after it.

    `names` are those of all sources. `sources` has for each named digest the sources of its names (`registry`,
    `layout`, ...). `linked` has for each digest the repositories of a registry that have a revision of it. `has_index`:
    some manifest is a list of others.
    """

    images: Images
    blobs: Mapping[Digest, BlobFacts]
    recipes: Recipes
    names: Sequence[Name]
    sources: Mapping[Digest, frozenset[str]]
    linked: Mapping[Digest, list[str]]
    has_index: bool


def names_as_of(store: Store, txn: lmdb.Transaction) -> str | None:
    """Since when the names are known to be so, as `record.names_as_of_ns` has it. Raises Damaged."""
    try:
        readings = {cache: record.decode_reading(value) for cache, value in store.name_readings(txn).items()}
    except record.BadNames as error:
        raise records.Damaged(f"when names were read: {error}") from error
    return moment(record.names_as_of_ns(readings, store.caches(txn)) or 0)


def read(store: Store, txn: lmdb.Transaction) -> Reading:
    """Raises TooManyImages, and Damaged for a record that is not what it must be."""
    manifests = ((records.digest_from_key(key), value) for key, value in store.walk(txn, "manifests"))
    contents = contents_of(manifests, records.Damaged)
    blobs: dict[Digest, BlobFacts] = {}
    layers: dict[Digest, int] = {}
    chunk_counts: dict[Digest, int] = {}
    for blob in store.blobs(txn, "blobs"):
        bound(len(blobs) + 1, MOST_BLOBS, "blobs")
        blobs[blob.digest] = BlobFacts(blob.stored_bytes, contents.get(blob.digest))
        if blob.state == "layer":
            layers[blob.digest], chunk_counts[blob.digest] = blob.uncompressed_bytes, blob.chunks
    names: list[Name] = []
    sources: dict[Digest, frozenset[str]] = {}
    linked: dict[Digest, list[str]] = {}
    for source, name in _names(store, txn):
        bound(len(names) + 1, MOST_NAMES, "names")
        names.append(name)
        if name.standing is Standing.NAMED:
            sources[name.digest] = sources.get(name.digest, frozenset()) | {source}
        elif name.standing is Standing.HELD and source == "registry":
            linked.setdefault(name.digest, []).append(name.repository)
    recipes = recipes_of(store, txn, chunk_counts)
    images = Images.of(build(blobs, names), blobs, layers, chunks_of(store, txn, recipes))
    has_index = any(said.kind is Kind.INDEX for said in contents.values())
    return Reading(images, blobs, recipes, names, sources, linked, has_index)


def bound(count: int, most: int, what: str, whose: str = "the index") -> None:
    """Raises TooManyImages."""
    if count > most:
        raise TooManyImages(f"{whose} has more than {most} {what}")


def contents_of(
    manifests: Iterable[tuple[Digest, bytes]], bad: Callable[[str], Exception], whose: str = "the index"
) -> dict[Digest, Contents]:
    """What each manifest, index and config says. Equal digests are one object, as most are named several times. Raises
    what `bad` makes of a record that is not one, and TooManyImages.
    """
    found: dict[Digest, Contents] = {}
    known: dict[Digest, Digest] = {}
    edges = 0
    for digest, value in manifests:
        try:
            said = manifest_record.decode(value)
        except manifest_record.BadRecord as error:
            raise bad(f"what {digest} says: {error}") from error
        edges += len(said.edges)
        bound(edges, MOST_EDGES, "descriptors in its manifests", whose)
        own = tuple(edge._replace(digest=known.setdefault(edge.digest, edge.digest)) for edge in said.edges)
        found[digest] = Contents(said.kind, own, said.created_s, said.platform)
    return found


def _names(store: Store, txn: lmdb.Transaction) -> Iterator[tuple[str, Name]]:
    """Each name with its source."""
    for key, value in store.names(txn):
        try:
            part = record.decode(value).part
        except record.BadNames as error:
            raise records.Damaged(f"the names {key.hex()}: {error}") from error
        for name in part.names or ():
            yield part.source, name


def recipes_of(store: Store, txn: lmdb.Transaction, chunk_counts: Mapping[Digest, int]) -> Recipes:
    """The chunks of the transaction's moment; only what is asked for is read. The length of a dead chunk is 0."""
    table = store.databases["chunks"]

    def recipe(digest: Digest) -> Numbers:
        packed = store.get(txn, "recipes", records.digest_key(digest)) or b""
        return blocks.unpack_recipe(packed, chunk_counts[digest])

    def lengths(numbers: Numbers) -> Numbers:
        found = np.zeros(len(numbers), np.int64)
        for rows, slots, _, within in batches(txn, table, numbers):
            use = slots["use"][within]
            found[rows] = np.where(use >> blocks.LENGTH_BITS > 0, use & blocks.LENGTH_MASK, np.uint64(0))
        return found

    def measured(numbers: Numbers) -> Numbers:
        held, recompressed = _measured(store, txn, np.unique(numbers // blocks.SLOTS).tolist())
        found = np.zeros(len(numbers), np.int64)
        _, rows, of = np.intersect1d(numbers, held, assume_unique=True, return_indices=True)
        found[rows] = recompressed[of]
        return found

    return Recipes(chunk_counts, recipe, lengths, measured, lambda: store.head(txn).totals.sample)


def chunks_of(store: Store, txn: lmdb.Transaction, recipes: Recipes) -> Chunks:
    """The same by ranges of chunk numbers."""

    def lengths(low: int, high: int) -> Numbers:
        step = BATCH_BLOCKS * blocks.SLOTS
        steps = (np.arange(first, min(first + step, high)) for first in range(low, high, step))
        return np.concatenate([np.empty(0, np.int64), *map(recipes.lengths, steps)])

    def measured(low: int, high: int) -> tuple[Numbers, Numbers]:
        wanted = list(range(low // blocks.SLOTS, -(-high // blocks.SLOTS)))
        numbers, recompressed = _measured(store, txn, wanted)
        within = (numbers >= low) & (numbers < high)
        return numbers[within], recompressed[within]

    return Chunks(store.head(txn).next_number, recipes.recipe, lengths, measured)


def _measured(store: Store, txn: lmdb.Transaction, wanted: list[int]) -> tuple[Numbers, Numbers]:
    """The measured chunks in some blocks, and their recompressed lengths."""
    values = [txn.get(blocks.block_key(block), b"", db=store.databases["measured"]) for block in wanted]
    return blocks.unpack_measured(wanted, values)
