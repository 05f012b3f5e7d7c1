"""Why chunks occur again: each byte of a further copy has one cause and one entry of a tar.

The first copy of a chunk is the one at the least (layer digest, offset); the others are further copies. A file is a
further copy of another one if both have the same content, which is not empty, and it stands behind it in that order.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from chunkd.chunkers.gear import Chunker
from chunkd.errors import ChunkdError
from chunkd.images.atoms import Numbers
from chunkd.model import CHUNK_HASH_BYTES, ChunkParams, Digest, Recipe
from chunkd.where.packages import Package, listed_path
from chunkd.where.trace import FILE_HASH_BYTES, Trace

ZEROS, SAME_LAYER, SAME_PATH, OTHER_PATH, PARTS = CAUSES = (
    *("zeros", "same_layer", "same_path", "other_path"),
    "parts",
)
# Of all layers together, as an entry takes some 100 bytes beside its path, and a chunk some 40: at worst 1.5 GiB.
MOST_ENTRIES = 1 << 22
MOST_CHUNKS = 1 << 25
MOST_PATHS_BYTES = 256 << 20

Flags = npt.NDArray[np.bool_]


class TooMuchToTrace(ChunkdError):
    """The memory that a question about causes may take is bounded."""

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"these layers have more than {most} {what}; name an image, or a smaller part with --layers")


@dataclass(frozen=True, slots=True)
class _Layer:
    """The rows of one layer: where each entry begins, the hash of its content, and the numbers of its path and of its
    package, 0 for none.
    """

    begins: array[int]
    paths: array[int]
    hashes: bytes
    packages: array[int]
    end: int
    lengths: Numbers
    zeros: Flags


@dataclass(frozen=True, slots=True)
class Attribution:
    """Row by row, an entry of a tar: the further copies that it covers, of chunks of zeros (`zero_bytes`) and of others
    (`copied_bytes`), and the cause of the latter as a number in CAUSES. `path`, `package` (0 for none), `layer` and
    `file` are numbers: of `paths`, `packages` (from 1), `layers`, and of its content.

    `outside` is the same of each layer's bytes outside of entries: zeros, others, and the cause of the latter.
    """

    layers: list[Digest]
    paths: list[bytes]
    packages: list[Package]
    path: Numbers
    package: Numbers
    layer: Numbers
    file: Numbers
    zero_bytes: Numbers
    copied_bytes: Numbers
    cause: Numbers
    outside: list[tuple[int, int, str]]
    uncompressed_bytes: int
    unique_bytes: int

    def by_cause(self) -> dict[str, int]:
        """All bytes of further copies by their cause: together they are `uncompressed_bytes - unique_bytes`."""
        found = {name: int(self.copied_bytes[self.cause == at].sum()) for at, name in enumerate(CAUSES)}
        found[ZEROS] += int(self.zero_bytes.sum())
        for zero_bytes, copied_bytes, cause in self.outside:
            found[ZEROS] += zero_bytes
            found[cause] += copied_bytes
        return found

    @property
    def outside_bytes(self) -> int:
        return sum(zero_bytes + copied_bytes for zero_bytes, copied_bytes, _ in self.outside)


@dataclass(slots=True)
class Layers:
    """The layers that were read so far."""

    params: ChunkParams
    _read: dict[Digest, _Layer] = field(default_factory=dict)
    _paths: dict[bytes, int] = field(default_factory=dict)
    _packages: dict[Package, int] = field(default_factory=dict)
    _listed: dict[bytes, tuple[Digest, int]] = field(default_factory=dict)
    _entries: int = 0
    _chunks: int = 0
    _paths_bytes: int = 0

    def add(self, digest: Digest, recipe: Recipe, trace: Trace) -> None:
        """Raises TooMuchToTrace."""
        packages = array("I", (self._packages.setdefault(one, len(self._packages) + 1) for one in trace.packages))
        self._entries += len(trace.begins)
        self._chunks += len(recipe)
        own = array("I", (packages[owner - 1] if owner else 0 for owner in trace.owners))
        for path, owner in zip(trace.paths, own, strict=True):
            if owner:
                self._list(listed_path(path), digest, owner)
        for path, listed_owner in zip(trace.listed, trace.listed_owners, strict=True):
            self._list(path, digest, packages[listed_owner])
        paths = array("I", map(self._path_number, trace.paths))
        lengths = np.frombuffer(recipe.lengths, "<u4").astype(np.int64)
        zeros = self._zeros(recipe, lengths)
        self._read[digest] = _Layer(trace.begins, paths, bytes(trace.hashes), own, trace.end, lengths, zeros)
        for what, count, most in (
            ("files", self._entries, MOST_ENTRIES),
            ("chunks", self._chunks, MOST_CHUNKS),
            ("bytes of paths", self._paths_bytes, MOST_PATHS_BYTES),
        ):
            if count > most:
                raise TooMuchToTrace(what, most)

    def _path_number(self, path: bytes) -> int:
        number = self._paths.setdefault(path, len(self._paths))
        if number == len(self._paths) - 1:
            self._paths_bytes += len(path)
        return number

    def _list(self, path: bytes, digest: Digest, package: int) -> None:
        known = self._listed.get(path)
        if known is None:
            self._paths_bytes += len(path)
        if known is None or digest < known[0]:
            self._listed[path] = digest, package

    def _zeros(self, recipe: Recipe, lengths: Numbers) -> Flags:
        """Which chunks are zeros alone: all such are of one length, but for a layer's last."""
        hashes = np.frombuffer(recipe.hashes, "<u8").reshape(-1, 2)
        inner, inner_bytes = _zero_chunk(self.params, 2 * self.params.max_bytes)
        found: Flags = (hashes == np.frombuffer(inner, "<u8")).all(axis=1) & (lengths == inner_bytes)
        if len(lengths):
            found[-1] = _zero_chunk(self.params, int(lengths[-1])) == (recipe.hashes[-CHUNK_HASH_BYTES:], lengths[-1])
        return found

    def attribute(self, recipes: Mapping[Digest, Numbers]) -> Attribution:
        """Where the further copies are, among the layers that were read. `recipes` has the chunks of each as numbers,
        equal ones for equal chunks. Takes the layers apart: to be called once, at the end.
        """
        digests = sorted(self._read)
        layers = [self._read[digest] for digest in digests]
        further = _further(np.concatenate([np.empty(0, np.int64), *(recipes[digest] for digest in digests)]))
        copies = _split(further, [len(one.lengths) for one in layers])
        twins = _twins([recipes[digest].tobytes() for digest in digests])
        file = _numbered(b"".join(one.hashes for one in layers))
        path = _joined([one.paths for one in layers])
        cause = np.full(len(file), CAUSES.index(PARTS))
        cause[(file > 0) & _further(file)] = CAUSES.index(OTHER_PATH)
        cause[(file > 0) & _further(file << 32 | path)] = CAUSES.index(SAME_PATH)
        layer = np.repeat(np.arange(len(layers)), [len(one.begins) for one in layers])
        cause[np.array(twins, bool)[layer]] = CAUSES.index(SAME_LAYER)
        zero_bytes, copied_bytes, outside, unique_bytes = [], [], [], 0
        for one, is_copy, is_twin in zip(layers, copies, twins, strict=True):
            borders = np.append(np.frombuffer(one.begins, np.uint64).astype(np.int64), [one.end, one.lengths.sum()])
            zeros, others = (
                np.diff(_covered(one.lengths, flags, borders)) for flags in (is_copy & one.zeros, is_copy & ~one.zeros)
            )
            # What precedes the first entry is nothing: a tar begins with one, or has none.
            zero_bytes.append(zeros[:-1])
            copied_bytes.append(others[:-1])
            outside.append((int(zeros[-1]), int(others[-1]), SAME_LAYER if is_twin else PARTS))
            unique_bytes += int(one.lengths[~is_copy].sum())
        return Attribution(
            digests, list(self._paths), list(self._packages), path, self._package_of(layers, path, file), layer, file,
            np.concatenate([np.empty(0, np.int64), *zero_bytes]),
            np.concatenate([np.empty(0, np.int64), *copied_bytes]),
            cause, outside, sum(int(one.lengths.sum()) for one in layers), unique_bytes,
        )  # fmt: skip

    def _package_of(self, layers: list[_Layer], path: Numbers, file: Numbers) -> Numbers:
        """By its own layer's lists; of a file with content else by those of the first layer that lists its path."""
        found = _joined([one.packages for one in layers])
        if self._listed:
            nobody = (Digest("", ""), 0)
            listed = np.fromiter((self._listed.get(listed_path(one), nobody)[1] for one in self._paths), np.int64)
            other = (found == 0) & (file > 0)
            found[other] = listed[path[other]]
        return found


def _zero_chunk(params: ChunkParams, size: int) -> tuple[bytes, int]:
    """The hash and the length of the first chunk of so many zeros."""
    chunker = Chunker(params)
    chunker.feed(bytes(size))
    recipe = chunker.finish()
    return recipe.hashes[:CHUNK_HASH_BYTES], int.from_bytes(recipe.lengths[:4], "little")


def _joined(columns: list[array[int]]) -> Numbers:
    return np.concatenate([np.empty(0, np.int64), *(np.frombuffer(one, np.uint32) for one in columns)]).astype(np.int64)


def _numbered(hashes: bytes) -> Numbers:
    """Equal numbers for equal hashes, from 1 on; 0 for NO_CONTENT."""
    halves = np.frombuffer(hashes, "<u8").reshape(-1, FILE_HASH_BYTES // 8)
    low, high = (np.unique(halves[:, at], return_inverse=True)[1] for at in (0, 1))
    found = np.unique(low << 32 | high, return_inverse=True)[1] + 1
    return np.where(halves.any(axis=1), found, 0)


def _further(numbers: Numbers) -> Flags:
    """All but the first of each number."""
    found = np.ones(len(numbers), bool)
    found[np.unique(numbers, return_index=True)[1]] = False
    return found


def _split(flags: Flags, counts: list[int]) -> list[Flags]:
    return np.split(flags, np.cumsum(counts)[:-1]) if counts else []


def _twins(recipes: list[bytes]) -> list[bool]:
    """Whether each equals an earlier one."""
    seen: set[bytes] = set()
    found = []
    for recipe in recipes:
        found.append(recipe in seen)
        seen.add(recipe)
    return found


def _covered(lengths: Numbers, flags: Flags, borders: Numbers) -> Numbers:
    """How many bytes of flagged chunks lie before each border."""
    ends = np.cumsum(lengths)
    before = np.concatenate([[0], np.cumsum(np.where(flags, lengths, 0))])
    at = np.searchsorted(ends, borders, side="right")  # the chunk that a border is in
    inside = np.minimum(at, len(ends) - 1)
    return before[at] + np.where(at < len(ends), flags[inside] * (borders - (ends - lengths)[inside]), 0)
