"""The real program on a bucket: a scan equals one of the same files, and a daemon follows what comes and goes."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from answering import short_directory
from blobs import digest_of, gz, layer
from buckets import ACCESS_KEY, BUCKET, SECRET, TOP, Served, blob_key, fill, served
from chunkd.client import http
from daemon import Home, Stats, figures, opened, timing, until
from proxy import Request, by_chance

OFTEN = {"CHUNKD_SCAN_INTERVAL_S": "1"} | timing(settle_s=0.5, unsettled_s=3.0)
NEVER = {"CHUNKD_SCAN_INTERVAL_S": "86400"} | timing(settle_s=0.5, unsettled_s=3.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("files")) as found:
        yield found


@pytest.fixture
def home(server: Served) -> Iterator[Home]:
    with short_directory() as root, opened(root) as found:
        server.files = found.root / "files"
        found.settings |= server.environ | timing(settle_s=0.5, unsettled_s=3.0)
        yield found
        says_no_secret(found)
    server.proxy.fault = lambda _: ""
    server.proxy.generations.clear()
    for page in server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", ()):
            server.client.delete_object(Bucket=BUCKET, Key=one["Key"])
    server.proxy.requests.clear()


def says_no_secret(home: Home) -> None:
    """No file that was made has anything of the credentials, nor of a signature."""
    for path in home.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (ACCESS_KEY, SECRET, "X-Amz-Signature", "Signature="):
                assert secret.encode() not in content, path


def scan(home: Home, cache: str | Path, state: str = "state", *flags: str) -> Stats:
    done = home.command("scan", "--json", *flags, cache, state=home.root / state)
    assert done.returncode == 0, done.stderr
    for secret in (ACCESS_KEY, SECRET, "X-Amz-Signature"):
        assert secret not in done.stdout + done.stderr
    found: Stats = json.loads(done.stdout)
    return found


def images(home: Home, state: str = "state") -> list[dict[str, Any]]:
    """The images with their figures, without the times of their names."""
    done = home.command("images", "--json", state=home.root / state)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return sorted(rows, key=lambda row: str(row["digest"]))


def test_a_scan_equals_one_of_the_same_files_with_images(home: Home, server: Served) -> None:
    fill(server)
    found, files = scan(home, server.url), scan(home, server.files, "files-state")
    assert figures(found) == figures(files)
    assert (found["blobs"], found["layers"], found["failed_blobs"]) == (11, 5, 0)
    assert [cache["path"] for cache in found["caches"]] == [server.url]
    assert found["caches"][0]["layouts"] == ["distribution"]
    assert images(home) == images(home, "files-state")
    assert len(images(home)) == 3
    home.check()
    home.check("--read")
    # With the root below the names, as a prefix.
    inside = scan(home, f"{server.url}/{TOP}/blobs", "inside")
    assert figures(inside) == figures(files)
    assert images(home, "inside") == images(home)


def test_a_sweep_reads_the_layers_of_a_bucket(home: Home, server: Served) -> None:
    server.image("shop/api", "v1", *(gz(layer(seed, 60_000)) for seed in range(5)))
    scan(home, server.url)
    scan(home, server.files, "files-state")
    replies = []
    for state, *cache in (("state",), ("files-state",), ("named", server.url)):
        done = home.command("sweep", "--json", "--quiet", "--rules", "2/16/64,files", *cache, state=home.root / state)
        assert done.returncode == 0, done.stderr
        replies.append(json.loads(done.stdout))
    words = ("sweep", "--json", "--quiet", "--rules", "2/16/64,files", server.url, "--store", home.root / "store")
    done = home.command(*words)
    assert done.returncode == 0, done.stderr
    of_bucket, of_files, named = replies
    assert json.loads(done.stdout) == named  # in tasks, into a store
    assert of_bucket["layers"]["found"] == 5
    assert of_bucket["rules"] == of_files["rules"]
    assert [row["unique_bytes"] for row in named["rules"]] == [row["unique_bytes"] for row in of_files["rules"]]


def test_what_is_indexed_is_never_read_again_and_what_is_gone_is_subtracted(home: Home, server: Served) -> None:
    fill(server)
    scan(home, server.url)
    assert len(server.proxy.data()) == 11
    assert [one.of for one in server.proxy.requests if one.method == "HEAD" and one.of.endswith("/data")] == []
    server.proxy.requests.clear()
    scan(home, server.url)
    scan(home, server.url, "state", "--verify")
    assert server.proxy.data() == []
    gone = server.blob(gz(layer(9)))
    with_it = scan(home, server.url)
    assert len(server.proxy.data()) == 1
    server.delete(blob_key(gone))
    without = scan(home, server.url)
    assert figures(without) == figures(scan(home, server.files, "files-state")) != figures(with_it)
    assert len(server.proxy.data()) == 1
    home.check()


def test_archived_blobs_are_a_state_of_their_own_until_they_are_restored(home: Home, server: Served) -> None:
    fill(server)
    cold = gz(layer(7))
    key = blob_key(server.blob(cold, "GLACIER"))
    bad = server.blob(b"its name is another's")
    server.put(blob_key(bad), b"its name is not this one's")
    found = scan(home, server.url)
    assert (found["archived_blobs"], found["archived_bytes"]) == (1, len(cold))
    assert (found["failed_blobs"], found["pending_blobs"]) == (1, 0)
    listed = 11 + 1 + 1
    assert found["blobs"] + found["pending_blobs"] + found["failed_blobs"] + found["archived_blobs"] == listed
    assert figures(found) == figures(scan(home, server.files, "files-state"))
    assert "archived" in home.command("stats").stdout
    rows = [json.loads(line) for line in home.command("blobs", "--failed", "--json").stdout.splitlines()]
    assert {row["state"] for row in rows} == {"archived", "failed"}
    home.check()
    server.put(key, cold)
    restored = scan(home, server.url, "state", "--retry-failed")
    assert (restored["archived_blobs"], restored["layers"]) == (0, 6)
    home.check()


def test_a_daemon_follows_what_is_pushed_and_removed(home: Home, server: Served) -> None:
    fill(server)
    daemon = home.start(server.url, environ=OFTEN)
    before = daemon.until(lambda stats: stats["settled"] and stats["layers"] == 5, "all is counted")
    assert [cache["state"] for cache in before["caches"]] == ["polled"]
    for pid in (daemon.starter(), *daemon.workers()):
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    assert figures(before) == figures(scan(home, server.files, "files-state"))
    server.image("web", "next", gz(layer(1)), gz(layer(8)))
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 6, "the new image")
    daemon.until_figures(home.fresh(server.files))
    server.delete(blob_key(server.blob(gz(layer(8)))))
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 5, "without the layer")
    daemon.until_figures(home.fresh(server.files))
    reads = len(server.proxy.data())
    scans = daemon.stats()["scans"]
    daemon.until(lambda stats: stats["scans"] >= scans + 2, "two more scans")
    assert len(server.proxy.data()) == reads
    assert daemon.stop() == 0
    home.check()


def test_a_bucket_that_does_not_answer_hangs_nothing(home: Home, server: Served) -> None:
    """Its figures stay, the other cache goes on, and the daemon ends when it is told to."""
    fill(server)
    other = home.cache("other")
    daemon = home.start(server.url, other, environ=OFTEN)
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 5, "all is counted")
    server.proxy.fault, server.proxy.stall_s = lambda _: "hang", 60.0
    (other / str(digest_of(gz(layer(20))).hex)).write_bytes(gz(layer(20)))
    daemon.until(lambda stats: stats["layers"] == 6, "the other cache goes on")
    assert daemon.stop() == 0
    home.check()


def threads(pid: int) -> set[str]:
    return {path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")}


def test_a_reader_that_is_killed_costs_no_blob(home: Home, server: Served) -> None:
    server.blob(gz(layer(1)))
    daemon = home.start(server.url, environ=NEVER)
    daemon.until(lambda stats: stats["settled"] and stats["layers"] == 1, "one is counted")

    def readers() -> list[int]:
        return [pid for pid in daemon.workers() if "tokio-rt-worker" in threads(pid)]

    [reader] = readers()
    os.kill(reader, signal.SIGKILL)
    until(readers, lambda found: reader not in found, "it has ended")
    server.blob(gz(layer(2)))
    daemon.settled_after_scan()
    assert daemon.stats()["layers"] == 2
    assert readers()
    # Half-way through a blob, it can't be read for now, and is tried again.
    server.proxy.fault, server.proxy.stall_s = lambda request: "stall" if request.is_data else "", 20.0
    server.blob(gz(layer(3)))
    [again] = readers()
    http.ask(str(daemon.socket), "POST", "/v1/scan", {})
    until(lambda: server.proxy.faults, lambda faults: "stall" in faults, "it is being read")
    os.kill(again, signal.SIGKILL)
    daemon.until(lambda stats: stats["failed_blobs"] == 1 and stats["settled"], "it could not be read")
    server.proxy.fault = lambda _: ""
    daemon.settled_after_scan(retry_failed=True)
    assert daemon.until(lambda stats: stats["layers"] == 3, "read again")["failed_blobs"] == 0
    assert daemon.stop() == 0
    home.check()


def test_faults_of_the_bucket_change_no_figure(home: Home, server: Served) -> None:
    """Cuts, resets, refusals, and objects that are written anew while they are read."""
    fill(server)
    draw, again = random.Random(5), set[str]()
    others = by_chance(draw, ("503", "cut", "reset"), 0.5)

    def fault(request: Request) -> str:
        if request.is_data and request.of not in again and draw.random() < 0.3:
            again.add(request.of)
            return "another"
        return others(request)

    server.proxy.fault = fault
    found = scan(home, server.url)
    assert figures(found) == figures(scan(home, server.files, "files-state"))
    assert {"503", "cut", "reset", "another"} <= set(server.proxy.faults)
    assert (found["failed_blobs"], found["pending_blobs"]) == (0, 0)
    home.check()
