"""Completion: the files that the package installs are those that click makes, and shells complete by them.

WRITE_COMPLETION=1 python -m pytest tests/cli/test_completion.py     writes them anew
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from chunkd.cli.main import main
from daemon import PATIENCE_S, REPOSITORY

FILES = {"bash": "bash/chunkd", "zsh": "zsh/_chunkd", "fish": "fish/chunkd.fish"}
# Where each shell looks, below the prefix of an installation.
FOLDERS = {
    "bash": "share/bash-completion/completions",
    "zsh": "share/zsh/site-functions",
    "fish": "share/fish/vendor_completions.d",
}


def source(shell: str) -> str:
    made = get_completion_class(shell)
    assert made is not None
    return made(main, {}, "chunkd", "_CHUNKD_COMPLETE").source().rstrip() + "\n"


@pytest.mark.parametrize("shell", FILES)
def test_the_files_are_those_that_click_makes(shell: str) -> None:
    shipped = REPOSITORY / "completion" / FILES[shell]
    if os.environ.get("WRITE_COMPLETION"):
        shipped.write_text(source(shell))
    assert shipped.read_text() == source(shell), "to write the files anew: WRITE_COMPLETION=1"


def test_each_is_installed_where_its_shell_looks() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    installed = project["tool"]["setuptools"]["data-files"]
    assert installed == {FOLDERS[shell]: [f"completion/{name}"] for shell, name in FILES.items()}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a shell that finds this chunkd and no other, and no start-up files."""
    found = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    return found | {"LC_ALL": "C.UTF-8"}


def typed(words: list[str], keys: bytes, environment: dict[str, str], cwd: Path, until: bytes) -> str:
    """What an interactive shell on a terminal shows once the keys were typed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=cwd,
                               start_new_session=True)  # fmt: skip
    os.close(slave)
    shown, left, deadline = b"", keys.split(b"|"), time.monotonic() + PATIENCE_S
    try:
        while until not in shown:
            assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], shown
            shown += os.read(master, 4096)
            # Each part is typed at a prompt, or once the part before it has been completed.
            if left and shown.endswith((b"ready> ", b"histogram ")):
                os.write(master, left.pop(0))
        return shown.decode()
    finally:
        os.close(master)
        process.kill()
        process.wait()


def test_bash_completes_a_typed_command(environment: dict[str, str], tmp_path: Path) -> None:
    file = REPOSITORY / "completion/bash/chunkd"
    keys = f". {file}\n|chunkd histog\t|\x01echo completed: \n".encode()
    shown = typed(["bash", "--norc", "--noprofile", "-i"], keys, environment | {"PS1": "ready> "}, tmp_path,
                  b"\ncompleted: chunkd histogram")  # fmt: skip
    assert "chunkd histogram" in shown


def completed(shell: str, script: str, environment: dict[str, str]) -> set[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed (Debian: apt install {shell})")
    done = subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return {line.partition("\t")[0] for line in done.stdout.splitlines() if line}


def in_bash(line: list[str], environment: dict[str, str]) -> set[str]:
    words = " ".join(f"'{word}'" for word in line)
    script = f"""
        compopt() {{ printf '%s ' "$@"; echo; }}
        . {REPOSITORY}/completion/bash/chunkd
        COMP_WORDS=({words}); COMP_CWORD={len(line) - 1}
        _chunkd_completion chunkd; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return completed("bash", script, environment)


def test_bash_completes_commands_flags_and_paths(environment: dict[str, str]) -> None:
    assert in_bash(["chunkd", ""], environment) == set(main.commands)
    assert in_bash(["chunkd", "sta"], environment) == {"stats"}
    assert in_bash(["chunkd", "scan", "--re"], environment) == {
        "--remeasure", "--replace", "--retry-failed", "--read-bytes-per-s",
    }  # fmt: skip
    for line in (["scan", "/va"], ["scan", "--state", "/va"], ["replay", "acc"], ["report", "-o", "re"]):
        assert in_bash(["chunkd", *line], environment) == {"-o default "}, line


def test_fish_completes_commands(environment: dict[str, str]) -> None:
    script = f"source {REPOSITORY}/completion/fish/chunkd.fish; complete -C 'chunkd hist'"
    assert completed("fish", script, environment) == {"histogram", "history"}


def test_zsh_loads_the_file_and_completes_commands(environment: dict[str, str]) -> None:
    # Its completion runs only in its line editor: here the two builtins that take the results print them.
    script = f"""
        fpath=({REPOSITORY}/completion/zsh $fpath); autoload -Uz _chunkd
        compadd() {{ print -l -- $completions; }}
        _describe() {{ print -l -- ${{completions_with_descriptions%%:*}}; }}
        words=(chunkd hist); CURRENT=2; _chunkd
    """
    assert completed("zsh", script, environment) == {"histogram", "history"}
