"""What `chunkd replay` prints for people: a pure function from its JSON object to lines.

A line is at most 100 columns wide, unless a name alone is wider. Names are hostile text, and shown escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.figures.replay_words import own_caches, remarks, shared_cache
from chunkd.figures.words import bytes_text, count_text, row_of, shown, wrapped

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
    yield from wrapped(f"from the index at {shown(state_dir)}, {as_of}")
    yield from _lines_read(reply)
    if not reply["served"]["requests"]:
        yield "No pull was read."
        return
    yield ""
    for sentence in (own_caches(reply), shared_cache(reply), *remarks(reply)):
        yield from wrapped(sentence)
    yield ""
    yield from _table("DAY", [(row["day"], row) for row in reply["days"]], ("other days", reply["other_days"]), reply)
    yield ""
    repositories = [(shown(row["repository"]), row) for row in reply["repositories"]]
    yield from _table("REPOSITORY", repositories, ("others", reply["other_repositories"]), reply)


def _lines_read(reply: Row) -> Iterator[str]:
    found = reply["lines"]
    unread = {why: count for why, count in found["unread"].items() if count}
    said = f"{count_text(found['pulls'], 'pull')}, {count_text(found['others'], 'other line')}"
    if found["twice"]:
        said += f", {count_text(found['twice'], 'line')} of requests that have another one"
    said += f", {count_text(sum(unread.values()), 'line')} not read"
    if unread:
        said += f" ({', '.join(UNREAD[why].format(count=count) for why, count in unread.items())})"
    yield from wrapped(said)


def _table(heading: str, rows: list[tuple[str, Row]], rest: tuple[str, Row], whole: Row) -> Iterator[str]:
    left = NAME_COLUMNS + COLUMNS[0][1]
    half = sum(width for _, width, _ in COLUMNS[1:4])
    yield f"{'':<{left}}{'A CACHE IN EACH CLIENT':>{half}}{'ONE CACHE FOR ALL':>{half}}"
    widths = [width for _, width, _ in COLUMNS]
    yield from row_of(heading, NAME_COLUMNS, [name for name, _, _ in COLUMNS], widths)
    others = [rest] if rest[1]["served"]["requests"] else []
    for name, row in (*rows, *others, ("total", whole)):
        yield from row_of(name, NAME_COLUMNS, [_cell(row, at) for _, _, at in COLUMNS], widths)


def _cell(row: Row, at: tuple[str, ...]) -> str:
    value: Any = row
    for name in at:
        value = value[name]
    if value is None:
        return "unknown"
    return f"{value:,}" if at[-1] == "ranges" else bytes_text(value)
