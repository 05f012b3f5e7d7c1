"""What the commands print for people: pure functions from the JSON objects of `api.routes.Answers` to lines.

A line is at most 100 columns wide, unless a path or a digest alone is wider. What comes from files (paths, reasons)
is shown with control characters escaped: a terminal obeys them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chunkd.figures.words import (
    COLUMNS,
    bytes_text,
    caution_sentence,
    changes,
    labelled,
    range_text,
    remarks,
    saving_parts,
    saving_sentence,
    shown,
    signed_bytes_text,
    wrapped,
)

BAR_COLUMNS = 11


def stats_lines(stats: Mapping[str, Any], source: str = "", explain: bool = False) -> Iterator[str]:
    """The figures of `Stats.to_json`; beside them whatever makes them less than the whole truth, if there is any.

    `source` is the first line, from `daemon_source` or `index_source`. With `explain` the net saving comes in parts.
    """
    if source:
        yield from wrapped(source)
        yield ""
    if stats["layers"]:
        yield from _figures(stats)
        if explain and stats["net"] is not None:
            yield ""
            yield from (labelled(label, signed_bytes_text(saved), why) for label, saved, why in saving_parts(stats))
    else:
        yield "There is no layer in the index yet."
    if images := stats.get("images"):
        yield ""
        yield from _images(images)
    beside = [*changes(stats), *remarks(stats)]
    if beside:
        yield ""
    for label, words in beside:
        yield from wrapped(words, label)


def _images(images: Mapping[str, Any]) -> Iterator[str]:
    partial = f", {images['partial_images']:,} partial" if images["partial_images"] else ""
    yield labelled(
        "images", f"{images['images']:,}", f"{images['names']:,} names{partial}; as of {shown(images['as_of'])}"
    )
    size, exact = _sizes(images["unreached_bytes"])
    yield labelled("in no named image", size, f"{exact} on disk")


def _figures(stats: Mapping[str, Any]) -> Iterator[str]:
    uncompressed_bytes, unique_bytes = stats["uncompressed_bytes"], stats["unique_bytes"]
    layer_stored_bytes = stats["layer_stored_bytes"]
    yield labelled("layers", f"{stats['layers']:,}")
    yield labelled("on disk", *_sizes(layer_stored_bytes))
    yield labelled("uncompressed", *_sizes(uncompressed_bytes))
    if not stats["chunks"]:
        return
    mean = bytes_text(round(stats["mean_chunk_bytes"]))
    yield labelled("chunks", f"{stats['chunks']:,}", f"{mean} on average")
    yield labelled("unique chunks", f"{stats['unique_chunks']:,}")
    yield labelled("unique chunk bytes", *_sizes(unique_bytes))
    yield labelled("redundancy", f"{100 * stats['redundancy']:.1f} %")
    yield ""
    yield from wrapped(caution_sentence(stats))
    if stats["net"] is not None:
        yield ""
        yield from wrapped(saving_sentence(stats))


def history_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line that names the columns, then one a row, with a bar for the unique bytes."""
    found = list(rows)
    most = max((row["unique_bytes"] for row in found), default=0)
    yield f"{'at (UTC)':<20}{'layers':>9}{'on disk':>12}{'uncompressed':>14}{'unique':>12}{'redundancy':>12}{'net':>9}"
    for row in found:
        sizes = [bytes_text(row[name]) for name in ("layer_stored_bytes", "uncompressed_bytes", "unique_bytes")]
        redundancy, net = ("-" if row[name] is None else f"{100 * row[name]:.1f} %" for name in ("redundancy", "net"))
        line = f"{shown(row['at']):<20}{row['layers']:>9,}{sizes[0]:>12}{sizes[1]:>14}{sizes[2]:>12}"
        bar = "#" * round(BAR_COLUMNS * row["unique_bytes"] / most) if most else ""
        yield f"{line}{redundancy:>12}{net:>9} {bar}".rstrip()


def histogram_lines(histogram: Mapping[str, Any], source: str) -> Iterator[str]:
    """The tables of `histogram.to_json`, each row with its share of all bytes."""
    yield from wrapped(source)
    if not histogram["copies"]:
        yield ""
        yield "There is no chunk in the index yet."
        return
    copies = [(range_text(row["from"], row["to"]), row) for row in histogram["copies"]]
    sizes = [(range_text(row["from_bytes"], row["to_bytes"]), row) for row in histogram["sizes"]]
    for title, rows in ("copies", copies), ("bytes of a chunk", sizes):
        total_bytes = sum(row["uncompressed_bytes"] for _, row in rows)
        yield ""
        yield f"{title:<18}{'unique chunks':>16}{'chunks':>16}{'unique':>14}{'in all':>14}{'share':>9}"
        for bounds, row in rows:
            share = 100 * row["uncompressed_bytes"] / total_bytes
            yield (
                f"{bounds:<18}{row['unique_chunks']:>16,}{row['chunks']:>16,}{bytes_text(row['unique_bytes']):>14}"
                f"{bytes_text(row['uncompressed_bytes']):>14}{share:>7.1f} %"
            )


def blob_lines(blobs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One line a blob, however wide: digest, state, codec, stored and uncompressed bytes, chunks, and why it failed.

    What was ignored (it is not a regular file) has its path for a digest, and no size.
    """
    for blob in blobs:
        line = f"{shown(str(blob['digest']))}  {shown(blob['state']):<7}  {shown(blob['codec']) or '-':<5}"
        size = "-" if blob["state"] == "ignored" else bytes_text(blob["stored_bytes"])
        line += f"  {size:>11}"
        if blob["state"] == "layer":
            line += f"  {bytes_text(blob['uncompressed_bytes']):>11}  {blob['chunks']:>9,} chunks"
        yield line + (f"  {shown(blob['reason'])}" if blob["reason"] else "")


def layer_lines(layers: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A line that names the columns, then one a layer, however wide: digest, sizes, and the three parts of what it
    decompresses to.
    """
    names = ("stored", "uncompressed", "exclusive", "shared", "repeated")
    yield f"{'layer':<71}" + "".join(f"  {name:>12}" for name in names)
    for layer in layers:
        sizes = (bytes_text(layer[f"{name}_bytes"]) for name in names)
        yield f"{shown(str(layer['digest'])):<71}" + "".join(f"  {size:>12}" for size in sizes)


def health_lines(health: Mapping[str, Any]) -> Iterator[str]:
    """The state, and below it each reason for which it is not ok."""
    yield shown(health["state"])
    for reason in health["reasons"]:
        yield from textwrap.wrap(
            shown(reason), COLUMNS, initial_indent="- ", subsequent_indent="  ", break_long_words=False
        )


def _sizes(size_bytes: int) -> tuple[str, str]:
    return bytes_text(size_bytes), f"{size_bytes:,} bytes" if size_bytes >= 1024 else ""
