"""Exit code 7: a command prints its figures, and they may lack something; on answers that are made up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from answering import FakeAnswers, running, short_directory
from chunkd.cli import tables
from chunkd.cli.main import main
from chunkd.cli.options import end_by
from chunkd.errors import ChunkdError, UsageError
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.figures.words import PROBLEMS_SHOWN
from chunkd.model import CacheState, Caps, ChunkParams

WHOLE = CacheState("/c", state="watched")
TOTALS = Totals(layers=2, stored_bytes=9, layer_stored_bytes=9, failed_blobs=3, failed_bytes=7)


def stats(
    *caches: CacheState, unlisted_folders: int | None = None, problems: tuple[str, ...] = (), pending_blobs: int = 0
) -> dict[str, Any]:
    return Stats(
        TOTALS, pending_blobs, 0, None, None, True, 4096, ChunkParams(), Caps(), caches or (WHOLE,),
        unlisted_folders=unlisted_folders, problems=problems,
    ).to_json() | {"scanning": False, "scans": 1, "settled": True}  # fmt: skip


def code_of(given: Mapping[str, Any]) -> int:
    try:
        end_by(given)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_new_fields_have_defaults() -> None:
    given = stats()
    assert (given["unlisted_folders"], given["problems"]) == (None, [])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (stats(), 0),
        (stats(pending_blobs=5), 0),
        (stats(unlisted_folders=0), 0),
        (stats(unlisted_folders=1), 7),
        (stats(problems=("/c/x: can't be listed",)), 7),
        *((stats(WHOLE, CacheState("/d", state=state)), 0) for state in ("watched", "polled", "idle", "unwatched")),
        *((stats(WHOLE, CacheState("/d", state=state)), 7) for state in ("stale", "hung")),
    ],
)
def test_when_figures_may_lack_something(given: dict[str, Any], code: int) -> None:
    assert code_of(given) == code
    older = {name: value for name, value in given.items() if name not in ("unlisted_folders", "problems")}
    assert code_of(older) == (code if any(cache["state"] in ("stale", "hung") for cache in given["caches"]) else 0)


def test_problems_are_shown_up_to_a_number_and_then_counted() -> None:
    problems = tuple(f"/c/{number}\x1b: can't be listed" for number in range(PROBLEMS_SHOWN))
    lines = list(tables.stats_lines(stats(unlisted_folders=1234, problems=problems)))
    assert sum(line.startswith("problem ") for line in lines) == PROBLEMS_SHOWN
    assert all(line.isprintable() for line in lines)
    (count,) = [line for line in lines if line.startswith("unlisted ")]
    assert "1,234" in count
    few = list(tables.stats_lines(stats(unlisted_folders=2, problems=problems[:2])))
    assert not any(line.startswith("unlisted ") for line in few)
    (hung,) = [line for line in tables.stats_lines(stats(CacheState("/d", state="hung"))) if line.startswith("hung ")]
    assert "/d" in hung


# --- the commands, of a daemon whose answers are made up ----------------------------------------------------------


class Canned(FakeAnswers):
    """Says what it is given."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given

    def stats(self) -> dict[str, Any]:
        return self.given

    def histogram(self) -> dict[str, Any]:
        return {"copies": [], "sizes": [], "as_of": None}

    def scan(self, verify: bool, accept: bool, retry_failed: bool) -> dict[str, Any]:  # noqa: ARG002
        return {"scan": 1}


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


def ended(directory: Path, given: dict[str, Any], *args: str) -> tuple[int, str]:
    """How a command ended that asked this daemon, and what it printed."""
    environ = {"CHUNKD_CONFIG": "/dev/null", "CHUNKD_SOCKET": str(directory / "s")}
    with running(directory / "s", Canned(given)):
        done = CliRunner().invoke(main, args, env=environ)
    if isinstance(done.exception, ChunkdError):
        return done.exception.exit_code, done.stdout
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


COMMANDS = [("stats",), ("stats", "--json"), ("histogram",), ("blobs",), ("blobs", "--sort", "size"), ("history",)]


@pytest.mark.parametrize("args", [*COMMANDS, ("scan", "/c")], ids=" ".join)
def test_every_command_that_prints_figures_prints_them_and_ends_with_7(directory: Path, args: tuple[str, ...]) -> None:
    usual = ended(directory, stats(unlisted_folders=0), *args)
    lacking = ended(directory, stats(unlisted_folders=1), *args)
    assert (usual[0], lacking[0]) == (0, 7)
    if args == ("stats", "--json"):
        assert json.loads(lacking[1]) == json.loads(usual[1]) | {"unlisted_folders": 1}
    elif args[0] in ("blobs", "histogram", "history"):
        assert lacking == (7, usual[1])
    else:
        assert usual[1].splitlines()[0] == lacking[1].splitlines()[0] != ""


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--fail-if", "unlisted_folders>0"), 5),
        (("--fail-if", "unlisted_folders>1"), 7),
        (("--fail-if", "redundancy<0"), 1),
        (("--fail-if", "nonsense"), UsageError.exit_code),
    ],
)
def test_a_lower_code_comes_first(directory: Path, flags: tuple[str, ...], code: int) -> None:
    assert ended(directory, stats(unlisted_folders=1), "stats", *flags)[0] == code


def test_health_keeps_its_own_code(directory: Path) -> None:
    assert ended(directory, stats(unlisted_folders=1), "health")[0] == 0
