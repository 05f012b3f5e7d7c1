"""The native core against the vectors, the oracle and its own plain loop; and the vectors against broken cores."""

from __future__ import annotations

import hashlib
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from chunkd._cgear import ffi, lib

if TYPE_CHECKING:
    from chunkd._cgear import Array

REPOSITORY = Path(__file__).parents[1]
SOURCE = (REPOSITORY / "cgear.c").read_text()
CDEF = (REPOSITORY / "cffi_build" / "cgear.cdef").read_text()

Cut = Callable[["Array", int, int, int, "Array", "Array", "Array", int, "Array", int], int]
Params = tuple[int, int, int]

CUTS: list[Cut] = [lib.cgear_cut, lib.cgear_cut_plain]
DEFAULT: Params = (2048, 14, 65536)
GEAR = ffi.new("uint64_t[]", oracle.gear())
# Hashes of few bits are 0 as soon as the last of these is pushed out: fires are many, also with a mask of 32 bits.
SPARSE_GEAR = ffi.new("uint64_t[]", [1 << (value % 34) if value % 8 == 0 else 0 for value in range(256)])


def chunk_lengths(cut: Cut, buffers: Iterable[bytes], params: Params = DEFAULT, gear: Array = GEAR) -> list[int]:
    """The chunks' lengths of a stream that comes as `buffers`, with no room to spare for the cuts of each."""
    open_hash, open_bytes = ffi.new("uint64_t *"), ffi.new("size_t *")
    found: list[int] = []
    for buffer in buffers:
        capacity = -(-len(buffer) // params[0])
        cuts = ffi.new("size_t[]", capacity)
        begin = -open_bytes[0]
        data = ffi.from_buffer("uint8_t[]", buffer)
        count = cut(gear, *params, open_hash, open_bytes, data, len(buffer), cuts, capacity)
        assert count >= 0
        for end in ffi.unpack(cuts, count):
            assert max(begin, 0) < end <= len(buffer)
            found.append(end - begin)
            begin = end
        assert open_bytes[0] == len(buffer) - begin < params[2]
    return found + [open_bytes[0]] * (open_bytes[0] > 0)


def pieces(data: bytes, piece_bytes: int) -> list[bytes]:
    return [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]


def patch_ends(case: str) -> list[int]:
    make = oracle.CASES[case]["make"]
    return list(make["patch"]["ending_at"]) if "patch" in make else []


def assert_agrees_with_vectors(case: str, found: list[int]) -> None:
    expected = oracle.CASES[case]
    assert found == expected.get("lengths", found), case
    assert len(found) == expected["chunks"], case
    assert hashlib.sha256(oracle.packed(found)).hexdigest() == expected["lengths_sha256"], case


@pytest.mark.parametrize("case", oracle.CASES)
def test_every_case_whole_and_in_pieces(case: str) -> None:
    data = oracle.case_data(case)
    for cut in CUTS:
        for piece_bytes in (255, 65_536, len(data) + 1):
            assert_agrees_with_vectors(case, chunk_lengths(cut, pieces(data, piece_bytes)))


@pytest.mark.parametrize("case", [case for case in oracle.CASES if patch_ends(case)])
def test_a_border_anywhere_in_the_bytes_that_decide(case: str) -> None:
    data = oracle.case_data(case)
    for end in patch_ends(case):
        for border in range(end - 16, end + 3):
            for cut in CUTS:
                assert_agrees_with_vectors(case, chunk_lengths(cut, [data[:border], data[border:]]))


def test_single_bytes() -> None:
    values = oracle.VECTORS["single_byte_200000"]["values"]
    assert len(values) == 256
    for byte, (chunks, first) in enumerate(values):
        for cut in CUTS:
            found = chunk_lengths(cut, [bytes([byte]) * 200_000])
            assert (len(found), found[0], sum(found)) == (chunks, first, 200_000)


def test_the_oracle_agrees_with_the_vectors() -> None:
    assert oracle.gear() == [int(value, 16) for value in oracle.VECTORS["gear_table"]]
    for case in oracle.CASES:
        if len(data := oracle.case_data(case)) < 1 << 20 or case == "random-1MiB-42":
            assert_agrees_with_vectors(case, oracle.lengths(data))


# --- any parameters ------------------------------------------------------------------------------------------------

PATCHES = sorted(
    {bytes.fromhex(case["make"]["patch"]["hex"]) for case in oracle.CASES.values() if "patch" in case["make"]}
)


@st.composite
def any_params(draw: st.DrawFn) -> Params:
    mask_bits = draw(st.integers(1, 32))
    min_bytes = mask_bits + draw(st.sampled_from([0, 1, 2, 3, 30, 31, 500, 2033, 2034]))
    return min_bytes, mask_bits, min_bytes + draw(st.sampled_from([0, 1, 2, 5, 63, 700, 63_488]))


def segments() -> st.SearchStrategy[bytes]:
    noise = st.builds(lambda seed, size: random.Random(seed).randbytes(size), st.integers(0, 9), st.integers(0, 3000))
    gap = st.builds(lambda byte, size: bytes([byte]) * size, st.sampled_from([0, 1, 8, 255]), st.integers(0, 2100))
    return st.lists(st.one_of(st.sampled_from(PATCHES), noise, gap, st.binary(max_size=40)), max_size=12).map(b"".join)


@given(segments(), any_params() | st.just(DEFAULT), st.booleans(), st.lists(st.integers(0, 12_000), max_size=6))
@settings(max_examples=400, deadline=None)
def test_the_two_functions_agree_whatever_the_buffers(data: bytes, params: Params, sparse: bool, at: list[int]) -> None:
    gear = SPARSE_GEAR if sparse else GEAR
    expected = chunk_lengths(lib.cgear_cut_plain, [data], params, gear)
    assert sum(expected) == len(data)
    assert all(params[0] <= length <= params[2] for length in expected[:-1])
    if not sparse:
        assert expected == oracle.lengths(data, *params)
    borders = [0, *sorted(min(border, len(data)) for border in at), len(data)]
    buffers = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    for cut in CUTS:
        assert chunk_lengths(cut, [data], params, gear) == expected
        assert chunk_lengths(cut, buffers, params, gear) == expected


@pytest.mark.parametrize("mask_bits", [1, 2, 13, 14, 15, 31, 32])
@pytest.mark.parametrize("over_min", [0, 1, 47])
@pytest.mark.parametrize("over_max", [0, 1, 301])
def test_the_two_functions_agree_over_a_grid(mask_bits: int, over_min: int, over_max: int) -> None:
    params = (mask_bits + over_min, mask_bits, mask_bits + over_min + over_max)
    data = random.Random(mask_bits).randbytes(20_001)
    for gear in (GEAR, SPARSE_GEAR):
        expected = chunk_lengths(lib.cgear_cut_plain, [data], params, gear)
        for piece_bytes in (1, 3, 37, 20_001):
            assert chunk_lengths(lib.cgear_cut, pieces(data, piece_bytes), params, gear) == expected


@pytest.mark.parametrize("cut", CUTS)
def test_a_capacity_too_small_is_refused_and_the_least_one_is_enough(cut: Cut) -> None:
    always = ffi.new("uint64_t[]", [0] * 256)
    open_hash, open_bytes, cuts = ffi.new("uint64_t *"), ffi.new("size_t *"), ffi.new("size_t[]", [7] * 5)
    open_hash[0], open_bytes[0] = 99, 4
    data = ffi.from_buffer("uint8_t[]", bytes(21))
    assert cut(always, 5, 3, 9, open_hash, open_bytes, data, 21, cuts, 4) == -1
    assert (open_hash[0], open_bytes[0], ffi.unpack(cuts, 5)) == (99, 4, [7] * 5)

    open_hash[0] = 0
    assert cut(always, 5, 3, 9, open_hash, open_bytes, data, 21, cuts, 5) == 5
    assert (open_bytes[0], ffi.unpack(cuts, 5)) == (0, [1, 6, 11, 16, 21])
    assert cut(always, 5, 3, 9, open_hash, open_bytes, data, 0, cuts, 0) == 0


# --- under the sanitizers ------------------------------------------------------------------------------------------

STRICT = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion"]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("sanitized") / "cgear_sanitized"
    flags = [*STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{REPOSITORY}"]
    subprocess.run(["cc", *flags, "-o", program, REPOSITORY / "tests" / "cgear_sanitized.c"], check=True)
    (program.parent / "gear").write_bytes(b"".join(value.to_bytes(8, sys.byteorder) for value in oracle.gear()))
    return program


def test_made_data_under_the_sanitizers(sanitized: Path) -> None:
    subprocess.run([sanitized], check=True)


@pytest.mark.parametrize("case", oracle.CASES)
def test_every_case_byte_by_byte_under_the_sanitizers(sanitized: Path, case: str) -> None:
    """By 1, 37, 255 and 65,536 bytes and whole: in C, since 16 million calls of one byte are too slow from Python."""
    file = sanitized.parent / "data"
    file.write_bytes(oracle.case_data(case))
    printed = subprocess.run([sanitized, sanitized.parent / "gear", file], check=True, capture_output=True, text=True)
    assert_agrees_with_vectors(case, [int(line) for line in printed.stdout.split()])


def test_no_symbol_but_the_declared_ones(tmp_path: Path) -> None:
    subprocess.run(["cc", *STRICT, "-c", "-o", tmp_path / "cgear.o", REPOSITORY / "cgear.c"], check=True)
    printed = subprocess.run(["nm", tmp_path / "cgear.o"], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-2:] for line in printed.splitlines()]
    assert {name.lstrip("_") for kind, name in symbols if kind.isupper()} == {"cgear_cut", "cgear_cut_plain"}
    assert {kind for kind, _ in symbols} <= {"T", "t"}


# --- the vectors see a broken core ---------------------------------------------------------------------------------

SKIPPED = "const size_t skipped = min_bytes - mask_bits"
FIRST_TEST = "at < n && at - begin < min_bytes - 1)"
ROOM = "room = max_bytes - open;"
LEFT_BEHIND = "    *hash = h;\n    *length = n - begin;\n"
# A hash kept across a cut is no mutant: min_bytes >= mask_bits, so that it is pushed out before the first test.
MUTANTS = {
    "nothing changed": ("cgear_cut", "", ""),
    "warm-up of mask_bits - 1": ("cgear_cut", SKIPPED, SKIPPED + " + 1"),
    "warm-up of mask_bits - 2": ("cgear_cut", SKIPPED, SKIPPED + " + 2"),
    "first test at min_bytes - 1": ("cgear_cut", FIRST_TEST, FIRST_TEST.replace("- 1)", "- 2)")),
    "first test at min_bytes + 1": ("cgear_cut", FIRST_TEST, FIRST_TEST.replace(" - 1)", ")")),
    "limit one byte early": ("cgear_cut", ROOM, "room = max_bytes - 1 - open;"),
    "limit one byte late": ("cgear_cut", ROOM, "room = max_bytes + 1 - open;"),
    "length kept across a cut": ("cgear_cut", "        begin = at;\n", ""),
    "hash not left behind": ("cgear_cut", LEFT_BEHIND, "    *length = n - begin;\n"),
    "length not left behind": ("cgear_cut", LEFT_BEHIND, "    *hash = h;\n"),
    "hash of the scan not left behind": ("cgear_cut", "    *hash = h;\n    return 0;\n", "    return 0;\n"),
    "a fire in a turn of four misplaced": ("cgear_cut", "return at + 3;", "return at + 4;"),
    "plain: length kept across a cut": ("cgear_cut_plain", "            open = 0;\n", ""),
    "plain: test from min_bytes + 1": ("cgear_cut_plain", "(open >= min_bytes", "(open > min_bytes"),
    "plain: test from min_bytes - 1": ("cgear_cut_plain", "(open >= min_bytes", "(open + 1 >= min_bytes"),
    "plain: limit one byte late": ("cgear_cut_plain", "open == max_bytes", "open > max_bytes"),
}


def built(name: str, source: str, folder: Path) -> Cut:
    (folder / "mutant.c").write_text(source)
    library = folder / "mutant.so"
    subprocess.run(["cc", "-std=c11", "-O1", "-shared", "-fPIC", "-o", library, folder / "mutant.c"], check=True)
    mutant = FFI()
    mutant.cdef(CDEF)
    function: Cut = getattr(mutant.dlopen(str(library)), name)
    return function


def agrees_with_vectors(cut: Cut) -> bool:
    """Whether `cut` gives the lengths of each short case, fed whole and with borders where the patches end."""
    for name, case in oracle.CASES.items():
        if "lengths" not in case:
            continue
        data = oracle.case_data(name)
        borders = [end + near for end in patch_ends(name) for near in (-14, -7, -1, 0, 1)]
        for buffers in ([data], pieces(data, 255), *([data[:border], data[border:]] for border in borders)):
            try:
                if chunk_lengths(cut, buffers) != case["lengths"]:
                    return False
            except AssertionError:
                return False
    return True


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_vectors_catch_each_mutant(mutant: str, tmp_path: Path) -> None:
    name, before, after = MUTANTS[mutant]
    if before:
        assert SOURCE.count(before) == 1, "cgear.c has changed its shape: change this mutant with it"
    cut = built(name, SOURCE.replace(before, after) if before else SOURCE, tmp_path)
    assert agrees_with_vectors(cut) == (mutant == "nothing changed")
