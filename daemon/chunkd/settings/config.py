"""One frozen `Config`, from the settings' files, the environment and the flags; what comes later wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from chunkd.model import Caps, MeasureRule
from chunkd.settings import paths
from chunkd.settings.resolve import Given, default_state, of_call, of_files
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
        """The rule that is asked for, but for its library: which one is at hand, no setting says."""
        return MeasureRule(self.measure_one_in, self.measure_level)

    @property
    def index_dir(self) -> str:
        return index_dir(self.state_dir)


def load(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Config:
    """The settings of `run` and `scan`. `flags` has settings' names; None and an empty sequence mean "not given".

    Raises SettingInvalid for an unknown setting, key or `CHUNKD_` variable, a wrong type, a value out of range, a file
    that can't be read, and caches that repeat or hold one another.
    """
    near, far = of_call(flags, environ), of_files(environ)
    state = near.get("state_dir") or far.get("state_dir") or default_state(environ)
    given = {name: Given(setting.default, "default") for name, setting in SETTINGS.items()}
    given |= far | near | {"state_dir": state, "socket": _socket_of_run(near, far, environ)}
    if given["caches"].value is None:
        path = paths.home(environ) + "/.local/supermachine-layer-cache/registry/blobs/sha256"
        given["caches"] = Given((paths.normal(path),), "default")
    values = {name: one.value for name, one in given.items()}
    return Config(**values, sources=MappingProxyType({name: one.source for name, one in given.items()}))


def index_dir(state_dir: str) -> str:
    """Where the index lies in a state directory."""
    return os.path.join(state_dir, "index")


def _socket_of_run(near: Mapping[str, Given], far: Mapping[str, Given], environ: Mapping[str, str]) -> Given:
    if "socket" in near:
        return near["socket"]
    unasked = far.get("state_dir") or default_state(environ)
    state = near.get("state_dir", unasked)
    if state.value != unasked.value:
        return Given(paths.socket_in(state.value), f"beside {state.source}")
    if "socket" in far:
        return far["socket"]
    if runtime := paths.first_of(environ, "RUNTIME_DIRECTORY"):
        return Given(paths.socket_in(runtime), "$RUNTIME_DIRECTORY")
    if not paths.macos() and os.geteuid() == 0:
        return Given(paths.system_socket(), "default")
    if not paths.macos() and (directory := paths.xdg(environ, "XDG_RUNTIME_DIR")):
        return Given(paths.socket_in(directory + "/chunkd"), "$XDG_RUNTIME_DIR")
    return Given(paths.socket_in(state.value), "default")
