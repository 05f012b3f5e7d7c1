"""How often the tests try each fault and draw: as often as tests/README.md says, or a share of that.

TORTURE_SHARE is that share in `make torture`, 1 by default. The tests marked `counted`, and all for which Hypothesis
draws, run in `make test` too: a fifth of the counts, as the draws are the same each time and more would prove little.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

SHARE = float(os.environ.get("TORTURE_SHARE") or 1)
# `make torture` sets it.
IN_TORTURE = bool(os.environ.get("IN_TORTURE"))
QUICK_SHARE = 0.2
QUICK_SEED = 20261123

Kind = TypeVar("Kind")


def share_of(count: int, at_least: int) -> int:
    """The share of a full count; `at_least` is what the test needs to mean something."""
    return max(at_least, round(SHARE * count))


def counted(count: int, at_least: int = 1) -> int:
    """The same for a test that runs in `make test` too."""
    return max(at_least, round((SHARE if IN_TORTURE else QUICK_SHARE) * count))


def some(kinds: Sequence[Kind]) -> list[Kind]:
    """So many of these kinds, evenly from all of them."""
    return list(kinds[:: len(kinds) // counted(len(kinds))])


def dealt(kinds: Sequence[Kind], count: int, chance: random.Random) -> list[Kind]:
    """So many of these kinds in any order: each as often as the others, so that few are enough for all."""
    found = [kinds[number % len(kinds)] for number in range(count)]
    chance.shuffle(found)
    return found
