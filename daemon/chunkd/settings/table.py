"""The one table of settings, and how a value given for one is checked.

A setting's key in a file is its name, its variable is `CHUNKD_` and the name in capitals, its flag is the name with
hyphens (`--state`, without `-dir`, and the arguments CACHE... for `caches`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from chunkd.errors import SettingInvalid
from chunkd.settings.paths import normal
from chunkd.urls import OBJECT_STORES

YEAR_S = 366 * 86400
UNIT_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
# A host, or an IPv6 address in brackets, and a port.
ADDRESS = r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+):([0-9]{1,5})"


class Setting(NamedTuple):
    """One row. `least` and `most` bound an int or bytes; a default of None is worked out, as `help` says."""

    name: str
    kind: Literal["paths", "path", "address", "int", "bytes", "choice"]
    default: int | str | None
    help: str
    least: int = 0
    most: int = 0
    power_of_two: bool = False
    choices: tuple[str, ...] = ()

    @property
    def env(self) -> str:
        return "CHUNKD_" + self.name.upper()

    @property
    def flag(self) -> str:
        return "CACHE..." if self.kind == "paths" else "--" + self.name.removesuffix("_dir").replace("_", "-")


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "caches",
            "paths",
            None,
            "the caches to serve, folders or URLs (s3://, gs://, az://), colon-separated in the environment;"
            " by default $HOME/.local/supermachine-layer-cache/registry/blobs/sha256",
        ),
        Setting(
            "state_dir",
            "path",
            None,
            "holds the index; by default $STATE_DIRECTORY, else /var/lib/chunkd for root and"
            " $XDG_STATE_HOME/chunkd for a user (~/Library/Application Support/chunkd on macOS)",
        ),
        Setting(
            "socket",
            "path",
            None,
            "where the daemon answers; by default chunkd.sock in a state_dir given by flag or environment, else in"
            " $RUNTIME_DIRECTORY, /run/chunkd for root, $XDG_RUNTIME_DIR/chunkd for a user, or state_dir",
        ),
        Setting(
            "metrics_address",
            "address",
            None,
            "where /metrics alone is also served over TCP, such as 127.0.0.1:9464, to anyone who can reach it; by"
            " default nowhere",
        ),
        Setting(
            "metrics_repositories",
            "int",
            0,
            "how many repositories have metrics of their own, those with the largest fair shares: 0 to 100",
            0,
            100,
        ),
        Setting(
            "names_file",
            "path",
            None,
            "a file of names of images, a line `reference<TAB>digest` each, for a registry that keeps none on disk; by"
            " default none",
        ),
        Setting("workers", "int", 0, "worker processes; 0 for one per core, within a container's CPU limit", 0, 1024),
        Setting(
            "nice",
            "int",
            19,
            "how far workers yield the processor to other processes: from 0 (not at all) to 19",
            0,
            19,
        ),
        Setting(
            "io_priority",
            "choice",
            "idle",
            "idle: read only when the disk is otherwise idle (Linux idle I/O class); normal: read like other processes",
            choices=("idle", "normal"),
        ),
        Setting(
            "read_bytes_per_s",
            "bytes",
            0,
            "how many bytes all workers together read in a second at most; 0 for no limit",
            0,
            1 << 40,
        ),
        Setting("scan_interval_s", "int", 600, "seconds between scans of caches whose events arrive", 1, YEAR_S),
        Setting("polled_scan_interval_s", "int", 60, "seconds between scans of caches without events", 1, YEAR_S),
        Setting(
            "verify_interval_s",
            "int",
            86400,
            "seconds in which the file metadata of every counted blob is compared once",
            60,
            YEAR_S,
        ),
        Setting(
            "max_uncompressed_bytes",
            "bytes",
            256 << 30,
            "a blob that decompresses to more than this is failed",
            1,
            1 << 50,
        ),
        Setting(
            "max_ratio",
            "int",
            2000,
            "a blob that decompresses to over 1 GiB and to more than this many times its size is failed",
            1,
            1_000_000,
        ),
        Setting(
            "max_zstd_window_bytes",
            "bytes",
            128 << 20,
            "a zstd blob that needs a larger window is failed; a power of two",
            1 << 10,
            1 << 31,
            power_of_two=True,
        ),
        Setting(
            "measure_one_in",
            "int",
            16,
            "one unique chunk in this many is recompressed, to estimate what a chunk store would save; 1 for every"
            " chunk",
            1,
            4096,
        ),
        Setting("measure_level", "int", 3, "the zstd level for that", 1, 19),
        Setting(
            "log_level",
            "choice",
            "info",
            "the least severe messages that are logged",
            choices=("debug", "info", "warning", "error"),
        ),
    )
}


def from_text(setting: Setting, text: str) -> object:
    """The value of a variable's or flag's text, not yet checked: a number, several paths, or the text itself."""
    if setting.kind == "paths":
        # A secret in a URL may have any character: then there is nothing to be split, and `checked` refuses it.
        return [text] if "@" in text and _has_url(text) else re.split(":(?!//)", text)
    return int(text) if setting.kind in ("int", "bytes") and re.fullmatch("[0-9]{1,18}", text) else text


def checked(setting: Setting, value: object, source: str) -> int | str | tuple[str, ...]:
    """The value as `Config` has it. Raises SettingInvalid, with `source`, for a wrong type or a value out of range."""

    def wrong(problem: str) -> SettingInvalid:
        return SettingInvalid(setting.name, source, problem)

    if setting.kind == "paths":
        if not isinstance(value, (list, tuple)) or not value:
            raise wrong(f"{value!r} is not a list of paths")
        return _apart([checked_cache(setting.name, path, source) for path in value], source)
    if setting.kind == "path":
        return checked_path(setting.name, value, source)
    if setting.kind == "address":
        match = re.fullmatch(ADDRESS, value) if isinstance(value, str) else None
        if match is None or int(match[1]) > 65535:
            raise wrong(f"{value!r} must be HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464")
        return str(value)
    if setting.kind == "choice":
        if value not in setting.choices:
            raise wrong(f"{value!r} must be one of {', '.join(setting.choices)}")
        return str(value)
    if setting.kind == "bytes" and isinstance(value, str):
        match = re.fullmatch("([0-9]{1,18}) ?([KMGT]iB|B)", value)
        value = int(match[1]) * UNIT_BYTES[match[2]] if match else value
    if not isinstance(value, int) or isinstance(value, bool):
        such = " of bytes, such as 1048576 or 256GiB" if setting.kind == "bytes" else ""
        raise wrong(f"{value!r} is not a whole number{such or f' from {setting.least} to {setting.most}'}")
    if not setting.least <= value <= setting.most:
        raise wrong(f"{value} must be from {setting.least} to {setting.most}")
    if setting.power_of_two and value & (value - 1):
        raise wrong(f"{value} is not a power of two")
    return value


def checked_cache(name: str, cache: object, source: str) -> str:
    """The path, or a URL of object storage. Raises SettingInvalid, which does not repeat a URL with a secret in it."""
    if not (isinstance(cache, str) and _has_url(cache)):
        return checked_path(name, cache, source)
    if "@" in cache or "?" in cache:
        problem = "a URL with @ or ? in it may hold a secret; credentials come from the environment"
        raise SettingInvalid(name, source, problem)
    scheme, _, rest = cache.partition("://")
    bucket, *below = rest.rstrip("/").split("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", bucket) or not {"", ".", ".."}.isdisjoint(below):
        raise SettingInvalid(name, source, f"{cache!r} is not {scheme}://BUCKET or {scheme}://BUCKET/PREFIX")
    return "/".join((f"{scheme}://{bucket}", *below))


def _has_url(text: str) -> bool:
    return any(scheme in text for scheme in OBJECT_STORES)


def checked_path(name: str, path: object, source: str) -> str:
    """The path, absolute and normalised. Raises SettingInvalid."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise SettingInvalid(name, source, f"{path!r} is not a path")
    # A service manager does not expand ~, and nobody means a folder of that name.
    if path.startswith("~"):
        raise SettingInvalid(name, source, f"{path!r} begins with ~, which is not expanded; write the whole path")
    return normal(path)


def _apart(paths: Sequence[str], source: str) -> tuple[str, ...]:
    for number, path in enumerate(paths):
        for other in paths[:number]:
            if path == other:
                raise SettingInvalid("caches", source, f"{path} is named twice")
            inner, outer = (path, other) if len(path) > len(other) else (other, path)
            if f"{inner}/".startswith(f"{outer.rstrip('/')}/"):
                raise SettingInvalid("caches", source, f"{inner} is inside {outer}; name only one of them")
    return tuple(paths)
