"""Tries the installed chunkd on this platform, with no library but its own: every kernel against the golden vectors,
one scan against the oracle, and the files of completion.

    python tests/try_wheel.py        in the environment in which chunkd is installed
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import subprocess
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import oracle
from chunkd.chunkers.gear import Chunker, kernels
from chunkd.model import ChunkParams

COMPLETION = (
    "bash-completion/completions/chunkd",
    "zsh/site-functions/_chunkd",
    "fish/vendor_completions.d/chunkd.fish",
)
# Longer than any stretch that a kernel takes at once, and short enough for the oracle.
CASE = "random-1MiB-42"


def try_kernels() -> None:
    for kernel in kernels():
        for name, case in oracle.CASES.items():
            chunker = Chunker(ChunkParams(), kernel)
            chunker.feed(oracle.case_data(name))
            found = hashlib.sha256(chunker.finish().lengths).hexdigest()
            assert found == case["lengths_sha256"], f"the kernel {kernel} cuts {name} differently"


def try_scan(folder: Path) -> None:
    layer = oracle.case_data(CASE)
    stored = gzip.compress(layer, mtime=0)
    cache = folder / "cache"
    cache.mkdir()
    (cache / hashlib.sha256(stored).hexdigest()).write_bytes(stored)
    program = Path(sysconfig.get_path("scripts")) / "chunkd"
    words: list[str | Path] = [program, "scan", "--json", "--quiet", "--state", folder / "state", cache]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures, expected = json.loads(done.stdout), oracle.figures([layer], [len(stored)])
    assert {name: figures[name] for name in expected} == expected


def try_completion() -> None:
    share = Path(sysconfig.get_path("data")) / "share"
    assert [name for name in COMPLETION if not (share / name).is_file()] == []


def main() -> None:
    try_kernels()
    with tempfile.TemporaryDirectory() as folder:
        try_scan(Path(folder))
    try_completion()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"chunkd {metadata.version('chunkd')} works under {python} on {sysconfig.get_platform()}: "
          f"kernels {', '.join(kernels())}, {len(oracle.CASES)} vectors each, one scan, completion")  # fmt: skip


if __name__ == "__main__":
    main()
