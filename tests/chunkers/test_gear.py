"""The chunker against the vectors and the oracle, however the stream is split."""

from __future__ import annotations

import array
import hashlib
import itertools
import mmap
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from chunkd.chunkers._cgear import lib
from chunkd.chunkers.gear import KERNELS, Chunker, gear_table, kernels
from chunkd.model import ChunkParams, MeasureRule, Recipe
from chunkd.worker.recompress import Recompressor
from counts import counted

PARAMS = ChunkParams()
PATCHED = [case for case in oracle.CASES if "patch" in oracle.CASES[case]["make"]]


def recipe_of(*buffers: bytes | bytearray | memoryview, params: ChunkParams = PARAMS) -> Recipe:
    chunker = Chunker(params, measure=Recompressor(MeasureRule()))
    for buffer in buffers:
        chunker.feed(buffer)
    return chunker.finish()


def in_pieces(data: bytes, piece_bytes: int) -> Recipe:
    return recipe_of(*(data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)))


def lengths(recipe: Recipe) -> list[int]:
    return [int.from_bytes(recipe.lengths[at : at + 4], "little") for at in range(0, len(recipe.lengths), 4)]


def expected_recipe(data: bytes, found: list[int]) -> Recipe:
    ends = itertools.accumulate(found, initial=0)
    hashes = [oracle.chunk_hash(data[begin:end]) for begin, end in itertools.pairwise(ends)]
    picked = [data[begin:end] for begin, end in itertools.pairwise(itertools.accumulate(found, initial=0))]
    picked = [chunk for chunk in picked if oracle.is_picked(oracle.chunk_hash(chunk))]
    return Recipe(b"".join(hashes), oracle.packed(found), oracle.packed(map(oracle.recompressed_bytes, picked)))


def test_the_gear_table_is_splitmix64() -> None:
    assert list(gear_table(PARAMS.gear_seed)) == [int(value, 16) for value in oracle.VECTORS["gear_table"]]
    # The first three values for the seed 1234567, as Rosetta Code and others print them.
    assert gear_table(1234567)[:3] == (6457827717110365317, 3203168211198807973, 9817491932198370423)
    for seed in (0, 1, (1 << 64) - 1):
        assert list(gear_table(seed)) == oracle.gear(seed)


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_of_other_than_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        gear_table(seed)
    with pytest.raises(ValueError, match="64 bits"):
        Chunker(ChunkParams(gear_seed=seed))


@pytest.mark.parametrize("case", oracle.CASES)
def test_every_case_whole_and_in_pieces(case: str) -> None:
    data = oracle.case_data(case)
    whole = recipe_of(data)
    found = lengths(whole)
    assert found == oracle.CASES[case].get("lengths", found)
    assert len(whole) == oracle.CASES[case]["chunks"]
    assert hashlib.sha256(whole.lengths).hexdigest() == oracle.CASES[case]["lengths_sha256"]
    assert whole == expected_recipe(data, found)
    for piece_bytes in (37, 255, 65_536):
        assert in_pieces(data, piece_bytes) == whole


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_gives_the_same_recipe(kernel: str) -> None:
    data = oracle.case_data("random-131072")
    chunker = Chunker(PARAMS, kernel, Recompressor(MeasureRule()))
    for at in range(0, len(data), 50_000):
        chunker.feed(data[at : at + 50_000])
    assert chunker.finish() == oracle.recipe(data)


def test_the_kernel_named_is_the_one_called_and_else_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name, cut in list(KERNELS.items()):

        def noted(*arguments: Any, name: str = name, cut: Callable[..., int] = cut) -> int:
            called.append(name)
            return cut(*arguments)

        monkeypatch.setitem(KERNELS, name, noted)
    for kernel in (*kernels(), None):
        Chunker(PARAMS, kernel).feed(bytes(100))
    assert called == [*kernels(), kernels()[0]]
    assert kernels()[-2:] == ("scalar", "plain")
    assert ("avx2" in kernels()) == bool(lib.cgear_has_avx2())


@pytest.mark.parametrize("wrong", ["avx512", "", "AVX2"])
def test_a_kernel_that_is_not_there_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"kernel {wrong}: .* {', '.join(kernels())}"):
        Chunker(PARAMS, wrong)


def test_a_processor_without_avx2_has_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def cgear_has_avx2(self) -> int:
            return 0

    monkeypatch.setattr("chunkd.chunkers.gear.lib", Without())
    kernels.cache_clear()
    try:
        assert kernels() == ("scalar", "plain")
        with pytest.raises(ValueError, match="scalar, plain"):
            Chunker(PARAMS, "avx2")
        data = oracle.case_data("random-65536")
        assert recipe_of(data) == oracle.recipe(data)
    finally:
        kernels.cache_clear()


@pytest.mark.parametrize("case", ["random-131072", "fire-0-pair", "fire-1-chain", "warmup-14-fires-0"])
def test_byte_by_byte(case: str) -> None:
    """Few cases, as a call a byte is slow: test_cgear.py feeds all of them so, in C."""
    data = oracle.case_data(case)
    assert lengths(in_pieces(data, 1)) == oracle.CASES[case]["lengths"]


@pytest.mark.parametrize("case", PATCHED)
def test_a_border_anywhere_in_the_bytes_that_decide(case: str) -> None:
    data = oracle.case_data(case)
    whole = recipe_of(data)
    for end in oracle.CASES[case]["make"]["patch"]["ending_at"]:
        for border in range(end - 16, end + 3):
            assert recipe_of(data[:border], data[border:]) == whole


def test_single_bytes() -> None:
    for byte, (chunks, first) in enumerate(oracle.VECTORS["single_byte_200000"]["values"]):
        found = lengths(recipe_of(bytes([byte]) * 200_000))
        assert (len(found), found[0], sum(found)) == (chunks, first, 200_000)


@given(
    st.integers(0, 2**32),
    st.integers(0, 60_000),
    st.lists(st.integers(0, 60_000), max_size=6),
    st.sampled_from([(2048, 14, 65536), (1, 1, 1), (1, 1, 5), (7, 5, 300), (33, 32, 4096), (512, 9, 513)]),
)
@settings(max_examples=counted(100))
def test_a_recipe_does_not_depend_on_the_buffers(
    seed: int, size: int, at: list[int], values: tuple[int, int, int]
) -> None:
    data = random.Random(seed).randbytes(size)
    params = ChunkParams(*values)
    borders = [0, *sorted(min(border, size) for border in at), size]
    buffers = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    expected = expected_recipe(data, oracle.lengths(data, *values))
    assert recipe_of(data, params=params) == recipe_of(*buffers, params=params) == expected


def test_no_bytes_are_no_chunk() -> None:
    assert recipe_of() == recipe_of(b"", bytearray(), memoryview(b"")) == Recipe()
    data = oracle.case_data("random-65536")
    assert recipe_of(b"", data[:10_254], b"", data[10_254:], b"") == recipe_of(data)


def test_another_seed_cuts_elsewhere() -> None:
    data = oracle.case_data("random-131072")
    assert recipe_of(data, params=ChunkParams(gear_seed=1)) != recipe_of(data)


def test_any_contiguous_bytes_like_object() -> None:
    data = oracle.case_data("random-65536")
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        matrix = memoryview(data).cast("B", (256, 256))
        likes = [bytearray(data), memoryview(data), mapped, array.array("I", data), matrix]
        for like in likes:
            assert recipe_of(like) == oracle.recipe(data)  # type: ignore[arg-type]


def test_the_buffer_may_be_filled_again_or_resized() -> None:
    data = oracle.case_data("random-131072")
    chunker, buffer = Chunker(PARAMS, measure=Recompressor(MeasureRule())), bytearray()
    for at in range(0, len(data), 5000):
        buffer[:] = data[at : at + 5000]  # a BufferError if the chunker still held a view
        chunker.feed(buffer)
        buffer[:] = b"\xff" * 7
    assert chunker.finish() == oracle.recipe(data)


@pytest.mark.parametrize("wrong", ["text", None, 3, [1, 2], memoryview(b"abcd")[::2]])
def test_what_is_no_buffer_is_refused_and_changes_nothing(wrong: object) -> None:
    data = oracle.case_data("random-65536")
    chunker = Chunker(PARAMS)
    chunker.feed(data[:30_000])
    with pytest.raises(TypeError):
        chunker.feed(wrong)  # type: ignore[arg-type]
    chunker.feed(data[30_000:])
    assert chunker.finish() == oracle.recipe(data)


def test_a_finished_chunker_is_refused() -> None:
    chunker = Chunker(PARAMS)
    chunker.feed(b"layer")
    assert len(chunker.finish()) == 1
    with pytest.raises(ValueError, match="has finished"):
        chunker.feed(b"more")
    with pytest.raises(ValueError, match="has finished"):
        chunker.finish()


def test_the_oracle_counts_a_chunk_once() -> None:
    zeros, noise = bytes(131_072), oracle.case_data("random-65536")
    assert oracle.figures([zeros, noise, noise[:10_254]], [10, 20, 30]) == {
        "layers": 3,
        "layer_stored_bytes": 60,
        "uncompressed_bytes": 206_862,
        "chunks": 6,
        "unique_chunks": 4,
        "unique_bytes": 65_536 + 65_536,
    }
