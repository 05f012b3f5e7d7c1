"""A name of an image as a source has it, and the bounds on names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from chunkd.model import Digest, digest_of

# Over 255 characters no registry takes a repository, and over 128 no tag. containerd's names may be any text.
MOST_NAME_CHARACTERS = 1024
# In one part, which is one file or one repository, and in all parts of a source.
MOST_NAMES = 1 << 18

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class Standing(Enum):
    """Whether a name makes its image a root: NAMED does. EARLIER: a tag pointed to it before. HELD: the repository has
    it, without a name.
    """

    NAMED = "named"
    EARLIER = "earlier"
    HELD = "held"


class Name(NamedTuple):
    """What a source calls one digest.

    `text` is the name as the source says it, "" for a digest that is HELD; `repository` and `tag` are its parts where
    it has them. `at_ns` is when the name came to point to the digest, in ns since the epoch; 0 when nobody knows.
    """

    text: str
    repository: str
    tag: str
    digest: Digest
    at_ns: int = 0
    standing: Standing = Standing.NAMED


@dataclass(frozen=True, slots=True)
class Part:
    """What was read at one place of a source: one file, or one repository.

    `source` is `layout`, `registry`, `containerd` or `names file`. `names` is None when the place could not be read:
    then the names last read there, and at places below, still hold. `problem` says why, or what is missing from the
    names. `at_ns` is the last change of the file, where the names are in one.
    """

    source: str
    where: str
    names: tuple[Name, ...] | None
    problem: str = ""
    at_ns: int = 0


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def split_reference(text: str) -> tuple[str, str]:
    """The repository and the tag of a reference. A digest behind it is left out; without a tag it is "".

    A text that is a digest alone has no repository. Any other text that is not a reference is a repository.
    """
    if digest_of(text):
        return "", ""
    name, at, digest = text.rpartition("@")
    if not (at and digest_of(digest)):
        name = text
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and repository and is_tag(tag) else (name, "")


def named(text: str, repository: str, digest: Digest, at_ns: int = 0) -> Name:
    """The name that a text is. A tag alone is one of `repository`; no text means that the repository holds it."""
    if not text:
        return Name("", repository, "", digest, at_ns, Standing.HELD)
    if repository and is_tag(text):
        return Name(f"{repository}:{text}", repository, text, digest, at_ns)
    return Name(text, *split_reference(text), digest, at_ns)


class Rows:
    """The names of one part as they are collected, and what is wrong with some of them."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._names: list[Name] = []
        self._bad: dict[str, int] = {}

    def add(self, name: Name) -> None:
        """Take one name. What is over a bound is left out, and counted."""
        if len(name.text) > MOST_NAME_CHARACTERS or len(name.repository) > MOST_NAME_CHARACTERS:
            self.leave_out(f"longer than {MOST_NAME_CHARACTERS} characters")
        elif len(self._names) >= self._most:
            self.leave_out(f"more than {self._most} names")
        else:
            self._names.append(name)

    def leave_out(self, why: str) -> None:
        self._bad[why] = self._bad.get(why, 0) + 1

    def __len__(self) -> int:
        return len(self._names)

    def part(self, source: str, where: str, at_ns: int = 0, remark: str = "") -> Part:
        problems = [f"{count} left out: {why}" for why, count in self._bad.items()]
        return Part(source, where, tuple(self._names), "; ".join(filter(None, (*problems, remark))), at_ns)
