"""What of each layer is nowhere else, what other layers have too, and what it repeats itself: from recipes and chunk
records, without a blob being read.

A page is of one snapshot and of bounded work, so that a reader never keeps the writer's old pages for long.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import lmdb
import numpy as np

from chunkd.errors import ChunkdError, UsageError
from chunkd.index import blocks, records
from chunkd.index.chunks.table import batches
from chunkd.index.storage.environment import Store
from chunkd.model import Blob

# A page ends with the layer that brings it to so many chunks: some 0.1 s, or 0.5 s where the chunks lie scattered.
CHUNKS_A_PAGE = 1_000_000
# Or when so many blobs were looked at: most may be no layers.
BLOBS_A_PAGE = 10_000
PAGES_AT_ONCE = 4


class Shares(NamedTuple):
    """The bytes of a layer in three parts, which add up to its uncompressed bytes.

    `exclusive_bytes`: each chunk once whose copies here are all its copies. So much would unique bytes fall by if the
    layer were removed. `shared_bytes`: each chunk once that other layers have too. `repeated_bytes`: every further copy
    of a chunk inside the layer.
    """

    exclusive_bytes: int
    shared_bytes: int
    repeated_bytes: int


class PagesBusy(ChunkdError):
    def __init__(self) -> None:
        super().__init__(f"{PAGES_AT_ONCE} others ask for layers now; ask again")


def shares_of(store: Store, txn: lmdb.Transaction, blob: Blob) -> Shares:
    """The shares of one layer. Raises Damaged when its recipe and the chunk records contradict one another."""
    packed = store.get(txn, "recipes", records.digest_key(blob.digest)) or b""
    numbers = blocks.unpack_recipe(packed, blob.chunks)
    numbers.sort()
    firsts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    here = np.diff(firsts, append=len(numbers))
    exclusive_bytes = shared_bytes = repeated_bytes = 0
    for rows, slots, _, within in batches(txn, store.databases["chunks"], numbers[firsts]):
        use = slots["use"][within]
        lengths = (use & blocks.LENGTH_MASK).astype(np.int64)
        others = (use >> blocks.LENGTH_BITS).astype(np.int64) - here[rows]
        exclusive_bytes += int(lengths[others == 0].sum())
        shared_bytes += int(lengths[others > 0].sum())
        repeated_bytes += int(lengths @ (here[rows] - 1))
    # Nor do they when a chunk has fewer copies than this layer alone: its bytes are in no part then.
    if exclusive_bytes + shared_bytes + repeated_bytes != blob.uncompressed_bytes:
        raise records.Damaged(f"the chunks of {blob.digest} do not add up to {blob.uncompressed_bytes} bytes")
    return Shares(exclusive_bytes, shared_bytes, repeated_bytes)


def read_layers(store: Store, after: str, limit: int) -> dict[str, Any]:
    """A page of layers in the order of their keys, each with its shares, at most `limit`; maybe none, and yet a `next`.

    `commit` is the number of the transaction that the page shows: pages with one number are of one snapshot.
    """
    try:
        start = bytes.fromhex(after)
    except ValueError:
        raise UsageError(f"`after` {after!r} is no `next` of a page before") from None
    page: list[dict[str, Any]] = []
    chunks = 0
    with store.guarded(), store.env.begin(buffers=True) as txn:
        store.check_format(txn, None)
        reply = {"layers": page, "next": None, "commit": txn.id()}
        for seen, blob in enumerate(store.blobs(txn, "blobs", start), 1):
            if blob.state == "layer":
                page.append(_row(blob, shares_of(store, txn, blob)))
                chunks += blob.chunks
            if len(page) == limit or chunks >= CHUNKS_A_PAGE or seen == BLOBS_A_PAGE:
                return reply | {"next": records.digest_key(blob.digest).hex()}
    return reply


def _row(blob: Blob, shares: Shares) -> dict[str, Any]:
    return {
        "digest": str(blob.digest), "codec": blob.codec, "stored_bytes": blob.stored_bytes,
        "uncompressed_bytes": blob.uncompressed_bytes, "chunks": blob.chunks,
    } | shares._asdict()  # fmt: skip


class LayerPages:
    """Pages for the endpoint's threads, one made at a time: a layer may have 17 million chunks.

    Raises PagesBusy when four are asked for at once: connections that wait here are not there for others.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked = threading.Semaphore(PAGES_AT_ONCE)
        self._one = threading.Lock()

    def read(self, after: str, limit: int) -> dict[str, Any]:
        """As `read_layers`."""
        if not self._asked.acquire(blocking=False):
            raise PagesBusy
        try:
            with self._one:
                return read_layers(self._store, after, limit)
        finally:
            self._asked.release()
