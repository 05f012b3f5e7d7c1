"""What `chunkd replay` prints for people: a pure function from its JSON object to lines.

A line is at most 100 columns wide, unless a name alone is wider. Names are hostile text, and shown escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.figures.words import _wrapped, bytes_text, shown

Row = Mapping[str, Any]

NAME_COLUMNS = 23
UNREAD = {
    "too_long": "{count:,} too long",
    "control_characters": "{count:,} with control characters",
    "unknown_format": "{count:,} of an unknown format",
    "bad_value": "{count:,} with an impossible value",
    "clock_went_back": "{count:,} more than a day older than the line before",
}
# Each column's heading, its width, and where its value is.
COLUMNS = (
    ("served", 11, ("served", "bytes")),
    ("as layers", 11, ("own_caches", "layers", "bytes")),
    ("as chunks", 11, ("own_caches", "chunks", "bytes")),
    ("ranges", 11, ("own_caches", "chunks", "ranges")),
    ("as layers", 11, ("shared_cache", "layers", "bytes")),
    ("as chunks", 11, ("shared_cache", "chunks", "bytes")),
    ("ranges", 11, ("shared_cache", "chunks", "ranges")),
)


def lines(reply: Row, state_dir: str) -> Iterator[str]:
    """The sentences, then a row for each day and for each repository."""
    as_of = f"as of {reply['as_of']}" if reply["as_of"] else "nothing indexed yet"
    yield from _wrapped(f"from the index at {shown(state_dir)}, {as_of}")
    yield from _lines_read(reply)
    if not reply["served"]["requests"]:
        yield "No pull was read."
        return
    yield ""
    yield from _wrapped(_own(reply))
    yield from _wrapped(_shared(reply))
    for sentence in _remarks(reply):
        yield from _wrapped(sentence)
    yield ""
    yield from _table("DAY", [(row["day"], row) for row in reply["days"]], ("other days", reply["other_days"]), reply)
    yield ""
    repositories = [(shown(row["repository"]), row) for row in reply["repositories"]]
    yield from _table("REPOSITORY", repositories, ("others", reply["other_repositories"]), reply)


def _lines_read(reply: Row) -> Iterator[str]:
    found = reply["lines"]
    unread = {why: count for why, count in found["unread"].items() if count}
    said = f"{_count(found['pulls'], 'pull')}, {_count(found['others'], 'other line')}"
    if found["twice"]:
        said += f", {_count(found['twice'], 'line')} of requests that have another one"
    said += f", {_count(sum(unread.values()), 'line')} not read"
    if unread:
        said += f" ({', '.join(UNREAD[why].format(count=count) for why, count in unread.items())})"
    yield from _wrapped(said)


def _own(reply: Row) -> str:
    layers, chunks = reply["own_caches"]["layers"], reply["own_caches"]["chunks"]
    said = f"From {reply['from'][:10]} to {reply['to'][:10]} (UTC) {_count(reply['clients'], 'client')} pulled"
    said += f" {bytes_text(reply['served']['bytes'])} in {_count(reply['served']['requests'], 'request')}."
    said += f" With all that each had pulled before, layers would have moved {bytes_text(layers['bytes'])} in"
    said += f" {_count(layers['requests'], 'request')}; chunks would have moved {_moved(layers, chunks)}."
    return said


def _shared(reply: Row) -> str:
    layers, chunks = reply["shared_cache"]["layers"], reply["shared_cache"]["chunks"]
    said = f"To one cache for all clients layers would have moved {bytes_text(layers['bytes'])}, and chunks"
    return f"{said} {_moved(layers, chunks)}."


def _moved(layers: Row, chunks: Row) -> str:
    ranges = f"in {_count(chunks['ranges'], 'range')}"
    if chunks["bytes"] is None:
        return f"what is not known, as no chunk was measured, {ranges}"
    said = f"{bytes_text(chunks['bytes'])} {ranges}"
    if layers["bytes"]:
        percent = 100 * (1 - chunks["bytes"] / layers["bytes"])
        said += f", {abs(percent):.1f} % {'less' if percent >= 0 else 'MORE'} than the layers"
        if chunks["error_bytes"] is None:
            said += ", as far as the few measured chunks tell"
        elif chunks["error_bytes"]:
            said += f", give or take {100 * chunks['error_bytes'] / layers['bytes']:.1f} %"
    return said


def _remarks(reply: Row) -> Iterator[str]:
    served_bytes, unknown_bytes = reply["served"]["bytes"], reply["not_indexed_bytes"]
    if unknown_bytes:
        share = 100 * unknown_bytes / served_bytes
        yield (
            f"{bytes_text(unknown_bytes)} ({share:.1f} %) of what was served are blobs that are not in the index; they"
            " count as layers that share nothing."
        )
    if reply["served"]["redirected"]:
        count = _count(reply["served"]["redirected"], "reply", "replies")
        yield f"{count} sent the client elsewhere; the log does not have the bytes that were served there."
    if reply["forgotten_clients"]:
        count = _count(reply["forgotten_clients"], "client")
        yield f"{count} had to be forgotten for lack of memory; what they pulled later counts as new, as do they."


def _table(heading: str, rows: list[tuple[str, Row]], rest: tuple[str, Row], whole: Row) -> Iterator[str]:
    left = NAME_COLUMNS + COLUMNS[0][1]
    half = sum(width for _, width, _ in COLUMNS[1:4])
    yield f"{'':<{left}}{'A CACHE IN EACH CLIENT':>{half}}{'ONE CACHE FOR ALL':>{half}}"
    yield f"{heading:<{NAME_COLUMNS}}" + "".join(f"{name:>{width}}" for name, width, _ in COLUMNS)
    others = [rest] if rest[1]["served"]["requests"] else []
    for name, row in (*rows, *others, ("total", whole)):
        if len(name) >= NAME_COLUMNS:
            yield name
            name = ""
        yield f"{name:<{NAME_COLUMNS}}" + "".join(f"{_cell(row, at):>{width}}" for _, width, at in COLUMNS)


def _cell(row: Row, at: tuple[str, ...]) -> str:
    value: Any = row
    for name in at:
        value = value[name]
    if value is None:
        return "unknown"
    return f"{value:,}" if at[-1] == "ranges" else bytes_text(value)


def _count(count: int, what: str, many: str = "") -> str:
    return f"{count:,} {what if count == 1 else many or what + 's'}"
