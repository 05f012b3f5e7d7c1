"""What looks like blobs but can't be read as such. It is counted by kind while a cache is listed, and reported with
advice. Otherwise a user who names such a folder would get no figure and would not know why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LINK, FOLDER, CAPITALS, PREFIXED, PAIRED, ELSEWHERE = "link", "folder", "capitals", "prefixed", "paired", "elsewhere"
# How many of a kind there are, and the path of one of them below the root.
Lookalikes = dict[str, tuple[int, str]]

_NAME = re.compile(r"(?P<prefix>sha(?:256|512)[-_:.])?(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{128})")
_PAIR = re.compile(r"[0-9a-fA-F]{2}")
_ON_THE_WAY = ("blobs", "docker", "sha256", "sha512")
_HARD_LINKS = "for these, name a folder of hard links to them, each named <hex>"
_SAID = {
    LINK: (
        "symbolic link(s) where blobs are looked for",
        "none is followed; name the folder with the files themselves, or use hard links or a bind mount",
    ),
    FOLDER: (
        "folder(s) named by a digest where a blob would be",
        "none is entered; if it is a repository, name that folder as a cache of its own",
    ),
    CAPITALS: ("digest(s) in capitals", f"digests are written in small letters; {_HARD_LINKS}"),
    PREFIXED: ("file(s) named <algorithm>-<hex>, as Ollama does", f"blobs are named <hex> alone; {_HARD_LINKS}"),
    PAIRED: (
        "file(s) <2 hex>/<hex>, neither in Quay's layout nor in a registry's",
        f"Quay's are <algorithm>/<2 hex>/<hex>, a registry's blobs/<algorithm>/<2 hex>/<hex>/data; {_HARD_LINKS}",
    ),
    ELSEWHERE: (
        "file(s) named by a digest in a folder that is not blobs/<algorithm>",
        "name that very folder as a cache",
    ),
}
# These are blobs that are missed, also where others are found; any other may be what another program keeps there.
_ALWAYS = (LINK, FOLDER, CAPITALS)


def kind_of_name(folder: str, name: str, *, is_file: bool, is_folder: bool) -> str:
    """The kind under which this name is counted; `""` if it does not look like a blob. The folder includes its root."""
    found = _NAME.fullmatch(name)
    if not (is_file or is_folder):
        return LINK if found or name in _ON_THE_WAY or (_PAIR.fullmatch(name) and "/blobs/" in folder) else ""
    if is_folder and not found:
        return CAPITALS if _PAIR.fullmatch(name) and not name.islower() and not name.isdigit() else ""
    if not found:
        return ""
    if found["prefix"]:
        return PREFIXED if is_file else ""
    if name != name.lower():
        return CAPITALS
    if is_folder:
        return FOLDER
    return PAIRED if folder.endswith(f"/{name[:2]}") else ELSEWHERE


def add(found: Lookalikes, more: Mapping[str, tuple[int, str]]) -> None:
    for kind, (count, path) in more.items():
        before, example = found.get(kind, (0, path))
        found[kind] = before + count, example


def told(found: Mapping[str, tuple[int, str]], *, found_blobs: bool) -> tuple[str, ...]:
    """A sentence for each kind: how many, one example (bytes that are not text are escaped), and what to do."""
    return tuple(
        f"{found[kind][0]:,} {what}, such as {found[kind][1].encode(errors='backslashreplace').decode()}: {advice}"
        for kind, (what, advice) in _SAID.items()
        if kind in found and (kind in _ALWAYS or not found_blobs)
    )
