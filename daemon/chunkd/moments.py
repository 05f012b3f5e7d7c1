"""A moment of the history as bytes, both ways: the totals as they stood at the end of a minute."""

from __future__ import annotations

import dataclasses

from chunkd.model import Totals
from chunkd.records import Damaged, seal, unseal

MINUTE_NS = 60 * 10**9
KEY_BYTES = 4
# The last minute of the year 9999, which is the last that dates are written of.
LAST_MINUTE = 4_223_371_679
# Of each total: a sum of squares would not fit into 8.
TOTAL_BYTES = 16


def minute_of(time_ns: int) -> int:
    """The minute since the epoch that a time lies in; the nearest that there is for times before and after all."""
    return min(max(time_ns // MINUTE_NS, 0), LAST_MINUTE)


def moment_key(minute: int) -> bytes:
    return minute.to_bytes(KEY_BYTES, "big")


def moment_from_key(key: bytes) -> int:
    minute = int.from_bytes(key, "big")
    if len(key) != KEY_BYTES or minute > LAST_MINUTE:
        raise Damaged(f"{key.hex()} is no minute")
    return minute


def pack_moment(totals: Totals) -> bytes:
    """Sealed: each of the totals, in the order of `model.Totals`, in 16 bytes."""
    numbers = dataclasses.astuple(totals)
    return seal(b"".join(number.to_bytes(TOTAL_BYTES, "little") for number in numbers))


def unpack_moment(value: bytes) -> Totals:
    payload = unseal(value)
    starts = range(0, len(payload), TOTAL_BYTES)
    if len(payload) != len(dataclasses.fields(Totals)) * TOTAL_BYTES:
        raise Damaged(f"{len(payload)} bytes are no totals")
    return Totals(*(int.from_bytes(payload[start : start + TOTAL_BYTES], "little") for start in starts))
