"""The figures as people read them: pure functions from the JSON objects of `routes.Answers` to lines.

A line is at most 100 columns wide, unless a path or a digest alone is wider. What comes from files (paths, reasons)
is shown with control characters escaped: a terminal obeys them.
"""

from __future__ import annotations

import json
import textwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

COLUMNS = 100
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
LABEL_COLUMNS = 20
BAR_COLUMNS = 11


def daemon_source(socket: str, as_of: str | None) -> str:
    return f"from the daemon at {shown(socket)}, {_as_of(as_of)}"


def index_source(path: str, as_of: str | None) -> str:
    return f"from the index at {shown(path)}, no daemon runs; {_as_of(as_of)}"


def stats_text(stats: Mapping[str, Any], source: str, as_json: bool) -> str:
    """The figures as JSON, for programs, or as `stats_lines`."""
    return json.dumps(stats, indent=1) if as_json else "\n".join(stats_lines(stats, source))


def stats_lines(stats: Mapping[str, Any], source: str = "") -> Iterator[str]:
    """The figures of `model.Stats.to_json`; beside them whatever makes them less than the whole truth, if there is any.

    `source` is the first line, from `daemon_source` or `index_source`.
    """
    if source:
        yield from _wrapped(source)
        yield ""
    if stats["layers"]:
        yield from _figures(stats)
    else:
        yield "There is no layer in the index yet."
    beside = [*changes(stats), *remarks(stats)]
    if beside:
        yield ""
    for label, words in beside:
        yield from _wrapped(words, label)


def _figures(stats: Mapping[str, Any]) -> Iterator[str]:
    uncompressed_bytes, unique_bytes = stats["uncompressed_bytes"], stats["unique_bytes"]
    layer_stored_bytes = stats["layer_stored_bytes"]
    yield _row("layers", f"{stats['layers']:,}", "")
    yield _row("on disk", *_sizes(layer_stored_bytes))
    yield _row("uncompressed", *_sizes(uncompressed_bytes))
    if not stats["chunks"]:
        return
    mean = bytes_text(round(stats["mean_chunk_bytes"]))
    yield _row("chunks", f"{stats['chunks']:,}", f"{mean} on average")
    yield _row("unique chunks", f"{stats['unique_chunks']:,}", "")
    yield _row("unique chunk bytes", *_sizes(unique_bytes))
    yield _row("redundancy", f"{100 * stats['redundancy']:.1f} %", "")
    yield ""
    yield from _wrapped(caution_sentence(stats))
    if stats["net"] is not None:
        yield ""
        yield from _wrapped(saving_sentence(stats))


def caution_sentence(stats: Mapping[str, Any]) -> str:
    """What must hold for a chunk store to save anything. There must be a chunk."""
    unique_bytes, layer_stored_bytes = stats["unique_bytes"], stats["layer_stored_bytes"]
    caution = "A chunk store nets storage only if its unique chunks, recompressed, stay below what the layers take now"
    if unique_bytes <= layer_stored_bytes:
        return f"{caution}: here they do even without compression."
    # Rounded down: at the percentage that is printed, the chunks do stay below.
    permille = 1000 * layer_stored_bytes // unique_bytes
    return f"{caution}: here, compressed to at most {permille / 10:.1f} % of their size."


def saving_sentence(stats: Mapping[str, Any]) -> str:
    """What a store would save, in a sentence for who decides on it; `net` must be known."""
    stored_bytes = stats["layer_stored_bytes"]
    as_chunks_bytes = stored_bytes - stats["net_bytes"]
    percent = 100 * stats["net"]
    words = (
        f"As chunks, each recompressed, these layers would take {bytes_text(as_chunks_bytes)} with the store's index,"
    )
    words += f" instead of {bytes_text(stored_bytes)}: {abs(percent):.1f} % {'less' if percent >= 0 else 'more'}"
    error_bytes = stats["recompressed_error_bytes"]
    if error_bytes is None:
        return f"{words}, as far as the few chunks tell that were measured ({stats['measured_chunks']:,})."
    return words + (f", give or take {100 * error_bytes / stored_bytes:.1f} %." if error_bytes else ".")


def changes(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, words) of each span over which it is known how the figures have changed."""
    for span, grown in stats.get("changes", {}).items():
        if grown is None:
            continue
        parts = [_grown(grown["layers"], f"{abs(grown['layers']):,}", "layers")]
        for name, what in (("layer_stored_bytes", "on disk"), ("unique_bytes", "unique")):
            parts.append(_grown(grown[name], bytes_text(abs(grown[name])), what))
        for name in ("redundancy", "net"):
            if grown[name] is not None:
                points = round(100 * grown[name], 1)
                parts.append(_grown(points, f"{abs(points):.1f} points", name))
        said = ", ".join(filter(None, parts))
        yield f"over a {span}", said or "none of the figures above has changed"


def _grown(step: float, size: str, what: str) -> str:
    return f"{'+' if step > 0 else '-'}{size} {what}" if step else ""


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


def remarks(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, words) of whatever makes the figures less than the whole truth."""
    if stats["pending_blobs"]:
        yield "pending", _blobs(stats["pending_blobs"], stats["pending_bytes"], "not counted yet")
    if stats["failed_blobs"]:
        why = "in no figure; `chunkd blobs --failed` says why"
        yield "failed", _blobs(stats["failed_blobs"], stats["failed_bytes"], why)
    if stats["scanned_at"] is None:
        yield "not scanned", "no scan has been completed: there may be more blobs than these"
    for warning in stats["warnings"]:
        yield "warning", shown(warning)
    for cache in stats["caches"]:
        state = cache["state"]
        if state in ("stale", "polled", "unwatched"):
            meaning = {
                "stale": "its figures are kept as they were last known",
                "polled": "no events come from it; it is listed on a timer",
                "unwatched": "its events do not come; it is listed on a timer",
            }[state]
            reason = f": {cache['reason']}" if cache["reason"] else ""
            yield state, shown(f"{cache['path']}{reason} ({meaning})")
        for warning in cache["warnings"]:
            yield "warning", shown(f"{cache['path']}: {warning}")


def histogram_lines(histogram: Mapping[str, Any], source: str) -> Iterator[str]:
    """The tables of `histogram.to_json`, each row with its share of all bytes."""
    yield from _wrapped(source)
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


def range_text(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def blob_lines(blobs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One line a blob, however wide: digest, state, codec, stored and uncompressed bytes, chunks, and why it failed.

    What was ignored (it is no regular file) has its path for a digest, and no size.
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


def health_text(health: Mapping[str, Any], as_json: bool) -> str:
    """The health as JSON, for programs, or as `health_lines`."""
    return json.dumps(health, indent=1) if as_json else "\n".join(health_lines(health))


def health_lines(health: Mapping[str, Any]) -> Iterator[str]:
    """The state, and below it each reason for which it is not ok."""
    yield shown(health["state"])
    for reason in health["reasons"]:
        yield from textwrap.wrap(
            shown(reason), COLUMNS, initial_indent="- ", subsequent_indent="  ", break_long_words=False
        )


def bytes_text(size_bytes: int) -> str:
    """With a binary unit and one decimal: `815 bytes`, `61.2 MiB`. What rounds to 1024 takes the next unit."""
    value, unit = float(size_bytes), 0
    while unit + 1 < len(UNITS) and (round(value, 1) if unit else value) >= 1024:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{size_bytes} byte{'s' * (size_bytes != 1)}"
    return f"{value:.1f} {UNITS[unit]}"


def _sizes(size_bytes: int) -> tuple[str, str]:
    return bytes_text(size_bytes), f"{size_bytes:,} bytes" if size_bytes >= 1024 else ""


def _blobs(blobs: int, size_bytes: int, remark: str) -> str:
    count = f"{blobs:,} blob{'s' * (blobs != 1)}"
    return f"{count:<12}  {bytes_text(size_bytes)}, {remark}"


def _row(label: str, value: str, remark: str) -> str:
    return f"{label:<{LABEL_COLUMNS}}{value:<12}{remark and '  ' + remark}".rstrip()


def _wrapped(words: str, label: str = "") -> list[str]:
    indent = " " * LABEL_COLUMNS if label else ""
    first = f"{label:<{LABEL_COLUMNS}}" if label else ""
    return textwrap.wrap(
        words,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _as_of(as_of: str | None) -> str:
    return f"as of {shown(as_of)}" if as_of else "nothing indexed yet"


def shown(text: str) -> str:
    """With what a terminal obeys, and what is no text, written out: what others wrote may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
