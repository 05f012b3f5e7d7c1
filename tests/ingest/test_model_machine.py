"""Whatever writers do to the caches, and whatever is lost on the way: once things have settled, the index holds exactly
what lies on the disk. `make torture` looks five times as long.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import machine


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("chunkd")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


TestCaches = machine.Caches.TestCase
TestCaches.settings = machine.looking(examples=100)
