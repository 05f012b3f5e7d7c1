"""What the README says is what the code does: commands and their flags, settings, figures, make's targets."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from chunkd.cli.main import main
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.model import Caps, ChunkParams
from chunkd.settings.table import SETTINGS, Setting

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
CODE = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", README)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_has_its_row(setting: Setting) -> None:
    default = "" if setting.default is None else str(setting.default)
    assert [f"`{setting.name}`", f"`{setting.env}`", f"`{setting.flag}`", default, setting.help] in ROWS


def test_no_row_is_of_a_setting_that_is_no_more() -> None:
    named = {name for row in ROWS for name in re.findall(r"`CHUNKD_([A-Z_]+)`", row[1])}
    assert named == {name.upper() for name in SETTINGS}


@pytest.mark.parametrize("command", main.commands)
def test_every_command_is_in_the_table(command: str) -> None:
    assert [row for row in ROWS if re.match(rf"`chunkd {command}\b", row[0])]


def test_every_call_of_chunkd_is_possible() -> None:
    calls = [call for code in CODE for call in re.findall(r"(?:^|[ $])chunkd ([a-z]+)([^\n#;|]*)", code, re.MULTILINE)]
    assert len(calls) >= len(main.commands)
    for name, rest in calls:
        assert name in main.commands, name
        flags = {flag for one in main.commands[name].params if isinstance(one, click.Option) for flag in one.opts}
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in flags | {"--help"}, f"chunkd {name}{rest}"


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    called = {target for code in CODE for target in re.findall(r"^make ([a-z]+)", code, re.MULTILINE)}
    assert {"run", "test"} <= called <= targets


def test_every_figure_has_its_meaning() -> None:
    params, caps = ChunkParams(), Caps()
    figures = set(Stats(Totals(), 0, 0, None, None, False, 0, params, caps, ()).to_json())
    (start,) = [number for number, row in enumerate(ROWS) if row[:2] == ["name", "meaning"]]
    named = set()
    for row in ROWS[start + 2 :]:
        if not re.match(r"`[a-z_]+`", row[0]):
            break
        named |= set(re.findall(r"`([a-z_]+)`", row[0]))
    assert figures <= named


def test_every_file_that_is_linked_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_the_exit_codes_are_those_of_the_help() -> None:
    assert re.search(r"^Exit codes: [^\n]+$", README, re.MULTILINE)
    assert (main.epilog or "").removesuffix(".") in README


def test_the_files_and_tests_that_the_page_of_the_tests_names_are_there() -> None:
    tests = REPOSITORY / "tests"
    page = (tests / "README.md").read_text()
    named = re.findall(r"`([a-z_/]+\.(?:py|c))`", page)
    assert [name for name in named if not [*tests.rglob(name), *REPOSITORY.glob(name)]] == []
    modules = {path.stem for path in tests.rglob("test_*.py")}
    assert set(re.findall(r"-k (test_\w+)", page)) - modules == set()
