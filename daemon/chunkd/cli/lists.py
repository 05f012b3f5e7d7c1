"""The commands that list: blobs and layers, and the figures over time."""

from __future__ import annotations

import heapq
import itertools
import json as jsonlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from chunkd.cli import tables
from chunkd.cli.options import as_json, asks, end_by, say_lines
from chunkd.cli.output import say
from chunkd.client.ask import SINCE, Client
from chunkd.errors import UsageError
from chunkd.figures.names import KEPT

ORDERS = {"exclusive": "exclusive_bytes", "shared": "shared_bytes", "size": "stored_bytes"}
LAYERS_SHOWN = 100


@click.command()
@asks
@as_json
@click.option("--failed", is_flag=True, help="Only blobs that failed or are ignored, with the reason.")
@click.option("--sort", type=click.Choice(list(ORDERS)), help="Only layers, with what is in them; the largest first.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), help="At most this many lines; with --sort 100 by default.")
def blobs(client: Client, json: bool, failed: bool, sort: str | None, limit: int | None) -> None:
    """List blobs, one a line. With --json one JSON object a line.

    With --sort each line is a layer, with its uncompressed bytes in three parts. Exclusive: chunks that are in no other
    layer, each counted once; removing the layer would free them. Shared: chunks that other layers have too, each
    counted once. Repeated: every further copy of a chunk inside the layer. `size` is the layer's size on disk.
    """
    if sort is None:
        found = itertools.islice(client.blobs(failed=failed), limit)
        say_lines((jsonlib.dumps(blob) for blob in found) if json else tables.blob_lines(found))
    elif failed:
        raise UsageError("--sort can't be combined with --failed: a failed blob has no chunks to sort by")
    else:
        layers, commits = _largest(client.layer_pages(), ORDERS[sort], limit or LAYERS_SHOWN)
        say_lines((jsonlib.dumps(layer) for layer in layers) if json else tables.layer_lines(layers))
        if commits > 1:
            say("chunkd: the index changed while it was read; lines may be of different moments", err=True)
    end_by(client.stats())


def _largest(pages: Iterable[Mapping[str, Any]], by: str, most: int) -> tuple[list[dict[str, Any]], int]:
    """The layers with the most bytes `by`, and how many different commits the pages show."""
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
@click.option("--since", default=SINCE, show_default=True, help="7d (m, h, d, w), 2026-01-31 or 2026-01-31T12:00Z.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values, with a line of names.")
def history(client: Client, json: bool, as_csv: bool, since: str) -> None:
    """Print the figures over time. With --json one JSON object a line.

    Each minute in which the figures changed has a line, which holds until the next one. The first line has the figures
    at the time asked for. Of lines older than a day the last of each hour is kept; of lines older than 31 days, the
    last of each day. All times are UTC.
    """
    from chunkd.queries.history import since_minute

    if json and as_csv:
        raise UsageError("--json can't be combined with --csv")
    since_minute(since, 0)
    rows = client.history(since)
    if as_csv:
        say_lines(",".join(map(_cell, row)) for row in itertools.chain([["at", *KEPT]], (row.values() for row in rows)))
    else:
        say_lines((jsonlib.dumps(row) for row in rows) if json else tables.history_lines(rows))
    end_by(client.stats())


def _cell(value: object) -> str:
    return "" if value is None else str(value)
