"""Fixtures that several test files use, and what tests of the folder `torture` tell at the end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from indexing import Bench, recounted

TORTURE = Path(__file__).parent / "torture"
TOLD = pytest.StashKey[list[tuple[str, str]]]()

Tell = Callable[[str], None]

# How long an example takes is the machine's affair: no test may fail because others keep it busy.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An index of its own for a test, which ends with a recount that must find nothing."""
    with recounted(tmp_path / "state") as opened:
        yield opened


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOLD] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TORTURE in item.path.parents:
            item.add_marker("torture")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Counters of what was survived, for the table at the end."""
    return lambda what: request.config.stash[TOLD].append((request.node.name, what))


@pytest.fixture
def seed(tell: Tell) -> int:
    """Of all that is drawn by chance; told, so that a run can be repeated with TORTURE_SEED."""
    number = int(os.environ.get("TORTURE_SEED") or random.randrange(1 << 32))
    tell(f"seed {number}")
    print(f"TORTURE_SEED={number}")
    return number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, what in config.stash[TOLD]:
        terminalreporter.write_line(f"{name}: {what}")
