"""Runs the fuzz targets: those in C under libFuzzer, those in Python under atheris, which has its own libFuzzer.

By hand: `python tests/fuzz/fuzzing.py TARGET CORPUS [FLAGS OF LIBFUZZER]`. TARGET is one of TARGETS, and CORPUS a
folder that is made if need be; `-max_total_time=600` is a useful flag, and `-help=1` prints the others. What is found
is left in the current folder, as a file that is tried alone when it is named in place of CORPUS.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SOURCE = REPOSITORY / "cgear.c"
TARGETS = ("bolt", "cgear", "crules", "decode", "manifest", "records", "tar")
IN_C = ("cgear", "crules")
# A step of libFuzzer that takes longer than this is a finding, and so is a process that grows beyond this. atheris
# itself keeps some 300 bytes of each execution.
TIMEOUT_S = 30
MOST_MIB = 4096
MOST_INPUT_BYTES = {
    "bolt": 16384,
    "cgear": 512,
    "crules": 256,
    "decode": 4096,
    "manifest": 2048,
    "records": 1024,
    "tar": 4096,
}

Mutate = Callable[[bytes, int, int], bytes]


def kernels(source: str) -> list[str]:
    """The functions in a cgear.c that cut as `cgear_cut_plain` does, by their parameters."""
    return re.findall(
        r"\b(\w+)\(const uint64_t \*gear, size_t min_bytes, unsigned mask_bits, size_t max_bytes,", source
    )


def build(program: Path, source: Path) -> None:
    """The fuzz target of `source`, a cgear.c or crules.c, under the sanitizers. Needs clang, with its compiler-rt."""
    named = [f"-DKERNELS={', '.join(kernels(source.read_text()))}"] if source.stem == "cgear" else []
    subprocess.run(
        [
            "clang", "-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O2",
            "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
            # A call for each byte's comparison, of which libFuzzer learns nothing here: a fifth of the executions.
            "-fno-sanitize-coverage=trace-cmp",
            *named, f"-I{source.parent}", "-o", program, HERE / f"fuzz_{source.stem}.c",
        ],
        check=True,
    )  # fmt: skip


def command(target: str, folder: Path, corpus: Path, *flags: str, source: Path | None = None) -> list[str]:
    """What fuzzes a target. A program in C is built in `folder`, of `source`; findings are left there too."""
    if target in IN_C:
        build(folder / f"fuzz_{target}", source or REPOSITORY / f"{target}.c")
        program = [str(folder / f"fuzz_{target}")]
    else:
        program = [sys.executable, str(HERE / f"fuzz_{target}.py")]
    return [
        *program, str(corpus), f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MOST_MIB}",
        f"-max_len={MOST_INPUT_BYTES[target]}", "-len_control=0", f"-artifact_prefix={folder}/",
        "-print_final_stats=1", *flags,
    ]  # fmt: skip


def environ() -> dict[str, str]:
    """For a command: the tests' own modules are found."""
    path = os.pathsep.join(filter(None, (str(HERE.parent), str(HERE.parent / "sweep"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


# --- for the targets in Python --------------------------------------------------------------------------------------


def instrumented() -> contextlib.AbstractContextManager[object]:
    """Within it imports are instrumented for coverage, when the program is one that fuzzes."""
    if not Path(sys.argv[0]).name.startswith("fuzz_"):
        return contextlib.nullcontext()
    import atheris

    manager: contextlib.AbstractContextManager[object] = atheris.instrument_imports(include=["chunkd"])
    return manager


def run(
    argv: Sequence[str], check: Callable[[bytes], None], seeds: Sequence[bytes], mutate: Mutate | None = None
) -> None:
    """Fuzz as the arguments say, a folder for the corpus first, into which the seeds go. Ends the process."""
    import atheris

    corpus = Path(argv[1])
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    # What the coverage of Python alone does not tell apart is kept all the same.
    atheris.Setup([*argv, "-keep_seed=1"], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(TARGETS)}}} CORPUS [FLAGS OF LIBFUZZER]")
    given = Path(sys.argv[2])
    if not given.is_file():
        given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as made_in:
        words = command(sys.argv[1], Path(made_in), given, "-artifact_prefix=./", *sys.argv[3:])
        sys.exit(subprocess.run(words, env=environ()).returncode)
