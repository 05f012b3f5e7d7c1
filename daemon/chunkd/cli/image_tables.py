"""What the commands about images print for people: pure functions from their JSON objects to lines.

A line is at most 100 columns wide, unless a name or a digest alone is wider. Names are hostile text: they are shown
with control characters escaped, and a command that is printed has only names of registries' grammar in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from chunkd.figures.words import COLUMNS, NO_IMAGES, bytes_text, count_text, row_of, shown, wrapped

Row = Mapping[str, Any]

NAME_COLUMNS, WIDTHS = 25, (9, *(11,) * 6)
COMMANDS_SHOWN = 20
NAMES_SHOWN = 3
# The columns of the table, and where their values are.
FIGURES = (
    ("referenced", "stored", "referenced_bytes"),
    ("exclusive", "stored", "exclusive_bytes"),
    ("fair share", "stored", "fair_share_bytes"),
    ("exclusive", "chunks", "exclusive_bytes"),
    ("fair share", "chunks", "fair_share_bytes"),
    ("new", "chunks", "new_bytes"),
)
# What rows can be sorted by; those of `pushed` stand in their order already.
SORTS: dict[str, tuple[str, str]] = {
    "pushed": ("", ""),
    "referenced": ("stored", "referenced_bytes"),
    "exclusive": ("stored", "exclusive_bytes"),
    "fair-share": ("stored", "fair_share_bytes"),
    "chunk-exclusive": ("chunks", "exclusive_bytes"),
    "chunk-fair-share": ("chunks", "fair_share_bytes"),
    "new": ("chunks", "new_bytes"),
}
LISTED_KINDS = ("image", "index")
# As registries take them: https://github.com/distribution/reference. What fits needs no more than a shell's quotes.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
MOST_REPOSITORY_CHARACTERS = 255


def chosen(reply: Row, sort: str, *, untagged: bool, partial: bool) -> list[Row]:
    """The rows that are asked for, in their order. What is unknown comes last."""
    rows = [
        row
        for row in reply.get("images", reply.get("repositories"))
        if not (untagged and row["names"]) and not (partial and row["chunks"] is not None)
    ]
    column, name = SORTS[sort]
    if not column:
        return rows[::-1]
    return sorted(rows, key=lambda row: -1 if row[column] is None else row[column][name], reverse=True)


def image_lines(rows: Sequence[Row], reply: Row, source: str, *, untagged: bool = False) -> Iterator[str]:
    """The table: a row for each named image or repository, or for each untagged one; then all others in a row a kind,
    and the sums. `rows` are those of `chosen`.
    """
    is_by_image = "images" in reply
    yield from _heading(reply, source)
    yield ""
    yield from _line("", "", ["", "STORED", "", "", "AS CHUNKS"])
    first, count = ("NAME", "PLATFORMS") if is_by_image else ("REPOSITORY", "IMAGES")
    yield from _line(first, count, [name for name, _, _ in FIGURES])
    listed = [row for row in rows if not is_by_image or _is_listed(row, untagged=untagged)]
    for row in listed:
        yield from _row(row)
    if is_by_image:
        yield from _groups(row for row in reply["images"] if not _is_listed(row, untagged=untagged))
    partial, unheld = reply["partial"], reply["unheld"]
    what = "images" if is_by_image else "repositories"
    if partial[what]:
        yield from _line(f"chunks of {partial[what]:,} partial", "", _sums(None, partial))
    if unheld["blobs"] or unheld["unique_bytes"]:
        sums = ["", "", bytes_text(unheld["stored_bytes"]), "", *[bytes_text(unheld["unique_bytes"])] * 2]
        yield from _line(f"in no image ({count_text(unheld['blobs'], 'blob')})", "", sums)
    yield from _total(reply[what], partial, unheld)
    yield ""
    yield "Shared bytes are in other rows too: only fair share and new add up."


def _heading(reply: Row, source: str) -> Iterator[str]:
    yield from wrapped(source)
    partial = reply["partial"]
    if "images" in reply:
        names = sum(len(row["names"]) for row in reply["images"])
        said = (
            f"{count_text(len(reply['images']), 'image')} ({count_text(names, 'name')}), {partial['images']:,} partial"
        )
    else:
        said = (
            f"{count_text(len(reply['repositories']), 'repository')}, {partial['repositories']:,} partial; fair shares"
        )
        said += " are among repositories"
    said += f"; {names_as_of_text(reply)}; chunks before compression"
    if reply["names_without_blob"]:
        said += f"; {count_text(reply['names_without_blob'], 'name')} of images that are not here"
    yield from wrapped(said)
    yield from wrapped(f"new: what no earlier one holds, by {reply['order']}")
    if not reply.get("images", reply.get("repositories")):
        yield f"{NO_IMAGES.capitalize()}."


def names_as_of_text(reply: Row) -> str:
    return f"names as of {shown(reply['names_as_of'])}" if reply["names_as_of"] else "when names were read is not known"


def _is_listed(row: Row, *, untagged: bool) -> bool:
    return row["kind"] in LISTED_KINDS and bool(row["names"]) != untagged


def _groups(rows: Iterable[Row]) -> Iterator[str]:
    """A row for each kind; of its columns those alone that add up."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        kind = ("tagged" if row["names"] else "untagged") if row["kind"] in LISTED_KINDS else row["kind"]
        groups.setdefault(kind, []).append(row)
    for kind, some in sorted(groups.items()):
        yield from _line(f"{kind} ({len(some):,})", "", _sums(some, None))


def _sums(rows: Sequence[Row] | None, partial: Row | None) -> list[str]:
    chunks = [partial] if partial else [row["chunks"] for row in rows or () if row["chunks"]]
    stored = "" if rows is None else bytes_text(sum(row["stored"]["fair_share_bytes"] for row in rows))
    fair_share, new = (bytes_text(sum(one[name] for one in chunks)) for name in ("fair_share_bytes", "new_bytes"))
    return ["", "", stored, "", fair_share, new]


def _total(rows: Sequence[Row], partial: Row, unheld: Row) -> Iterator[str]:
    stored_bytes = sum(row["stored"]["fair_share_bytes"] for row in rows) + unheld["stored_bytes"]
    unique_bytes = sum(row["chunks"]["fair_share_bytes"] for row in rows if row["chunks"])
    unique_bytes += partial["fair_share_bytes"] + unheld["unique_bytes"]
    yield from _line("total", "", ["", "", bytes_text(stored_bytes), "", *[bytes_text(unique_bytes)] * 2])


def _row(row: Row) -> list[str]:
    sizes = ["unknown" if row[column] is None else bytes_text(row[column][name]) for _, column, name in FIGURES]
    if "repository" in row:
        name, count = shown(row["repository"]) or "(without a name)", f"{row['images']:,}"
    else:
        name, count = _named(row), f"{len(row['platforms']):,}"
    return _line(name, count, sizes)


def _line(name: str, count: str, sizes: Sequence[str]) -> list[str]:
    return row_of(name, NAME_COLUMNS, [count, *sizes], WIDTHS)


def _named(row: Row) -> str:
    """The first name, and the other one or how many; the digest of what has none."""
    if not row["names"]:
        return str(row["digest"])
    first, *others = row["names"]
    if not others:
        return shown(first)
    repository = first.rpartition(":")[0] + ":"
    other = others[0].removeprefix(repository) if len(others) == 1 else f"{len(others):,} names"
    return f"{shown(first)} (+{shown(other)})"


def partial_lines(rows: Sequence[Row], reply: Row, source: str) -> Iterator[str]:
    """What each partial image lacks. A platform that is wholly absent does not make an image partial."""
    yield from _heading(reply, source)
    yield ""
    yield f"{'lacks':>15}  {'as claimed':>11}  {'absent':>12}  image"
    for row in rows:
        absent = f"{len(row['absent_platforms']):,} platforms" if row["absent_platforms"] else ""
        lacks = count_text(row["missing_blobs"], "blob")
        yield f"{lacks:>15}  {bytes_text(row['missing_bytes']):>11}  {absent:>12}  {_named(row)}"


def freed_lines(reply: Row, source: str) -> Iterator[str]:
    """What would be freed, what other images hold back, and what a collection would do."""
    stored, chunks = reply["stored"], reply["chunks"]
    yield from wrapped(source)
    yield from wrapped(
        f"{count_text(len(reply['images']), 'image')} ({some_of(reply['names'], reply['names_left_out'])})"
    )
    yield f"  today         {bytes_text(stored['bytes']):>11}   {count_text(len(stored['blobs']), 'blob')}"
    yield f"  as chunks     {bytes_text(chunks['bytes']):>11}   before compression{_recompressed(chunks)}"
    yield f"  held back     {bytes_text(reply['held_by_others_bytes']):>11}   of today's bytes, by other images"
    if reply["kept_last"]:
        yield f"  kept as the last of their repositories: {count_text(reply['kept_last'], 'image')}"
    for kept in reply["kept"][:COMMANDS_SHOWN]:
        yield f"  kept by its other names: {some_of(kept['names'])}"
    if (more := len(reply["kept"]) + reply["kept_left_out"] - COMMANDS_SHOWN) > 0:
        yield f"  and {count_text(more, 'image')} more, kept by other names"
    if reply["images"]:
        yield ""
        yield from _collection(reply["collection"], stored["bytes"])


def _recompressed(chunks: Row) -> str:
    if chunks["recompressed_bytes"] is None:
        return ""
    said = f"; {bytes_text(chunks['recompressed_bytes'])} recompressed"
    error_bytes = chunks["recompressed_error_bytes"]
    return f"{said}, give or take {bytes_text(error_bytes)}" if error_bytes else said


def some_of(names: Sequence[str], left_out: int = 0) -> str:
    more = len(names) + left_out - NAMES_SHOWN
    some = ", ".join(map(shown, names[:NAMES_SHOWN])) or "without a name"
    return f"{some} and {more:,} more" if more > 0 else some


def _collection(found: Row, freed_bytes: int) -> Iterator[str]:
    """What the owner of the blobs does by itself, and how to ask it for the rest. Nothing is deleted by chunkd."""
    yield from wrapped("chunkd deletes nothing. What the owner of these blobs does:")
    said = {
        "layout": "An OCI layout has no garbage collection. zot has: it frees what had no name for its `gcDelay`.",
        "containerd": "containerd frees by itself what no image, container or lease holds.",
        "names file": "The program that gave the names knows how images are removed.",
    }
    for source in found["sources"]:
        yield from _registry(found, freed_bytes) if source == "registry" else wrapped(said[source])
    if not found["sources"]:
        yield from wrapped("These images have no name, and no registry has a revision of them.")


def _registry(found: Row, freed_bytes: int) -> Iterator[str]:
    now, waits = found["freed_now_bytes"], len(found["delete"]) + found["delete_left_out"]
    words = f"A distribution registry's garbage-collect would free {bytes_text(now)} of it now"
    if now < freed_bytes and waits:
        words += f": it frees nothing that a revision link names, and {count_text(waits, 'link')} must go first"
    yield from wrapped(f"{words}. Harbor leaves what was pushed in the last 2 hours.")
    if found["has_index"]:
        yield from wrapped("Its flag that also removes untagged manifests deletes the platforms of tagged images.")
    commands = [command for row in found["delete"] if (command := delete_command(**row))]
    if commands:
        yield from wrapped("To remove the links, with the registry's host in $REGISTRY, and collect then:")
    for command in commands[:COMMANDS_SHOWN]:
        yield f"  {command}"
    if (more := len(commands) + found["delete_left_out"] - COMMANDS_SHOWN) > 0:
        yield f"  and {more:,} more: see `delete` with --json"
    if odd := len(found["delete"]) - len(commands):
        yield from wrapped(f"No command is printed for {odd:,} of them, whose repository has no valid name.")


def delete_command(repository: str, digest: str) -> str:
    """What removes a revision and its tags from a registry; "" for a repository that no registry would take."""
    if len(repository) > MOST_REPOSITORY_CHARACTERS or not _REPOSITORY.fullmatch(repository):
        return ""
    return f'skopeo delete "docker://$REGISTRY/"{shlex.quote(f"{repository}@{digest}")}'


def similar_lines(reply: Row, source: str) -> Iterator[str]:
    """The clusters, and the pairs of different repositories that share most."""
    yield from wrapped(source)
    yield from wrapped(names_as_of_text(reply))
    clusters: dict[int, list[Row]] = {}
    for row in reply["alike"]:
        clusters.setdefault(row["cluster"], []).append(row)
    yield ""
    yield f"{count_text(len(clusters), 'cluster')} of images that are alike by {100 * reply['threshold']:.4g} % or more"
    for cluster, rows in clusters.items():
        yield from wrapped(
            f"{count_text(len(rows), 'image')}: {some_of([_first(row) for row in rows])}", f"{cluster:>4}"
        )
    yield ""
    yield "Pairs of different repositories that share most" if reply["pairs"] else "No two repositories share a chunk."
    for pair in reply["pairs"]:
        one, other = map(_first, pair["images"])
        line = f"{bytes_text(pair['overlap_bytes']):>11} {100 * pair['similarity']:>5.1f} %"
        names = f"{shown(one)}  {shown(other)}"
        if len(line) + 2 + len(names) <= COLUMNS:
            yield f"{line}  {names}"
        else:
            yield f"{line}  {shown(one)}"
            yield f"{'':>21}{shown(other)}"
    if reply["common_bytes"]:
        yield ""
        yield from wrapped(f"Left out: {bytes_text(reply['common_bytes'])} that more than half of all images hold.")


def _first(row: Row) -> str:
    return str(row["names"][0] if row["names"] else row["digest"]) + (" (partial)" if row["partial"] else "")
