"""`chunkd sweep --store` as a process: its reply is that of `chunkd sweep` over the same files, on whatever engine."""

from __future__ import annotations

import functools
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from blobs import gz, layer, noise, tar, text, write_blob, zst
from chunkd.cluster.engine import carry_out
from clusters import cluster, task_processes
from daemon import PATIENCE_S, Home, until
from deaths_of_tasks import kill_one
from sweeping import Reply, swept
from test_diff_command import two_versions
from test_sweep_command import figures_of

SMALL = Path(__file__).with_name("small_tasks.py")
RULES = ("--rules", "2/16/64,files")


def a_cache(home: Home, count: int = 6) -> Path:
    cache = home.cache()
    for seed in range(count):
        data = (
            layer(seed, 60_000) if seed % 3 else tar({f"{at}": text(3000, at) + noise(900, seed) for at in range(20)})
        )
        write_blob(cache, gz(data) if seed % 2 else zst(data))
    write_blob(cache, b"{}")
    write_blob(cache, gz(layer(70))[:-9])  # can't be decoded
    return cache


def into(home: Home, *words: object, store: str = "store", code: int = 7) -> Reply:
    return swept(home, *words, "--store", home.root / store, code=code)


def small(home: Home, *words: object, store: str = "store") -> subprocess.Popen[str]:
    """A sweep that has a task for each three layers."""
    said_words = ["sweep", "--json", "--quiet", *map(str, words), "--store", str(home.root / store)]
    return subprocess.Popen(
        [sys.executable, str(SMALL), "3", *said_words], env=home.environ, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def said(process: subprocess.Popen[str], code: int = 0) -> Reply:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    found: Reply = json.loads(out)
    return found


def results(home: Home, store: str = "store") -> dict[str, tuple[int, int]]:
    """The finished results in a store, each with its inode and time."""
    paths = (home.root / store).glob("sweeps/*/sha*-*")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def without_earlier(reply: Reply) -> Reply:
    return reply | {"layers": reply["layers"] | {"from_earlier_runs": 0}}


# --- equal to a sweep on one machine ----------------------------------------------------------------------------------


def test_engines_have_the_reply_of_a_sweep_on_one_machine(home: Home) -> None:
    """Also on a cluster of another machine; zstd at level 19 as well."""
    cache = a_cache(home)
    expected = swept(home, cache, *RULES, code=7)
    assert expected["baselines"]["zstd"][1]["layers_measured"] == expected["layers"]["found"] == 6
    assert said(small(home, cache, *RULES, "--workers", 2), 7) == expected
    with cluster(home.root, home.environ, workers=1) as found:
        engine = ("--engine", f"dask:{found.address}")
        assert said(small(home, cache, *RULES, *engine, store="there"), 7) == expected
    assert len(results(home)) == 8
    assert results(home).keys() == results(home, "there").keys()


def test_the_table_is_the_same_too(home: Home) -> None:
    cache = a_cache(home, 2)
    words = ("sweep", "-q", cache, "--rules", "files")
    plain, stored = home.command(*words), home.command(*words, "--store", home.root / "store")
    assert plain.returncode == stored.returncode == 7, stored.stderr
    assert plain.stdout == stored.stdout


def test_shards_read_each_layer_once_and_the_whole_has_the_figures(home: Home) -> None:
    """One layer can't be decoded: its shard fails no job for that, as the next run could do nothing about it."""
    cache = a_cache(home)
    done = []
    for number in range(3):
        reply = into(home, cache, *RULES, "--shard", f"{number}/3", code=0)
        assert reply["complete"]
        assert "rules" not in reply
        done.append(reply["layers"]["wanted"])
    assert sum(done) == 8
    before = results(home)
    reply = into(home, cache, *RULES)
    assert reply["layers"]["from_earlier_runs"] == 8
    assert without_earlier(reply) == swept(home, cache, *RULES, code=7)
    assert results(home) == before


def test_updates_are_those_of_the_index(home: Home) -> None:
    two_versions(home)
    expected = swept(home, *RULES)
    assert expected["updates_unknown"] is None
    assert into(home, *RULES, code=0) == expected


def test_layers_of_a_cache_that_is_gone_are_named(home: Home) -> None:
    """The index knows them; the others have their figures."""
    here, gone = home.cache("here"), home.cache("gone")
    for cache, seed in ((here, 1), (gone, 2), (gone, 3)):
        write_blob(cache, gz(layer(seed)))
    home.scan(here, gone)
    shutil.rmtree(gone)
    expected = swept(home, *RULES, code=7)
    assert len(expected["layers"]["bad"]) == 2
    assert not into(home, *RULES, "--shard", "0/1")["complete"]  # they have no result, and may come back
    assert into(home, *RULES) == expected | {"layers": expected["layers"] | {"from_earlier_runs": 1}}


# --- again, and interrupted -------------------------------------------------------------------------------------------


def test_only_what_is_new_is_read(home: Home) -> None:
    cache = a_cache(home, 3)
    into(home, cache, *RULES)
    before = results(home)
    write_blob(cache, gz(layer(90)))
    reply = into(home, cache, *RULES)
    assert reply["layers"]["from_earlier_runs"] == 5
    assert before.items() < results(home).items()
    assert without_earlier(reply) == swept(home, cache, *RULES, code=7)
    # Another question has results of its own.
    assert into(home, cache, "--rules", "files")["layers"]["from_earlier_runs"] == 0


def test_a_death_costs_the_work_in_hand(home: Home) -> None:
    """The torture has it at many moments, and on a cluster."""
    cache = a_cache(home, 4)
    expected = swept(home, cache, *RULES, code=7)
    for victim in ("driver", "task", "worker"):
        process = small(home, cache, *RULES, "--workers", 2, store=victim)
        until(functools.partial(kill_one, home.root, process, victim, random.Random(1)), bool, f"a {victim}")
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode == 7) == (victim != "driver"), stderr
        before = results(home, victim)
        again = into(home, cache, *RULES, store=victim)
        assert before.items() <= results(home, victim).items()
        assert again["layers"]["from_earlier_runs"] >= len(before)
        # A layer whose worker died is tried again without level 19.
        assert figures_of(again) == figures_of(expected)


def test_ctrl_c_prints_what_is_known_and_leaves_no_process(home: Home) -> None:
    cache = home.cache()
    for seed in range(7):
        write_blob(cache, gz(layer(seed, 100_000)))
    whole = swept(home, cache, *RULES)
    home.settings["CHUNKD_READ_BYTES_PER_S"] = "300000"  # that takes a while
    process = small(home, cache, *RULES)
    until(lambda: results(home), bool, "a result")
    process.send_signal(signal.SIGINT)
    reply = said(process, 7)
    assert not reply["complete"]
    assert reply["layers"]["found"] == len(results(home)) < 7
    until(lambda: task_processes(home.root), lambda left: not left, "no task is left")
    del home.settings["CHUNKD_READ_BYTES_PER_S"]
    assert without_earlier(into(home, cache, *RULES, code=0)) == whole


def test_a_damaged_result_is_made_again(home: Home) -> None:
    cache = a_cache(home, 4)
    expected = into(home, cache, *RULES)
    [folder] = (home.root / "store" / "sweeps").iterdir()
    one, other, *_ = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)
    one.write_bytes(one.read_bytes()[:-1])
    other.unlink()
    other.symlink_to(one)
    again = into(home, cache, *RULES)
    assert again["layers"]["from_earlier_runs"] == 4
    assert without_earlier(again) == expected
    assert not other.is_symlink()


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_machine_that_does_not_see_the_cache_or_the_store_is_named(home: Home) -> None:
    """By its own task, before it reads a byte; so is one with other versions."""
    from dataclasses import asdict

    from chunkd.cluster.task import versions
    from chunkd.fleet.store import Store
    from chunkd.model import Caps, ChunkParams, MeasureRule
    from chunkd.sweep.question import Question

    nowhere, cache = home.root / "nowhere", home.cache()
    task = {
        "kind": "sweep", "versions": versions(), "store": str(nowhere), "roots": [str(cache)], "seen": [0],
        "courtesy": [0, "normal", 0], "question": asdict(Question(("files",), MeasureRule(), Caps())), "workers": 1,
        "totals": [[0] * 4], "shifts": [0], "layers": [[["sha256", "0" * 64], 5, 5, 0, "0" * 64, 0.0]],
    }  # fmt: skip
    assert str(nowhere) in carry_out(task)["error"]
    assert not nowhere.exists()
    Store(str(nowhere)).begin(ChunkParams(), "")
    assert len(carry_out(task)["bad"]) == 1
    shutil.rmtree(cache)
    assert str(cache) in carry_out(task)["error"]
    assert "not another" in carry_out(task | {"versions": versions() | {"zstd": "another"}})["error"]


def test_a_store_whose_hashes_are_hidden_gets_no_others(home: Home) -> None:
    from chunkd.fleet.store import Store
    from chunkd.model import ChunkParams

    Store(str(home.root / "store")).begin(ChunkParams(), "a key's id")
    done = home.command("sweep", a_cache(home, 1), "--store", home.root / "store")
    assert done.returncode == 1
    assert "a key's id" in done.stderr
    assert not results(home)


def test_flags_that_do_not_go_together(home: Home) -> None:
    cache, store = home.cache(), home.root / "store"
    for flags in (
        ["--engine", "dask"],
        ["--shard", "0/2"],
        ["--store", store, "--resume"],
        ["--store", store, "--shard", "0/2", "-o", "page.html"],
        ["--store", store, "--shard", "2/2"],
        ["--store", "s3://bucket/store"],
    ):
        assert home.command("sweep", *([] if "--resume" in flags else [cache]), *flags).returncode == 2, flags
    for flags in (["--shard", ""], ["--store", store, "--engine", "ray"], ["--store", store, "--engine", ""]):
        assert home.command("sweep", cache, *flags).returncode == 2, flags
    assert not store.exists(), "refused before anything is listed"


def test_only_what_is_asked_for_needs_further_packages(home: Home) -> None:
    code = (
        "import sys\nfor name in ('cryptography', 'duckdb', 'pyarrow', 'distributed'): sys.modules[name] = None\n"
        "from chunkd.__main__ import main; main()"
    )
    cache = a_cache(home, 1)
    for engine, status in (("local", 7), ("dask", 1)):
        words = ["sweep", cache, "--store", home.root / engine, "--engine", engine, "-q", *RULES]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], env=home.environ, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert ("pip install 'chunkd[dask]'" in done.stderr) == (engine == "dask")
