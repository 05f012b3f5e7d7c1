"""Fixtures that several test files use, the order of the torture, and what the tests of `torture` tell at the end."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import forked
from answering import short_directory
from counts import IN_TORTURE, QUICK_SEED, counted
from daemon import Home, opened
from indexing import Bench, recounted

# A run that a shell started in the background ignores Ctrl-C, and all that its tests start would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TORTURE = Path(__file__).parent / "torture"
TOLD = "told"

Tell = Callable[[str], None]

# How long an example takes is the machine's affair: no test may fail because others keep it busy.
settings.register_profile("chunkd", max_examples=counted(100), derandomize=not IN_TORTURE, deadline=None)
settings.load_profile("chunkd")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An index of its own for a test, which ends with a recount that must find nothing."""
    with recounted(tmp_path / "state") as found:
        yield found


@pytest.fixture
def home() -> Iterator[Home]:
    """Where commands and a daemon of a test run, at a path that is short enough for a socket."""
    with short_directory() as root, opened(root) as found:
        yield found


def long_s(item: pytest.Item) -> float:
    """About how long it takes, of a test that is marked as long; 0 of all others."""
    marker = item.get_closest_marker("long")
    return float((*marker.args, 40)[0]) if marker else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    for item in items:
        if TORTURE in item.path.parents:
            item.add_marker("torture")
    yield  # what was not asked for is taken out
    # The processes of `--dist worksteal` begin with a run of the list each. The torture's long tests come first in each
    # of them, the longest before all others. Those of `make test` wait more than they work: one process begins with all
    # of them, beside the others' work. The rest stay beside their neighbours, with which they share fixtures.
    items.sort(key=long_s, reverse=True)
    if any(item.get_closest_marker("torture") for item in items):
        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        items[:] = [item for first in range(processes) for item in items[first::processes]]


def pytest_sessionfinish() -> None:
    forked.close()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Counters of what was survived, for the table at the end."""
    return lambda what: request.node.user_properties.append((TOLD, what))


@pytest.fixture
def seed(tell: Tell) -> int:
    """Of all that is drawn by chance; told, so that a run can be repeated with TORTURE_SEED."""
    drawn = random.randrange(1 << 32) if IN_TORTURE else QUICK_SEED
    number = int(os.environ.get("TORTURE_SEED") or drawn)
    tell(f"seed {number}")
    print(f"TORTURE_SEED={number}")
    return number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was told comes with the reports, from other processes too; that of the teardown is a test's last."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                name = report.nodeid.rpartition("::")[2]
                for what in (what for kind, what in report.user_properties if kind == TOLD):
                    terminalreporter.write_line(f"{name}: {what}")
