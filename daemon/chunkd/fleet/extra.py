"""What `chunkd[fleet]` installs: no other part of chunkd needs it, and it is imported by the commands that do."""

from __future__ import annotations

import importlib

from chunkd.errors import ChunkdError

PACKAGES = ("cryptography", "duckdb", "pyarrow")


class FleetMissing(ChunkdError):
    def __init__(self, missing: str) -> None:
        super().__init__(
            f"stores: {missing} is not installed; install the packages for them: `pip install 'chunkd[fleet]'`"
        )


def needed() -> None:
    """Called before any other module of this wing is imported. Raises FleetMissing."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise FleetMissing(package) from error
