"""One command's settings by flag, variable and file, and where it looks for the daemon and for the index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from chunkd.errors import SettingInvalid, SettingsFileUnusable
from chunkd.settings import paths
from chunkd.settings.table import SETTINGS, checked, checked_path, from_text
from chunkd.urls import OBJECT_STORES

if TYPE_CHECKING:
    from chunkd.model import Timing

FILE_BYTES = 1 << 20
FILE_VARIABLE = "CHUNKD_CONFIG"
# For tests of the whole daemon: a JSON object of the fields of `Timing`.
TIMING_VARIABLE = "CHUNKD_TIMING"
UNSET = (FILE_VARIABLE, TIMING_VARIABLE)
NO_HOME = "HOME is not set and this user has no home directory"
VARIABLES = {setting.env: setting for setting in SETTINGS.values()}
# Kubernetes puts these into every pod of a namespace for each of its Services, such as chunkd and chunkd-metrics:
# CHUNKD_SERVICE_HOST, CHUNKD_METRICS_SERVICE_PORT_HTTP, CHUNKD_PORT_9464_TCP_ADDR and so on.
SERVICE_LINK = re.compile(
    "CHUNKD_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class Given(NamedTuple):
    """A value, checked, and where it came from in words for people."""

    value: Any
    source: str


class Resolved:
    """The settings of one command, from the environment, the flags and the settings files; what comes later wins.

    `flags` has settings' names; None and an empty sequence mean "not given". `call` is what the variables and flags
    say, `warnings` names the variables that are ignored. The files are read once, when a setting that may be in them is
    first needed. Raises SettingInvalid for an unknown flag, a wrong type or a value out of range.
    """

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> None:
        self._flags, self._environ = flags, environ
        self.warnings: list[str] = []
        self.call: dict[str, Given] = {}
        for variable, text in sorted(environ.items()):
            if setting := VARIABLES.get(variable):
                self.call[setting.name] = Given(checked(setting, from_text(setting, text), variable), variable)
            elif variable.startswith("CHUNKD_") and variable not in UNSET and not SERVICE_LINK.fullmatch(variable):
                hint = did_you_mean(variable, [*VARIABLES, FILE_VARIABLE])
                self.warnings.append(f"environment variable {variable}: ignored, there is no such setting{hint}")
        for name, value in flags.items():
            if value is None or value == () or value == []:
                continue
            if name not in SETTINGS:
                raise SettingInvalid(name, "flag", f"there is no such setting{did_you_mean(name, SETTINGS)}")
            setting = SETTINGS[name]
            value = from_text(setting, value) if isinstance(value, str) and setting.kind != "paths" else value
            self.call[name] = Given(checked(setting, value, setting.flag), setting.flag)

    def again(self) -> Resolved:
        """The same flags and variables, over the files as they are now."""
        return Resolved(self._flags, self._environ)

    @cached_property
    def files(self) -> dict[str, Given]:
        """What the files say: the one that `CHUNKD_CONFIG` names, or the system's and over it the user's.

        Raises SettingsFileUnusable for a file that can't be read, SettingInvalid for what one says.
        """
        if FILE_VARIABLE in self._environ:
            named = checked_path(FILE_VARIABLE, self._environ[FILE_VARIABLE], "environment")
            return _file(named, must_exist=True)
        own = paths.own_file(self._environ)
        return _file(paths.SYSTEM_FILE) | (_file(own) if own else {})

    @cached_property
    def sockets(self) -> list[Given]:
        """Where a daemon with these settings answers: `run` binds the first, a client asks each in turn.

        A socket given by flag or variable is the only one. If a state directory is given by flag or variable, they are
        the socket in it, and the sockets of a daemon whose own state directory it is. So `run --state X` and
        `stats --state X` find each other, and the daemon of another index is not asked.
        """
        if "socket" in self.call:
            return [self.call["socket"]]
        called = self.call.get("state_dir")
        try:
            files = self.files
        except SettingInvalid:
            if called is None:
                raise
            files = {}  # the state directory is known, and the socket is in it
        uncalled = files.get("state_dir") or self._default_state()
        found: list[Given] = []
        if called is None or (uncalled and called.value == uncalled.value):
            found += [files["socket"]] if "socket" in files else []
            if runtime := paths.first_of(self._environ, "RUNTIME_DIRECTORY"):
                found.append(Given(paths.socket_in(runtime), "$RUNTIME_DIRECTORY"))
            state_dir = uncalled.value if uncalled else None
            found += [Given(path, source) for path, source in paths.own_sockets(state_dir, self._environ)]
        if called is not None:
            found.append(Given(paths.socket_in(called.value), f"beside {called.source}"))
        if called is None or called.value == (files["state_dir"].value if "state_dir" in files else paths.SYSTEM_STATE):
            found += [given for name, given in files.items() if given.source == f"{paths.SYSTEM_FILE}:socket"]
            found.append(Given(paths.system_socket(), "default"))
        by_value: dict[str, Given] = {}
        for given in found:
            by_value.setdefault(given.value, given)
        return list(by_value.values())

    @cached_property
    def states(self) -> list[str]:
        """Where a client looks for an index when no daemon answers, in order; `run` and `scan` have the first.

        One given by flag or variable is the only one. Raises SettingInvalid where this user has no state directory.
        """
        if "state_dir" in self.call:
            return [self.call["state_dir"].value]
        given = [one.value for one in (self.files.get("state_dir"), self._default_state()) if one]
        return list(dict.fromkeys(filter(None, (*given, self.own_state_dir, paths.SYSTEM_STATE))))

    @property
    def own_state_dir(self) -> str | None:
        """Where this user's index lies by default; None without a home directory."""
        return paths.own_state(self._environ)

    @property
    def place_was_given(self) -> bool:
        """Whether a flag or variable says where the daemon or the index is."""
        return "socket" in self.call or "state_dir" in self.call

    def _default_state(self) -> Given | None:
        if systemd := paths.first_of(self._environ, "STATE_DIRECTORY"):
            return Given(systemd, "$STATE_DIRECTORY")
        return Given(self.own_state_dir, "default") if self.own_state_dir else None

    @property
    def state_dir(self) -> Given:
        """The state directory of `run` and `scan`. Raises SettingInvalid where none is given and no home has one."""
        found = self.call.get("state_dir") or self.files.get("state_dir") or self._default_state()
        if found is None:
            raise SettingInvalid("state_dir", "default", f"{NO_HOME}; give --state DIR")
        return found

    @property
    def caches_named(self) -> bool:
        """Whether caches are named as arguments."""
        return "caches" in self.call and self.call["caches"].source == SETTINGS["caches"].flag

    def caches(self, needed: bool) -> Given:
        """The caches of `run` and `scan`. Raises as `state_dir` where they are `needed`, else they are empty then."""
        if given := self.call.get("caches") or self.files.get("caches"):
            return given
        home = paths.home(self._environ)
        if home is None and needed:
            raise SettingInvalid("caches", "default", f"{NO_HOME}; name a CACHE")
        found = (paths.normal(home + "/.local/supermachine-layer-cache/registry/blobs/sha256"),) if home else ()
        return Given(found, "default")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    import difflib  # only for a mistake

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _file(path: str, must_exist: bool = False) -> dict[str, Given]:
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise SettingsFileUnusable(path, f"can't be read: {error.strerror}") from None
        return {}
    except OSError as error:
        raise SettingsFileUnusable(path, f"can't be read: {error.strerror}") from None
    if len(content) > FILE_BYTES:
        raise SettingsFileUnusable(path, f"is larger than {FILE_BYTES} bytes")
    import tomllib  # only where there is a file

    try:
        table = tomllib.loads(content.decode("utf-8-sig"))  # Windows' editors put a byte-order mark before it
    except (ValueError, RecursionError) as error:
        raise SettingsFileUnusable(path, f"is not TOML: {error}") from None
    given = {}
    for key, value in table.items():
        source = f"{path}:{key}"
        if key not in SETTINGS:
            raise SettingInvalid(key, source, f"there is no such setting{did_you_mean(key, SETTINGS)}")
        setting = SETTINGS[key]
        given[key] = Given(checked(setting, value, source), source)
        # A daemon starts in any directory.
        for given_path in value if setting.kind == "paths" else [value] if setting.kind == "path" else []:
            if not (os.path.isabs(given_path) or (setting.kind == "paths" and given_path.startswith(OBJECT_STORES))):
                raise SettingInvalid(key, source, f"{given_path!r} is not an absolute path")
    return given


def timing_of(environ: Mapping[str, str]) -> Timing:
    """How long the daemon waits for what others do. Raises SettingInvalid for what has no such field."""
    from chunkd.model import Timing  # late: most commands wait for nothing

    try:
        return Timing(**json.loads(environ.get(TIMING_VARIABLE, "{}")))
    except (TypeError, ValueError) as error:
        raise SettingInvalid(TIMING_VARIABLE, "environment", str(error)) from error
