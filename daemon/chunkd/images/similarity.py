"""Which images are alike, by the bytes of the chunks that both hold."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chunkd.errors import TooManyImages
from chunkd.images.atoms import Numbers, Parts, members

# From so many images on, chunks that more than half of all images hold make no two of them alike: they are runs of
# zeros and the padding of tars, or a base that all have.
COMMON_FROM_ROOTS = 20


# Memory: 8 bytes for each image in each set of images that hold something together.
MOST_MEMBERS = 1 << 24


class Pair(NamedTuple):
    """Two images by their numbers, and what both hold."""

    one: int
    other: int
    overlap_bytes: int


class Similarities:
    """The overlaps of all pairs of roots, without the chunks that more than half of at least COMMON_FROM_ROOTS of them
    hold. `common_bytes` is what those chunks have, `referenced` what each root holds of the others.

    Raises TooManyImages.
    """

    def __init__(self, parts: Parts, roots: int) -> None:
        self.common_bytes, self.referenced = 0, [0] * roots
        self._shared: list[tuple[Numbers, int]] = []
        self._by_root = [array("I") for _ in range(roots)]  # of each root its places in `_shared`
        left = MOST_MEMBERS
        for atoms in parts:
            for holders, weight in atoms.items():
                if roots >= COMMON_FROM_ROOTS and 2 * holders.bit_count() > roots:
                    self.common_bytes += weight.bytes
                elif holders:
                    left -= holders.bit_count()
                    if left < 0:
                        raise TooManyImages(f"the sets that share something have more than {MOST_MEMBERS} members")
                    self._add(members(holders), weight.bytes)

    def _add(self, where: Numbers, size_bytes: int) -> None:
        for root in where.tolist():
            self.referenced[root] += size_bytes
            if len(where) > 1:
                self._by_root[root].append(len(self._shared))
        if len(where) > 1:
            self._shared.append((where.astype(np.int32), size_bytes))

    def overlaps(self, one: int) -> Numbers:
        """What a root and each later one both hold; 0 for itself and for earlier ones."""
        places = self._by_root[one]
        if not places:
            return np.zeros(len(self.referenced), np.int64)
        sets = [self._shared[place] for place in places]
        sizes = np.repeat([size_bytes for _, size_bytes in sets], [len(where) for where, _ in sets])
        # In floating point, which is exact: no two images share 2 ** 53 bytes.
        sums = np.bincount(np.concatenate([where for where, _ in sets]), sizes, len(self.referenced)).astype(np.int64)
        sums[: one + 1] = 0
        return sums

    def largest(self, most: int, repositories: Sequence[tuple[str, ...]]) -> list[Pair]:
        """The pairs of images of different repositories that share most, first. `repositories` has those of each."""
        members_of: dict[str, list[int]] = {}
        for root, names in enumerate(repositories):
            for name in names:
                members_of.setdefault(name, []).append(root)
        found: list[Pair] = []
        for one, names in enumerate(repositories):
            overlaps = self.overlaps(one)
            for name in names:
                overlaps[members_of[name]] = 0
            others = np.argsort(-overlaps, kind="stable")[:most]
            found += [Pair(one, other, int(overlaps[other])) for other in others.tolist() if overlaps[other]]
            found = heapq.nsmallest(most, found, key=lambda pair: (-pair.overlap_bytes, pair.one, pair.other))
        return found

    def clusters(self, least_permille: int) -> list[list[int]]:
        """The groups of at least two roots that are connected by pairs whose similarity is at least so many
        thousandths; the largest first. Similarity is overlap by union.
        """
        leaders = list(range(len(self.referenced)))

        def leader(root: int) -> int:
            while leaders[root] != root:
                leaders[root] = leaders[leaders[root]]
                root = leaders[root]
            return root

        referenced = np.array(self.referenced, np.int64)
        for one in range(len(leaders)):
            overlaps = self.overlaps(one)
            unions = referenced[one] + referenced - overlaps
            for other in np.flatnonzero((overlaps > 0) & (1000 * overlaps >= least_permille * unions)).tolist():
                first, second = sorted((leader(one), leader(other)))
                leaders[second] = first
        groups: dict[int, list[int]] = {}
        for root in range(len(leaders)):
            groups.setdefault(leader(root), []).append(root)
        return sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
