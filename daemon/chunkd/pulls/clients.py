"""What each client has pulled before. Clients with the same blobs share one history, and that is the numbers of its
blobs; the classes of chunks that it has are kept for those used last.
"""

from __future__ import annotations

import secrets
from array import array
from bisect import bisect_left
from collections import OrderedDict
from hashlib import blake2b
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from chunkd.pulls.layer_classes import Bits, Lacked, LayerClasses

# Of the histories that some client has now. Beyond it the clients that were not seen for longest are forgotten.
MOST_HISTORY_BYTES = 64 << 20
MOST_SETS_BYTES = 32 << 20
MOST_ANSWERS_BYTES = 32 << 20
# What one takes beside its own bytes.
CLIENT_BYTES, HISTORY_BYTES, KEPT_BYTES = 200, 250, 400

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

    def drop(self, key: Key) -> None:
        """Whether it is there or not."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._left_bytes += found[1]


class _History:
    """The numbers of blobs, ascending, with a key that is equal for equal numbers; and how many clients have it."""

    __slots__ = ("blobs", "clients", "key")

    def __init__(self, key: int, blobs: array[int]) -> None:
        self.key, self.blobs, self.clients = key, blobs, 0


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
        self._nothing = _History(0, array("I"))
        self._nothing.clients = 1  # so that it stays
        self._histories = {0: self._nothing}
        self._secret = secrets.token_bytes(16)
        self.bytes = 0
        self._sets: Latest[_History, Bits] = Latest(MOST_SETS_BYTES)
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
        place = bisect_left(history.blobs, blob)
        if place < len(history.blobs) and history.blobs[place] == blob:
            return None
        have = self._have(history)
        lacked = self.lacked(blob, have) if blob < self._layers else None
        key = history.key ^ int.from_bytes(blake2b(b"%d" % blob, digest_size=16, key=self._secret).digest())
        after = self._histories.get(key)
        if after is None:
            after = self._with(history, have, key, place, blob)
        self._clients[client] = after
        after.clients += 1
        self._leave(history)
        self._forget()
        return First(lacked)

    def _with(self, history: _History, have: Bits, key: int, place: int, blob: int) -> _History:
        """The history with one blob more: the same object, if only one client has it."""
        if history.clients == 1:
            del self._histories[history.key]
            after = history
            after.key = key
            self.bytes += 4
        else:
            after, have = _History(key, history.blobs[:]), have.copy()
            self.bytes += HISTORY_BYTES + 4 * len(history.blobs) + 4
            self._sets.put(after, have, have.nbytes)
        self._histories[key] = after
        after.blobs.insert(place, blob)
        if blob < self._layers:
            self._classes.put(blob, have)
        return after

    def lacked(self, layer: int, have: Bits) -> Lacked:
        """What is lacked of a layer, with these classes."""
        key = layer, self._classes.had(layer, have)
        found = self._answers.get(key)
        if found is None:
            found = self._classes.lacked(layer, have)
            self._answers.put(key, found, found.classes.nbytes + len(key[1]))
        return found

    def _have(self, history: _History) -> Bits:
        have = self._sets.get(history)
        if have is None:
            have = np.zeros(self._classes.bits_bytes, np.uint8)
            for blob in history.blobs[: bisect_left(history.blobs, self._layers)]:
                self._classes.put(blob, have)
            self._sets.put(history, have, have.nbytes)
        return have

    def _forget(self) -> None:
        """The clients that were not seen for longest, while there is too much; never the one that was seen last."""
        while self.bytes > MOST_HISTORY_BYTES and len(self._clients) > 1:
            self.bytes -= CLIENT_BYTES
            self._leave(self._clients.popitem(last=False)[1])
            self.forgotten += 1

    def _leave(self, history: _History) -> None:
        history.clients -= 1
        if not history.clients:
            del self._histories[history.key]
            self._sets.drop(history)
            self.bytes -= HISTORY_BYTES + 4 * len(history.blobs)
