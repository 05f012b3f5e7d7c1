"""What `chunkd export` and `chunkd merge` print for people: pure functions to lines. Hosts' names are shown escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.cli import image_tables
from chunkd.cli.tables import stats_lines
from chunkd.figures.words import bytes_text, count_text, labelled, shown, wrapped


def export_lines(name: str, store: str, blobs: int, read: int) -> Iterator[str]:
    new = f"{read:,} of them new" if read else "none of them new"
    yield f"{shown(store)}: {shown(name)} holds {count_text(blobs, 'blob')}, {new}"


def merge_lines(content: Mapping[str, Any], store: str) -> Iterator[str]:
    """The figures as `chunkd stats` has them, the waterfall, and the sources."""
    fleet = content["fleet"]
    hosts = count_text(len(fleet["sources"]), "source")
    yield from wrapped(f"from the store at {shown(store)}: {hosts}, as of {content['as_of'] or 'never'} or later")
    yield ""
    # Who looks after a host's caches is that host's affair.
    yield from stats_lines({**content, "pending_blobs": content["pending_blobs"] or 0})
    if content["layers"]:
        yield ""
        yield from _waterfall(fleet["waterfall"], hosts)
    yield ""
    yield from _sources(fleet)
    if content["pending_blobs"] is None:
        yield from wrapped("not known of all sources: their daemons were stopped before they were done", "pending")


def images_lines(content: Mapping[str, Any], store: str) -> Iterator[str]:
    """The images as `chunkd images` has them, and the sources."""
    source = f"from the store at {shown(store)}: {count_text(len(content['fleet']['sources']), 'source')}"
    rows = image_tables.chosen(content, "pushed", untagged=False, partial=False)
    yield from image_tables.image_lines(rows, content, source)
    yield ""
    yield from _sources(content["fleet"])


def _sources(fleet: Mapping[str, Any]) -> Iterator[str]:
    for row in fleet["sources"]:
        size = bytes_text(row["layer_stored_bytes"])
        yield from wrapped(
            f"{shown(row['name'])}: {count_text(row['layers'], 'layer')}, {size}, as of {row['as_of']}", "source"
        )
    for row in fleet["left_out"]:
        since = f" (as of {row['as_of']})" if row["as_of"] else ""
        yield from wrapped(f"{shown(row['name'] or row['source'])}: {row['reason']}{since}", "left out")


def _waterfall(steps: Mapping[str, Any], hosts: str) -> Iterator[str]:
    copies_bytes, distinct_bytes = steps["copies_bytes"], steps["distinct_layers_bytes"]
    store_bytes = steps["recompressed_with_index_bytes"]
    copies, distinct = (count_text(steps[name], "layer") for name in ("copies_layers", "distinct_layers"))
    yield labelled("all copies", bytes_text(copies_bytes), f"{copies} on disk, of {hosts}")
    yield labelled("distinct layers", bytes_text(distinct_bytes), f"{distinct}, each kept once")
    yield labelled("unique chunks", bytes_text(steps["unique_chunks_bytes"]), "uncompressed")
    if store_bytes is not None:
        yield labelled("as chunks", bytes_text(store_bytes), "recompressed, with the store's index")
    yield ""
    yield from wrapped(
        f"One registry for all would save {_part(copies_bytes - distinct_bytes, copies_bytes)} of all copies without"
        " any chunks." + ("" if store_bytes is None else _by_chunks(distinct_bytes, store_bytes))
    )


def _by_chunks(distinct_bytes: int, store_bytes: int) -> str:
    saved_bytes = distinct_bytes - store_bytes
    what = "less" if saved_bytes >= 0 else "more"
    return f" Its layers as chunks would take {_part(abs(saved_bytes), distinct_bytes)} {what} than they do."


def _part(part_bytes: int, whole_bytes: int) -> str:
    return f"{bytes_text(part_bytes)} ({100 * part_bytes / whole_bytes:.1f} %)" if whole_bytes else "nothing"
