"""The commands that list: blobs and layers, and the figures over time."""

from __future__ import annotations

import heapq
import itertools
import json as jsonlib
from collections.abc import Iterable, Iterator
from typing import Any

import click

from chunkd.api.routes import HISTORY_SINCE
from chunkd.cli import tables
from chunkd.cli.options import as_json, asks, say_lines
from chunkd.client import ask
from chunkd.errors import UsageError
from chunkd.figures.names import KEPT

ORDERS = {"exclusive": "exclusive_bytes", "shared": "shared_bytes", "size": "stored_bytes"}
LAYERS_SHOWN = 100


@click.command()
@asks
@as_json
@click.option("--failed", is_flag=True, help="Only what failed or is ignored, with the reason.")
@click.option("--sort", type=click.Choice(list(ORDERS)), help="Layers alone, with what is in them; the largest first.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most so many lines; with --sort 100 by default.")
def blobs(json: bool, failed: bool, sort: str | None, limit: int | None, **flags: object) -> None:
    """One line a blob. With --json one JSON object a line.

    With --sort one line a layer, in three parts that add up to its uncompressed bytes. Exclusive: chunks that are in
    no other layer, each once, which its removal would free. Shared: chunks that other layers have too, each once.
    Repeated: every further copy of a chunk inside the layer. `size` is the stored bytes.
    """
    if sort is None:
        found = itertools.islice(ask.blobs(flags, failed), limit)
        say_lines((jsonlib.dumps(blob) for blob in found) if json else tables.blob_lines(found))
        return
    if failed:
        raise UsageError("--sort and --failed: what failed has no chunks to sort by")
    layers, commits = _largest(ask.layers(flags), ORDERS[sort], limit or LAYERS_SHOWN)
    say_lines((jsonlib.dumps(layer) for layer in layers) if json else tables.layer_lines(layers))
    if commits > 1:
        click.echo("chunkd: the index changed meanwhile; each line is true of a moment of its own", err=True)


def _largest(pages: Iterable[dict[str, Any]], by: str, most: int) -> tuple[list[dict[str, Any]], int]:
    """The layers that have most of it, and of how many commits the pages are."""
    commits = set()

    def rows() -> Iterator[dict[str, Any]]:
        for page in pages:
            commits.add(page["commit"])
            yield from page["layers"]

    layers = heapq.nsmallest(most, rows(), lambda layer: (-layer[by], layer["digest"]))
    return layers, len(commits)


@click.command()
@asks
@as_json
@click.option(
    "--since", default=HISTORY_SINCE, show_default=True, help="7d (m, h, d, w), 2026-01-31 or 2026-01-31T12:00Z."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values, with a line of names.")
def history(json: bool, as_csv: bool, since: str, **flags: object) -> None:
    """The figures over time. With --json one JSON object a line.

    One line for each minute in which they changed: they stood so until the next. The first line is how they stood at
    the time asked for. Of what is older than a day, the last of each hour is kept, and after 31 days the last of each
    day. All times are UTC.
    """
    from chunkd.queries.history import since_minute

    if json and as_csv:
        raise UsageError("--json and --csv: choose one")
    since_minute(since, 0)
    rows = ask.history(flags, since)
    if as_csv:
        say_lines(",".join(map(_cell, row)) for row in itertools.chain([["at", *KEPT]], (row.values() for row in rows)))
    else:
        say_lines((jsonlib.dumps(row) for row in rows) if json else tables.history_lines(rows))


def _cell(value: object) -> str:
    return "" if value is None else str(value)


COMMANDS = (blobs, history)
