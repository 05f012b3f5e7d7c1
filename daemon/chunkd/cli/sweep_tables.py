"""The reply of `sweep` as text: a row for each rule, and where its net saving comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chunkd.figures.words import bytes_text, count_text, net_text, shown, signed_bytes_text, zstd_layers_text

BAD_SHOWN = 20
UNKNOWN = "-"
_HEAD = ("rule", "mean", "chunks", "unique", "recompressed", "index", "net", "median update", "ranges")


def lines(reply: Mapping[str, Any]) -> Iterator[str]:
    layers = reply["layers"]
    part = "" if reply["layers_share"] == "1/1" else f" ({reply['layers_share']} of all)"
    yield (
        f"{count_text(layers['found'], 'layer')}{part}: {bytes_text(reply['layer_stored_bytes'])} on disk,"
        f" {bytes_text(reply['uncompressed_bytes'])} uncompressed"
    )
    yield ""
    rows = [*_baselines(reply), *(_row(row, reply["layer_stored_bytes"]) for row in reply["rules"])]
    yield from table((f"{_HEAD[0]}{part}", *_HEAD[1:]), rows)
    yield ""
    split = [
        (
            shown(row["name"]),
            *(_signed(row[name]) for name in ("codec_saving_bytes", "deduplication_saving_bytes")),
            _signed(-row["index_overhead_bytes"]),
            _signed(row["net_bytes"]),
        )
        for row in reply["rules"]
    ]
    yield from table((f"net saving by{part}", "codec", "deduplication", "index", "net"), split)
    yield ""
    yield from _remarks(reply)


def _baselines(reply: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    now = reply["baselines"]["layers"]
    update = (_size(now["median_update_bytes"]), _count(now["median_update_ranges"]))
    yield (
        "layers, as now",
        UNKNOWN,
        f"{now['layers']:,}",
        UNKNOWN,
        _size(now["stored_bytes"]),
        UNKNOWN,
        UNKNOWN,
        *update,
    )
    for zstd in reply["baselines"]["zstd"]:
        label = f"layers, as zstd {zstd['level']}"
        net = net_text(zstd["net"], zstd["error_bytes"], now["stored_bytes"])
        yield label, UNKNOWN, f"{now['layers']:,}", UNKNOWN, _size(zstd["bytes"]), UNKNOWN, net, UNKNOWN, UNKNOWN


def _row(row: Mapping[str, Any], stored_bytes: int) -> tuple[str, ...]:
    net = net_text(row["net"], row["recompressed_error_bytes"], stored_bytes)
    mean = row["mean_chunk_bytes"]
    return (
        shown(row["name"]), UNKNOWN if mean is None else bytes_text(round(mean)), f"{row['chunks']:,}",
        _size(row["unique_bytes"]), _size(row["recompressed_bytes"]), _size(row["index_overhead_bytes"]), net,
        _size(row["median_update_bytes"]), _count(row["median_update_ranges"]),
    )  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, all others to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def _remarks(reply: Mapping[str, Any]) -> Iterator[str]:
    best = reply["best"]
    if best["net"]:
        yield f"of the rules, {shown(best['net'])} saves most"
    if by_zstd := zstd_layers_text(reply):
        yield by_zstd
    if best["update_bytes"]:
        yield f"the median update moves least with {shown(best['update_bytes'])}"
    if reply["updates_unknown"]:
        yield f"updates are unknown: {shown(reply['updates_unknown'])}"
    measure = reply["measure"]
    which = "every chunk" if measure["one_in"] == 1 else f"1 chunk in {measure['one_in']}"
    yield f"recompressed: {which}, at level {measure['level']} of zstd; ± is half of a 95 % interval"
    level_19 = reply["baselines"]["zstd"][-1]
    yield f"zstd {level_19['level']}: estimated from {count_text(level_19['layers_measured'], 'layer')}"
    for row in reply["rules"]:
        if row["unique_one_in"] > 1:
            yield (
                f"{shown(row['name'])}: unique chunks are estimated from 1 in {row['unique_one_in']}; half of a 95 %"
                f" interval: {bytes_text(row['unique_error_bytes'])} of unique bytes"
            )
    layers = reply["layers"]
    if layers["left"]:
        yield f"{count_text(layers['left'], 'layer')} not read yet, and in no figure"
    for name, what in (("bad", "in no figure"), ("damaged_tars", "its tar is damaged: from there on it is one chunk")):
        for bad in layers[name][:BAD_SHOWN]:
            yield f"{shown(bad['digest'])}: {shown(bad['reason'])} ({what})"
        if len(layers[name]) > BAD_SHOWN:
            yield f"and {len(layers[name]) - BAD_SHOWN:,} more"
    for problem in layers["problems"][:BAD_SHOWN]:
        yield f"can't be listed: {shown(problem)}"


def _size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else bytes_text(size_bytes)


def _signed(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else signed_bytes_text(size_bytes)


def _count(count: int | None) -> str:
    return UNKNOWN if count is None else f"{count:,}"
