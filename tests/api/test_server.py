"""The daemon's end of the socket: every route and refusal, hostile clients, and how the socket is bound."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from answering import (
    PATIENCE_S,
    STATS,
    FakeAnswers,
    connect,
    exchange,
    open_descriptors,
    read_line_of_json,
    read_to_end,
    running,
    short_directory,
)
from chunkd.api import server as endpoint_module
from chunkd.api import unix_socket
from chunkd.api.server import BODY_BYTES, CONNECTIONS, HEAD_BYTES, REQUEST_LINE_BYTES, Endpoint
from chunkd.errors import IndexBusy, SocketUnusable, UsageError
from counts import counted


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "d" / "chunkd.sock"


@pytest.fixture
def answers() -> FakeAnswers:
    return FakeAnswers()


@pytest.fixture
def served(path: Path, answers: FakeAnswers) -> Iterator[Endpoint]:
    with running(path, answers) as endpoint:
        yield endpoint


def parsed(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, content = raw.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    assert status_line.startswith("HTTP/1.1 "), raw
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status_line.split(" ")[1]), headers, content


def say(path: Path, method: str, target: str, body: bytes = b"", extra: str = "") -> tuple[int, dict[str, str], Any]:
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}"
    head += f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n"
    status, headers, content = parsed(exchange(path, head.encode() + body))
    assert headers["content-type"] == "application/json"
    if method == "HEAD":
        assert content == b""
        return status, headers, None
    assert int(headers["content-length"]) == len(content)
    return status, headers, json.loads(content)


# --- routes -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
def test_the_routes_answer(path: Path, answers: FakeAnswers) -> None:
    assert say(path, "GET", "/v1/stats")[::2] == (200, STATS | {"padding": ""})
    assert say(path, "GET", "/v1/health")[::2] == (200, {"state": "ok", "reasons": []})
    assert say(path, "GET", "/v1/blobs")[::2] == (200, {"blobs": [], "next": None})
    assert say(path, "GET", "/v1/blobs?after=" + "b" * 1100)[0] == 200
    assert say(path, "GET", "/v1/blobs?after=sha256%3Aab&limit=1000&failed=true")[0] == 200
    assert say(path, "POST", "/v1/scan")[::2] == (202, {"asked": True})
    assert say(path, "POST", "/v1/scan", b'{"verify":true,"retry_failed":true}')[0] == 202
    assert say(path, "POST", "/v1/scan", b'{"accept":true}')[0] == 202
    assert say(path, "HEAD", "/v1/stats")[0] == 200
    assert say(path, "GET", "http://localhost/v1/stats")[0] == 200
    assert answers.asked == [
        ("stats",),
        ("health",),
        ("blobs", "", 100, False),
        ("blobs", "b" * 1100, 100, False),
        ("blobs", "sha256:ab", 1000, True),
        ("scan", False, False, False),
        ("scan", True, False, True),
        ("scan", False, True, False),
        ("stats",),
        ("stats",),
    ]


@pytest.mark.usefixtures("served")
def test_the_routes_of_images(path: Path, answers: FakeAnswers) -> None:
    assert say(path, "GET", "/v1/images?by=repository&after=3-100")[0] == 200
    assert say(path, "GET", "/v1/freed?references=shop/api:v3*%20b%C3%BC:1&keep_last=5&limit=7")[0] == 200
    assert say(path, "GET", "/v1/similar")[0] == say(path, "GET", "/v1/similar?threshold=1.0")[0] == 200
    assert say(path, "GET", "/v1/diff?to=b:2&from=a:1%20a:2&platform=linux/arm64")[0] == 200
    assert say(path, "GET", "/v1/diff?to=b:2&limit=7")[0] == 200
    assert say(path, "GET", "/v1/updates?repository=a/b:latest&platform=linux/arm64&limit=7")[0] == 200
    assert say(path, "GET", "/v1/updates")[0] == 200
    assert answers.asked == [
        ("images", "3-100", 100, "repository"),
        ("freed", "", 7, ("shop/api:v3*", "b\u00fc:1"), 5),
        ("similar", "", 100, 500),
        ("similar", "", 100, 1000),
        ("diff", "", 100, ("a:1", "a:2"), "b:2", "linux/arm64"),
        ("diff", "", 7, (), "b:2", ""),
        ("updates", "", 7, "a/b:latest", "linux/arm64"),
        ("updates", "", 100, "", ""),
    ]


@pytest.mark.usefixtures("served")
def test_head_says_what_get_says(path: Path) -> None:
    got, head = say(path, "GET", "/v1/stats")[1], say(path, "HEAD", "/v1/stats")[1]
    del got["date"], head["date"]
    assert got == head


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("GET", "/v1/stats/", b"", 404),
        ("BREW", "/v1/coffee", b"", 404),
        ("GET", "http://[/v1/stats", b"", 400),
        ("GET", "/v1/stats?x=1", b"", 400),
        ("GET", "/v1/health?x=1", b"", 400),
        ("POST", "/v1/scan?verify=true", b"", 400),
        ("GET", "/v1/blobs?x", b"", 400),
        ("GET", "/v1/blobs?" + "&".join("x" * 9), b"", 400),
        ("GET", "/v1/blobs?after=%ff", b"", 400),
        ("GET", "/v1/blobs?after=a&after=b", b"", 400),
        ("GET", "/v1/blobs?after=%00", b"", 400),
        ("GET", "/v1/blobs?after=%C3%A9", b"", 400),
        ("GET", "/v1/blobs?after=" + "a" * 1101, b"", 400),
        ("GET", "/v1/blobs?limit=0", b"", 400),
        ("GET", "/v1/blobs?limit=1001", b"", 400),
        ("GET", "/v1/blobs?limit=-1", b"", 400),
        ("GET", "/v1/blobs?limit=%D9%A3", b"", 400),
        ("GET", "/v1/layers?failed=true", b"", 400),
        ("GET", "/v1/images?by=team", b"", 400),
        ("GET", "/v1/freed", b"", 400),
        ("GET", "/v1/freed?references=%20", b"", 400),
        ("GET", "/v1/freed?references=a%00", b"", 400),
        ("GET", "/v1/freed?references=a&keep_last=-1", b"", 400),
        ("GET", "/v1/freed?references=a&keep_last=x", b"", 400),
        ("GET", "/v1/similar?threshold=0", b"", 400),
        ("GET", "/v1/similar?threshold=.000", b"", 400),
        ("GET", "/v1/similar?threshold=1.001", b"", 400),
        ("GET", "/v1/similar?threshold=nan", b"", 400),
        ("GET", "/v1/diff", b"", 400),
        ("GET", "/v1/diff?from=a", b"", 400),
        ("GET", "/v1/diff?to=a%20b", b"", 400),
        ("GET", "/v1/updates?repository=a%20b", b"", 400),
        ("GET", "/v1/updates?repository=%07", b"", 400),
        ("GET", "/v1/updates?platform=linux/", b"", 400),
        ("GET", "/v1/diff?to=a&from=%20", b"", 400),
        ("GET", "/v1/diff?to=a&platform=linux/", b"", 400),
        ("GET", "/v1/diff?to=a&platform=a/b/c/d", b"", 400),
        ("GET", "/v1/layers?limit=1001", b"", 400),
        ("GET", "/v1/layers?after=%00", b"", 400),
        ("GET", "/v1/blobs?failed=yes", b"", 400),
        ("POST", "/v1/scan", b"{", 400),
        ("POST", "/v1/scan", b"\xff", 400),
        ("POST", "/v1/scan", b"[" * BODY_BYTES, 400),
        ("POST", "/v1/scan", b"[]", 400),
        ("POST", "/v1/scan", b'{"verfiy":true}', 400),
        ("POST", "/v1/scan", b'{"verify":1}', 400),
        ("POST", "/v1/scan", b'{"verify":null}', 400),
    ],
)
def test_a_bad_request_is_told_why(
    path: Path, answers: FakeAnswers, method: str, target: str, body: bytes, status: int
) -> None:
    found, _, reply = say(path, method, target, body)
    assert (found, list(reply)) == (status, ["error"])
    assert answers.asked == []


@pytest.mark.usefixtures("served")
def test_a_wrong_method_is_told_the_right_one(path: Path) -> None:
    status, headers, reply = say(path, "DELETE", "/v1/stats")
    assert (status, headers["allow"], list(reply)) == (405, "GET, HEAD", ["error"])
    assert say(path, "GET", "/v1/scan")[1]["allow"] == "POST"


@pytest.mark.usefixtures("served")
def test_an_error_of_chunkds_is_503_with_its_words(path: Path, answers: FakeAnswers) -> None:
    answers.error = IndexBusy("/i", "pid 7")
    status, _, reply = say(path, "GET", "/v1/stats")
    assert (status, reply) == (503, {"error": str(answers.error)})
    answers.error = UsageError("`after` 'x' is no cursor")
    status, _, reply = say(path, "GET", "/v1/blobs?after=x")
    assert (status, reply) == (400, {"error": str(answers.error)})


@pytest.mark.usefixtures("served")
def test_a_bug_is_500_and_its_traceback_is_in_the_log(
    path: Path, answers: FakeAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    answers.error = ZeroDivisionError("secret")
    status, _, reply = say(path, "GET", "/v1/stats")
    assert (status, list(reply)) == (500, ["error"])
    assert "secret" not in reply["error"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
    answers.error = None
    assert say(path, "GET", "/v1/stats")[0] == 200


@pytest.mark.usefixtures("served")
def test_requests_are_logged_at_debug_level_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    say(path, "GET", "/v1/nothing%0a")
    exchange(path, b"junk\x1b[31m\r\n\r\n")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "/v1/nothing%0a" in caplog.text
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records)


@pytest.mark.usefixtures("served")
def test_a_connection_is_kept_for_the_next_request(path: Path, answers: FakeAnswers) -> None:
    request = b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    missing = b"GET /missing HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    with connect(path) as connection:
        for _ in range(3):
            connection.sendall(request)
            assert parsed(read_line_of_json(connection))[0] == 200
        connection.sendall(missing + request + request.replace(b"Host: x", b"Connection: close"))
        assert read_to_end(connection).count(b"HTTP/1.1 200 OK") == 2
    assert len(answers.asked) == 5
    assert b"Connection: close" in exchange(path, b"GET /v1/health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")


@pytest.mark.usefixtures("served")
def test_curl_agrees(path: Path) -> None:
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("there is no curl on this machine")
    base = [curl, "-sS", "--max-time", "20", "--unix-socket", str(path)]

    def run(*arguments: str) -> str:
        return subprocess.run([*base, *arguments], check=True, capture_output=True, text=True).stdout

    assert json.loads(run("http://d/v1/stats"))["layers"] == 3
    assert "200 OK" in run("--head", "http://d/v1/stats")
    assert json.loads(run("-d", '{"verify":true}', "http://d/v1/scan")) == {"asked": True}
    assert json.loads(run("-X", "POST", "http://d/v1/scan")) == {"asked": True}
    assert json.loads(run("-d", '{"accept":true}', "-H", "Expect: 100-continue", "http://d/v1/scan"))["asked"]
    assert run("-o", "/dev/null", "-w", "%{http_code}", "-d", "x" * 20000, "http://d/v1/scan") == "413"
    assert (
        run("-o", "/dev/null", "-w", "%{http_code}", "-H", "Transfer-Encoding: chunked", "-d", "x", "http://d/v1/scan")
        == "411"
    )
    assert run("http://d/v1/health", "http://d/v1/health").count("ok") == 2


# --- hostile clients ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * REQUEST_LINE_BYTES + b" HTTP/1.1\r\n\r\n", 414),
        (b"a" * (1 << 22), 414),
        (b"GET /v1/stats HTTP/1.1\r\nX: " + b"a" * HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /v1/stats HTTP/1.1\r\n" + b"X: y\r\n" * (1 << 18), 431),
        (b"GET /v1/stats HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES + 1), 413),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: 9%s\r\n\r\n" % (b"9" * 5000), 413),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n", 413),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: +1\r\n\r\n{", 400),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n{", 400),
        (b"POST /v1/scan HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/scan HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v1/scan HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}", 411),
        (b"GET /v1/stats HTTP/2.0\r\n\r\n", 505),
        (b"GET /v1/stats HTTP/one\r\n\r\n", 400),
        (b"GET /v1/stats extra HTTP/1.1\r\n\r\n", 400),
        (b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\n\n", 400),
        (b"\x00\n\n", 400),
    ],
)
def test_what_breaks_the_framing_is_refused_and_the_connection_ends(
    path: Path, answers: FakeAnswers, request_bytes: bytes, status: int
) -> None:
    found, headers, content = parsed(exchange(path, request_bytes))
    assert (found, headers["connection"]) == (status, "close")
    assert list(json.loads(content)) == ["error"]
    assert answers.asked == []
    assert say(path, "GET", "/v1/stats")[0] == 200


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "half", [b"", b"GET /v1/st", b"GET /v1/stats HTTP/1.1\r\n", b"POST /v1/scan HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_client_gone_half_way_asked_nothing(path: Path, answers: FakeAnswers, half: bytes) -> None:
    with connect(path) as connection:
        connection.sendall(half)
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == b""
    assert answers.asked == []


@pytest.mark.usefixtures("served")
def test_a_client_that_does_not_wait_for_its_answer_is_no_error(
    path: Path, answers: FakeAnswers, caplog: pytest.LogCaptureFixture
) -> None:
    answers.gate = threading.Event()
    for _ in range(20):
        with connect(path) as connection:
            connection.sendall(b"GET /v1/stats HTTP/1.1\r\n\r\n")
    answers.gate.set()
    assert say(path, "GET", "/v1/stats")[0] == 200
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "said", [b"", b"G", b"GET /v1/stats HTTP/1.1\r\nX", b"POST /v1/scan HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"]
)
def test_a_client_that_falls_silent_is_let_go(path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "REQUEST_TIMEOUT_S", 3.0 if said else 0.1)
    reply = exchange(path, said)
    assert (parsed(reply)[0] == 408) if said else (reply == b"")


@pytest.mark.usefixtures("served")
def test_dripping_bytes_do_not_put_off_the_deadline(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "REQUEST_TIMEOUT_S", 3.0)
    with connect(path) as connection:
        connection.settimeout(0.02)
        reply = b""
        for _ in range(int(PATIENCE_S / 0.02)):
            try:
                with contextlib.suppress(ConnectionError):  # it has closed since the last look: the reply is there
                    connection.send(b"G")
                reply = connection.recv(65536)
            except TimeoutError:
                continue
            break
    assert parsed(reply)[0] == 408


@pytest.mark.usefixtures("served")
def test_a_client_that_reads_nothing_is_let_go(
    path: Path, answers: FakeAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "REPLY_TIMEOUT_S", 0.1)
    answers.padding = "x" * (8 << 20)
    before = set(threading.enumerate())
    with connect(path) as connection:
        connection.sendall(b"GET /v1/stats HTTP/1.1\r\n\r\n")
        connection.recv(1)  # so its thread has been made, and is at the reply
        for thread in set(threading.enumerate()) - before:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("said", [b"", b"GET /v1/stats HTTP/1.1\r\n"])
def test_two_hundred_silent_clients_do_not_hide_the_figure(path: Path, answers: FakeAnswers, said: bytes) -> None:
    descriptors, threads = open_descriptors(), threading.active_count()
    with running(path, answers):
        silent = []
        for _ in range(200):
            silent.append(connect(path))
            silent[-1].sendall(said)
            assert threading.active_count() <= threads + 1 + CONNECTIONS
        assert say(path, "GET", "/v1/stats")[0] == 200
        for connection in silent:
            connection.close()
        assert say(path, "GET", "/v1/stats")[0] == 200
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads


@pytest.mark.usefixtures("served")
def test_clients_that_leave_leave_nothing(path: Path) -> None:
    say(path, "GET", "/v1/stats")
    before = set(threading.enumerate())
    descriptors = open_descriptors()
    for number in range(300):
        with connect(path) as connection:
            connection.sendall(b"GET /v1/stats HTTP/1.1\r\n\r\n"[: number % 28])
    assert say(path, "GET", "/v1/stats")[0] == 200  # the last in the queue: all before it have been taken in
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
    assert open_descriptors() <= descriptors


@pytest.mark.usefixtures("served")
def test_an_answer_under_way_is_not_cut_for_another(path: Path, answers: FakeAnswers) -> None:
    """With every connection at its answer a further one waits, and all are answered."""
    answers.gate = threading.Event()
    request = b"GET /v1/health HTTP/1.1\r\nConnection: close\r\n\r\n"
    connections = [connect(path) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.sendall(request)
    for _ in connections:
        assert answers.entered.acquire(timeout=PATIENCE_S)
    connections.append(connect(path))
    connections[-1].sendall(request)
    connections[-1].settimeout(3 * endpoint_module.GRACE_S)
    with pytest.raises(TimeoutError):
        connections[-1].recv(1)
    connections[-1].settimeout(PATIENCE_S)
    answers.gate.set()
    replies = [read_to_end(connection) for connection in connections]
    assert [parsed(reply)[0] for reply in replies] == [200] * (CONNECTIONS + 1)
    for connection in connections:
        connection.close()


def test_stop_ends_what_waits(path: Path, answers: FakeAnswers) -> None:
    with running(path, answers) as endpoint:
        kept = connect(path)
        kept.sendall(b"GET /v1/health HTTP/1.1\r\n\r\n")
        assert parsed(read_line_of_json(kept))[0] == 200
        endpoint.stop()
        assert read_to_end(kept) == b""
        kept.close()


@settings(max_examples=counted(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.usefixtures("served")
def test_junk_is_answered_in_http_or_not_at_all(
    path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    token = st.sampled_from(
        [
            b"GET",
            b"POST",
            b" ",
            b"/v1/stats",
            b"/v1/blobs?",
            b"HTTP/1.1",
            b"\r\n",
            b"\n",
            b":",
            b"Content-Length",
            b"2",
            b"{}",
            b"%",
        ]
    )
    pieces = data.draw(st.lists(st.one_of(token, st.binary(max_size=20)), max_size=20))
    with connect(path) as connection:
        connection.sendall(b"".join(pieces))
        connection.shutdown(socket.SHUT_WR)
        reply = read_to_end(connection)
    if reply:
        status, _, _ = parsed(reply)
        assert status in (200, 202, 400, 404, 405, 411, 413, 431, 505)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# --- binding ------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_rights_are_exact_whatever_the_umask(
    path: Path, answers: FakeAnswers, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def rename(bound: str, to: str) -> None:
        seen.append((mode(Path(bound).parent), mode(Path(bound))))
        os.replace(bound, to)

    monkeypatch.setattr(os, "rename", rename)
    before = os.umask(umask)
    try:
        with running(path, answers):
            assert (mode(path.parent), mode(path)) == (0o750, 0o660)
            assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert seen == [(0o700, 0o660)]


def test_a_directory_that_is_there_keeps_its_mode(path: Path, answers: FakeAnswers) -> None:
    path.parent.mkdir(0o711)
    with running(path, answers):
        assert mode(path.parent) == 0o711
        assert sorted(os.listdir(path.parent)) == ["chunkd.sock", "chunkd.sock.lock"]
    assert os.listdir(path.parent) == ["chunkd.sock.lock"]


def refused(path: Path | str, live: bool = False) -> str:
    """Why the path is refused. Nothing stays open; a `live` daemon in this process may still hold the probe's end."""
    descriptors = open_descriptors()
    with pytest.raises(SocketUnusable) as caught:
        Endpoint(str(path), FakeAnswers()).start()
    assert caught.value.path == str(path)
    assert live or open_descriptors() == descriptors
    return caught.value.problem


def test_a_live_daemons_socket_is_not_stolen(path: Path, answers: FakeAnswers) -> None:
    with running(path, answers):
        inode = path.lstat().st_ino
        assert refused(path)
        Path(f"{path}.lock").unlink()  # as if it served under another lock
        assert refused(path, live=True)
        assert path.lstat().st_ino == inode
        assert say(path, "GET", "/v1/stats")[0] == 200


def test_a_lock_alone_keeps_others_away(path: Path, answers: FakeAnswers) -> None:
    with running(path, answers):
        path.unlink()
        assert f"{path}.lock" in refused(path)


def test_a_daemon_too_busy_to_accept_is_alive(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        assert refused(path)


def test_a_dead_daemons_socket_is_replaced(path: Path, answers: FakeAnswers) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    inode = path.lstat().st_ino
    with running(path, answers):
        assert path.lstat().st_ino != inode
        assert say(path, "GET", "/v1/stats")[0] == 200
    assert not path.exists()


def test_a_second_start_after_a_stop(path: Path, answers: FakeAnswers) -> None:
    for _ in range(2):
        with running(path, answers):
            assert say(path, "GET", "/v1/stats")[0] == 200


def test_what_is_no_socket_is_left_alone(directory: Path) -> None:
    (directory / "file").write_text("precious")
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("file")
    (directory / "dangling").symlink_to("nothing")
    os.mkfifo(directory / "fifo")
    assert unix_socket.KINDS[stat.S_IFREG] in refused(directory / "file")
    assert unix_socket.KINDS[stat.S_IFDIR] in refused(directory / "folder")
    assert unix_socket.KINDS[stat.S_IFLNK] in refused(directory / "link")
    assert unix_socket.KINDS[stat.S_IFLNK] in refused(directory / "dangling")
    assert unix_socket.KINDS[stat.S_IFIFO] in refused(directory / "fifo")
    assert (directory / "file").read_text() == "precious"
    assert (directory / "link").is_symlink()


def test_a_socket_of_another_kind_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert refused(path)
    assert path.is_socket()


def test_a_lock_that_is_a_link_is_not_followed(directory: Path) -> None:
    (directory / "s.lock").symlink_to("victim")
    assert refused(directory / "s")
    assert not (directory / "victim").exists()


def test_a_directory_that_can_not_be_made_is_named(directory: Path) -> None:
    (directory / "file").touch()
    assert refused(directory / "file" / "s")
    assert refused(directory / "file" / "d" / "s")


def test_the_longest_path_is_bound_and_one_more_is_refused(directory: Path, answers: FakeAnswers) -> None:
    longest = directory / ("s" * (unix_socket.SUN_PATH_BYTES - 1 - len(str(directory)) - 1))
    with running(longest, answers):
        assert say(longest, "GET", "/v1/stats")[0] == 200
    assert str(unix_socket.SUN_PATH_BYTES) in refused(f"{longest}s")
    assert "--socket" in refused(f"{longest}s")
    folder = directory / ("d" * (unix_socket.SUN_PATH_BYTES - len(str(directory)) - 5))
    assert refused(folder / "s")
    assert not folder.exists()


def test_a_path_must_be_absolute() -> None:
    assert refused("chunkd.sock")


def test_another_ones_socket_is_not_removed_at_the_end(path: Path, answers: FakeAnswers) -> None:
    with running(path, answers):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_stop_without_start_and_twice(path: Path, answers: FakeAnswers) -> None:
    Endpoint(str(path), answers).stop()
    endpoint = Endpoint(str(path), answers)
    descriptors = open_descriptors()
    endpoint.start()
    endpoint.stop()
    endpoint.stop()
    endpoint.serve_forever()
    assert open_descriptors() == descriptors
