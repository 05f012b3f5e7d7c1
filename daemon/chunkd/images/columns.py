"""The figures of each holder over the atoms of one column: stored bytes, or the bytes of chunks.

A holder is a root, or a repository; its number is its place in the stated order. The sums that must hold do so to the
byte: fair shares and the bytes of no holder add up to all bytes, and so do new bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from chunkd.figures.totals import Sample
from chunkd.images.atoms import Numbers, Parts, Weight, members

_BITS = 32
_FRACTION_BITS = 128


class Row(NamedTuple):
    """The figures of one holder. `referenced` is all that it holds, each once, `fair_share_bytes` its part of what
    several hold, `new_bytes` what no holder earlier in the order has.
    """

    referenced: Weight = Weight()
    exclusive_bytes: int = 0
    fair_share_bytes: int = 0
    new_bytes: int = 0

    @property
    def shared_bytes(self) -> int:
        return self.referenced.bytes - self.exclusive_bytes


class Column:
    """The figures of all holders: the sums over a column's atoms, of which nothing is kept."""

    def __init__(self, parts: Parts, holders: int) -> None:
        self.unheld = Weight()
        sums, shares = _Sums(holders), _FairShares(holders)
        new, exclusive = [0] * holders, np.zeros(holders, np.int64)
        for atoms in parts:
            by_size: dict[int, list[int]] = {}
            for held_by in atoms:
                by_size.setdefault(held_by.bit_count(), []).append(held_by)
            self.unheld = self.unheld.plus(atoms.get(0, Weight()))
            for size in by_size.keys() - {0}:
                held = np.zeros(holders, np.int64)
                for held_by in by_size[size]:
                    where, weight = members(held_by), atoms[held_by]
                    held[where] += weight.bytes
                    sums.add(where, weight)
                    new[where[0]] += weight.bytes
                shares.add(size, held)
                if size == 1:
                    exclusive += held
        rows = zip(sums.weights(), exclusive.tolist(), shares.rounded(sum(new)), new, strict=True)
        self.rows = [Row(*row) for row in rows]

    @property
    def total_bytes(self) -> int:
        return self.unheld.bytes + sum(row.new_bytes for row in self.rows)


def freed(parts: Parts, some: int) -> Weight:
    """What nobody outside of a set holds."""
    return _sum(parts, lambda holders: bool(holders) and not holders & ~some)


def unreached(parts: Parts, unnamed: int) -> Weight:
    """What only the holders of a set hold, and what nobody holds."""
    return _sum(parts, lambda holders: not holders & ~unnamed)


def held_back(parts: Parts, some: int) -> Weight:
    """What the holders of a set hold, and others too."""
    return _sum(parts, lambda holders: bool(holders & some and holders & ~some))


def _sum(parts: Parts, counts: Callable[[int], bool]) -> Weight:
    found = Weight()
    for atoms in parts:
        for holders, weight in atoms.items():
            if counts(holders):
                found = found.plus(weight)
    return found


class _Sums:
    """A weight for each holder, exact: each number is summed in two parts of 32 bits."""

    def __init__(self, holders: int) -> None:
        self._sums = np.zeros((holders, 2 * (2 + len(Sample._fields))), np.int64)

    def add(self, where: Numbers, weight: Weight) -> None:
        values = (weight.bytes, weight.number, *weight.sample)
        parts = [part for value in values for part in (value >> _BITS, value & ((1 << _BITS) - 1))]
        self._sums[where] += np.array(parts, np.int64)

    def weights(self) -> list[Weight]:
        found = []
        for row in self._sums.tolist():
            size, number, *sample = ((high << _BITS) + low for high, low in zip(row[0::2], row[1::2], strict=True))
            found.append(Weight(size, number, Sample(*sample)))
        return found


class _FairShares:
    """Each holder's part of all bytes that are held, when what n hold is divided by n.

    The parts are sums in fixed point. The last half of their digits is rounded off before they are compared, so that
    equal parts are equal in whatever order they were summed.
    """

    def __init__(self, holders: int) -> None:
        self._parts = [0] * holders

    def add(self, size: int, held: Numbers) -> None:
        """Of each holder the bytes that it holds together with `size - 1` others."""
        for holder in np.flatnonzero(held).tolist():
            self._parts[holder] += (int(held[holder]) << 2 * _FRACTION_BITS) // size

    def rounded(self, held_bytes: int) -> list[int]:
        """By largest remainder, so that the shares add up to the bytes that are held. Of equal remainders the earlier
        holder's goes up.
        """
        half = 1 << (_FRACTION_BITS - 1)
        parts = [(part + half) >> _FRACTION_BITS for part in self._parts]
        shares = [part >> _FRACTION_BITS for part in parts]
        remainders = [part & ((1 << _FRACTION_BITS) - 1) for part in parts]
        left = held_bytes - sum(shares)
        for holder in sorted(range(len(shares)), key=lambda one: -remainders[one])[:left]:
            shares[holder] += 1
        return shares
