"""What `chunkd where` prints for people: pure functions from its JSON object to lines, as in `image_tables`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chunkd.cli.image_tables import some_of
from chunkd.figures.words import bytes_text, count_text, row_of, shown, wrapped

Row = Mapping[str, Any]

ROWS_SHOWN = 20
IMAGES_NAMED = 3
PROBLEMS_SHOWN = 20
NAME_COLUMNS, NAME_CHARACTERS = 34, 200
WIDTHS = (11, 11, 11, 11, 8, 7, 7)
CAUSES = {
    "zeros": "zeros",
    "same_layer": "the same layer",
    "same_path": "the same file",
    "other_path": "the same file, moved",
    "parts": "parts, headers",
}
CAUSE_COLUMNS = 22


def where_lines(reply: Row, state_dir: str) -> Iterator[str]:
    """The causes, then the largest rows."""
    yield from wrapped(f"from the index at {shown(state_dir)}, its layers decoded")
    yield from wrapped(_heading(reply))
    copied_bytes, uncompressed_bytes = reply["copied_bytes"], reply["uncompressed_bytes"]
    if reply["one_in"] > 1:
        said = f"a sample of one layer in {reply['one_in']:,}, picked by their digests: copies of what is in other"
        yield from wrapped(f"{said} layers are not seen, so all layers together have more; --layers 1/1 reads all")
    yield from _problems(reply)
    if not copied_bytes:
        yield "no chunk occurs more than once in them"
        return
    yield ""
    percent = 100 * copied_bytes / uncompressed_bytes
    yield f"{'further copies':<{CAUSE_COLUMNS}}{bytes_text(copied_bytes):>11}  {percent:.1f} % of all bytes"
    for cause, words in CAUSES.items():
        size = reply["causes"][f"{cause}_bytes"]
        yield f"  {words:<{CAUSE_COLUMNS - 2}}{bytes_text(size):>11}  {100 * size / copied_bytes:.1f} %"
    yield ""
    yield from _line(reply["by"].upper(), ("COPIES", "SAME FILE", "PARTS", "OTHER", "FILES", "LAYERS", "IMAGES"))
    rows = reply["rows"]
    for row in rows[:ROWS_SHOWN]:
        yield from _row(row, reply["of"]["images"])
    left_out = len(rows[ROWS_SHOWN:]) + reply["left_out"]["rows"]
    left_out_bytes = sum(row["copied_bytes"] for row in rows[ROWS_SHOWN:]) + reply["left_out"]["copied_bytes"]
    if left_out:
        yield from _line(f"{left_out:,} more", (bytes_text(left_out_bytes),))
    if reply["outside_bytes"]:
        yield from _line("outside of files", (bytes_text(reply["outside_bytes"]),))


def _heading(reply: Row) -> str:
    of, layers = reply["of"], count_text(reply["layers"], "layer")
    size = bytes_text(reply["uncompressed_bytes"])
    if of["reference"] is None:
        return f"{layers} of the index, {size} uncompressed"
    missing = f"; {count_text(of['missing_blobs'], 'blob')} of them missing here" if of["missing_blobs"] else ""
    return f"{shown(of['reference'])}: {count_text(of['images'], 'image')}, {layers}, {size} uncompressed{missing}"


def _problems(reply: Row) -> Iterator[str]:
    for what, words in (
        ("unread", "left out"),
        ("damaged", "its tar is damaged, and what follows counts as outside of files"),
    ):
        for one in reply[what][:PROBLEMS_SHOWN]:
            yield one["digest"]
            yield from wrapped(f"  {words}: {shown(one['reason'])}")
        if more := reply[f"{what}_layers"] - len(reply[what][:PROBLEMS_SHOWN]):
            yield f"{count_text(more, 'more layer')}: {words}"


def _row(row: Row, images: int) -> Iterator[str]:
    """Its images are named where it is not in all of them."""
    name = shown(row["name"])
    if len(name) > NAME_CHARACTERS:
        name = f"{name[:NAME_CHARACTERS]}..."
    sizes = (
        row["copied_bytes"], row["same_path_bytes"] + row["other_path_bytes"], row["parts_bytes"],
        row["zeros_bytes"] + row["same_layer_bytes"],
    )  # fmt: skip
    counts = (f"{row[what]:,}" for what in ("files", "layers", "images"))
    yield from _line(name, (*map(bytes_text, sizes), *counts))
    if 0 < row["images"] < images:
        yield from wrapped(f"  in {some_of(row['image_names'][:IMAGES_NAMED], row['images'] - IMAGES_NAMED)}")


def _line(name: str, cells: Sequence[str]) -> list[str]:
    return row_of(name, NAME_COLUMNS, cells, WIDTHS)
