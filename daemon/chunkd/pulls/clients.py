"""What each client has pulled before. Clients with the same blobs share one history, and that is the numbers of its
blobs; the classes of chunks that it has are computed when needed, and kept for the latest.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from chunkd.pulls.layer_classes import Bits, Lacked, LayerClasses

# Of the histories that some client has now. Beyond it the clients that were not seen for longest are forgotten.
MOST_HISTORY_BYTES = 64 << 20
MOST_SETS_BYTES = 32 << 20
MOST_ANSWERS_BYTES = 32 << 20
# What one takes beside its own bytes.
CLIENT_BYTES, HISTORY_BYTES, KEPT_BYTES = 200, 250, 400

_ORDER = sys.byteorder

Value = TypeVar("Value")
Key = TypeVar("Key")


class Latest(Generic[Key, Value]):
    """The values that were used last, as many as fit into some bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0]

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """A new key. The value stays until others need its room."""
        size_bytes += KEPT_BYTES
        self._left_bytes -= size_bytes
        self._kept[key] = value, size_bytes
        while self._left_bytes < 0 and len(self._kept) > 1:
            self._left_bytes += self._kept.popitem(last=False)[1][1]


class _History:
    """The numbers of blobs, ascending, as 4 bytes each; and how many clients have it."""

    __slots__ = ("blobs", "clients")

    def __init__(self, blobs: bytes) -> None:
        self.blobs, self.clients = blobs, 0

    def place(self, blob: int) -> int:
        """Where its number is or would be; below 0 if it is there."""
        numbers = memoryview(self.blobs).cast("I")
        at = bisect_left(numbers, blob)
        return -1 if at < len(numbers) and numbers[at] == blob else at


class First(NamedTuple):
    """A client pulls a blob that it has not. `lacked` is what it lacks of a layer's chunks, None for another blob."""

    lacked: Lacked | None


class Clients:
    """What clients have, by a number for each. Blobs below `layers` are layers, with these classes.

    `seen` counts clients, and one again that comes back after it was forgotten. `bytes` is what clients and histories
    take.
    """

    def __init__(self, layers: int, classes: LayerClasses) -> None:
        self._layers, self._classes = layers, classes
        self._clients: OrderedDict[int, _History] = OrderedDict()
        self._histories: dict[bytes, _History] = {}
        self._nothing = _History(b"")
        self._nothing.clients = 1  # so that it stays
        self._histories[b""] = self._nothing
        self.bytes = 0
        self._sets: Latest[bytes, Bits] = Latest(MOST_SETS_BYTES)
        self._answers: Latest[tuple[int, bytes], Lacked] = Latest(MOST_ANSWERS_BYTES)
        self.seen = self.forgotten = 0

    def pull(self, client: int, blob: int | None) -> First | None:
        """Note that a client has the blob from now on. None if it has it already; never for one without a number."""
        history = self._clients.get(client)
        if history is None:
            self.seen += 1
            self.bytes += CLIENT_BYTES
            history = self._clients[client] = self._nothing
            history.clients += 1
            self._forget()
        else:
            self._clients.move_to_end(client)
        if blob is None:
            return First(None)
        place = history.place(blob)
        if place < 0:
            return None
        have = self._have(history.blobs)
        lacked = self.lacked(blob, have) if blob < self._layers else None
        blobs = history.blobs[: 4 * place] + blob.to_bytes(4, _ORDER) + history.blobs[4 * place :]
        if self._sets.get(blobs) is None:
            if blob < self._layers:
                have = have.copy()
                self._classes.put(blob, have)
            self._sets.put(blobs, have, have.nbytes + len(blobs))
        self._clients[client] = self._shared(blobs)
        self._leave(history)
        self._forget()
        return First(lacked)

    def lacked(self, layer: int, have: Bits) -> Lacked:
        """What is lacked of a layer, with these classes."""
        key = layer, self._classes.had(layer, have)
        found = self._answers.get(key)
        if found is None:
            found = self._classes.lacked(layer, have)
            self._answers.put(key, found, found.classes.nbytes + len(key[1]))
        return found

    def _have(self, blobs: bytes) -> Bits:
        have = self._sets.get(blobs)
        if have is None:
            have = np.zeros(self._classes.bits_bytes, np.uint8)
            for blob in memoryview(blobs).cast("I"):
                if blob < self._layers:
                    self._classes.put(blob, have)
            self._sets.put(blobs, have, have.nbytes + len(blobs))
        return have

    def _shared(self, blobs: bytes) -> _History:
        history = self._histories.get(blobs)
        if history is None:
            history = self._histories[blobs] = _History(blobs)
            self.bytes += HISTORY_BYTES + len(blobs)
        history.clients += 1
        return history

    def _forget(self) -> None:
        """The clients that were not seen for longest, while there is too much; never the one that was seen last."""
        while self.bytes > MOST_HISTORY_BYTES and len(self._clients) > 1:
            self.bytes -= CLIENT_BYTES
            self._leave(self._clients.popitem(last=False)[1])
            self.forgotten += 1

    def _leave(self, history: _History) -> None:
        history.clients -= 1
        if not history.clients:
            del self._histories[history.blobs]
            self.bytes -= HISTORY_BYTES + len(history.blobs)
