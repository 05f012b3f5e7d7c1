"""The rows and sentences on a sweep: pure functions from the JSON object of `chunkd sweep`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from chunkd.figures.words import bytes_text, net_text, shown, signed_bytes_text

Row = Mapping[str, Any]

UNKNOWN = "-"
HEAD = ("rule", "mean", "chunks", "unique", "recompressed", "index", "net", "median update", "ranges")
SPLIT_HEAD = ("codec", "deduplication", "index", "net")


def rows(reply: Row, *, with_errors: bool) -> Iterator[tuple[str, ...]]:
    """The layers as they are and as zstd, then each rule, in the columns of HEAD. `with_errors` puts half of a 95 %
    interval behind each estimated size.
    """
    now = reply["baselines"]["layers"]
    layers, stored_bytes = f"{now['layers']:,}", now["stored_bytes"]
    size = _size(stored_bytes)
    yield "layers, as now", UNKNOWN, layers, UNKNOWN, size, UNKNOWN, UNKNOWN, *_update(now)
    for zstd in reply["baselines"]["zstd"]:
        size = _size(zstd["bytes"], with_errors and zstd["error_bytes"])
        net = net_text(zstd["net"], zstd["error_bytes"], stored_bytes)
        yield f"layers, as zstd {zstd['level']}", UNKNOWN, layers, UNKNOWN, size, UNKNOWN, net, UNKNOWN, UNKNOWN
    for row in reply["rules"]:
        sizes = (
            _size(row[f"{one}_bytes"], with_errors and row[f"{one}_error_bytes"]) for one in ("unique", "recompressed")
        )
        net = net_text(row["net"], row["recompressed_error_bytes"], stored_bytes)
        mean, index = _size(row["mean_chunk_bytes"]), _size(row["index_overhead_bytes"])
        yield shown(row["name"]), mean, f"{row['chunks']:,}", *sizes, index, net, *_update(row)


def split(reply: Row) -> Iterator[tuple[str, ...]]:
    """Where the net saving of each rule comes from, in the columns of SPLIT_HEAD behind its name."""
    for row in reply["rules"]:
        saved = row["codec_saving_bytes"], row["deduplication_saving_bytes"]
        sizes = (*saved, -row["index_overhead_bytes"], row["net_bytes"])
        yield shown(row["name"]), *(UNKNOWN if size is None else signed_bytes_text(size) for size in sizes)


def zstd_layers_text(reply: Row) -> str:
    """Which zstd layers save more than the best rule, and how much; "" if none does."""
    rules = [row["net"] for row in reply["rules"] if row["net"] is not None]
    levels = [row for row in reply["baselines"]["zstd"] if row["net"] is not None]
    best = max(levels, key=lambda row: row["net"], default=None)
    if best is None or best["net"] <= max(rules, default=1.0):
        return ""
    return f"layers as zstd {best['level']} save more: {100 * best['net']:.1f} %"


def _size(size_bytes: float | None, error_bytes: int | None = None) -> str:
    if size_bytes is None:
        return UNKNOWN
    return bytes_text(round(size_bytes)) + (f" ± {bytes_text(error_bytes)}" if error_bytes else "")


def _update(row: Row) -> tuple[str, str]:
    """What the median update moves, and in how many ranges."""
    ranges = row["median_update_ranges"]
    return _size(row["median_update_bytes"]), UNKNOWN if ranges is None else f"{ranges:,}"
