"""The figures as text for people: pure functions from the JSON objects of `routes.Answers` to lines.

A line is at most 100 columns wide, unless a path or a digest alone is wider. Text from files (paths, reasons) is shown
with control characters escaped, because a terminal would obey them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

COLUMNS = 100
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
LABEL_COLUMNS = 20
PROBLEMS_SHOWN = 20
NO_IMAGES = "there are no images, as no manifest is among the blobs that were counted"


def daemon_source(socket: str, as_of: str | None) -> str:
    return f"from the daemon at {shown(socket)}, {_as_of(as_of)}"


def index_source(path: str, as_of: str | None) -> str:
    return f"from the index at {shown(path)}, no daemon runs; {_as_of(as_of)}"


def caution_sentence(stats: Mapping[str, Any]) -> str:
    """The condition under which a chunk store saves anything. There must be at least one chunk."""
    unique_bytes, layer_stored_bytes = stats["unique_bytes"], stats["layer_stored_bytes"]
    caution = "A chunk store saves storage only if its unique chunks, recompressed, take less than the layers do now"
    if unique_bytes <= layer_stored_bytes:
        return f"{caution}: here they do even without compression."
    # Rounded down, so that at the printed percentage the chunks do take less.
    permille = 1000 * layer_stored_bytes // unique_bytes
    return f"{caution}: here, if they compress to at most {permille / 10:.1f} % of their size."


def saving_sentence(stats: Mapping[str, Any]) -> str:
    """What a store would save, in one sentence; `net` must be known."""
    stored_bytes = stats["layer_stored_bytes"]
    as_chunks_bytes = stored_bytes - stats["net_bytes"]
    percent = 100 * stats["net"]
    words = (
        f"As chunks, each recompressed, these layers would take {bytes_text(as_chunks_bytes)} with the store's index,"
    )
    words += f" instead of {bytes_text(stored_bytes)}: {abs(percent):.1f} % {'less' if percent >= 0 else 'more'}"
    error_bytes = stats["recompressed_error_bytes"]
    if error_bytes is None:
        return f"{words}, roughly: only {count_text(stats['measured_chunks'], 'chunk')} measured."
    return words + (f", give or take {100 * error_bytes / stored_bytes:.1f} %." if error_bytes else ".")


def saving_parts(stats: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """The parts of the net saving and then their sum: (label, bytes saved, what saves them). `net` must be known."""
    yield "codec", stats["codec_saving_bytes"], "zstd frames of single chunks instead of layers, nothing shared"
    yield "deduplication", stats["deduplication_saving_bytes"], "of chunks that are equal, one is kept"
    yield "index", -stats["index_overhead_bytes"], "what the store keeps to find the chunks"
    yield "net saving", stats["net_bytes"], f"{100 * stats['net']:.1f} % of what the layers take"


def signed_bytes_text(size_bytes: int) -> str:
    return f"{'-' if size_bytes < 0 else '+'}{bytes_text(abs(size_bytes))}"


def net_text(net: float | None, error_bytes: int | None, stored_bytes: int) -> str:
    """A net saving with half of its 95 % interval, `?` where that is not known; `-` if the saving is not known."""
    if net is None:
        return "-"
    if error_bytes == 0:
        return f"{100 * net:.1f} %"
    error = "?" if error_bytes is None else f"{100 * error_bytes / stored_bytes:.1f}"
    return f"{100 * net:.1f} ± {error} %"


def changes(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, words) for each span over which the changes of the figures are known."""
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


def remarks(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, words) for each reason why the figures may be incomplete or wrong."""
    if stats["pending_blobs"] is None:
        yield "pending", "not known: the last writer was stopped before it was done; `chunkd scan` finds out"
    elif stats["pending_blobs"]:
        yield "pending", _blobs(stats["pending_blobs"], stats["pending_bytes"], "not counted yet")
    if stats["failed_blobs"]:
        why = "in no figure; `chunkd blobs --failed` says why"
        yield "failed", _blobs(stats["failed_blobs"], stats["failed_bytes"], why)
    if stats.get("archived_blobs"):
        why = "in no figure, until they are restored from the bucket's archive"
        yield "archived", _blobs(stats["archived_blobs"], stats["archived_bytes"], why)
    if stats["scanned_at"] is None:
        yield "not scanned", "no scan has been completed: there may be more blobs than these"
    yield from _problems(stats)
    for warning in stats["warnings"]:
        yield "warning", shown(warning)
    for cache in stats["caches"]:
        state = cache["state"]
        if state in ("stale", "hung", "polled", "unwatched"):
            meaning = {
                "stale": "its figures are kept as they were last known",
                "hung": "its file system does not answer; its figures are kept as they were last known",
                "polled": "no events come from it; it is listed on a timer",
                "unwatched": "its events do not come; it is listed on a timer",
            }[state]
            reason = f": {cache['reason']}" if cache["reason"] else ""
            yield state, shown(f"{cache['path']}{reason} ({meaning})")
        for warning in cache["warnings"]:
            yield "warning", shown(f"{cache['path']}: {warning}")


def _problems(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    problems = stats.get("problems", [])[:PROBLEMS_SHOWN]
    for problem in problems:
        yield "problem", shown(problem)
    unlisted_folders = stats.get("unlisted_folders") or 0
    if unlisted_folders > len(problems):
        yield (
            "unlisted",
            f"{unlisted_folders:,} folders could not be listed; their blobs may be missing or outdated here",
        )


def range_text(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def count_text(count: int, what: str) -> str:
    """So many of these: `1 reply`, `2 replies`, `1,000 layers`."""
    many = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count:,} {what if count == 1 else many}"


def bytes_text(size_bytes: int) -> str:
    """With a binary unit and one decimal: `815 bytes`, `61.2 MiB`. A value that rounds to 1024 takes the next unit."""
    value, unit = float(size_bytes), 0
    while unit + 1 < len(UNITS) and (round(value, 1) if unit else value) >= 1024:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{size_bytes} byte{'s' * (size_bytes != 1)}"
    return f"{value:.1f} {UNITS[unit]}"


def _blobs(blobs: int, size_bytes: int, remark: str) -> str:
    return f"{count_text(blobs, 'blob'):<12}  {bytes_text(size_bytes)}, {remark}"


def wrapped(words: str, label: str = "") -> list[str]:
    """Lines of at most COLUMNS, with a label before the first."""
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


def labelled(label: str, value: str, remark: str = "") -> str:
    """A line with a label, a figure and what there is to say of it."""
    return f"{label:<{LABEL_COLUMNS}}{value:<12}  {remark}".rstrip()


def row_of(name: str, name_columns: int, cells: Iterable[str], widths: Iterable[int], remark: str = "") -> list[str]:
    """A row of a table, its cells to the right. A name that is too long has a line of its own, so that the columns
    stand below one another.
    """
    above = [name] if len(name) >= name_columns else []
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return [*above, f"{'' if above else name:<{name_columns}}{row}{remark and '  ' + remark}".rstrip()]


def _as_of(as_of: str | None) -> str:
    return f"as of {shown(as_of)}" if as_of else "nothing indexed yet"


def shown(text: str) -> str:
    """The text with control characters and other unprintable characters escaped; it may come from anybody."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
