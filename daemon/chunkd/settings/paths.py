"""Where the platform, the service manager and the user keep things: from the environment to absolute paths.

No I/O but a look into the user database. The XDG base directory specification holds on Linux, Apple's on macOS.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping

SYSTEM_FILE = "/etc/chunkd/chunkd.toml"
SYSTEM_STATE = "/var/lib/chunkd"


def normal(path: str) -> str:
    """The path, absolute and without `.`, `..` and doubled slashes; symbolic links are left as they are."""
    # POSIX leaves the meaning of two leading slashes open and abspath keeps them; Linux and macOS know one root.
    return "/" + os.path.abspath(path).lstrip("/")


def home(environ: Mapping[str, str]) -> str | None:
    """The user's home directory. None if neither HOME nor the user database has one, as in many containers."""
    if home := environ.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def _in_home(environ: Mapping[str, str], below: str) -> str | None:
    found = home(environ)
    return normal(f"{found}/{below}") if found else None


def xdg(environ: Mapping[str, str], variable: str) -> str | None:
    """The base directory in the variable. A relative one is ignored, as the XDG specification says."""
    path = environ.get(variable, "")
    return normal(path) if os.path.isabs(path) else None


def first_of(environ: Mapping[str, str], variable: str) -> str | None:
    """The first directory in a variable that systemd sets, such as `RUNTIME_DIRECTORY` (colon-separated)."""
    first = environ.get(variable, "").split(":")[0]
    return normal(first) if first else None


def macos() -> bool:
    return sys.platform == "darwin"


def own_file(environ: Mapping[str, str]) -> str | None:
    """The user's settings file; None without a home directory."""
    if macos():
        return _in_home(environ, "Library/Application Support/chunkd/chunkd.toml")
    directory = xdg(environ, "XDG_CONFIG_HOME") or _in_home(environ, ".config")
    return directory and directory + "/chunkd/chunkd.toml"


def own_state(environ: Mapping[str, str]) -> str | None:
    """The state directory of this user; for root the system's. None without a home directory."""
    if os.geteuid() == 0:
        return SYSTEM_STATE
    if macos():
        return _in_home(environ, "Library/Application Support/chunkd")
    directory = xdg(environ, "XDG_STATE_HOME") or _in_home(environ, ".local/state")
    return directory and directory + "/chunkd"


def socket_in(directory: str) -> str:
    return os.path.join(directory, "chunkd.sock")


def system_socket() -> str:
    """The socket of root's daemon. It is in the state directory on macOS, which has no /run."""
    return socket_in(SYSTEM_STATE if macos() else "/run/chunkd")


def own_sockets(state_dir: str | None, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The sockets at which this user's daemon with this state directory may answer, each with its source.

    The daemon binds the first. The others are where it answers if its environment has another XDG_RUNTIME_DIR, or none.
    """
    in_state = [(socket_in(state_dir), "default")] if state_dir else []
    if macos():
        return in_state
    if os.geteuid() == 0:
        return [(system_socket(), "default")]
    if runtime := xdg(environ, "XDG_RUNTIME_DIR"):
        return [(socket_in(runtime + "/chunkd"), "$XDG_RUNTIME_DIR"), *in_state]
    return [*in_state, (socket_in(f"/run/user/{os.geteuid()}/chunkd"), "default")]
