"""The library that is preloaded into a process (journal.c): made once a run, and the settings that it takes."""

from __future__ import annotations

import atexit
import errno
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("journal.c")


@functools.cache
def library() -> Path:
    folder = tempfile.mkdtemp(prefix="chunkd-preload-")
    atexit.register(shutil.rmtree, folder)
    built = Path(folder) / "journal.so"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, "-o", str(built), str(SOURCE), "-ldl"], check=True)
    return built


@dataclass(frozen=True)
class Preload:
    """For a process that changes files below `root`. `folder` takes the journal and the faults."""

    folder: Path
    root: Path

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def faults(self) -> Path:
        return self.folder / "faults"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(library()),
            "JOURNAL_ROOT": str(self.root),
            "JOURNAL": str(self.journal),
            "FAULTS": str(self.faults),
        }

    def fail(self, call: str, end_of_path: str, number: int = errno.EIO) -> None:
        """From now on each such call (read, write, meta, sync, list) on a path with this end fails, and no other."""
        aside = self.faults.with_suffix(".new")
        aside.write_text(f"{call} {number} {end_of_path}\n")
        aside.rename(self.faults)

    def heal(self) -> None:
        self.faults.unlink(missing_ok=True)
