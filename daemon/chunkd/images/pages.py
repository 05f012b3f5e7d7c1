"""The pages of a reply. No numpy here: a command that asks a daemon needs this too."""

from __future__ import annotations

import re
from typing import Any

from chunkd.errors import UsageError

Reply = dict[str, Any]

# Where the rows are of which a page has a part; the first that is there. Of `freed` these are the blobs.
_PATHS = (("stored", "blobs"), ("images",), ("repositories",), ("alike",), ("by_layer",), ("pairs",))


def position(after: str) -> tuple[int, int]:
    """The commit and the row in an `after`, both 0 for the first page. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,19})-([0-9]{1,9})", after or "0-0")
    if found is None:
        raise UsageError(f"`after` {after!r} is not the `next` of an earlier page")
    return int(found[1]), int(found[2])


def rows_of(reply: Reply) -> list[Any]:
    """The rows of a whole reply, or of a page."""
    found: Any = reply
    for name in _path(reply):
        found = found[name]
    rows: list[Any] = found
    return rows


def with_rows(reply: Reply, rows: list[Any]) -> Reply:
    """The reply with these rows in place of its own."""
    first, *rest = _path(reply)
    return reply | {first: reply[first] | {rest[0]: rows} if rest else rows}


def _path(reply: Reply) -> tuple[str, ...]:
    return next(path for path in _PATHS if path[0] in reply)
