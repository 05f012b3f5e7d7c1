"""The reply of `chunkd sweep` as one HTML page, with the curves over the mean chunk size."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from chunkd.figures import words as text
from chunkd.figures.sweep_words import HEAD, SPLIT_HEAD, rows, split, zstd_layers_text
from chunkd.report import plots
from chunkd.report.html import element, table
from chunkd.report.page import styled

# The curves: what is drawn, its name, its unit, and whether the largest or the smallest value is the best.
NET, UPDATE, RANGES = "net", "median_update_bytes", "median_update_ranges"


def page(reply: Mapping[str, Any], made_at: dt.datetime | None = None) -> str:
    """The whole page. Raises MatplotlibMissing."""
    plots.needed()
    made_at = made_at or dt.datetime.now(dt.UTC)
    return styled("chunkd: chunk sizes and rules compared", _parts(reply, made_at))


def _parts(reply: Mapping[str, Any], made_at: dt.datetime) -> Iterator[Element]:
    layers = reply["layers"]
    part = _part(reply)
    found = text.count_text(layers["found"], "layer")
    yield element(
        "header",
        element("p", f"chunkd sweep, {made_at:%Y-%m-%d %H:%M} UTC", class_="quiet"),
        element("h1", f"Chunk sizes and rules compared{part}"),
        element("p", _answer(reply), class_="answer"),
        element(
            "p", f"{found}{part}, {text.bytes_text(reply['layer_stored_bytes'])} on disk and"
            f" {text.bytes_text(reply['uncompressed_bytes'])} uncompressed.", class_="lead",
        ),
    )  # fmt: skip
    if not layers["found"]:
        return
    yield from _curves(reply, part)
    rules = table((*HEAD[:-1], "requests"), rows(reply, with_errors=True))
    yield element("section", element("h2", f"By rule{part}"), element("div", rules, class_="table"))
    yield element(
        "section", element("h2", f"Where the net saving comes from{part}"),
        element("div", table(("rule", *SPLIT_HEAD), split(reply)), class_="table"),
    )  # fmt: skip
    yield _fine_print(reply)


def _part(reply: Mapping[str, Any]) -> str:
    return "" if reply["layers_share"] == "1/1" else f" ({reply['layers_share']} of all layers)"


def _answer(reply: Mapping[str, Any]) -> str:
    best = {row["name"]: row for row in reply["rules"]}.get(reply["best"]["net"])
    if best is None or best["net"] is None:
        return "Not known yet"
    way = "less" if best["net"] >= 0 else "more"
    answer = f"{abs(100 * best['net']):.1f} % {way} storage by the best rule, {best['name']}"
    by_zstd = zstd_layers_text(reply)
    return f"{answer}; {by_zstd}" if by_zstd else answer


def _curves(reply: Mapping[str, Any], part: str) -> Iterator[Element]:
    stored_bytes = max(1, reply["layer_stored_bytes"])
    drawable = [
        row | {f"{NET}_error": (row["recompressed_error_bytes"] or 0) / stored_bytes, "series": _series(row)}
        for row in reply["rules"]
        if row["mean_chunk_bytes"]
    ]
    said = (
        "Each point is a rule, at the mean size of its chunks; the table has its name. The best is marked. Bars are 95"
        " % intervals."
    )
    drawn = [
        plots.over_mean_size(drawable, name, label, what, most_is_best=most_is_best)
        for name, label, what, most_is_best in (
            (NET, "net saving, %", f"Net saving by mean chunk size{part}", True),
            (UPDATE, "median update", f"Bytes of the median update by mean chunk size{part}", False),
            (RANGES, "requests", f"Requests of the median update by mean chunk size{part}", False),
        )
        if any(row[name] is not None for row in drawable)
    ]
    if drawn:
        figures = [element("figure", plot) for plot in drawn]
        yield element(
            "section", element("h2", f"Over the mean chunk size{part}"), element("p", said),
            element("div", *figures, class_="pair"),
        )  # fmt: skip


def _series(row: Mapping[str, Any]) -> str:
    is_own = re.fullmatch("[0-9]+/[0-9]+/[0-9]+", row["name"]) is not None
    return plots.SERIES[2 if row["per_file"] else 0 if is_own else 1]


def _fine_print(reply: Mapping[str, Any]) -> Element:
    layers, measure = reply["layers"], reply["measure"]
    said = [
        f"1 chunk in {measure['one_in']} was recompressed, at level {measure['level']} of zstd; ± is half of a 95 %"
        " interval.",
        "A rule that cuts each file by itself has all else of a layer, headers and padding, as one chunk more.",
        "The median update is that over repositories, from one version to the next; requests are stretches of chunks.",
    ]
    if reply["updates_unknown"]:
        said.append(f"Updates are unknown: {reply['updates_unknown']}.")
    if layers["left"]:
        said.append(f"{text.count_text(layers['left'], 'layer')} not read yet, and in no figure.")
    said += [f"{bad['digest']}: {bad['reason']}; in no figure." for bad in layers["bad"]]
    said += [f"{bad['digest']}: its tar is damaged: {bad['reason']}." for bad in layers["damaged_tars"]]
    said += [f"{row['name']}: {row['parameters']}." for row in reply["rules"]]
    return element("footer", element("h2", "What this rests on"), element("ul", *(element("li", one) for one in said)))
