"""What the documents say is what the code does: commands, flags, settings, figures, routes, make's targets. Every link,
anchor and file that they name is there.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import click
import pytest

from chunkd.api.routes import ROUTES
from chunkd.cli.main import main
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.model import Caps, ChunkParams
from chunkd.settings.table import SETTINGS, Setting

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
README = (REPOSITORY / "README.md").read_text()
PAGES = {str(path.relative_to(REPOSITORY)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
# What users read.
MANUAL = {"README.md": README, **PAGES}
# With what is for those who change the code.
DOCUMENTS = MANUAL | {
    name: (REPOSITORY / name).read_text()
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "DESIGN.md", "SECURITY.md", "bench/README.md", "tests/README.md")
}
MOST_README_LINES = 150
# Of each page in docs/stores.
PARTS = ("The path", "The rights", "Names", "Caveats")
# What a name of a file may begin with. Others in code are commands, routes, or paths of other machines.
TOP_FOLDERS = ("bench", "cffi_build", "contrib", "daemon", "docs", "launchd", "systemd", "tests", r"\.ci")


def code_of(text: str) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`([^`\n]+)`", text)


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


CODE = [code for text in MANUAL.values() for code in code_of(text)]
SETTING_ROWS = rows_of(PAGES["docs/settings.md"])


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_has_its_row(setting: Setting) -> None:
    default = "" if setting.default is None else str(setting.default)
    assert [f"`{setting.name}`", f"`{setting.flag}`", default, setting.help] in SETTING_ROWS
    assert setting.env == f"CHUNKD_{setting.name.upper()}"


def test_no_row_is_of_a_setting_that_is_no_more() -> None:
    named = {row[0].strip("`") for row in SETTING_ROWS if re.fullmatch("`[a-z_]+`", row[0])}
    assert named == set(SETTINGS)


@pytest.mark.parametrize("command", main.commands)
def test_every_command_is_in_the_table(command: str) -> None:
    assert [row for row in rows_of(PAGES["docs/commands.md"]) if re.match(rf"`chunkd {command}\b", row[0])]


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
    texts = [README, *PAGES.values(), DOCUMENTS["CONTRIBUTING.md"]]
    called = {
        target
        for text in texts
        for code in code_of(text)
        for target in re.findall(r"^make ([a-z]+)", code, re.MULTILINE)
    }
    assert called <= targets
    assert {"run", "test"} <= {
        target for code in code_of(README) for target in re.findall(r"^make ([a-z]+)", code, re.M)
    }


def test_every_figure_has_its_meaning() -> None:
    params, caps = ChunkParams(), Caps()
    figures = set(Stats(Totals(), 0, 0, None, None, False, 0, params, caps, ()).to_json())
    rows = rows_of(PAGES["docs/figures.md"])
    (start,) = [number for number, row in enumerate(rows) if row[:2] == ["name", "meaning"]]
    named = set()
    for row in rows[start + 2 :]:
        if not re.match(r"`[a-z_]+`", row[0]):
            break
        named |= set(re.findall(r"`([a-z_]+)`", row[0]))
    assert figures <= named


def test_every_route_has_its_row_with_its_parameters() -> None:
    rows = [re.fullmatch(r"`(GET|POST) ([^`?]+)\??([^`]*)`", row[0]) for row in rows_of(PAGES["docs/http-api.md"])]
    said = {row[2]: (row[1], {part.partition("=")[0] for part in row[3].split("&") if part}) for row in rows if row}
    assert said == {path: (route.methods[0], set(route.parameters)) for path, route in ROUTES.items()}


def test_the_exit_codes_are_those_of_the_help() -> None:
    assert re.search(r"^Exit codes: [^\n]+$", PAGES["docs/commands.md"], re.MULTILINE)
    assert (main.epilog or "").removesuffix(".") in PAGES["docs/commands.md"]


# --- what the documents point to


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(name: str) -> None:
    page = REPOSITORY / name
    for target in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if name in PAGES:  # the site has nothing else
            assert found.is_relative_to(DOCS.resolve()), target
        if anchor:
            assert anchor in anchors_of(found.read_text()), target


@pytest.mark.parametrize("name", [*MANUAL, "CONTRIBUTING.md"])
def test_every_file_of_the_repository_that_is_named_is_there(name: str) -> None:
    for code in code_of(DOCUMENTS[name]):
        for path in re.findall(rf"(?<![\w/.~-])((?:{'|'.join(TOP_FOLDERS)})/[\w./-]*\w)", code):
            assert (REPOSITORY / path).exists() or path == "bench/results", path


def test_every_page_is_reached_from_the_readme_and_from_the_site() -> None:
    reached, left = set(), [REPOSITORY / "README.md"]
    while left:
        page = left.pop()
        for target in re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text()):
            found = (page.parent / target).resolve()
            if found.is_relative_to(DOCS.resolve()) and found not in reached:
                reached.add(found)
                left.append(found)
    assert {path.resolve() for path in DOCS.rglob("*.md")} - reached == {(DOCS / "index.md").resolve()}
    named = re.findall(r": (\S+\.md)$", (REPOSITORY / "properdocs.yml").read_text(), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in named) == sorted(PAGES)


def test_the_picture_is_a_small_png() -> None:
    content = (DOCS / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) < 150_000
    width, height = struct.unpack(">II", content[16:24])
    assert 600 <= width <= 1200
    assert 300 <= height <= 900


def test_the_files_and_tests_that_the_page_of_the_tests_names_are_there() -> None:
    tests = REPOSITORY / "tests"
    page = (tests / "README.md").read_text()
    named = re.findall(r"`([a-z_/]+\.(?:py|c))`", page)
    assert [name for name in named if not [*tests.rglob(name), *REPOSITORY.glob(name)]] == []
    modules = {path.stem for path in tests.rglob("test_*.py")}
    assert set(re.findall(r"-k (test_\w+)", page)) - modules == set()


@pytest.mark.parametrize("name", [name for name in PAGES if re.fullmatch(r"docs/stores/(?!index).+", name)])
def test_a_page_of_a_store_has_its_four_parts_and_a_row(name: str) -> None:
    headings = re.findall(r"^## (.+)$", PAGES[name], re.MULTILINE)
    assert [heading for heading in headings if heading in PARTS] == list(PARTS)
    assert [row for row in rows_of(PAGES["docs/stores/index.md"]) if f"({Path(name).name})" in row[0]]
