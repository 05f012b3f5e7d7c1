"""Whatever writers do to the caches, and whatever is lost on the way: once things have settled, the index holds exactly
what lies on the disk. `make torture` looks twenty times as long, and draws anew.
"""

from __future__ import annotations

import logging

import pytest

import machine


def test_the_index_is_the_models_whatever_the_order(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "chunkd"):
        machine.look(steps=1000, of_each=5, seed=seed)
