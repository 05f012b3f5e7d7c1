"""The names in distribution's tree, which Harbor before 2.15 and GitLab without its database have too.

repositories/<name>/_manifests/tags/<tag>/current/link              what the tag points to
repositories/<name>/_manifests/tags/<tag>/index/<alg>/<hex>/link    what it ever pointed to
repositories/<name>/_manifests/revisions/<alg>/<hex>/link           what the repository holds
"""

from __future__ import annotations

from collections.abc import Iterator

from chunkd.model import HEX_DIGITS, Digest, digest_of
from chunkd.names.name import MOST_NAMES, Part, Rows, Standing, is_tag, named
from chunkd.sources.layouts import MAX_DEPTH
from chunkd.sources.source import Beside

REPOSITORIES = "repositories"
MOST_REPOSITORIES = 1 << 16
LINKS_A_STEP = 50
_LINK_BYTES = 256
_ABSENT = (FileNotFoundError, NotADirectoryError)


def read_registry(root: Beside) -> Iterator[Part | None]:
    """Each repository below the root's folder `repositories` as a part, one after the other. Among them comes None, so
    that the caller may do other things while a repository of many tags is read. A folder that can't be listed is a part
    too; nothing is said of what lies below it.

    The link of a tag that is half-written or has no digest leaves the tag out, until the next reading.
    """
    left = MOST_NAMES
    pending, seen = [REPOSITORIES], 1
    while pending:
        folder = pending.pop()
        name = folder.removeprefix(REPOSITORIES).lstrip("/")
        try:
            below = sorted(root.folders(folder))
        except OSError as error:
            # Below the first folder one may go at any time; with the first one gone, nobody knows what is there.
            if not (name and isinstance(error, _ABSENT)):
                yield Part("registry", name, None, f"{folder}: {error.strerror}")
            continue
        if "_manifests" in below and name:
            for part in _repository(root, folder, name, left):
                left -= len(part.names or ()) if part else 0
                yield part
        # The name of a repository ends before the first of its own folders, which begin with `_`.
        deeper = [f"{folder}/{one}" for one in reversed(below) if not one.startswith("_")]
        if folder.count("/") >= MAX_DEPTH or seen + len(deeper) > MOST_REPOSITORIES:
            deeper = []
            yield Part("registry", f"{name}/", None, f"{folder}: too deep, or more than {MOST_REPOSITORIES} folders")
        seen += len(deeper)
        pending += deeper


def _repository(root: Beside, folder: str, name: str, most: int) -> Iterator[Part | None]:
    """One part, after a None for each LINKS_A_STEP tags or revisions."""
    rows, restored = Rows(most), 0
    try:
        for count, tag in enumerate(sorted(_folders_if_any(root, f"{folder}/_manifests/tags")), 1):
            restored += _add_tag(root, f"{folder}/_manifests/tags/{tag}", name, tag, rows)
            if count % LINKS_A_STEP == 0:
                yield None
        for count, (digest, at_ns) in enumerate(_links(root, f"{folder}/_manifests/revisions"), 1):
            rows.add(named("", name, digest, at_ns))
            if count % LINKS_A_STEP == 0:
                yield None
    except OSError as error:
        yield Part("registry", name, None, f"{folder}/_manifests: {error.strerror}")
        return
    remark = f"{restored} tags whose pushes have one time, as in a restored backup: their order is not known"
    yield rows.part("registry", name, remark=remark if restored else "")


def _folders_if_any(root: Beside, folder: str) -> list[str]:
    try:
        return root.folders(folder)
    except _ABSENT:
        return []


def _add_tag(root: Beside, folder: str, repository: str, tag: str, rows: Rows) -> bool:
    """Add the tag's name and its history. Whether two of its pushes have the same time."""
    if not is_tag(tag):
        rows.leave_out("not the name of a tag")
        return False
    current = None
    try:
        content, at_ns = root.read_small(f"{folder}/current/link", _LINK_BYTES)
        current = digest_of(content.decode("ascii", "replace").strip())
    except _ABSENT:
        pass  # the tag is being made, or removed
    except OSError as error:
        rows.leave_out(f"a tag's link: {error.strerror}")
    else:
        if current is None:
            rows.leave_out("a tag's link without a digest")
        else:
            rows.add(named(tag, repository, current, at_ns))
    times = []
    for digest, at_ns in _links(root, f"{folder}/index"):
        times.append(at_ns)
        if digest != current:
            rows.add(named(tag, repository, digest, at_ns)._replace(standing=Standing.EARLIER))
    return len(set(times)) < len(times)


def _links(root: Beside, folder: str) -> Iterator[tuple[Digest, int]]:
    """The digests that have a link in `<folder>/<alg>/<hex>`, and the link's time. The path says which digest it is."""
    for algorithm in sorted(set(_folders_if_any(root, folder)) & set(HEX_DIGITS)):
        for hex_digits in sorted(_folders_if_any(root, f"{folder}/{algorithm}")):
            digest = digest_of(f"{algorithm}:{hex_digits}")
            if digest is None:
                continue
            try:
                changed_ns = root.changed_ns(f"{folder}/{algorithm}/{hex_digits}/link")
            except _ABSENT:
                continue  # the revision was deleted, and its folder stays
            if changed_ns is not None:
                yield digest, changed_ns
