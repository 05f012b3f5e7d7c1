"""The native core against the vectors, the oracle and its own plain loop; and these tests against broken cores."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from chunkd.chunkers._cgear import ffi, lib
from chunkd.chunkers.gear import KERNELS, kernels
from counts import IN_TORTURE, counted

if TYPE_CHECKING:
    from chunkd.chunkers._cgear import Array, Cut

REPOSITORY = Path(__file__).parents[2]
SOURCE = (REPOSITORY / "cgear.c").read_text()
CDEF = (REPOSITORY / "cffi_build" / "cgear.cdef").read_text()

Params = tuple[int, int, int]

CUTS = [KERNELS[name] for name in kernels()]
FASTER = [cut for cut in CUTS if cut is not lib.cgear_cut_plain]
needs_avx2 = pytest.mark.skipif(not lib.cgear_has_avx2(), reason="no AVX2 here: its kernel is not tested")
DEFAULT: Params = (2048, 14, 65536)
GEAR = ffi.new("uint64_t[]", oracle.gear())
# Hashes of few bits are 0 as soon as the last of these is pushed out: fires are many, also with a mask of 32 bits.
SPARSE_GEAR = ffi.new("uint64_t[]", [1 << (value % 34) if value % 8 == 0 else 0 for value in range(256)])
# The low 8 bits of each hash are 0, and the AVX2 kernel's sieve lets all pass.
HIGH_GEAR = ffi.new("uint64_t[]", [value << 8 & (1 << 64) - 1 for value in oracle.gear()])
ZEROS_STAY_GEAR = ffi.new("uint64_t[]", [1] + [0] * 255)
GEARS = {"full": GEAR, "sparse": SPARSE_GEAR, "high": HIGH_GEAR}


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


@given(
    segments(),
    any_params() | st.just(DEFAULT),
    st.sampled_from(sorted(GEARS)),
    st.lists(st.integers(0, 12_000), max_size=6),
)
@settings(max_examples=counted(400))
def test_the_kernels_agree_whatever_the_buffers(data: bytes, params: Params, name: str, at: list[int]) -> None:
    gear = GEARS[name]
    expected = chunk_lengths(lib.cgear_cut_plain, [data], params, gear)
    assert sum(expected) == len(data)
    assert all(params[0] <= length <= params[2] for length in expected[:-1])
    if gear is GEAR:
        assert expected == oracle.lengths(data, *params)
    borders = [0, *sorted(min(border, len(data)) for border in at), len(data)]
    buffers = [data[begin:end] for begin, end in itertools.pairwise(borders)]
    for cut in CUTS:
        assert chunk_lengths(cut, [data], params, gear) == expected
        assert chunk_lengths(cut, buffers, params, gear) == expected


@pytest.mark.parametrize("mask_bits", [1, 2, 7, 8, 9, 13, 14, 15, 31, 32])
@pytest.mark.parametrize("over_min", [0, 1, 47])
@pytest.mark.parametrize("over_max", [0, 1, 301, 5000])
def test_the_kernels_agree_over_a_grid(mask_bits: int, over_min: int, over_max: int) -> None:
    params = (mask_bits + over_min, mask_bits, mask_bits + over_min + over_max)
    for gear in GEARS.values():
        for size, sizes in ((2001, (1, 3, 37)), (20_001, (4001, 20_001))):
            data = random.Random(mask_bits).randbytes(size)
            expected = chunk_lengths(lib.cgear_cut_plain, [data], params, gear)
            for cut, piece_bytes in itertools.product(FASTER, sizes):
                assert chunk_lengths(cut, pieces(data, piece_bytes), params, gear) == expected


# More than one of the AVX2 kernel's blocks of 1024, with what it scans byte by byte after them.
PLACES = range(DEFAULT[0], DEFAULT[0] + 1200)
# What repeats without a fire, and a fire: as text and not, which the AVX2 kernel looks up differently.
FIRE = bytes.fromhex("2c9dd9107cb77884350e48f9ed28")
FIRES = [(b" ", b"hjtvlljertgpqm"), (b" ", FIRE), (b"\xc8", FIRE)]


def finds_a_fire_at_each_place(cut: Cut) -> bool:
    """Once to a stream, so that it is met at each place of a block and of what is left after the last."""
    for still, fire in FIRES:
        for end in PLACES:
            try:
                if chunk_lengths(cut, [still * (end - len(fire)) + fire + still * 70]) != [end, 70]:
                    return False
            except AssertionError:
                return False
    return True


@pytest.mark.parametrize("kernel", kernels())
def test_a_fire_at_each_place(kernel: str) -> None:
    assert finds_a_fire_at_each_place(KERNELS[kernel])
    assert agrees_where_most_pass_the_sieve(KERNELS[kernel])


@needs_avx2
def test_a_kernel_that_is_not_there_says_so_and_touches_nothing(intrinsics: Path, tmp_path: Path) -> None:
    """Where the processor lacks it and where the build does: each as if it did here."""
    for index, (before, after) in enumerate(NOT_THERE):
        assert SOURCE.count(before) == 1
        (folder := tmp_path / str(index)).mkdir()
        library = built(SOURCE.replace(before, after), folder, intrinsics)
        assert library.cgear_has_avx2() == 0
        assert (
            chunk_lengths(library.cgear_cut, [oracle.case_data("random-131072")])
            == oracle.CASES["random-131072"]["lengths"]
        )
        open_hash, open_bytes, cuts = ffi.new("uint64_t *"), ffi.new("size_t *"), ffi.new("size_t[]", [7] * 5)
        open_hash[0], open_bytes[0] = 99, 4
        data = ffi.from_buffer("uint8_t[]", bytes(21))
        assert library.cgear_cut_avx2(GEAR, 5, 3, 9, open_hash, open_bytes, data, 21, cuts, 5) == -2
        assert (open_hash[0], open_bytes[0], ffi.unpack(cuts, 5)) == (99, 4, [7] * 5)


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


@pytest.mark.counted
def test_made_data_under_the_sanitizers(sanitized: Path) -> None:
    subprocess.run([sanitized, str(counted(4000))], check=True)


# The longest takes as long as all others.
@pytest.mark.counted
@pytest.mark.parametrize("case", [case for case in oracle.CASES if IN_TORTURE or case != "random-16MiB"])
def test_every_case_byte_by_byte_under_the_sanitizers(sanitized: Path, case: str) -> None:
    """By 1, 37, 255 and 65,536 bytes and whole: in C, since 16 million calls of one byte are too slow from Python."""
    file = sanitized.parent / "data"
    file.write_bytes(oracle.case_data(case))
    printed = subprocess.run([sanitized, sanitized.parent / "gear", file], check=True, capture_output=True, text=True)
    assert_agrees_with_vectors(case, [int(line) for line in printed.stdout.split()])


# What the processor can do; and what a compiler may call of itself.
ASKED_OF_THE_COMPILER = {"cpu_model", "cpu_indicator_init", "GLOBAL_OFFSET_TABLE_", "stack_chk_fail", "memset"}


def test_no_symbol_but_the_declared_ones(tmp_path: Path) -> None:
    subprocess.run(["cc", *STRICT, "-c", "-o", tmp_path / "cgear.o", REPOSITORY / "cgear.c"], check=True)
    printed = subprocess.run(["nm", tmp_path / "cgear.o"], check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-2:] for line in printed.splitlines()]
    named = {name.lstrip("_") for kind, name in symbols if kind.isupper() and kind != "U"}
    assert named == set(re.findall(r"\b(cgear_\w+)\(", CDEF))
    assert {kind for kind, _ in symbols} <= {"T", "t", "r", "U"}  # nothing that can be written to
    assert {name.lstrip("_") for kind, name in symbols if kind == "U"} <= ASKED_OF_THE_COMPILER


# --- a broken core is seen -----------------------------------------------------------------------------------------

SKIPPED = "const size_t skipped = min_bytes - mask_bits"
FIRST_TEST = "at < n && at - begin < min_bytes - 1)"
ROOM = "room = max_bytes - open;"
EARLIER = "found >> EARLIER << EARLIER"
NEXT_BLOCK = "at += n - EARLIER;"
TEXT = "look_up(low, data, n, 0, lows)"
SEEN = "for (size_t i = 0; i < n; i += 32) any ="
FEWER = "after - mask_bits + 1, mask_bits - 1)"
BELIEVED = "after - mask_bits, mask_bits) & 0)"
CROWD_HASH = "            *hash = hash_of(gear, data + at - mask_bits, mask_bits);\n"
LAST_HASH = (
    "    } while (limit - at >= STEP);\n    *hash = hash_of(gear, data + at - mask_bits, mask_bits);\n    return "
)
NOT_THERE = [('__builtin_cpu_supports("avx2") != 0', "0"), ("#define WITH_AVX2\n", "")]
LEFT_BEHIND = "    *hash = h;\n    *length = n - begin;\n"
# A hash kept across a cut is no mutant: min_bytes >= mask_bits, so that it is pushed out before the first test.
MUTANTS = {
    "nothing changed": ("cgear_cut", "", ""),
    "AVX2, nothing changed": ("cgear_cut_avx2", "", ""),
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
    "AVX2: a block's first place left out": ("cgear_cut_avx2", EARLIER, "found >> (EARLIER + 1) << (EARLIER + 1)"),
    "AVX2: a place before the first let in": ("cgear_cut_avx2", EARLIER, "found >> (EARLIER - 1) << (EARLIER - 1)"),
    "AVX2: the next block begins late": ("cgear_cut_avx2", NEXT_BLOCK, "at += n - EARLIER + 1;"),
    "AVX2: seven bytes are enough": ("cgear_cut_avx2", "EARLIER = 8,", "EARLIER = 6,"),
    "AVX2: the second of four sums": ("cgear_cut_avx2", "load(lows + i - 3)", "load(lows + i - 2)"),
    "AVX2: four times, once less": ("cgear_cut_avx2", "twice(twice(earlier_two))", "twice(earlier_two)"),
    "AVX2: sixteen times from the wrong place": ("cgear_cut_avx2", "load(sums - 4)", "load(sums - 3)"),
    "AVX2: one of the sixteen": ("cgear_cut_avx2", "-64, -80, -96", "-64, -81, -96"),
    "AVX2: rows in another order": ("cgear_cut_avx2", "found[i], found[i + 1], bit_4", "found[i + 1], found[i], bit_4"),
    "AVX2: bits 5 and 6 exchanged": ("cgear_cut_avx2", "found[4], bit_6", "found[4], bit_5"),
    "AVX2: bytes with bit 7 looked up as text": ("cgear_cut_avx2", "look_up(low, data, n, 1, lows)", TEXT),
    "AVX2: bit 7 not flipped": ("cgear_cut_avx2", "low + 128 + 16 * i, flipped", "low + 128 + 16 * i, bytes"),
    "AVX2: bit 7 seen in half of the block": ("cgear_cut_avx2", SEEN, SEEN.replace("i < n", "i < n / 2")),
    "AVX2: only the first place of a step": (
        "cgear_cut_avx2",
        "for (found &= found - 1; found;",
        "for (found = 0; found;",
    ),
    "AVX2: the second half of a step lost": ("cgear_cut_avx2", "(uint64_t)zeros(sums + i + 32) << 32", "0"),
    "AVX2: one byte of the test missing": ("cgear_cut_avx2", "after - mask_bits, mask_bits)", FEWER),
    "AVX2: the sieve believed": ("cgear_cut_avx2", "after - mask_bits, mask_bits) & mask)", BELIEVED),
    "AVX2: a place taken for the one before": ("cgear_cut_avx2", "block + places[i] + 1", "block + places[i]"),
    "AVX2: hash of the last block not left behind": (
        "cgear_cut_avx2",
        LAST_HASH,
        LAST_HASH.partition("*hash")[0] + "return ",
    ),
    "AVX2: a crowd's hash not made": ("cgear_cut_avx2", CROWD_HASH, ""),
    "AVX2: a small mask not moved up": ("cgear_cut_avx2", "mask_bits < 8 ? 8 - mask_bits : 0", "0"),
    "AVX2: a small mask not moved far enough": ("cgear_cut_avx2", "? 8 - mask_bits", "? 7 - mask_bits"),
    "AVX2: borders scanned from too few bytes": (
        "cgear_cut_avx2",
        "limit < PADDING ? limit : PADDING",
        "limit < 8 ? limit : 8",
    ),
}


CC = ["cc", "-std=c11", "-O1", "-fPIC"]


@pytest.fixture(scope="session")
def intrinsics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The processor's header, parsed once: for each of the mutants that takes twice as long as all else."""
    header = tmp_path_factory.mktemp("intrinsics") / "intrinsics.h"
    header.write_text("#ifdef __x86_64__\n#include <immintrin.h>\n#endif\n")
    subprocess.run([*CC, "-x", "c-header", "-o", f"{header}.gch", header], check=True)
    return header


def built(source: str, folder: Path, intrinsics: Path) -> Any:
    (folder / "mutant.c").write_text(source)
    library = folder / "mutant.so"
    subprocess.run([*CC, "-include", intrinsics, "-shared", "-o", library, folder / "mutant.c"], check=True)
    mutant = FFI()
    mutant.cdef(CDEF)
    return mutant.dlopen(str(library))


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


def agrees_where_most_pass_the_sieve(cut: Cut) -> bool:
    """Whether `cut` agrees with the plain loop for masks of fewer bits than the sieve has, and on crowds in a block."""
    data = random.Random(8).randbytes(1_000_001)
    cases = [(GEAR, 5, data), (GEAR, 7, data), (HIGH_GEAR, 18, data)]
    # Zeros never pass, and ones push them out: from the 8th one on all pass, and the 18th fires.
    cases += [(ZEROS_STAY_GEAR, 18, bytes(end) + bytes([1]) * 3000) for end in PLACES]
    for gear, mask_bits, stream in cases:
        params = (2048, mask_bits, 65536)
        try:
            if chunk_lengths(cut, [stream], params, gear) != chunk_lengths(lib.cgear_cut_plain, [stream], params, gear):
                return False
        except AssertionError:
            return False
    return True


def holds_in_a_child(check: Callable[[], bool], cpu_s: int = 0) -> bool:
    """A mutant may read what is not there: then its process dies. One that goes on for ever ends after `cpu_s`."""
    child = os.fork()
    if child == 0:
        held = False
        try:
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            held = check()
        finally:
            os._exit(0 if held else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_caught(mutant: str, intrinsics: Path, tmp_path: Path) -> None:
    name, before, after = MUTANTS[mutant]
    if name == "cgear_cut_avx2" and not lib.cgear_has_avx2():
        pytest.skip("no AVX2 here: its kernel is not tested")
    if before:
        assert SOURCE.count(before) == 1, "cgear.c has changed its shape: change this mutant with it"
    library = built(SOURCE.replace(before, after) if before else SOURCE, tmp_path, intrinsics)
    cut = getattr(library, name)  # which is unmapped when the library is collected
    checks = (agrees_with_vectors, finds_a_fire_at_each_place, agrees_where_most_pass_the_sieve)
    assert holds_in_a_child(lambda: all(check(cut) for check in checks)) == ("nothing changed" in mutant)
