"""What `chunkd scan --plan` prints, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.figures.words import bytes_text, labelled, shown, wrapped


def plan_lines(reply: Mapping[str, Any]) -> Iterator[str]:
    """A table of what a scan would read and take, what else the bucket holds, and what may cost more than all that."""
    yield f"A scan of {shown(reply['url'])} would take, by its listing:"
    yield ""
    yield labelled("blobs", f"{reply['blobs']:,}", f"the largest has {bytes_text(reply['largest_bytes'])}")
    yield labelled("to be read", bytes_text(reply["read_bytes"]), f"{reply['read_bytes']:,} bytes")
    requests = reply["list_requests"] + reply["get_requests"]
    kinds = f"{reply['list_requests']:,} LIST, {reply['get_requests']:,} GET"
    yield labelled("requests", f"{requests:,}", kinds)
    speed = bytes_text(reply["stored_bytes_per_cpu_s"])
    yield labelled(
        "CPU", f"{reply['cpu_hours']:,.1f} h", f"{speed}/s a core, as tried here with gzip of files of this machine"
    )
    yield labelled("wall time", _duration(reply["wall_s"]), f"{reply['workers']} workers, if the network keeps up")
    yield ""
    beside = (
        ("archived", reply["archived_bytes"], "can't be read"),
        ("in _uploads/", reply["upload_bytes"], f"{reply['upload_objects']:,} objects"),
        ("other objects", reply["other_bytes"], f"{reply['other_objects']:,} objects: links, indexes and the like"),
    )
    for label, size, words in beside:
        if size:
            yield labelled(label, bytes_text(size), words)
    if reply["placeholders"]:
        yield labelled(
            "placeholders", f"{reply['placeholders']:,}", "objects of no bytes, for blobs that lie elsewhere"
        )
    for name, size in reply["storage_classes"].items():
        yield labelled(name.lower(), bytes_text(size), f"by a sample of {reply['sampled_objects']:,} blobs")
    yield labelled("listed in", _duration(reply["listed_s"]), f"{reply['objects']:,} objects")
    if reply["cost"] is not None:
        yield ""
        for name, price in reply["cost"].items():
            yield labelled(name, f"{price:,.2f}", "" if name == "sum" else "by --prices")
    for warning in reply["warnings"]:
        yield ""
        yield from wrapped(warning, "warning")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
