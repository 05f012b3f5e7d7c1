"""Each format of a line, and what is not one."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chunkd.pulls import log_lines
from chunkd.pulls.log_lines import Kind, Other, Pull, Unread
from lines import FORMATS, line_of
from pull_oracle import Get

DIGEST = "sha256:" + "ab" * 32
GET = Get("2026-11-28", "192.0.2.7", "team/app", DIGEST, 1234)
ACCESS = line_of(GET, "combined").decode()
JSON = json.loads(line_of(GET, "json"))


def read(line: str) -> Pull | Other | Unread:
    return log_lines.read(line.encode())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("redirected", [False, True])
def test_each_format(form: str, redirected: bool) -> None:
    at_s = int(datetime(2026, 11, 28, 12, 0, 9, tzinfo=UTC).timestamp())
    structured = form in ("text", "json", "trace")
    expected = Pull(at_s, b"192.0.2.7", b"team/app", Kind.BLOB, DIGEST.encode(), 1234, redirected, structured)
    assert log_lines.read(line_of(GET._replace(redirected=redirected), form, 9)) == expected
    by_tag = log_lines.read(line_of(GET._replace(reference="v1"), form))
    assert isinstance(by_tag, Pull)
    assert (by_tag.kind, by_tag.reference) == (Kind.MANIFEST, b"v1")


def test_lines_that_registries_wrote() -> None:
    """Of docker-registry 2.8.2, both for one request; of nginx with its format `main`."""
    target = f"/v2/foo/blobs/{DIGEST}"
    fields = (
        'time="2026-11-28T14:06:05.145824516Z" level=info msg="response completed" go.version=go1.19.8'
        ' http.request.host="127.0.0.1:5999" http.request.id=161056fa-027a-4283-82f4-222bcad91407'
        f' http.request.method=GET http.request.remoteaddr=10.1.2.3 http.request.uri="{target}"'
        r' http.request.useragent="a \"b\" http.response.written=1" http.response.contenttype="application/json"'
        ' http.response.duration="878.778µs" http.response.status=200 http.response.written=2'
    )
    found = read(fields)
    assert isinstance(found, Pull)
    assert (found.client, found.served_bytes, found.structured) == (b"10.1.2.3", 2, True)
    found = read(f'127.0.0.1 - - [28/Nov/2026:14:06:05 +0000] "GET {target} HTTP/1.1" 200 2 "" "curl/7.88.1"')
    assert isinstance(found, Pull)
    assert (found.client, found.served_bytes, found.structured) == (b"127.0.0.1", 2, False)
    nginx = f'192.0.2.1 - bob [28/Nov/2026:15:06:05 +0100] "GET {target} HTTP/2.0" 206 7 "-" "docker" "2001:db8::1"'
    again = read(nginx)
    assert isinstance(again, Pull)
    assert (again.client, again.served_bytes, again.at_s) == (b"2001:db8::1", 7, found.at_s)
    without = read(nginx.replace("2001:db8::1", "-"))
    assert isinstance(without, Pull)
    assert without.client == b"192.0.2.1"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1:80", b"192.0.2.1"),
        ("[2001:db8::1]:80", b"2001:db8::1"),
        ("2001:db8::1", b"2001:db8::1"),
        ("192.0.2.1:80, 10.0.0.1", b"192.0.2.1"),
        ("3fd3e5a2", b"3fd3e5a2"),
    ],
)
def test_one_client_has_many_ports(address: str, client: bytes) -> None:
    found = read(json.dumps(JSON | {"http.request.remoteaddr": address}))
    assert isinstance(found, Pull)
    assert found.client == client


@pytest.mark.parametrize(
    "line",
    [
        ACCESS.replace("GET", "HEAD"),
        ACCESS.replace("GET", "PUT"),
        ACCESS.replace(" 200 ", " 404 "),
        ACCESS.replace(" 200 ", " 304 "),
        ACCESS.replace("/blobs/", "/blobs/uploads/"),
        ACCESS.replace(f"/v2/team/app/blobs/{DIGEST}", "/v2/"),
        ACCESS.replace(f"/v2/team/app/blobs/{DIGEST}", "/v2/team/app/tags/list"),
        'time="2026-11-28T14:06:03.15Z" level=info msg="redis not configured" go.version=go1.19.8',
        json.dumps(JSON | {"msg": "authorized request"}),
    ],
)
def test_what_is_not_a_pull(line: str) -> None:
    assert read(line) is Other.NOT_A_PULL


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", Unread.UNKNOWN_FORMAT),
        ("junk", Unread.UNKNOWN_FORMAT),
        ("{", Unread.UNKNOWN_FORMAT),
        ("{}", Unread.UNKNOWN_FORMAT),
        ("{" * 60_000, Unread.UNKNOWN_FORMAT),
        ("time=", Unread.UNKNOWN_FORMAT),
        (ACCESS[:90], Unread.UNKNOWN_FORMAT),
        (ACCESS + "x" * log_lines.MOST_LINE_BYTES, Unread.TOO_LONG),
        (ACCESS.replace("team", "te\x1b[2Jam"), Unread.CONTROL_CHARACTERS),
        (ACCESS.replace("team", "te\0am"), Unread.CONTROL_CHARACTERS),
        (json.dumps(JSON | {"http.request.uri": f"/v2/a\x1b/blobs/{DIGEST}"}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"http.request.uri": 7}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"http.request.uri": "/v2/\ud800/blobs/x"}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"http.response.written": 1e999}), Unread.UNKNOWN_FORMAT),
        (json.dumps(JSON | {"http.response.written": 1 << 60}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"http.response.written": -1}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"time": 7}), Unread.BAD_VALUE),
        (json.dumps(JSON | {"time": "0001-01-01T00:00:00+14:00"}), Unread.BAD_VALUE),
        (ACCESS.replace("2026", "0000"), Unread.BAD_VALUE),
        (ACCESS.replace("2026", "9999"), Unread.BAD_VALUE),
        (ACCESS.replace("Nov", "Nop"), Unread.BAD_VALUE),
        (ACCESS.replace("28/", "31/"), Unread.BAD_VALUE),
        (ACCESS.replace(" 1234 ", f" {10**16 - 1} "), Unread.BAD_VALUE),
        (ACCESS.replace("team", "t" * 300), Unread.BAD_VALUE),
        (ACCESS.replace("192.0.2.7", "1" * 300), Unread.UNKNOWN_FORMAT),
    ],
)
def test_what_is_not_read(line: str, why: Unread) -> None:
    assert read(line) is why


pieces = st.sampled_from([
    b'"', b"\\", b"[", b"]", b" ", b"{", b"}", b"time=", b"GET", b"/v2/", b"/blobs/", b"x", b"\0", b"\xff", b"=", b":",
    b"28/Nov/2026:12:00:00 +0000", b"200", b'{"time":', b"9" * 20,
])  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(pieces, max_size=40).map(b"".join)))
@example(line_of(GET, "combined").replace(b"+0000", b"+9999"))
def test_any_bytes_have_an_answer(line: bytes) -> None:
    assert isinstance(log_lines.read(line), Pull | Other | Unread)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 65_000,
        b'"' * 65_000,
        b'\\"' * 32_000,
        b"a " * 32_000,
        b'a [28/Nov/2026:12:00:00 +0000] "' + b'\\"' * 30_000,
        b'a [28/Nov/2026:12:00:00 +0000] "GET /v2' + b"/blobs" * 10_000 + b' HTTP/1.1" 200 1',
        b'a [28/Nov/2026:12:00:00 +0000] "GET /v2/' + b"a" * 60_000 + b' HTTP/1.1" 200 1 "" "" "' + b"1," * 999 + b'"',
        b"time=" + b'"\\"' * 20_000,
        b"time=x " * 9000,
        b"{" + b'"a":[' * 10_000,
    ],
)
def test_no_line_takes_long(line: bytes) -> None:
    began = time.perf_counter()
    values = [log_lines.read(line) for _ in range(5)]
    assert time.perf_counter() - began < 1
    assert not any(isinstance(value, Pull) for value in values)
