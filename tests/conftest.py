"""Fixtures that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from indexing import Bench, recounted

# How long an example takes is the machine's affair: no test may fail because others keep it busy.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An index of its own for a test, which ends with a recount that must find nothing."""
    with recounted(tmp_path / "state") as opened:
        yield opened
