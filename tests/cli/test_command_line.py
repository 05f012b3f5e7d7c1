"""Each command as a process: its exit code, and the one line it says when something is wrong.

`Home.command` forks. What is about a start of Python, such as streams that are closed by then, starts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import lmdb
import pytest

import forked
from blobs import gz, layer, noise, tar, write_blob
from chunkd import __version__
from chunkd.cli.main import main
from chunkd.errors import OutputUnwritable
from chunkd.index import records
from chunkd.index.storage.environment import CACHES_KEY, DATABASES, FORMAT_KEY, HEAD_KEY, RULES_KEY
from chunkd.model import ChunkParams
from chunkd.settings.table import SETTINGS
from daemon import ASK_EVERY_S, Home, figures, until, without_rights

COMMANDS = ("run", "scan", "stats", "blobs", "check", "rebuild", "health", "config")


@pytest.fixture
def scanned(home: Home) -> Home:
    """A home whose index holds three layers of its cache."""
    cache = home.cache()
    for seed in range(3):
        write_blob(cache, gz(layer(seed, 60_000)))
    done = home.command("scan", cache, "--json", "--workers", "1")  # each worker is a start of Python
    assert json.loads(done.stdout)["layers"] == 3, done.stderr
    return home


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with this exit code and one line on stderr that names these things."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("chunkd: ")
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    assert done.stdout == ""


def edit(home: Home, database: str, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change one record of the index behind chunkd's back."""
    with lmdb.open(str(home.state / "index"), map_size=1 << 30, max_dbs=len(DATABASES)) as env:
        opened_database = env.open_db(database.encode(), create=False)
        with env.begin(write=True, db=opened_database) as txn:
            value = txn.get(key)
            assert value is not None
            txn.put(key, change(bytes(value)))


def more_layers(value: bytes) -> bytes:
    head = records.unpack_head(value)
    totals = dataclasses.replace(head.totals, layers=head.totals.layers + 5)
    return records.pack_head(dataclasses.replace(head, totals=totals))


# --- help, version, the module ------------------------------------------------------------------------------------


def test_help_of_every_command(home: Home) -> None:
    listed = subprocess.run([sys.executable, "-m", "chunkd", "--help"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert f"\n  {command} " in listed.stdout
        shown = subprocess.run(
            [sys.executable, "-m", "chunkd", command, "--help"], capture_output=True, text=True, check=True
        )
        assert shown.stdout.startswith(f"Usage: chunkd {command} ")
        assert "--state" in shown.stdout
    shown = home.command("config", "--help")
    for setting in SETTINGS.values():
        assert setting.flag in shown.stdout or setting.flag == "CACHE..."


# The exit code of each, with an index and no daemon; `run` is started by test_a_daemon_lives_without_its_streams.
ENDS = {
    "scan": 0, "stats": 0, "histogram": 0, "blobs": 0, "history": 0, "check": 0, "health": 3, "config": 0, "report": 0,
    "rebuild": 0, "images": 0, "freed": 2, "similar": 0, "diff": 2, "replay": 0, "updates": 0,
    "where": 0, "sweep": 0, "export": 0,
}  # fmt: skip


def test_each_command_imports_what_it_needs(scanned: Home) -> None:
    """Started, each by itself: what is forked has all modules."""
    assert {*ENDS, "run", "merge"} == set(main.commands)
    log = scanned.root / "access.log"
    log.write_text("junk")
    given = {
        "scan": (scanned.cache(),), "report": ("-o", scanned.root / "report.html"),
        "updates": ("--all",),
        "freed": ("no-image",), "diff": ("no-image", "no-image"), "replay": (log,),
        "export": (scanned.root / "store",),
    }  # fmt: skip
    for command, code in ENDS.items():
        started = Home(scanned.root, anew=True).command(command, *given.get(command, ()))
        assert (started.returncode, bool(started.stdout)) == (code, code != 2), started.stderr
    words = [sys.executable, "-m", "chunkd", "merge", str(scanned.root / "store")]  # it has no index
    assert subprocess.run(words, capture_output=True, check=True).stdout


def test_version_and_the_installed_script() -> None:
    script = Path(sys.executable).parent / "chunkd"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "chunkd"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    first, python, *libraries = done.stdout.splitlines()
    assert (first, python) == (f"chunkd, version {__version__}", f"Python {platform.python_version()}")
    assert f"lmdb {metadata.version('lmdb')}" in libraries
    assert len(libraries) >= 10


@pytest.mark.parametrize("command", ["run", "scan", "rebuild"])
def test_without_a_cache_and_without_the_default_folder(scanned: Home, command: str) -> None:
    state = scanned.state if command == "rebuild" else scanned.root / "other"
    if command == "rebuild":  # an index that tells no caches
        (state / "index" / "data.mdb").write_bytes(b"")
    done = scanned.command(command, state=state)
    refused(done, 2, "no cache is named", "chunkd scan /var/lib/registry", "CHUNKD_CACHES", "settings file")
    assert not (scanned.root / "other").exists()
    # Whoever names it is told what is wrong with it.
    named = scanned.root / ".local/supermachine-layer-cache/registry/blobs/sha256"
    refused(scanned.command("scan", named, state=scanned.root / "other"), 1, str(named), "does not exist")


def on_a_terminal(home: Home, *words: object, **environ: str) -> bytes:
    """What a command writes to stderr where that is a terminal."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "chunkd", *map(str, words), "--state", str(home.state)]
    with os.fdopen(terminal, "rb", buffering=0) as written, os.fdopen(end, "wb") as stderr:
        taken = {name: value for name, value in home.environ.items() if name != "NO_COLOR"}
        done = subprocess.run(
            command, env=taken | {"TERM": "xterm-256color"} | environ, stdout=subprocess.PIPE, stderr=stderr, check=True
        )
        assert b"layers" in done.stdout
        os.set_blocking(written.fileno(), False)
        return written.read(65536) or b""


def test_quiet_shows_no_progress_and_no_color_no_colours(home: Home) -> None:
    write_blob(home.cache(), gz(layer()))
    colours = re.compile(rb"\x1b\[[0-9;]*3[0-9](;[0-9;]*)?m")
    shown = on_a_terminal(home, "scan", home.cache())
    assert colours.search(shown)
    plain = on_a_terminal(home, "rebuild", NO_COLOR="1")
    assert b"\x1b[" in plain
    assert not colours.search(plain)
    assert on_a_terminal(home, "scan", "--quiet", home.cache()) == b""
    assert b"\x1b[" not in on_a_terminal(home, "rebuild", "-q")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_a_shell(home: Home, shell: str) -> None:
    environ = home.environ | {"_CHUNKD_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-m", "chunkd"], env=environ, capture_output=True, text=True, check=False)
    assert "chunkd" in done.stdout or "bash" in done.stderr, done.stderr  # where bash itself is missing or old


def test_unknown_command_and_flag_are_usage_errors(home: Home) -> None:
    assert home.command("frobnicate").returncode == 2
    assert home.command("stats", "--frobnicate").returncode == 2


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["stats", "blobs", "check", "health", "config"])
def test_an_unknown_variable_is_a_warning(scanned: Home, command: str) -> None:
    usual = scanned.command(command)
    odd = scanned.command(command, environ={"CHUNKD_WORKRES": "3"})
    assert (odd.returncode, odd.stdout) == (usual.returncode, usual.stdout)
    (warning,) = odd.stderr.splitlines()
    assert "CHUNKD_WORKRES" in warning
    assert "CHUNKD_WORKERS" in warning
    as_kubernetes_does = {"CHUNKD_PORT": "tcp://10.0.0.7:9464", "CHUNKD_METRICS_SERVICE_HOST": "10.0.0.7"}
    assert scanned.command(command, environ=as_kubernetes_does).stderr == ""


def test_a_bad_value_says_where_it_came_from(home: Home) -> None:
    refused(home.command("config", "--workers", "many"), 2, "workers (--workers)", "'many'")
    settings = home.root / "settings.toml"
    settings.write_text("wrokers = 3\n")
    environ = {"CHUNKD_CONFIG": str(settings)}
    refused(home.command("config", environ=environ), 2, f"wrokers ({settings}:wrokers)", "workers")


def test_config_shows_every_setting_and_its_source(home: Home) -> None:
    done = home.command("config", "--json", home.root / "cache", environ={"CHUNKD_WORKERS": "3"})
    rows = json.loads(done.stdout)
    assert rows.keys() == SETTINGS.keys()
    assert rows["workers"] == {"value": 3, "source": "CHUNKD_WORKERS"}
    assert rows["state_dir"] == {"value": str(home.state), "source": "--state"}
    assert rows["caches"]["value"] == [str(home.root / "cache")]
    assert rows["log_level"]["source"] == "default"
    lines = home.command("config").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(SETTINGS)


# --- caches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "scan"])
def test_a_cache_that_is_missing_or_no_folder(home: Home, command: str) -> None:
    missing = home.root / "nowhere"
    refused(home.command(command, missing), 1, str(missing))
    missing.touch()
    refused(home.command(command, missing), 1, str(missing))


def test_a_cache_that_may_not_be_listed(home: Home) -> None:
    cache = home.cache()
    cache.chmod(0)
    for command in ("run", "scan"):
        done = home.command(command, cache, under=without_rights())
        refused(done, 1, str(cache))


def test_caches_inside_one_another(home: Home) -> None:
    refused(home.command("scan", home.cache(), home.cache("cache/inner")), 2, str(home.root / "cache" / "inner"))


# --- no index, another index, a damaged one -----------------------------------------------------------------------


def test_without_daemon_and_index(home: Home) -> None:
    refused(home.command("stats"), 3, str(home.state), "chunkd run", "chunkd scan")
    refused(home.command("blobs"), 3, str(home.state))
    refused(home.command("check"), 3, str(home.state))
    refused(home.command("rebuild"), 3, str(home.state))
    down = home.command("health")
    assert down.returncode == 3
    assert down.stdout.startswith("down\n")
    assert json.loads(home.command("health", "--json").stdout)["state"] == "down"


@pytest.mark.parametrize(
    "command",
    [
        ("stats",), ("stats", "--fail-if", "net<0"), ("histogram",), ("blobs",), ("blobs", "--sort", "size"),
        ("history",), ("check",), ("scan", "cache"), ("run", "cache"),
    ],
)  # fmt: skip
def test_an_index_of_another_format(scanned: Home, command: tuple[str, ...]) -> None:
    edit(scanned, "meta", FORMAT_KEY, lambda _: records.seal((99).to_bytes(4, "little")))
    done = scanned.command(*command, cwd=scanned.root)
    refused(done, 1, str(scanned.state), "99", str(records.FORMAT), "chunkd rebuild")


def test_the_caches_of_an_index_of_the_first_format_are_read_anew(scanned: Home) -> None:
    """Their records were shorter."""
    before = json.loads(scanned.command("stats", "--json").stdout)
    edit(scanned, "meta", FORMAT_KEY, lambda _: records.seal((1).to_bytes(4, "little")))
    old = {"1": [str(scanned.cache()), 0, 0, [], False]}
    edit(scanned, "meta", CACHES_KEY, lambda _: records.seal(json.dumps(old).encode()))
    refused(scanned.command("scan", scanned.cache()), 1, str(scanned.state), "format 1", "chunkd rebuild")
    done = scanned.command("rebuild", "--json")
    assert done.returncode == 0, done.stderr
    assert figures(json.loads(done.stdout)) == figures(before)
    scanned.check()


def test_an_index_made_with_other_parameters(scanned: Home) -> None:
    other = records.Rules(params=ChunkParams(mask_bits=13))
    edit(scanned, "meta", RULES_KEY, lambda _: records.pack_rules(other))
    refused(scanned.command("scan", scanned.cache()), 1, "mask_bits=13", "mask_bits=14", "chunkd rebuild")
    refused(scanned.command("run", scanned.cache()), 1, "mask_bits=13", "mask_bits=14", "chunkd rebuild")
    # Whose figures they are is told with them, so they can be shown.
    assert json.loads(scanned.command("stats", "--json").stdout)["params"]["mask_bits"] == 13


@pytest.mark.parametrize("key", [FORMAT_KEY, RULES_KEY, HEAD_KEY, CACHES_KEY])
def test_a_damaged_record_is_named_and_rebuild_mends_it(scanned: Home, key: bytes) -> None:
    before = json.loads(scanned.command("stats", "--json").stdout)
    edit(scanned, "meta", key, lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    refused(scanned.command("stats"), 1, key.decode(), "chunkd rebuild")
    refused(scanned.command("scan", scanned.cache()), 1, key.decode(), "chunkd rebuild")
    # The caches are remembered by the index, unless that is what is damaged.
    caches = (scanned.cache(),) if key == CACHES_KEY else ()
    done = scanned.command("rebuild", "--json", *caches)
    assert done.returncode == 0, done.stderr
    assert figures(json.loads(done.stdout)) == figures(before)
    assert list(scanned.state.glob("index.bad-*"))
    scanned.check()


def test_noise_for_an_index_is_one_line(scanned: Home) -> None:
    data = scanned.state / "index" / "data.mdb"
    data.write_bytes(os.urandom(data.stat().st_size))
    for command in ("stats", "blobs", "check"):
        refused(scanned.command(command), 1, str(scanned.state), "chunkd rebuild")
    refused(scanned.command("scan", scanned.cache()), 1, str(scanned.state), "chunkd rebuild")
    assert json.loads(scanned.command("rebuild", "--json", scanned.cache()).stdout)["layers"] == 3


def test_an_empty_file_for_an_index_is_no_index(scanned: Home) -> None:
    (scanned.state / "index" / "data.mdb").write_bytes(b"")
    for command in ("stats", "blobs", "check"):
        refused(scanned.command(command), 3, str(scanned.state))
    assert scanned.scan(scanned.cache())["layers"] == 3


def test_an_index_that_was_cut_short_is_one_line(scanned: Home) -> None:
    data = scanned.state / "index" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    for command in ("stats", "check"):
        refused(scanned.command(command), 1, str(scanned.state), "chunkd rebuild")
    refused(scanned.command("scan", scanned.cache()), 1, str(scanned.state), "chunkd rebuild")


@pytest.mark.parametrize("command", ["stats", "blobs", "check", "rebuild"])
def test_a_state_directory_that_may_not_be_entered(scanned: Home, command: str) -> None:
    scanned.state.chmod(0)
    done = scanned.command(command, under=without_rights())
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(scanned.state) in done.stderr


def test_a_state_directory_that_can_not_be_made(home: Home) -> None:
    (home.root / "file").touch()
    done = home.command("scan", home.cache(), state=home.root / "file" / "state")
    refused(done, 1, str(home.root / "file"))


# --- check --------------------------------------------------------------------------------------------------------


def test_check_names_a_wrong_total_and_repairs_it_when_asked(scanned: Home) -> None:
    scanned.check()
    edit(scanned, "meta", HEAD_KEY, more_layers)
    done = scanned.command("check")
    assert done.returncode == 4
    shown = json.loads(scanned.command("check", "--json").stdout)["differences"]
    assert [(one["key"], one["expected"], one["found"]) for one in shown] == [("layers", "3", "8")]
    assert scanned.command("check").returncode == 4, "nothing was repaired unasked"
    repaired = scanned.command("check", "--repair")
    assert repaired.returncode == 4
    scanned.check("--read")
    assert json.loads(scanned.command("stats", "--json").stdout)["layers"] == 3


def test_repair_is_refused_while_a_daemon_runs_and_check_is_not(scanned: Home) -> None:
    edit(scanned, "meta", HEAD_KEY, more_layers)
    daemon = scanned.start(scanned.cache())
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    assert scanned.command("check").returncode == 4
    refused(scanned.command("check", "--repair"), 1, str(daemon.pid))
    refused(scanned.command("rebuild"), 1, str(daemon.pid))
    assert daemon.stop() == 0
    assert scanned.command("check", "--repair").returncode == 4
    scanned.check()


def test_check_with_read_finds_a_file_that_says_otherwise(scanned: Home) -> None:
    path = next(scanned.cache().iterdir())
    path.write_bytes(gz(layer(77, 60_000)))
    scanned.check()
    done = scanned.command("check", "--read")
    assert done.returncode == 4
    assert path.name in done.stdout
    assert "mismatched" in done.stdout
    path.unlink()
    done = scanned.command("check", "--read")
    assert done.returncode == 0, "what is gone says nothing of the index: it is for a scan to find"
    assert "1 blobs could not be read" in done.stderr


# --- sockets ------------------------------------------------------------------------------------------------------


def test_a_socket_in_use_is_never_stolen_and_a_dead_one_is_replaced(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache)
    other = home.command("run", cache, "--socket", daemon.socket, state=home.root / "other")
    refused(other, 1, f"socket {daemon.socket}:")
    assert daemon.stats()["layers"] == 0
    daemon.kill()
    assert daemon.socket.exists()
    assert home.command("health").returncode == 3
    again = home.start(cache)
    assert again.socket == daemon.socket
    assert home.command("health").returncode == 0
    assert again.stop() == 0
    assert home.command("health").returncode == 3


def test_a_file_at_the_sockets_path_is_left_alone(home: Home) -> None:
    home.state.mkdir()
    (home.state / "chunkd.sock").write_text("mine")
    refused(home.command("run", home.cache()), 1, f"socket {home.state}/chunkd.sock:")
    assert (home.state / "chunkd.sock").read_text() == "mine"


def test_a_socket_that_is_denied_is_not_taken_for_no_daemon(home: Home) -> None:
    daemon = home.start(home.cache())
    daemon.socket.chmod(0)
    for command in ("stats", "blobs", "health"):
        refused(home.command(command, under=without_rights()), 1, str(daemon.socket))


def test_a_daemon_that_says_nothing_is_not_taken_for_no_daemon(scanned: Home) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(scanned.state / "chunkd.sock"))
        mute.listen()

        def hang_up() -> None:
            connection, _ = mute.accept()
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = scanned.command("stats")
        thread.join()
    refused(done, 1, str(scanned.state / "chunkd.sock"))


# --- stats --------------------------------------------------------------------------------------------------------

NAMES = {
    "blobs", "layers", "stored_bytes", "layer_stored_bytes", "uncompressed_bytes", "chunks", "unique_chunks",
    "unique_bytes", "redundancy", "mean_chunk_bytes", "pending_blobs", "pending_bytes", "failed_blobs", "failed_bytes",
    "as_of", "scanned_at", "watching", "index_bytes", "params", "caches",
}  # fmt: skip


def test_stats_names_and_where_they_come_from(scanned: Home) -> None:
    offline = json.loads(scanned.command("stats", "--json").stdout)
    assert offline.keys() >= NAMES
    assert offline["caches"][0].keys() >= {"path", "layouts", "state", "reason"}
    assert offline["caches"][0]["state"] == "idle"
    assert str(scanned.state) in scanned.command("stats").stdout
    daemon = scanned.start(scanned.cache())
    online = json.loads(scanned.command("stats", "--json").stdout)
    assert online.keys() == offline.keys()
    assert str(daemon.socket) in scanned.command("stats").stdout


def test_an_index_is_read_without_a_right_to_write(scanned: Home) -> None:
    for path in (*scanned.state.rglob("*"), scanned.state):
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = scanned.command("stats", "--json", under=without_rights())
    assert json.loads(done.stdout)["layers"] == 3, done.stderr


def test_watch_shows_the_figures_as_they_change(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    out = home.root / "watched"
    with out.open("wb") as file:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "chunkd", "stats", "--json", "--watch", "--state", str(home.state)],
            env=home.environ, stdout=file,
        )  # fmt: skip
        try:

            def layers() -> list[int]:
                return [json.loads(line)["layers"] for line in out.read_text().splitlines() if line.endswith("}")]

            until(layers, lambda seen: seen[-1:] == [0], "the first figures")
            write_blob(cache, gz(layer(1)))
            until(layers, lambda seen: seen[-1:] == [1], "the next")
        finally:
            watcher.terminate()
            watcher.wait(10)


def imported_by(home: Home, *args: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = f"""
import sys
before, sys.argv = set(sys.modules), {["chunkd", *args]!r}
from chunkd.__main__ import main
try:
    main()
finally:
    print(*set(sys.modules) - before, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=home.environ, capture_output=True, text=True, check=True, timeout=30
    )
    return set(done.stderr.split())


HEAVY = {"numpy", "watchdog", "rich", "isal", "blake3", "cffi", "matplotlib", "prometheus_client", "psutil"}
# All of chunkd that `stats` imports when a daemon answers: each further module is paid for with each question.
OF_STATS = {
    *("chunkd", "chunkd.__main__", "chunkd.cli", "chunkd.cli.fail_if", "chunkd.cli.main", "chunkd.cli.options"),
    *("chunkd.cli.output", "chunkd.cli.tables", "chunkd.client", "chunkd.client.ask", "chunkd.client.http"),
    *("chunkd.errors", "chunkd.figures", "chunkd.figures.names", "chunkd.figures.net_saving", "chunkd.figures.words"),
    *("chunkd.parameters", "chunkd.settings", "chunkd.settings.paths", "chunkd.settings.resolve"),
    *("chunkd.settings.table", "chunkd.urls"),
}


def test_stats_imports_little(scanned: Home) -> None:
    state = ("--state", str(scanned.state))
    offline = imported_by(scanned, "stats", *state)
    assert "lmdb" in offline
    assert not offline & HEAVY
    scanned.start(scanned.cache())
    Path(scanned.environ["CHUNKD_CONFIG"]).write_text(f"caches = ['{scanned.cache()}']\n")
    for command in (("stats", "--json", *state), ("stats", *state), ("health", *state), ("--help",)):
        imported = imported_by(scanned, *command)
        assert not imported & (HEAVY | {"lmdb", "dataclasses"})
        if command != ("--help",):  # which shows a line of each command
            assert {name for name in imported if name.partition(".")[0] == "chunkd"} == OF_STATS, command


# --- standard streams that are closed or full ---------------------------------------------------------------------

PRINTING = [
    ("stats",), ("stats", "--json"), ("stats", "--fail-if", "net<1"), ("stats", "--watch"), ("histogram",),
    ("blobs",), ("blobs", "--sort", "size"), ("history",), ("history", "--csv"), ("check",), ("config",),
    ("health",), ("scan", "CACHE"), ("report", "-o", "-"), ("--help",), ("stats", "--help"), ("--version",),
]  # fmt: skip


def words(home: Home, args: Sequence[str]) -> list[str]:
    state = () if {"--help", "--version"} & set(args) else ("--state", str(home.state))
    return [*(str(home.cache()) if arg == "CACHE" else arg for arg in args), *state]


def in_shell(home: Home, args: Sequence[str], redirected: str) -> subprocess.CompletedProcess[str]:
    """The command with its streams redirected as sh spells it."""
    command = [sys.executable, "-m", "chunkd", *words(home, args)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *command], env=home.environ, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_standard_output_that_takes_nothing_is_one_line(scanned: Home) -> None:
    for args in PRINTING:
        with Path("/dev/full").open("w") as full:
            done = forked.run(words(scanned, args), scanned.environ, 60, stdout=full)
        assert (done.returncode, done.stderr) == unwritable(errno.ENOSPC), args
    for args, redirected, error in (
        (("stats",), ">/dev/full", errno.ENOSPC), (("stats",), ">&-", errno.EBADF), (("--help",), ">&-", errno.EBADF),
    ):  # fmt: skip
        done = in_shell(scanned, args, redirected)
        assert (done.returncode, done.stderr) == unwritable(error), (args, redirected)


def unwritable(error: int) -> tuple[int, str]:
    return OutputUnwritable.exit_code, f"chunkd: {OutputUnwritable(os.strerror(error))}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_a_standard_error_that_takes_nothing_changes_no_exit_code(scanned: Home, redirected: str) -> None:
    for args, code in ((("stats",), 0), (("stats", "--fail-if", "layers>1"), 2), (("scan", "/nowhere"), 1)):
        done = in_shell(scanned, args, redirected)
        assert (done.returncode, done.stderr) == (code, ""), args
        assert bool(done.stdout) == (code == 0)
    usage = in_shell(scanned, ("stats", "--frobnicate"), redirected)
    assert (usage.returncode, usage.stdout) == (2, "")
    nothing = in_shell(scanned, ("stats",), f"{redirected} >&-")
    assert nothing.returncode == 1


def test_a_daemon_lives_without_its_streams(home: Home) -> None:
    command = [sys.executable, "-m", "chunkd", "run", str(home.cache()), "--state", str(home.state)]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=home.environ)
    try:
        until(lambda: home.command("health").returncode, lambda code: code == 0, "the daemon answers")
    finally:
        process.terminate()
    assert process.wait(30) == 0


def test_what_is_no_utf_8_is_shown_escaped(home: Home) -> None:
    cache = home.root / "st\udce4te"
    (cache / "blobs" / "sha256").mkdir(parents=True)
    write_blob(cache / "blobs" / "sha256", gz(layer(1))[:-9])
    for args in (
        ("scan", cache),
        ("stats",),
        ("stats", "--json"),
        ("blobs",),
        ("blobs", "--failed"),
        ("config", cache),
    ):
        done = home.command(*args)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert r"st\udce4te" in home.command("config", cache).stdout
    refused(home.command("scan", home.root / "\udce4"), 1, r"\udce4")
    refused(home.command("scan", home.cache(), state=home.root / "\udce4"), 1, r"\udce4")
    refused(home.command("stats", state=home.root / "a\nb"), 3, r"a\nb")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_health_says_how_it_is_by_its_exit_code(scanned: Home, flags: tuple[str, ...]) -> None:
    assert scanned.command("health", *flags).returncode == 3
    assert scanned.command("health", "--live", *flags).returncode == 3
    assert scanned.command("health", *flags, state=Path("~/state")).returncode == 2
    daemon = scanned.start(scanned.cache())
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    assert scanned.command("health", *flags).returncode == 0
    assert scanned.command("health", "--live", *flags).returncode == 0
    assert json.loads(scanned.command("stats", "--json").stdout) == daemon.stats()
    scanned.cache().rename(scanned.root / "away")
    daemon.settled_after_scan()
    degraded = scanned.command("health", *flags)
    assert (degraded.returncode, "stale" in degraded.stdout) == (6, True)
    live = scanned.command("health", "--live", *flags)
    assert (live.returncode, live.stdout) == (0, degraded.stdout)
    assert scanned.command("stats", *flags).returncode == 7
    assert scanned.command("scan", *flags, scanned.root / "cache").returncode == 7


def test_ctrl_c_while_the_daemon_thinks_is_no_crash(home: Home) -> None:
    home.state.mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(home.state / "chunkd.sock"))
        mute.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "chunkd", "stats", "--state", str(home.state)],
            env=home.environ, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        connection, _ = mute.accept()
        with connection:
            connection.recv(65536)
            process.send_signal(signal.SIGINT)
            assert "Traceback" not in process.communicate(timeout=30)[1]
        assert process.returncode == 1


def test_a_reload_of_a_daemon_that_is_starting_does_not_end_it(home: Home) -> None:
    for delay_s in (0.3, 0.6):
        daemon = home.spawn(home.cache())
        time.sleep(delay_s)
        daemon.process.send_signal(signal.SIGHUP)
        until(daemon.answers, bool, "the daemon answers")
        assert daemon.stop() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which signals a process ignores")
def test_a_daemon_that_was_started_with_reloads_ignored_takes_them_at_any_moment(home: Home) -> None:
    daemon = home.spawn(home.cache(), under=("sh", "-c", """trap '' HUP; exec "$@" """, "sh"))

    def ignored() -> int:
        [mask] = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{daemon.process.pid}/status").read_text())
        return int(mask, 16) >> (signal.SIGHUP - 1) & 1

    until(ignored, bool, "the shell ignores it")
    for _ in range(50):
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.01)
    until(daemon.answers, bool, "the daemon answers")
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "the first scan's end")
    before = daemon.stats()["scans"]
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda stats: stats["scans"] > before, "SIGHUP's scan")
    assert daemon.stop() == 0


def test_blobs_lists_one_line_each_with_and_without_a_daemon(scanned: Home) -> None:
    (scanned.cache() / ("a" * 64)).symlink_to("nowhere")
    broken, _ = write_blob(scanned.cache(), gz(layer(9))[:-100])
    scanned.scan(scanned.cache())
    offline = [scanned.command("blobs", *flags).stdout for flags in ((), ("--failed",), ("--json",))]
    assert [len(out.splitlines()) for out in offline] == [4, 2, 4]
    assert str(broken) in offline[1]
    assert "a symbolic link" in offline[1]
    daemon = scanned.start(scanned.cache())
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    assert [scanned.command("blobs", *flags).stdout for flags in ((), ("--failed",), ("--json",))] == offline


@pytest.mark.parametrize("command", ["blobs", "stats", "health"])
def test_a_reader_that_has_had_enough_is_no_crash(scanned: Home, command: str) -> None:
    """`chunkd blobs | head -1` says nothing on stderr."""
    args = [sys.executable, "-m", "chunkd", command, "--state", str(scanned.state)]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        environ = scanned.environ | {"PYTHONUNBUFFERED": ""}  # as it is for people
        done = subprocess.run(args, env=environ, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


# --- locks --------------------------------------------------------------------------------------------------------


def test_a_killed_writers_name_does_not_stand_in_the_way(scanned: Home) -> None:
    """A reader holds the lock for a moment while the file still bears the name of a writer that was killed."""
    lock = scanned.state / "lock"
    lock.write_text("chunkd run (pid 4194305)")  # beyond the kernel's largest
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        release = threading.Timer(50 * ASK_EVERY_S, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        release.start()
        done = scanned.command("scan", "--json", scanned.cache())
        release.join()
    assert done.returncode == 0, done.stderr


def test_scan_beside_a_reader_waits_for_it(scanned: Home) -> None:
    with (scanned.state / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        release = threading.Timer(50 * ASK_EVERY_S, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        release.start()
        done = scanned.command("scan", "--json", scanned.cache())
        release.join()
    assert done.returncode == 0, done.stderr


def test_scan_ends_by_ctrl_c_and_leaves_a_sound_index(home: Home) -> None:
    cache = home.cache()
    for seed in range(40):
        write_blob(cache, tar({"noise": noise(2_000_000, seed)}))
    process = subprocess.Popen(
        [sys.executable, "-m", "chunkd", "scan", str(cache), "--state", str(home.state), "--workers", "1"],
        env=home.environ | {"CHUNKD_READ_BYTES_PER_S": "5000000"},  # 16 s at least: it is interrupted long before
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def layers() -> int:
        done = home.command("stats", "--json")
        return json.loads(done.stdout)["layers"] if done.returncode == 0 else 0

    until(layers, bool, "some layers")
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in errors
    home.check()
    assert home.scan(cache)["layers"] == 40


def test_scan_on_a_terminal_draws_its_bar_on_stderr_alone(home: Home) -> None:
    cache = home.cache()
    for seed in range(100):
        write_blob(cache, tar({"noise": noise(1_000_000, seed)}))
    ours, theirs = os.openpty()
    done = subprocess.Popen(
        # Paced, for else no rate is told.
        [sys.executable, "-m", "chunkd", "scan", "--json", str(cache), "--state", str(home.state)],
        env=home.environ | {"TERM": "xterm", "COLUMNS": "120", "CHUNKD_READ_BYTES_PER_S": "50000000"},
        stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    drawn = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while more := os.read(ours, 4096):
            drawn += more
    os.close(ours)
    out, _ = done.communicate(timeout=30)
    assert json.loads(out)["layers"] == 100
    assert b"blobs to go" in drawn
    assert b"/s" in drawn


def test_a_repair_takes_nothing_out_because_it_is_away(home: Home) -> None:
    cache = home.cache()
    for seed in range(3):
        write_blob(cache, tar({"noise": noise(50_000, seed)}))
    before = home.scan(cache)
    cache.rename(home.root / "away")
    done = home.command("check", "--read", "--repair")
    assert done.returncode == 0, done.stdout
    assert "3 blobs could not be read" in done.stderr
    (home.root / "away").rename(cache)
    assert json.loads(home.command("stats", "--json").stdout)["layers"] == before["layers"] == 3


def test_a_rebuild_that_could_read_nothing_leaves_the_index_where_it_is(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, tar({"noise": noise(50_000)}))
    home.scan(cache)
    for caches in ([], [str(home.root / "nowhere")]):
        if not caches:
            cache.rename(home.root / "away")
        assert home.command("rebuild", *caches).returncode == 1
        assert json.loads(home.command("stats", "--json").stdout)["layers"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("command", ["rebuild", "scan"])
def test_what_root_makes_belongs_to_whom_the_state_directory_belongs_to(home: Home, command: str) -> None:
    """As after `sudo chunkd rebuild`, when the service is another user's."""
    cache = home.cache()
    write_blob(cache, tar({"noise": noise(50_000)}))
    if command == "rebuild":
        home.scan(cache)
    home.state.mkdir(exist_ok=True)
    for path in (home.state, *home.state.rglob("*")):
        os.chown(path, 65534, 65534)
    assert home.command(command, cache).returncode == 0
    assert {path.name for path in (home.state / "index").iterdir()} == {"data.mdb", "lock.mdb"}
    for path in (home.state, *home.state.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534), path


def test_a_scan_of_nothing_makes_no_index(home: Home) -> None:
    assert home.command("scan", str(home.root / "nowhere")).returncode == 1
    assert home.command("stats").returncode == 3
