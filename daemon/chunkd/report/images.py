"""The report's sections about images: the repositories with the largest fair shares, and which images share most."""

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
    yield _alike(seen.pairs)


def _reach(reply: Mapping[str, Any]) -> str:
    """How much no name reaches: what only images without a name hold, and what no image holds."""
    repositories, unheld = reply["repositories"], reply["unheld"]
    unnamed = [row for row in repositories if not row["repository"]]
    named = len(repositories) - len(unnamed)
    said = f"{named:,} {'repository' if named == 1 else 'repositories'}"
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
