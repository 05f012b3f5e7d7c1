"""Events that do not come: whatever loses them, nothing is missed once things have settled, nothing is subtracted that
could not be listed, and health says what is wrong while it is. The timer's scan is set to a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import blobs
from answering import short_directory
from chunkd.model import Cause
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Daemon, Home, Stats, figures, opened, without_rights

DAY = {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400"}
# Where no event can come, listing is all there is: these are the tests in which that is waited for.
POLLED = DAY | {"CHUNKD_POLLED_SCAN_INTERVAL_S": "1"}
# More than the kernel's queue holds, which is 16,384 by default.
FILES = share_of(60_000, 20_000)
DEATHS = share_of(10, 2)
TIMES = share_of(3, 2)
OVERFLOWED = "the kernel's event queue overflowed"
HERE = Path(__file__).parent


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


# --- blobs and what is expected of them -------------------------------------------------------------------------------


def put(folder: Path, *numbers: int) -> list[Path]:
    """A small layer for each number."""
    folder.mkdir(parents=True, exist_ok=True)
    return [blobs.write_blob(folder, blobs.gz(blobs.layer(number, 3000)))[1] for number in numbers]


def put_small(folder: Path, number: int) -> Path:
    """Written in place, as manifests are."""
    data = b"%d" % number
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return path


def indexed(daemon: Daemon) -> set[str]:
    """The digests that are counted, in hex."""
    found: set[str] = set()
    after = ""
    while after is not None:
        page = daemon.get(f"/v1/blobs?limit=1000&after={after}")
        found |= {row["digest"].partition(":")[2] for row in page["blobs"] if row["state"] in ("layer", "other")}
        after = page["next"]
    return found


def on_disk(*caches: Path) -> set[str]:
    return {path.name for cache in caches for path in cache.rglob("*") if path.is_file() and len(path.name) == 64}


def holds_what_is_there(daemon: Daemon, *caches: Path) -> None:
    """Wait until the index holds what the caches do, and compare it with one that is made anew where the daemon is.

    A worker gives up what it takes to read through `/proc/PID/root`.
    """
    there = on_disk(*caches)
    stats = daemon.until(
        lambda stats: stats["settled"] and stats["blobs"] == len(there) and indexed(daemon) == there,
        f"these {len(there)} blobs",
    )
    own = [Path(str(cache).removeprefix(f"/proc/{daemon.pid}/root")) for cache in caches]
    assert figures(stats) == daemon.home.fresh(*own, under=("nsenter", f"--target={daemon.pid}", "--mount"))
    assert stats["failed_blobs"] == 0
    daemon.home.check()


def health(daemon: Daemon) -> str:
    """The reasons why it is degraded, one a line; nothing when it is well."""
    told = daemon.get("/v1/health")
    assert (told["state"] == "ok") == (not told["reasons"])
    return "\n".join(told["reasons"])


def until_health(daemon: Daemon, *texts: str) -> None:
    """Until each of these is said, or, without any, until all is well."""

    def holds(_: Stats) -> bool:
        reasons = health(daemon)
        return all(text in reasons for text in texts) if texts else not reasons

    daemon.until(holds, f"health says {texts or 'ok'}; it says {health(daemon)!r}")


def settled(daemon: Daemon, blob_count: int) -> Stats:
    return daemon.until(lambda stats: stats["blobs"] == blob_count and stats["settled"], f"{blob_count} blobs")


# --- events that are lost ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf(daemon: Daemon, *folders: Path) -> Iterator[None]:
    """Whatever happens meanwhile in the caches of these folders gives no event: each cache has a queue in the kernel, a
    watched folder fills it, and nobody reads it.
    """
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    told = daemon.log.count(OVERFLOWED)
    with daemon.halted():
        for folder in folders:
            for number in range(most // 2 + 1):  # created and closed, and no two alike in a row
                (folder / f"filler-{number % 2}").touch()
                (folder / f"filler-{number % 2}").unlink()
        yield
    daemon.until(lambda _: daemon.log.count(OVERFLOWED) >= told + len(folders), "it notices each overflow")


def inside(daemon: Daemon, *command: object, namespace: str = "--mount") -> None:
    """Run a command in a namespace of the daemon's."""
    subprocess.run(
        ["nsenter", f"--target={daemon.pid}", namespace, *map(str, command)],
        check=True, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip


def faulty(home: Home, patch: str) -> dict[str, str]:
    """Environment variables by which a daemon runs `patch` at its start, and other processes don't."""
    folder = home.root / "patch"
    folder.mkdir()
    begin = 'import os, sys\nif "run" in sys.orig_argv and "chunkd" in sys.orig_argv:\n'
    (folder / "sitecustomize.py").write_text(begin + textwrap.indent(textwrap.dedent(patch), "    "))
    paths = [str(folder), str(Path(blobs.__file__).parent.parent / "daemon")]
    return {"PYTHONPATH": os.pathsep.join(paths), "FAULT": str(home.root / "fault")}


@pytest.mark.long(21)
def test_files_by_the_thousand_overflow_the_queue(home: Home, tell: Tell) -> None:
    cache = home.cache()
    layers = put(cache / "layers" / "blobs" / "sha256", *range(20))
    daemon = home.start(cache, environ=DAY)
    settled(daemon, len(layers))
    folder = cache / "blobs" / "sha256"
    folder.mkdir(parents=True)
    put_small(folder, 0)
    settled(daemon, len(layers) + 1)

    with daemon.halted():
        for number in range(1, FILES):
            put_small(folder, number)
        for path in layers[:5]:
            path.unlink()
        layers[5].write_bytes(blobs.noise(layers[5].stat().st_size))  # other bytes under a counted name

    stats = daemon.until(
        lambda stats: stats["blobs"] == FILES + 14 and stats["settled"], "all are found", patience_s=15 * PATIENCE_S
    )
    assert daemon.log.count(f"everything is compared: {OVERFLOWED}") == 1
    assert (stats["layers"], stats["failed_blobs"], stats["scans"]) == (14, 1, 1)
    assert stats["stored_bytes"] - stats["layer_stored_bytes"] == sum(len(b"%d" % number) for number in range(FILES))
    layers[5].unlink()
    settled(daemon, FILES + 14)
    assert indexed(daemon) == on_disk(cache)
    assert health(daemon) == ""
    home.check()
    tell(f"{FILES:,} files while the daemon stood still: all counted after one scan")


@pytest.mark.parametrize("rounds", [share_of(6, 2)])
def test_every_event_of_a_round_is_lost(home: Home, seed: int, tell: Tell, rounds: int) -> None:
    draw = random.Random(seed)
    one, two = home.cache("one"), home.cache("two")
    folders = [one / "blobs" / "sha256", one / "library" / "blobs" / "sha256", two]
    daemon = home.start(one, two, environ=DAY)
    daemon.until(lambda stats: stats["scans"] == 1 and stats["settled"], "both are watched")
    changes = 0
    for number in range(rounds):
        with deaf(daemon, one, two):
            for at in range(10):
                put(draw.choice(folders), 100 * number + at)
            there = sorted(path for folder in folders for path in folder.glob("?" * 64))
            for path in draw.sample(there, len(there) // 3):
                changes += 1
                target = draw.choice(folders) / path.name
                how = draw.choice(["remove", "move", "link", "replace"])
                if how == "remove":
                    path.unlink()
                elif how == "move":
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
                elif how == "link" and target.parent.is_dir() and not target.exists():
                    os.link(path, target)
                else:
                    data = path.read_bytes()
                    path.unlink()
                    path.write_bytes(data)
            if draw.random() < 0.3 and folders[1].exists():
                shutil.rmtree(one / "library")
        holds_what_is_there(daemon, one, two)
        assert health(daemon) == ""
    tell(f"{rounds} overflows with {10 * rounds} landings and {changes} changes unseen")


# --- watches that are refused -----------------------------------------------------------------------------------------


def test_the_watch_limit_is_hit(home: Home, tell: Tell) -> None:
    cache = home.cache()
    for number in range(60):
        put(cache / f"library{number:02}" / "blobs" / "sha256", number)
    limited = ("unshare", "--user", "--map-root-user", "sh", "-c")
    limit = 'echo 30 >/proc/sys/user/max_inotify_watches && exec "$@"'
    daemon = home.start(cache, environ=POLLED, under=(*limited, limit, "sh"))
    settled(daemon, 60)
    until_health(daemon, str(cache), "unwatched", "watch limit reached")
    assert not daemon.stats()["watching"]

    put(cache / "library59" / "blobs" / "sha256", 100)  # the first folders are watched, the last are not
    put(cache / "library00" / "blobs" / "sha256", 101)
    put(cache / "zoo" / "blobs" / "sha256", 102)
    (next((cache / "library58" / "blobs" / "sha256").iterdir())).unlink()
    holds_what_is_there(daemon, cache)
    assert "watch limit reached" in health(daemon)
    assert home.command("health").returncode == 6

    inside(daemon, "sh", "-c", "echo 1000 >/proc/sys/user/max_inotify_watches", namespace="--user")
    until_health(daemon)
    assert daemon.stats()["watching"]
    daemon.settled_after_scan()  # what is watched again is compared, and that would find it as well
    put(cache / "library59" / "blobs" / "sha256", 103)
    daemon.until_log(f"found: {Cause.MOVED_IN.value}")
    holds_what_is_there(daemon, cache)
    tell("60 repositories with 30 watches allowed: nothing missed, and watched when the limit was raised")


def test_no_watcher_can_be_had_at_all(home: Home, tell: Tell) -> None:
    cache = home.cache()
    put(cache, 1, 2)
    limited = ("unshare", "--user", "--map-root-user", "sh", "-c")
    limit = 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"'
    daemon = home.start(cache, environ=POLLED, under=(*limited, limit, "sh"))
    settled(daemon, 2)
    until_health(daemon, "unwatched", "inotify instance limit reached")
    put(cache, 3)
    holds_what_is_there(daemon, cache)
    inside(daemon, "sh", "-c", "echo 10 >/proc/sys/user/max_inotify_instances", namespace="--user")
    until_health(daemon)
    put(cache, 4)
    daemon.until_log(f"found: {Cause.MOVED_IN.value}")
    holds_what_is_there(daemon, cache)
    tell("no inotify instance allowed: polled until there is one")


# --- folders that can't be listed -------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_listed(home: Home, tell: Tell) -> None:
    cache = home.cache()
    shut, other = cache / "shut" / "blobs" / "sha256", cache / "other" / "blobs" / "sha256"
    paths = put(shut, *range(5))
    put(other, 9)
    daemon = home.start(cache, environ=POLLED, under=without_rights())
    before = figures(settled(daemon, 6))
    (cache / "shut").chmod(0)
    try:
        with deaf(daemon, cache):
            paths[0].unlink()  # root may
        until_health(daemon, f"{cache}/shut: Permission denied")
        settled(daemon, 6)
        assert figures(daemon.stats()) == before, "subtracted though it could not be listed"
        put(other, 10)
        settled(daemon, 7)
        put(shut, 11)
    finally:
        (cache / "shut").chmod(0o755)
    holds_what_is_there(daemon, cache)
    until_health(daemon)
    assert indexed(daemon) == on_disk(cache)
    tell("a folder without permission: its figures stood, and it was read when it could be")


def test_half_a_listing_is_lost_to_an_error(home: Home, tell: Tell) -> None:
    shim = home.root / "half.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "half_a_listing.c", "-ldl"], check=True)
    cache = home.cache()
    folder = cache / "blobs" / "sha256"
    paths = put(folder, *range(40))
    fault = home.root / "fault"
    environ = {"LD_PRELOAD": str(shim), "HALF_OF": str(folder), "HALF_IF": str(fault), "HALF_ENTRIES": "20"}
    daemon = home.start(cache, environ=POLLED | environ)
    settled(daemon, 40)

    fault.touch()
    with deaf(daemon, folder):
        gone = paths[::4]
        for path in gone:
            path.unlink()
        put(folder, *range(100, 110))
    until_health(daemon, f"{folder}: Input/output error")
    stats = daemon.until(lambda stats: stats["settled"], "settled")
    lost = {path.name for path in paths} - indexed(daemon)
    assert lost <= {path.name for path in gone}, "subtracted though it is there"
    assert stats["scanned_at"] is not None
    put(folder, 200)  # an event still tells of it
    daemon.until(lambda _: on_disk(cache) - indexed(daemon) <= on_disk(cache), "an event is heard")

    fault.unlink()
    holds_what_is_there(daemon, cache)
    until_health(daemon)
    tell("an input/output error half-way through a listing of 40: nothing that is there was subtracted")


# --- a watcher that fails ---------------------------------------------------------------------------------------------

RAISES_IN_THE_HANDLER = """
    from chunkd.sources import watch
    real = watch.hint_at
    def hint_at(*of):
        if os.path.exists(os.environ["FAULT"]):
            os.unlink(os.environ["FAULT"])
            raise RuntimeError("a bug in the handler")
        real(*of)
    watch.hint_at = hint_at
"""
THREAD_DIES = """
    from watchdog.observers.inotify_c import InotifyFD
    real = InotifyFD.read_events
    def read_events(self, **of):
        found = real(self, **of)
        if os.path.exists(os.environ["FAULT"]):
            os.unlink(os.environ["FAULT"])
            raise SystemExit
        return found
    InotifyFD.read_events = read_events
"""


@pytest.mark.parametrize("patch", [RAISES_IN_THE_HANDLER, THREAD_DIES], ids=["a handler raises", "its thread dies"])
def test_a_watcher_that_dies_is_replaced(home: Home, tell: Tell, patch: str) -> None:
    cache = home.cache()
    folder = cache / "blobs" / "sha256"
    paths = put(folder, *range(5))
    environ = faulty(home, patch)
    daemon = home.start(cache, environ=DAY | environ)
    settled(daemon, 5)
    for number in range(DEATHS):
        Path(environ["FAULT"]).touch()
        put(folder, 10 + 2 * number)  # its event is the end
        paths[0].unlink()
        paths = [*paths[1:], *put(folder, 11 + 2 * number)]
        daemon.until(lambda _, number=number: daemon.log.count("its watcher died") > number, "its death is noticed")  # type: ignore[misc]
        holds_what_is_there(daemon, cache)
        until_health(daemon)
    tell(f"{DEATHS} deaths of the watcher, each with events behind it")


def test_a_watcher_that_cannot_be_replaced_is_told_and_done_without(home: Home, tell: Tell) -> None:
    cache = home.cache()
    put(cache, 1, 2)
    environ = faulty(
        home,
        """
        from chunkd.sources import watch
        from watchdog.observers.inotify_c import InotifyFD
        real, start = InotifyFD.read_events, watch.start_watcher
        def read_events(self, **of):
            found = real(self, **of)
            if os.path.exists(os.environ["FAULT"]):
                raise SystemExit
            return found
        def start_watcher(hints, root):
            if os.path.exists(os.environ["FAULT"]):
                raise OSError(24, "inotify instance limit reached")
            return start(hints, root)
        InotifyFD.read_events, watch.start_watcher = read_events, start_watcher
        """,
    )
    daemon = home.start(cache, environ=POLLED | environ)
    settled(daemon, 2)
    Path(environ["FAULT"]).touch()
    put(cache, 3)
    until_health(daemon, "unwatched", "inotify instance limit reached")
    put(cache, 4)
    holds_what_is_there(daemon, cache)
    for number in range(5, 8):
        put(cache, number)
        holds_what_is_there(daemon, cache)
    assert daemon.log.count("can't be watched") == 1, daemon.log
    Path(environ["FAULT"]).unlink()
    until_health(daemon)
    put(cache, 9)
    holds_what_is_there(daemon, cache)
    tell("no new watcher for a while: polled meanwhile, and watched again")


# --- roots and mounts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "blobs", "blobs/sha256"], ids=["its root", "blobs", "blobs/sha256"])
def test_a_folder_is_renamed_away_and_a_new_one_comes(home: Home, tell: Tell, below: str) -> None:
    cache = home.cache()
    put(cache / "blobs" / "sha256", *range(10))
    daemon = home.start(cache, environ=DAY)
    settled(daemon, 10)
    here, away = cache / below, home.root / "away"
    for number in range(TIMES):
        new = home.root / "new"
        put(new / Path("blobs/sha256").relative_to(below or "."), *range(5 * number, 5 * number + 10))
        here.rename(away)
        new.rename(here)
        holds_what_is_there(daemon, cache)
        put(cache / "blobs" / "sha256", 100 + number)
        holds_what_is_there(daemon, cache)
        shutil.rmtree(away)
        until_health(daemon)
        assert daemon.stats()["watching"]
    tell(f"{TIMES} times away, and a new one in its place")


def mounted(home: Home, *folders: Path) -> tuple[str, ...]:
    """Starts a command in a mount namespace of its own, in which `disks/NAME` is mounted on each of these."""
    binds = "".join(f"mount --bind {home.cache('disks') / folder.name} {folder} && " for folder in folders)
    return ("unshare", "--mount", "--propagation=private", "sh", "-c",
            f"mount -t tmpfs none {home.cache('disks')} && "
            + "".join(f"mkdir {home.root / 'disks' / folder.name} && " for folder in folders)
            + f'{binds} exec "$@"', "sh")  # fmt: skip


def seen(daemon: Daemon, path: Path) -> Path:
    """A path as the daemon's mount namespace has it."""
    return Path(f"/proc/{daemon.pid}/root{path}")


def test_a_cache_is_unmounted_and_mounted_again(home: Home, tell: Tell) -> None:
    cache = home.cache()
    disk = home.cache("disks") / "cache"
    daemon = home.start(cache, environ=DAY, under=mounted(home, cache))
    disk_seen = seen(daemon, disk)
    paths = put(disk_seen / "blobs" / "sha256", *range(10))
    daemon.settled_after_scan()
    for number in range(TIMES):
        before = figures(settled(daemon, 10))
        inside(daemon, "umount", cache)
        until_health(daemon, str(cache), "stale", "another device")
        paths[0].unlink()
        paths = paths[1:] + put(disk_seen / "blobs" / "sha256", 20 + 2 * number)
        assert figures(daemon.settled_after_scan()) == before
        inside(daemon, "mount", "--bind", disk, cache)
        holds_what_is_there(daemon, disk_seen)
        until_health(daemon)
        paths = paths[1:] + put(disk_seen / "blobs" / "sha256", 21 + 2 * number)
        (disk_seen / "blobs" / "sha256").joinpath(min(on_disk(disk_seen) - {path.name for path in paths})).unlink()
        holds_what_is_there(daemon, disk_seen)
    tell(f"unmounted and mounted again {TIMES} times")


@pytest.mark.parametrize(("found_by", "rounds"), [("a listing", TIMES), ("events", 1)])
def test_a_folder_below_a_cache_is_unmounted_and_mounted_again(
    home: Home, tell: Tell, found_by: str, rounds: int
) -> None:
    cache = home.cache()
    below = cache / "library"
    below.mkdir()
    own = put(cache / "blobs" / "sha256", 1000)
    disk = home.cache("disks") / "library"
    daemon = home.start(cache, environ=DAY, under=mounted(home, below))
    disk_seen = seen(daemon, disk)
    folder = disk_seen / "blobs" / "sha256"
    if found_by == "events":
        folder.mkdir(parents=True)
        daemon.settled_after_scan()  # it is watched, and no listing will have a blob
    paths = put(folder, *range(10))
    there = [disk_seen, cache / "blobs"]
    holds_what_is_there(daemon, *there)
    for number in range(rounds):
        inside(daemon, "umount", below)
        until_health(daemon, f"{below}: the file system that was mounted there is away")
        before = figures(daemon.settled_after_scan())
        assert before["blobs"] == 11
        own += put(cache / "blobs" / "sha256", 1001 + number)
        own.pop(0).unlink()  # what lies beside it goes on
        daemon.until(lambda _: {path.name for path in own} <= indexed(daemon), "beside it")  # noqa: B023 - called now
        daemon.settled_after_scan(verify=True)
        assert daemon.stats()["blobs"] == 11
        paths[0].unlink()
        paths = paths[1:] + put(folder, 20 + 2 * number)
        inside(daemon, "mount", "--bind", disk, below)
        holds_what_is_there(daemon, *there)
        until_health(daemon)
        paths[0].unlink()  # it is watched again
        paths = paths[1:] + put(folder, 21 + 2 * number)
        holds_what_is_there(daemon, *there)
    inside(daemon, "umount", below)
    until_health(daemon, "the file system that was mounted there is away")
    daemon.settled_after_scan(accept=True)
    settled(daemon, 1)
    until_health(daemon)
    tell(f"a mount below the root with blobs found by {found_by}, unmounted and mounted again, {rounds} rounds")
