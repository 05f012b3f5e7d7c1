"""The OpenAPI document in docs/: it is what the code says, and what a daemon replies.

WRITE_OPENAPI=1 python -m pytest tests/api/test_openapi.py     writes it anew, to be read in the diff
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import ValidationError

import openapi
from answering import connect, short_directory
from chunkd.api.server import BODY_BYTES
from chunkd.figures.names import FIGURES, KEPT
from chunkd.figures.totals import Totals
from chunkd.index.history import DAY, inherit, minute_of, moment_key
from chunkd.index.records import pack_totals
from chunkd.index.storage.environment import Store
from chunkd.parameters import PARAMETERS, value_of
from chunkd.replies.figures import Kept, Stats
from daemon import PATIENCE_S, Daemon, Home, opened, timing
from test_commands import filled_registry, settled

DOCUMENT: dict[str, Any] = json.loads(openapi.DOCUMENT.read_text())
QUERIES = (
    "/v1/stats", "/v1/histogram", "/v1/blobs", "/v1/blobs?limit=1", "/v1/blobs?failed=true", "/v1/layers?limit=2",
    "/v1/images", "/v1/images?limit=2", "/v1/images?by=repository", "/v1/freed?references=shop/both:v1",
    "/v1/freed?references=" + quote("shop/api:v*"), "/v1/similar?threshold=0.001", "/v1/diff?to=shop/half:v1",
    "/v1/diff?to=shop/api:v2&from=shop/api:v1", "/v1/diff?to=shop/both:v1&platform=linux/arm64", "/v1/updates",
    "/v1/updates?repository=shop/api", "/v1/history?since=30d", "/v1/history?since=30d&limit=1", "/v1/health",
)  # fmt: skip
REFUSED = (
    ("GET", "/v1/blobs?limit=0", 400), ("GET", "/v1/diff", 400), ("GET", "/v1/images?by=colour", 400),
    ("GET", "/v1/freed?references=shop/none", 400), ("GET", "/v1/stats/", 404), ("POST", "/v1/stats", 405),
    ("GET", "/v1/scan", 405), ("GET", "/v1/blobs?after=" + 5000 * "x", 414),
)  # fmt: skip


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One that serves images, a failed blob, and figures that go back for a month; of a registry, all measured."""
    with short_directory() as root, opened(root) as home:
        home.settings |= {"CHUNKD_MEASURE_ONE_IN": "1"} | timing(settle_s=0.2)
        base = filled_registry(home)
        home.scan(base / "blobs")
        with_past(home)
        bad = base / "blobs/sha256/00" / (64 * "0")
        bad.mkdir(parents=True)
        (bad / "data").write_bytes(b"\x1f\x8b")
        found = settled(home, base / "blobs")
        found.until(lambda stats: stats["images"] and stats["failed_blobs"], "all is there")
        yield found
        home.check()


def with_past(home: Home) -> None:
    store = Store(str(home.state / "index"), readonly=False)
    past = minute_of(time.time_ns()) - 30 * DAY
    inherit(store, [(moment_key(past), pack_totals(Totals()))], time.time_ns())
    store.close()


def asked(daemon: Daemon, method: str, target: str, body: bytes = b"") -> tuple[int, str, bytes]:
    """The status, the type and the content of a reply."""
    with connect(daemon.socket) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(request(method, target, len(body)) + body)
        return received(connection)


def request(method: str, target: str, body_bytes: int = 0) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nContent-Length: {body_bytes}\r\n\r\n".encode()


def received(connection: Any) -> tuple[int, str, bytes]:
    with HTTPResponse(connection) as response:
        response.begin()
        return response.status, response.headers.get_content_type(), response.read()


def schema_for(method: str, target: str, status: int, content_type: str) -> dict[str, Any]:
    """What the document says that the reply is."""
    operation = DOCUMENT["paths"].get(target.partition("?")[0], {}).get(method.lower())
    response = operation and operation["responses"].get(str(status))
    found: dict[str, Any] = response or DOCUMENT["components"]["responses"]["Error"]
    schema: dict[str, Any] = found["content"][content_type]["schema"]
    return schema


def test_the_document_is_what_the_code_says() -> None:
    found = openapi.text()
    if os.environ.get("WRITE_OPENAPI"):
        openapi.DOCUMENT.write_text(found)
    assert found == openapi.DOCUMENT.read_text(), "to write the file anew: WRITE_OPENAPI=1"


def test_the_document_is_valid() -> None:
    from openapi_spec_validator import validate

    validate(DOCUMENT)


def test_the_types_have_each_figure() -> None:
    assert FIGURES.keys() <= Stats.__required_keys__
    assert set(KEPT) == Kept.__required_keys__


def test_a_default_is_what_its_parameter_takes() -> None:
    for name, parameter in PARAMETERS.items():
        found = openapi.parameter_of(name)
        assert found["required"] or value_of(name, parameter.default) == parameter.value(parameter.default)


def test_what_a_daemon_replies_is_what_the_document_says(daemon: Daemon) -> None:
    replies = openapi.Replies(DOCUMENT)
    for target in QUERIES:
        status, content_type, content = asked(daemon, "GET", target)
        assert (status, content_type) == (200, "application/json"), target
        replies.check(schema_for("GET", target, status, content_type), json.loads(content))
    for method, target, expected in REFUSED:
        status, content_type, content = asked(daemon, method, target)
        assert status == expected, (target, content)
        replies.check(schema_for(method, target, status, content_type), json.loads(content))
    for body, expected in ((b'{"verify": true}', 202), (b'{"all": true}', 400), (b" " * (BODY_BYTES + 1), 413)):
        status, content_type, content = asked(daemon, "POST", "/v1/scan", body)
        assert status == expected, content
        replies.check(schema_for("POST", "/v1/scan", status, content_type), json.loads(content))
    status, content_type, content = too_many(daemon, "/v1/similar")
    assert status == 503
    replies.check(schema_for("GET", "/v1/similar", status, content_type), json.loads(content))
    status, content_type, _ = asked(daemon, "GET", "/metrics")
    assert schema_for("GET", "/metrics", status, content_type) == {"type": "string"}
    assert replies.unseen() == set()
    assert {target.partition("?")[0] for target in QUERIES} | {"/v1/scan", "/metrics"} == DOCUMENT["paths"].keys()


def too_many(daemon: Daemon, target: str) -> tuple[int, str, bytes]:
    """The first reply of many questions that can't be answered before the daemon's starter goes on."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(daemon.socket)) for _ in range(6)]
        os.kill(daemon.starter(), signal.SIGSTOP)
        try:
            for connection in connections:
                connection.sendall(request("GET", target))
            ready, _, _ = select.select(connections, [], [], PATIENCE_S)
            found = received(ready[0])
        finally:
            os.kill(daemon.starter(), signal.SIGCONT)
        for connection in connections:
            if connection is not ready[0]:
                received(connection)
    return found


def test_a_field_too_many_or_too_few_is_found(daemon: Daemon) -> None:
    replies = openapi.Replies(DOCUMENT)
    schema = {"$ref": "#/components/schemas/Images"}
    reply = daemon.get("/v1/images")
    replies.check(schema, reply)
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda found: found.pop("order"),
        lambda found: found.update(more=1),
        lambda found: found["images"][0]["stored"].pop("new_bytes"),
        lambda found: found["images"][0]["stored"].update(more_bytes=1),
        lambda found: found["images"][0].update(names="shop/api"),
    )
    for change in changes:
        changed = copy.deepcopy(reply)
        change(changed)
        with pytest.raises(ValidationError):
            replies.check(schema, changed)
    assert ("Images", "order") not in replies.unseen()
    assert ("Freed", "kept") in replies.unseen()
