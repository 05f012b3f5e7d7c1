"""Whatever writers do to the caches, and whatever is lost on the way: once things have settled, the index holds exactly
what lies on the disk. `make torture` looks five times as long.
"""

from __future__ import annotations

import logging

import pytest

import machine


def test_the_index_is_the_models_whatever_the_order(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "chunkd"):
        machine.look(steps=4000, of_each=20, seed=seed)
