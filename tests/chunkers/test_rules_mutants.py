"""Faults put into crules.c, each of which the definitions see."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cffi import FFI
from test_cgear import holds_in_a_child
from test_rules import CDEF, SOURCE, fed, from_words, lengths_of, small_rules, split

from chunkd.chunkers import rules

# By the function that the fault is in: what is replaced, and by what.
MUTANTS = {
    "nothing changed": ("cut_by", "", ""),
    "least one more": ("cut_by", "(open < min_bytes ? min_bytes - open", "(open <= min_bytes ? min_bytes + 1 - open"),
    "least one less": ("cut_by", "min_bytes - open :", "min_bytes - open - (min_bytes - open > 1) :"),
    "most one less": ("cut_by", "room = max_bytes - open;", "room = max_bytes - (max_bytes > 1) - open;"),
    "most one more": ("cut_by", "room = max_bytes - open;", "room = max_bytes + 1 - open;"),
    "open not left behind": ("cut_by", "open += left;", ""),
    "open kept across a cut": ("cut_by", "        open = 0;\n", ""),
    "a window of one byte less": ("buz_fires", "i = first - window;", "i = first - window + 1;"),
    "the leaving byte rotated once less": ("buz_fires", "- window]], window)", "- window]], window - 1)"),
    "another byte leaves": ("buz_fires", "data[at - window]", "data[at - window + 1]"),
    "rotation by up to 15": ("rotated", "bits &= 31;", "bits &= 15;"),
    "another remainder": ("buz_fires", "rule->divisor - rule->remainder;", "rule->divisor - rule->remainder + 1;"),
    "the inverse below": ("buz_fires", "rule->divisor + 1, shift", "rule->divisor, shift"),
    "the inverse itself": ("buz_fires", "(hash + shift) < inverse", "(hash + shift) <= inverse"),
    "the buzhash's limit not tested": ("buz_fires", "at == limit", "at + 1 >= limit"),
    "a gear of 63 bytes": ("gear_fires", "i = first - 64;", "i = first - 63;"),
    "the gear's limit not tested": ("gear_fires", "at == limit", "at + 1 >= limit"),
    "a fingerprint of 63 bytes": ("rabin_fires", "i = first - 64;", "i = first - 63;"),
    "no byte leaves": ("rabin_fires", "hash ^ rule->out[data[at - 64]]", "hash"),
    "the fingerprint's limit not tested": ("rabin_fires", "at == limit", "at + 1 >= limit"),
    "not reduced": ("appended", "^ rule->mod[hash >> rule->shift]", "^ (rule->mod[hash >> rule->shift] & 255)"),
    "no byte after the window": ("crules_buzhash_ahead", "at + seen - 1)", "at + seen)"),
    "the last not tested": ("crules_buzhash_ahead", "first < at + seen ?", "first + 1 < at + seen ?"),
    "least one more, ahead": ("crules_buzhash_ahead", "min_bytes - open : 0)", "min_bytes - open + 1 : 0)"),
    "the first not tested again": ("crules_buzhash_ahead", "min_bytes - open : 0)", "min_bytes - open : 1)"),
    "the cut one late": ("crules_buzhash_ahead", "cut -= window;", "cut -= window - 1;"),
    "one more settled": ("crules_buzhash_ahead", "? left - window : 0;", "? left - window + 1 : 0;"),
    "open not left behind, ahead": ("crules_buzhash_ahead", "open += settled;", ""),
    "open kept across a cut, ahead": ("crules_buzhash_ahead", "        open = 0;\n", ""),
    "the end held": ("crules_buzhash_ahead", "piece->last ? left :", ""),
    "the last byte always tested": ("crules_fastcdc", "(!piece->last || open % 2 == 0)", "!piece->last"),
    "the last byte never tested": ("crules_fastcdc", "(!piece->last || open % 2 == 0)", "1"),
    "the last of a piece not held": ("crules_fastcdc", "(!piece->last || open", "(piece->last && open"),
    "the mean one more": ("crules_fastcdc", "open < mean_bytes", "open <= mean_bytes"),
    "one mask": ("crules_fastcdc", "mask_small : mask_large)", "mask_small : mask_small)"),
    "the hash kept across a cut": ("crules_fastcdc", "        hash = 0;\n", ""),
    "the hash not left behind": ("crules_fastcdc", "piece->hash = hash;", ""),
    "the hash from the least - 2 on": ("crules_fastcdc", "min_bytes - open < limit", "min_bytes - 2 - open < limit"),
    "no most, FastCDC": ("crules_fastcdc", "room = max_bytes - open;", "room = max_bytes + 2 - open;"),
    "the end not settled": ("crules_fastcdc", "if (count < piece->capacity && piece->last) at = piece->n;", ""),
    "holes of one more": ("next_hole", "n - begin >= threshold", "n - begin > threshold"),
    "a hole one byte short": ("next_hole", "zero > begin &&", "zero > begin + (threshold > 1) &&"),
    "last zeros not held": ("crules_rolling_sum", "if (hole == n && !piece->last)", "if (0)"),
    "last zeros of a file held": ("crules_rolling_sum", "hole == n && !piece->last", "hole == n"),
    "a weight more": ("sum_fires", "(first - i) * data[i]", "(first - i + 1) * data[i]"),
    "a sum of 63 bytes": ("sum_fires", "i = first - 64;", "i = first - 63;"),
    "another offset": ("sum_fires", "data[at - 64] + 31)", "data[at - 64] + 30)"),
    "another start": ("sum_fires", "sums = 64 * 63 * 31;", "sums = 64 * 63 * 31 + 1;"),
    "bits of 0": ("sum_fires", "(~sums & mask)", "(sums & mask)"),
    "the sum's limit not tested": ("sum_fires", "at == limit", "at + 1 >= limit"),
    "no cut before a hole": ("crules_rolling_sum", "            piece->cuts[count++] = (ptrdiff_t)at;\n", ""),
    "no hole sought behind a hole": ("crules_rolling_sum", "            hole = at;\n", ""),
    "a hole's cut as a chunk's": ("crules_rolling_sum", "-(ptrdiff_t)at;", "(ptrdiff_t)at;"),
    "a hole that is none": ("crules_rolling_sum", "piece->hole = 1;", ""),
}


def body(name: str) -> str:
    """The lines of a function, which end with a brace in the first column."""
    (found,) = re.findall(rf"^(?:[a-z][^;\n]*\b{name}\([^;{{]*\n?\{{\n.*?^\}})", SOURCE, re.MULTILINE | re.DOTALL)
    return str(found)


DATA = [
    from_words([(0, 1, 200), (1, 0, 75), (0, 2, 70), (2, 7, 60), (3, 5, 100), (1, 0, 5), (0, 3, 30), (1, 0, 71)]),
    from_words([(1, 0, 4), (0, 5, 300), (1, 0, 3)]),
    from_words([(0, 6, 201)]),
    from_words([(2, 9, 331)]),
    *(from_words([(0, number, 60 + number)]) for number in range(12)),
]


# The kernels that call a function, by the names of `small_rules`.
CALLERS = {
    "cut_by": ("buzhash ", "gear64", "rabin"),
    "buz_fires": ("buzhash",),
    "rotated": ("buzhash",),
    "gear_fires": ("gear64",),
    "rabin_fires": ("rabin",),
    "appended": ("rabin",),
    "crules_buzhash_ahead": ("buzhash_ahead",),
    "crules_fastcdc": ("fastcdc",),
    "next_hole": ("rolling_sum",),
    "sum_fires": ("rolling_sum",),
    "crules_rolling_sum": ("rolling_sum",),
}


@cache
def expected(rule: str, number: int) -> list[int]:
    return small_rules()[rule][1](DATA[number])


def agrees(function: str) -> bool:
    """Whether the kernels with that function cut as they are defined: whole, in pieces of 41, and byte by byte."""
    for rule, (make, _) in small_rules().items():
        for number, file in enumerate(DATA if rule.startswith(CALLERS[function]) else []):
            for pieces in ([file], split(file, range(0, len(file), 41)), split(file, range(len(file)))):
                try:
                    if lengths_of(fed(make(), pieces)) != expected(rule, number):
                        return False
                except (OverflowError, ValueError):  # cuts that are none
                    return False
    return True


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_caught(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, before, after = MUTANTS[mutant]
    function = body(name)
    if before:
        assert function.count(before) == 1, "crules.c has changed its shape: change this mutant with it"
    source = SOURCE.replace(function, function.replace(before, after)) if before else SOURCE
    (tmp_path / "mutant.c").write_text(source)
    library = tmp_path / "mutant.so"
    subprocess.run(["cc", "-std=c11", "-O1", "-fPIC", "-shared", "-o", library, tmp_path / "mutant.c"], check=True)
    ffi = FFI()
    ffi.cdef(CDEF)
    monkeypatch.setattr(rules, "ffi", ffi)
    monkeypatch.setattr(rules, "lib", ffi.dlopen(str(library)))
    rules.words.cache_clear()
    try:
        # Of the processor's time the real ones take a quarter of that.
        assert holds_in_a_child(lambda: agrees(name), cpu_s=1) == (mutant == "nothing changed")
    finally:
        rules.words.cache_clear()
