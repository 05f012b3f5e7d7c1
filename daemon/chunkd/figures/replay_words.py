"""The sentences on a replay of pulls: pure functions from the JSON object of `chunkd replay` that has at least one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.figures.words import bytes_text, count_text

Row = Mapping[str, Any]


def own_caches(reply: Row) -> str:
    """What was pulled, and what would have moved to clients that keep what they pulled."""
    layers, chunks = reply["own_caches"]["layers"], reply["own_caches"]["chunks"]
    said = f"From {reply['from'][:10]} to {reply['to'][:10]} (UTC) {count_text(reply['clients'], 'client')} pulled"
    said += f" {bytes_text(reply['served']['bytes'])} in {count_text(reply['served']['requests'], 'request')}."
    said += f" With all that each had pulled before, layers would have moved {bytes_text(layers['bytes'])} in"
    said += f" {count_text(layers['requests'], 'request')}; chunks would have moved {_moved(layers, chunks)}."
    return said


def shared_cache(reply: Row) -> str:
    """What would have moved to one cache that all clients share."""
    layers, chunks = reply["shared_cache"]["layers"], reply["shared_cache"]["chunks"]
    said = f"To one cache for all clients layers would have moved {bytes_text(layers['bytes'])}, and chunks"
    return f"{said} {_moved(layers, chunks)}."


def _moved(layers: Row, chunks: Row) -> str:
    ranges = f"in {count_text(chunks['ranges'], 'range')}"
    if chunks["bytes"] is None:
        return f"what is not known, as no chunk was measured, {ranges}"
    said = f"{bytes_text(chunks['bytes'])} {ranges}"
    if layers["bytes"]:
        percent = 100 * (1 - chunks["bytes"] / layers["bytes"])
        said += f", {abs(percent):.1f} % {'less' if percent >= 0 else 'MORE'} than the layers"
        if chunks["error_bytes"] is None:
            said += ", roughly, as few chunks were measured"
        elif chunks["error_bytes"]:
            said += f", give or take {100 * chunks['error_bytes'] / layers['bytes']:.1f} %"
    return said


def remarks(reply: Row) -> Iterator[str]:
    """What makes the figures less than the whole truth."""
    served_bytes, unknown_bytes = reply["served"]["bytes"], reply["not_indexed_bytes"]
    if unknown_bytes:
        share = 100 * unknown_bytes / served_bytes
        yield (
            f"{bytes_text(unknown_bytes)} ({share:.1f} %) of what was served are blobs that are not in the index; they"
            " count as layers that share nothing."
        )
    if reply["served"]["redirected"]:
        count = count_text(reply["served"]["redirected"], "reply")
        yield f"{count} sent the client elsewhere; the log does not have the bytes that were served there."
    if reply["forgotten_clients"]:
        count = count_text(reply["forgotten_clients"], "client")
        yield f"{count} had to be forgotten for lack of memory; what they pulled later counts as new, as do they."
