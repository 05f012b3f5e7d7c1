"""A folder whose listing breaks off."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def breaking(folder: Path, after: int) -> Iterator[None]:
    """Listing that folder fails after so many entries, as on a bad disk."""
    real = os.scandir

    class Entries:
        def __init__(self, path: bytes) -> None:
            self.path, self.entries = path, real(path)

        def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
            if not os.path.samefile(self.path, folder):
                return self.entries
            return self._some()

        def _some(self) -> Iterator[os.DirEntry[bytes]]:
            for number, entry in enumerate(self.entries):
                if number == after:
                    raise OSError(5, "Input/output error")
                yield entry

        def __exit__(self, *_: object) -> None:
            self.entries.close()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "scandir", Entries)
        yield
