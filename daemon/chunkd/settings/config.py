"""One frozen `Config`: every setting with its value, and where that came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from chunkd.model import Caps, MeasureRule
from chunkd.settings.resolve import Given, Resolved
from chunkd.settings.table import SETTINGS


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings. Paths are absolute and normalised, symbolic links are left as they are.

    `workers` 0 means one per core. `sources` says of each setting where its value came from, in words for people.
    """

    caches: tuple[str, ...]
    state_dir: str
    socket: str
    metrics_address: str | None
    metrics_repositories: int
    names_file: str | None
    workers: int
    nice: int
    io_priority: str
    read_bytes_per_s: int
    scan_interval_s: int
    polled_scan_interval_s: int
    verify_interval_s: int
    max_uncompressed_bytes: int
    max_ratio: int
    max_zstd_window_bytes: int
    measure_one_in: int
    measure_level: int
    log_level: str
    sources: Mapping[str, str] = field(compare=False)

    @property
    def caps(self) -> Caps:
        return Caps(self.max_uncompressed_bytes, self.max_ratio, self.max_zstd_window_bytes)

    @property
    def measure(self) -> MeasureRule:
        """The measuring rule of the settings. It lacks the zstd library, which is not a setting."""
        return MeasureRule(self.measure_one_in, self.measure_level)

    @property
    def caches_named(self) -> bool:
        """Whether an argument, a variable or a file names caches."""
        return self.sources["caches"] != "default"

    @property
    def index_dir(self) -> str:
        return index_dir(self.state_dir)


def effective(resolved: Resolved, *, serving: bool = True) -> Config:
    """All settings, with defaults. Raises SettingInvalid also for what a settings file says, and without a home.

    A command that is not `serving` caches needs none: `caches` is then empty if it has no default.
    """
    given = {name: Given(setting.default, "default") for name, setting in SETTINGS.items()}
    given |= resolved.files | resolved.call
    given |= {"state_dir": resolved.state_dir, "socket": resolved.sockets[0], "caches": resolved.caches(serving)}
    values = {name: one.value for name, one in given.items()}
    return Config(**values, sources=MappingProxyType({name: one.source for name, one in given.items()}))


def load(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Config:
    """`effective` of what these flags and this environment give."""
    return effective(Resolved(flags, environ))


def index_dir(state_dir: str) -> str:
    """Where the index lies in a state directory."""
    return os.path.join(state_dir, "index")
