"""One line of a registry's log as a pull: the access logs of distribution and nginx, and the fields that distribution
logs with each response, as text or as JSON.

Lines are hostile. A line costs time in proportion to its length, and nothing of it is kept but what Pull holds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from chunkd import untrusted_json

MOST_LINE_BYTES = 64 << 10
MOST_NAME_BYTES = 255
MOST_BYTES = 1 << 50
# In the year 2242.
END_S = 1 << 33


class Kind(Enum):
    BLOB = "blobs"
    MANIFEST = "manifests"


class Unread(Enum):
    """Why a line was not read. The value is its name in JSON."""

    TOO_LONG = "too_long"
    CONTROL_CHARACTERS = "control_characters"
    UNKNOWN_FORMAT = "unknown_format"
    BAD_VALUE = "bad_value"
    CLOCK_BACK = "clock_went_back"


class Other(Enum):
    """A line that was read and is not a pull."""

    NOT_A_PULL = "not a pull"
    TWICE = "twice"


class Pull(NamedTuple):
    """A GET of a blob or a manifest that was answered. `reference` is a digest, or of a manifest also a tag.

    `served_bytes` are those of the reply's body. `redirected`: the client was sent elsewhere for them. `structured`:
    the line has named fields, and the same request may have a line of the access log too.
    """

    at_s: int
    client: bytes
    repository: bytes
    kind: Kind
    reference: bytes
    served_bytes: int
    redirected: bool
    structured: bool


# Nothing here matches a control character. Within quotes Go writes \" and nginx \x22. No two branches begin alike, so
# each match takes linear time.
_QUOTED = rb'"([^"\\\x00-\x1f\x7f]*(?:\\[ -~][^"\\\x00-\x1f\x7f]*)*)"'
_ANY = rb"[ -~\x80-\xff]*"
_ACCESS = re.compile(
    rb"([!-~\x80-\xff]{1,256}) [^\[\x00-\x1f\x7f]*\[([ -Z^-~]{20,32})\] " + _QUOTED + rb" (\d{3}) (\d{1,16}|-)"
    rb"(?: " + _QUOTED + rb" " + _QUOTED + rb"(?: " + _QUOTED + rb")?)?(?: " + _ANY + rb")?"
)  # fmt: skip
_FIELD = re.compile(rb"([A-Za-z_.]+)=(?:" + _QUOTED + rb"|([!#-~\x80-\xff][!-~\x80-\xff]*))(?: |\Z)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

_KINDS = {kind.value.encode(): kind for kind in Kind}
_REPLIES = (200, 206)
_REDIRECTS = (301, 302, 303, 307, 308)
_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}


def read(line: bytes) -> Pull | Other | Unread:
    """What a line says, whatever it is; by its content alone. A line has no line end."""
    if len(line) > MOST_LINE_BYTES:
        return Unread.TOO_LONG
    if line.startswith(b"{"):
        return _of_json(line)
    found = _of_text(line) if line.startswith(b"time=") else _of_access(line)
    return Unread.CONTROL_CHARACTERS if found is Unread.UNKNOWN_FORMAT and _CONTROL.search(line) else found


def _of_access(line: bytes) -> Pull | Other | Unread:
    found = _ACCESS.fullmatch(line)
    if found is None:
        return Unread.UNKNOWN_FORMAT
    address, at, request, status, size, _, _, forwarded = found.groups()
    words = request.split(b" ")
    if len(words) != 3:
        return Unread.UNKNOWN_FORMAT
    if forwarded and forwarded != b"-":
        address = forwarded
    try:
        at_s = _access_time(at)
    except (ValueError, OverflowError):
        return Unread.BAD_VALUE
    served_bytes = 0 if size == b"-" else int(size)
    return _pull(at_s, address, words[0], words[1], int(status), served_bytes, structured=False)


def _of_text(line: bytes) -> Pull | Other | Unread:
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(line):
        found = _FIELD.match(line, at)
        if found is None:
            return Unread.UNKNOWN_FORMAT
        name, quoted, bare = found.groups()
        fields.setdefault(name, quoted if bare is None else bare)
        at = found.end()
    if not fields.get(b"msg", b"").startswith(b"response completed"):
        return Other.NOT_A_PULL
    try:
        return _pull(
            _iso_time(fields[b"time"].decode()), fields[b"http.request.remoteaddr"], fields[b"http.request.method"],
            fields[b"http.request.uri"], int(fields[b"http.response.status"]), int(fields[b"http.response.written"]),
            structured=True,
        )  # fmt: skip
    except KeyError:
        return Unread.UNKNOWN_FORMAT
    except (ValueError, OverflowError):
        return Unread.BAD_VALUE


def _of_json(line: bytes) -> Pull | Other | Unread:
    """An object as distribution logs it, or as in the published traces of IBM's registries, which have no `msg`."""
    try:
        fields: dict[str, Any] = untrusted_json.parse(line, MOST_LINE_BYTES)
    except untrusted_json.BadJson:
        return Unread.UNKNOWN_FORMAT
    message = fields.get("msg", fields.get("message"))
    if message is not None and not str(message).startswith("response completed"):
        return Other.NOT_A_PULL
    try:
        at = fields["time"] if "time" in fields else fields.get("timestamp") or fields["@timestamp"]
        address, method, target = (
            fields[f"http.request.{name}"].encode() for name in ("remoteaddr", "method", "uri")
        )  # fmt: skip
        if _CONTROL.search(target):
            return Unread.BAD_VALUE
        return _pull(
            _iso_time(at), address, method, target, int(fields["http.response.status"]),
            int(fields["http.response.written"]), structured=True,
        )  # fmt: skip
    except KeyError:
        return Unread.UNKNOWN_FORMAT
    except (AttributeError, TypeError, ValueError, OverflowError):
        return Unread.BAD_VALUE


def _pull(
    at_s: int, address: bytes, method: bytes, target: bytes, status: int, served_bytes: int, *, structured: bool
) -> Pull | Other | Unread:
    if not (0 <= served_bytes <= MOST_BYTES and 0 <= at_s < END_S):
        return Unread.BAD_VALUE
    redirected = status in _REDIRECTS
    if method != b"GET" or not (redirected or status in _REPLIES):
        return Other.NOT_A_PULL
    parts = target.partition(b"?")[0].removeprefix(b"/").rsplit(b"/", 2)
    if len(parts) != 3 or parts[1] not in _KINDS or not parts[0].startswith(b"v2/"):
        return Other.NOT_A_PULL
    repository, reference = parts[0][3:], parts[2].replace(b"%3A", b":").replace(b"%3a", b":")
    client = _client(address)
    if not (client and repository and reference) or max(map(len, (client, repository, reference))) > MOST_NAME_BYTES:
        return Unread.BAD_VALUE
    return Pull(at_s, client, repository, _KINDS[parts[1]], reference, served_bytes, redirected, structured)


def _client(address: bytes) -> bytes:
    """The first address of a list as `X-Forwarded-For` has it, without its port."""
    first = address.partition(b",")[0].strip()
    host, _, port = first.rpartition(b":")
    if port.isdigit() and (host.endswith(b"]") or b":" not in host):
        first = host
    return first.strip(b"[]")


def _access_time(text: bytes) -> int:
    """Of `28/Nov/2026:14:06:05 +0000`, in seconds since 1970."""
    if not (text[14:15] == text[17:18] == b":" and text[15:17].isdigit() and text[18:20].isdigit()):
        raise ValueError(text)
    return _access_hour(text[:14], text[20:]) + 60 * int(text[15:17]) + int(text[18:20])


@lru_cache(1024)
def _access_hour(hour: bytes, zone: bytes) -> int:
    date, hours = hour.split(b":")
    day, month, year = date.split(b"/")
    if len(zone) != 6 or zone[:2] not in (b" +", b" -") or month not in _MONTHS:
        raise ValueError(hour)
    zone = zone[1:]
    at = datetime(int(year), _MONTHS[month], int(day), int(hours), tzinfo=UTC)
    ahead_s = 60 * (60 * int(zone[1:3]) + int(zone[3:5]))
    return int(at.timestamp()) - (ahead_s if zone[:1] == b"+" else -ahead_s)


def _iso_time(text: str) -> int:
    """Of `2026-11-28T14:06:03.152211977Z`, in seconds since 1970. Without a zone it is UTC."""
    if not 19 <= len(text) <= 40 or not text[17:19].isdigit():
        raise ValueError(text)
    zone = text[19:].lstrip(".,0123456789")
    return _iso_minute(text[:16], zone) + int(text[17:19])


@lru_cache(1024)
def _iso_minute(minute: str, zone: str) -> int:
    at = datetime.fromisoformat(f"{minute}:00{zone or 'Z'}")
    return int(at.timestamp())
