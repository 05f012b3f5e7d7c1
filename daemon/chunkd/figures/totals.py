"""The totals. One line here defines a total: the index keeps it by its name, and `check` recounts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


def _sum_over(kind: str, of: Callable[..., int]) -> Any:
    """A total: the sum of a function over all things of one kind.

    blobs     the counted blobs: `of(blob)`
    failed    the blobs that are failed or archived: `of(blob)`
    chunks    the unique chunks, many at once: `of(lengths, copies)`, two arrays
    measured  the unique chunks that were recompressed: `of(lengths, recompressed lengths, copies)`, three arrays
    """
    # A factory, so that an unknown total has no attribute, and is not taken for 0.
    return field(default_factory=int, metadata={"kind": kind, "of": of})


# So many products of two lengths (24 bits each) fit into a sum of 63 bits.
PRODUCTS_AT_ONCE = 1 << 14


def dot(left: Any, right: Any) -> int:
    """The sum of the products of two arrays of lengths, exact however many there are."""
    pieces = range(0, len(left), PRODUCTS_AT_ONCE)
    return sum(int(left[at : at + PRODUCTS_AT_ONCE] @ right[at : at + PRODUCTS_AT_ONCE]) for at in pieces)


@dataclass(frozen=True, repr=False, eq=False)
class Totals:
    """The running figures, changed only together with the recipes that they sum up.

    One line here defines a total: the index counts and stores it by its name, the history keeps it, `check` recounts
    it. A total that an index has not counted yet is unknown: reading it raises AttributeError, and `vars` leaves it
    out.
    """

    layers: int = _sum_over("blobs", lambda blob: blob.state == "layer")
    others: int = _sum_over("blobs", lambda blob: blob.state == "other")
    stored_bytes: int = _sum_over("blobs", lambda blob: blob.stored_bytes)
    layer_stored_bytes: int = _sum_over("blobs", lambda blob: blob.stored_bytes * (blob.state == "layer"))
    uncompressed_bytes: int = _sum_over("chunks", lambda lengths, copies: lengths @ copies)
    chunks: int = _sum_over("chunks", lambda _, copies: copies.sum())
    unique_chunks: int = _sum_over("chunks", lambda lengths, _: len(lengths))
    unique_bytes: int = _sum_over("chunks", lambda lengths, _: lengths.sum())
    failed_blobs: int = _sum_over("failed", lambda blob: blob.state == "failed")
    failed_bytes: int = _sum_over("failed", lambda blob: blob.stored_bytes * (blob.state == "failed"))
    measured_chunks: int = _sum_over("measured", lambda x, _, __: len(x))
    measured_bytes: int = _sum_over("measured", lambda x, _, __: x.sum())
    measured_recompressed_bytes: int = _sum_over("measured", lambda _, y, __: y.sum())
    measured_xx: int = _sum_over("measured", lambda x, _, __: dot(x, x))
    measured_xy: int = _sum_over("measured", lambda x, y, _: dot(x, y))
    measured_yy: int = _sum_over("measured", lambda _, y, __: dot(y, y))
    measured_copies_bytes: int = _sum_over("measured", lambda x, _, copies: x @ copies)
    measured_copies_recompressed_bytes: int = _sum_over("measured", lambda _, y, copies: y @ copies)
    archived_blobs: int = _sum_over("failed", lambda blob: blob.state == "archived")
    archived_bytes: int = _sum_over("failed", lambda blob: blob.stored_bytes * (blob.state == "archived"))

    @classmethod
    def of(cls, values: Mapping[str, int]) -> Totals:
        """Totals with these values. A total that is missing here is unknown; a name without a line above is kept."""
        totals = object.__new__(cls)
        vars(totals).update(values)
        return totals

    def plus(self, steps: Mapping[str, int]) -> Totals:
        """The totals after a change. Unknown totals stay unknown; names without a line above are dropped."""
        return Totals.of({name: vars(self)[name] + steps.get(name, 0) for name in TOTALS if name in vars(self)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Totals) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    def __repr__(self) -> str:
        return f"Totals({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @property
    def measured_copies(self) -> tuple[int, int]:
        """The exact sums over all copies of the measured chunks: of their lengths, and of their recompressed ones."""
        return self.measured_copies_bytes, self.measured_copies_recompressed_bytes

    @property
    def sample(self) -> Sample:
        """The exact sums over the measured chunks."""
        return Sample(
            self.measured_chunks, self.measured_bytes, self.measured_recompressed_bytes,
            self.measured_xx, self.measured_xy, self.measured_yy,
        )  # fmt: skip


TOTALS = tuple(total.name for total in fields(Totals))
_OF_KIND: dict[str, dict[str, Callable[..., int]]] = {}
for _total in fields(Totals):
    _OF_KIND.setdefault(_total.metadata["kind"], {})[_total.name] = _total.metadata["of"]


def sums(kind: str, *things: Any) -> dict[str, int]:
    """The totals of a kind, by name, over these things alone."""
    return {name: int(of(*things)) for name, of in _OF_KIND[kind].items()}


class Sample(NamedTuple):
    """Exact sums over the measured unique chunks: their number, x their lengths, y their recompressed lengths."""

    chunks: int = 0
    x: int = 0
    y: int = 0
    xx: int = 0
    xy: int = 0
    yy: int = 0
