"""One frozen `Config`, from the settings' files, the environment and the flags; what comes later wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from chunkd import directories
from chunkd.errors import SettingInvalid
from chunkd.model import Caps
from chunkd.settings import SETTINGS, checked, checked_path, from_text

FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings. Paths are absolute and normalised, symbolic links are left as they are.

    `workers` 0 means one per core. `sources` says of each setting where its value came from, in words for people.
    """

    caches: tuple[str, ...]
    state_dir: str
    socket: str
    workers: int
    scan_interval_s: int
    polled_scan_interval_s: int
    verify_interval_s: int
    max_uncompressed_bytes: int
    max_ratio: int
    max_zstd_window_bytes: int
    log_level: str
    sources: Mapping[str, str] = field(compare=False)

    @property
    def caps(self) -> Caps:
        return Caps(self.max_uncompressed_bytes, self.max_ratio, self.max_zstd_window_bytes)

    @property
    def index_dir(self) -> str:
        return index_dir(self.state_dir)


class _Given(NamedTuple):
    """A value, checked, and where it came from in words for people."""

    value: Any
    source: str


def load(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Config:
    """The settings of `run` and `scan`. `flags` has settings' names; None and an empty sequence mean "not given".

    Raises SettingInvalid for an unknown setting, key or `CHUNKD_` variable, a wrong type, a value out of range, a file
    that can't be read, and caches that repeat or hold one another.
    """
    near, far = _near(flags, environ), _far(environ)
    state = near.get("state_dir") or far.get("state_dir") or _default_state(environ)
    given = {name: _Given(setting.default, "default") for name, setting in SETTINGS.items()}
    given |= far | near | {"state_dir": state, "socket": _socket_of_run(near, far, environ)}
    if given["caches"].value is None:
        path = directories.home(environ) + "/.local/supermachine-layer-cache/registry/blobs/sha256"
        given["caches"] = _Given((directories.normal(path),), "default")
    values = {name: one.value for name, one in given.items()}
    return Config(**values, sources=MappingProxyType({name: one.source for name, one in given.items()}))


def index_dir(state_dir: str) -> str:
    """Where the index lies in a state directory."""
    return os.path.join(state_dir, "index")


def socket_candidates(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a client looks for the daemon, in order, each path once.

    A socket given by flag or variable is the only one. For a state directory given so it is the socket in that, then
    those of a daemon that has this directory unasked: `run --state X` and `stats --state X` find one another, and a
    daemon of another index is not asked. Raises SettingInvalid as `load` does.
    """
    near, far = _near(flags, environ), _far(environ)
    if "socket" in near:
        return [near["socket"].value]
    unasked = (far.get("state_dir") or _default_state(environ)).value
    runtime = directories.first_of(environ, "RUNTIME_DIRECTORY")
    own = [directories.socket_in(runtime)] if runtime else []
    own += [far["socket"].value] if "socket" in far else []
    own += directories.own_sockets(unasked, environ)
    if "state_dir" not in near:
        return list(dict.fromkeys([*own, directories.system_socket()]))
    state = near["state_dir"].value
    found = [directories.socket_in(state)]
    if state == unasked:
        found += own
    if state == (far["state_dir"].value if "state_dir" in far else directories.SYSTEM_STATE):
        if "socket" in far and far["socket"].source == f"{directories.SYSTEM_FILE}:socket":
            found.append(far["socket"].value)
        found.append(directories.system_socket())
    return list(dict.fromkeys(found))


def state_candidates(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a client looks for an index when no daemon answers, in order, each once; a given one is the only one.

    Raises SettingInvalid as `load` does.
    """
    near, far = _near(flags, environ), _far(environ)
    if "state_dir" in near:
        return [near["state_dir"].value]
    found = [directories.first_of(environ, "STATE_DIRECTORY"), far["state_dir"].value if "state_dir" in far else None]
    return list(dict.fromkeys([*filter(None, found), directories.own_state(environ), directories.SYSTEM_STATE]))


# --- what was given -----------------------------------------------------------------------------------------------


def _near(flags: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, _Given]:
    """What was given for this call: by variable, and over it by flag."""
    given = {}
    by_env = {setting.env: setting for setting in SETTINGS.values()}
    for variable, text in sorted(environ.items()):
        if not variable.startswith("CHUNKD_") or variable == "CHUNKD_CONFIG":
            continue
        if variable not in by_env:
            raise SettingInvalid(variable, "environment", "there is no such setting")
        setting = by_env[variable]
        given[setting.name] = _Given(checked(setting, from_text(setting, text), variable), variable)
    for name, value in flags.items():
        if value is None or value == () or value == []:
            continue
        if name not in SETTINGS:
            raise SettingInvalid(name, "flag", "there is no such setting")
        setting = SETTINGS[name]
        value = from_text(setting, value) if isinstance(value, str) and setting.kind != "paths" else value
        given[name] = _Given(checked(setting, value, setting.flag), setting.flag)
    return given


def _far(environ: Mapping[str, str]) -> dict[str, _Given]:
    """What the files say: the one that `CHUNKD_CONFIG` names, or the system's and over it the user's."""
    if "CHUNKD_CONFIG" in environ:
        return _file(checked_path("CHUNKD_CONFIG", environ["CHUNKD_CONFIG"], "environment"), must_exist=True)
    return _file(directories.SYSTEM_FILE) | _file(directories.own_file(environ))


def _file(path: str, must_exist: bool = False) -> dict[str, _Given]:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise SettingInvalid("CHUNKD_CONFIG", "environment", f"{path} can't be read: {error.strerror}") from None
        return {}
    except OSError as error:
        raise SettingInvalid("file", path, f"can't be read: {error.strerror}") from None
    if len(content) > FILE_BYTES:
        raise SettingInvalid("file", path, f"is larger than {FILE_BYTES} bytes")
    import tomllib  # only where there is a file: `chunkd stats` starts without it

    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise SettingInvalid("file", path, f"is not TOML: {error}") from None
    given = {}
    for key, value in table.items():
        source = f"{path}:{key}"
        if key not in SETTINGS:
            raise SettingInvalid(key, source, "there is no such setting")
        setting = SETTINGS[key]
        given[key] = _Given(checked(setting, value, source), source)
        # A daemon starts in any directory.
        for given_path in value if setting.kind == "paths" else [value] if setting.kind == "path" else []:
            if not os.path.isabs(given_path):
                raise SettingInvalid(key, source, f"{given_path!r} is not an absolute path")
    return given


def _default_state(environ: Mapping[str, str]) -> _Given:
    systemd = directories.first_of(environ, "STATE_DIRECTORY")
    return _Given(systemd, "$STATE_DIRECTORY") if systemd else _Given(directories.own_state(environ), "default")


def _socket_of_run(near: Mapping[str, _Given], far: Mapping[str, _Given], environ: Mapping[str, str]) -> _Given:
    if "socket" in near:
        return near["socket"]
    unasked = far.get("state_dir") or _default_state(environ)
    state = near.get("state_dir", unasked)
    if state.value != unasked.value:
        return _Given(directories.socket_in(state.value), f"beside {state.source}")
    if "socket" in far:
        return far["socket"]
    if runtime := directories.first_of(environ, "RUNTIME_DIRECTORY"):
        return _Given(directories.socket_in(runtime), "$RUNTIME_DIRECTORY")
    if not directories.macos() and os.geteuid() == 0:
        return _Given(directories.system_socket(), "default")
    if not directories.macos() and (directory := directories.xdg(environ, "XDG_RUNTIME_DIR")):
        return _Given(directories.socket_in(directory + "/chunkd"), "$XDG_RUNTIME_DIR")
    return _Given(directories.socket_in(state.value), "default")
