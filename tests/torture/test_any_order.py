"""Any order of events, twenty thousand steps long: the machine that the quick tests run for a while."""

from __future__ import annotations

import logging

import pytest

import machine
from conftest import Tell


@pytest.mark.long(72)
def test_the_index_is_the_models_whatever_the_order(seed: int, tell: Tell, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "chunkd"):
        counts = machine.look(steps=20_000, of_each=100, seed=seed)
    tell(f"{counts['step']:,} steps, " + ", ".join(f"{kind}: {counts[kind]}" for kind in sorted(counts)))
