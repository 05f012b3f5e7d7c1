"""`chunkd export` and `chunkd merge` as processes, on real blobs, beside daemons and without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forked
from blobs import gz, layer, noise, write_blob, zst
from daemon import PATIENCE_S, REPOSITORY, Home
from fleets import figures
from stores import content_of

UNIT = REPOSITORY / "systemd" / "chunkd-export.service"
WALLED = REPOSITORY / "tests" / "walled.py"


LAYERS = [gz(layer(seed)) if seed % 2 else zst(layer(seed)) for seed in range(8)]


def cache_of(home: Home, name: str, layers: list[bytes]) -> Path:
    cache = home.cache(name)
    for data in layers:
        write_blob(cache, data)
    write_blob(cache, noise(500, 77))
    return cache


def merge(home: Home, *args: object) -> subprocess.CompletedProcess[str]:
    return forked.run(["merge", *map(str, args)], home.environ, PATIENCE_S)


def merged(home: Home, *args: object) -> dict[str, Any]:
    done = merge(home, home.root / "store", "--json", *args)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_merge_says_of_two_hosts_is_what_scan_says_of_all_their_blobs(home: Home) -> None:
    store = home.root / "store"
    hosts = {"web": LAYERS[:5], "db": LAYERS[3:]}
    for name, layers in hosts.items():
        home.scan(cache_of(home, name, layers), state=home.root / f"state-{name}")
        done = home.command("export", store, "--name", name, "--json", state=home.root / f"state-{name}")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["name"], told["blobs"], told["read"], told["segments"]) == (
            name,
            len(layers) + 1,
            len(layers) + 1,
            1,
        )
    found = merged(home)
    home.scan(cache_of(home, "all", LAYERS), state=home.root / "state-all")
    expected = json.loads(home.command("stats", "--json", state=home.root / "state-all").stdout)
    assert figures(found) == figures(expected)
    assert found.keys() - {"fleet"} == expected.keys()
    assert sorted(row["name"] for row in found["fleet"]["sources"]) == ["db", "web"]
    copies_bytes = sum(len(data) for layers in hosts.values() for data in layers)
    assert found["fleet"]["waterfall"]["copies_bytes"] == copies_bytes
    text = merge(home, store)
    assert (text.returncode, text.stderr) == (0, "")
    for words in ("all copies", "distinct layers", "as chunks", "web", "db", "redundancy"):
        assert words in text.stdout


def test_beside_a_daemon_only_what_is_new_is_exported(home: Home) -> None:
    store, cache = home.root / "store", cache_of(home, "cache", LAYERS[:3])
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 3, "three layers")
    assert json.loads(home.command("export", store, "--json").stdout)["read"] == 4
    write_blob(cache, LAYERS[5])
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 4, "four layers")
    again = json.loads(home.command("export", store, "--json").stdout)
    assert (again["read"], again["segments"], again["blobs"]) == (1, 1, 5)
    found = merged(home, "--max-age", "1h")
    # A daemon has the summary of images too.
    assert figures(found) | {"images": None} == figures(daemon.stats()) | {"images": None}
    assert (found["pending_blobs"], found["warnings"]) == (0, [])


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("systemd-analyze"), reason="the walls need root and systemd")
def test_an_export_behind_the_walls_of_its_unit(home: Home) -> None:
    store = home.root / "store"
    home.scan(cache_of(home, "cache", LAYERS[:3]))
    walls = (sys.executable, str(WALLED), str(UNIT), str(home.root), "--")
    done = home.command("export", store, "--json", under=walls)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["segments"] == 1
    assert merged(home)["layers"] == 3


def test_a_source_that_is_too_old_is_left_out_with_exit_code_7(home: Home) -> None:
    store = home.root / "store"
    home.scan(cache_of(home, "web", LAYERS[:2]))
    assert home.command("export", store).returncode == 0
    done = merge(home, store, "--max-age", "2100-01-01")
    assert done.returncode == 3, done.stderr
    home.scan(cache_of(home, "db", LAYERS[1:4]), state=home.root / "other")
    assert home.command("export", store, state=home.root / "other").returncode == 0
    (source,) = [
        path for path in (store / "snapshots").iterdir() if path.name == (home.state / "source").read_text().strip()
    ]
    # What it held a year ago.
    done = merge(home, store, "--json")
    assert done.returncode == 0
    for path in source.iterdir():
        path.unlink()
    done = merge(home, store, "--json", "--max-age", "1d")
    assert done.returncode == 7
    content = json.loads(done.stdout)
    assert [row["source"] for row in content["fleet"]["left_out"]] == [source.name]
    assert content["layers"] == 3
    assert "left out" in merge(home, store).stdout


def test_a_host_whose_figures_are_incomplete_is_named(home: Home) -> None:
    store, cache = home.root / "store", cache_of(home, "cache", LAYERS[:2])
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 2, "two layers")
    cache.rename(home.root / "away")
    daemon.until(lambda stats: stats["caches"][0]["state"] == "stale", "stale")
    done = home.command("export", store, "--name", "web")
    assert done.returncode == 7, done.stderr
    done = merge(home, store, "--json")
    assert done.returncode == 7
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "web" in warning
    assert "stale" in warning
    assert str(home.root) not in done.stdout


def test_under_a_key(home: Home) -> None:
    store, key = home.root / "store", home.root / "key"
    home.scan(cache_of(home, "web", LAYERS[:3]))
    key.write_text("12" * 32 + "\n")
    key.chmod(0o644)
    assert home.command("export", store, "--key-file", key).returncode == 2
    key.chmod(0o600)
    assert home.command("export", store, "--key-file", key).returncode == 0
    assert merged(home)["layers"] == 3
    done = home.command("export", store)
    assert done.returncode == 1
    assert "12" * 8 not in content_of(store)


def test_no_path_and_no_byte_of_a_file_is_in_the_store(home: Home) -> None:
    store = home.root / "store"
    home.scan(cache_of(home, "a-telling-name", [gz(layer(1) + b"a secret" * 3)]))
    environ = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI"}
    assert home.command("export", store, "--name", "web", environ=environ).returncode == 0
    written = content_of(store)
    assert "'layer'" in written
    for words in ("telling", str(home.root), "a secret", "wJalrXUtnFEMI"):
        assert words not in written


@pytest.mark.parametrize("args", [(), ("--max-age", "soon"), ("--no-such-flag",)])
def test_wrong_usage_exits_2(home: Home, args: tuple[str, ...]) -> None:
    assert merge(home, *args, *(["store"] if args else [])).returncode == 2


def test_what_is_no_store_is_an_error_of_one_line(home: Home) -> None:
    for store in (home.root / "none", home.root, "s3://bucket/prefix", "", f"{home.root}\udcff"):
        done = merge(home, store)
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1
    assert home.command("export", home.root / "store").returncode == 3
    assert not (home.root / "store").exists()
    home.scan(cache_of(home, "web", LAYERS[:1]))
    assert home.command("export", "s3://user:secret@bucket").stderr.count("secret") == 0
    (home.root / "file").touch()
    assert home.command("export", home.root / "file").returncode == 1
    assert os.listdir(home.root / "web")
