from __future__ import annotations

import json
import subprocess
import sys

import pytest

from chunkd import untrusted_json
from chunkd.untrusted_json import MOST_DEPTH, MOST_QUOTES, MOST_TOKENS, BadJson

MOST_BYTES = 4 << 20


def parse(text: str | bytes) -> object:
    return untrusted_json.parse(text.encode() if isinstance(text, str) else text, MOST_BYTES)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"a": [1, -2.5, True, None, "é\U0001f600"], "b": {"a": {}}},
        {'"': '\\"', "\\": '\\\\"[[[[', "]": "}}}}"},
        "[" * 100,
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_is_within_the_bounds_is_as_json_has_it(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1,]", "{} {}", "nope", '{"a":1', '"a', "'a'", "[}", "]["),
        *("NaN", "[Infinity]", "-Infinity", '["\x00"]', "1" * 5000),
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "\\u0061": 2}}]',
        b"\xff\xfe[\0]\0",
        b"\xef\xbb\xbf[]",
        b'["\xff"]',
    ],
)
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadJson):
        parse(text)


def test_the_depth_is_bounded() -> None:
    def nested(depth: int) -> str:
        return '[{"a":' * (depth // 2) + "[]" + "}]" * (depth // 2)

    assert parse(nested(MOST_DEPTH - 2)) is not None
    assert parse("[" * MOST_DEPTH + "]" * MOST_DEPTH) is not None
    for text in (nested(MOST_DEPTH), "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "[" * 1_000_000):
        with pytest.raises(BadJson):
            parse(text)


def test_bytes_strings_and_values_are_bounded() -> None:
    assert parse('"' + "a" * (MOST_BYTES - 2) + '"') is not None
    assert parse("[" + "1," * (MOST_TOKENS - 2) + "1]") is not None
    many = "[" + '"",' * (MOST_QUOTES // 2 - 1) + '""]'
    assert parse(many) is not None
    for text in ('"' + "a" * (MOST_BYTES - 1) + '"', "[" + "1," * MOST_TOKENS + "1]", many.replace("]", ',""]')):
        with pytest.raises(BadJson):
            parse(text)


# The costliest values for their tokens, as far as we know: objects of one key, of keys that differ, of none; strings
# that take four bytes a character; numbers.
COSTLY = {
    "objects of one key": lambda: '[{"a":9e9}' + ',{"a":9e9}' * (MOST_TOKENS // 3 - 2) + "]",
    "keys that differ": lambda: "{" + ",".join(f'"{at:x}":9e9' for at in range(MOST_TOKENS // 2 - 2)) + "}",
    "objects of two keys": lambda: "[" + ",".join(f'{{"{at:x}":"{at:x}"}}' for at in range(MOST_TOKENS // 4)) + "]",
    "empty objects": lambda: "[{}" + ",{}" * (MOST_TOKENS // 2 - 2) + "]",
    "wide characters": lambda: '["\U0001f600' + "a" * ((4 << 20) - 20) + '"]',
    "strings": lambda: "[" + ",".join(f'"{at:05x}"' for at in range(MOST_QUOTES // 2)) + "]",
    "quotes": lambda: '"' * MOST_QUOTES,
    "brackets": lambda: "[" * (4 << 20),
    "numbers": lambda: "[9e9" + ",9e9" * (MOST_TOKENS - 2) + "]",
}

MEASURE = """
import sys
from chunkd import untrusted_json
data = sys.stdin.buffer.read()
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    untrusted_json.parse(data, 4 << 20)
    print("parsed", end=" ")
except untrusted_json.BadJson as error:
    assert not isinstance(error.__cause__, MemoryError)
    print("refused", end=" ")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("shape", COSTLY)
def test_memory_is_bounded(shape: str) -> None:
    data = COSTLY[shape]().encode()
    assert len(data) <= MOST_BYTES
    done = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, check=True, timeout=60)
    result, kib = done.stdout.split()
    assert (result == b"refused") == (shape in ("brackets", "quotes"))
    assert int(kib) <= 80 << 10, f"{int(kib) >> 10} MiB"
