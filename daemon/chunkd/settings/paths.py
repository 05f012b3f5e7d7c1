"""Where the platform, the service manager and the user keep things: from the environment to absolute paths.

No I/O but a look into the user database. The XDG base directory specification holds on Linux, Apple's on macOS.
"""

from __future__ import annotations

import os
import pwd
import sys

from chunkd.errors import SettingInvalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_FILE = "/etc/chunkd/chunkd.toml"
SYSTEM_STATE = "/var/lib/chunkd"


def normal(path: str) -> str:
    """The path, absolute and without `.`, `..` and doubled slashes; symbolic links are left as they are."""
    # POSIX leaves the meaning of two leading slashes open and abspath keeps them; Linux and macOS know one root.
    return "/" + os.path.abspath(path).lstrip("/")


def home(environ: Mapping[str, str]) -> str:
    """The user's home directory. Raises SettingInvalid when neither HOME nor the user database has one."""
    if home := environ.get("HOME"):
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise SettingInvalid("HOME", "environment", "is not set, and the user has no home directory") from None


def xdg(environ: Mapping[str, str], variable: str) -> str | None:
    """The base directory that the variable names. The XDG specification has a relative one ignored."""
    path = environ.get(variable, "")
    return normal(path) if os.path.isabs(path) else None


def first_of(environ: Mapping[str, str], variable: str) -> str | None:
    """The first of the directories in a variable of systemd's (`RUNTIME_DIRECTORY`: colon-separated), if it is set."""
    first = environ.get(variable, "").split(":")[0]
    return normal(first) if first else None


def macos() -> bool:
    return sys.platform == "darwin"


def own_file(environ: Mapping[str, str]) -> str:
    """The user's settings file."""
    if macos():
        return normal(home(environ) + "/Library/Application Support/chunkd/chunkd.toml")
    return (xdg(environ, "XDG_CONFIG_HOME") or normal(home(environ) + "/.config")) + "/chunkd/chunkd.toml"


def own_state(environ: Mapping[str, str]) -> str:
    """The state directory of this user; root's is the system's."""
    if os.geteuid() == 0:
        return SYSTEM_STATE
    if macos():
        return normal(home(environ) + "/Library/Application Support/chunkd")
    return (xdg(environ, "XDG_STATE_HOME") or normal(home(environ) + "/.local/state")) + "/chunkd"


def socket_in(directory: str) -> str:
    return os.path.join(directory, "chunkd.sock")


def system_socket() -> str:
    """The socket of root's daemon. macOS has no /run, and its root directory can't be written."""
    return socket_in(SYSTEM_STATE if macos() else "/run/chunkd")


def own_sockets(state_dir: str, environ: Mapping[str, str]) -> list[str]:
    """Where a daemon of this user with this state directory may answer: XDG_RUNTIME_DIR may have been unset for it."""
    if macos():
        return [socket_in(state_dir)]
    if os.geteuid() == 0:
        return [system_socket()]
    runtime = xdg(environ, "XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return [socket_in(runtime + "/chunkd"), socket_in(state_dir)]
