"""What a replay needs of an index, read at one moment; the transaction is over before a log is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunkd.images.read import MOST_BLOBS, chunks_of, recipes_of
from chunkd.index.storage.environment import Store
from chunkd.pulls.layer_classes import TooManyClasses, classes_of
from chunkd.pulls.replay import Indexed
from chunkd.queries.read import moment

if TYPE_CHECKING:
    from chunkd.model import Blob


def indexed(store: Store) -> tuple[str | None, Indexed]:
    """The time that the index shows, and the rest. Raises TooManyClasses, and IndexDamaged."""
    with store.snapshot() as txn:
        store.check_format(txn, None)
        layers: list[Blob] = []
        others: list[Blob] = []
        for number, blob in enumerate(store.blobs(txn, "blobs")):
            if number == MOST_BLOBS:
                raise TooManyClasses(f"the index has more than {MOST_BLOBS} blobs")
            (layers if blob.state == "layer" else others).append(blob)
        digests = [blob.digest for blob in layers]
        chunks = chunks_of(store, txn, recipes_of(store, txn, {blob.digest: blob.chunks for blob in layers}))
        blobs = {
            str(blob.digest).encode(): (number, blob.stored_bytes) for number, blob in enumerate((*layers, *others))
        }
        as_of = moment(store.head(txn).as_of_ns)
        return as_of, Indexed(blobs, [blob.chunks for blob in layers], classes_of(digests, chunks))
