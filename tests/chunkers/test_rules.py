"""The rules of other products: against the products' own cuts, and against their definition in plain Python on anything
that Hypothesis makes, however it is split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import rule_oracle
from chunkd.chunkers import chunker as chunker_module
from chunkd.chunkers import profiles, rules, tables
from chunkd.chunkers.chunker import HOLE, RuleChunker
from chunkd.model import MeasureRule, Recipe
from chunkd.worker.recompress import Recompressor
from counts import counted

if TYPE_CHECKING:
    from typing_extensions import Buffer

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = (REPOSITORY / "crules.c").read_text()
CDEF = (REPOSITORY / "cffi_build" / "crules.cdef").read_text()
VECTORS: list[dict[str, Any]] = json.loads((REPOSITORY / "tests" / "vectors" / "rules.json").read_text())
MASKS = {
    7: 0x18035100,
    9: 0x19000353000,
    11: 0xD90003530000,
    15: 0xD90F03530000,
    17: 0xD90703537000,
    19: 0xD91707537000,
}
Make = Callable[..., RuleChunker]
Define = Callable[[bytes], list[int]]


def casync_divisor(least: int, mean: int, most: int) -> int:
    """As casync's header has it: what leaves chunks of about the mean."""
    return min(max(int(mean / (-1.42888852e-7 * mean + 1.33237515)), least), most)


def fastcdc_masks(mean: int) -> tuple[int, int]:
    bits = mean.bit_length() - 1
    return MASKS[bits + 1], MASKS[bits - 1]


def casync(least: int, mean: int, most: int) -> RuleChunker:
    return rules.buzhash(tables.CASYNC, 48, (least, most), casync_divisor(least, mean, most), None)


def borg(least_bits: int, most_bits: int, mask_bits: int, window: int) -> RuleChunker:
    return rules.buzhash_ahead(tables.BORG, window, (1 << least_bits, 1 << most_bits), mask_bits, None)


def fastcdc(least: int, mean: int, most: int) -> RuleChunker:
    return rules.fastcdc(fastcdc_masks(mean), (least, mean, most), None)


def restic(polynomial: int, least: int, most: int, bits: int) -> RuleChunker:
    return rules.rabin(polynomial, bits, (least, most), None)


MAKERS: dict[str, Make] = {
    "casync": casync,
    "borg": borg,
    "fastcdc": fastcdc,
    "restic": restic,
    "xet": lambda: profiles.named("xet").file_chunker(),
    "zstd:chunked": lambda: profiles.named("zstd:chunked").file_chunker(),
    "estargz": lambda: profiles.named("estargz").file_chunker(),
}
# Which vectors have a rule's own parameters, and so prove its name.
PROVEN = {
    "casync": ("casync", [16384, 65536, 262144]),
    "borg-1": ("borg", [19, 23, 21, 4095]),
    "xet": ("xet", []),
    "zstd:chunked": ("zstd:chunked", []),
    "estargz": ("estargz", []),
    "fastcdc-16/64/256": ("fastcdc", [16384, 65536, 262144]),
    "like-restic": ("restic", [0x3DA3358B4DC173, 524288, 8388608, 20]),
}


def lengths_of(recipe: Recipe) -> list[int]:
    """Those of holes are negative."""
    found = []
    for at in range(len(recipe)):
        length = int.from_bytes(recipe.lengths[4 * at : 4 * at + 4], "little")
        found.append(-length if recipe.hashes[16 * at : 16 * at + 16] == HOLE else length)
    return found


def split(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    borders = [0, *sorted(min(border, len(data)) for border in at), len(data)]
    return (data[begin:end] for begin, end in itertools.pairwise(borders))


def fed(chunker: RuleChunker, pieces: Iterable[bytes]) -> Recipe:
    for piece in pieces:
        chunker.feed(piece)
    return chunker.finish()


def expected_recipe(data: bytes, lengths: list[int]) -> Recipe:
    ends = itertools.accumulate(map(abs, lengths), initial=0)
    hashes = [
        HOLE if length < 0 else oracle.chunk_hash(data[begin:end])
        for length, (begin, end) in zip(lengths, itertools.pairwise(ends), strict=True)
    ]
    return Recipe(b"".join(hashes), oracle.packed(map(abs, lengths)))


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


# --- the products


def name_of(vector: dict[str, Any]) -> str:
    return "-".join(map(str, (vector["rule"], *vector["parameters"], *vector["input"], *vector.get("ends", "")[:1])))


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_the_cuts_are_the_product_s(vector: dict[str, Any]) -> None:
    data = rule_oracle.made(vector["input"])
    make = partial(MAKERS[vector["rule"]], *vector["parameters"])
    if "ends" in vector:
        first, step = vector["ends"]
        files = [lengths_of(fed(make(), [data[:end]])) for end in range(first, len(data) + 1, step)]
        assert (len(files), digest(files)) == (vector["files"], vector["lengths_sha256"])
        return
    recipe = fed(make(), [data])
    found = lengths_of(recipe)
    if "file_hash" in vector:
        chunks = list(filter(None, split(data, itertools.accumulate(found[:-1]))))
        assert rule_oracle.xet_file_hash(chunks) == vector["file_hash"]
        return
    assert hashlib.sha256(data).hexdigest() == vector["input_sha256"]
    assert found == vector.get("lengths", found)
    assert (len(found), digest(found)) == (vector["chunks"], vector["lengths_sha256"])
    assert recipe == expected_recipe(data, found)
    assert fed(make(), (data[at : at + 65_521] for at in range(0, len(data), 65_521))) == recipe


@pytest.mark.parametrize("name", PROVEN)
def test_a_rule_of_the_list_is_the_one_of_its_vectors(name: str) -> None:
    rule, parameters = PROVEN[name]
    vectors = [
        vector
        for vector in VECTORS
        if [vector["rule"], vector["parameters"], "chunks" in vector] == [rule, parameters, True]
    ]
    for vector in sorted(vectors, key=lambda vector: sum(map(abs, vector.get("lengths", [1 << 30]))))[1:3]:
        data = rule_oracle.made(vector["input"])
        chunker = profiles.named(name).chunker()
        chunker.feed(data)
        found = lengths_of(chunker.finish())
        assert digest(found) == vector["lengths_sha256"]


def test_a_name_without_proof_says_its_parameters() -> None:
    named_for_parameters = re.compile(r"\d+/\d+/\d+|fixed-\d+[KM]iB(-per-file)?|fastcdc-\d+/\d+/\d+|files|like-\w+")
    for profile in profiles.ALL:
        assert profile.name in PROVEN or named_for_parameters.fullmatch(profile.name), profile.name


def test_casync_s_divisor_is_that_of_its_default() -> None:
    assert casync_divisor(16384, 65536, 262144) == 49535


# --- the definitions

TABLE = rule_oracle.noise(77, 2048)
TABLE64 = tuple(int.from_bytes(TABLE[at : at + 8], "big") for at in range(0, 2048, 8))
TABLE32 = tuple(value >> 32 for value in TABLE64)
SMALL = 0b1_0001_1011  # of degree 8, so that the shift is 0


@cache
def small_rules() -> dict[str, tuple[Callable[[], RuleChunker], Define]]:
    """Each kernel with small sizes, so that there are cuts of every kind in little data, and its definition."""
    found: dict[str, tuple[Callable[[], RuleChunker], Define]] = {}
    for window, least, most, divisor in (
        (20, 21, 90, 9),
        (32, 32, 33, 2),
        (33, 64, 200, 37),
        (1, 1, 9, 4),
        (1, 1, 1, 3),
    ):
        found[f"buzhash {window} {least} {most} {divisor}"] = (
            partial(rules.buzhash, TABLE32, window, (least, most), divisor, None),
            partial(rule_oracle.buzhash, TABLE32, window, least, most, divisor),
        )
    for window, least, most, bits in ((5, 7, 40, 3), (31, 1, 70, 1), (33, 64, 200, 5), (1, 1, 3, 1), (7, 2, 30, 2)):
        found[f"buzhash_ahead {window} {least} {most} {bits}"] = (
            partial(rules.buzhash_ahead, TABLE32, window, (least, most), bits, None),
            partial(rule_oracle.buzhash_ahead, TABLE32, window, least, most, (1 << bits) - 1),
        )
    for mask, least, most in ((0xF << 60, 64, 150), (0x8000000000000001, 65, 66), (0x30, 64, 64), (7 << 61, 70, 300)):
        found[f"gear64 {mask:x} {least} {most}"] = (
            partial(rules.gear64, TABLE64, mask, (least, most), None),
            partial(rule_oracle.gear64, TABLE64, mask, least, most),
        )
    for polynomial, bits, least, most in (
        (profiles.RESTIC_POLYNOMIAL, 4, 64, 150),
        (SMALL, 2, 65, 66),
        (SMALL, 3, 70, 300),
    ):
        found[f"rabin {polynomial:x} {bits} {least} {most}"] = (
            partial(rules.rabin, polynomial, bits, (least, most), None),
            partial(rule_oracle.rabin, polynomial, (1 << bits) - 1, least, most),
        )
    for masks, least, mean, most in (
        ((0x700, 0x100), 8, 20, 60),
        ((0x1F, 0x3), 2, 6, 8),
        ((1, 1), 2, 2, 2),
        ((3, 1), 4, 4, 90),
    ):
        found[f"fastcdc {masks} {least} {mean} {most}"] = (
            partial(rules.fastcdc, masks, (least, mean, most), None),
            partial(rule_oracle.fastcdc, tables.FASTCDC, masks, least, mean, most),
        )
    for bits, threshold in ((4, 5), (7, 9), (1, 3), (2, 1), (6, 70), (16, 30)):
        found[f"rolling_sum {bits} {threshold}"] = (
            partial(rules.rolling_sum, bits, threshold, None),
            partial(rule_oracle.rolling_sum, bits, threshold),
        )
    return found


def from_words(words: list[tuple[int, int, int]]) -> bytes:
    """Noise, runs of zeros and of another byte, and periods."""
    kinds: list[Callable[[int, int], bytes]] = [
        rule_oracle.noise,
        lambda _seed, size: bytes(size),
        lambda seed, size: bytes([seed]) * size,
        lambda seed, size: (rule_oracle.noise(seed, 1 + seed % 7) * size)[:size],
    ]
    return b"".join(kinds[kind](seed, size) for kind, seed, size in words)


DATA = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 255), st.integers(0, 130)), max_size=7).map(from_words)
AT = st.lists(st.integers(0, 900), max_size=8)


@pytest.mark.parametrize("rule", small_rules())
@given(st.lists(DATA, max_size=3), AT, st.integers(1, 5), st.integers(1, 200))
@settings(max_examples=counted(150), deadline=None)
def test_a_kernel_cuts_as_its_definition(
    rule: str, files: list[bytes], at: list[int], cuts_per_call: int, piece_bytes: int
) -> None:
    make, define = small_rules()[rule]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rules, "CUTS_PER_CALL", cuts_per_call)
        patched.setattr(rules, "PIECE_BYTES", piece_bytes)
        chunker, hashes, lengths = make(), b"", b""
        for file in files:
            for piece in split(file, at):
                chunker.feed(piece)
            chunker.end_file()
            expected = expected_recipe(file, define(file))
            hashes, lengths = hashes + expected.hashes, lengths + expected.lengths
            assert chunker.chunks == len(lengths) // 4
        assert chunker.finish() == Recipe(hashes, lengths)


@pytest.mark.parametrize("rule", small_rules())
def test_byte_by_byte_and_with_a_border_anywhere(rule: str) -> None:
    make, define = small_rules()[rule]
    data = from_words([(0, 1, 200), (1, 0, 90), (0, 2, 70), (2, 7, 60), (3, 5, 100), (1, 0, 5), (0, 3, 30), (1, 0, 71)])
    expected = expected_recipe(data, define(data))
    assert fed(make(), split(data, range(len(data)))) == expected
    for border in range(len(data)):
        assert fed(make(), split(data, [border])) == expected


@pytest.mark.parametrize("rule", small_rules())
def test_a_file_may_end_anywhere(rule: str) -> None:
    make, define = small_rules()[rule]
    data = from_words([(0, 9, 120), (1, 0, 75), (0, 10, 30)])
    for end in range(len(data) + 1):
        assert lengths_of(fed(make(), [data[:end]])) == define(data[:end])


def test_rabin_s_tables_are_of_any_polynomial() -> None:
    out, mod = tables.rabin(SMALL, 64)
    assert (out[0], mod[0], out[1]) == (0, 0, tables.remainder(1 << 504, SMALL))
    assert mod[1] == SMALL
    assert tables.degree(profiles.RESTIC_POLYNOMIAL) == 53


@pytest.mark.parametrize(
    "make",
    [
        lambda: rules.buzhash(TABLE32, 48, (47, 100), 9, None),
        lambda: rules.buzhash(TABLE32, 0, (47, 100), 9, None),
        lambda: rules.buzhash(TABLE32, 48, (101, 100), 9, None),
        lambda: rules.buzhash(TABLE32, 48, (48, 100), 1, None),
        lambda: rules.buzhash_ahead(TABLE32, 48, (48, 96), 9, None),
        lambda: rules.buzhash_ahead(TABLE32, 0, (48, 96), 9, None),
        lambda: rules.buzhash_ahead(TABLE32, 4, (0, 96), 9, None),
        lambda: rules.buzhash_ahead(TABLE32, 4, (48, 96), 31, None),
        lambda: rules.gear64(TABLE64, 7, (63, 96), None),
        lambda: rules.rabin(profiles.RESTIC_POLYNOMIAL, 7, (63, 96), None),
        lambda: rules.rabin(1 << 54, 7, (64, 96), None),
        lambda: rules.rabin(1 << 7, 7, (64, 96), None),
        lambda: rules.fastcdc((1, 1), (2, 3, 4), None),
        lambda: rules.fastcdc((1, 1), (0, 2, 4), None),
        lambda: rules.rolling_sum(17, 1, None),
        lambda: rules.rolling_sum(0, 1, None),
        lambda: rules.rolling_sum(16, 0, None),
    ],
)
def test_sizes_that_a_kernel_can_t_take_are_refused(make: Callable[[], RuleChunker]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        make()


# --- lengths and measures


class _Incompressible(Recompressor):
    """Each frame has the most bytes that zstd makes (ZSTD_compressBound)."""

    def length(self, _: bytes, chunk: Buffer) -> int:
        return len(memoryview(chunk)) * 257 // 256


def test_the_longest_chunk_can_be_measured_if_it_does_not_compress() -> None:
    chunker = chunker_module.WholeChunker(_Incompressible(MeasureRule(1, 3)))
    piece = bytes(chunker_module.MOST_MEASURED_BYTES)
    # As if all of the chunk but its last two pieces had been fed.
    before = chunker_module.MOST_CHUNK_BYTES // len(piece) - 1
    chunker._length = before * len(piece)  # noqa: SLF001
    chunker._measured_length = before * len(piece) * 257 // 256  # noqa: SLF001
    for _ in range(3):
        chunker.feed(piece)
    recipe = chunker.finish()
    assert sum(memoryview(recipe.lengths).cast("I")) == (before + 3) * len(piece)
    assert sum(memoryview(recipe.measured).cast("I")) == (before + 3) * len(piece) * 257 // 256


def test_a_chunk_and_a_hole_longer_than_a_length_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunker_module, "MOST_CHUNK_BYTES", 100)
    data = b"\1" * 250 + bytes(1300) + b"\1" * 7
    chunker = profiles.named("zstd:chunked").file_chunker()
    assert lengths_of(fed(chunker, split(data, [99, 101, 300]))) == [100, 100, 50, *[-100] * 13, 7]


def test_a_hole_takes_no_bytes_when_chunks_are_measured() -> None:
    data = b"\1" * 250 + bytes(5000) + b"\2" * 300
    chunker = profiles.named("zstd:chunked").file_chunker(Recompressor(MeasureRule(one_in=1)))
    recipe = fed(chunker, [data[:3000], data[3000:]])
    assert lengths_of(recipe) == [250, -5000, 300]
    ends = [oracle.recompressed_bytes(data[:250]), 0, oracle.recompressed_bytes(data[-300:])]
    assert recipe.measured == oracle.packed(ends)


def test_a_file_of_zeros_alone_is_a_chunk() -> None:
    chunker = profiles.named("zstd:chunked").file_chunker()
    for _ in range(3):
        chunker.feed(bytes(2 << 20))
        chunker.end_file()
    chunker.feed(bytes(5000) + b"\1")
    recipe = chunker.finish()
    assert lengths_of(recipe) == [2 << 20] * 3 + [-5000, 1]
    assert recipe.hashes[:16] == oracle.chunk_hash(bytes(2 << 20))


def test_what_is_fed_may_be_changed_afterwards() -> None:
    data, buffer = rule_oracle.noise(3, 300_000), bytearray()
    chunker = rules.buzhash(TABLE32, 5, (7, 40), 9, None)
    for at in range(0, len(data), 7001):
        buffer[:] = data[at : at + 7001]  # a BufferError if the chunker still held a view
        chunker.feed(buffer)
    assert chunker.finish() == fed(rules.buzhash(TABLE32, 5, (7, 40), 9, None), [data])


# --- the compiler, the sanitizers, and mutants

STRICT = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion"]


def test_no_symbol_but_the_declared_ones(tmp_path: Path) -> None:
    subprocess.run(["cc", *STRICT, "-c", "-o", tmp_path / "crules.o", REPOSITORY / "crules.c"], check=True)
    printed = subprocess.run(["nm", tmp_path / "crules.o"], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-2:] for line in printed.splitlines()]
    assert {name.lstrip("_") for kind, name in symbols if kind == "T"} == set(re.findall(r"\b(crules_\w+)\(", CDEF))
    assert {kind for kind, _ in symbols} <= {"T", "t", "U"}  # nothing that can be written to
    undefined = {name.lstrip("_") for kind, name in symbols if kind == "U"}
    assert undefined <= {"GLOBAL_OFFSET_TABLE_", "stack_chk_fail"}


@pytest.mark.counted
def test_made_data_under_the_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "crules_sanitized"
    flags = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DALONE"]
    fuzz = REPOSITORY / "tests" / "fuzz" / "fuzz_crules.c"
    subprocess.run(["cc", *flags, f"-I{REPOSITORY}", "-o", program, fuzz], check=True)
    subprocess.run([program, str(counted(20_000))], check=True)
