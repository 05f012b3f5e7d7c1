"""Faults on purpose, in numbers that take minutes: `make torture`. What each has survived is told at the end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOLD = pytest.StashKey[list[tuple[str, str]]]()

Tell = Callable[[str], None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TOLD] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("torture")


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Counts of what was survived, for the table at the end."""
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
