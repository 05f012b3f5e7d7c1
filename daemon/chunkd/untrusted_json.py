"""JSON that anybody may have written, parsed in bounded memory and time."""

from __future__ import annotations

import json
from typing import Any, Never

MOST_DEPTH = 20
# Strings have two quotes each, and each value has a comma, a colon or an opening bracket before it. So these two bounds
# bound the memory: the costliest values (one object whose keys all differ) take 140 bytes a token, 70 MiB in all. A
# manifest of 4 MiB as registries write them has half as many.
MOST_QUOTES = MOST_TOKENS = 1 << 19

_SHAPE = bytes.maketrans(b"{}", b"[]")
_NOT_A_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class BadJson(ValueError):
    """The bytes are not JSON, or are more than the bounds allow, or an object has a key twice."""


def parse(data: bytes, most_bytes: int) -> Any:
    """The value of a JSON text in UTF-8. Strings in it may hold any character, also surrogates that encode to nothing.

    Raises BadJson for anything else: more than `most_bytes`, deeper than MOST_DEPTH, more values than MOST_TOKENS
    allow, a key that stands twice in one object, NaN, and when there is no memory.
    """
    if len(data) > most_bytes:
        raise BadJson(f"larger than {most_bytes} bytes")
    try:
        _check_bounds(data)
        return json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse)
    except BadJson:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadJson(f"not JSON: {type(error).__name__}") from error


def _check_bounds(data: bytes) -> None:
    """Before anything is parsed, because each value may take many times its bytes."""
    if data.count(b'"') > MOST_QUOTES:
        raise BadJson(f"more than {MOST_QUOTES // 2} strings")
    # Without escaped backslashes and quotes, each quote begins or ends a string.
    outside = b"".join(data.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    if sum(map(outside.count, (b",", b":", b"[", b"{"))) > MOST_TOKENS:
        raise BadJson("too many values")
    shape = outside.translate(_SHAPE, _NOT_A_BRACKET)
    for _ in range(MOST_DEPTH):
        if not shape:
            return
        shape = shape.replace(b"[]", b"")
    if shape:
        raise BadJson(f"nested deeper than {MOST_DEPTH}, or not closed")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadJson("a key stands twice in one object")
    return found


def _refuse(name: str) -> Never:
    raise BadJson(f"{name} is not JSON")
