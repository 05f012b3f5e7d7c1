"""What was given by flag, variable and file, and where that has a client look for the daemon and for the index.

Apart from `config` to be light: it is all that `chunkd stats` needs of the settings.
"""

from __future__ import annotations

import os

from chunkd.errors import SettingInvalid
from chunkd.settings import paths
from chunkd.settings.table import SETTINGS, checked, checked_path, from_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

FILE_BYTES = 1 << 20
# The settings that say where a client looks.
WHERE = ("state_dir", "socket")


class Given:
    """A value, checked, and where it came from in words for people."""

    def __init__(self, value: Any, source: str) -> None:
        self.value, self.source = value, source


def of_call(flags: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, Given]:
    """What was given for this call: by variable, and over it by flag."""
    given = {}
    by_env = {setting.env: setting for setting in SETTINGS.values()}
    for variable, text in sorted(environ.items()):
        if not variable.startswith("CHUNKD_") or variable == "CHUNKD_CONFIG":
            continue
        if variable not in by_env:
            raise SettingInvalid(variable, "environment", "there is no such setting")
        setting = by_env[variable]
        given[setting.name] = Given(checked(setting, from_text(setting, text), variable), variable)
    for name, value in flags.items():
        if value is None or value == () or value == []:
            continue
        if name not in SETTINGS:
            raise SettingInvalid(name, "flag", "there is no such setting")
        setting = SETTINGS[name]
        value = from_text(setting, value) if isinstance(value, str) and setting.kind != "paths" else value
        given[name] = Given(checked(setting, value, setting.flag), setting.flag)
    return given


def of_files(environ: Mapping[str, str], sought: Collection[str] = ()) -> dict[str, Given]:
    """What the files say: the one that `CHUNKD_CONFIG` names, or the system's and over it the user's.

    With `sought`, all that they say of those settings: a file that can't name one is not parsed, nor found wrong.
    """
    if "CHUNKD_CONFIG" in environ:
        return _file(checked_path("CHUNKD_CONFIG", environ["CHUNKD_CONFIG"], "environment"), sought, must_exist=True)
    return _file(paths.SYSTEM_FILE, sought) | _file(paths.own_file(environ), sought)


def _file(path: str, sought: Collection[str], must_exist: bool = False) -> dict[str, Given]:
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
    if sought and b"\\" not in content and not any(name.encode() in content for name in sought):
        return {}  # without escapes, a key is spelt as it is named
    import tomllib  # only where there is something to find: it takes longer than all that `chunkd stats` does

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
        given[key] = Given(checked(setting, value, source), source)
        # A daemon starts in any directory.
        for given_path in value if setting.kind == "paths" else [value] if setting.kind == "path" else []:
            if not os.path.isabs(given_path):
                raise SettingInvalid(key, source, f"{given_path!r} is not an absolute path")
    return given


def default_state(environ: Mapping[str, str]) -> Given:
    """The state directory where none was given."""
    systemd = paths.first_of(environ, "STATE_DIRECTORY")
    return Given(systemd, "$STATE_DIRECTORY") if systemd else Given(paths.own_state(environ), "default")


def socket_candidates(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a client looks for the daemon, in order, each path once.

    A socket given by flag or variable is the only one. For a state directory given so it is the socket in that, then
    those of a daemon that has this directory unasked: `run --state X` and `stats --state X` find one another, and a
    daemon of another index is not asked.

    Raises SettingInvalid as `config.load` does, but for files that `of_files` does not parse.
    """
    near, far = of_call(flags, environ), of_files(environ, WHERE)
    if "socket" in near:
        return [near["socket"].value]
    unasked = (far.get("state_dir") or default_state(environ)).value
    runtime = paths.first_of(environ, "RUNTIME_DIRECTORY")
    own = [paths.socket_in(runtime)] if runtime else []
    own += [far["socket"].value] if "socket" in far else []
    own += paths.own_sockets(unasked, environ)
    if "state_dir" not in near:
        return list(dict.fromkeys([*own, paths.system_socket()]))
    state = near["state_dir"].value
    found = [paths.socket_in(state)]
    if state == unasked:
        found += own
    if state == (far["state_dir"].value if "state_dir" in far else paths.SYSTEM_STATE):
        if "socket" in far and far["socket"].source == f"{paths.SYSTEM_FILE}:socket":
            found.append(far["socket"].value)
        found.append(paths.system_socket())
    return list(dict.fromkeys(found))


def state_candidates(flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where a client looks for an index when no daemon answers, in order, each once; a given one is the only one.

    Raises SettingInvalid as `socket_candidates` does.
    """
    near, far = of_call(flags, environ), of_files(environ, WHERE)
    if "state_dir" in near:
        return [near["state_dir"].value]
    found = [paths.first_of(environ, "STATE_DIRECTORY"), far["state_dir"].value if "state_dir" in far else None]
    return list(dict.fromkeys([*filter(None, found), paths.own_state(environ), paths.SYSTEM_STATE]))
