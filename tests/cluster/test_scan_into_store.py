"""`chunkd scan --store` as a process: a merge of what it makes has the figures of `chunkd scan`, on whatever engine."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import daemon
import forked
from blobs import digest_of, gz, layer, noise, tar, write_blob, zst
from buckets import ACCESS_KEY, BUCKET, SECRET, Served, blob_key, fill, served
from chunkd.cluster.engine import carry_out
from chunkd.fleet import snapshot
from chunkd.fleet.segment import SegmentRules, digest_bytes
from chunkd.fleet.store import Store
from chunkd.index.records import Rules
from chunkd.model import Digest
from clusters import cluster, task_processes
from daemon import PATIENCE_S, Home, until, without_rights
from fleets import OWN_FIELDS
from stores import blobs_in, key_at
from test_commands import filled_layout

SMALL = Path(__file__).with_name("small_tasks.py")
STORED = {"store": "store"}


@pytest.fixture
def server(home: Home) -> Iterator[Served]:
    with served(home.root / "files") as found:
        home.settings |= found.environ
        yield found
        says_no_secret(home)


def says_no_secret(home: Home) -> None:
    for path in home.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (ACCESS_KEY, SECRET, "X-Amz-Signature", "Signature="):
                assert secret.encode() not in content, path


def store_scan(home: Home, source: object, *flags: object, store: str = "store", code: int = 0) -> dict[str, Any]:
    """What `chunkd scan --store` says."""
    done = home.command("scan", "--json", "--quiet", source, "--store", home.root / store, *flags)
    assert done.returncode == code, done.stderr
    assert SECRET not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    # I7: what was listed is one of these.
    kinds = ("counted", "failed", "archived", "pending", "unrecognised")
    assert sum(found[kind] for kind in kinds) == found["listed"]
    return found


def small(home: Home, blobs: int, source: object, *flags: object, store: str = "store") -> forked.Process:
    """A scan that has a task for each so many blobs."""
    words = [str(blobs), "scan", "--json", "--quiet", str(source), "--store", str(home.root / store), *map(str, flags)]
    with open(os.devnull) as nothing, (home.root / "out").open("w") as out, (home.root / "err").open("w") as err:
        return forked.start(words, home.environ, (nothing, out, err), script=SMALL)


def said(home: Home, process: forked.Process) -> dict[str, Any]:
    """What the scan that was started last says."""
    assert process.wait(PATIENCE_S) == 0, (home.root / "err").read_text()
    found: dict[str, Any] = json.loads((home.root / "out").read_text())
    return found


def merged(home: Home, *flags: str, store: str = "store") -> dict[str, Any]:
    done = forked.run(["merge", str(home.root / store), "--json", *flags], home.environ, PATIENCE_S)
    assert done.returncode in (0, 7), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: value for name, value in found.items() if name not in OWN_FIELDS - {"pending_blobs"}}


def of_scan(home: Home, cache: object, state: str = "index") -> dict[str, Any]:
    """What `chunkd scan` says of the same files."""
    shutil.rmtree(home.root / state, ignore_errors=True)
    found = home.scan(str(cache), state=home.root / state)
    return {name: value for name, value in found.items() if name not in OWN_FIELDS - {"pending_blobs"}}


def images(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in ("as_of", "names_as_of", "commit", "fleet")}


def images_of_index(home: Home, state: str = "index") -> dict[str, Any]:
    done = home.command("images", "--json", state=home.root / state)
    assert done.returncode == 0, done.stderr
    return images(json.loads(done.stdout))


def segments(home: Home, store: str = "store") -> dict[str, str]:
    """The digest of each file of a segment."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (home.root / store / "segments").iterdir()
        if not path.name.startswith(".")
    }


def segments_of(home: Home) -> list[Path]:
    folder = home.root / "store" / "segments"
    return list(folder.iterdir()) if folder.exists() else []


def a_cache(home: Home, count: int = 12) -> Path:
    cache = home.cache()
    for seed in range(count):
        write_blob(cache, gz(layer(seed)) if seed % 2 else zst(layer(seed)))
    write_blob(cache, noise(500, 77))
    write_blob(cache, gz(layer(50))[:-9])  # fails
    return cache


def test_a_folder_into_a_store_equals_a_scan_with_images(home: Home) -> None:
    path = filled_layout(home).path
    found = store_scan(home, path)
    assert found["read"] == found["counted"] == found["listed"]
    expected = of_scan(home, path)
    assert merged(home) == expected
    assert images(json.loads(_merge_images(home))) == images_of_index(home)
    assert expected["layers"] > 3


def _merge_images(home: Home) -> str:
    done = forked.run(["merge", str(home.root / "store"), "--images", "--json"], home.environ, PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_bucket_into_a_store_equals_a_scan_of_its_files_with_images(home: Home, server: Served) -> None:
    fill(server)
    found = store_scan(home, server.url)
    assert (found["counted"], found["read"], found["segments"]) == (11, 11, 1)
    assert merged(home) == of_scan(home, server.files)
    listed = images(json.loads(_merge_images(home)))
    assert listed == images_of_index(home)
    assert len(listed["images"]) == 3
    # It is one source, whoever lists it.
    shutil.rmtree(home.state, ignore_errors=True)
    again = store_scan(home, f"{server.url}/")
    assert (again["source"], again["read"], again["reused"]) == (found["source"], 0, 11)
    assert len(list((home.root / "store" / "snapshots").iterdir())) == 1


def test_only_what_is_new_is_read_and_what_is_gone_is_subtracted(home: Home) -> None:
    cache = a_cache(home)
    first = store_scan(home, cache)
    assert (first["read"], first["failed"], first["segments"]) == (14, 1, 1)
    before = segments(home)
    new, _ = write_blob(cache, gz(layer(90)))
    (cache / digest_of(zst(layer(0))).hex).unlink()
    second = store_scan(home, cache)
    assert (second["read"], second["reused"], second["segments"]) == (1, 13, 1)
    assert before.items() <= segments(home).items()
    assert merged(home) == of_scan(home, cache)
    (cache / new.hex).unlink()
    third = store_scan(home, cache)
    assert (third["read"], third["segments"], third["counted"]) == (0, 0, 12)
    assert merged(home) == of_scan(home, cache)
    # A failed blob is read again when that is asked for.
    retried = store_scan(home, cache, "--retry-failed")
    assert (retried["read"], retried["failed"]) == (1, 1)


def test_shards_share_the_work_and_a_last_run_completes_the_store(home: Home) -> None:
    cache = a_cache(home)
    found = [store_scan(home, cache, "--shard", f"{number}/3") for number in range(3)]
    assert [one["moment"] for one in found] == ["", "", ""]
    assert sum(one["read"] for one in found) == sum(one["listed"] for one in found) == 14
    assert all(one["read"] for one in found)
    assert not (home.root / "store" / "snapshots").exists()
    last = store_scan(home, cache)
    assert (last["read"], last["reused"]) == (0, 14)
    assert merged(home) == of_scan(home, cache)
    for wrong in ("3/3", "1", "-1/3", "1/0", "a/b"):
        assert home.command("scan", cache, "--store", home.root / "store", f"--shard={wrong}").returncode == 2


def test_engines_make_the_same_store(home: Home) -> None:
    """I2: also on a cluster of two machines, by their workers."""
    cache = a_cache(home)
    expected = of_scan(home, cache)
    made = [said(home, small(home, 5, cache, "--workers", 1))]
    made.append(said(home, small(home, 5, cache, "--engine", "dask", store="here")))
    with cluster(home.root, home.environ) as found:
        made.append(said(home, small(home, 5, cache, "--engine", f"dask:{found.address}", store="there")))
    assert [one["segments"] for one in made] == [3, 3, 3]
    assert segments(home) == segments(home, "here") == segments(home, "there")
    for store in ("here", "there"):
        assert merged(home, store=store) == expected


def test_archived_replaced_and_vanished_objects(home: Home, server: Served) -> None:
    fill(server)
    cold = gz(layer(60))
    key = blob_key(server.blob(cold, "GLACIER"))
    found = store_scan(home, server.url)
    assert (found["archived"], found["counted"]) == (1, 11)
    assert (merged(home)["archived_blobs"], merged(home)["archived_bytes"]) == (1, len(cold))
    # It is asked for again, once it was restored, if that is said.
    server.put(key, cold)
    assert store_scan(home, server.url)["archived"] == 1
    again = store_scan(home, server.url, "--retry-failed")
    assert (again["archived"], again["counted"], again["read"]) == (0, 12, 1)
    assert merged(home) == of_scan(home, server.files)


@pytest.mark.long(36)
def test_a_bucket_that_fails_now_and_then(
    home: Home, server: Served, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before each further try it pauses, and chance says how many there are.
    monkeypatch.setattr(daemon, "PATIENCE_S", 300.0)
    fill(server)
    draw = random.Random(seed)
    server.proxy.fault = lambda _: draw.choice(["", "", "", "", "503", "cut", "reset", "another"])
    words = ["scan", "--json", "--quiet", server.url, "--store", home.root / "store"]
    done = home.command(*words)
    # An object that is another one at each of three readings is pending.
    assert done.returncode in (0, 7), done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == 0
    assert found["counted"] > 5
    assert len(server.proxy.faults) > 5
    server.proxy.fault = lambda _: ""
    again = store_scan(home, server.url)
    assert (again["reused"], again["read"]) == (found["counted"], found["pending"])
    assert merged(home) == of_scan(home, server.files)


def test_what_cannot_be_read_is_pending_and_named(home: Home) -> None:
    under = without_rights()
    cache = a_cache(home, 3)
    shut, path = write_blob(cache, gz(layer(70)))
    path.chmod(0)
    (cache / "a folder").mkdir()
    words = ["scan", "--json", "--quiet", cache, "--store", home.root / "store"]
    done = home.command(*words, under=under)
    assert done.returncode == 7, done.stderr
    found = json.loads(done.stdout)
    assert (found["pending"], found["counted"], found["failed"]) == (1, 4, 1)
    assert [*found["unread"].values()] == [1]
    assert merged(home)["pending_blobs"] == 1
    path.chmod(0o644)
    again = store_scan(home, cache)
    assert (again["read"], again["pending"], again["reused"]) == (1, 0, 5)
    assert merged(home) == of_scan(home, cache)
    assert shut.hex not in json.dumps(found)


def test_a_task_takes_little_memory_whatever_its_blobs_are(home: Home) -> None:
    """I9: of a blob it has the recipe, and never the bytes."""
    cache = home.cache()
    write_blob(cache, gz(layer(1)))
    libraries_bytes = store_scan(home, cache)["peak_task_bytes"]
    size_bytes = 200 << 20
    write_blob(cache, tar({"a": b"".join(noise(1 << 20, number) for number in range(200))}))
    found = store_scan(home, cache)
    assert found["read_bytes"] > size_bytes
    chunks = merged(home)["chunks"]
    assert found["peak_task_bytes"] < libraries_bytes + (64 << 20) + 100 * chunks


def test_a_machine_that_would_count_otherwise_is_refused(home: Home) -> None:
    cache = a_cache(home, 2)
    store_scan(home, cache)
    from chunkd.cluster.task import versions

    for name in versions():
        answer = carry_out({"versions": versions() | {name: "another"}})
        assert f"{versions()[name]} and not another" in answer["error"]
        assert os.uname().nodename in answer["error"]


def test_a_machine_without_the_store_is_named(home: Home) -> None:
    """What it would put somewhere else nobody would find."""
    from chunkd.cluster.task import versions

    rules = SegmentRules.of(Rules()).pack().decode()
    nowhere = home.root / "not-mounted"
    task = {"kind": "scan", "versions": versions(), "rules": rules, "store": str(nowhere), "key_file": ""}
    answer = carry_out(task)
    assert str(nowhere) in answer["error"]
    assert not nowhere.exists()


def test_under_a_key_the_figures_are_the_same_and_nothing_is_named(home: Home, server: Served) -> None:
    fill(server)
    key = key_at(home.root / "key")
    parts = [store_scan(home, server.url, "--key-file", home.root / "key", "--shard", f"{part}/2") for part in range(2)]
    last = store_scan(home, server.url, "--key-file", home.root / "key")
    assert [sum(one["read"] for one in parts), last["read"], last["reused"]] == [11, 0, 11]
    assert merged(home) == of_scan(home, server.files)
    assert home.command("merge", home.root / "store", "--images").returncode == 2
    store = Store(str(home.root / "store"))
    found = snapshot.latest(store, last["source"])
    assert found is not None
    assert (found.rules.key, found.facts.names_as_of_ns, list(snapshot.names(store, found))) == (key.id, 0, [])
    blobs = [row for one in store.names("segments", ".blobs.parquet") for row in blobs_in(store, one)]
    digests = [Digest("sha256", path.parent.name) for path in server.files.rglob("data")]
    hidden = {digest_bytes(digest, key) for digest in digests}
    assert {row["digest"] for row in blobs} == {row["digest"] for row in found.held.to_pylist()} == hidden
    assert hidden.isdisjoint(digest_bytes(digest, None) for digest in digests)
    assert not any(row["manifest"] for row in blobs)


def test_without_its_key_nothing_gets_into_a_store_that_hides(home: Home) -> None:
    cache = a_cache(home, 2)
    key_at(home.root / "key")
    key_at(home.root / "another", "cd" * 32)
    store_scan(home, cache, "--key-file", home.root / "key")
    before = segments(home)
    write_blob(cache, gz(layer(90)))
    for flags in ([], ["--key-file", home.root / "another"]):
        assert home.command("scan", cache, "--store", home.root / "store", *flags).returncode == 1
    for wrong in ("absent", "cache"):
        flags = ["--key-file", home.root / wrong]
        assert home.command("scan", cache, "--store", home.root / "store", *flags).returncode == 2
    assert segments(home) == before
    # A path that is not that of the working directory of a task, and one more blob.
    again = store_scan(home, cache, "--key-file", os.path.relpath(home.root / "key"))
    assert (again["read"], again["reused"]) == (1, 4)
    assert merged(home) == of_scan(home, cache)


def test_a_machine_with_another_key_is_named(home: Home) -> None:
    from chunkd.cluster.task import versions

    cache = a_cache(home, 2)
    key = key_at(home.root / "key")
    store_scan(home, cache, "--key-file", home.root / "key")
    rules = SegmentRules.of(Rules(), key).pack().decode()
    task = {"kind": "scan", "versions": versions(), "rules": rules, "store": str(home.root / "store")}
    before = segments(home)
    for problem in ("has key", "others can read it", "No such file"):
        match problem:
            case "has key":
                key_at(home.root / "key", "cd" * 32)
            case "others can read it":
                (home.root / "key").chmod(0o644)
            case _:
                (home.root / "key").unlink()
        answer = carry_out(task | {"key_file": str(home.root / "key")})
        assert problem in answer["error"]
        assert os.uname().nodename in answer["error"]
    assert segments(home) == before


@pytest.mark.parametrize("victim", ["driver", "task", "worker"])
def test_a_death_costs_the_work_in_hand(home: Home, victim: str) -> None:
    """I3; the torture has it at many moments, and on a cluster."""
    from deaths_of_tasks import kill_one, victims

    cache = a_cache(home)
    process = small(home, 4, cache, "--workers", 2)
    until(lambda: victims(home.root, process, victim), bool, f"a {victim}")
    kill_one(home.root, process, victim, random.Random(1))
    code = process.wait(PATIENCE_S)
    assert (code == 0) == (victim != "driver"), (home.root / "err").read_text()
    finished = (
        {name for name in segments(home) if "blobs" in name} if (home.root / "store/segments").exists() else set()
    )
    before = {name: (home.root / "store/segments" / name).stat().st_ino for name in finished}
    again = said(home, small(home, 4, cache))
    assert again["read"] + again["reused"] == 14
    assert (
        before.items() <= {name: (home.root / "store/segments" / name).stat().st_ino for name in segments(home)}.items()
    )
    if victim != "driver":
        assert again["read"] == 0
    assert merged(home) == of_scan(home, cache)


def test_a_source_without_blobs_leaves_the_store_as_it_was(home: Home) -> None:
    """It may be a mount that is away."""
    cache = a_cache(home, 2)
    store_scan(home, cache)
    before = merged(home)
    shutil.rmtree(cache)
    for _ in range(2):
        assert home.command("scan", cache, "--store", home.root / "store").returncode == 1
        cache.mkdir(exist_ok=True)
    assert merged(home) == before


def test_an_interrupted_scan_leaves_no_process(home: Home) -> None:
    home.settings["CHUNKD_READ_BYTES_PER_S"] = "10000"  # that takes minutes
    process = small(home, 2, a_cache(home), "--workers", 2)
    until(lambda: task_processes(home.root), bool, "a task")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 1
    until(lambda: task_processes(home.root), lambda left: not left, "no task is left")


def test_a_task_ends_when_nobody_waits_for_it(home: Home) -> None:
    home.settings["CHUNKD_READ_BYTES_PER_S"] = "10000"
    process = small(home, 20, a_cache(home))  # that takes minutes
    until(lambda: task_processes(home.root), bool, "a task")
    process.kill()
    process.wait(PATIENCE_S)
    until(lambda: task_processes(home.root), lambda left: not left, "no task is left", 15.0)
    assert not segments_of(home)


def test_flags_that_do_not_go_together(home: Home) -> None:
    cache, store = home.cache(), home.root / "store"
    for flags in (
        ["--engine", "dask"],
        ["--shard", "0/2"],
        ["--key-file", "key"],
        ["--store", store, "--verify"],
        ["--shard", ""],
        ["--store", store, "--engine", "ray"],
        ["--store", store, "--engine", ""],
        ["--store", "s3://bucket/store"],
        ["--store", ""],
        ["--store", f"{store}\udcff"],
        ["--store", store, home.cache("another")],
    ):
        write_blob(cache, noise(10, 1))
        assert home.command("scan", cache, *flags).returncode == 2, flags
    assert not store.exists(), "refused before anything is listed"


def test_a_bucket_is_listed_into_tasks_that_have_no_secret(home: Home, server: Served) -> None:
    """I8: what goes to a cluster has where an object lies, and no means to read it."""
    fill(server)
    code = (
        "import json, sys; from chunkd.cluster import scan, engine\n"
        "of = engine.carry_out\n"
        "def told(task, running=None): print(json.dumps(task), file=sys.stderr); return of(task, running)\n"
        "engine.carry_out = told; from chunkd.__main__ import main; main()"
    )
    words = ["scan", server.url, "--store", str(home.root / "store"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S,
        check=True,
    )  # fmt: skip
    assert f'"source": "s3://{BUCKET}"' in done.stderr
    for secret in (ACCESS_KEY, SECRET, "Signature"):
        assert secret not in done.stderr + done.stdout
