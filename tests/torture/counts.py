"""How often the torture tries each fault: as often as tests/README.md says, or a share of that.

TORTURE_SHARE is that share, 1 by default.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

SHARE = float(os.environ.get("TORTURE_SHARE") or 1)

Kind = TypeVar("Kind")


def share_of(count: int, at_least: int) -> int:
    """The share of a full count; `at_least` is what the test needs to mean something."""
    return max(at_least, round(SHARE * count))


def dealt(kinds: Sequence[Kind], count: int, chance: random.Random) -> list[Kind]:
    """So many of these kinds in any order: each as often as the others, so that few are enough for all."""
    found = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(found)
    return found
