"""The report's section on pulls that a registry served, from what `chunkd replay --json` printed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from chunkd.errors import UsageError
from chunkd.figures import words
from chunkd.figures.replay_words import own_caches, remarks, shared_cache
from chunkd.report import plots
from chunkd.report.data import Pulls, Replayed
from chunkd.report.html import Child, element, table
from chunkd.untrusted_json import BadJson, parse

MOST_BYTES = 16 << 20
REPOSITORIES_SHOWN = 10
LEAST_DAYS, DAYS_SHOWN = 2, 31


def read(path: str) -> Replayed:
    """Raises UsageError when the file can't be read, or is not what `chunkd replay --json` prints."""
    try:
        with Path(path).open("rb") as file:
            reply = parse(file.read(MOST_BYTES + 1), MOST_BYTES)
        if not reply["served"]["requests"]:
            return Replayed(("No pull was read.",), (), (), ())
        days = tuple(_pulls(row, "day") for row in reply["days"])
        for day in days:
            dt.date.fromisoformat(day.name)
        return Replayed(
            (own_caches(reply), shared_cache(reply)), tuple(remarks(reply)), days,
            tuple(_pulls(row, "repository") for row in reply["repositories"][:REPOSITORIES_SHOWN]),
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"--replay {words.shown(path)}: {error.strerror}") from None
    except (BadJson, KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError):
        raise UsageError(f"--replay {words.shown(path)}: it is not what `chunkd replay --json` prints") from None


def _pulls(row: Mapping[str, Any], name: str) -> Pulls:
    own = row["own_caches"]
    chunks_bytes = own["chunks"]["bytes"]
    return Pulls(
        str(row[name]), int(row["served"]["bytes"]), int(own["layers"]["bytes"]),
        None if chunks_bytes is None else int(chunks_bytes), int(own["chunks"]["ranges"]),
    )  # fmt: skip


def section(replayed: Replayed) -> Iterator[Element]:
    """The sentences, a plot of all days, and tables of the last days and of the repositories pulled most."""
    parts: list[Child] = [element("h2", "What was really pulled")]
    parts += [element("p", sentence) for sentence in (*replayed.sentences, *replayed.remarks)]
    if len(replayed.days) >= LEAST_DAYS:
        parts.append(element("figure", plots.pulls(replayed.days)))
    for heading, rows in ("day", replayed.days[-DAYS_SHOWN:]), ("repository", replayed.repositories):
        if rows:
            columns = (heading, "served", "as layers", "as chunks", "ranges")
            parts.append(element("div", table(columns, _cells(rows)), class_="table"))
    yield element("section", *parts)


def _cells(rows: Sequence[Pulls]) -> Iterator[list[Child]]:
    for row in rows:
        as_chunks = "unknown" if row.chunks_bytes is None else words.bytes_text(row.chunks_bytes)
        sizes = words.bytes_text(row.served_bytes), words.bytes_text(row.layers_bytes), as_chunks
        yield [row.name, *sizes, f"{row.ranges:,}"]
