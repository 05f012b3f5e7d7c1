"""The sums of a rule: exact in however many passes, and where they are estimated within the stated error."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkd.figures.net_saving import figures as net_figures
from chunkd.figures.totals import Sample
from chunkd.model import Caps, FileMark, MeasureRule, Recipe
from chunkd.sweep import sums, tally
from chunkd.sweep.messages import Block, LayerFinding, SweepJob, Totals
from chunkd.sweep.question import Question
from chunkd.sweep.results import OwnResults, Result, Results
from indexing import Chunk, chunk, chunks_of, digest_of, picked, recipe_of, recompressed


@pytest.fixture
def results(tmp_path: Path) -> Iterator[OwnResults]:
    found = OwnResults(str(tmp_path), Question(("2/16/64",), MeasureRule(), Caps()))
    yield found
    found.close()


def kept_of(results: Results, number: int, chunks: list[Chunk], shift: int = 0) -> Result:
    """The result of a made-up layer, in blocks of various sizes."""
    digest = digest_of(number)
    draft = results.draft(digest)
    passing = [one for one in chunks if not int.from_bytes(one[0][:8], "big") >> (64 - shift)]
    size = random.Random(number).randint(1, 50)
    for at in range(0, len(passing), size):
        recipe = recipe_of(passing[at : at + size])
        data = recipe.hashes + recipe.lengths + recipe.measured
        draft.add(Block(0, len(recipe), len(recipe.measured) // 4), data)
    size_bytes = sum(length for _, length in chunks)
    finding = LayerFinding("layer", "gzip", size_bytes, totals=(Totals(len(chunks), size_bytes),))
    draft.end(SweepJob(digest, FileMark(0, 0, 1000 + number, 0), shifts=(shift,)), finding)
    found = results.result(digest, verify=True)
    assert found is not None
    return found


def plain(layers: list[list[Chunk]]) -> tuple[int, int, Sample, tuple[int, int]]:
    """Unique chunks and bytes, the sample, and the measured sums over all copies, in plain Python."""
    every = [one for layer in layers for one in layer]
    unique = set(every)
    pairs = [(one[1], recompressed(one)) for one in unique if picked(one)]
    sample = Sample(
        len(pairs), sum(x for x, _ in pairs), sum(y for _, y in pairs), sum(x * x for x, _ in pairs),
        sum(x * y for x, y in pairs), sum(y * y for _, y in pairs),
    )  # fmt: skip
    copies = [(one[1], recompressed(one)) for one in every if picked(one)]
    return (
        len(unique),
        sum(length for _, length in unique),
        sample,
        (sum(x for x, _ in copies), sum(y for _, y in copies)),
    )


def made_up(rng: random.Random, layers: int, most: int) -> list[list[Chunk]]:
    return [chunks_of(rng.choices(range(most), k=rng.randint(0, most))) for _ in range(layers)]


@pytest.mark.parametrize("pass_chunks", [1 << 19, 1000, 64, 1])
def test_the_sums_are_exact_in_any_number_of_passes(
    results: Results, pass_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "PASS_CHUNKS", pass_chunks)
    layers = made_up(random.Random(1), 6, 120 if pass_chunks == 1 else 700)
    kept = [kept_of(results, number, chunks) for number, chunks in enumerate(layers)]
    totals = Totals(sum(map(len, layers)), sum(length for layer in layers for _, length in layer))
    found = sums.summed(results, kept, 0, totals, 0)
    assert (found.unique_chunks, found.unique_bytes, found.sample, found.measured_copies) == plain(layers)
    assert (found.one_in, found.unique_error_bytes) == (1, 0)
    assert (found.chunks, found.uncompressed_bytes) == totals[:2]
    assert sums.figures(found)["recompressed_bytes"] == net_figures(found)["recompressed_bytes"]


def test_chunks_whose_hashes_share_eight_bytes_are_two(results: Results) -> None:
    chunks = [chunk(number, b"8 bytes.") for number in (1, 2, 1)]
    layer = kept_of(results, 1, chunks)
    found = sums.summed(results, [layer], 0, Totals(3, 1), 0)
    assert found.unique_chunks == 2


def test_an_estimate_is_within_its_error_in_19_of_20_cases(results: Results) -> None:
    """Layers that were read before the bound was met have all their chunks, the others a quarter, and it is an eighth
    that counts in the end.
    """
    within = 0
    for case in range(40):
        rng = random.Random(case)
        layers = [chunks_of(rng.choices(range(10_000 * case, 10_000 * case + 1500), k=1200)) for _ in range(4)]
        kept = [kept_of(results, 4 * case + at, chunks, shift=2 * (at > 1)) for at, chunks in enumerate(layers)]
        totals = Totals(sum(map(len, layers)), sum(length for layer in layers for _, length in layer))
        found = sums.summed(results, kept, 0, totals, 3)
        assert found.one_in == 8
        truth_bytes = sum(length for _, length in {one for layer in layers for one in layer})
        assert 0 < found.unique_error_bytes < truth_bytes
        within += abs(found.unique_bytes - truth_bytes) <= found.unique_error_bytes
    assert 34 <= within <= 40


def test_the_threshold_is_the_same_for_all_rules_and_a_function_of_the_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "EXACT_CHUNKS", 1000)
    found = tally.Tally(tally.Layers((), [], None, []), 2)
    for counts, expected in (
        ((0, 1000), (0, 0)), ((1000, 1001), (0, 1)), ((2000, 2001), (2, 2)), ((999, 8000), (0, 3)),
        ((8001, 1001), (4, 4)),
    ):  # fmt: skip
        found.totals = [Totals(count + 5, 0, 5, 0) for count in counts]
        found.least_shifts = [0, 0]
        assert found.shifts == expected
    # What an earlier run with more layers left out does not come back.
    found.totals, found.least_shifts = [Totals(), Totals(1001)], [3, 0]
    assert found.shifts == (3, 3)


def test_lengths_beyond_16_mib_are_squared_exactly() -> None:
    import numpy as np

    one = np.array([(1 << 32) - 1, 5, 1 << 30], np.int64)
    assert sums.exact_dot(one, one) == sum(value * value for value in one.tolist())


def test_a_question_has_a_key_of_its_own() -> None:
    keys = {
        Question(rules, MeasureRule(one_in), Caps(ratio=ratio), baselines).key
        for rules in (("2/16/64",), ("files",), ("2/16/64", "files"))
        for one_in in (1, 16)
        for ratio in (10, 2000)
        for baselines in (False, True)
    }
    assert len(keys) == 24


def test_the_order_of_chunks_is_kept(results: Results) -> None:
    chunks = chunks_of([3, 1, 2, 1, 3])
    layer = kept_of(results, 1, chunks)
    found = [
        (int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big"), int(length), int(taken))
        for block in sums.read(results, layer, 0)
        for high, low, length, taken in zip(*block, strict=True)
    ]
    assert found == [(*one, recompressed(one) if picked(one) else 0) for one in chunks]
    assert isinstance(recipe_of(chunks), Recipe)


def test_of_a_layer_with_many_chunks_one_block_at_a_time_is_in_memory(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "PASS_CHUNKS", 1 << 12)
    count, peaks = 1 << 14, []
    lengths = (4096).to_bytes(4, "little") * count
    for blocks in (2, 16):
        draft = results.draft(digest_of(blocks))
        for number in range(blocks):
            hashes = bytearray(random.Random(number).randbytes(16 * count))
            hashes[15::16] = b"\xff" * count  # so that none is measured
            draft.add(Block(0, count, 0), bytes(hashes) + lengths)
        totals = Totals(blocks * count, 4096 * blocks * count)
        finding = LayerFinding("layer", "gzip", totals.bytes, totals=(totals,))
        draft.end(SweepJob(digest_of(blocks), FileMark(0, 0, 1000, 0), shifts=(0,)), finding)
        result = results.result(digest_of(blocks))
        assert result is not None
        tracemalloc.start()
        found = sums.summed(results, [result], 0, totals, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.unique_chunks == blocks * count
    assert peaks[1] < 1.5 * peaks[0]
