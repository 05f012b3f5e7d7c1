"""The service units: what systemd itself says of them, and a reason beside every directive."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chunkd import errors
from chunkd.cli import main
from chunkd.cli.options import INCOMPLETE
from chunkd.settings import paths as directories

ROOT = Path(__file__).parents[2]
SYSTEM, USER = ROOT / "systemd/chunkd.service", ROOT / "systemd/user/chunkd.service"
DROP_INS = ROOT / "systemd/cache.conf", ROOT / "systemd/user/no-namespaces.conf", ROOT / "systemd/metrics.conf"
EXPORT, TIMER = ROOT / "systemd/chunkd-export.service", ROOT / "systemd/chunkd-export.timer"
PLIST = ROOT / "launchd/chunkd.plist"

DIRECTIVE = re.compile(r"#?([A-Z]\w+)=(.*)")
MOST_EXPOSURE = 1.0
MOST_EXPOSURE_WITH_TCP = 1.5
# A user's manager knows no ProtectProc=, ProcSubset=, DevicePolicy= and the like.
MOST_EXPOSURE_OF_A_USERS = 1.5
# The comment of the directive right above speaks for these too.
SHARE_A_REASON = {
    "AmbientCapabilities", "DevicePolicy", "FixedRandomDelay", "Group", "IOWeight", "PrivateDevices", "PrivateUsers",
    "ProcSubset", "ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs",
    "ProtectKernelModules", "ProtectKernelTunables", "RestartSec", "RuntimeDirectoryMode", "StateDirectoryMode",
    "SystemCallFilter",
}  # fmt: skip

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not on this machine")
units = pytest.mark.parametrize("unit", [SYSTEM, USER], ids=["system", "user"])


def directives(text: str) -> dict[str, str]:
    """The last value of each directive, comment signs left out of account only where a directive follows them."""
    return {match[1]: match[2] for match in map(DIRECTIVE.fullmatch, text.splitlines()) if match}


def without_reason(text: str) -> list[str]:
    """The directives that have no comment above them."""
    bare, commented, reasoned = [], False, False
    for line in text.splitlines():
        if found := DIRECTIVE.fullmatch(line):
            reasoned = commented or (reasoned and found[1] in SHARE_A_REASON)
            bare += [] if reasoned or found[1] == "Description" else [line]
            commented = False
        else:
            commented = line.startswith("# ") and not line.startswith("# ---")
            reasoned = False
    return bare


def systemd_analyze(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], env=env, capture_output=True, text=True, timeout=60
    )


def exposure(tmp_path: Path, text: str) -> float:
    (tmp_path / "chunkd.service").write_text(text)
    said = systemd_analyze(tmp_path, "security", "--offline=true", str(tmp_path / "chunkd.service")).stdout
    found = re.search(r"Overall exposure level for chunkd.service: ([0-9.]+)", said)
    assert found, said
    return float(found[1])


@needs_systemd
@units
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    # That the command exists is asked too, and it is not installed where the unit says.
    text, replaced = re.subn(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
    (tmp_path / "chunkd.service").write_text(text)
    manager = ["--user"] if unit == USER else []
    verified = systemd_analyze(tmp_path, *manager, "verify", str(tmp_path / "chunkd.service"))
    assert (replaced, verified.returncode, verified.stdout + verified.stderr) == (1, 0, "")


@needs_systemd
@units
def test_exposure_is_low(unit: Path, tmp_path: Path) -> None:
    most = MOST_EXPOSURE if unit == SYSTEM else MOST_EXPOSURE_OF_A_USERS
    assert exposure(tmp_path, unit.read_text()) <= most


@needs_systemd
def test_exposure_stays_low_with_all_that_the_drop_in_offers(tmp_path: Path) -> None:
    offered = re.sub(r"^#(?=[A-Z]\w+=)", "", DROP_INS[0].read_text(), flags=re.MULTILINE)
    assert "\nAmbientCapabilities=CAP_DAC_READ_SEARCH\n" in offered
    assert exposure(tmp_path, SYSTEM.read_text() + offered) <= MOST_EXPOSURE


@needs_systemd
def test_exposure_with_metrics_over_tcp(tmp_path: Path) -> None:
    assert exposure(tmp_path, SYSTEM.read_text() + DROP_INS[2].read_text()) <= MOST_EXPOSURE_WITH_TCP


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_export(tmp_path: Path) -> None:
    for unit in (EXPORT, TIMER):
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", unit.read_text(), flags=re.MULTILINE)
        (tmp_path / unit.name).write_text(text)
    verified = systemd_analyze(tmp_path, "verify", str(tmp_path / TIMER.name), str(tmp_path / EXPORT.name))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    assert exposure(tmp_path, EXPORT.read_text()) <= MOST_EXPOSURE


def test_the_export_fits_the_daemon_beside_it() -> None:
    given, daemon = directives(EXPORT.read_text()), directives(SYSTEM.read_text())
    for name in ("User", "Group", "StateDirectory", "StateDirectoryMode"):
        assert given[name] == daemon[name]
    # It would be removed when the export ends, and the daemon's socket with it.
    assert "RuntimeDirectory" not in given
    assert given["RemoveIPC"] == "no"
    command = given["ExecStart"].split()
    assert command[0] == daemon["ExecStart"].split()[0]
    flags = {flag for option in main.main.commands[command[1]].params for flag in option.opts}
    assert set(command[2:-1]) <= flags
    assert command[-1] == given["ReadWritePaths"] == given["RequiresMountsFor"]
    assert given["SuccessExitStatus"] == str(INCOMPLETE)
    assert TIMER.stem == EXPORT.stem


@pytest.mark.parametrize(
    "unit", [SYSTEM, USER, EXPORT, TIMER, *DROP_INS], ids=lambda unit: unit.parent.name + "/" + unit.name
)
def test_every_directive_has_its_reason(unit: Path) -> None:
    text = unit.read_text()
    assert directives(text)
    assert without_reason(text) == []


@units
def test_what_the_daemon_counts_on(unit: Path) -> None:
    given = directives(unit.read_text())
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "mixed",
        "OOMPolicy": "continue",
        "Restart": "on-failure",
        "RestartPreventExitStatus": str(errors.UsageError.exit_code),
        "RuntimeDirectory": "chunkd",
        "MemoryDenyWriteExecute": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
    }
    assert {name: given.get(name) for name in expected} == expected
    command = given["ExecStart"].split()
    assert Path(command[0]).name == "chunkd"
    assert command[1] in main.main.commands
    assert "WatchdogSec" in given


@units
def test_what_the_settings_ask_of_workers_is_possible_and_not_asked_twice(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert lines.index("SystemCallFilter=setpriority ioprio_set") > lines.index(
        "SystemCallFilter=~@privileged @resources"
    )
    assert not {"Nice", "IOSchedulingClass", "IOSchedulingPriority", "CPUSchedulingPolicy"} & set(
        directives("\n".join(lines))
    )


def test_the_system_units_folders_are_where_clients_look() -> None:
    given = directives(SYSTEM.read_text())
    assert "/var/lib/" + given["StateDirectory"] == directories.SYSTEM_STATE
    if sys.platform == "linux":
        assert f"/run/{given['RuntimeDirectory']}/chunkd.sock" == directories.system_socket()
    assert (given["StateDirectoryMode"], given["RuntimeDirectoryMode"]) == ("0750", "0750")
    assert (ROOT / "systemd/chunkd.sysusers").read_text().splitlines()[-1].split()[:2] == ["u", given["User"]]


def test_the_agent_of_macos() -> None:
    agent = plistlib.loads(PLIST.read_bytes())
    assert agent["Label"] == PLIST.stem
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ProcessType"] == "Background"
    program, command = agent["ProgramArguments"]
    assert Path(program).name == "chunkd"
    assert command in main.main.commands
    # Every path in it is one that docs/service.md has replaced with the user's own.
    paths = re.findall(r"<string>(/.*)</string>", PLIST.read_text())
    assert len(paths) == 3
    assert all(path.startswith("/Users/YOU/") for path in paths)


def test_every_key_of_the_agent_has_its_reason() -> None:
    bare, reason = [], False
    for line in PLIST.read_text().partition("<dict>")[2].splitlines():
        if not line.strip():
            reason = False
        elif "-->" in line:
            reason = True
        elif not reason and line.startswith("    <key>"):
            bare.append(line.strip())
    assert bare == []


@pytest.mark.parametrize(
    "text", ["[Service]\nNice=10\n", "# Why.\n\nNice=10\n", "# --- part\nNice=10\n", "# Why.\nUMask=0077\nNice=10"]
)
def test_a_directive_without_a_reason_is_seen(text: str) -> None:
    assert without_reason(text) == ["Nice=10"]
