"""What a chunk store would save: the arithmetic, and on the pinned npm layers the truth of it."""

from __future__ import annotations

import functools
import gzip
import json
import math
import random
import shutil
import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import oracle
from chunkd.chunkers.gear import Chunker
from chunkd.cli.progress import progress
from chunkd.errors import IndexMissing
from chunkd.figures.histogram import COLUMNS
from chunkd.figures.net_saving import LEAST_MEASURED, Estimate, estimate, figures, parts
from chunkd.figures.totals import Sample, Totals
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.index.storage import environment
from chunkd.index.storage.lock import IndexLock
from chunkd.model import ChunkParams, MeasureRule
from chunkd.service import oneshot, remeasure
from chunkd.settings.config import load
from chunkd.worker import recompress
from chunkd.worker.recompress import Recompressor, library
from counts import counted
from daemon import Stats, npm_chunks, npm_layers, opened, without_rights
from indexing import edit, records_of

SAVING = (
    "recompressed_bytes", "recompressed_error_bytes", "index_overhead_bytes", "net_bytes", "net", "break_even_unique",
    "measured_chunks",
)  # fmt: skip
Pairs = list[tuple[int, int]]
npm_chunks_once = functools.cache(lambda: list(npm_chunks()))


def sample_of(pairs: Pairs) -> Sample:
    return Sample(
        len(pairs), sum(x for x, _ in pairs), sum(y for _, y in pairs),
        sum(x * x for x, _ in pairs), sum(x * y for x, y in pairs), sum(y * y for _, y in pairs),
    )  # fmt: skip


def made_up(seed: int, count: int) -> Pairs:
    drawn = random.Random(seed)
    return [(x, 10 + x * drawn.randrange(5, 100) // 100) for x in (drawn.randrange(1, 65537) for _ in range(count))]


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_ratio_and_its_interval_the_text_books() -> None:
    every = made_up(1, 5000)
    measured = every[:400]
    unique_bytes = sum(x for x, _ in every)
    x, y = sum(x for x, _ in measured), sum(y for _, y in measured)
    ratio = Fraction(y, x)
    assumed = 2 * (1 - ratio) ** 2 * Fraction(sum(x * x for x, _ in measured), 400)
    spread = (sum((y - ratio * x) ** 2 for x, y in measured) + assumed) / 399
    variance = Fraction(unique_bytes, x) ** 2 * 400 * (1 - Fraction(400, 5000)) * spread
    found = estimate(sample_of(measured), 5000, unique_bytes)
    assert found == (round(ratio * unique_bytes), math.ceil(1.96 * math.sqrt(variance)))


def test_with_every_chunk_measured_the_estimate_is_the_sum() -> None:
    every = made_up(2, 7)
    assert estimate(sample_of(every), 7, sum(x for x, _ in every)) == (sum(y for _, y in every), 0)
    assert estimate(Sample(), 0, 0) == (0, 0)


def test_too_few_chunks_tell_no_error_and_none_tells_nothing() -> None:
    every = made_up(3, 1000)
    unique_bytes = sum(x for x, _ in every)
    assert estimate(Sample(), 1000, unique_bytes) == Estimate(None, None)
    few = estimate(sample_of(every[: LEAST_MEASURED - 1]), 1000, unique_bytes)
    assert few.recompressed_bytes
    assert few.error_bytes is None
    assert estimate(sample_of(every[:LEAST_MEASURED]), 1000, unique_bytes).error_bytes


def test_no_size_is_too_large() -> None:
    """10^12 chunks of 64 KiB: the squares' sum has 72 bits. The ratio is always the same, so the error is that of the
    two chunks that are assumed: 2^15 bytes off, 16 times as many, 15/16 of the variance.
    """
    count = 10**12
    sums = Sample(count, count << 16, count << 15, count << 32, count << 31, count << 30)
    assert estimate(sums, 16 * count, 16 * count << 16) == (16 * count << 15, math.ceil(1.96 * 2**15 * math.sqrt(480)))


def test_the_figures_of_the_saving() -> None:
    totals = Totals(
        layers=1, layer_stored_bytes=10_000, uncompressed_bytes=40_000, chunks=20, unique_chunks=10,
        unique_bytes=20_000, measured_chunks=10, measured_bytes=20_000, measured_recompressed_bytes=5_000,
    )  # fmt: skip
    assert figures(totals) == {
        "recompressed_bytes": 5_000,
        "recompressed_error_bytes": 0,
        "index_overhead_bytes": 10 * 41 + 20 * 40,
        "net_bytes": 10_000 - 5_000 - 1_210,
        "net": 0.379,
        # 8,790 bytes have room for 35,160 at this ratio, of 40,000
        "break_even_unique": 0.879,
        "measured_chunks": 10,
    }
    assert figures(Totals(layers=1, layer_stored_bytes=20))["net"] == 1.0
    nothing = figures(Totals())
    assert (nothing["net_bytes"], nothing["net"], nothing["break_even_unique"]) == (0, None, None)


def test_the_saving_in_parts() -> None:
    """Half of 20 chunks are measured, each with two copies: all copies take 40,000 * 3,000 / 12,000 as frames."""
    totals = Totals(
        layers=1, layer_stored_bytes=12_345, uncompressed_bytes=40_000, chunks=20, unique_chunks=10,
        unique_bytes=20_000, measured_chunks=5, measured_bytes=10_000, measured_recompressed_bytes=2_600,
        measured_copies_bytes=12_000, measured_copies_recompressed_bytes=3_000,
    )  # fmt: skip
    found, saving = parts(totals), figures(totals)
    assert found == {"codec_saving_bytes": 2_345, "deduplication_saving_bytes": 10_000 - 5_200}
    assert 2_345 + 4_800 - saving["index_overhead_bytes"] == saving["net_bytes"]
    assert parts(Totals(layers=1, layer_stored_bytes=20)) == {"codec_saving_bytes": 20, "deduplication_saving_bytes": 0}
    unmeasured = Totals(uncompressed_bytes=9, chunks=1, unique_chunks=1, unique_bytes=9)
    assert parts(unmeasured) == {"codec_saving_bytes": None, "deduplication_saving_bytes": None}


# --- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_in", [1, 2, 3, 16, 100, 4096])
def test_one_in_so_many_hashes_is_picked(one_in: int) -> None:
    rule = MeasureRule(one_in)
    picked = [rule.picks(bytes(14) + number.to_bytes(2, "little")) for number in range(1 << 16)]
    assert sum(picked) == -(-65536 // one_in)
    assert picked == [oracle.is_picked(bytes(14) + number.to_bytes(2, "little"), one_in) for number in range(1 << 16)]


@pytest.mark.parametrize("level", [1, 3, 4, 5, 9, 19])
def test_a_compressor_that_is_used_again_makes_the_frames_of_new_ones(level: int) -> None:
    """So that a recompressed length is a function of the chunk alone."""
    data = b"".join(path.read_bytes() for path in sorted(Path(oracle.__file__).parent.rglob("test_*.py")))[:600_000]
    found = [*oracle.chunks(data), bytes(65536), data[:1], b"abc" * 700]
    expected = {chunk: oracle.recompressed_bytes(chunk, level) for chunk in found}
    again = Recompressor(MeasureRule(1, level))
    for seed in range(3):
        random.Random(seed).shuffle(found)
        # Names of their own each time: nothing is remembered.
        assert {chunk: again.length(b"%d %d" % (seed, at), chunk) for at, chunk in enumerate(found)} == expected


def test_what_is_remembered_is_bounded_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompress, "REMEMBERED", 3)
    one = Recompressor(MeasureRule(1))
    assert one.length(b"a", bytes(1000)) == one.length(b"a", b"not looked at") < one.length(b"b", b"looked at" * 9)
    for number in range(9):
        one.length(bytes([number]), bytes([number]) * 99)
        assert len(one._known) <= 3  # noqa: SLF001


# --- real layers ----------------------------------------------------------------------------------------------------


def stored(folder: Path, layers: list[Path]) -> tuple[dict[bytes, tuple[int, int]], Counter[bytes]]:
    """A real store: one zstd frame in one file for each unique chunk; length and frame's length by hash, and copies."""
    found: dict[bytes, tuple[int, int]] = {}
    copies = Counter[bytes]()
    for path in layers:
        data = gzip.decompress(path.read_bytes())
        chunker = Chunker(ChunkParams())
        chunker.feed(data)
        recipe = chunker.finish()
        at = 0
        for number in range(len(recipe)):
            name = recipe.hashes[16 * number : 16 * number + 16]
            length = int.from_bytes(recipe.lengths[4 * number : 4 * number + 4], "little")
            copies[name] += 1
            if name not in found:
                (folder / name.hex()).write_bytes(oracle.recompressed(data[at : at + length]))
                found[name] = length, (folder / name.hex()).stat().st_size
            at += length
    return found, copies


def test_a_real_store_takes_what_is_said_and_samples_are_as_near_as_they_say(tmp_path: Path) -> None:
    layers = npm_layers()
    folder = tmp_path / "store"
    folder.mkdir()
    environment, copies = stored(folder, layers)
    truth = sum(path.stat().st_size for path in folder.iterdir())
    with opened(tmp_path) as home:
        cache = cached(home.cache(), layers)
        done = home.command("scan", "--json", cache, "--measure-one-in", "1", "--nice", "0")
        stats = json.loads(done.stdout)
        home.check("--read")
    assert (stats["recompressed_bytes"], stats["recompressed_error_bytes"]) == (truth, 0)
    assert stats["measured_chunks"] == stats["unique_chunks"] == len(environment)
    assert (
        stats["net_bytes"] == stats["layer_stored_bytes"] - truth - 41 * stats["unique_chunks"] - 40 * stats["chunks"]
    )
    unshared = sum(times * environment[name][1] for name, times in copies.items())
    assert stats["codec_saving_bytes"] == stats["layer_stored_bytes"] - unshared
    assert stats["deduplication_saving_bytes"] == unshared - truth > 0
    assert stats["params"]["measure"] == {"one_in": 1, "level": 3, "library": library()}

    estimates = [
        estimate(sample_of([pair for name, pair in environment.items() if name[15] >> 4 == own]), len(environment),
                 stats["unique_bytes"])
        for own in range(16)
    ]  # fmt: skip
    held = sum(abs((one.recompressed_bytes or 0) - truth) <= (one.error_bytes or 0) for one in estimates)
    half = sum(one.error_bytes or 0 for one in estimates) / 16 / truth
    print(f"{held} of 16 intervals hold {truth} bytes; mean half-width {half:.2%}; net {stats['net']:.4f}")
    assert held >= 14
    assert 0.01 < half < 0.1


@pytest.mark.counted
@pytest.mark.parametrize("compressed_to", [1.0, 0.3])
@pytest.mark.parametrize("incompressible", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_nine_of_ten_intervals_hold_the_truth_also_with_a_tail(compressed_to: float, incompressible: float) -> None:
    """Of 16 disjoint samples in each of these caches of 2,000 unique chunks of real layers. A tail of them does not
    compress at all; the others compress as they do, or even better, so that the tail counts for more.
    """
    chance = random.Random(f"{compressed_to} {incompressible}")
    known = sorted({name: (x, y) for _, chunks in npm_chunks_once() for name, x, y in chunks}.values())
    held = widths = 0.0
    caches = counted(60, 20)
    for _ in range(caches):
        every = [(x, max(round(y * compressed_to), 12)) for x, y in chance.sample(known, 2000)]
        tail = round(2000 * incompressible)
        every[:tail] = [(x, x + 13) for x, _ in every[:tail]]
        unique_bytes, truth = (sum(column) for column in zip(*every, strict=True))
        samples: list[Pairs] = [[] for _ in range(16)]
        for pair in every:
            chance.choice(samples).append(pair)
        for sample in samples:
            found = estimate(sample_of(sample), len(every), unique_bytes)
            held += abs((found.recompressed_bytes or 0) - truth) <= (found.error_bytes or 0)
            widths += (found.error_bytes or 0) / truth
    intervals = 16 * caches
    print(f"{held / intervals:.1%} of the intervals hold the truth, with a half-width of {widths / intervals:.1%}")
    assert held >= 0.9 * intervals


def cached(cache: Path, layers: list[Path]) -> Path:
    folder = cache / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for path in layers:
        shutil.copyfile(path, folder / path.name)
    return cache


def test_half_of_the_layers_removed_and_landed_again_bring_every_figure_back(tmp_path: Path) -> None:
    layers = npm_layers()[:40]
    with opened(tmp_path) as home:
        cache = cached(home.cache(), layers)

        def said() -> tuple[Stats, Stats]:
            stats = home.scan(cache)
            histogram = json.loads(home.command("histogram", "--json").stdout)
            for table in ("copies", "sizes"):
                assert {name: sum(row[name] for row in histogram[table]) for name in COLUMNS} == {
                    name: stats[name] for name in COLUMNS
                }
            del histogram["as_of"]
            home.check()
            return {name: stats[name] for name in SAVING}, histogram

        before = said()
        for path in layers[::2]:
            (cache / "blobs" / "sha256" / path.name).unlink()
        between = said()
        assert between[0]["recompressed_bytes"] < before[0]["recompressed_bytes"]
        assert between[1] != before[1]
        for path in layers[::2]:
            shutil.copyfile(path, cache / "blobs" / "sha256" / path.name)
        assert said() == before
        daemon = home.start(cache)
        daemon.until(lambda stats: stats["scans"] and stats["settled"], "its first scan is done")
        assert {name: daemon.stats()[name] for name in SAVING} == before[0]
        found = daemon.get("/v1/histogram")
        assert {name: found[name] for name in before[1]} == before[1]


def test_a_recompressed_length_that_is_possible_and_wrong_is_found_by_reading(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        before = home.scan(cached(home.cache(), npm_layers()[:3]))
        records = records_of(home.state)["measured"]
        key, packed = min(records.items())
        slot, length = struct.unpack_from("<BI", packed)
        edit(home.state, "measured", key, struct.pack("<BI", slot, length + 1) + packed[5:])
        assert home.command("check").returncode == 4
        done = home.command("check", "--read", "--repair")
        assert "other recompressed lengths" in done.stdout
        assert home.command("check").returncode == 0
        home.scan(home.cache())
        home.check("--read")
        after = home.scan(home.cache())
        assert {name: after[name] for name in SAVING} == {name: before[name] for name in SAVING}


def test_another_rule_waits_until_every_layer_is_measured_anew(tmp_path: Path) -> None:
    layers = npm_layers()
    with opened(tmp_path) as home:
        cache = cached(home.cache(), layers[:3])
        before = home.scan(cache)
        assert before["warnings"] == []
        home.root.joinpath("empty.toml").write_text("measure_one_in = 1\nmeasure_level = 9\n")
        daemon = home.start(cache)
        daemon.until(lambda stats: stats["scans"] and stats["settled"], "its first scan is done")
        stats = daemon.stats()
        assert {name: stats[name] for name in SAVING} == {name: before[name] for name in SAVING}
        assert stats["params"]["measure"]["one_in"] == 16
        (warning,) = stats["warnings"]
        assert "not every chunk at level 9" in warning
        assert "chunkd scan --remeasure" in warning

        # Beside the daemon, which goes on with the old figures until it is started again.
        done = home.command("scan", "--remeasure", "--json")
        assert "when it is started again" in done.stderr
        new = json.loads(done.stdout)
        assert (new["warnings"], new["measured_chunks"]) == ([], new["unique_chunks"])
        assert daemon.stats()["recompressed_bytes"] == before["recompressed_bytes"]
        shutil.copyfile(layers[3], cache / "blobs" / "sha256" / layers[3].name)
        daemon.until(lambda stats: stats["layers"] == 4, "it counts what lands meanwhile")
        assert daemon.stop() == 0
        daemon = home.start(cache)
        stats = daemon.until(lambda stats: stats["layers"] == 4, "it has found what the new index had not")
        assert (stats["warnings"], stats["measured_chunks"]) == ([], stats["unique_chunks"])
        assert stats["params"]["measure"] == {"one_in": 1, "level": 9, "library": library()}
        assert daemon.stop() == 0
        assert not (home.state / "remeasured").exists()
        home.check("--read")


def test_what_was_measured_anew_is_kept_until_the_rest_is(tmp_path: Path) -> None:
    """Interrupted in the middle, and a folder that can't be listed: the old figures stay, and what was read is kept."""
    with opened(tmp_path) as home:
        cache = cached(home.cache(), npm_layers()[:4])
        before = home.scan(cache)
        home.root.joinpath("empty.toml").write_text("measure_one_in = 2\n")
        home.scan(cache, state=home.state / "remeasured")  # what an interrupted call leaves: no mark that it is whole
        assert home.command("scan", cache).returncode == 0
        said = json.loads(home.command("stats", "--json").stdout)
        assert said["recompressed_bytes"] == before["recompressed_bytes"]
        index = (home.state / "remeasured" / "index" / "data.mdb").stat().st_ino
        done = home.command("scan", "--remeasure", "--json")
        assert done.returncode == 0, done.stderr
        assert (home.state / "index" / "data.mdb").stat().st_ino == index
        said = json.loads(home.command("stats", "--json").stdout)
        assert said["params"]["measure"]["one_in"] == 2
        home.check("--read")
        cache.rename(home.root / "elsewhere")
        done = home.command("scan", "--remeasure")
        assert done.returncode == 1
        assert json.loads(home.command("stats", "--json").stdout)["layers"] == 4
        done = home.command("scan", "--remeasure", cache)
        assert done.returncode == 2


def test_a_counted_layer_that_can_not_be_read_keeps_the_old_figures(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        cache = cached(home.cache(), npm_layers()[:3])
        before = home.scan(cache)
        home.root.joinpath("empty.toml").write_text("measure_one_in = 1\n")
        path = cache / "blobs" / "sha256" / npm_layers()[1].name
        path.chmod(0)
        done = home.command("scan", "--remeasure", under=without_rights())
        assert done.returncode == 1
        assert f"1 of the blobs that they count can't be read, such as sha256:{path.name}" in done.stderr
        stats = json.loads(home.command("stats", "--json").stdout)
        assert {name: stats[name] for name in SAVING} == {name: before[name] for name in SAVING}
        path.chmod(0o644)
        done = home.command("scan", "--remeasure", "--json", under=without_rights())
        assert (json.loads(done.stdout)["layers"], json.loads(done.stdout)["failed_blobs"]) == (3, 0)
        home.check("--read")


def test_beside_a_writer_the_caches_are_read_with_lmdbs_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the writer uses pages again that are being read."""
    Index(str(tmp_path), Rules(), "a test").close()
    opened_with = []

    class Noted(environment.Store):
        def __init__(self, path: str, **how: Any) -> None:
            opened_with.append(how["lock"])
            super().__init__(path, **how)

    for module in (environment, oneshot, remeasure):
        monkeypatch.setattr(module, "Store", Noted, raising=False)
    config = load({"state_dir": str(tmp_path)}, {"HOME": str(tmp_path)})
    with IndexLock(str(tmp_path), exclusive=True, holder="a daemon"), pytest.raises(IndexMissing):
        remeasure.remeasure(config, progress)
    assert opened_with == [True]


def test_two_remeasurings_do_not_mix(tmp_path: Path) -> None:
    """Another rule is asked for while the first call still reads: the first one's index stays its own."""
    with opened(tmp_path) as home:
        cache = cached(home.cache(), npm_layers()[:2])
        home.scan(cache)
        beside = home.state / "remeasured"
        home.scan(cache, state=beside)
        with IndexLock(str(beside), exclusive=True, holder="the first call"):
            index = (beside / "index" / "data.mdb").stat().st_ino
            done = home.command("scan", "--remeasure", environ={"CHUNKD_MEASURE_ONE_IN": "2"})
            assert done.returncode == 1
            assert "in use by the first call" in done.stderr
            assert (beside / "index" / "data.mdb").stat().st_ino == index
        done = home.command("scan", "--remeasure", "--json", environ={"CHUNKD_MEASURE_ONE_IN": "2"})
        assert json.loads(done.stdout)["params"]["measure"]["one_in"] == 2
        home.check("--read")


def test_a_rebuild_reads_the_caches_and_takes_nothing_over(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        cache = cached(home.cache(), npm_layers()[:2])
        before = home.scan(cache)
        home.scan(cache, state=home.state / "remeasured")
        (home.state / "remeasured" / "whole").touch()
        made = home.root / "made"
        made.hardlink_to(home.state / "remeasured" / "index" / "data.mdb")  # or its inode could be another file's soon
        done = home.command("rebuild", "--json")
        assert done.returncode == 0, done.stderr
        assert not made.samefile(home.state / "index" / "data.mdb")
        assert json.loads(done.stdout)["recompressed_bytes"] == before["recompressed_bytes"]
        home.check("--read")
