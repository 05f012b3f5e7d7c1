"""`chunkd sweep` on caches on disk: its row of the index's rule is the index's figures, and what it keeps meanwhile."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import oracle
from blobs import digest_of, gz, layer, noise, tar, text, write_blob, zst
from chunkd.cli.sweep import _read
from chunkd.model import Caps, MeasureRule
from chunkd.sweep.question import Question
from chunkd.sweep.results import NothingToResume, OwnResults, unfinished
from chunkd.worker import sandbox
from daemon import Home, children, npm_layers, state_of, until
from invariants import printed
from sweeping import Reply, cache_of, kept, row, swept, whole_files
from test_commands import settled
from test_diff_command import two_versions

if TYPE_CHECKING:
    from chunkd.sweep.sweep import Sweep

OF_THE_INDEX = (
    "chunks", "unique_chunks", "unique_bytes", "recompressed_bytes", "recompressed_error_bytes",
    "index_overhead_bytes", "net_bytes", "net", "break_even_unique", "measured_chunks", "codec_saving_bytes",
    "deduplication_saving_bytes",
)  # fmt: skip


def test_the_row_of_the_indexs_rule_is_the_indexs_figures(home: Home) -> None:
    paths = npm_layers()[:4]
    cache = cache_of(home, paths)
    stats = home.scan(cache)
    reply = swept(home)
    assert {name: row(reply, "2/16/64")[name] for name in OF_THE_INDEX} == {name: stats[name] for name in OF_THE_INDEX}
    assert reply["layer_stored_bytes"] == stats["layer_stored_bytes"]
    assert reply["uncompressed_bytes"] == stats["uncompressed_bytes"]
    for one in reply["rules"]:
        assert one["chunk_bytes"] == stats["uncompressed_bytes"], one["name"]
        assert one["unique_bytes"] <= one["chunk_bytes"]
        if one["measured_chunks"]:
            parts = one["codec_saving_bytes"] + one["deduplication_saving_bytes"] - one["index_overhead_bytes"]
            assert parts == one["net_bytes"], one["name"]
    plain = [gzip.decompress(path.read_bytes()) for path in paths]
    files = row(reply, "files")
    assert (files["chunks"], files["unique_chunks"], files["unique_bytes"]) == whole_files(plain)
    [level_3, level_19] = reply["baselines"]["zstd"]
    assert (level_3["bytes"], level_3["error_bytes"]) == (sum(len(zst(data, checksum=False)) for data in plain), 0)
    assert 0 < level_19["layers_measured"] <= len(paths)
    truth = sum(len(zst(data, level=19, checksum=False)) for data in plain)
    assert abs(level_19["bytes"] - truth) <= level_19["error_bytes"]
    home.check()
    assert home.scan(cache)["unique_bytes"] == stats["unique_bytes"]
    assert not (home.state / "sweep").exists()


def test_fixed_blocks_are_those_of_a_plain_loop(home: Home) -> None:
    layers = [layer(seed) for seed in (1, 2)]
    cache = home.cache()
    for data in layers:
        write_blob(cache, gz(data))
    found = row(swept(home, cache, "--rules", "fixed-4KiB"), "fixed-4KiB")
    blocks = [data[at : at + 4096] for data in layers for at in range(0, len(data), 4096)]
    assert (found["chunks"], found["unique_chunks"]) == (len(blocks), len(set(blocks)))
    assert found["unique_bytes"] == sum(map(len, set(blocks)))


def test_updates_are_those_of_the_index(home: Home) -> None:
    base = two_versions(home)
    updates = printed(home, "updates", "--all")
    known = [one for one in updates["repositories"] if one["pairs"]]
    for with_daemon in (False, True):
        if with_daemon:
            settled(home, base)
        reply = swept(home, "--rules", "2/16/64,files,fixed-64KiB")
        assert reply["updates_unknown"] is None
        own = row(reply, "2/16/64")
        assert own["median_update_bytes"] == updates["median"]["median_chunk_bytes"]
        assert own["median_update_ranges"] == statistics.median(one["median_requests"] for one in known)
        now = reply["baselines"]["layers"]
        assert now["median_update_bytes"] == updates["median"]["median_layer_bytes"]
        assert now["median_update_ranges"] == statistics.median(one["median_blobs"] for one in known)
        # A file changed as a whole: its bytes are what moves, and not its neighbours'.
        assert row(reply, "files")["median_update_bytes"] < own["median_update_bytes"]
        assert row(reply, "fixed-64KiB")["median_update_bytes"] > 0
        assert reply["best"]["update_bytes"] == "files"


def test_layers_that_are_not_read_leave_updates_unknown(home: Home) -> None:
    base = two_versions(home)
    largest = max((base / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    reply = swept(home, "--rules", "2/16/64", code=7)
    [bad] = reply["layers"]["bad"]
    assert bad["digest"] == f"sha256:{largest.name}"
    assert row(reply, "2/16/64")["median_update_bytes"] is None
    assert reply["layers"]["found"] == 3


def test_a_part_of_the_layers_says_so_in_every_figure(home: Home) -> None:
    cache = home.cache()
    names = [write_blob(cache, gz(layer(seed, 3000)))[0].hex for seed in range(40)]
    reply = swept(home, cache, "--rules", "2/16/64,files", "--layers", "1/4")
    assert reply["layers"]["found"] == sum(int(name[:2], 16) < 64 for name in names) > 0
    assert reply["layers_share"] == "1/4"
    assert {one["layers_read"] for one in reply["rules"]} == {"1/4"}
    assert {one["layers_read"] for one in reply["baselines"]["zstd"]} == {"1/4"}
    assert reply["updates_unknown"]
    text_of = home.command("sweep", cache, "--rules", "2/16/64", "--layers", "1/4", "--quiet").stdout
    assert any(line.startswith("rule (1/4 of all)") for line in text_of.splitlines())


def test_a_digest_in_two_caches_is_read_once_and_what_is_no_layer_is_told(home: Home) -> None:
    data = gz(layer(1))
    one, other = home.cache("one"), home.cache("other")
    write_blob(one, data)
    write_blob(other, data)
    write_blob(other, b"{}")
    broken, _ = write_blob(other, gz(layer(2))[:-9])
    reply = swept(home, one, other, "--rules", "2/16/64", code=7)
    assert (reply["layers"]["wanted"], reply["layers"]["found"], reply["layers"]["others"]) == (3, 1, 1)
    assert [bad["digest"] for bad in reply["layers"]["bad"]] == [str(broken)]
    assert row(reply, "2/16/64")["chunk_bytes"] == len(layer(1))


def hostile_tars() -> dict[str, bytes]:
    good = tar({"a": noise(5000, 1), "b": text(5000, 2)})
    long_name = bytearray(tar({"x": b""})[:512])
    long_name[156:157] = b"L"
    long_name[124:136] = b"77777777777\0"
    long_name[148:156] = b" " * 8
    long_name[148:156] = b"%06o\0 " % sum(long_name)
    negative = bytearray(good)
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative[:512])
    return {
        "cut in a header": good[: 512 + 5120 + 100],
        "cut in a file": good[:3000],
        "no tar": noise(20_000, 3),
        "a name of 8 GB": bytes(long_name) + noise(4096, 4),
        "a negative size": bytes(negative),
        "a bad checksum": good[: 512 + 5120] + noise(512, 5) + good[512 + 5120 + 512 :],
    }


def test_a_hostile_tar_costs_its_own_layers_files_and_nothing_else(home: Home) -> None:
    cache = home.cache()
    good = layer(7)
    write_blob(cache, gz(good))
    hostile = hostile_tars()
    for data in hostile.values():
        write_blob(cache, gz(data))
    reply = swept(home, cache)
    assert reply["layers"]["found"] == 1 + len(hostile)
    assert reply["layers"]["bad"] == []
    assert len(reply["layers"]["damaged_tars"]) >= len(hostile) - 1
    size = sum(map(len, hostile.values())) + len(good)
    assert {one["chunk_bytes"] for one in reply["rules"]} == {size}
    alone = [oracle.chunks(data) for data in (good, *hostile.values())]
    assert row(reply, "2/16/64")["chunks"] == sum(map(len, alone))


def started(home: Home, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "chunkd", "sweep", *map(str, words), "--state", str(home.state)],
        env=home.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def until_kept(home: Home, count: int, process: subprocess.Popen[str]) -> dict[str, tuple[int, int]]:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        found = kept(home)
        if len(found) >= count:
            return found
        time.sleep(0.005)
    raise AssertionError(f"the sweep ended with {len(kept(home))} results")


SLOW_LAYERS = 10


def slow_cache(home: Home) -> Path:
    """One worker is busy with it for seconds, so that it can be interrupted after a few of its layers."""
    cache = home.cache()
    for seed in range(SLOW_LAYERS):
        write_blob(cache, gz(layer(seed, 300_000)))
    return cache


def figures_of(reply: Reply) -> Reply:
    """Without what says how it was read, and without what the processor's time decides."""
    return reply | {
        "layers": reply["layers"] | {"from_earlier_runs": 0},
        "baselines": reply["baselines"] | {"zstd": reply["baselines"]["zstd"][:1]},
    }


def test_ctrl_c_prints_what_is_known_and_the_next_run_goes_on(home: Home) -> None:
    cache = slow_cache(home)
    whole = swept(home, cache)
    process = started(home, cache, "--json", "--quiet", "--workers", "1")
    until_kept(home, 3, process)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    reply = json.loads(out)
    before = kept(home)
    assert not reply["complete"]
    assert (reply["layers"]["found"], reply["layers"]["left"]) == (len(before), SLOW_LAYERS - len(before))
    assert 0 < row(reply, "2/16/64")["chunk_bytes"] < row(whole, "2/16/64")["chunk_bytes"]
    assert not list((home.state / "sweep").glob(".*.new"))
    other = home.command("sweep", "--resume", "--max-ratio", "77")
    assert (other.returncode, other.stdout, kept(home)) == (1, "", before), other.stderr
    again = swept(home, "--resume")
    assert again["layers"]["from_earlier_runs"] == len(before)
    assert figures_of(again) == figures_of(whole)
    assert home.command("sweep", "--resume").returncode == 1


def test_a_cache_that_is_away_costs_no_result(home: Home) -> None:
    """What was read is kept until all can be read, not only after an interruption."""
    here, away = home.cache("here"), home.cache("away")
    for cache, seed in ((here, 1), (here, 2), (away, 3)):
        write_blob(cache, gz(layer(seed)))
    home.scan(here, away)
    whole = swept(home, "--rules", "2/16/64")
    assert not (home.state / "sweep").exists()
    away.rename(home.root / "elsewhere")
    assert len(swept(home, "--rules", "2/16/64", code=7)["layers"]["bad"]) == 1
    before = kept(home)
    assert len(before) == 2
    (home.root / "elsewhere").rename(away)
    again = swept(home, "--resume")
    assert again["layers"]["from_earlier_runs"] == 2
    assert figures_of(again) == figures_of(whole)
    assert not (home.state / "sweep").exists()
    # What is larger than a bound will be so the next time too.
    most_bytes = min(path.stat().st_size for path in here.iterdir()) - 1
    assert len(swept(home, here, "--max-uncompressed-bytes", most_bytes, code=7)["layers"]["bad"]) == 2
    assert not (home.state / "sweep").exists()


def test_a_page_that_can_not_be_written_is_named_before_anything_is_read(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1)))
    for target, code in ((home.root / "no" / "page.html", 1), (home.root, 1), (cache / "file" / "x", 1), ("-", 2)):
        (cache / "file").touch()
        done = home.command("sweep", cache, "--rules", "files", "-o", target)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert str(target) in done.stderr
    assert not home.state.exists()


class _Interrupted:
    """A sweep that Ctrl-C reaches in the middle of a step."""

    def __init__(self, steps: int) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self._steps = steps

    def read(self) -> Iterator[tuple[int, int, int]]:
        for number in range(self._steps):
            self.begun.append(number)
            signal.raise_signal(signal.SIGINT)
            self.done.append(number)
            yield number, self._steps, self._steps - number

    @property
    def is_complete(self) -> bool:
        return len(self.done) == self._steps


@pytest.mark.parametrize("steps", [1, 2])
def test_ctrl_c_tears_no_step_apart(steps: int) -> None:
    begun = _Interrupted(steps)
    assert _read(cast("Sweep", begun), quiet=True) == (steps > 1)
    assert begun.begun == begun.done == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return state_of(pid) not in "ZX"
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_its_workers_are_confined_and_their_memory_is_bounded(home: Home) -> None:
    process = started(home, slow_cache(home), "--quiet", "--workers", "1")
    until_kept(home, 1, process)
    [starter] = children(process.pid)
    [worker] = children(starter)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines())
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    process.kill()
    process.communicate()
    assert (status["NoNewPrivs"], int(status["CapEff"], 16)) == ("1", 0)
    assert status["Seccomp"] == "2" or not sandbox.described().startswith("each can open no file")
    [data] = [line.split() for line in limits if line.startswith("Max data size")]
    assert data[3] == str(256 << 20)
    until(lambda: [pid for pid in (starter, worker) if is_alive(pid)], lambda left: not left, "they end")


def test_only_one_sweep_at_a_time(home: Home) -> None:
    cache = slow_cache(home)
    process = started(home, cache, "--quiet", "--workers", "1")
    until_kept(home, 1, process)
    done = home.command("sweep", cache)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(home.state / "sweep") in done.stderr
    process.kill()
    process.communicate()


def test_a_damaged_result_is_read_again(home: Home) -> None:
    cache = slow_cache(home)
    whole = swept(home, cache, "--rules", "2/16/64")
    process = started(home, cache, "--json", "--quiet", "--workers", "1", "--rules", "2/16/64")
    until_kept(home, 5, process)
    process.kill()
    process.communicate()
    names = sorted(kept(home))
    folder = home.state / "sweep"
    data = bytearray((folder / names[0]).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / names[0]).write_bytes(data)
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    (folder / names[2]).write_bytes(b"")
    again = swept(home, cache, "--rules", "2/16/64")
    assert again["layers"]["from_earlier_runs"] == len(names) - 3
    assert figures_of(again) == figures_of(whole)


def test_results_of_another_question_are_not_taken(home: Home) -> None:
    cache = slow_cache(home)
    process = started(home, cache, "--quiet", "--workers", "1", "--rules", "2/16/64")
    until_kept(home, 3, process)
    process.kill()
    process.communicate()
    assert swept(home, cache, "--rules", "4/32/128")["layers"]["from_earlier_runs"] == 0


@pytest.mark.parametrize(
    "said",
    [
        "", "[]", "{}", '{"caches": 5, "rules": "files", "one_in": 1, "layers": "1/1"}',
        '{"caches": [], "rules": 7, "one_in": 1, "layers": "1/1"}',
        '{"caches": [], "rules": "files", "one_in": "x", "layers": "1/1"}',
        '{"caches": [], "rules": "files", "one_in": 1, "layers": 1}',
    ],
)  # fmt: skip
def test_a_question_that_is_damaged_can_not_be_resumed(tmp_path: Path, said: str) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "question.json").write_text(said)
    with pytest.raises(NothingToResume):
        unfinished(str(tmp_path))


def test_what_else_is_in_the_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "sweep" / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "sweep" / f"sha256-{'0' * 64}").mkdir()
    (tmp_path / "sweep" / "link").symlink_to(tmp_path)
    results = OwnResults(str(tmp_path), Question(("2/16/64",), MeasureRule(), Caps()))
    assert list(results.kept({})) == []
    assert [path.name for path in results.folder.iterdir()] == ["lock"]
    results.done()
    results.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--layers", "5/4"), ("--layers", "0/4"), ("--rules", "nonsense"), ("--rules", "")])
def test_what_is_not_possible_is_a_usage_error(home: Home, words: tuple[str, ...]) -> None:
    done = home.command("sweep", home.cache(), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_without_an_index_and_without_a_cache_there_is_nothing_to_sweep(home: Home) -> None:
    assert home.command("sweep").returncode == 3


def test_an_empty_cache_has_rows_of_nothing(home: Home) -> None:
    reply = swept(home, home.cache(), "--rules", "2/16/64,files")
    assert [one["chunks"] for one in reply["rules"]] == [0, 0]
    assert reply["best"] == {"net": None, "update_bytes": None}
    assert home.command("sweep", home.cache(), "-q").returncode == 0


def test_a_plain_and_a_zstd_layer_of_the_same_tar_are_the_same_chunks(home: Home) -> None:
    cache = home.cache()
    data = layer(3)
    for blob in (data, gz(data), zst(data)):
        write_blob(cache, blob)
    reply = swept(home, cache)
    for one in reply["rules"]:
        assert one["chunk_bytes"] == 3 * len(data)
        assert one["unique_bytes"] <= len(data), one["name"]
    assert str(digest_of(data)) not in json.dumps(reply)
