"""What `chunkd updates` prints for people: pure functions from its JSON object to lines, as in `image_tables`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chunkd.cli.diff_lines import than_layers
from chunkd.cli.image_tables import names_as_of_text, some_of
from chunkd.figures.words import bytes_text, count_text, row_of, shown, signed_bytes_text, wrapped

Row = Mapping[str, Any]

PAIRS_SHOWN = 40
NAME_COLUMNS, REPOSITORY_COLUMNS = 15, 29
WIDTHS, ALL_WIDTHS = (11, 11, 11, 11, 11), (5, 12, 12, 12, 13)
ORDERS = {
    "versions": "in the order of their tags as versions",
    "pushes": "in the order in which they were pushed",
    None: "in no known order (two versions as tags, or two times of a push, would give one)",
}
LEFT_OUT = {
    "absent": "not here",
    "not_images": "not an image",
    "without_platform": "not for that platform",
    "earlier": "earlier than what is compared",
}


def update_lines(reply: Row, source: str) -> Iterator[str]:
    """The pairs of one repository or tag, the latest last, and the medians by distance."""
    yield from wrapped(source)
    yield from _heading(reply)
    first, pairs = reply["first_pull"], reply["pairs"]
    if first:
        yield from _first_pull(first)
    if not pairs:
        return
    yield ""
    names = f"{'FROM':<{NAME_COLUMNS}} {'TO':<{NAME_COLUMNS}}"
    yield _line(names, ("AS LAYERS", "AS CHUNKS", "+/-", "CHEAPER", "RUNS"))
    if len(pairs) > PAIRS_SHOWN:
        yield f"{count_text(len(pairs) - PAIRS_SHOWN, 'pair')} before these: see `pairs` with --json"
    for pair in pairs[-PAIRS_SHOWN:]:
        yield from _pair(pair, reply["repository"])
    yield ""
    names = f"{'MEDIAN':<{NAME_COLUMNS}} {'PAIRS':<{NAME_COLUMNS}}"
    yield _line(names, ("AS LAYERS", "AS CHUNKS", "", "CHEAPER", "RUNS"))
    for row in reply["distances"]:
        if row["pairs"]:
            apart = f"{count_text(row['distance'], 'version')} on"
            yield _medians(f"{apart:<{NAME_COLUMNS}} {row['pairs'] - row['unknown']:<{NAME_COLUMNS},}", row)
    yield from _remarks(reply["distances"])


def _heading(reply: Row) -> Iterator[str]:
    tag, left_out = reply["tag"], reply["left_out"]
    called = shown(reply["repository"] + (f":{tag}" if tag else ""))
    platform = f", for {shown(reply['platform'])}" if reply["platform"] else ", all platforms"
    said = f"{called}: {count_text(reply['versions'], 'image')}, {ORDERS[reply['order']]}{platform}"
    yield from wrapped(f"{said}; {names_as_of_text(reply)}")
    if left_out["unordered"]:
        reason = "not a version" if reply["order"] == "versions" else "no time of a push is known"
        tags = some_of(left_out["tags"], left_out["unordered"] - len(left_out["tags"]))
        yield from wrapped(f"{count_text(left_out['unordered'], 'tag')} left out ({reason}): {tags}")
    for name, reason in LEFT_OUT.items():
        if left_out[name]:
            yield from wrapped(f"{count_text(left_out[name], 'image')} left out ({reason})")
    if reply["same_time"]:
        yield from wrapped(f"{reply['same_time']:,} pushed at the time of another, so that their order is not known")
    if reply["series"] > 1:
        yield from wrapped(f"{reply['series']:,} variants, each compared with itself alone")


def _first_pull(pair: Row) -> Iterator[str]:
    names = some_of(pair["to_names"][:1]) if pair["to_names"] else pair["to"]
    said = f"A first pull of {names} takes {bytes_text(pair['layers']['stored_bytes'])} as layers"
    if _is_known(pair):
        as_chunks = pair["chunks"]["total_bytes"]
        than = than_layers(as_chunks, pair["layers"]["stored_bytes"])
        yield from wrapped(f"{said}, {bytes_text(as_chunks)} as chunks: {than}")
    else:
        yield from wrapped(f"{said}; as chunks it is unknown")


def _is_known(pair: Row) -> bool:
    chunks = pair["chunks"]
    return chunks is not None and chunks["total_bytes"] is not None and not pair["partial"]["from"]


def _pair(pair: Row, repository: str) -> Iterator[str]:
    sides = [shown(_called(pair[f"{side}_names"], repository)) for side in ("from", "to")]
    if sides[0] == sides[1] or not all(sides):
        sides = [pair["from"][:NAME_COLUMNS], pair["to"][:NAME_COLUMNS]]
    names = " ".join(f"{name:<{NAME_COLUMNS}}" for name in sides)
    if max(map(len, sides)) > NAME_COLUMNS:  # in a line of their own, so that the columns stand below one another
        yield f"{sides[0]} to {sides[1]}"
        names = " " * (2 * NAME_COLUMNS + 1)
    layer_bytes = pair["layers"]["stored_bytes"]
    if not _is_known(pair):
        yield _line(
            names, ("unknown", "unknown"), "partial" if pair["partial"]["from"] or pair["partial"]["to"] else ""
        )
        return
    chunks, error_bytes = pair["chunks"], pair["chunks"]["recompressed_error_bytes"]
    error = "unknown" if error_bytes is None else bytes_text(error_bytes)
    layers, as_chunks, cheaper = map(bytes_text, (layer_bytes, chunks["total_bytes"], pair["cheaper"]["bytes"]))
    cells = (layers, as_chunks, error, cheaper, f"{chunks['runs']:,}")
    yield _line(names, cells, _short_than(chunks["total_bytes"], layer_bytes))


def _called(names: list[str], repository: str) -> str:
    return names[0].removeprefix(f"{repository}:") if names else ""


def _short_than(size_bytes: int, layers_bytes: int) -> str:
    return than_layers(size_bytes, layers_bytes).removesuffix(" than as layers")


def _line(names: str, cells: Sequence[str], than: str = "") -> str:
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=False))
    return f"{names}{row}  {than}".rstrip()


def _medians(names: str, row: Row) -> str:
    if row["median_layer_bytes"] is None:
        return _line(names, ("unknown", "unknown"))
    layers, as_chunks, cheaper = _median_sizes(row)
    than = _short_than(row["median_chunk_bytes"], row["median_layer_bytes"])
    return _line(names, (layers, as_chunks, "", cheaper, f"{row['median_requests']:,}"), than)


def _median_sizes(row: Row) -> Iterator[str]:
    return (bytes_text(row[f"median_{one}_bytes"]) for one in ("layer", "chunk", "cheaper"))


def _remarks(distances: Sequence[Row]) -> Iterator[str]:
    consecutive, left_out = distances[0], sum(row["left_out"] for row in distances)
    if consecutive["dearer"]:
        yield from wrapped(
            f"{count_text(consecutive['dearer'], 'consecutive pair')} cost MORE as chunks than as layers"
        )
    if unknown := consecutive["unknown"]:
        yield from wrapped(f"{count_text(unknown, 'pair')} with a partial or unmeasured image, of unknown cost")
    yield from _uncertain(consecutive["without_error"], left_out)


def _uncertain(without_error: int, left_out: int) -> Iterator[str]:
    if without_error:
        said = (
            f"{count_text(without_error, 'pair')} of unknown error, with few measured chunks: compressed as others are;"
        )
        yield from wrapped(f"{said} `chunkd diff --measure` is exact")
    if left_out:
        yield from wrapped(
            f"{count_text(left_out, 'earlier pair')} left out, as there are too many chunks to go through"
        )


def all_lines(reply: Row, source: str) -> Iterator[str]:
    """A line for each repository, those first in which chunks would save most, and the median over all."""
    yield from wrapped(source)
    rows, median = reply["repositories"], reply["median"]
    known = [row for row in rows if row["pairs"] > row["unknown"]]
    platform = f"for {shown(reply['platform'])}" if reply["platform"] else "all platforms"
    said = f"{count_text(len(rows), 'repository')}, {platform}: what moves from each version to the next one, as the"
    said += f" median of the latest {reply['most_pairs']:,} pairs at most; saved = by chunks, over these pairs"
    yield from wrapped(f"{said}; {names_as_of_text(reply)}")
    yield ""
    if known:
        yield from _all_line("REPOSITORY", ("PAIRS", "AS LAYERS", "AS CHUNKS", "CHEAPER", "SAVED"))
    for row in known:
        cells = (f"{row['pairs'] - row['unknown']:,}", *_median_sizes(row), signed_bytes_text(row["saved_bytes"]))
        yield from _all_line(shown(row["repository"]), cells, _short_than(row["chunk_bytes"], row["layer_bytes"]))
    if known:
        saved = median["median_saved"]
        than = "" if saved is None else f"{abs(100 * saved):.0f} % {'less' if saved >= 0 else 'MORE'}"
        label = f"median of {count_text(median['repositories'], 'repository')}"
        yield from _all_line(label, ("", *_median_sizes(median)), than)
    if unordered := [row for row in rows if not row["pairs"]]:
        some = some_of([row["repository"] for row in unordered])
        yield from wrapped(f"{count_text(len(unordered), 'repository')} without two images in a known order: {some}")
    if unknown := sum(row["unknown"] for row in rows):
        yield from wrapped(f"{count_text(unknown, 'pair')} with a partial or unmeasured image, of unknown cost")
    yield from _uncertain(sum(row["without_error"] for row in rows), reply["left_out"]["pairs"])


def _all_line(name: str, cells: Sequence[str], than: str = "") -> list[str]:
    return row_of(name, REPOSITORY_COLUMNS, cells, ALL_WIDTHS, than)
