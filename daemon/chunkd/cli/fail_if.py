"""`chunkd stats --fail-if`: a condition on one figure, for scripts, which fails the command when it holds."""

from __future__ import annotations

import operator
import re

from chunkd.errors import ChunkdError, UsageError
from chunkd.figures.names import GATED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
# No number of so many digits is rounded when it is read.
NUMBER = "[-+]?[0-9]{1,15}(?:[.][0-9]{1,15})?"


class ConditionHolds(ChunkdError):
    exit_code = 5

    def __init__(self, condition: str, figure: str, value: float) -> None:
        super().__init__(f"{condition} holds: {figure} is {value}")
        self.condition, self.figure, self.value = condition, figure, value


class FigureUnknown(ChunkdError):
    def __init__(self, condition: str, figure: str) -> None:
        super().__init__(f"{condition} can't be judged: {figure} is null: nobody knows it")
        self.condition, self.figure = condition, figure


class Condition:
    """One of the figures of `GATED`, an operator, and a decimal number. Raises UsageError for anything else."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        match = re.fullmatch(f"([a-z_]+) *(<=?|>=?|==) *({NUMBER})", self.text, re.ASCII)
        if match is None:
            raise UsageError(
                f"--fail-if {text!r}: is no condition; write a figure, {' '.join(OPERATORS)} and a number,"
                f" such as '{GATED[0]}<0.2'"
            )
        self.figure, sign, number = match.groups()
        if self.figure not in GATED:
            raise UsageError(f"--fail-if {text!r}: {self.figure} is none of {', '.join(GATED)}")
        self._compare, self._number = OPERATORS[sign], float(number)

    def test(self, stats: Mapping[str, Any]) -> None:
        """Raises ConditionHolds when it holds for these figures, FigureUnknown when its figure is null."""
        value = stats[self.figure]
        if value is None:
            raise FigureUnknown(self.text, self.figure)
        if self._compare(value, self._number):
            raise ConditionHolds(self.text, self.figure, value)


def test(conditions: Iterable[Condition], stats: Mapping[str, Any]) -> None:
    """Raises as `Condition.test` does. One that holds is told before one that can't be judged."""
    unknown: FigureUnknown | None = None
    for condition in conditions:
        try:
            condition.test(stats)
        except FigureUnknown as error:
            unknown = unknown or error
    if unknown is not None:
        raise unknown
