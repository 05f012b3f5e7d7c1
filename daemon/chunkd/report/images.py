"""The report's sections about images: the repositories with the largest fair shares, what their updates move, and which
images share most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from chunkd.figures import words
from chunkd.report import plots
from chunkd.report.data import REPOSITORIES_SHOWN, ImagesSeen
from chunkd.report.html import Child, element, pair, table

NAME_CHARACTERS = 40
WITHOUT_NAME = "(without a name)"


def sections(seen: ImagesSeen) -> Iterator[Element]:
    """Nothing where there are no images; the reason where their figures can't be computed."""
    title = element("h2", "Images")
    if seen.repositories is None:
        if seen.problem:
            yield element("section", title, element("p", f"Not known: {seen.problem}."))
        return
    reply = seen.repositories
    if not reply["repositories"]:
        return
    rows = sorted(reply["repositories"], key=lambda row: row["stored"]["fair_share_bytes"], reverse=True)
    shown = rows[:REPOSITORIES_SHOWN]
    labels = [_short(row["repository"]) or WITHOUT_NAME for row in shown]
    more = f"The {len(shown)} with the largest fair shares. " if len(rows) > len(shown) else ""
    yield element(
        "section", title, element("p", _reach(reply)),
        element(
            "p", f"{more}Fair share: of what several repositories hold, each is given its part, so that the fair shares"
            " and what no image holds add up to all bytes on disk. All repositories: ",
            element("code", "chunkd images --by repository"),
        ),
        pair(plots.repositories(shown, labels), table(
            ("repository", "images", "on disk", "only here", "fair share", "fair share as chunks"),
            [_of_repository(label, row) for label, row in zip(labels, shown, strict=True)],
        )),
    )  # fmt: skip
    yield from _updates(seen)
    yield _alike(seen.pairs)


def _reach(reply: Mapping[str, Any]) -> str:
    """How much no name reaches: what only images without a name hold, and what no image holds."""
    repositories, unheld = reply["repositories"], reply["unheld"]
    unnamed = [row for row in repositories if not row["repository"]]
    named = len(repositories) - len(unnamed)
    said = words.count_text(named, "repository")
    said += f" and {sum(row['images'] for row in unnamed):,} images without a name. "
    unreached_bytes = unheld["stored_bytes"] + sum(row["stored"]["exclusive_bytes"] for row in unnamed)
    said += f"No name reaches {words.bytes_text(unreached_bytes)} on disk,"
    return f"{said} {words.bytes_text(unheld['stored_bytes'])} of which no image holds."


def _of_repository(label: str, row: Mapping[str, Any]) -> list[Child]:
    stored, chunks = row["stored"], row["chunks"]
    sizes = [stored["referenced_bytes"], stored["exclusive_bytes"], stored["fair_share_bytes"]]
    as_chunks = "unknown" if chunks is None else words.bytes_text(chunks["fair_share_bytes"])
    name = element("span", label, title=row["repository"] or WITHOUT_NAME)
    return [name, f"{row['images']:,}", *map(words.bytes_text, sizes), as_chunks]


def _updates(seen: ImagesSeen) -> Iterator[Element]:
    """The repositories whose updates move most as layers; then one update with fewer and larger requests."""
    title = element("h2", "What updates move")
    if seen.updates is None:
        if seen.updates_problem:
            yield element("section", title, element("p", f"Not known: {seen.updates_problem}."))
        return
    reply = seen.updates
    known = [row for row in reply["repositories"] if row["pairs"] > row["unknown"]]
    rows = sorted(known, key=lambda row: row["layer_bytes"], reverse=True)[:REPOSITORIES_SHOWN]
    if not rows:
        return
    labels = [_short(row["repository"]) for row in rows]
    more = f" Below are the {len(rows)} whose updates move most." if len(known) > len(rows) else ""
    yield element(
        "section", title, element(
            "p", f"From each version of a repository to the next one. {_median(reply['median'])}{more} All of them: ",
            element("code", "chunkd updates --all"),
        ),
        pair(plots.updates(rows, labels), table(
            ("repository", "updates", "median as layers", "as chunks", "cheaper for each layer", "less moved in all"),
            [_of_updates(label, row) for label, row in zip(labels, rows, strict=True)],
        )),
    )  # fmt: skip
    last = rows[0]["last"]
    if last["chunks"] is not None and last["chunks"]["ranges"]:
        yield _requests(last)


def _median(median: Mapping[str, Any]) -> str:
    as_layers, as_chunks = (words.bytes_text(median[f"median_{one}_bytes"]) for one in ("layer", "chunk"))
    count = words.count_text(median["repositories"], "repository")
    return f"The median over {count}: {as_layers} as layers, {as_chunks} as chunks."


def _of_updates(label: str, row: Mapping[str, Any]) -> list[Child]:
    medians = [words.bytes_text(row[f"median_{one}_bytes"]) for one in ("layer", "chunk", "cheaper")]
    saved = "" if row["saved"] is None else f", {100 * row['saved']:.0f} %"
    name = element("span", label, title=row["repository"])
    updates = f"{row['pairs'] - row['unknown']:,}"
    return [name, updates, *medians, f"{words.signed_bytes_text(row['saved_bytes'])}{saved}"]


def _requests(last: Mapping[str, Any]) -> Element:
    """The curve of ranges of one update."""
    ranges = last["chunks"]["ranges"]
    names = (last[f"{side}_names"] or [last[side]] for side in ("from", "to"))
    client, to = (_short(some[0]) for some in names)
    said = f"From {client} to {to}, the latest update of the first of these repositories. Whoever asks for a range may"
    said += " join stretches of missing chunks across gaps, which are then moved too: fewer requests, more bytes."
    rows: list[list[Child]] = [
        [_gap(one["gap_bytes"]), f"{one['ranges']:,}", words.bytes_text(one["bytes"])] for one in ranges
    ]
    return element(
        "section", element("h2", "Requests of an update"), element("p", said),
        pair(plots.ranges(ranges), table(("gaps up to", "requests", "bytes of chunks"), rows)),
    )  # fmt: skip


def _gap(gap_bytes: int | None) -> str:
    return "any" if gap_bytes is None else words.bytes_text(gap_bytes)


def _alike(pairs: Sequence[Mapping[str, Any]]) -> Element:
    title = element("h2", "What images of different repositories share")
    if not pairs:
        return element("section", title, element("p", "No two images of different repositories share a chunk."))
    rows: list[list[Child]] = [
        [
            *(element("span", _called(image), title=image["digest"]) for image in found["images"]),
            words.bytes_text(found["overlap_bytes"]), f"{100 * found['similarity']:.1f} %",
        ]
        for found in pairs
    ]  # fmt: skip
    said = "Bytes of chunks that both have, each chunk once, and their part of what the two have together. More: "
    return element(
        "section", title, element("p", said, element("code", "chunkd similar")),
        element("div", table(("image", "and", "shared", "alike"), rows), class_="table"),
    )  # fmt: skip


def _called(image: Mapping[str, Any]) -> str:
    name = image["names"][0] if image["names"] else image["digest"]
    return _short(name) + (" (partial)" if image["partial"] else "")


def _short(name: str) -> str:
    """The end of a long name tells it from its neighbours. Control characters are escaped, for a plot too."""
    name = words.shown(name)
    return name if len(name) <= NAME_CHARACTERS else "…" + name[1 - NAME_CHARACTERS :]
