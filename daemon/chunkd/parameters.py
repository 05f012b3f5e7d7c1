"""What may be asked of a daemon or of an index: each parameter, its default, and the texts that it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from chunkd.errors import UsageError


class Parameter(NamedTuple):
    """It takes the printable texts that `pattern` matches as a whole, and `must_be` says so in words. `value` makes the
    value of such a text.
    """

    default: str
    must_be: str
    pattern: str
    value: Callable[[str], Any] = str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A cursor may hold an LMDB key, at most 511 bytes, in hex.
_CURSOR = ("at most 1100 printable ASCII characters", "[ -~]{0,1100}")
_BOOLEAN = ("true or false", "true|false", "true".__eq__)
_REFERENCES = "printable references, separated by spaces, 3000 characters at most"
_REFERENCE = ("one printable reference, 3000 characters at most", "(?=.{1,3000}$) *[^ ]+ *")
_PLATFORM = r"[A-Za-z0-9._-]{1,32}(/[A-Za-z0-9._-]{1,32}){0,2}"

PARAMETERS = {
    "after": Parameter("", *_CURSOR),
    "by": Parameter("image", "image or repository", "image|repository"),
    "failed": Parameter("false", *_BOOLEAN),
    "from": Parameter("", _REFERENCES, "(?=.*[^ ]).{1,3000}|", _words),
    "keep_last": Parameter("0", "a number from 0 to 999999", "[0-9]{1,6}", int),
    "limit": Parameter("100", "a number from 1 to 1000", "0*([1-9][0-9]{0,2}|1000)", int),
    "platform": Parameter(
        "", "an operating system, and its architecture and variant, such as linux/arm64", f"({_PLATFORM})?"
    ),
    "references": Parameter("", _REFERENCES, "(?=.*[^ ]).{1,3000}", _words),
    "repository": Parameter("", _REFERENCE[0], f"({_REFERENCE[1]})?", str.strip),
    "since": Parameter("7d", *_CURSOR),
    "threshold": Parameter(
        "0.5", "a fraction above 0, at most 1, with three decimals at most",
        r"(?!0?\.0+$)(0?\.[0-9]{1,3}|1(\.0{1,3})?)", lambda text: round(1000 * float(text)),
    ),
    "to": Parameter("", *_REFERENCE, str.strip),
}  # fmt: skip


def value_of(name: str, text: str) -> Any:
    """The value of a parameter, of a text that comes from anybody. Raises UsageError if it does not take that."""
    parameter = PARAMETERS[name]
    if not (text.isprintable() and re.fullmatch(parameter.pattern, text)):
        raise UsageError(f"`{name}` must be {parameter.must_be}")
    return parameter.value(text)
