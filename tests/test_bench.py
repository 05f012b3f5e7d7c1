"""The benchmarks' input is what it says, and each script runs on a tiny one and stops at a figure that is wrong."""

from __future__ import annotations

import concurrent.futures
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import bars
import forked
import latency
import layers
import measure
import memory
import running
import scan
import small
import sweep
from daemon import ASK_EVERY_S
from demo_images import zstd
from parts import codec

UNIT_BYTES = 1000
linux = pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is told by Linux only")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 files of up to 2 kB, and a few that belong in no layer."""
    source = tmp_path_factory.mktemp("source")
    for number in range(900):
        lines = (hashlib.sha256(b"%d %d" % (number, line)).hexdigest()[:11] + "\n" for line in range(1 + number % 180))
        (source / f"file{number}").write_text("".join(lines))
    (source / "link").symlink_to("file001")
    os.mkfifo(source / "fifo")
    (source / "large").write_bytes(bytes(layers.MOST_FILE_UNITS * UNIT_BYTES + 1))
    return source


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    layers.make(folder, [(str(source), 1000)], UNIT_BYTES)
    return folder


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a script's JSON goes; and one counted round is enough, of daemons that are forked and seldom asked."""
    folder = tmp_path / "results"
    for module in (measure, bars):
        monkeypatch.setattr(module, "RESULTS", folder)
    for module, name in ((scan, "ROUNDS_SMALL"), (latency, "ROUNDS"), (small, "ROUNDS")):
        monkeypatch.setattr(module, name, 1)
    monkeypatch.setattr(memory, "REST_S", 0.0)
    monkeypatch.setattr(running, "ASK_EVERY_S", ASK_EVERY_S)
    if forked.HERE:

        def start(args: Sequence[str], environ: dict[str, str], log: IO[bytes]) -> forked.Process:
            with open(os.devnull, "r+b") as nothing:
                return forked.start(args, environ, (nothing, nothing, log))

        monkeypatch.setattr(running, "start_chunkd", start)
    return folder


def run(script: Any, *args: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__file__, *map(str, args)])
        script.main()


def blob(layout: Path, digest: str) -> Any:
    data = (layout / "blobs" / digest.replace(":", "/")).read_bytes()
    assert "sha256:" + hashlib.sha256(data).hexdigest() == digest
    return json.loads(data)


def images(layout: Path) -> list[tuple[list[str], list[str]]]:
    """The layers' digests and diff_ids of each image."""
    found = []
    for image in json.loads((layout / "index.json").read_text())["manifests"]:
        manifest = blob(layout, image["digest"])
        config = blob(layout, manifest["config"]["digest"])
        found.append(([layer["digest"] for layer in manifest["layers"]], config["rootfs"]["diff_ids"]))
    return found


# --- the input ----------------------------------------------------------------------------------------------------


def test_three_versions_share_a_base_and_zstd_holds_the_first(made: Path) -> None:
    (first, plain), (second, _), (third, _) = images(made / "gzip")
    base = len(layers.BASE_UNITS)
    assert first[:base] == second[:base] == third[:base]
    assert 2 * len(first) < len({*first, *second, *third}) <= 3 * len(first) - 2 * base
    assert {path.name for path in layers.layers_of(made / "gzip")} == {
        digest.removeprefix("sha256:") for digest in (*first, *second, *third)
    }
    assert plain == [
        "sha256:" + hashlib.sha256(gzip.decompress((made / "gzip/blobs/sha256" / digest[7:]).read_bytes())).hexdigest()
        for digest in first
    ]
    assert [diff_ids for _, diff_ids in images(made / "zstd")] == [plain]
    assert {codec(path) for path in layers.layers_of(made / "zstd")} == {"zstd"}
    assert [path.name for path in layers.layers_of(made / "huge")] == [layers.layers_of(made / "gzip")[0].name]


def test_sizes_and_windows_are_those_asked_for(made: Path) -> None:
    sizes = [len(gzip.decompress(path.read_bytes())) for path in layers.layers_of(made / "sizes")]
    assert sizes == sorted(sizes, reverse=True)
    # A tar has a header for each file and is padded: with so small files it is nearly twice as large as they are.
    assert 900 * UNIT_BYTES < sizes[0] < 2000 * UNIT_BYTES
    assert sizes[-1] <= 20480
    stored = {path: path.read_bytes() for path in layers.layers_of(made / "memory")}
    unpacked = sorted(len(gzip.decompress(data)) for path, data in stored.items() if codec(path) == "gzip")
    assert unpacked == [layers.SHORT_UNITS * UNIT_BYTES, layers.LONG_UNITS * UNIT_BYTES]
    (wide,) = (data for path, data in stored.items() if codec(path) == "zstd")
    log = zstd.DecompressionParameter.window_log_max
    assert len(zstd.decompress(wide, options={log: 23})) == layers.WINDOW_UNITS * UNIT_BYTES
    with pytest.raises(zstd.ZstdError, match="too much memory"):
        zstd.decompress(wide, options={log: 22})


def test_the_same_files_give_the_same_layers_and_what_is_there_is_kept(
    made: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = layers.make(tmp_path / "again", [(str(source), 1000)], UNIT_BYTES)
    for name in layers.LAYOUTS:
        assert [path.name for path in layers.layers_of(made / name)] == [
            path.name for path in layers.layers_of(tmp_path / "again" / name)
        ]
    monkeypatch.setattr(layers, "_build", lambda *_: pytest.fail("made twice"))
    assert layers.make(tmp_path / "again", [], UNIT_BYTES) == again
    monkeypatch.setattr(layers, "VERSION", layers.VERSION + 1)
    with pytest.raises(pytest.fail.Exception, match="made twice"):
        layers.make(tmp_path / "again", [], UNIT_BYTES)


# --- the scripts --------------------------------------------------------------------------------------------------


def test_scan_compares_each_folder_in_one_run(made: Path, results: Path, tmp_path: Path) -> None:
    run(scan, tmp_path / "missing", made / "zstd", made / "huge")
    found = json.loads((results / "scan.json").read_text())
    assert {"zstd", "huge"} < set(found)
    assert found["zstd"]["figures"]["layers"] == len(layers.layers_of(made / "zstd"))
    assert {name: len(taken) for name, taken in found["zstd"]["seconds"].items()} == dict.fromkeys(
        ("parts", "bare", "jobs", "unmeasured", "scan", "process"), 1
    )
    # A lone layer has no bar, and a sum of parts is asked of gzip only.
    assert [bar["what"].split(":")[0] for bar in found["bars"]] == ["zstd"] * 4


@pytest.fixture
def case(made: Path) -> Iterator[scan.Case]:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield scan.opened_case(made / "huge", pool)


def test_scan_stops_at_a_wrong_figure(case: scan.Case) -> None:
    scan.scan_as_process(case)
    for name, value in case.figures.items():
        with pytest.raises(SystemExit, match="this scan: the figures are"):
            scan.compare_figures("this scan", case.figures, case.figures | {name: value + 1})
    wrong = case._replace(figures=case.figures | {"unique_bytes": case.figures["unique_bytes"] + 1})
    with pytest.raises(SystemExit, match="huge, chunkd scan: the figures are"):
        scan.scan_as_process(wrong)
    with pytest.raises(SystemExit, match="huge, in a daemon: the figures are"):
        scan.scan_in_daemon(wrong, 0.0, ())
    wrong = case._replace(figures=case.figures | {"uncompressed_bytes": case.figures["uncompressed_bytes"] + 1})
    with pytest.raises(SystemExit, match="huge, bare: the figures are"):
        scan.compare(wrong)


def test_the_bars_of_a_scan_are_ratios_within_a_round(made: Path, case: scan.Case) -> None:
    two = case._replace(name="gzip", layers=layers.layers_of(made / "gzip")[:2])
    seconds = {
        "parts": [1.0, 2.0, 1.0], "bare": [0.6, 1.2, 0.6], "unmeasured": [1.05, 2.1, 9.0], "scan": [1.26, 2.1, 9.0],
        "process": [2.0, 4.0, 9.0],
    }  # fmt: skip
    found = scan.bars_of(two, seconds)
    assert [bar.figure for bar in found] == pytest.approx([1.05, 0.6 / 1.05, 1.26, 0.6 / 1.26, 2.0, 0.3, 1.0])
    assert [bar.bar for bar in found] == [1.10, 0.62] * 3 + [1.15]
    assert [bar.reached for bar in found] == [True, False, False, False, False, False, True]
    assert scan.bars_of(two._replace(name="npm_small"), seconds)[1].reached


def test_scan_stops_where_the_pinned_layers_do_not_give_the_published_figures(
    case: scan.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = case.figures
    totals = figures | {"on_disk": figures["layer_stored_bytes"], "uncompressed": figures["uncompressed_bytes"]}
    pinned = {"layers": [{"sha256": path.name} for path in case.layers], "totals": totals}
    monkeypatch.setattr(scan, "PINNED", tmp_path / "pinned.json")
    scan.PINNED.write_text(json.dumps(pinned))
    assert scan.opened_case(case.folder, case.pool).name == "npm_small"
    totals["unique_bytes"] += 1
    scan.PINNED.write_text(json.dumps(pinned))
    with pytest.raises(SystemExit, match="npm_small, as published: the figures are"):
        scan.opened_case(case.folder, case.pool)


def test_latency_tells_of_each_layer(made: Path, results: Path) -> None:
    run(latency, made / "sizes")
    found = json.loads((results / "latency.json").read_text())
    sizes = [row["uncompressed_bytes"] for row in found["rows"]]
    assert sizes == sorted(sizes)
    assert len(found["bars"]) == len(sizes) == len(layers.SIZES_UNITS)


def test_latency_stops_at_a_wrong_figure(made: Path, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", layers.layers_of(made / "sizes")[0]
    running.seed_workers(cache, 1)
    with (
        running.daemon(tmp_path / "state", cache) as daemon,
        pytest.raises(SystemExit, match="bytes uncompressed were"),
    ):
        latency.land(daemon, cache, path, 1, 0.0)


@linux
def test_memory_tells_of_workers_and_of_the_daemon(made: Path, results: Path) -> None:
    run(memory, made / "memory", 60_000)
    found = json.loads((results / "memory.json").read_text())
    assert len(found["workers_bytes"]) == 3
    assert len(found["bars"]) == 4
    assert all(bar["figure"] > 0 for bar in found["bars"])


@linux
def test_memory_stops_at_a_wrong_figure(made: Path) -> None:
    path = layers.layers_of(made / "memory")[-1]
    with pytest.raises(SystemExit, match="bytes uncompressed were counted"):
        memory.worker_peak(made, path, layers.SHORT_UNITS * UNIT_BYTES + 1)


@linux
def test_memory_stops_where_the_daemon_lost_chunks(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = running.Daemon.stats
    monkeypatch.setattr(running.Daemon, "stats", lambda self: stats(self) | {"unique_chunks": 999})
    with pytest.raises(SystemExit, match="and 1000 were put in"):
        memory.daemon_at_rest(made, 1000)


def test_small_blobs_are_compared_with_a_plain_loop(results: Path, tmp_path: Path) -> None:
    run(small, 30, tmp_path)
    found = json.loads((results / "small.json").read_text())
    assert set(found["table"]["rows"]) == {"plain loop", "chunkd scan"}
    assert len(found["cpu_s"]) == len(found["bars"]) == 1
    assert list(tmp_path.iterdir()) in ([], [results])


def test_small_stops_at_a_wrong_figure_and_at_a_wrong_blob(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    small.make(cache, 3)
    with pytest.raises(SystemExit, match="4 blobs were to be counted"):
        small.scan(cache, 4)
    next((cache / "blobs" / "sha256").iterdir()).write_bytes(b"another")
    with concurrent.futures.ThreadPoolExecutor(2) as pool, pytest.raises(SystemExit, match="does not match its name"):
        small.plain_loop(cache, pool, 2)


# --- what they share ----------------------------------------------------------------------------------------------


@linux
def test_sweep_tells_of_processor_and_memory(made: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ROUNDS", 1)
    run(sweep, made / "zstd", 3)
    found = json.loads((results / "sweep.json").read_text())
    assert set(found["cpu"]["rows"]) == {"scan", "eight", "zstd", "all"}
    assert [bar["bar"] for bar in found["bars"]] == [4.0, 256.0]
    assert 10 < found["memory_mib"] < 256


def test_sweep_stops_at_a_wrong_figure(made: Path) -> None:
    with pytest.raises(SystemExit, match="other sizes"):
        sweep.cpu_s(lambda _: 1, layers.layers_of(made / "huge"), [2])


def test_a_bar_is_reached_at_its_very_value() -> None:
    assert measure.Bar("", 1.1, 1.1).reached
    assert not measure.Bar("", 1.11, 1.1).reached
    assert measure.Bar("", 0.55, 0.55, at_least=True).reached
    assert not measure.Bar("", 0.54, 0.55, at_least=True).reached
    assert measure.of_runs("", [3, 1, 2], 2) == measure.Bar("", 2, 2, spread=(1, 3))


def test_turns_are_taken_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []

    def timed_by_itself() -> float:
        order.append("b")
        return 7.5

    taken = measure.take_turns({"a": lambda: order.append("a"), "b": timed_by_itself}, 2)
    assert order == ["a", "b"] * 3
    assert len(taken["a"]) == 2
    assert taken["b"] == [7.5, 7.5]


def test_all_bars_are_told_in_one_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.save("one", {}, [measure.Bar("what is quick", 1.0, 2.0), measure.of_runs("what is slow", [3.0, 4.0], 2.0)])
    measure.save("two", {"rows": 1})
    capsys.readouterr()
    run(bars)
    said = capsys.readouterr().out
    assert [" ".join(line.split()) for line in said.splitlines() if line] == [
        "one",
        "what is quick 1 at most 2 times reached",
        "what is slow 3.5 at most 2 times NOT reached (3 to 4)",
        "two: no bars",
    ]
    assert {path.name for path in results.iterdir()} == {"one.json", "two.json"}
