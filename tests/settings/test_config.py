"""Settings: which source wins, every error by name, and that `run` and its clients look in the same places."""

from __future__ import annotations

import itertools
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from chunkd.errors import SettingInvalid, SettingsFileUnusable
from chunkd.model import Caps
from chunkd.settings import config, paths, resolve
from chunkd.settings.table import SETTINGS, checked, from_text

Environment = dict[str, str]


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An ordinary user's, on Linux, whose machine has no settings' file."""
    monkeypatch.setattr(paths, "SYSTEM_FILE", str(tmp_path / "etc.toml"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    return {"HOME": "/home/u", "XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": "/bin"}


@pytest.fixture
def system_file(tmp_path: Path, env: Environment) -> Path:  # noqa: ARG001
    return tmp_path / "etc.toml"


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "config/chunkd/chunkd.toml"
    path.parent.mkdir(parents=True)
    return path


def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def as_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def sockets(flags: Mapping[str, object], env: Environment) -> list[str]:
    return [given.value for given in resolve.Resolved(flags, env).sockets]


def states(flags: Mapping[str, object], env: Environment) -> list[str]:
    return resolve.Resolved(flags, env).states


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_and_the_config_name_the_same_settings() -> None:
    assert [field.name for field in fields(config.Config)] == [*SETTINGS, "sources"]
    assert SETTINGS["scan_interval_s"].env == "CHUNKD_SCAN_INTERVAL_S"
    assert SETTINGS["scan_interval_s"].flag == "--scan-interval-s"
    assert SETTINGS["state_dir"].flag == "--state"
    assert SETTINGS["caches"].flag == "CACHE..."


def test_defaults(env: Environment) -> None:
    found = config.load({}, env)
    assert found.caches == ("/home/u/.local/supermachine-layer-cache/registry/blobs/sha256",)
    assert found.state_dir == "/home/u/.local/state/chunkd"
    assert found.index_dir == "/home/u/.local/state/chunkd/index"
    assert (found.workers, found.scan_interval_s, found.polled_scan_interval_s) == (0, 600, 60)
    assert (found.nice, found.io_priority, found.read_bytes_per_s) == (19, "idle", 0)
    assert (found.verify_interval_s, found.log_level) == (86400, "info")
    assert found.caps == Caps()
    assert set(found.sources.values()) == {"default"}
    assert list(found.sources) == list(SETTINGS)


def test_a_default_is_a_value_that_may_be_given() -> None:
    for setting in SETTINGS.values():
        if setting.default is not None:
            assert checked(setting, setting.default, "") == setting.default


def test_later_wins_and_says_so(env: Environment, system_file: Path, user_file: Path) -> None:
    system_file.write_text("workers = 1\nmax_ratio = 11\nscan_interval_s = 21\nlog_level = 'error'\n")
    user_file.write_text("max_ratio = 12\nscan_interval_s = 22\nlog_level = 'warning'\n")
    env |= {"CHUNKD_SCAN_INTERVAL_S": "23", "CHUNKD_LOG_LEVEL": "info"}
    found = config.load({"log_level": "debug", "workers": None}, env)
    assert (found.workers, found.max_ratio, found.scan_interval_s, found.log_level) == (1, 12, 23, "debug")
    assert found.sources["workers"] == f"{system_file}:workers"
    assert found.sources["max_ratio"] == f"{user_file}:max_ratio"
    assert found.sources["scan_interval_s"] == "CHUNKD_SCAN_INTERVAL_S"
    assert found.sources["log_level"] == "--log-level"
    assert found.sources["verify_interval_s"] == "default"


def test_one_file_instead_of_the_others(env: Environment, system_file: Path, tmp_path: Path) -> None:
    system_file.write_text("workers = 1\n")
    (tmp_path / "one.toml").write_text("max_ratio = 5\n")
    found = config.load({}, env | {"CHUNKD_CONFIG": str(tmp_path / "one.toml")})
    assert (found.workers, found.max_ratio) == (0, 5)
    with pytest.raises(SettingsFileUnusable) as caught:
        config.load({}, env | {"CHUNKD_CONFIG": str(tmp_path / "missing.toml")})
    assert caught.value.source == str(tmp_path / "missing.toml")


def test_caps_come_from_the_settings(env: Environment) -> None:
    flags = {"max_uncompressed_bytes": "3GiB", "max_ratio": 7, "max_zstd_window_bytes": "8 MiB"}
    assert config.load(flags, env).caps == Caps(3 << 30, 7, 8 << 20)


# --- one value ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1", 1), ("12B", 12), ("2KiB", 2048), ("3 MiB", 3 << 20), ("256GiB", 256 << 30), ("1TiB", 1 << 40)],
)
def test_bytes_are_spelt(text: str, size_bytes: int) -> None:
    setting = SETTINGS["max_uncompressed_bytes"]
    assert checked(setting, from_text(setting, text), "here") == size_bytes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workers", ""),
        ("workers", "four"),
        ("workers", "-1"),
        ("workers", "1_0"),
        ("workers", "\u0663"),
        ("workers", "9" * 5000),
        ("workers", "1025"),
        ("nice", "20"),
        ("nice", "-1"),
        ("io_priority", "realtime"),
        ("read_bytes_per_s", "10MB"),
        ("read_bytes_per_s", "2TiB"),
        ("scan_interval_s", "0"),
        ("verify_interval_s", "59"),
        ("max_ratio", "0"),
        ("max_uncompressed_bytes", "1GB"),
        ("max_uncompressed_bytes", "1.5GiB"),
        ("max_uncompressed_bytes", "9999TiB"),
        ("max_zstd_window_bytes", "100MiB"),
        ("max_zstd_window_bytes", "512"),
        ("log_level", "loud"),
        ("state_dir", ""),
        ("state_dir", "~/x"),
        ("caches", ""),
        ("caches", "/a::/b"),
        ("caches", "/a:/b:/a"),
        ("caches", "/a:/a/."),
        ("caches", "/a/b:/a"),
        ("caches", "/a:/x/../a/b"),
        ("caches", "/:/b"),
    ],
)
def test_a_wrong_variable_is_named(env: Environment, name: str, text: str) -> None:
    variable = SETTINGS[name].env
    with pytest.raises(SettingInvalid) as caught:
        config.load({}, env | {variable: text})
    assert (caught.value.name, caught.value.source) in ((name, variable), ("caches", variable))


def test_names_that_begin_alike_do_not_hold_one_another(env: Environment) -> None:
    assert config.load({"caches": ("/a", "/ab")}, env).caches == ("/a", "/ab")


@pytest.mark.parametrize(
    "line",
    [
        "workers = true",
        "workers = 1.0",
        "workers = '4'",
        "scan_interval_s = [1]",
        "log_level = 3",
        "log_level = ['info']",
        "caches = '/a'",
        "caches = []",
        "caches = [1]",
        "caches = ['a']",
        "caches = ['~/a']",
        "socket = 'chunkd.sock'",
        'state_dir = "/a\\u0000b"',
    ],
)
def test_a_wrong_key_is_named(env: Environment, system_file: Path, line: str) -> None:
    system_file.write_text(line + "\n")
    with pytest.raises(SettingInvalid) as caught:
        config.load({}, env)
    key = line.split(" ")[0]
    assert (caught.value.name, caught.value.source) == (key, f"{system_file}:{key}")


def test_what_is_no_setting_is_named(env: Environment, system_file: Path) -> None:
    with pytest.raises(SettingInvalid) as flag:
        config.load({"worker": 1}, env)
    assert (flag.value.name, flag.value.source) == ("worker", "flag")
    for line, key in (("[chunkd]\nworkers = 1\n", "chunkd"), ("wrokers = 1\n", "wrokers")):
        system_file.write_text(line)
        with pytest.raises(SettingInvalid) as caught:
            config.load({}, env)
        assert (caught.value.name, caught.value.source) == (key, f"{system_file}:{key}")
    assert "workers" in caught.value.problem, "what it may have been meant for is named"


@pytest.mark.parametrize(
    ("variable", "near"),
    [("CHUNKD_WORKRES", "CHUNKD_WORKERS"), ("CHUNKD_CONFIGS", "CHUNKD_CONFIG"), ("CHUNKD_COLOUR", None)],
)
def test_a_variable_that_is_no_setting_is_a_warning(env: Environment, variable: str, near: str | None) -> None:
    resolved = resolve.Resolved({}, env | {variable: "9"})
    (warning,) = resolved.warnings
    assert variable in warning
    assert (" or ".join([near]) in warning) if near else ("CHUNKD_" not in warning.replace(variable, ""))
    assert config.effective(resolved) == config.load({}, env)
    assert resolve.Resolved({}, env | {f"_{variable}": "x", "CHUNKD_CONFIG": os.devnull}).warnings == []


LINKS = (
    "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "SERVICE_PORT_HTTP_2", "PORT", "PORT_9464_TCP",
    "PORT_9464_TCP_PROTO", "PORT_9464_TCP_PORT", "PORT_9464_TCP_ADDR", "PORT_53_UDP", "PORT_1_SCTP",
)  # fmt: skip


def test_what_kubernetes_says_of_a_service_is_ignored(env: Environment) -> None:
    for service in ("CHUNKD", "CHUNKD_METRICS", "CHUNKD_A_2"):
        links = dict.fromkeys((f"{service}_{link}" for link in LINKS), "tcp://10.0.0.7:9464")
        assert resolve.Resolved({}, env | links).warnings == []
    others = ["CHUNKD_SERVICE", "CHUNKD_PORTS", "CHUNKD_PORT_TCP", "CHUNKD_PORT_1_ICMP", "CHUNKD_SERVICE_PORT_"]
    assert len(resolve.Resolved({}, env | dict.fromkeys(others, "1")).warnings) == len(others)


def test_a_settings_name_wins_over_a_services(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(resolve.SERVICE_LINK.fullmatch(variable) for variable in resolve.VARIABLES)
    monkeypatch.setitem(resolve.VARIABLES, "CHUNKD_PORT", SETTINGS["workers"])
    assert resolve.Resolved({}, env | {"CHUNKD_PORT": "3"}).call["workers"] == (3, "CHUNKD_PORT")
    with pytest.raises(SettingInvalid):
        resolve.Resolved({}, env | {"CHUNKD_PORT": "tcp://10.0.0.7:9464"})


@pytest.mark.parametrize(
    "content", [b"workers = ", b"workers = 1\nworkers = 2\n", b"\xff", b"#" * (resolve.FILE_BYTES + 1)]
)
def test_a_file_that_can_not_be_read_is_named(env: Environment, system_file: Path, content: bytes) -> None:
    system_file.write_bytes(content)
    with pytest.raises(SettingsFileUnusable) as caught:
        config.load({}, env)
    assert caught.value.source == str(system_file)


def test_a_directory_in_a_files_place_is_an_error(env: Environment, system_file: Path) -> None:
    system_file.mkdir()
    with pytest.raises(SettingsFileUnusable) as caught:
        config.load({}, env)
    assert (caught.value.source, caught.value.exit_code) == (str(system_file), 2)


def test_a_byte_order_mark_is_no_part_of_a_file(env: Environment, system_file: Path) -> None:
    system_file.write_bytes(b"\xef\xbb\xbfworkers = 3\r\n")
    assert config.load({}, env).workers == 3


def test_paths_become_absolute_and_keep_their_links(
    env: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("/")
    monkeypatch.chdir(tmp_path)
    found = config.load({"caches": ["link/x", "//b//c/"], "state_dir": "s/.."}, env)
    assert found.caches == (f"{tmp_path}/link/x", "/b/c")
    assert found.state_dir == str(tmp_path)


def test_nothing_given_is_not_an_empty_list(env: Environment) -> None:
    assert config.load({"caches": (), "socket": None}, env) == config.load({}, env)


# --- where things are ---------------------------------------------------------------------------------------------


def places(env: Environment, **flags: str) -> tuple[str, str]:
    found = config.load(flags, env)
    return found.state_dir, found.socket


def test_a_users_places(env: Environment) -> None:
    assert places(env) == ("/home/u/.local/state/chunkd", "/home/u/.local/state/chunkd/chunkd.sock")
    env |= {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1234"}
    assert places(env) == ("/s/chunkd", "/run/user/1234/chunkd/chunkd.sock")
    env["XDG_STATE_HOME"] = "not/absolute"
    assert places(env)[0] == "/home/u/.local/state/chunkd"


def test_roots_places(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch)
    assert places(env | {"XDG_RUNTIME_DIR": "/run/user/0"}) == ("/var/lib/chunkd", "/run/chunkd/chunkd.sock")


def test_systemds_places(env: Environment) -> None:
    env |= {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two", "RUNTIME_DIRECTORY": "/run/one:/run/two"}
    assert places(env) == ("/var/lib/one", "/run/one/chunkd.sock")
    assert config.load({}, env).sources["state_dir"] == "$STATE_DIRECTORY"
    assert config.load({}, env).sources["socket"] == "$RUNTIME_DIRECTORY"


def test_macos_places(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    as_macos(monkeypatch)
    folder = "/home/u/Library/Application Support/chunkd"
    assert places(env | {"XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s"}) == (folder, folder + "/chunkd.sock")
    assert paths.own_file(env) == folder + "/chunkd.toml"
    as_root(monkeypatch)
    assert places(env) == ("/var/lib/chunkd", "/var/lib/chunkd/chunkd.sock")


def test_without_a_home_what_is_given_is_enough(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    bare = {"PATH": env["PATH"]}
    found = config.load({"state_dir": "/s", "caches": ("/c",)}, bare)
    assert (found.state_dir, found.socket, found.caches) == ("/s", "/s/chunkd.sock", ("/c",))
    for flags, missing in (({"state_dir": "/s"}, "caches"), ({"caches": ("/c",)}, "state_dir"), ({}, "state_dir")):
        with pytest.raises(SettingInvalid) as caught:
            config.load(flags, bare)
        assert caught.value.name == missing
    assert config.effective(resolve.Resolved({"state_dir": "/s"}, bare), serving=False).caches == ()
    assert sockets({}, bare) == ["/run/user/1234/chunkd/chunkd.sock", "/run/chunkd/chunkd.sock"]
    assert states({}, bare) == ["/var/lib/chunkd"]
    assert sockets({"socket": "/g"}, bare) == ["/g"]


def test_a_given_state_directory_holds_its_socket(env: Environment) -> None:
    env |= {"XDG_RUNTIME_DIR": "/run/user/1234", "RUNTIME_DIRECTORY": "/run/one"}
    assert places(env, state_dir="/x") == ("/x", "/x/chunkd.sock")
    assert config.load({"state_dir": "/x"}, env).sources["socket"] == "beside --state"
    assert places(env | {"CHUNKD_STATE_DIR": "/x"}) == ("/x", "/x/chunkd.sock")
    assert places(env, state_dir="/x", socket="/y") == ("/x", "/y")
    assert places(env | {"CHUNKD_SOCKET": "/y"}, state_dir="/x") == ("/x", "/y")
    assert places(env, state_dir="/home/u/.local/state/chunkd")[1] == "/run/one/chunkd.sock"


def test_a_clients_candidates(env: Environment, system_file: Path) -> None:
    env["XDG_RUNTIME_DIR"] = "/run/user/1234"
    user = ["/run/user/1234/chunkd/chunkd.sock", "/home/u/.local/state/chunkd/chunkd.sock"]
    assert sockets({}, env) == [*user, "/run/chunkd/chunkd.sock"]
    assert states({}, env) == ["/home/u/.local/state/chunkd", "/var/lib/chunkd"]
    env |= {"RUNTIME_DIRECTORY": "/run/one:/run/two", "STATE_DIRECTORY": "/var/lib/one"}
    system_file.write_text("socket = '/f/s'\nstate_dir = '/f'\n")
    own = ["/f/s", "/run/one/chunkd.sock", "/run/user/1234/chunkd/chunkd.sock", "/f/chunkd.sock"]
    assert sockets({}, env) == [*own, "/run/chunkd/chunkd.sock"]
    found = ["/f", "/var/lib/one", "/home/u/.local/state/chunkd", "/var/lib/chunkd"]
    assert states({}, env) == found


def test_a_given_candidate_is_the_only_one(env: Environment) -> None:
    env["RUNTIME_DIRECTORY"] = "/run/one"
    assert sockets({"socket": "/g"}, env | {"CHUNKD_SOCKET": "/h"}) == ["/g"]
    assert sockets({}, env | {"CHUNKD_SOCKET": "/h"}) == ["/h"]
    assert states({"state_dir": "/g"}, env | {"CHUNKD_STATE_DIR": "/h"}) == ["/g"]
    assert states({}, env | {"CHUNKD_STATE_DIR": "/h"}) == ["/h"]
    assert sockets({"state_dir": "/g"}, env) == ["/g/chunkd.sock"]


def test_no_candidate_comes_twice(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root(monkeypatch)
    env |= {"RUNTIME_DIRECTORY": "/run/chunkd", "STATE_DIRECTORY": "/var/lib/chunkd"}
    assert sockets({}, env) == ["/run/chunkd/chunkd.sock"]
    assert states({}, env) == ["/var/lib/chunkd"]


def test_the_systems_daemon_is_found_by_its_state_directory(env: Environment, system_file: Path) -> None:
    system = "/run/chunkd/chunkd.sock"
    flags = {"state_dir": "/var/lib/chunkd"}
    assert sockets(flags, env) == ["/var/lib/chunkd/chunkd.sock", system]
    system_file.write_text("state_dir = '/data'\n")
    assert system not in sockets(flags, env)
    assert system in sockets({"state_dir": "/data"}, env)


@pytest.mark.parametrize("line", ["socket = '/f/s'", '"so\\u0063ket" = "/f/s"'])
def test_a_file_says_where_the_socket_is(env: Environment, system_file: Path, line: str) -> None:
    system_file.write_text(f"workers = 2\n{line}\n")
    assert "/f/s" in sockets({}, env)


@pytest.mark.parametrize("content", ["caches = [\n", "workers = 'two'\n", "socket = 3\n", "colour = 'red'\n"])
def test_a_client_that_is_told_where_to_look_needs_no_file(env: Environment, system_file: Path, content: str) -> None:
    system_file.write_text(content)
    assert sockets({"socket": "/g"}, env) == ["/g"]
    assert sockets({"state_dir": "/g"}, env) == ["/g/chunkd.sock"]
    assert states({}, env | {"CHUNKD_STATE_DIR": "/g"}) == ["/g"]
    for ask in (sockets, states, config.load):
        with pytest.raises(SettingInvalid):
            ask({}, env)
    with pytest.raises(SettingInvalid):  # the caps, say, are in it
        config.load({"state_dir": "/g", "caches": ("/c",)}, env)


def test_a_file_is_read_once_a_command(env: Environment, system_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system_file.write_text("workers = 2\n")
    read: list[str] = []
    whole = tomllib.loads

    def noted(content: str) -> dict[str, Any]:
        read.append(content)
        return whole(content)

    monkeypatch.setattr(tomllib, "loads", noted)
    resolved = resolve.Resolved({}, env)
    assert read == []
    assert (len(resolved.sockets), len(resolved.states), config.effective(resolved).workers) == (3, 2, 2)
    assert len(read) == 1


SYSTEMD = {"STATE_DIRECTORY": "/var/lib/chunkd", "RUNTIME_DIRECTORY": "/run/chunkd"}
SESSIONS: list[Environment] = [
    {},
    {"XDG_RUNTIME_DIR": "/run/user/1234"},
    {"XDG_RUNTIME_DIR": "/elsewhere"},
    {"XDG_STATE_HOME": "/s"},
]
# The platform, who runs the daemon, who asks, and what the daemon's environment has besides. Another user's own daemon
# is not to be found, the system's is.
SCENARIOS = [
    *(("linux", uid, uid, session) for uid in (0, 1234) for session in SESSIONS),
    *(("darwin", uid, uid, session) for uid in (0, 1234) for session in SESSIONS),
    *((platform, 0, 1234, session) for platform in ("linux", "darwin") for session in SESSIONS),
    *(("linux", daemon_uid, client_uid, SYSTEMD) for daemon_uid in (0, 999) for client_uid in (0, 1234)),
]
FILES = ["", "state_dir = '/f'\n", "socket = '/f/s'\n", "state_dir = '/f'\nsocket = '/f/s'\n"]
GIVEN: list[Environment] = [{}, {"state_dir": "/x"}, {"state_dir": "/x", "socket": "/y"}, {"socket": "/y"}]


@pytest.mark.parametrize(("platform", "daemon_uid", "client_uid", "session"), SCENARIOS)
def test_run_and_its_clients_find_one_another(
    env: Environment,
    system_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    daemon_uid: int,
    client_uid: int,
    session: Environment,
) -> None:
    """Who gives a client what the daemon was given finds it; so does who names its state directory alone."""
    client_env = env | session if daemon_uid == client_uid and session is not SYSTEMD else env
    monkeypatch.setattr(sys, "platform", platform)
    for file, flags in itertools.product(FILES, GIVEN):
        system_file.write_text(file)
        monkeypatch.setattr(os, "geteuid", lambda: daemon_uid)
        daemon = config.load(flags, env | session)
        monkeypatch.setattr(os, "geteuid", lambda: client_uid)
        assert daemon.socket in sockets(flags, client_env), (file, flags)
        assert daemon.state_dir in states(flags, client_env), (file, flags)
        if "socket" not in flags:
            assert daemon.socket in sockets({"state_dir": daemon.state_dir}, client_env), (
                file,
                flags,
            )
