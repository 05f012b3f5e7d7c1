"""The process that starts workers: what it does for the daemon, and what becomes of either when the other ends."""

from __future__ import annotations

import ast
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import blobs
import working
from chunkd.errors import StarterGone
from chunkd.model import Caps, ChunkParams
from chunkd.worker import spawn as module
from chunkd.worker.pool import Pool, Worker
from chunkd.worker.spawn import Courtesy, Starter
from chunkd.worker.starter import KILL, RUN_NICE
from daemon import children, state_of, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Their connections are closed at the end."""
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.connection.close()


@pytest.fixture
def starter() -> Iterator[Starter]:
    made = Starter(ChunkParams(), Caps(), working.COURTESY)
    yield made
    made.close()


def start(starter: Starter, workers: list[Worker]) -> tuple[Worker, int]:
    workers.append(starter.start())
    return workers[-1], working.pid_of(starter, workers[-1])


def at_work(starter: Starter, workers: list[Worker], folder: Path) -> tuple[Worker, int]:
    """A worker that is past its beginning."""
    digest, path = blobs.write_blob(folder, blobs.gz(blobs.layer()))
    worker, pid = start(starter, workers)
    assert working.finding(worker.connection, digest, path).kind == "layer"
    return worker, pid


def waiting(starter: Starter) -> set[int]:
    """The descriptors that it has while it waits for a request: its connection and a pipe besides the usual three."""

    def held() -> set[int]:
        return {int(name) for name in os.listdir(f"/proc/{starter.pid}/fd")}

    return until(held, lambda found: len(found) == 6, "it waits for a request")


def gone(pid: int) -> bool:
    try:
        return state_of(pid) == "Z"
    except ProcessLookupError:
        return True


def test_each_worker_is_a_child_of_it_in_a_session_of_its_own(
    starter: Starter, workers: list[Worker], tmp_path: Path
) -> None:
    pids = [at_work(starter, workers, tmp_path)[1] for _ in range(2)]
    assert children(starter.pid) == pids
    assert [os.getsid(pid) for pid in (starter.pid, *pids)] == [starter.pid, *pids]
    # Only then is it safe to fork.
    assert len(os.listdir(f"/proc/{starter.pid}/task")) == 1


def test_it_has_what_a_worker_needs_before_one_is_asked_for(starter: Starter) -> None:
    """So a worker starts in milliseconds, and all share that memory."""
    waiting(starter)
    assert "isal" in Path(f"/proc/{starter.pid}/maps").read_text()


def test_the_end_of_a_worker_is_told_with_how_it_came(starter: Starter, workers: list[Worker], tmp_path: Path) -> None:
    leaves, _ = start(starter, workers)
    killed, _ = start(starter, workers)
    told, pid = at_work(starter, workers, tmp_path)
    assert [worker.process.poll() for worker in workers] == [None] * 3
    leaves.connection.close()
    assert working.exit_code(starter, leaves) == 0
    killed.process.kill()
    assert working.exit_code(starter, killed) == -signal.SIGKILL
    os.kill(pid, signal.SIGTERM)
    assert working.exit_code(starter, told) == -signal.SIGTERM
    assert until(lambda: children(starter.pid), lambda left: not left, "all are waited for") == []


def test_one_that_has_ended_is_never_signalled(starter: Starter, workers: list[Worker], tmp_path: Path) -> None:
    """Its process id may be another's by now."""
    worker, pid = start(starter, workers)
    os.kill(pid, signal.SIGKILL)
    assert working.exit_code(starter, worker) == -signal.SIGKILL
    worker.process.kill()
    starter.send(1, KILL)  # as if its end had not been known here yet
    other, _ = at_work(starter, workers, tmp_path)
    assert other.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_the_daemons(
    starter: Starter, workers: list[Worker], number: signal.Signals, tmp_path: Path
) -> None:
    """A worker can be ended by its user, but for Ctrl-C."""
    start(starter, workers)
    os.kill(starter.pid, number)
    worker, pid = at_work(starter, workers, tmp_path)
    os.kill(pid, number)
    if number == signal.SIGINT:
        digest, path = blobs.write_blob(tmp_path, blobs.gz(blobs.layer(2)))
        assert working.finding(worker.connection, digest, path).kind == "layer"
    else:
        assert working.exit_code(starter, worker) == -number


DAEMON = """
import os, sys
from chunkd.model import Caps, ChunkParams
from chunkd.worker.spawn import Courtesy, Starter
starter = Starter(ChunkParams(), Caps(), Courtesy(0, "normal", 0))
worker = starter.start()
while not worker.process.pid:
    worker.process.poll()
print(starter.pid, worker.process.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_daemon_and_so_do_its_workers() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with daemon:
        assert daemon.stdout
        pids = [int(word) for word in daemon.stdout.readline().split()]
        assert [gone(pid) for pid in pids] == [False, False]
        daemon.kill()
    until(lambda: [pid for pid in pids if not gone(pid)], lambda left: not left, "both end")


def test_its_death_is_an_error_by_name_and_its_workers_end(
    starter: Starter, workers: list[Worker], tmp_path: Path
) -> None:
    worker, pid = start(starter, workers)
    pool = Pool(starter, 2)
    digest, path = blobs.write_blob(tmp_path, blobs.gz(blobs.layer()))
    working.give(pool.give, digest, path)
    while not pool.collect(working.PATIENCE_S):
        pass
    pids = children(starter.pid)
    assert (len(pids), pid in pids) == (2, True)
    os.kill(starter.pid, signal.SIGKILL)
    with pytest.raises(StarterGone, match="signal 9"):
        pool.collect(working.PATIENCE_S)
    for ask in (starter.start, worker.process.poll, worker.process.kill):
        with pytest.raises(StarterGone):
            ask()
    assert not any(map(gone, pids))
    worker.connection.close()
    pool.close()
    until(lambda: all(map(gone, pids)), bool, "its workers end")


def test_one_that_does_not_answer_holds_nobody_up(
    starter: Starter, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_S", 0.5)
    worker, pid = start(starter, workers)
    os.kill(starter.pid, signal.SIGSTOP)
    begun_s = time.monotonic()

    def ask_often() -> None:
        for _ in range(100_000):
            worker.process.kill()

    with pytest.raises(StarterGone, match="does not answer"):
        ask_often()
    starter.close()
    assert time.monotonic() - begun_s < 5
    assert gone(starter.pid)
    worker.connection.close()
    until(lambda: gone(pid), bool, "its worker ends")


def test_a_refusal_of_the_system_is_told_and_the_next_one_may_be_started(
    starter: Starter, workers: list[Worker], tmp_path: Path
) -> None:
    start(starter, workers)
    taken = waiting(starter)
    free = min(set(range(len(taken) + 1)) - taken)
    _, hard = limits = resource.prlimit(starter.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(starter.pid, resource.RLIMIT_NOFILE, (free, hard))
    workers.append(starter.start())
    refused = workers[-1]
    while refused.process.poll() is None:
        assert select.select([starter], [], [], working.PATIENCE_S)[0]
    assert refused.process.refused is not None
    assert refused.process.refused.errno == 24
    with pytest.raises((EOFError, ConnectionError)):
        refused.connection.read()
    resource.prlimit(starter.pid, resource.RLIMIT_NOFILE, limits)
    at_work(starter, workers, tmp_path)


def test_a_program_gets_its_connection_and_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, workers: list[Worker], tmp_path: Path
) -> None:
    """In a session of its own, nice, but less so than a worker, and without a worker's I/O priority."""
    lines = (
        "import os, psutil", "def main(connection, asked):",
        "    said = os.getpid(), os.getsid(0), os.nice(0), psutil.Process().ionice().ioclass.value, asked['word']",
        "    connection.sendall(repr(said).encode())", "    connection.recv(1)",
    )  # fmt: skip
    (tmp_path / "program.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    starter = Starter(ChunkParams(), Caps(), Courtesy(19, "idle", 0))
    with starter.run("program", {"word": "caf\u00e9"}) as connection:
        pid, session, nice, io_class, word = ast.literal_eval(connection.recv(1000).decode())
        assert (children(starter.pid), session) == ([pid], pid)
        assert (nice, word) == (max(RUN_NICE, os.nice(0)), "caf\u00e9")
        assert io_class != psutil.IOPRIO_CLASS_IDLE
        at_work(starter, workers, tmp_path)
    until(lambda: children(starter.pid), lambda found: pid not in found, "it is waited for")
    starter.read()
    assert list(starter._processes) == [2]  # noqa: SLF001
    starter.close()


def test_what_can_not_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the starter nor a worker; a descriptor that stays open is a ResourceWarning, which fails the test."""
    starter = Starter(ChunkParams(), Caps(), working.COURTESY)
    with monkeypatch.context() as full:

        def refuse(*_: object) -> None:
            raise OSError(24, "Too many open files")

        full.setattr(socket, "send_fds", refuse)
        with pytest.raises(OSError, match="Too many"):
            starter.start()
        with pytest.raises(OSError, match="Too many"):
            starter.run("program", {})
        assert starter._processes == {}  # noqa: SLF001
    starter.close()
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(StarterGone, match="/nowhere"):
        Starter(ChunkParams(), Caps(), working.COURTESY)
