"""The real daemon as a process, on real files: what lands and goes, by every way there is, and what it says of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import blobs
from blobs import gz, layer, noise, tar, text, write_blob, zst
from chunkd.index import records
from chunkd.index.storage.environment import CACHES_KEY, Store
from chunkd.model import Cause, Digest
from chunkd.sources import filesystems
from daemon import (
    NPM_FIGURES,
    NPM_TOTALS,
    PATIENCE_S,
    ZEROS,
    Daemon,
    Home,
    digests_opened,
    figures,
    land,
    npm_layers,
    timing,
    until,
    without_rights,
)

# The timer has no part in these tests: what it would find must have been found before.
NEVER = {"CHUNKD_SCAN_INTERVAL_S": "86400", "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400"}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def oci(cache: Path, algorithm: str = "sha256") -> Path:
    folder = cache / "blobs" / algorithm
    folder.mkdir(parents=True)
    return folder


def small_layers(folder: Path, count: int, first: int = 0) -> list[Path]:
    return [write_blob(folder, gz(layer(seed, 60_000)))[1] for seed in range(first, first + count)]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the real layers ----------------------------------------------------------------------------------------------


def test_ninety_real_layers_land_go_and_survive_a_kill(home: Home) -> None:
    layers = npm_layers()
    cache = home.cache()
    folder = oci(cache)
    daemon = home.start(cache, environ=NEVER)
    assert figures(daemon.stats()) == ZEROS

    for path in layers:
        land(path, folder)
    stats = daemon.until_figures(NPM_TOTALS)
    assert stats["scans"] == 1, "found by events alone"
    found = [json.loads(line) for line in home.command("blobs", "--json").stdout.splitlines()]
    assert {row["digest"]: (row["stored_bytes"], row["uncompressed_bytes"], row["chunks"]) for row in found} == {
        f"sha256:{one['sha256']}": (one["stored_bytes"], one["uncompressed_bytes"], one["chunks"])
        for one in NPM_FIGURES["layers"]
    }
    assert {row["state"] for row in found} == {"layer"}
    home.check()

    removed, kept = layers[::2], layers[1::2]
    for path in removed:
        (folder / path.name).unlink()
    half = home.fresh(cache)
    assert half["layers"] == len(kept)
    daemon.until_figures(half)
    home.check()

    for path in removed[:20]:
        land(path, folder)
    daemon.until(lambda stats: stats["layers"] > len(kept), "some of it is read again")
    daemon.kill()
    for path in removed[20:]:
        land(path, folder)
    daemon = home.start(cache, environ=NEVER)
    daemon.until_figures(NPM_TOTALS)
    home.check("--read")

    for path in layers:
        (folder / path.name).unlink()
    daemon.until_figures(ZEROS)
    home.check()
    assert daemon.stop() == 0


def test_sigterm_commits_what_was_read_and_ends_within_seconds(home: Home) -> None:
    layers = npm_layers()
    cache = home.cache()
    folder = oci(cache)
    for path in layers:
        shutil.copyfile(path, folder / path.name)
    # Paced, so that it is not done before it is told to end.
    daemon = home.start(cache, environ={"CHUNKD_WORKERS": "1", "CHUNKD_READ_BYTES_PER_S": "5000000"})
    seen = daemon.until(lambda stats: stats["layers"] >= 3, "three layers")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10) == 0
    left = json.loads(home.command("stats", "--json").stdout)
    assert seen["layers"] <= left["layers"] < len(layers)
    home.check()
    assert figures(home.scan(cache)).items() >= NPM_TOTALS.items()


# --- restarts -----------------------------------------------------------------------------------------------------


def strace() -> tuple[str, ...]:
    """How to start a command under strace, which may be missing, or not be allowed to trace."""
    usable = (
        shutil.which("strace") and not subprocess.run(["strace", "true"], capture_output=True, check=False).returncode
    )
    return ("strace", "-D", "-f", "-qq", "-e", "trace=open,openat,openat2", "-s", "300", "-o") if usable else ()


def test_a_restart_opens_no_blob_and_has_the_figures_at_once(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    small_layers(folder, 8)
    write_blob(folder, b'{"a": "manifest"}')
    daemon = home.start(cache, environ=NEVER)
    before = daemon.until(lambda stats: stats["blobs"] == 9 and stats["settled"], "nine blobs")
    assert daemon.stop() == 0

    trace = home.root / "trace"
    tracer = strace()
    daemon = home.start(cache, environ=NEVER, under=(*tracer, str(trace)) if tracer else ())
    assert figures(daemon.stats()) == figures(before)
    daemon.until(lambda stats: stats["scans"] == 1 and stats["settled"], "the first scan's end")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until(lambda stats: stats["scans"] == 2 and stats["settled"], "SIGHUP's scan")
    assert figures(daemon.settled_after_scan(verify=True)) == figures(before)
    assert "indexed" not in daemon.log
    # The same trace would show it, had one been opened.
    new, _ = write_blob(folder, gz(layer(99)))
    daemon.until(lambda stats: stats["blobs"] == 10 and stats["settled"], "one more")
    assert f"indexed {new}" in daemon.log
    assert daemon.stop() == 0
    if tracer:
        assert set(digests_opened(trace)) == {new.hex}


def test_what_changed_while_no_daemon_ran_is_found_at_start(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    first = small_layers(folder, 3)
    home.scan(cache)
    first[0].unlink()
    small_layers(folder, 2, first=3)
    daemon = home.start(cache, environ=NEVER)
    daemon.until_figures(home.fresh(cache))
    assert daemon.stats()["layers"] == 4
    home.check()


def test_a_second_daemon_is_refused_and_told_who_holds_the_index(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache)
    second = home.command("run", cache, environ={"CHUNKD_SOCKET": str(home.root / "other.sock")})
    assert second.returncode == 1
    assert f"in use by chunkd run (pid {daemon.pid})" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert daemon.stats()["settled"] in (True, False)


# --- which caches -------------------------------------------------------------------------------------------------


def test_run_with_fewer_caches_drops_the_others(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    shared = gz(layer(1))
    write_blob(one, shared)
    write_blob(one, gz(layer(2)))
    write_blob(two, shared)
    write_blob(two, gz(layer(3)))
    daemon = home.start(one, two, environ=NEVER)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "each digest once")
    assert daemon.stop() == 0
    daemon = home.start(two, environ=NEVER)
    daemon.until_figures(home.fresh(two))
    assert [cache["path"] for cache in daemon.stats()["caches"]] == [str(two)]
    home.check()


def test_scan_drops_a_cache_only_when_told_to(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    small_layers(one, 1)
    small_layers(two, 2, first=1)
    assert home.scan(one, two)["layers"] == 3
    refused = home.command("scan", "--json", two)
    assert refused.returncode == 2
    assert str(one) in refused.stderr
    assert str(two) not in refused.stderr
    assert "--replace" in refused.stderr
    assert json.loads(home.command("stats", "--json").stdout)["layers"] == 3
    replaced = home.command("scan", "--json", two, "--replace")
    assert json.loads(replaced.stdout)["layers"] == 2
    home.check()


def test_scan_asks_the_daemon_that_serves_the_cache(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    small_layers(one, 2)
    daemon = home.start(one, two, environ=NEVER)
    before = daemon.until(lambda stats: stats["scans"] and stats["settled"], "the first scan's end")
    asked = home.scan(one)
    assert (asked["layers"], asked["scans"]) == (2, before["scans"] + 1)
    third = home.cache("third")
    refused = home.command("scan", third)
    assert refused.returncode == 2
    assert f"{one}, {two}" in refused.stderr
    assert str(daemon.socket) in refused.stderr
    # Another index is another matter.
    assert home.scan(third, state=home.root / "elsewhere")["layers"] == 0


def test_a_digest_in_two_caches_counts_once_and_goes_with_its_last_place(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    data = gz(layer(1))
    digest, first = write_blob(one, data)
    daemon = home.start(one, two, environ=NEVER)
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "the first place"))
    _, second = write_blob(two, data)
    third = two / "mirror" / "blobs" / "sha256" / digest.hex
    third.parent.mkdir(parents=True)
    shutil.copyfile(second, third)
    daemon.until_figures(alone)
    assert figures(daemon.settled_after_scan()) == alone
    for path in (first, third):
        path.unlink()
        assert figures(daemon.settled_after_scan()) == alone
        home.check()
    second.unlink()
    daemon.until_figures(ZEROS)
    assert daemon.log.count("indexed") == 1, "hashed again for the other places, and never decoded again"


def test_the_next_place_is_hashed_before_the_digest_is_kept(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    digest, first = write_blob(one, gz(layer(1)))
    daemon = home.start(one, two, environ=NEVER)
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "the first place"))
    (two / digest.hex).write_bytes(noise(50_000))
    assert figures(daemon.settled_after_scan()) == alone, "no figure depends on a place that nobody has asked"
    first.unlink()
    daemon.until(lambda stats: figures(stats) == ZEROS, "the other place holds other bytes")
    # What is pending is asked for a moment before the figures are read.
    stats = daemon.stats()
    assert (stats["pending_blobs"], stats["failed_blobs"]) in ((1, 0), (0, 1))
    home.check()


# --- ways to land -------------------------------------------------------------------------------------------------


def test_written_in_place_in_pieces(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    daemon = home.start(cache, environ=NEVER | {"CHUNKD_WORKERS": "1"})
    data = gz(layer(1))
    digest = blobs.digest_of(data)
    with (folder / digest.hex).open("wb") as file:
        for number, start in enumerate(range(0, len(data), len(data) // 3 + 1)):
            file.write(data[start : start + len(data) // 3 + 1])
            file.flush()
            daemon.until(lambda stats: stats["pending_blobs"] == 1, "it is seen")
            # The only worker has read it once this one counts.
            small_layers(folder, 1, first=10 + number)
            # What is just being counted is pending for a moment more.
            seen = until(
                daemon.stats,
                lambda stats: stats["layers"] > number and stats["pending_blobs"] < 2,  # noqa: B023 - called now
                "one that landed after it",
            )
            if start + len(data) // 3 + 1 < len(data):
                assert (seen["layers"], seen["pending_blobs"]) == (number + 1, 1), "it is not believed"
    counted = daemon.until(lambda stats: stats["layers"] == 4 and stats["settled"], "counted after its close")
    assert (counted["pending_blobs"], counted["failed_blobs"], counted["scans"]) == (0, 0, 1)
    assert "failed" not in daemon.log, "and it was never taken for a failure"
    assert figures(counted) == home.fresh(cache)


def test_written_and_closed_at_once_and_written_again(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    daemon = home.start(cache, environ=NEVER)
    data = gz(layer(1))
    path = folder / blobs.digest_of(data).hex
    path.write_bytes(data)
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted"))
    path.write_bytes(data)  # truncated first, as skopeo does with a manifest that is pushed again
    daemon.until(lambda stats: figures(stats) == alone and stats["settled"], "the same bytes came again")
    partial = cache / "again"
    partial.write_bytes(data)
    partial.rename(path)
    assert figures(daemon.settled_after_scan()) == alone
    path.rename(cache / "elsewhere")
    daemon.until_figures(ZEROS)
    (cache / "elsewhere").rename(path)
    daemon.until_figures(alone)
    assert daemon.stats()["failed_blobs"] == 0
    home.check()


def test_hard_links_in_many_repositories_are_one_blob(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    digest, path = write_blob(home.root, gz(layer(1)))
    places = [oci(cache / f"team/repository{number}") / digest.hex for number in range(12)]
    for place in places:
        os.link(path, place)
    path.unlink()
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted once"))
    daemon.settled_after_scan()
    for place in places[:-1]:
        place.unlink()
    assert figures(daemon.settled_after_scan()) == alone
    home.check()
    shutil.rmtree(places[-1].parent.parent.parent)
    daemon.until_figures(ZEROS)
    assert daemon.log.count("indexed") == 1
    home.check()


def test_folders_that_appear_and_go_as_distribution_makes_them(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    store = cache / "docker/registry/v2/blobs/sha256"
    uploads = cache / "docker/registry/v2/repositories/one/_uploads"
    uploads.mkdir(parents=True)
    for number in range(400):
        data = gz(text(3000, number)) if number % 2 else b'{"manifest": %d}' % number
        name = hashlib.sha256(data).hexdigest()
        folder = store / name[:2] / name
        if number % 2:
            upload = uploads / "data"
            upload.write_bytes(data)
            folder.mkdir(parents=True)
            upload.rename(folder / "data")
        else:
            folder.mkdir(parents=True)
            with (folder / "data").open("wb") as file:
                os.fsync(file.fileno())  # empty meanwhile
                file.write(data)
    expected = home.fresh(cache)
    assert (expected["blobs"], expected["layers"]) == (400, 200)
    stats = daemon.until_figures(expected)
    assert (stats["scans"], stats["failed_blobs"]) == (1, 0)
    home.check()

    # What garbage-collect leaves: the pairs' folders; and then all of some pairs.
    names = sorted(store.glob("*/*"))
    for folder in names[:150]:
        (folder / "data").unlink()
        folder.rmdir()
    for pair in sorted(store.iterdir())[-40:]:
        shutil.rmtree(pair)
    daemon.until_figures(home.fresh(cache))
    shutil.rmtree(cache / "docker")
    daemon.until_figures(ZEROS, 5)  # nobody waits for blobs in folders that are gone
    assert daemon.stats()["scans"] == 1, "found by events alone"
    home.check()


def test_a_folder_moved_in_with_its_blobs(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    made = home.root / "made"
    small_layers(oci(made / "repository"), 5)
    (made / "repository").rename(cache / "repository")
    found = daemon.until(lambda stats: stats["layers"] == 5 and stats["settled"], "moved in")
    assert figures(found) == home.fresh(cache)
    small_layers(cache / "repository/blobs/sha256", 1, first=5)
    daemon.until(lambda stats: stats["layers"] == 6 and stats["settled"], "and it is watched")
    (cache / "repository").rename(cache / "renamed")
    small_layers(cache / "renamed/blobs/sha256", 1, first=6)
    daemon.until(lambda stats: stats["layers"] == 7 and stats["settled"], "under its new name too")
    (cache / "renamed").rename(home.root / "away")
    daemon.until_figures(ZEROS)
    home.check()


def test_sha256_and_sha512_of_the_same_bytes_are_two_blobs(home: Home) -> None:
    cache = home.cache()
    data = gz(layer(1))
    write_blob(oci(cache), data)
    write_blob(oci(cache, "sha512"), data, "sha512")
    stats = home.scan(cache)
    assert (stats["blobs"], stats["layers"], stats["stored_bytes"]) == (2, 2, 2 * len(data))
    assert stats["uncompressed_bytes"] == 2 * stats["unique_bytes"]
    home.check()


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_blobs_change_no_figure_and_are_listed_with_their_reasons(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    small_layers(folder, 3)
    _, overwritten = write_blob(folder, gz(layer(50)))
    good_bytes = overwritten.read_bytes()
    without = home.root / "without"
    shutil.copytree(cache, without)
    (without / overwritten.relative_to(cache)).unlink()
    expected = home.fresh(without)
    daemon = home.start(cache, environ=NEVER | timing(settle_s=0.5))
    daemon.until(lambda stats: stats["layers"] == 4 and stats["settled"], "the good ones")

    # A counted one is written over, and all that may lie among blobs lands.
    with overwritten.open("r+b") as file:
        file.write(noise(1000))
    truncated, _ = write_blob(folder, gz(layer(60))[:-2000])
    garbage, _ = write_blob(folder, gz(layer(61)) + b"garbage")
    broken, _ = write_blob(folder, zst(layer(62))[:-100])
    corrupt, _ = write_blob(folder, gz(layer(63))[:5000] + bytes(64) + gz(layer(63))[5064:])
    misnamed = folder / ("a" * 64)
    misnamed.write_bytes(gz(layer(64)))
    (folder / ("b" * 64)).symlink_to(overwritten)
    os.mkfifo(folder / ("c" * 64))
    (folder / ("d" * 64)).mkdir()
    (folder / "notes.txt").write_bytes(b"no blob")
    (folder / ("e" * 63)).write_bytes(b"no blob")
    (folder / ("F" * 64)).write_bytes(b"no blob")
    (folder / f"{'1' * 64}2345").write_bytes(b"in flight, as go-containerregistry names it")
    # What does not match its name may still be written: two are pending, and later fail.
    daemon.until(
        lambda stats: (
            figures(stats) == expected
            and stats["failed_blobs"] >= 4
            and stats["failed_blobs"] + stats["pending_blobs"] == 6
        ),
        "subtracted",
    )
    assert json.loads(home.command("health", "--json").stdout) == {"state": "ok", "reasons": []}

    stats = daemon.until(lambda stats: stats["failed_blobs"] == 6 and stats["settled"], "failed once at rest for 10 s")
    assert figures(stats) == expected
    assert stats["pending_blobs"] == 0
    daemon.settled_after_scan()
    rows = [json.loads(line) for line in home.command("blobs", "--failed", "--json").stdout.splitlines()]
    reasons = {row["digest"].rpartition("/")[2]: row["reason"] for row in rows}
    mismatch = "its bytes do not match its name"
    assert reasons.pop(f"sha256:{overwritten.name}") == mismatch
    assert reasons.pop(f"sha256:{misnamed.name}") == mismatch
    for digest in (truncated, garbage, broken, corrupt):
        assert reasons.pop(str(digest)), digest
    assert reasons == {
        "b" * 64: "a symbolic link",
        "c" * 64: "a FIFO",
        "d" * 64: "a folder",
        "notes.txt": "not the name of a digest",
        "e" * 63: "not the name of a digest",
        "F" * 64: "not the name of a digest",
        f"{'1' * 64}2345": "not the name of a digest",
    }
    for name in ("b" * 64, "c" * 64, "d" * 64, "notes.txt", str(truncated), misnamed.name):
        told = [line for line in daemon.log.splitlines() if name in line and "WARNING cache" not in line]
        assert len(told) == 1, f"in the log, once: {told}"
    home.check()

    # Put right, each counts again by the event alone.
    misnamed.unlink()
    (folder / ("b" * 64)).unlink()
    (folder / ("d" * 64)).rmdir()
    overwritten.write_bytes(good_bytes)
    good = daemon.until(lambda stats: stats["layers"] == 4 and stats["settled"], "written again")
    assert good["failed_blobs"] == 4
    left = {row["digest"].rpartition("/")[2] for row in daemon.blobs(failed=True)}
    assert not left & {"b" * 64, "d" * 64, f"sha256:{misnamed.name}", f"sha256:{overwritten.name}"}
    home.check()
    assert daemon.stop() == 0


def test_a_blob_that_breaks_a_cap_fails_and_counts_once_the_cap_is_raised(home: Home) -> None:
    cache = home.cache()
    digest, _ = write_blob(cache, gz(layer(1, 300_000)))
    daemon = home.start(cache, environ={"CHUNKD_MAX_UNCOMPRESSED_BYTES": "100KiB"})
    daemon.until(lambda stats: stats["failed_blobs"] == 1 and stats["settled"], "failed")
    (row,) = daemon.blobs(failed=True)
    assert row["digest"] == str(digest)
    assert "102400" in row["reason"].replace(",", "")
    daemon.stop()
    daemon = home.start(cache)
    found = daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "tried again")
    assert (found["failed_blobs"], figures(found)) == (0, home.fresh(cache))


def test_a_file_that_may_not_be_read_is_failed_and_counts_when_it_may(home: Home) -> None:
    cache = home.cache()
    small_layers(cache, 2)
    _, secret = write_blob(cache, gz(layer(9)))
    secret.chmod(0)
    daemon = home.start(cache, environ=NEVER, under=without_rights())
    found = daemon.until(lambda stats: stats["failed_blobs"] == 1 and stats["settled"], "failed")
    assert found["layers"] == 2
    (row,) = daemon.blobs(failed=True)
    assert row["reason"] == "can't be read: Permission denied"
    assert row["places"] == [str(secret)]
    secret.chmod(0o644)
    assert daemon.settled_after_scan(retry_failed=True)["layers"] == 3


def test_a_blob_that_failed_in_one_place_counts_by_another(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    digest, secret = write_blob(one, gz(layer(1)))
    secret.chmod(0)
    daemon = home.start(one, two, environ=NEVER, under=without_rights())
    daemon.until(lambda stats: stats["failed_blobs"] == 1 and stats["settled"], "failed")
    _, good = write_blob(two, gz(layer(1)))
    counted = daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted by the other place")
    assert counted["failed_blobs"] == 0
    assert figures(daemon.settled_after_scan()) == home.fresh(two)
    home.check()
    good.unlink()
    failed = daemon.until(lambda stats: figures(stats) == ZEROS and stats["settled"], "subtracted with it")
    assert failed["failed_blobs"] == 1
    assert daemon.blobs(failed=True)[0]["digest"] == str(digest)
    home.check()


def test_a_folder_that_may_not_be_listed_proves_nothing(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    small_layers(folder, 3)
    daemon = home.start(cache, environ=NEVER, under=without_rights())
    before = daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "counted")
    folder.chmod(0)
    assert figures(daemon.settled_after_scan()) == figures(before)
    health = home.command("health", "--json")
    assert health.returncode == 6
    assert str(folder) in json.loads(health.stdout)["reasons"][0]
    folder.chmod(0o755)
    assert figures(daemon.settled_after_scan()) == figures(before)
    assert home.command("health").returncode == 0


def test_paths_longer_than_the_index_can_hold_are_told_and_harm_nobody(home: Home) -> None:
    cache = home.cache()
    small_layers(oci(cache), 1)
    daemon = home.start(cache, environ=NEVER)
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted"))
    deep = oci(cache / ("a" * 200) / ("b" * 200))
    daemon.settled_after_scan()
    write_blob(deep, gz(layer(7)))
    (deep / ("notes" * 50)).write_bytes(b"no blob")
    (deep / ("f" * 64)).mkdir()
    assert figures(daemon.settled_after_scan()) == alone
    health = home.command("health", "--json")
    assert health.returncode == 6
    assert "longer than" in json.loads(health.stdout)["reasons"][0]
    shutil.rmtree(cache / ("a" * 200))
    assert figures(daemon.settled_after_scan()) == alone
    assert home.command("health").returncode == 0
    home.check()


def test_a_cache_of_manifests_without_layers_is_warned_of(home: Home) -> None:
    """As containerd leaves it, which drops layers once they are unpacked."""
    cache = home.cache()
    folder = oci(cache)
    write_blob(folder, b'{"schemaVersion": 2, "config": {}, "layers": []}')
    daemon = home.start(cache, environ=NEVER)
    warned = daemon.until(lambda stats: stats["caches"][0]["warnings"], "a warning")
    assert "discard_unpacked_layers" in warned["caches"][0]["warnings"][0]
    assert daemon.log.count("discard_unpacked_layers") == 1
    write_blob(folder, gz(layer(1, 60_000)))
    daemon.until(lambda stats: stats["layers"] == 1 and not stats["caches"][0]["warnings"], "no warning")


def test_a_cache_of_layers_that_are_not_decoded_is_told_what_they_are(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    write_blob(folder, b'{"schemaVersion": 2, "config": {}, "layers": []}')
    image, _ = write_blob(folder, bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(124) + noise(100_000))
    write_blob(folder, noise(100_000, 2))
    daemon = home.start(cache, environ=NEVER)
    warned = daemon.until(lambda stats: stats["caches"][0]["warnings"], "a warning")
    assert warned["layers"] == 0
    [warning] = warned["caches"][0]["warnings"]
    assert "EROFS image, unknown or encrypted" in warning
    assert "discard_unpacked_layers" not in warning
    assert {row["digest"]: row["reason"] for row in daemon.blobs()}[str(image)] == "EROFS image"
    daemon.stop()
    home.check()


def test_a_cache_of_a_single_layer_is_not_warned_of(home: Home) -> None:
    cache = home.cache()
    small_layers(oci(cache), 1)
    daemon = home.start(cache, environ=NEVER)
    daemon.until_figures(home.fresh(cache))
    assert daemon.settled_after_scan()["caches"][0]["warnings"] == []
    assert "no layer" not in daemon.log


# --- roots --------------------------------------------------------------------------------------------------------


def test_a_root_that_is_away_keeps_its_figures_and_is_called_stale(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    paths = small_layers(folder, 3)
    daemon = home.start(cache, environ=NEVER)
    before = figures(daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "counted"))
    assert home.command("health").returncode == 0

    away = home.root / "away"
    cache.rename(away)
    stats = daemon.until(lambda stats: stats["caches"][0]["state"] == "stale", "noticed")
    assert "can't be reached" in stats["caches"][0]["reason"]
    assert not stats["watching"]
    (away / "blobs/sha256" / paths[0].name).unlink()
    assert figures(daemon.settled_after_scan()) == before
    health = home.command("health", "--json")
    assert health.returncode == 6
    assert "stale" in json.loads(health.stdout)["reasons"][0]
    assert "stale" in home.command("stats").stdout

    away.rename(cache)
    back = daemon.until(lambda stats: stats["layers"] == 2 and stats["settled"], "back, and compared")
    assert back["caches"][0]["state"] == "watched"
    assert back["watching"]
    assert home.command("health").returncode == 0
    small_layers(folder, 1, first=3)
    daemon.until_figures(home.fresh(cache))
    home.check()


def test_a_root_that_is_removed_and_made_again(home: Home) -> None:
    cache = home.cache()
    small_layers(oci(cache), 3)
    daemon = home.start(cache, environ=NEVER)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "counted")
    shutil.rmtree(cache)
    daemon.until(lambda stats: stats["caches"][0]["state"] == "stale", "noticed")
    daemon.settled_after_scan()
    small_layers(oci(cache), 2, first=2)
    daemon.until_figures(home.fresh(cache))
    assert daemon.stats()["watching"]
    small_layers(cache / "blobs/sha256", 1, first=5)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "an event of the new root")
    home.check()


def test_a_digest_whose_only_place_left_was_in_a_root_that_was_away(home: Home) -> None:
    one, two = home.cache("one"), home.cache("two")
    data = gz(layer(1))
    _, first = write_blob(one, data)
    daemon = home.start(one, two, environ=NEVER)
    alone = figures(daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted"))
    _, second = write_blob(two, data)
    daemon.settled_after_scan()
    away = home.root / "away"
    two.rename(away)
    daemon.until(lambda stats: stats["caches"][1]["state"] == "stale", "away")
    first.unlink()
    kept = daemon.settled_after_scan()
    assert figures(kept) == alone, "kept by a place that nobody can look at"
    home.check()
    (away / second.name).unlink()
    away.rename(two)
    daemon.until_figures(ZEROS, 10)
    home.check()


def test_a_root_on_another_device_is_stale_until_it_is_accepted(home: Home) -> None:
    cache = home.cache()
    paths = small_layers(cache, 3)
    before = figures(home.scan(cache))
    store = Store(str(home.state / "index"), readonly=False)
    with contextlib.closing(store), store.env.begin(write=True) as txn:
        known = {
            number: one._replace(device=one.device + 1, fsid=one.fsid + 1) for number, one in store.caches(txn).items()
        }
        txn.put(CACHES_KEY, records.pack_caches(known), db=store.databases["meta"])
    paths[0].unlink()
    done = home.command("scan", "--json", cache)
    assert done.returncode == 7
    assert figures(json.loads(done.stdout)) == before
    daemon = home.start(cache, environ=NEVER)
    stats = daemon.settled_after_scan()
    assert figures(stats) == before
    assert stats["caches"][0]["state"] == "stale"
    assert "another device" in stats["caches"][0]["reason"]
    assert home.command("health").returncode == 6
    accepted = home.command("scan", "--json", "--accept", cache)
    assert accepted.returncode == 0, accepted.stderr
    assert json.loads(accepted.stdout)["layers"] == 2
    assert json.loads(accepted.stdout)["watching"]
    small_layers(cache, 1, first=7)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "it is watched")
    home.check()


def test_nothing_is_waited_for_in_a_root_that_is_away(home: Home) -> None:
    cache = home.cache()
    folder = oci(cache)
    daemon = home.start(cache, environ=NEVER)
    data = gz(layer(1))
    digest = blobs.digest_of(data)
    with (folder / digest.hex).open("wb") as file:
        file.write(data[:1000])
        file.flush()
        (folder / "ab" / f"ab{'0' * 62}").mkdir(parents=True)  # and of distribution, one that never comes
        daemon.until(lambda stats: stats["pending_blobs"], "half a blob is seen")
        cache.rename(home.root / "away")
        gone = daemon.until(
            lambda stats: stats["caches"][0]["state"] == "stale" and stats["settled"], "nothing is left"
        )
        assert gone["pending_blobs"] == 0
        file.write(data[1000:])
    (home.root / "away").rename(cache)
    back = daemon.until(lambda stats: stats["layers"] == 1, "found by the scan of a root that is back")
    assert (back["failed_blobs"], back["caches"][0]["state"]) == (0, "watched")
    home.check()


def test_a_root_replaced_by_another_folder_is_read_and_watched(home: Home) -> None:
    cache, other = home.cache(), home.cache("other")
    small_layers(oci(cache), 3)
    small_layers(oci(other), 2, first=2)
    daemon = home.start(cache, environ=NEVER)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "counted")
    cache.rename(home.root / "away")
    other.rename(cache)
    daemon.until_figures(home.fresh(cache))
    small_layers(cache / "blobs/sha256", 1, first=4)
    small_layers(home.root / "away/blobs/sha256", 1, first=7)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "an event of the new root")
    assert figures(daemon.settled_after_scan()) == home.fresh(cache)
    home.check()


def test_an_empty_cache_is_fine_and_a_missing_one_is_not(home: Home) -> None:
    cache = home.cache()
    assert figures(home.scan(cache)) == ZEROS
    stats = home.scan(cache)
    assert stats["redundancy"] is None
    assert stats["mean_chunk_bytes"] is None


# --- doubt --------------------------------------------------------------------------------------------------------


@linux_only
def test_an_overflow_of_the_kernels_queue_leads_to_a_scan(home: Home) -> None:
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if room > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events is {room}: it would take too many files to overflow it")
    cache = home.cache()
    folder = oci(cache)
    _, counted = write_blob(folder, gz(layer(99, 60_000)))
    daemon = home.start(cache, environ=NEVER | timing(settle_s=0.5))
    daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "watched")
    with daemon.halted():
        for number in range(room // 3 + 1):  # created, closed, deleted
            junk = folder / f"junk{number}"
            junk.touch()
            junk.unlink()
        small_layers(folder, 4)
        garbage = folder / "garbage"
        garbage.write_bytes(b"garbage")
        garbage.rename(counted)  # no event tells that a counted blob holds other bytes
    daemon.until_log("the kernel's event queue overflowed")
    daemon.until(lambda stats: stats["layers"] == 4 and stats["settled"], "found by a scan")
    assert f"found: {Cause.LISTED.value}" in daemon.log
    home.check()


@linux_only
@pytest.mark.long(12)
def test_a_blob_whose_worker_dies_is_tried_once_more_and_then_failed(home: Home) -> None:
    cache = home.cache()
    large = tar({"noise": noise(3_000_000, 1)})
    paced = {"CHUNKD_WORKERS": "1", "CHUNKD_READ_BYTES_PER_S": "500000"}  # 6 s: long enough to be caught at it
    daemon = home.start(cache, environ=NEVER | paced)
    digest, path = write_blob(cache, large)
    os.kill(reader_of(daemon, digest), signal.SIGKILL)
    counted = daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "counted by the second try")
    path.unlink()
    daemon.until_figures(ZEROS)

    write_blob(cache, large)
    first = reader_of(daemon, digest)
    os.kill(first, signal.SIGKILL)
    os.kill(reader_of(daemon, digest, but=first), signal.SIGKILL)
    failed = daemon.until(lambda stats: stats["failed_blobs"] == 1 and stats["settled"], "failed by the second death")
    assert figures(failed) == ZEROS
    assert (
        daemon.blobs(failed=True)[0]["reason"]
        == "can't be read: its worker was killed (signal 9), as the kernel does when memory is short"
    )
    assert figures(daemon.settled_after_scan(retry_failed=True)) == figures(counted)
    home.check()


@linux_only
def test_sigterm_lets_a_blob_that_is_being_read_come_to_its_end(home: Home) -> None:
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER | {"CHUNKD_WORKERS": "1", "CHUNKD_READ_BYTES_PER_S": "1200000"})
    # 2.5 s: to be caught at it, and what is left ends in the 5 s that it is given.
    digest, _ = write_blob(cache, tar({"noise": noise(3_000_000, 1)}))
    worker = reader_of(daemon, digest)
    os.kill(worker, signal.SIGSTOP)
    write_blob(cache, gz(layer(1)))
    daemon.process.send_signal(signal.SIGTERM)
    daemon.until_log("stopping: SIGTERM")
    os.kill(worker, signal.SIGCONT)
    assert daemon.process.wait(10) == 0
    listed = home.command("blobs").stdout
    assert str(digest) in listed, "what was being read is committed"
    home.check()


def reader_of(daemon: Daemon, digest: Digest, but: int = 0) -> int:
    """The worker that has this blob open, other than `but`."""

    def reader() -> int:
        for pid in daemon.workers():
            try:
                names = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
            if pid != but and any(name.endswith(digest.hex) for name in names):
                return pid
        return 0

    return until(reader, bool, "a worker that reads it")


@linux_only
def test_where_events_do_not_come_is_told_by_the_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"30 22 0:40 / {tmp_path}/nfs rw - nfs4 server:/export rw\n"
        f"31 30 0:41 / {tmp_path}/nfs/local rw - xfs /dev/sdb rw\n"
        f"32 22 0:42 / {tmp_path}/with\\040space rw shared:7 master:1 - fuse.sshfs host: rw\n"
        f"33 22 0:43 / {tmp_path}/hidden rw - cifs //host/share rw\n"
        f"34 22 0:44 / {tmp_path}/hidden rw - tmpfs tmpfs rw\n"
        f"35 22 0:45 / {tmp_path}/block rw - fuseblk /dev/sdc rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, **_: table if str(self) == "/proc/self/mountinfo" else "")
    kinds = {
        name: filesystems.file_system(str(tmp_path / name)) for name in ("nfs", "nfs/local/x", "with space", "hidden")
    }
    assert kinds == {"nfs": "nfs4", "nfs/local/x": "xfs", "with space": "fuse.sshfs", "hidden": "tmpfs"}
    assert filesystems.file_system(str(tmp_path / "nfslike")) == "ext4"
    assert filesystems.polled_because(str(tmp_path / "nfs/deep/er")) == "events do not come from nfs4"
    assert filesystems.polled_because(str(tmp_path / "with space")) == "events do not come from fuse.sshfs"
    assert filesystems.polled_because(str(tmp_path / "block")) is None, "a local disk (NTFS) behind FUSE"
    assert filesystems.polled_because(str(tmp_path)) is None


# --- asking -------------------------------------------------------------------------------------------------------


def test_curl_and_stats_get_the_same_object(home: Home) -> None:
    cache = home.cache()
    small_layers(cache, 3)
    daemon = home.start(cache, environ=NEVER)
    daemon.until(lambda stats: stats["layers"] == 3 and stats["settled"], "counted")
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    curl = subprocess.run(
        ["curl", "-sS", "--unix-socket", str(daemon.socket), "http://localhost/v1/stats"],
        capture_output=True, check=True, timeout=10,
    )  # fmt: skip
    said = json.loads(home.command("stats", "--json").stdout)
    assert json.loads(curl.stdout) == said
    assert said["watching"]
    # And without the daemon the same figures come from the index.
    assert daemon.stop() == 0
    offline = json.loads(home.command("stats", "--json").stdout)
    assert offline.keys() == said.keys()
    assert figures(offline) == figures(said)
    assert (offline["as_of"], offline["scanned_at"]) == (said["as_of"], said["scanned_at"])
    assert not offline["watching"]


def test_systemd_is_told_ready_alive_and_stopping(home: Home) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(home.root / "notify"))
        manager.settimeout(PATIENCE_S)
        cache = home.cache()
        daemon = home.start(cache, environ=NEVER | {"NOTIFY_SOCKET": str(home.root / "notify")})
        assert manager.recv(4096) == b"READY=1"
        alive = manager.recv(4096).decode().splitlines()
        assert alive[0] == "WATCHDOG=1"
        assert alive[1].startswith("STATUS=idle")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0
        manager.setblocking(False)
        said = [b""]
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(manager.recv(4096))
        assert said[-1] == b"STOPPING=1"
