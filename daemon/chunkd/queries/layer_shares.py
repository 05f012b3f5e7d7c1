"""For each layer, the bytes that only it has, the bytes that other layers have too, and the bytes that it repeats.

They are computed from recipes and chunk records, without reading a blob. A page is one snapshot and bounded work, so
that a reader never keeps the writer's old pages for long.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import lmdb
import numpy as np

from chunkd.errors import ChunkdError, UsageError
from chunkd.index import blocks, records
from chunkd.index.chunks.table import batches
from chunkd.index.storage.environment import Store
from chunkd.model import Blob

# A page ends with the layer that reaches this many chunks: some 0.1 s, or 0.5 s if the chunks are scattered.
CHUNKS_A_PAGE = 1_000_000
# Or after this many blobs, most of which may not be layers.
BLOBS_A_PAGE = 10_000
PAGES_AT_ONCE = 4


class Shares(NamedTuple):
    """The bytes of a layer in three parts, which add up to its uncompressed bytes.

    `exclusive_bytes` counts once each chunk that only this layer has: unique bytes would fall by this much if the layer
    were removed. `shared_bytes` counts once each chunk that other layers have too. `repeated_bytes` counts every
    further copy of a chunk inside the layer.
    """

    exclusive_bytes: int
    shared_bytes: int
    repeated_bytes: int


class PagesBusy(ChunkdError):
    def __init__(self, what: str) -> None:
        super().__init__(f"{PAGES_AT_ONCE} others ask for {what} now; ask again")


def shares_of(store: Store, txn: lmdb.Transaction, blob: Blob) -> Shares:
    """The shares of one layer. Raises Damaged when its recipe and the chunk records contradict each other."""
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
    # The sum is also wrong when a chunk has fewer copies than this layer alone: its bytes are in no part then.
    if exclusive_bytes + shared_bytes + repeated_bytes != blob.uncompressed_bytes:
        raise records.Damaged(f"the chunks of {blob.digest} do not add up to {blob.uncompressed_bytes} bytes")
    return Shares(exclusive_bytes, shared_bytes, repeated_bytes)


def read_layers(store: Store, after: str, limit: int) -> dict[str, Any]:
    """A page of at most `limit` layers in the order of their keys, each with its shares. It may be empty and still have
    a `next`.

    `commit` is the number of the transaction that the page shows: pages with the same number are of one snapshot.
    """
    try:
        start = bytes.fromhex(after)
    except ValueError:
        raise UsageError(f"`after` {after!r} is not the `next` of an earlier page") from None
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


class Turns:
    """For the endpoint's threads: one has its turn, the others wait.

    Raises PagesBusy when four are there already, because a connection that waits here is not free for others.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._asked = threading.Semaphore(PAGES_AT_ONCE)
        self._one = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        if not self._asked.acquire(blocking=False):
            raise PagesBusy(self._what)
        try:
            with self._one:
                yield
        finally:
            self._asked.release()


class LayerPages(Turns):
    """Pages for the endpoint's threads, made one at a time, because a layer may have 17 million chunks."""

    def __init__(self, store: Store) -> None:
        super().__init__("layers")
        self._store = store

    def read(self, after: str, limit: int) -> dict[str, Any]:
        """As `read_layers`. Raises PagesBusy."""
        with self.one():
            return read_layers(self._store, after, limit)
