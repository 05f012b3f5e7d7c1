"""`--fail-if`: a condition on one figure, for scripts, which fails the command when it holds."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chunkd.errors import ChunkdError, UsageError
from chunkd.figures.names import GATED

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
# No number of so many digits is rounded when it is read.
NUMBER = "[-+]?[0-9]{1,15}(?:[.][0-9]{1,15})?"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class ConditionHolds(ChunkdError):
    exit_code = 5

    def __init__(self, condition: str, figure: str, value: float) -> None:
        super().__init__(f"{condition} holds: {figure} is {value}")


class FigureUnknown(ChunkdError):
    def __init__(self, condition: str, figure: str) -> None:
        super().__init__(
            f"can't evaluate {condition}: {figure} is unknown (no daemon, no layers, too few measured chunks, or a blob"
            " that is not here)"
        )


class ConditionInvalid(UsageError):
    def __init__(self, text: str, problem: str) -> None:
        super().__init__(f"--fail-if {text!r}: {problem}")


class Condition:
    """One of the figures, an operator, and a decimal number, for bytes with a unit if wanted. Raises ConditionInvalid
    for anything else.
    """

    def __init__(self, text: str, figures: Sequence[str] = GATED) -> None:
        self.text = text.strip()
        match = re.fullmatch(f"([a-z_]+) *(<=?|>=?|==) *({NUMBER})(?: *({'|'.join(UNITS)}))?", self.text, re.ASCII)
        if match is None:
            raise ConditionInvalid(
                text, f"not a condition; write a figure, {' '.join(OPERATORS)} and a number, such as '{figures[0]}<0.2'"
            )
        self.figure, sign, number, unit = match.groups()
        if self.figure not in figures:
            raise ConditionInvalid(text, f"unknown figure {self.figure}; use {', '.join(figures)}")
        if unit and not self.figure.endswith("_bytes"):
            raise ConditionInvalid(text, f"{self.figure} is not in bytes; leave out {unit}")
        self._compare, self._number = OPERATORS[sign], float(number) * UNITS.get(unit, 1)

    def test(self, stats: Mapping[str, Any]) -> None:
        """Raises ConditionHolds when it holds for these figures, FigureUnknown when its figure is null."""
        value = stats.get(self.figure)
        if value is None:
            raise FigureUnknown(self.text, self.figure)
        if self._compare(value, self._number):
            raise ConditionHolds(self.text, self.figure, value)


def test(conditions: Iterable[Condition], stats: Mapping[str, Any]) -> None:
    """Raises as `Condition.test` does: FigureUnknown only when no condition holds."""
    unknown: FigureUnknown | None = None
    for condition in conditions:
        try:
            condition.test(stats)
        except FigureUnknown as error:
            unknown = unknown or error
    if unknown is not None:
        raise unknown
