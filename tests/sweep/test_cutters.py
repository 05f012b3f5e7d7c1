"""One layer fed to all rules at once: each gets what it would get alone, wherever buffers end, in bounded memory."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from blobs import layer, noise, tar, text
from chunkd.chunkers import profiles
from chunkd.chunkers.chunker import HOLE
from chunkd.model import FileMark, MeasureRule, Recipe
from chunkd.sweep import worker
from chunkd.sweep.messages import SweepJob, Totals
from chunkd.worker.recompress import Recompressor, StreamLength
from indexing import digest_of
from sweeping import files_of

MEASURE = MeasureRule(4)
JOB = SweepJob(digest_of(1), FileMark(0, 0, 1, 0))


def cut(data: bytes, sizes: list[int], rules: tuple[profiles.Profile, ...], shifts: tuple[int, ...] = ()) -> (
    tuple[list[Recipe], list[Totals]]
):  # fmt: skip
    """What a layer is cut into by each rule, in buffers of these sizes again and again."""
    parts: list[list[Recipe]] = [[] for _ in rules]
    job = SweepJob(JOB.digest, JOB.mark, shifts=shifts)
    cutters = worker.Cutters(rules, job, MEASURE, lambda rule, chunks: parts[rule].append(chunks))
    at = step = 0
    while at < len(data):
        size = sizes[step % len(sizes)]
        buffer = bytearray(data[at : at + size])
        cutters.feed(memoryview(buffer))
        buffer[:] = bytes(len(buffer))  # no view of it may be left
        at, step = at + size, step + 1
    assert cutters.finish() == Recipe()
    found = [
        Recipe(
            b"".join(one.hashes for one in some), b"".join(one.lengths for one in some),
            b"".join(one.measured for one in some),
        )
        for some in parts
    ]  # fmt: skip
    return found, cutters.totals


def alone(data: bytes, rule: profiles.Profile) -> Recipe:
    measure = Recompressor(MEASURE)
    if not rule.per_file:
        chunker = rule.chunker(measure)
        chunker.feed(data)
        return chunker.finish()
    files, rest = files_of(data)
    by_file = rule.file_chunker(measure)
    for content in files:
        by_file.feed(content)
        by_file.end_file()
    last = profiles.named("files").file_chunker(measure)
    last.feed(rest)
    recipes = by_file.finish(), last.finish()
    return Recipe(*(b"".join(getattr(one, name) for one in recipes) for name in ("hashes", "lengths", "measured")))


def without(recipe: Recipe, left_out: set[int]) -> Recipe:
    names = [recipe.hashes[16 * at : 16 * at + 16] for at in range(len(recipe))]
    measured = iter([recipe.measured[at : at + 4] for at in range(0, len(recipe.measured), 4)])
    taken = [next(measured) if MEASURE.picks(name) else b"" for name in names]
    kept = [at for at in range(len(recipe)) if at not in left_out]
    lengths = b"".join(recipe.lengths[4 * at : 4 * at + 4] for at in kept)
    return Recipe(b"".join(names[at] for at in kept), lengths, b"".join(taken[at] for at in kept))


@pytest.mark.parametrize("sizes", [[1 << 20], [256 << 10, 7, 513, 100_000], [4099]])
@pytest.mark.parametrize("drain_bytes", [1 << 30, 50_000])
def test_each_rule_gets_what_it_would_alone(
    sizes: list[int], drain_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_DRAIN_BYTES", drain_bytes)
    data = tar(
        {"a": noise(300_000, 1), "empty": b"", "b": text(1, 2), "c": text(512, 3), "d": bytes(200_000)}
        | {"holes": b"".join(noise(70_000, at) + bytes(5000 * at) for at in range(9))}
    )
    found, totals = cut(data, sizes, profiles.ALL)
    for rule, recipe, total in zip(profiles.ALL, found, totals, strict=True):
        expected = alone(data, rule)
        holes = [at for at in range(len(expected)) if expected.hashes[16 * at : 16 * at + 16] == HOLE]
        assert total.bytes == len(data), rule.name
        assert (total.chunks, total.holes) == (len(expected), len(holes)), rule.name
        assert bool(holes) == (rule.name == "zstd:chunked")
        assert recipe == without(expected, set(holes)), rule.name


def test_only_chunks_below_the_threshold_are_kept_and_all_are_counted() -> None:
    data = layer(1)
    rules = profiles.parse("2/16/64,fixed-4KiB")
    whole, totals = cut(data, [100_000], rules)
    some, same = cut(data, [100_000], rules, (0, 2))
    assert same == totals
    assert some[0] == whole[0]
    wanted = [at for at in range(len(whole[1])) if whole[1].hashes[16 * at] < 64]
    assert 0 < len(wanted) < len(whole[1])
    assert some[1].hashes == b"".join(whole[1].hashes[16 * at : 16 * at + 16] for at in wanted)
    assert some[1].lengths == b"".join(whole[1].lengths[4 * at : 4 * at + 4] for at in wanted)
    picked = [at for at in range(len(whole[1])) if MEASURE.picks(whole[1].hashes[16 * at : 16 * at + 16])]
    kept = [picked.index(at) for at in wanted if at in picked]
    assert some[1].measured == b"".join(whole[1].measured[4 * at : 4 * at + 4] for at in kept)


def test_damage_in_a_tar_leaves_the_rest_as_one_chunk() -> None:
    files = {str(at): noise(5000, at) for at in range(8)}
    data = bytearray(tar(files))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        begin = archive.getmembers()[4].offset
    data[begin : begin + 512] = random.Random(1).randbytes(512)
    [found], [totals] = cut(bytes(data), [10_000], profiles.parse("files"))
    assert (len(found), totals.bytes) == (5, len(data))
    assert found.lengths[:4] == (5000).to_bytes(4, "little")


def test_a_stream_that_takes_too_long_has_no_length() -> None:
    whole, cut_short = StreamLength(3), StreamLength(3, 0.0)
    for _ in range(4):
        whole.feed(text(1 << 20, 1))
        cut_short.feed(text(1 << 20, 1))
    assert whole.finish() is not None
    assert whole.spent_s > 0
    assert cut_short.finish() is None
