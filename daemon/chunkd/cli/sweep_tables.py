"""The reply of `sweep` as text: a row for each rule, and where its net saving comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chunkd.figures.sweep_words import HEAD, SPLIT_HEAD, rows, split, zstd_layers_text
from chunkd.figures.words import bytes_text, count_text, shown

BAD_SHOWN = 20


def lines(reply: Mapping[str, Any]) -> Iterator[str]:
    layers = reply["layers"]
    part = "" if reply["layers_share"] == "1/1" else f" ({reply['layers_share']} of all)"
    yield (
        f"{count_text(layers['found'], 'layer')}{part}: {bytes_text(reply['layer_stored_bytes'])} on disk,"
        f" {bytes_text(reply['uncompressed_bytes'])} uncompressed"
    )
    yield ""
    yield from table((f"{HEAD[0]}{part}", *HEAD[1:]), list(rows(reply, with_errors=False)))
    yield ""
    yield from table((f"net saving by{part}", *SPLIT_HEAD), list(split(reply)))
    yield ""
    yield from _remarks(reply)


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
