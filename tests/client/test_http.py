"""The asking end: against the real endpoint, against peers that answer nonsense, and where nobody may look."""

from __future__ import annotations

import grp
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from answering import PATIENCE_S, STATS, FakeAnswers, running, short_directory
from chunkd.client import http
from chunkd.errors import NoDaemon, RequestRefused, SocketDenied, SocketUnusable


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@contextmanager
def peer(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A program at the socket that takes one connection, and is no daemon of chunkd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE_S)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE_S)


def problem_with(path: Path, reply: bytes) -> str:
    """Why the client will not have this reply."""

    def talk(connection: socket.socket) -> None:
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(reply)

    with peer(path, talk), pytest.raises(SocketUnusable) as caught:
        http.ask(str(path), "GET", "/v1/stats", timeout_s=PATIENCE_S)
    assert caught.value.path == str(path)
    return caught.value.problem


def test_the_daemon_answers(directory: Path) -> None:
    path, answers = directory / "s", FakeAnswers()
    answers.padding = "x" * (3 << 20)
    with running(path, answers):
        assert http.ask(str(path), "GET", "/v1/stats") == STATS | {"padding": answers.padding}
        assert http.ask(str(path), "POST", "/v1/scan", {"verify": True}) == {"asked": True}
    assert answers.asked == [("stats",), ("scan", True, False, False)]


def test_a_refusal_is_told_with_its_status(directory: Path) -> None:
    path = directory / "s"
    with running(path, FakeAnswers()):
        with pytest.raises(RequestRefused) as caught:
            http.ask(str(path), "GET", "/v1/blobs?limit=0")
        assert caught.value.status == 400
        assert "`limit`" in str(caught.value)
        with pytest.raises(RequestRefused) as caught:
            http.ask(str(path), "POST", "/v1/scan", {"x": "y" * (4 << 20)})
        assert caught.value.status == 413


OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        OK + b"9\r\n\r\n{}",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/2 200\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        OK + b"2\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"-2\r\n\r\n{}",
        OK + b"9" * 5000 + b"\r\n\r\n{}",
        OK + str(http.REPLY_BYTES + 1).encode() + b"\r\n\r\n",
        OK + b"2\r\n\r\n[]",
        OK + b"1\r\n\r\n{",
        OK + b"4\r\n\r\n{\xff}\n",
        OK + b"100000\r\n\r\n" + b"[" * 100000,
        b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops",
        b"X" * (1 << 17),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    ],
)
def test_nonsense_is_refused_and_named(directory: Path, reply: bytes) -> None:
    problem = problem_with(directory / "s", reply)
    assert problem.isprintable()
    assert len(problem) < 200


def test_a_reply_is_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REPLY_BYTES", 8)
    assert problem_with(directory / "s", OK + b'9\r\n\r\n{"a": 12}')
    with running(directory / "t", FakeAnswers()), pytest.raises(SocketUnusable):
        http.ask(str(directory / "t"), "GET", "/v1/health")
    monkeypatch.setattr(http, "REPLY_BYTES", 100)
    with running(directory / "u", FakeAnswers()):
        assert http.ask(str(directory / "u"), "GET", "/v1/health")["state"] == "ok"


def test_a_daemon_that_ends_the_connection_is_named(directory: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1)  # what is left unread makes the end a reset

    with peer(directory / "s", talk), pytest.raises(SocketUnusable):
        http.ask(str(directory / "s"), "GET", "/v1/stats")


def test_a_silent_daemon_is_not_waited_for_for_ever(directory: Path) -> None:
    answered = threading.Event()

    def talk(connection: socket.socket) -> None:  # noqa: ARG001
        answered.wait(PATIENCE_S)

    with peer(directory / "s", talk):
        with pytest.raises(SocketUnusable):
            http.ask(str(directory / "s"), "GET", "/v1/stats", timeout_s=0.1)
        answered.set()


def test_dripping_bytes_do_not_put_off_the_deadline(directory: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.settimeout(0.02)
        for _ in range(int(PATIENCE_S / 0.02)):
            try:
                connection.sendall(b"H")
                if not connection.recv(65536):
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return

    with peer(directory / "s", talk), pytest.raises(SocketUnusable):
        http.ask(str(directory / "s"), "GET", "/v1/stats", timeout_s=0.3)


def test_a_full_backlog_is_a_daemon_that_gives_no_answer(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(directory / "s"))
        busy.listen(0)
        first.connect(str(directory / "s"))
        with pytest.raises(SocketUnusable):
            http.ask(str(directory / "s"), "GET", "/v1/stats", timeout_s=0.1)


def nobodies(directory: Path) -> list[str]:
    """Paths at which no daemon can be."""
    (directory / "file").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "dead"))
    names = ["missing", "missing/deeper", "file/deeper", "file", "dead", "long" * 100]
    return [str(directory / name) for name in names]


def test_the_first_that_listens_is_asked(directory: Path) -> None:
    tried = nobodies(directory)
    with running(directory / "s", FakeAnswers()), running(directory / "t", FakeAnswers()):
        found, reply = http.first_answer([*tried, f"{directory}/s", f"{directory}/t"], "/v1/health")
    assert (found, reply["state"]) == (f"{directory}/s", "ok")


def test_no_daemon_says_what_was_tried(directory: Path) -> None:
    tried = nobodies(directory)
    with pytest.raises(NoDaemon) as caught:
        http.first_answer(tried, "/v1/health")
    assert caught.value.tried == tried


def test_what_is_there_and_fails_is_not_passed_over(directory: Path) -> None:
    path = directory / "s"

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)

    with running(directory / "t", FakeAnswers()), peer(path, talk), pytest.raises(SocketUnusable):
        http.first_answer([str(path), f"{directory}/t"], "/v1/stats")


ASK_AS_NOBODY = """
import grp, os, sys  # what will be needed is imported while the interpreter's own directory can still be read
from chunkd import errors
from chunkd.client import http
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    http.first_answer(sys.argv[1:], "/v1/stats", timeout_s=20)
except errors.SocketDenied as error:
    print("denied", error.path, error.group)
except errors.NoDaemon:
    print("no daemon")
"""


def ask_as_nobody(*paths: Path) -> list[str]:
    """What an unprivileged client learns. Root is bound by no permission bits, so it becomes nobody."""
    command = [sys.executable, "-c", ASK_AS_NOBODY, *map(str, paths)]
    package = str(Path(http.__file__).parent.parent)
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": package})
    return ran.stdout.split()


def group_of(path: Path) -> str:
    return grp.getgrgid(path.stat().st_gid).gr_name


def test_denied_is_not_no_daemon(directory: Path) -> None:
    hidden, mute = directory / "d" / "chunkd.sock", directory / "mute"
    with running(hidden, FakeAnswers()), running(mute, FakeAnswers()):
        hidden.parent.chmod(0)  # the owner, too, is bound by this unless root
        mute.chmod(0)
        try:
            missing = directory / "missing"
            assert ask_as_nobody(missing, hidden, mute) == ["denied", str(hidden), group_of(hidden.parent)]
            assert ask_as_nobody(missing, mute, hidden) == ["denied", str(mute), group_of(mute)]
            assert ask_as_nobody(missing) == ["no", "daemon"]
        finally:
            hidden.parent.chmod(0o700)


def test_a_group_that_can_not_be_seen_is_guessed(directory: Path) -> None:
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a").chmod(0)
    try:
        assert ask_as_nobody(directory / "a" / "b" / "s") == ["denied", str(directory / "a" / "b" / "s"), "chunkd"]
    finally:
        (directory / "a").chmod(0o700)


def test_denied_says_the_group_to_join() -> None:
    assert "join the group staff" in str(SocketDenied("/s", "staff"))
