"""The order of the house, read from its imports: wings know only those below them, and each dependency has few doors.

`python tests/test_layering.py` prints the wings with their lines and the imports between them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "daemon" / "chunkd"

# From the top down: a wing imports from the levels below its own, never from its own level or from one above.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("service", "report", "cluster"),
    ("__init__",),
    ("client",),
    ("pulls", "fleet", "sweep"),
    ("images",),
    ("check", "queries", "ingest"),
    ("index", "worker", "names", "objects"),
    ("settings", "figures", "sources", "chunkers"),
    ("api",),
    ("model", "parameters", "replies", "untrusted_json"),
    ("errors",),
)
LEVEL_OF = {wing: level for level, wings in enumerate(LEVELS) for wing in wings}

# What a wing must not know though it may stand above it, as its `__init__` says.
FORBIDDEN: dict[str, set[str]] = {
    "api": {"index"},
    "check": {"chunkd.index.chunks.table", "chunkd.index.chunks.growth"},
    "cluster": {"ingest", "lmdb", "service"},
    "client": {"api", "worker", "sources", "chunkers"},
    "fleet": {"ingest", "lmdb", "service", "sources"},
    "images": {"ingest", "lmdb", "service", "sources"},
    "names": {"index", "lmdb"},
    "objects": {"index", "lmdb", "settings"},
    "pulls": {"ingest", "lmdb", "service", "sources"},
    "report": {"worker", "sources", "ingest", "service"},
    "sweep": {"ingest", "service"},
    "worker": {"sources", "settings", "lmdb"},
}

# Who may import what is not of the standard library. A dependency that is not named here is new: that is a decision.
DOORS: dict[str, set[str]] = {
    "_cgear": {"chunkers.gear"},
    "_crules": {"chunkers.rules"},
    "backports": {"pulls.log_files", "worker.decode", "worker.recompress"},
    "blake3": {"chunkers.chunker", "chunkers.gear", "sweep.tracing"},
    "click": {
        *("cli.diff", "cli.fleet", "cli.images", "cli.lists", "cli.main", "cli.options", "cli.output", "cli.replay"),
        *("cli.report", "cli.sweep", "cli.updates", "cli.where"),
    },
    "cryptography": {"fleet.key"},
    # Of the standard library from Python 3.14 on.
    "compression": {"pulls.log_files", "worker.decode", "worker.recompress"},
    "dask": {"cluster.engine"},
    "distributed": {"cluster.engine"},
    "duckdb": {"fleet.tables"},
    "isal": {"worker.decode"},
    "lmdb": {
        *("check.check", "check.read_again", "check.recount", "check.recount_figures", "check.recount_places"),
        *("index.chunks.lookup", "index.chunks.measured", "index.chunks.table"),
        *("index.index", "index.storage.environment", "index.storage.page_audit", "index.storage.upgrade"),
        *("ingest.diff", "queries.history", "queries.layer_shares", "queries.read"),
    },
    "matplotlib": {"report.plots"},
    "obstore": {"objects.store"},
    "numpy": {
        *("check.check", "check.recount", "check.recount_figures", "check.repair"),
        *("index.blocks", "index.chunks.entries", "index.chunks.growth", "index.chunks.lookup"),
        *("index.chunks.measured", "index.chunks.table"),
        *("index.compaction", "index.storage.upgrade", "ingest.diff", "queries.layer_shares"),
        "service.decoded_diff",
        *("fleet.images", "fleet.index_recipes", "fleet.rows", "fleet.segment", "fleet.tables"),
        *("images.atoms", "images.columns", "images.moves", "images.read", "images.similarity"),
        *("pulls.clients", "pulls.layer_classes", "pulls.replay"),
        *("sweep.causes", "sweep.groups", "sweep.sums", "sweep.updates"),
    },
    "prometheus_client": {"service.openmetrics"},
    "psutil": {"worker.priority"},
    "pyarrow": {"fleet.export", "fleet.rows", "fleet.segment", "fleet.snapshot", "fleet.tables"},
    "rich": {"cli.progress"},
    "watchdog": {"sources.watch"},
}

# Who may make threads and worker processes.
THREADS = {"cluster.engine", "service.daemon", "api.server", "worker.pipeline"}
PROCESSES = {"cluster.engine", "worker.spawn", "index.storage.environment", "sources.filesystems"}
FORKS = {"worker.starter"}  # which has one thread, and no LMDB

HEAVY = {
    "blake3",
    "chunkd.chunkers._cgear",
    "chunkd.chunkers._crules",
    "cryptography",
    "distributed",
    "duckdb",
    "isal",
    "lmdb",
    "matplotlib",
    "numpy",
    "obstore",
    "prometheus_client",
    "psutil",
    "pyarrow",
    "rich",
    "watchdog",
}
# What is imported where speed or safety counts, and what must not come with it.
LIGHT: dict[str, set[str]] = {
    # `chunkd --help`, and `chunkd stats` where a daemon answers; types of replies are for the daemon and for checkers
    "cli.main": HEAVY | {"http.client", "chunkd.replies.figures"},
    # `chunkd scan` where none does
    "cli.scan": {
        *("asyncio", "chunkd.cluster", "chunkd.objects.bucket", "cryptography", "distributed", "duckdb", "http.client"),
        *("multiprocessing", "numpy", "obstore", "pyarrow", "watchdog"),
    },
    "queries.read": HEAVY - {"lmdb"},  # `chunkd stats` where none does
    "worker.starter": HEAVY,  # an idle daemon has one
    "sweep.tracing": HEAVY - {"blake3", "chunkd.chunkers._cgear", "isal", "psutil"},  # as that of a worker
    "worker.spawn": HEAVY,  # the daemon's part of starting workers
    "worker.examine": HEAVY - {"blake3", "chunkd.chunkers._cgear", "isal"},  # reads hostile bytes, has no index
}

MOST_LINES_A_MODULE = 400
MOST_LINES_A_WING = 3000


@dataclass
class Imports:
    """The modules of chunkd that one imports, and the packages, but for those that annotations alone need."""

    own: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def name_of(path: Path) -> str:
    """`index.chunks.table`; of a folder's `__init__` the folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


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
            wholes = [f"{module}.{alias.name}" for alias in node.names]
            names = [whole if whole.removeprefix("chunkd.") in PATHS else module for whole in wholes]
        for name in names:
            package, _, rest = name.partition(".")
            kernel = rest.partition(".")[2].partition(".")[0]
            if package == "chunkd" and kernel in ("_cgear", "_crules"):
                found.others.add(kernel)
            elif package == "chunkd":
                found.own.add(rest or "__init__")
            elif not typing_only and (package not in sys.stdlib_module_names or package in DOORS):
                found.others.add(package)
    return found


MODULES = {name: imports_of(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}


def wing_of(module: str) -> str:
    return module.partition(".")[0]


def lines_of(wing: str) -> int:
    return sum(len(path.read_text().splitlines()) for name, path in PATHS.items() if wing_of(name) == wing)


def between_wings() -> dict[tuple[str, str], int]:
    """How many modules of one wing import from another, for each pair."""
    found = {(wing_of(name), wing_of(own), name) for name, imports in MODULES.items() for own in imports.own}
    return Counter((above, below) for above, below, _ in found if above != below)


def test_the_reading_of_imports_sees_them_all() -> None:
    found = imports_of(
        "import lmdb, os\nfrom chunkd import __version__\nfrom chunkd.index import records\n"
        "from chunkd.model import Blob\nfrom chunkd.chunkers._cgear import lib\n"
        "try:\n    from isal import igzip\nexcept ImportError: pass\n"
        "def late():\n    if late:\n        import numpy.typing\n"
        "if TYPE_CHECKING:\n    from chunkd.ingest.writer import Ingest\n    import rich\n"
    )
    own = {"__init__", "index.records", "model", "ingest.writer"}
    assert found == Imports(own, {"lmdb", "_cgear", "isal", "numpy"})
    assert len(MODULES) > 60


def test_every_wing_has_its_level() -> None:
    assert {wing_of(name) for name in MODULES} == set(LEVEL_OF)
    assert len(LEVEL_OF) == sum(map(len, LEVELS)), "a wing stands on two levels"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module: str) -> None:
    wing = wing_of(module)
    upwards = {own for own in MODULES[module].own if wing_of(own) != wing and LEVEL_OF[wing_of(own)] <= LEVEL_OF[wing]}
    assert not upwards, f"{module} imports {sorted(upwards)}, which stand(s) no lower in LEVELS"


def test_no_wing_has_a_cycle() -> None:
    """Within a wing a module may import another, as long as there is an order."""
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for own in MODULES[module].own & set(MODULES):
                visit(own, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("wing", sorted(FORBIDDEN))
def test_a_wing_does_not_know_what_it_must_not(wing: str) -> None:
    for module, imports in MODULES.items():
        if wing_of(module) == wing:
            known = imports.others | {wing_of(own) for own in imports.own} | {f"chunkd.{own}" for own in imports.own}
            assert not known & FORBIDDEN[wing], module


@pytest.mark.parametrize("wing", sorted({wing_of(name) for name in MODULES} - {"__init__", "__main__"}))
def test_a_wing_says_what_it_is_and_what_it_must_not_know(wing: str) -> None:
    path = PACKAGE / wing / "__init__.py"
    if path.exists():
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "must" in said or "may" in said, path
        assert len(said.splitlines()) <= 3, path


def test_each_dependency_comes_in_by_its_doors() -> None:
    doors: dict[str, set[str]] = {}
    for module, imports in MODULES.items():
        for package in imports.others:
            doors.setdefault(package, set()).add(module)
    assert doors == DOORS


def makers(*names: str) -> set[str]:
    """The modules that call one of these: `threading.Thread`, say."""
    return {
        module
        for module, path in PATHS.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    }


def test_threads_and_processes_are_made_in_few_places() -> None:
    assert makers("threading.Thread", "Thread", "ThreadingMixIn", "futures.ThreadPoolExecutor") <= THREADS
    assert makers("subprocess.Popen", "subprocess.run", "Process", "multiprocessing.Process") <= PROCESSES
    assert makers("os.fork") == FORKS


@pytest.mark.parametrize("wing", ["figures", "model", "chunkers", "images"])
def test_what_does_no_io_imports_nothing_that_does(wing: str) -> None:
    for module, path in PATHS.items():
        if wing_of(module) == wing:
            names = {node.names[0].name for node, _ in statements(ast.parse(path.read_text())) if node.names}
            assert not names & {"os", "socket", "subprocess", "pathlib", "Path", "shutil"}, module


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
    lines = len(PATHS[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES_A_MODULE, f"{module} has {lines} lines: where does its meaning part?"


@pytest.mark.parametrize("wing", sorted(LEVEL_OF))
def test_no_wing_is_too_large(wing: str) -> None:
    assert lines_of(wing) <= MOST_LINES_A_WING


if __name__ == "__main__":
    for level, wings in enumerate(LEVELS):
        for wing in wings:
            below = ", ".join(
                f"{to} {count}" for (above, to), count in sorted(between_wings().items()) if above == wing
            )
            print(f"{level:>2}  {wing:<10} {lines_of(wing):>6} lines  imports {below or 'nothing'}")
    print(f"{sum(map(lines_of, LEVEL_OF)):,} lines, {len(MODULES)} modules, {len(between_wings())} pairs of wings")
