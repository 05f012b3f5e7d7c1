"""Recipes out of an index as workers sent them: hashes, lengths and recompressed lengths instead of chunk numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from chunkd.index import blocks, records
from chunkd.index.chunks.table import batches
from chunkd.model import Recipe

if TYPE_CHECKING:
    import lmdb

    from chunkd.index.storage.environment import Store
    from chunkd.model import Blob


def recipes_of(index: Store, txn: lmdb.Transaction, layers: Sequence[Blob]) -> Iterator[Recipe]:
    """The recipes of some layers, in their order. Raises Damaged, and reads before it yields the first one.

    Memory: some 60 bytes for each chunk of the layers.
    """
    if not layers:
        return
    packed = (index.get(txn, "recipes", records.digest_key(blob.digest)) or b"" for blob in layers)
    numbers = [blocks.unpack_recipe(value, blob.chunks) for value, blob in zip(packed, layers, strict=True)]
    wanted = np.unique(np.concatenate(numbers))
    hashes, lengths = np.zeros((len(wanted), 2), "<u8"), np.zeros(len(wanted), "<u4")
    measured = np.zeros(len(wanted), "<u4")
    for rows, slots, batch, within in batches(txn, index.databases["chunks"], wanted):
        found = slots[within]
        hashes[rows, 0], hashes[rows, 1] = found["low"], found["high"]
        lengths[rows] = np.where(found["use"] >> blocks.LENGTH_BITS > 0, found["use"] & blocks.LENGTH_MASK, 0)
        values = [txn.get(blocks.block_key(block), b"", db=index.databases["measured"]) for block in batch]
        held, recompressed = blocks.unpack_measured(batch, values)
        _, own, of = np.intersect1d(wanted[rows], held, assume_unique=True, return_indices=True)
        measured[rows.start + own] = recompressed[of]
    if not lengths.all():
        raise records.Damaged(f"chunk {int(wanted[np.argmin(lengths)])}: a layer has it, and its record no copies")
    for of_layer in numbers:
        at = wanted.searchsorted(of_layer)
        own_measured = measured[at]
        yield Recipe(hashes[at].tobytes(), lengths[at].tobytes(), own_measured[own_measured > 0].tobytes())
