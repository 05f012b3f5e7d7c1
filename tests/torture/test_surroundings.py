"""Whatever surrounds a process - its environment, limits, streams, mounts - it works or ends with one line that names
what is wrong: never a traceback. The daemon and each command are started under each of these.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from answering import short_directory
from blobs import gz, layer, noise, write_blob
from chunkd.client import http
from chunkd.errors import ChunkdError
from conftest import Tell
from counts import SHARE
from daemon import PATIENCE_S, Home, opened

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces and limits are Linux's")

CHUNKD = (sys.executable, "-P", "-m", "chunkd")
# Each is started everywhere: stats and health beside the daemon, where there is one, and scan and check after it.
READS = (("stats",), ("health",))
WORKS = (("scan", "CACHE"), ("check",))
# Of these two in each surrounding, by turns: each costs a process more.
BY_TURNS = (
    ("blobs",), ("histogram",), ("history",), ("config",), ("blobs", "--sort", "unique"), ("report", "-o", "REPORT"),
    ("check", "--read"), ("check", "--repair"), ("rebuild", "CACHE"),
)  # fmt: skip
# All that a command may end with; a signal is none of them.
CODES = range(8)

# By shell, before `exec "$@"`; in the folder that has `cache` and `state`.
SURROUNDINGS = {
    "no HOME": "unset HOME",
    "an empty HOME": "export HOME=",
    "a HOME that is no folder": "export HOME=/dev/null/home XDG_CONFIG_HOME=relative XDG_RUNTIME_DIR=/nowhere",
    "an empty environment": 'set -- env -i "$@"',
    "no stdin": "exec <&-",
    "no stdout": "exec >&-",
    "no stderr": "exec 2>&-",
    "no stdin and stderr": "exec <&- 2>&-",
    "no streams": "exec <&- >&- 2>&-",
    "full streams": "exec </dev/full >/dev/full 2>/dev/full",
    "0 files": "ulimit -n 5",
    "8 files": "ulimit -n 8",
    "12 files": "ulimit -n 12",
    "20 files": "ulimit -n 20",
    "32 files": "ulimit -n 32",
    "files without a byte": "ulimit -f 0",
    "400 MB of addresses": "ulimit -v 400000",
    "a small stack": "ulimit -s 256",
    "umask 077": "umask 077",
    "umask 777": "umask 777",
    "an unknown locale": "export LANG=xx_YY LC_ALL=xx_YY",
    "locale C": "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0",
    "locale POSIX": "export LC_ALL=POSIX LANGUAGE=zz",
    "ASCII streams": "export PYTHONIOENCODING=ascii:strict PYTHONUTF8=0",
    "a TZ that is nonsense": "export TZ=../../nonsense,M99",
    "a TZ that is another file": "export TZ=:/etc/passwd",
    "a terminal that is nonsense": "export TERM=nonsense COLUMNS=0 LINES=x",
    "a cwd that was removed": "mkdir gone && cd gone && rmdir ../gone",
    "a settings file that is missing": "export CHUNKD_CONFIG=$PWD/nowhere",
    "a settings file that is a folder": "export CHUNKD_CONFIG=$PWD",
    "a settings file of noise": "head -c 4096 /dev/urandom >noise; export CHUNKD_CONFIG=$PWD/noise",
    "a settings file with a byte-order mark": r"printf '\357\273\277nice = 5\n' >bom; export CHUNKD_CONFIG=$PWD/bom",
    "a settings file that may not be read": "touch secret; chmod 0 secret; export CHUNKD_CONFIG=$PWD/secret\n"
    'set -- setpriv --bounding-set=-dac_override,-dac_read_search "$@"',
    "settings that are nonsense": r"export CHUNKD_WORKERS=many CHUNKD_NICER=1 CHUNKD_SOCKET=$(printf '\377')",
    "no TMPDIR": "export TMPDIR=/nowhere TMP=/nowhere TEMP=/nowhere",
    "Python's variables": "export PYTHONPATH=/nowhere PYTHONOPTIMIZE=2 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0",
    "Python's developer mode": "export PYTHONDEVMODE=1 PYTHONMALLOC=debug PYTHONASYNCIODEBUG=1",
    "systemd's variables": "export NOTIFY_SOCKET=/nowhere JOURNAL_STREAM=x:y STATE_DIRECTORY=a:b RUNTIME_DIRECTORY=::",
    "signals that are ignored": "trap '' CHLD PIPE INT TERM HUP",
    "another user": 'set -- setpriv --reuid 54321 --regid 54321 --clear-groups "$@"',
    "a user without an entry": "chown -R 54321:54321 .; unset HOME\n"
    'set -- setpriv --reuid 54321 --regid 54321 --clear-groups "$@"',
}
# The same, with mounts of its own.
MOUNTED = {
    "no /proc": "mount -t tmpfs none /proc",
    "no /sys": "mount -t tmpfs none /sys",
    "no /dev": "mount -t tmpfs none /dev",
    "no /etc": "mount -t tmpfs none /etc",
    "a state that can't be written": "mount --bind state state && mount -o remount,ro,bind state",
    "a root that can't be written": "mount --rbind . . && mount -o remount,ro,bind / && mount -o remount,ro,bind .",
    "a full disk": "mount -t tmpfs -o size=1m none /mnt && cp -r state/. /mnt && mount --rbind /mnt state\n"
    "dd if=/dev/zero of=state/filler bs=4096 2>/dev/null",
    "a full disk from the start": "mount -t tmpfs -o size=64k none state; dd if=/dev/zero of=state/filler 2>/dev/null",
}
# Where the state directory lies.
STATES = {
    "a path that is not UTF-8": "st\udcffte",
    "a path with control characters": "st\n\x1b[2Jte",
    "a path that is too long for a socket": "s" * 120,
    "a file": "cache/file",
}


Commands = tuple[tuple[str, ...], ...]


@dataclass
class Place:
    """A folder with a cache and an index of it, and a surrounding for what is started there."""

    root: Path
    state: Path
    under: tuple[str, ...]
    environ: dict[str, str]

    def start(self, name: str, args: tuple[str, ...]) -> subprocess.Popen[bytes]:
        given = {"CACHE": str(self.root / "cache"), "REPORT": str(self.root / "report.html")}
        with (self.root / f"{name}.out").open("wb") as out, (self.root / f"{name}.err").open("wb") as err:
            command = [*self.under, *CHUNKD, *(given.get(arg, arg) for arg in args), "--state", str(self.state)]
            return subprocess.Popen(
                command, env=self.environ, cwd=self.root, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def said(self, name: str) -> str:
        return (self.root / f"{name}.err").read_text(errors="replace")

    def ended(self, name: str, args: tuple[str, ...], process: subprocess.Popen[bytes]) -> str:
        """What is wrong with how a command ended, if anything is."""
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"{args}: does not end"
        said = self.said(name)
        if "Traceback" in said or "Traceback" in (self.root / f"{name}.out").read_text(errors="replace"):
            return f"{args}: a traceback: {said[-3000:]}"
        if code not in CODES:
            return f"{args}: ended with {code}: {said[-3000:]}"
        last = [line for line in said.splitlines() if " warning: " not in line][-1:]
        if code in (1, 2, 3) and not all(line.startswith(("chunkd: ", "Error: ")) for line in last):
            return f"{args}: ended with {code}, and not with one line that says why: {said[-3000:]}"
        return ""


@pytest.fixture(scope="module")
def scanned() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as home:
        for seed in range(3):
            write_blob(home.cache(), gz(layer(seed, 60_000)))
        write_blob(home.cache(), b"not a layer" + noise(100))
        home.scan(home.cache())
        yield home


def shell(script: str, mounts: bool) -> tuple[str, ...]:
    namespace = ("unshare", "--mount", "--propagation=private") if mounts else ()
    return (*namespace, "sh", "-c", f'{script}\nexec "$@"', "sh")


def starts_there(place: Place) -> bool:
    """Whether Python itself does."""
    command = [*place.under, sys.executable, "-c", "import socket, json, subprocess, threading, lmdb, numpy"]
    return subprocess.run(command, env=place.environ, cwd=place.root, check=False, capture_output=True).returncode == 0


def survived(place: Place, reads: Commands, works: Commands) -> list[str]:
    """What went wrong."""
    daemon = place.start("run", ("run", "CACHE"))
    ready_by = time.monotonic() + PATIENCE_S
    try:
        while daemon.poll() is None and not answers(place) and "ready: " not in place.said("run"):
            if time.monotonic() > ready_by:
                return [f"the daemon neither answers nor ends: {place.said('run')}"]
            time.sleep(0.05)
        running = daemon.poll() is None
        wrong = batch(place, reads)
        if running and daemon.poll() is not None:
            wrong.append(f"the daemon has ended: {place.said('run')}")
        elif running:
            daemon.send_signal(signal.SIGTERM)
        wrong.append(place.ended("run", ("run",), daemon))
        if running and daemon.returncode != 0:
            wrong.append(f"stopped with {daemon.returncode}: {place.said('run')}")
    finally:
        daemon.kill()
    for number, args in enumerate(works):
        wrong.append(place.ended(f"work-{number}", args, place.start(f"work-{number}", args)))
    return [line for line in wrong if line]


def answers(place: Place) -> bool:
    try:
        return bool(http.ask(str(place.state / "chunkd.sock"), "GET", "/v1/health"))
    except (ChunkdError, OSError, ValueError):
        return False


def batch(place: Place, commands: Commands) -> list[str]:
    started = [(f"read-{number}", args, place.start(f"read-{number}", args)) for number, args in enumerate(commands)]
    return [place.ended(*each) for each in started]


CASES = [
    *((name, script, False, "state") for name, script in SURROUNDINGS.items()),
    *((name, script, True, "state") for name, script in MOUNTED.items()),
    *((f"state: {name}", ":", False, state) for name, state in STATES.items()),
]


# Of a share of the full counts, other ones with another seed.
EVERY = max(1, round(1 / SHARE))
CHOSEN = list(enumerate(CASES))[int(os.environ.get("TORTURE_SEED") or 0) % EVERY :: EVERY]


@pytest.mark.parametrize(
    ("number", "script", "mounts", "state"),
    [(number, *case[1:]) for number, case in CHOSEN],
    ids=[case[0] for _, case in CHOSEN],
)
def test_it_works_or_says_in_one_line_why_not(
    scanned: Home, tell: Tell, number: int, script: str, mounts: bool, state: str
) -> None:
    if os.geteuid() != 0 and (mounts or "setpriv" in script):
        pytest.skip("needs root")
    with short_directory() as root:
        root.chmod(0o755)
        shutil.copytree(scanned.cache(), root / "cache")
        (root / "cache" / "file").write_text("")
        if state != "cache/file":
            shutil.copytree(scanned.state, root / state)
        environ = scanned.environ | {"HOME": str(root)}
        environ.pop("PYTHONUNBUFFERED")
        place = Place(root, root / state, shell(script, mounts), environ)
        if not starts_there(place):
            tell("Python itself does not start there")
            return
        turns = [BY_TURNS[(2 * number + one) % len(BY_TURNS)] for one in range(2)]
        assert survived(place, READS, (*WORKS, *turns)) == []
