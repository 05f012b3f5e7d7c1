"""The house's order, read from its imports: they only go down, and each dependency has few doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "daemon" / "chunkd"

# From the ground up: a module imports from the rows beneath its own, never from its own row. A new module goes into
# the lowest row above all that it imports; if that takes an import that goes up, something is in the wrong module.
ROWS: tuple[tuple[str, ...], ...] = (
    (
        "__init__",
        "caps",
        "counts",
        "courtesy",
        "disk",
        "errors",
        "figures",
        "histogram",
        "logs",
        "mounts",
        "pace",
        "quiet",
        "relay",
        "saving",
        "text",
    ),
    ("audit", "client", "directories", "gate", "markup", "metrics", "model", "svg"),
    ("backlog", "chunker", "confine", "decode", "plots", "recompress", "settings", "tally"),
    ("given", "layouts", "listener", "lock", "records", "routes", "wire"),
    ("blocks", "caches", "endpoint", "moments", "options", "pool", "scan", "store", "watch", "worker"),
    ("config", "counting", "create", "entries", "history", "measured", "recount_figures", "recount_places"),
    ("beside", "compare", "lookup", "recount", "spawn"),
    ("chunks",),
    ("numbering", "shares"),
    ("index",),
    ("holdings", "repair", "rounds", "sweep"),
    ("look", "setup"),
    ("ingest",),
    ("scanner",),
    ("answers",),
    ("asking", "service"),
    ("checking", "listing", "material", "once", "plain"),
    ("page", "remeasure"),
    ("report",),
    ("cli",),
    ("__main__",),
)

# Who may import what is not of the standard library. A dependency that is not named here is new: that is a decision.
DOORS: dict[str, set[str]] = {
    "_cgear": {"chunker"},
    "backports": {"decode", "recompress"},
    "blake3": {"chunker"},
    "click": {"cli", "listing", "options", "report"},
    "compression": {"decode", "recompress"},  # of the standard library from Python 3.14 on
    "isal": {"decode"},
    "lmdb": {
        *("answers", "audit", "checking", "chunks", "compare", "index", "lookup", "measured", "numbering"),
        *("recount", "recount_figures", "recount_places", "shares", "store"),
    },
    "matplotlib": {"plots"},
    "numpy": {
        *("blocks", "checking", "chunks", "counting", "entries", "index", "lookup", "measured", "numbering"),
        *("recount", "recount_figures", "repair", "shares", "sweep"),
    },
    "prometheus_client": {"metrics"},
    "psutil": {"courtesy"},
    "rich": {"once"},
    "watchdog": {"watch"},
}

HEAVY = {
    "blake3",
    "chunkd._cgear",
    "isal",
    "lmdb",
    "matplotlib",
    "numpy",
    "prometheus_client",
    "psutil",
    "rich",
    "watchdog",
}
# A process that asks a daemon takes twice the time of an idle Python; each of these would add a fifth to that, or more.
SLOW = HEAVY | {"asyncio", "click", "contextlib", "dataclasses", "http", "inspect", "logging", "tomllib", "typing"}
# What is imported where speed or safety counts, and what must not come with it.
LIGHT: dict[str, set[str]] = {
    "__main__": SLOW,  # `chunkd stats` and `chunkd health` where a daemon answers
    "cli": HEAVY,  # `chunkd --help`
    "answers": HEAVY - {"lmdb"},  # `chunkd stats` where none does
    "worker": HEAVY - {"blake3", "chunkd._cgear", "isal"},  # it reads hostile bytes, and has no index at hand
}

MOST_LINES = 300
# A module that has outgrown that, the reason, and where even it ends.
LONG: dict[str, tuple[int, str]] = {
    "ingest": (400, "the one writer's turn; what it looks at and holds is in look and holdings"),
}


@dataclass
class Imports:
    """The modules of chunkd that one imports, and the packages, but for those that annotations alone need."""

    own: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def statements(tree: ast.AST, *, typing_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import, wherever it stands, and whether it is for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, typing_only
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from statements(node, typing_only=True)
        else:
            yield from statements(node, typing_only=typing_only)


def imports_of(source: str) -> Imports:
    found = Imports()
    for node, typing_only in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [f"chunkd.{alias.name}" for alias in node.names] if module == "chunkd" else [module]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "chunkd" and rest and not rest.startswith("_"):
                found.own.add(rest)
            elif package == "chunkd" and rest.partition(".")[0] == "_cgear":
                found.others.add("_cgear")
            elif (
                not typing_only and package != "chunkd" and (package not in sys.stdlib_module_names or package in DOORS)
            ):
                found.others.add(package)
    return found


MODULES = {path.stem: imports_of(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}


def test_the_reading_of_imports_sees_them_all() -> None:
    found = imports_of(
        "import lmdb, os\nfrom chunkd import records, __version__\nfrom chunkd.model import Blob\n"
        "from chunkd._cgear import lib\ntry:\n    from isal import igzip\nexcept ImportError: pass\n"
        "def late():\n    if late:\n        import numpy.typing\n"
        "if TYPE_CHECKING:\n    from chunkd.ingest import Ingest\n    import rich\n"
    )
    assert found == Imports({"records", "model", "ingest"}, {"lmdb", "_cgear", "isal", "numpy"})
    assert len(MODULES) > 30


def test_every_module_has_its_row() -> None:
    unknown, gone = set(MODULES) - set(ROW_OF), set(ROW_OF) - set(MODULES)
    assert not unknown, f"{sorted(unknown)}: put it into the lowest row of ROWS above all that it imports"
    assert not gone, f"{sorted(gone)}: there is no such module any longer, take it out of ROWS"
    assert len(ROW_OF) == sum(map(len, ROWS)), "a module stands in two rows"


def test_a_package_has_no_folders_in_it() -> None:
    assert [path.name for path in PACKAGE.glob("*/*.py")] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module: str) -> None:
    upwards = {name for name in MODULES[module].own if ROW_OF[name] >= ROW_OF[module]}
    assert not upwards, f"{module} imports {sorted(upwards)}, which stand(s) no lower in ROWS"


def test_each_dependency_comes_in_by_its_doors() -> None:
    doors: dict[str, set[str]] = {}
    for module, imports in MODULES.items():
        for package in imports.others:
            doors.setdefault(package, set()).add(module)
    assert doors == DOORS


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_must_be_light_brings_nothing_heavy(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import chunkd.{module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert set(done.stdout.split()) & LIGHT[module] == set()


def test_importing_does_no_work() -> None:
    code = f"""
import importlib, multiprocessing, os, sys, threading
before, modules = set(os.listdir("/dev/fd")), {sorted(set(MODULES) - {"__main__"})!r}
for module in modules:
    importlib.import_module("chunkd" if module == "__init__" else "chunkd." + module)
assert threading.active_count() == 1, threading.enumerate()
assert not multiprocessing.active_children()
assert set(os.listdir("/dev/fd")) == before
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_too_long(module: str) -> None:
    lines = len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines())
    most, _ = LONG.get(module, (MOST_LINES, ""))
    assert lines <= most, f"{module} has {lines} lines: what of it is a thing of its own?"
    assert module not in LONG or lines > MOST_LINES, f"{module} is short again, take it out of LONG"
