"""The fuzz targets of tests/fuzz for a short while each, and proof that they see a fault where there is one."""

from __future__ import annotations

import base64
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fuzzing
from conftest import Tell
from counts import share_of

# A short run: some ten seconds each on a machine with nothing else to do.
EXECUTIONS = {
    "bolt": share_of(20_000, 4000), "cgear": share_of(5000, 1000), "crules": share_of(50_000, 10_000),
    "decode": share_of(15_000, 3000), "manifest": share_of(50_000, 10_000), "records": share_of(100_000, 20_000),
    "tar": share_of(10_000, 2000),
}  # fmt: skip
SOURCE = fuzzing.SOURCE.read_text()


def fuzzed(target: str, folder: Path, *flags: str, source: Path | None = None) -> tuple[int, str]:
    """The exit code and all that was printed; skips the test where its fuzzer is not there."""
    if target in fuzzing.IN_C and not shutil.which("clang"):
        pytest.skip("clang is not installed (Debian packages clang and libclang-rt-dev)")
    if target not in fuzzing.IN_C and not importlib.util.find_spec("atheris"):
        pytest.skip("atheris is not installed: PyPI has it built for Linux on x86-64 only")
    corpus = folder / "corpus"
    corpus.mkdir()
    done = subprocess.run(
        fuzzing.command(target, folder, corpus, *flags, source=source),
        env=fuzzing.environ(), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="replace")


def executions(printed: str) -> int:
    return int(re.findall(r"stat::number_of_executed_units: (\d+)", printed)[-1])


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_nothing_is_found(target: str, tmp_path: Path, tell: Tell, seed: int) -> None:
    code, printed = fuzzed(target, tmp_path, f"-runs={EXECUTIONS[target]}", f"-seed={seed or 1}")
    inputs = [base64.b85encode(path.read_bytes()) for path in tmp_path.glob("*-*") if path.is_file()]
    assert code == 0, f"{printed[-8000:]}\nin base 85: {inputs}"
    assert executions(printed) >= EXECUTIONS[target]
    tell(f"{target}: {executions(printed):,} executions")


def test_every_kernel_is_fuzzed() -> None:
    declared = (fuzzing.REPOSITORY / "cffi_build" / "cgear.cdef").read_text()
    assert sorted(fuzzing.kernels(SOURCE)) == sorted(re.findall(r"ptrdiff_t (\w+)\(", declared))


FAULTS = {
    "warm-up one byte short": ("const size_t skipped = min_bytes - mask_bits;", "- mask_bits;", "- mask_bits + 1;"),
    "a hash not left behind": ("    *hash = h;\n    *length = n - begin;\n", "    *hash = h;\n", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_found(fault: str, tmp_path: Path) -> None:
    line, before, after = FAULTS[fault]
    assert SOURCE.count(line) == 1, "cgear.c has changed its shape: change this fault with it"
    source = tmp_path / "cgear.c"
    source.write_text(SOURCE.replace(line, line.replace(before, after)))
    code, printed = fuzzed("cgear", tmp_path, "-runs=50000", "-seed=1", source=source)
    assert code != 0
    assert "a kernel differs from the plain loop" in printed


def test_a_fault_in_a_rule_is_found(tmp_path: Path) -> None:
    text = (fuzzing.REPOSITORY / "crules.c").read_text()
    line = "? left - window : 0;"
    assert text.count(line) == 1, "crules.c has changed its shape: change this fault with it"
    source = tmp_path / "crules.c"
    source.write_text(text.replace(line, "? left - window + 1 : 0;"))
    code, printed = fuzzed("crules", tmp_path, "-runs=500000", "-seed=1", source=source)
    assert code != 0
    assert "a kernel differs from its definition" in printed
