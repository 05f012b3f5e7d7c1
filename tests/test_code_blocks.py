"""Every block of code in README.md, CONTRIBUTING.md and docs/ does what it shows.

Blocks of commands run, a page's in order, with bash. What they name below /etc, /opt, /var and the like lies below a
folder of the test. chunkd, curl, install, sed and so on are the real ones. `STUBS` stands for what can't run here or
would take minutes. Each stub accepts the calls of these pages and no others, and does what chunkd would see of it.
Where a block shows output, it is compared with the real one. Settings and other files are read by what reads them.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from answering import short_directory
from blobs import gz, layer, write_blob
from chunkd.cli.main import main
from chunkd.names.names_file import read_names_file
from chunkd.settings.config import effective
from chunkd.settings.resolve import Resolved
from daemon import BRISK, PATIENCE_S, REPOSITORY, npm_layers

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
}
# What blocks of commands may name of the system; the slash before it is where a word begins.
SYSTEM = re.compile(r"(?<![\w.~$:\\/-])(?=/(?:etc|opt|var|srv|data|run|shared|tmp|usr/lib/sysusers\.d)/)")
CACHES = (
    "var/lib/registry", "var/lib/containerd", "srv/other-registry", "srv/zot", "srv/quay/storage", "data/registry",
    "var/opt/gitlab/gitlab-rails/shared/registry", "var/lib/docker/volumes/VOLUME/_data/lib/containerd",
    "home/registry", "home/Library/Application Support/com.apple.container/content", "clone/DIR",
)  # fmt: skip
FOLDERS = ("etc/systemd/system", "etc/chunkd", "run/chunkd", "tmp", "var/lib/prometheus/node-exporter", "bin", "shared")

# The tests of buckets and of clusters have these. Here the arguments are parsed; a scan into a store takes a folder.
CHUNKD = r"""
real() { exec "$PYTHON" -m chunkd "$@"; }
parsed() { exec "$PYTHON" -c 'import click, sys
from chunkd.cli.main import main
main.commands[sys.argv[1]].make_context(sys.argv[1], sys.argv[2:], parent=click.Context(main))' "$@"; }
case "$*" in
*s3://*--engine*) parsed "$@";;
*s3://*--store*) real "${@/s3:\/\/registry/$ROOT/var/lib/registry}";;
*s3://*) parsed "$@";;
run*) ( real "$@" ) >>"$ROOT/log" 2>&1 & echo $! >>"$ROOT/pids"
      for _ in $(seq 600); do [ -S "$CHUNKD_SOCKET" ] && exit 0; sleep 0.1; done; exit 1;;
"stats --watch") timeout --signal=INT 1 "$PYTHON" -m chunkd stats --watch || [ $? = 124 ];;
*) real "$@";;
esac
"""
INSTALL = """
case "$*" in
"install ." | "install .["*"]" | "install chunkd["*"]" | "install pre-commit") ;;
*) echo "$0 $*" >&2; exit 64;;
esac
"""
UNIT = """
test -f "$unit" && grep -q "^ExecStart=.*chunkd run" "$unit"
case "$*" in
daemon-reload | "restart chunkd") ;;
"enable --now chunkd-export.timer") for kind in timer service; do test -f "${unit%.service}-export.$kind"; done;;
"enable --now chunkd") CHUNKD_CONFIG="$config" chunkd run;;
*) echo "systemctl $*" >&2; exit 64;;
esac
"""
STUBS = {
    "chunkd": CHUNKD,
    "pip": INSTALL,
    "pipx": INSTALL,
    "python3": """
        case "$*" in "-m venv "*) ;; *) exec "$PYTHON" "$@";; esac
        mkdir -p "$3/bin"; ln -s "$ROOT/bin/chunkd" "$ROOT/bin/pip" "$3/bin"
        """,
    "systemctl": 'unit="$ROOT/etc/systemd/system/chunkd.service"; config="$ROOT/etc/chunkd/chunkd.toml"\n'
    'if [ "$1" = --user ]; then shift\n'
    'unit="$HOME/.config/systemd/user/chunkd.service"; config="$HOME/.config/chunkd/chunkd.toml"; fi\n' + UNIT,
    "systemd-sysusers": 'grep -q "^u chunkd" "$ROOT/usr/lib/sysusers.d/chunkd.conf"',
    "launchctl": """
        [ "$1 $2" = "bootstrap gui/$(id -u)" ]
        "$PYTHON" -c 'import plistlib, sys; plistlib.load(open(sys.argv[1], "rb"))["ProgramArguments"]' "$3"
        if grep -q YOU "$3"; then exit 64; fi
        CHUNKD_CONFIG="$HOME/Library/Application Support/chunkd/chunkd.toml" chunkd run
        """,
    "podman": """
        case "$1 $2" in
        "run -d") [[ "$*" == *:/cache:ro* && "$*" == *:/var/lib/chunkd* && "${@: -1}" == chunkd ]]
                  CHUNKD_CACHES="$ROOT/var/lib/registry" chunkd run;;
        "run --rm") [[ "$*" == *:/cache:ro* && "$*" == *"/var/lib/chunkd chunkd scan" ]]
                  CHUNKD_CACHES="$ROOT/var/lib/registry" chunkd scan;;
        "exec watcher") shift 2; "$@";;
        "build --tag") [ "$3 $4" = "chunkd ." ] && test -f Containerfile;;
        *) exit 64;;
        esac
        """,
    "docker": '[ "$1 $2" = "inspect --format" ] && echo "/var /var/lib/docker/volumes/VOLUME/_data"',
    "crane": """
        case "$*" in
        "catalog registry.example.com") echo shop/api;;
        "ls registry.example.com/shop/api") echo v41;;
        "digest registry.example.com/shop/api:v41") echo "sha256:$(printf '7%.0s' {1..64})";;
        *) exit 64;;
        esac
        """,
    "sbatch": '[ "$*" = "--wait shards.sbatch" ]',
    "sudo": 'exec "$@"',
    "apt": '[ "$1" = install ]',
    # Says what it would do, and fails for a target that is not there.
    "make": 'exec /usr/bin/make --dry-run --directory="$REPOSITORY" "$@" >/dev/null',
}


class Block(NamedTuple):
    page: str
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SESSIONS = [block for block in BLOCKS if block.text.startswith("$ ")]
# Not commands, each with what reads it.
FILES = [block for block in BLOCKS if block.language not in ("", "sh") or "\tsha256:" in block.text]
COMMANDS = [block for block in BLOCKS if block not in SESSIONS and block not in FILES]


# --- commands


@pytest.fixture
def machine() -> Iterator[Path]:
    """A folder that stands for the root of a machine, with a clone in it, and a layer in each cache that is named."""
    with short_directory() as root:
        for name in (*FOLDERS, *CACHES):
            (root / name).mkdir(parents=True)
        for name in CACHES:
            write_blob(root / name, gz(layer(1)))
        for path in REPOSITORY.iterdir():
            (root / "clone" / path.name).symlink_to(path)
        for name, script in STUBS.items():
            stub = root / "bin" / name
            stub.write_text(f"#!/bin/bash\nset -eu\n{script}\n")
            stub.chmod(0o755)
        try:
            yield root
        finally:
            pids = root / "pids"
            for pid in pids.read_text().split() if pids.exists() else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)


def run(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "ROOT": str(root), "REPOSITORY": str(REPOSITORY), "PYTHON": sys.executable, "HOME": str(root / "home"),
        "PATH": f"{root}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
        "CHUNKD_STATE_DIR": str(root / "var/lib/chunkd"), "CHUNKD_SOCKET": str(root / "run/chunkd/chunkd.sock"),
        **BRISK,
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=root / "clone", env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip


def below(root: Path, script: str) -> str:
    return SYSTEM.sub(str(root), script)


def figures_are_there(root: Path) -> None:
    assert "layers              1" in run(root, "chunkd stats").stdout


def the_units_are_installed(root: Path) -> None:
    figures_are_there(root)
    assert (root / "etc/systemd/system/chunkd.service").read_text() == (
        REPOSITORY / "systemd/chunkd.service"
    ).read_text()


def names_of(path: Path) -> tuple[object, ...]:
    names = read_names_file(str(path)).names
    assert names is not None
    return names


def names_are_read(root: Path) -> None:
    assert len(names_of(root / "etc/chunkd/names")) == 1


def metrics_are_there(root: Path) -> None:
    assert "\nchunkd_layers 1" in (root / "var/lib/prometheus/node-exporter/chunkd.prom").read_text()


# Pages for machines on which chunkd is installed, and whose commands ask for what a scan has found.
INDEXED = {"docs/commands.md", "docs/fleet.md"}
GATE_HOLDS = 5
AFTER: dict[str, Callable[[Path], None]] = {
    "README.md": the_units_are_installed,
    "docs/getting-started.md": figures_are_there,
    "docs/prometheus.md": metrics_are_there,
    "docs/service.md": the_units_are_installed,
    "docs/stores/index.md": names_are_read,
}


@pytest.mark.parametrize("page", sorted({block.page for block in COMMANDS}))
def test_the_commands_run(page: str, machine: Path) -> None:
    blocks = [block for block in COMMANDS if block.page == page]
    if any("curl" in block.text for block in blocks):
        counted = (
            f"chunkd run {machine}/var/lib/registry && until chunkd stats | grep -q '^layers  *1$'; do sleep 0.1; done"
        )
        assert run(machine, counted).returncode == 0
    if page in INDEXED:
        installed = f"python3 -m venv {machine}/opt/chunkd && chunkd scan --quiet {machine}/var/lib/registry"
        assert run(machine, installed).returncode == 0
    for block in blocks:
        done = run(machine, below(machine, block.text))
        assert done.returncode in {0, GATE_HOLDS if "--fail-if" in block.text else 0}, (
            f"{block.text}\n{done.stdout}\n{done.stderr}"
        )
    if page in AFTER:
        AFTER[page](machine)


def test_a_command_that_is_not_there_would_be_seen(machine: Path) -> None:
    for wrong in (
        "systemctl enable chunkd",
        "chunkd stat",
        "chunkd scan --al",
        "podman pull x",
        "make tset",
        "nothing",
    ):
        assert run(machine, wrong).returncode != 0, wrong


# --- sessions: a command, and what it prints


def shape(line: str) -> str:
    """A line without its figures: these are of another day's files."""
    line = re.sub(r"^  in [\w/.-]+:\w+(, [\w/.-]+:\w+)*$", "  in IMAGES", line)
    line = re.sub(r"/[\w./-]+", "PATH", line)
    line = re.sub(r" ± [\d.]+", "", line)
    line = re.sub(r"(?<= )-?\d[\d,.:TZ-]*|\d[\d,.:TZ-]*", "0", line)
    return re.sub(r"\s+", " ", re.sub(r"0 ((?:[KMGT]i)?B|bytes)\b", "0 B", line)).strip()


def test_the_figures_of_the_readme_are_those_of_the_npm_layers(machine: Path) -> None:
    (block,) = [block for block in SESSIONS if block.page == "README.md"]
    command, _, shown = block.text.partition("\n")
    cache = machine / "var/lib/registry"
    for path in [*cache.iterdir()]:
        path.unlink()
    for path in npm_layers():
        shutil.copyfile(path, cache / path.name)
    done = run(machine, below(machine, command.removeprefix("$ ")))
    assert done.stdout.split() == shown.split()


def test_the_demos_output_looks_as_shown(machine: Path) -> None:
    layout, source = machine / "srv/demo", machine / "source"
    for name in ("email", "json", "xml"):
        shutil.copytree(Path(os.__file__).parent / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    words: list[str | Path] = [sys.executable, REPOSITORY / "bench/demo_images.py", layout, source]
    subprocess.run(words, check=True, timeout=PATIENCE_S, stdout=subprocess.DEVNULL)
    started = run(machine, f"chunkd run {layout} && until chunkd images | grep -q demo:v3; do sleep 0.1; done")
    assert started.returncode == 0
    blocks = [block for block in SESSIONS if block.page != "README.md"]
    assert blocks
    for block in blocks:
        command, _, shown = block.text.partition("\n")
        done = run(machine, command.removeprefix("$ "))
        assert done.returncode == 0, done.stderr
        real = {shape(line) for line in done.stdout.splitlines()}
        lines = [line for line in shown.splitlines() if line != "..."]  # which stands for lines that are left out
        assert [line for line in lines if shape(line) not in real] == [], done.stdout


# --- files


def test_settings_are_read_by_chunkd(tmp_path: Path) -> None:
    (block,) = [block for block in FILES if block.page == "docs/settings.md"]
    path = tmp_path / "chunkd.toml"
    path.write_text(block.text)
    config = effective(Resolved({}, {"CHUNKD_CONFIG": str(path), "HOME": str(tmp_path)}), serving=False)
    assert {name: getattr(config, name) for name, source in config.sources.items() if str(path) in source} == {
        "caches": ("/var/lib/registry", "/srv/zot"), "workers": 1, "max_uncompressed_bytes": 64 << 30,
    }  # fmt: skip


def test_the_names_file_is_read_by_chunkd(tmp_path: Path) -> None:
    (block,) = [block for block in FILES if "\tsha256:" in block.text]
    (tmp_path / "names").write_text(block.text)
    assert len(names_of(tmp_path / "names")) == len(block.text.splitlines())


def test_containerds_settings_are_what_keeps_layers() -> None:
    (block,) = [block for block in FILES if block.page == "docs/stores/containerd.md"]
    for plugin in (("io.containerd.grpc.v1.cri", "containerd"), ("io.containerd.cri.v1.images",)):
        text = block.text if len(plugin) == 2 else re.sub(r"^# containerd 2: (.*)\n.*\n", r"\1\n", block.text)
        found = tomllib.loads(text)["plugins"]
        for part in plugin:
            found = found[part]
        assert found == {"discard_unpacked_layers": False}


def test_prometheus_takes_its_settings(tmp_path: Path) -> None:
    (block,) = [block for block in FILES if block.page == "docs/prometheus.md"]
    assert yaml.safe_load(block.text)["scrape_configs"][0]["job_name"] == "chunkd"
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    (tmp_path / "prometheus.yml").write_text(block.text)
    shutil.copyfile(REPOSITORY / "contrib/prometheus-alerts.yml", tmp_path / "prometheus-alerts.yml")
    done = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


# Elsewhere tests run what is here only looked at: tests/client has those of docs/python.md, whose output is text.
READ_ABOVE = {"docs/settings.md", "docs/stores/containerd.md", "docs/prometheus.md", "docs/stores/index.md"}
READERS: dict[str, Callable[[str], object]] = {
    "bash": lambda text: subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=60),
    "ini": lambda text: configparser.RawConfigParser(strict=False).read_string(text),
    "json": json.loads,
    "python": lambda text: compile(text, "block", "exec"),
    "text": str,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}


def test_every_other_file_that_is_shown_is_well_formed() -> None:
    assert {block.page for block in FILES} >= READ_ABOVE
    for block in FILES:
        if block.page not in READ_ABOVE:
            READERS[block.language](block.text)


# --- calls inside of sentences


def calls_in_sentences() -> Iterator[tuple[str, str]]:
    for page, text in PAGES.items():
        for code in re.findall(r"(?<!`)`(chunkd [^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
            # A mention of a command, or of what it takes, is no call.
            if re.search(r"\[|\.\.\.|\bCONDITION\b|--help", code) or len(code.split()) == 2:
                continue
            yield page, code.replace("\\|", "|")


@pytest.mark.parametrize(("page", "call"), sorted(set(calls_in_sentences())))
def test_the_call_can_be_made(page: str, call: str) -> None:
    _, name, *words = shlex.split(re.split(r" (?:\||&&|>|<) ", call)[0])
    try:
        main.commands[name].make_context(name, words, parent=click.Context(main, **main.context_settings))
    except click.UsageError as error:
        pytest.fail(f"{page}: {call}: {error.format_message()}")
