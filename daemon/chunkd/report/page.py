"""A report as one HTML page, for a screen of any width, light or dark, and for paper. The page loads nothing.

A plot is drawn only if it has data. Beside each plot is a table of the same data, or a sentence on where it ends.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any
from xml.etree.ElementTree import Element

from chunkd import __version__
from chunkd.figures import net_saving
from chunkd.figures import words as text
from chunkd.model import MeasureRule
from chunkd.report import images, plots, replay
from chunkd.report.data import LAYERS_SHOWN, Material
from chunkd.report.html import Child, document, element, pair, table

# The browser enforces that the page loads nothing; with an empty icon it does not look for one either.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
DIGITS_SHOWN = 12
LEAST_SPAN = dt.timedelta(minutes=2)


def page(material: Material) -> str:
    """The whole page. Raises MatplotlibMissing."""
    plots.needed()
    return styled("chunkd: what a chunk store would save", _parts(material))


def styled(title: str, parts: Iterable[Element]) -> str:
    """A page with these parts, in the style of all our pages."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
    ]
    style = resources.files("chunkd.report").joinpath("report.css").read_text(encoding="utf-8")
    return document(head, [element("main", *parts)], style)


def _parts(material: Material) -> Iterator[Element]:
    stats = material.stats
    yield element("header", *_answer(stats, material.made_at))
    yield from _remarks(material)
    if not stats["chunks"]:
        yield _fine_print(material)
        return
    yield element("section", element("h2", "The figures"), _figures(stats))
    yield _over_time(material)
    yield _copies(material.histogram)
    yield _sizes(material.histogram, stats)
    yield _sharing(material)
    yield _alone(material)
    yield from images.sections(material.images)
    if material.replayed is not None:
        yield from replay.section(material.replayed)
    yield _fine_print(material)


# --- the answer ---------------------------------------------------------------------------------------------------


def _answer(stats: Mapping[str, Any], made_at: dt.datetime) -> Iterator[Element]:
    yield element("p", f"chunkd report, {made_at:%Y-%m-%d %H:%M} UTC", class_="quiet")
    yield element("h1", "What a chunk store of these layers would save")
    if not stats["chunks"]:
        yield element("p", "Nothing to tell yet", class_="answer")
        yield element("p", "There is no layer in the index yet.", class_="lead")
    elif stats["net"] is None:
        yield element("p", "Not known yet", class_="answer")
        unknown = "None of these chunks was recompressed, so that nothing tells what they would take. "
        yield element("p", unknown + text.caution_sentence(stats), class_="lead")
    else:
        way, look = ("less", "answer") if stats["net"] >= 0 else ("more", "answer cost")
        answer = element("p", f"{abs(100 * stats['net']):.1f} % {way} storage", class_=look)
        words = element("div", answer, element("p", text.saving_sentence(stats), class_="lead"))
        yield element("div", words, element("figure", plots.saving(stats)), class_="pair")
        rows = [(label, text.signed_bytes_text(saved), why) for label, saved, why in text.saving_parts(stats)]
        yield element("div", table(("where it comes from", "saved", "by"), rows), class_="table")


def _remarks(material: Material) -> Iterator[Element]:
    found = list(text.remarks(material.stats))
    if material.moved:
        found.append(("changed", "the index changed while this page was made: its parts show moments of their own"))
    if found:
        terms = (part for label, words in found for part in (element("dt", label), element("dd", words)))
        yield element("section", element("h2", "To bear in mind"), element("dl", *terms, class_="remarks"))


def _figures(stats: Mapping[str, Any]) -> Element:
    net = "-" if stats["net"] is None else f"{100 * stats['net']:.1f} %"
    said = (
        ("layers", "layers", f"{stats['layers']:,}"),
        ("on disk", "layer_stored_bytes", text.bytes_text(stats["layer_stored_bytes"])),
        ("uncompressed", "uncompressed_bytes", text.bytes_text(stats["uncompressed_bytes"])),
        ("chunks", "chunks", f"{stats['chunks']:,}"),
        ("unique chunks", "unique_chunks", f"{stats['unique_chunks']:,}"),
        ("unique chunk bytes", "unique_bytes", text.bytes_text(stats["unique_bytes"])),
        ("redundancy", "redundancy", f"{100 * stats['redundancy']:.1f} %"),
        ("net saving", "net", net),
    )
    return element(
        "dl",
        *(
            element(
                "div", element("dt", label), element("dd", element("data", shown, id=name, value=_value(stats[name])))
            )
            for label, name, shown in said
        ),
        class_="figures",
    )


def _value(figure: float | None) -> str:
    return "" if figure is None else str(figure)


# --- the plots ----------------------------------------------------------------------------------------------------


def _over_time(material: Material) -> Element:
    moments, times = material.moments, material.times
    title = element("h2", "Over time")
    if not moments or times[-1] - times[0] < LEAST_SPAN:
        short = "Of the time asked for there are less than two minutes of history, too little to be drawn."
        return element("section", title, element("p", short))
    grown = [f"{label[:1].upper()}{label[1:]}: {words}." for label, words in text.changes(material.stats)]
    return element(
        "section", title,
        element("p", f"From {times[0]:%Y-%m-%d %H:%M} to {times[-1]:%Y-%m-%d %H:%M} UTC. {' '.join(grown)}"),
        element(
            "div", element("figure", plots.sizes_over_time(moments, times)),
            element("figure", plots.shares_over_time(moments, times)), class_="pair",
        ),
    )  # fmt: skip


def _copies(histogram: Mapping[str, Any]) -> Element:
    rows = histogram["copies"]
    all_bytes = sum(row["uncompressed_bytes"] for row in rows)
    often = sum(row["uncompressed_bytes"] for row in rows if row["from"] > 1)
    labels = [text.range_text(row["from"], row["to"]) for row in rows]
    said = (
        f"{100 * often / all_bytes:.1f} % of all bytes are in chunks that occur more than once, and a chunk store keeps"
        " each of them once. What occurs once it can't save."
    )
    return element(
        "section", element("h2", "How often chunks occur"), element("p", said),
        pair(plots.copies(rows, labels), _spread("copies", labels, rows, all_bytes)),
    )  # fmt: skip


def _sizes(histogram: Mapping[str, Any], stats: Mapping[str, Any]) -> Element:
    rows = histogram["sizes"]
    all_bytes = sum(row["uncompressed_bytes"] for row in rows)
    labels = [text.range_text(row["from_bytes"], row["to_bytes"]) for row in rows]
    said = (
        f"A chunk has {text.bytes_text(round(stats['mean_chunk_bytes']))} on average, and"
        f" {text.bytes_text(stats['params']['max_bytes'])} at most."
    )
    return element(
        "section", element("h2", "How large chunks are"), element("p", said),
        pair(plots.sizes(rows), _spread("bytes of a chunk", labels, rows, all_bytes)),
    )  # fmt: skip


def _spread(what: str, labels: Sequence[str], rows: Sequence[Mapping[str, Any]], all_bytes: int) -> Element:
    return table(
        (what, "unique chunks", "unique", "in all layers", "share"),
        [
            (
                label, f"{row['unique_chunks']:,}", text.bytes_text(row["unique_bytes"]),
                text.bytes_text(row["uncompressed_bytes"]), f"{100 * row['uncompressed_bytes'] / all_bytes:.1f} %",
            )
            for label, row in zip(labels, rows, strict=True)
        ],
    )  # fmt: skip


def _sharing(material: Material) -> Element:
    most = material.layers.most
    title = element("h2", "The layers that share most")
    if not most:
        return element("section", title, element("p", "No layer has a chunk that another layer has too."))
    said = f"{_these(most)} with most bytes of chunks that other layers have too. All of them: "
    return element(
        "section", title, element("p", said, element("code", "chunkd blobs --sort shared")), _of_layers(most, "sharing")
    )


def _alone(material: Material) -> Element:
    least, alone, layers = material.layers.least, material.layers.alone, material.stats["layers"]
    if not alone:
        said = f"Every layer shares something. {_these(least)} that share the smallest part of their bytes:"
        return element(
            "section", element("h2", "The layers that share least"), element("p", said), _of_layers(least, "alone")
        )
    said = (
        f"{alone:,} of {layers:,} layers {'has' if alone == 1 else 'have'} no chunk that another layer has too, and"
        f" take{'s' * (alone == 1)} {text.bytes_text(material.layers.alone_stored_bytes)} on disk."
    )
    if alone < len(least):
        said += " After these come those that share the smallest part of their bytes."
    return element(
        "section", element("h2", "The layers that share nothing"), element("p", said), _of_layers(least, "alone")
    )


def _these(layers: Sequence[object]) -> str:
    return f"The {LAYERS_SHOWN} layers" if len(layers) == LAYERS_SHOWN else "The layers"


def _of_layers(layers: Sequence[Mapping[str, Any]], name: str) -> Element:
    shown = [_short(str(layer["digest"])) for layer in layers]
    rows: list[list[Child]] = [
        [
            element("code", short, title=str(layer["digest"])),
            *(text.bytes_text(layer[f"{part}_bytes"]) for part in ("stored", "exclusive", "shared", "repeated")),
        ]
        for short, layer in zip(shown, layers, strict=True)
    ]
    found = table(("layer", "on disk", "exclusive", "shared", "repeated"), rows)
    return pair(plots.layers(layers, shown, name), found)


def _short(digest: str) -> str:
    """The first digits of a digest, as image tools show it; enough to find a file by."""
    return text.shown(digest.partition(":")[2][:DIGITS_SHOWN])


# --- how it was computed ------------------------------------------------------------------------------------------


def _fine_print(material: Material) -> Element:
    stats, params = material.stats, material.stats["params"]
    rule = MeasureRule(**params["measure"])
    said = [
        f"Told by chunkd {__version__} {material.source}.",
        *(f"Cache {cache['path']}: {cache['state']}." for cache in stats["caches"]),
        f"Layers are cut where their content says so, into chunks of {text.bytes_text(params['min_bytes'])} to"
        f" {text.bytes_text(params['max_bytes'])}. Redundancy is 1 - unique / uncompressed bytes.",
        f"{stats['measured_chunks']:,} of {stats['unique_chunks']:,} unique chunks were recompressed"
        f" ({rule}); what all of them would take is estimated from these, and the error is half of a 95 % interval.",
        f"A chunk store's own index is taken to need {net_saving.STORE_BYTES_A_UNIQUE_CHUNK} bytes a unique chunk, as"
        f" restic's, and {net_saving.STORE_BYTES_A_CHUNK} bytes a chunk of each layer, as casync's.",
        "Of a layer, uncompressed: exclusive is what no other layer has, each chunk once; shared is what others have"
        " too, each chunk once; repeated is every further copy of a chunk inside the layer.",
    ]
    return element("footer", element("h2", "What this rests on"), element("ul", *(element("li", one) for one in said)))
