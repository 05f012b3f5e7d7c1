"""The images of an index at one moment: blobs, what they say and their names; recipes and chunk records when asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chunkd.images.atoms import Chunks, Numbers
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, TooManyImages, build
from chunkd.index import blocks, records
from chunkd.index.chunks.table import BATCH_BLOCKS, batches
from chunkd.index.storage.environment import Store
from chunkd.model import Digest
from chunkd.names import record
from chunkd.names.name import Name, Standing
from chunkd.worker import manifest_record
from chunkd.worker.manifest import Contents, Kind

if TYPE_CHECKING:
    import lmdb

# Each takes some 300 bytes while the figures are computed.
MOST_BLOBS = MOST_EDGES = MOST_NAMES = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """The images, and where their names come from. Images reads recipes and chunk records while the transaction of the
    reading is open, and not after it.

    `sources` has for each named digest the sources of its names (`registry`, `layout`, ...). `linked` has for each
    digest the repositories of a registry that have a revision of it. `has_index`: some manifest is a list of others.
    """

    images: Images
    sources: Mapping[Digest, frozenset[str]]
    linked: Mapping[Digest, tuple[str, ...]]
    has_index: bool


def names_as_of(_store: Store, _txn: lmdb.Transaction) -> str | None:
    """When names were last read; None if they never were. The index keeps no such time yet."""
    return None


def read(store: Store, txn: lmdb.Transaction) -> Reading:
    """Raises TooManyImages, and Damaged for a record that is not what it must be."""
    contents = _contents(store, txn)
    blobs: dict[Digest, BlobFacts] = {}
    layers: dict[Digest, int] = {}
    chunk_counts: dict[Digest, int] = {}
    for blob in store.blobs(txn, "blobs"):
        _bound(len(blobs) + 1, MOST_BLOBS, "blobs")
        blobs[blob.digest] = BlobFacts(blob.stored_bytes, contents.get(blob.digest))
        if blob.state == "layer":
            layers[blob.digest], chunk_counts[blob.digest] = blob.uncompressed_bytes, blob.chunks
    names: list[Name] = []
    sources: dict[Digest, frozenset[str]] = {}
    linked: dict[Digest, tuple[str, ...]] = {}
    for source, name in _names(store, txn):
        _bound(len(names) + 1, MOST_NAMES, "names")
        names.append(name)
        if name.standing is Standing.NAMED:
            sources[name.digest] = sources.get(name.digest, frozenset()) | {source}
        elif name.standing is Standing.HELD and source == "registry":
            linked[name.digest] = (*linked.get(name.digest, ()), name.repository)
    images = Images.of(build(blobs, names), blobs, layers, chunks_of(store, txn, chunk_counts))
    return Reading(images, sources, linked, any(said.kind is Kind.INDEX for said in contents.values()))


def _bound(count: int, most: int, what: str) -> None:
    if count > most:
        raise TooManyImages(f"the index has more than {most} {what}")


def _contents(store: Store, txn: lmdb.Transaction) -> dict[Digest, Contents]:
    """What each manifest, index and config says. Equal digests are one object, as most are named several times."""
    found: dict[Digest, Contents] = {}
    known: dict[Digest, Digest] = {}
    edges = 0
    for key, value in store.walk(txn, "manifests"):
        digest = records.digest_from_key(key)
        try:
            said = manifest_record.decode(value)
        except manifest_record.BadRecord as error:
            raise records.Damaged(f"what {digest} says: {error}") from error
        edges += len(said.edges)
        _bound(edges, MOST_EDGES, "descriptors in its manifests")
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


def chunks_of(store: Store, txn: lmdb.Transaction, chunk_counts: Mapping[Digest, int]) -> Chunks:
    """The chunks of the transaction's moment; only what is asked for is read. Layers have so many chunks."""
    table, measured_table = store.databases["chunks"], store.databases["measured"]

    def recipe(digest: Digest) -> Numbers:
        packed = store.get(txn, "recipes", records.digest_key(digest)) or b""
        return blocks.unpack_recipe(packed, chunk_counts[digest])

    def lengths(low: int, high: int) -> Numbers:
        found = np.zeros(high - low, np.int64)
        step = BATCH_BLOCKS * blocks.SLOTS
        for first in range(low, high, step):
            numbers = np.arange(first, min(first + step, high))
            for rows, slots, _, within in batches(txn, table, numbers):
                use = slots["use"][within]
                live = use >> blocks.LENGTH_BITS > 0
                found[first - low :][rows] = np.where(live, use & blocks.LENGTH_MASK, np.uint64(0))
        return found

    def measured(low: int, high: int) -> tuple[Numbers, Numbers]:
        wanted = list(range(low // blocks.SLOTS, -(-high // blocks.SLOTS)))
        values = [txn.get(blocks.block_key(block), b"", db=measured_table) for block in wanted]
        numbers, recompressed = blocks.unpack_measured(wanted, values)
        within = (numbers >= low) & (numbers < high)
        return numbers[within], recompressed[within]

    return Chunks(store.head(txn).next_number, recipe, lengths, measured)
