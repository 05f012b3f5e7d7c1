"""Who holds which blob: a function of the blobs that are present, what they say, and the names.

A *root* is a blob with a name, or a manifest or index that no present one contains. It holds what can be reached from
it over *hard edges*: index to manifest, manifest to config and layer. `subject` is a weak edge: a referrer holds itself
and is not held by its subject, nor the other way round.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from chunkd.errors import TooManyImages
from chunkd.model import Digest
from chunkd.names.name import Name, Standing
from chunkd.worker.manifest import Contents, Edge, Kind, Role

# So many pairs of a root and a blob that it holds or lacks: 10,000 images of 12 blobs have 120,000. More come from
# indexes made to contain one another's children.
MOST_HOLDS = 1 << 23
# For the sets of roots that hold something, each with a bit a root: 10,000 images have 12,000 sets, 15 MiB. This is
# enough for some 40,000 images.
MOST_HOLDERS_BYTES = 256 << 20

ORDER = "time of push if the source has it, else of creation, else last; ties by digest"
UNKNOWN_PLATFORM = "unknown"

_REFERRERS_TAG = re.compile(r"(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})")
_RUNNABLE = (Kind.IMAGE, Kind.SCHEMA_1)
_CONTAINERS = (Kind.INDEX, Kind.IMAGE, Kind.SCHEMA_1, Kind.ATTESTATION, Kind.BUILD_CACHE, Kind.ARTIFACT)


class BlobFacts(NamedTuple):
    """What the graph needs of a blob that is present. `contents` is None for one that says nothing, as layers do."""

    stored_bytes: int
    contents: Contents | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """One image, or another root, whatever names it has.

    `kind` is `image`, `index`, `artifact`, `attestation`, `referrer`, `referrers list`, `build cache` or `unknown`.
    `platforms` are those of the runnable manifests that are present, `absent_platforms` those of an index's children
    that are wholly absent. `missing_blobs` counts configs and layers that should be here, `missing_bytes` as their
    descriptors claim. `at_ns` decides the order: 0 if nothing is known.
    """

    digest: Digest
    kind: str
    names: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    absent_platforms: tuple[str, ...] = ()
    missing_blobs: int = 0
    missing_bytes: int = 0
    at_ns: int = 0

    @property
    def is_partial(self) -> bool:
        return self.missing_blobs > 0


@dataclass(frozen=True, slots=True)
class Graph:
    """The roots in the stated ORDER, and who holds each blob. A root's number is its place in `roots`.

    A set of roots is an integer with the bits of their numbers. `classes` has a class for each digest of `digests`,
    `holders` the set of roots for each class. `names_without_blob` counts names whose digest is not present.
    """

    roots: tuple[Root, ...]
    digests: tuple[Digest, ...]
    classes: array[int]
    holders: tuple[int, ...]
    names_without_blob: int = 0

    def holders_of(self) -> Iterator[tuple[Digest, int]]:
        """Each blob, and the set of roots that hold it."""
        return ((digest, self.holders[found]) for digest, found in zip(self.digests, self.classes, strict=True))

    def numbers(self) -> dict[Digest, int]:
        return {root.digest: number for number, root in enumerate(self.roots)}


@dataclass(slots=True)
class _Named:
    """What all sources say of one digest. `at_ns` is the earliest time that one of them knows."""

    names: set[str] = field(default_factory=set)
    repositories: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)
    is_root: bool = False
    at_ns: int = 0


@dataclass(slots=True)
class _Reached:
    """What was found on the way from a root."""

    blobs: list[int] = field(default_factory=list)
    platforms: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    missing: dict[Digest, int] = field(default_factory=dict)
    created_s: int = 0


def build(blobs: Mapping[Digest, BlobFacts], names: Iterable[Name]) -> Graph:
    """The graph of the blobs that are present. Raises TooManyImages."""
    digests = tuple(sorted(blobs))
    builder = _Builder(digests, blobs)
    named, without_blob = _gather(names, blobs)
    found: list[tuple[Root, array[int]]] = []
    left = MOST_HOLDS
    roots = builder.root_numbers(named)
    for number in roots:
        reached = builder.reach(number, left)
        left -= len(reached.blobs) + len(reached.absent) + len(reached.missing)
        if left <= 0:
            raise TooManyImages(f"{len(roots)} hold or lack more than {MOST_HOLDS} blobs, each as often as it is held")
        root = builder.root(number, reached, named.get(digests[number], _Named()))
        found.append((root, array("I", reached.blobs)))
    found.sort(key=lambda one: (one[0].at_ns == 0, one[0].at_ns, one[0].digest))
    classes, holders = _classes(len(digests), [blobs for _, blobs in found])
    return Graph(tuple(root for root, _ in found), digests, classes, holders, without_blob)


def _gather(names: Iterable[Name], blobs: Mapping[Digest, BlobFacts]) -> tuple[dict[Digest, _Named], int]:
    found: dict[Digest, _Named] = {}
    absent: set[str] = set()
    for name in names:
        if name.digest not in blobs:
            if name.standing is Standing.NAMED:
                absent.add(f"{name.text}\0{name.digest}")
            continue
        one = found.setdefault(name.digest, _Named())
        if name.at_ns:
            one.at_ns = min(one.at_ns or name.at_ns, name.at_ns)
        if name.standing is Standing.NAMED:
            one.is_root = True
            one.names.add(name.text)
            one.tags |= {name.tag} - {""}
            one.repositories |= {name.repository} - {""}
    return found, len(absent)


class _Builder:
    """The blobs by number, in the order of their digests."""

    def __init__(self, digests: tuple[Digest, ...], blobs: Mapping[Digest, BlobFacts]) -> None:
        self._digests, self._blobs = digests, blobs
        self._contents = [blobs[digest].contents for digest in digests]
        self._numbers = {digest: number for number, digest in enumerate(digests)}
        # Of each blob that contains others: those that are present; and those that are not, with what an absent
        # platform is called.
        self._present: dict[int, list[tuple[Edge, int]]] = {}
        self._absent: dict[int, list[tuple[Edge, str]]] = {}
        for number, of in enumerate(self._contents):
            if of is not None and of.kind in _CONTAINERS:
                hard = {edge: self._numbers.get(edge.digest, -1) for edge in of.edges if edge.role is not Role.SUBJECT}
                self._present[number] = [(edge, child) for edge, child in hard.items() if child >= 0]
                absent = (edge for edge, child in hard.items() if child < 0)
                self._absent[number] = [(edge, edge.platform or str(edge.digest)) for edge in absent]

    def root_numbers(self, named: Mapping[Digest, _Named]) -> list[int]:
        contained = {child for edges in self._present.values() for _, child in edges}
        uncontained = self._present.keys() - contained
        return sorted(uncontained | {self._numbers[digest] for digest, one in named.items() if one.is_root})

    def reach(self, root: int, most: int) -> _Reached:
        """What a root holds, or the first `most` blobs of it."""
        found = _Reached()
        pending, seen = [root], {root}
        while pending and len(found.blobs) < most:
            number = pending.pop()
            found.blobs.append(number)
            contents = self._contents[number]
            if contents is None:
                continue
            if contents.kind is Kind.CONFIG:
                found.created_s = max(found.created_s, contents.created_s)
            for edge, child in self._present.get(number, ()):
                if child not in seen:
                    seen.add(child)
                    pending.append(child)
                if edge.role is Role.MANIFEST and not edge.attestation and self._kind(child) in _RUNNABLE:
                    found.platforms.add(edge.platform or self._platform(child))
            for edge, called in self._absent.get(number, ()):
                if edge.role is not Role.MANIFEST:
                    if not edge.foreign:
                        claimed_bytes = max(found.missing.get(edge.digest, 0), edge.claimed_bytes)
                        found.missing[edge.digest] = claimed_bytes
                elif not edge.attestation:
                    found.absent.add(called)
        if self._kind(root) in _RUNNABLE:
            found.platforms.add(self._platform(root))
        return found

    def root(self, number: int, reached: _Reached, named: _Named) -> Root:
        contents = self._contents[number]
        created_s = (contents.created_s if contents else 0) or reached.created_s
        return Root(
            self._digests[number],
            _kind_of_root(contents, named),
            tuple(sorted(named.names)),
            tuple(sorted(named.repositories)),
            tuple(sorted(reached.platforms)),
            tuple(sorted(reached.absent)),
            len(reached.missing),
            sum(reached.missing.values()),
            named.at_ns or created_s * 1_000_000_000,
        )

    def _kind(self, number: int) -> Kind:
        contents = self._contents[number]
        return contents.kind if contents else Kind.UNKNOWN

    def _platform(self, manifest: int) -> str:
        contents = self._contents[manifest]
        return platform_of(self._blobs, contents) if contents else UNKNOWN_PLATFORM


def platform_of(blobs: Mapping[Digest, BlobFacts], manifest: Contents) -> str:
    """What the config of a manifest says."""
    for edge in manifest.edges:
        if edge.role is Role.CONFIG and edge.digest in blobs:
            contents = blobs[edge.digest].contents
            if contents is not None and contents.platform:
                return contents.platform
    return UNKNOWN_PLATFORM


def _kind_of_root(contents: Contents | None, named: _Named) -> str:
    if contents is None or contents.kind not in _CONTAINERS:
        return "unknown"
    if contents.kind is Kind.INDEX and named.tags and all(map(_REFERRERS_TAG.fullmatch, named.tags)):
        return "referrers list"
    if contents.kind in (Kind.ATTESTATION, Kind.BUILD_CACHE):
        return str(contents.kind.value)
    if any(edge.role is Role.SUBJECT for edge in contents.edges):
        return "referrer"
    return str((Kind.IMAGE if contents.kind is Kind.SCHEMA_1 else contents.kind).value)


def _classes(blobs: int, held: list[array[int]]) -> tuple[array[int], tuple[int, ...]]:
    """A class for each blob, and the set of roots for each class; class 0 is held by none.

    A class is made of an earlier one and one root more. So the sets are spelt out for those classes alone that are left
    at the end.
    """
    classes = array("I", bytes(4 * blobs))
    made: dict[tuple[int, int], int] = {}
    steps = [(0, -1)]
    for root, numbers in enumerate(held):
        for number in numbers:
            step = (classes[number], root)
            if step not in made:
                made[step] = len(steps)
                steps.append(step)
            classes[number] = made[step]
    used = sorted({0, *classes})
    if len(used) * len(held) > 8 * MOST_HOLDERS_BYTES:
        raise TooManyImages(f"the sets of {len(held)} that share blobs take more than {MOST_HOLDERS_BYTES} bytes")
    new = {old: at for at, old in enumerate(used)}
    sets = tuple(_set_of(steps, old, len(held)) for old in used)
    return array("I", (new[old] for old in classes)), sets


def _set_of(steps: list[tuple[int, int]], at: int, roots: int) -> int:
    bits = bytearray(roots // 8 + 1)
    while at:
        at, root = steps[at]
        bits[root >> 3] |= 1 << (root & 7)
    return int.from_bytes(bits, "little")
