"""The list of rules: names, and the rules that need no kernel, against plain Python, however the buffers fall."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from chunkd.chunkers import chunker as chunker_module
from chunkd.chunkers import gear, profiles
from chunkd.chunkers.chunker import FixedChunker
from chunkd.errors import ChunkdError, RuleUnknown
from chunkd.model import ChunkParams, MeasureRule, Recipe
from chunkd.worker.recompress import Recompressor
from counts import counted


def split(data: bytes, at: list[int]) -> Iterator[bytes]:
    borders = [0, *sorted(min(border, len(data)) for border in at), len(data)]
    return (data[begin:end] for begin, end in itertools.pairwise(borders))


def recipe_of(chunks: list[bytes], one_in: int = 16) -> Recipe:
    hashes = [oracle.chunk_hash(chunk) for chunk in chunks]
    picked = [chunk for chunk, name in zip(chunks, hashes, strict=True) if oracle.is_picked(name, one_in)]
    return Recipe(
        b"".join(hashes), oracle.packed(map(len, chunks)), oracle.packed(map(oracle.recompressed_bytes, picked))
    )


def fixed(data: bytes, chunk_bytes: int) -> list[bytes]:
    return [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]


def test_names_are_those_of_the_list_and_sizes_of_gear() -> None:
    assert [profiles.named(profile.name) for profile in profiles.ALL] == list(profiles.ALL)
    assert len({profile.name for profile in profiles.ALL}) == len(profiles.ALL)
    parsed = profiles.parse("2/16/64, files,fixed-4KiB,3/16/48,02/16/64")
    assert [profile.name for profile in parsed] == ["2/16/64", "files", "fixed-4KiB", "3/16/48"]


@pytest.mark.parametrize(
    "wrong",
    ["", "casync2", "2/16", "2/15/64", "0/16/64", "2/0/64", "64/16/2", "2/16/16384", "2/16/64/", "-2/16/64", "٢/16/64"],
)
def test_an_unknown_name_is_an_error_that_lists_the_others(wrong: str) -> None:
    with pytest.raises(RuleUnknown) as caught:
        profiles.parse(f"2/16/64,{wrong}")
    assert isinstance(caught.value, ChunkdError)
    assert (caught.value.name, caught.value.known) == (wrong, tuple(profile.name for profile in profiles.ALL))
    assert all(profile.name in str(caught.value) for profile in profiles.ALL)


def test_the_index_s_own_rule_is_2_16_64() -> None:
    data = oracle.case_data("random-131072")
    chunker = profiles.named("2/16/64").chunker(Recompressor(MeasureRule()))
    chunker.feed(data)
    assert chunker.finish() == oracle.recipe(data)


def test_gear_at_other_sizes() -> None:
    data = random.Random(1).randbytes(1_000_000)
    chunker, same = profiles.named("4/32/128").chunker(), gear.Chunker(ChunkParams(4096, 15, 131072))
    for one in (chunker, same):
        one.feed(data)
    recipe = chunker.finish()
    assert recipe == same.finish()
    assert recipe.lengths == oracle.packed(oracle.lengths(data, 4096, 15, 131072))


def test_a_rule_of_streams_knows_no_files() -> None:
    for profile in profiles.ALL:
        if profile.per_file:
            assert profile.file_chunker().chunks == 0
        else:
            with pytest.raises(TypeError, match=profile.name):
                profile.file_chunker()


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.integers(1, 70),
    st.lists(st.integers(0, 300), max_size=6),
    st.integers(1, 64),
)
@settings(max_examples=counted(100))
def test_fixed_chunks_of_files_however_they_are_split(
    files: list[bytes], chunk_bytes: int, at: list[int], most_measured: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunker_module, "MOST_MEASURED_BYTES", most_measured)
        chunker = FixedChunker(chunk_bytes, Recompressor(MeasureRule(one_in=2)))
        for file in files:
            for piece in split(file, at):
                chunker.feed(piece)
            chunker.end_file()
        recipe = chunker.finish()
    chunks = [chunk for file in files for chunk in fixed(file, chunk_bytes)]
    expected = recipe_of(chunks, 2)
    assert (recipe.hashes, recipe.lengths) == (expected.hashes, expected.lengths)
    picked = [chunk for chunk in chunks if oracle.is_picked(oracle.chunk_hash(chunk), 2)]
    measured = [sum(map(oracle.recompressed_bytes, fixed(chunk, most_measured))) for chunk in picked]
    assert recipe.measured == oracle.packed(measured)


def test_whole_files_and_a_stream() -> None:
    files = [b"", b"one", random.Random(2).randbytes(3_000_000), b"", b"one"]
    chunker = profiles.named("files").file_chunker()
    for file in files:
        for piece in fixed(file, 1000):
            chunker.feed(piece)
        chunker.end_file()
    assert chunker.chunks == 3
    assert chunker.finish() == Recipe(recipe_of(files[1:3] + files[4:]).hashes, oracle.packed([3, 3_000_000, 3]))
    stream = profiles.named("fixed-4KiB").chunker()
    stream.feed(files[2])
    assert stream.finish().hashes == recipe_of(fixed(files[2], 4096)).hashes


def test_a_file_that_a_recipe_s_length_can_t_hold_is_cut() -> None:
    chunker = profiles.named("files").file_chunker()
    for _ in range(1 << 8):
        chunker.feed(bytes(1 << 24))
    chunker.end_file()
    assert chunker.finish().lengths == oracle.packed([255 << 24, 1 << 24])


def test_a_finished_chunker_is_refused() -> None:
    chunker = profiles.named("files").file_chunker()
    chunker.feed(b"file")
    assert len(chunker.finish()) == 1
    for call in (lambda: chunker.feed(b"more"), chunker.end_file, chunker.finish):
        with pytest.raises(ValueError, match="has finished"):
            call()
