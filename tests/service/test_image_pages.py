"""Answers about images are computed one at a time in a process of its own, and given in pages."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import working
from chunkd.errors import StarterGone, SystemRefused, UsageError
from chunkd.images import answers, pages
from chunkd.model import Caps, ChunkParams
from chunkd.names.name import Name, Part
from chunkd.queries import layer_shares
from chunkd.service import image_pages, image_process
from chunkd.service.image_pages import ImagePages, ImagesUnanswered, Question
from chunkd.worker.pool import Pool
from chunkd.worker.spawn import Starter
from daemon import children, until
from image_oracle import World
from indexed import measured, put_names, put_world
from indexing import Bench
from worlds import Maker, real

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    """One whose replies are taken in, as the writer does it."""
    made, stopping = Starter(ChunkParams(), Caps(), working.COURTESY), threading.Event()
    pool = Pool(made, 1)

    def collect() -> None:
        while not stopping.is_set():
            pool.collect(0.05)

    thread = threading.Thread(target=collect)
    thread.start()
    yield made
    stopping.set()
    thread.join(PATIENCE_S)
    pool.close()


class Runs:
    """Starts processes, and keeps how many."""

    def __init__(self, starter: Starter) -> None:
        self.starter, self.count = starter, 0

    def __call__(self, module: str, asked: dict[str, Any]) -> socket.socket:
        self.count += 1
        return self.starter.run(module, asked)


@pytest.fixture
def runs(starter: Starter) -> Runs:
    return Runs(starter)


@pytest.fixture
def served(bench: Bench, runs: Runs) -> ImagePages:
    return ImagePages(bench.index.store.path, runs)


def put(bench: Bench, world: World) -> None:
    with bench.index.transaction() as change:
        put_world(change, measured(world))


def many(count: int) -> World:
    make = Maker()
    for number in range(count):
        make.name(f"a:{number}", make.image(make.layer(number)), number + 1)
    return make.world


def rename(bench: Bench, page: dict[str, Any]) -> None:
    """Give the first image of a page one more name."""
    name = Name("b:1", "b", "1", real(page["images"][0]["digest"]))
    with bench.index.transaction() as change:
        put_names(change, "", [Part("registry", "b", (name,))])


IMAGES: Question = ("images", ("image",))
QUESTIONS: list[Question] = [
    IMAGES,
    ("images", ("repository",)),
    ("freed", (("a:*",), 0)),
    ("similar", (1,)),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=["images", "repositories", "freed", "similar"])
def test_pages_put_together_are_the_whole(bench: Bench, served: ImagePages, runs: Runs, question: Question) -> None:
    put(bench, many(10))
    function, arguments = question
    whole = answers.asked(bench.index.store, (getattr(answers, function), arguments))
    rows, after = list[Any](), ""
    while True:
        page = served.page(question, after, 3)
        assert bool(pages.rows_of(whole)) <= len(pages.rows_of(page)) <= 3
        rows += pages.rows_of(page)
        after = page["next"]
        if after is None:
            break
    assert pages.with_rows(page, rows) == whole
    assert runs.count == 1
    assert served._kept is None  # noqa: SLF001


def test_a_page_of_another_moment_says_so(bench: Bench, served: ImagePages) -> None:
    put(bench, many(5))
    first = served.page(IMAGES, "", 2)
    rename(bench, first)
    # The answer is still there, so its pages go on.
    second = served.page(IMAGES, first["next"], 2)
    assert second["commit"] == first["commit"]
    assert served.page(QUESTIONS[1], "", 1)["commit"] > first["commit"]
    # Now it is not.
    third = served.page(IMAGES, second["next"], 2)
    assert third["commit"] > first["commit"]
    assert len(third["images"]) == 1


def test_the_pages_of_one_moment_are_not_those_of_another(bench: Bench, served: ImagePages, runs: Runs) -> None:
    """A client that goes on with an older answer gets no page of a newer one, nor of another question's."""
    put(bench, many(5))
    first = served.page(IMAGES, "", 2)
    assert "stored" in served.page(("freed", (("a:*",), 0)), first["next"], 2)
    assert served.page(IMAGES, "", 2) == first
    rename(bench, first)
    runs.count = 1
    second = served.page(IMAGES, "", 2)
    assert second["commit"] > first["commit"]
    assert (runs.count, served.page(IMAGES, second["next"], 2)["commit"]) == (2, second["commit"])
    assert served.page(IMAGES, first["next"], 2)["commit"] == second["commit"]
    assert runs.count == 3


@pytest.mark.parametrize("after", ["x", "1", "-1-2", "1-2-3", "\u0661-\u0661", "1-" + "1" * 10])
def test_what_is_no_cursor_is_refused(served: ImagePages, runs: Runs, after: str) -> None:
    with pytest.raises(UsageError):
        served.page(IMAGES, after, 1)
    assert runs.count == 0


def test_one_computation_at_a_time() -> None:
    running, at_once, gate, inside = [0], list[int](), threading.Event(), threading.Semaphore(0)

    def slow(*_: Any) -> socket.socket:
        running[0] += 1
        at_once.append(running[0])
        inside.release()
        assert gate.wait(PATIENCE_S)
        running[0] -= 1
        return answering(b'{"images": [], "commit": 1}\n\n')

    served = ImagePages("", slow)
    entered, acquire = threading.Semaphore(0), served._asked.acquire  # noqa: SLF001

    def acquired(blocking: bool = True) -> bool:
        try:
            return acquire(blocking=blocking)
        finally:
            entered.release()

    served._asked.acquire = acquired  # type: ignore[assignment,method-assign]  # noqa: SLF001
    threads = [threading.Thread(target=served.page, args=(IMAGES, "", 1)) for _ in range(layer_shares.PAGES_AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=PATIENCE_S)
    assert inside.acquire(timeout=PATIENCE_S)
    with pytest.raises(layer_shares.PagesBusy):
        served.page(IMAGES, "", 1)
    gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert at_once == [1] * layer_shares.PAGES_AT_ONCE


# --- the process -----------------------------------------------------------------------------------------------------


def answering(content: bytes) -> socket.socket:
    """The connection of a process that sent this and ended."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(content)
    return ours


def refusing(error: BaseException) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
        raise error

    return run


def test_what_the_question_refuses_is_refused_here(bench: Bench, served: ImagePages) -> None:
    put(bench, many(2))
    with pytest.raises(UsageError, match="a:0"):
        served.page(("freed", (("a:9",), 0)), "", 1)


def test_an_index_that_can_not_be_read_is_no_usage_error(tmp_path: Path, runs: Runs) -> None:
    with pytest.raises(ImagesUnanswered, match="does not exist"):
        ImagePages(str(tmp_path / "nothing"), runs).page(IMAGES, "", 1)


@pytest.mark.parametrize("content", [b"", b'{"images": []', b'{"images": [], "commit": 1}\n', b'{"images": []}\n{}\n'])
def test_a_process_that_ends_before_its_answer_does(content: bytes) -> None:
    served = ImagePages("", lambda *_: answering(content))
    for _ in range(layer_shares.PAGES_AT_ONCE + 1):
        with pytest.raises(ImagesUnanswered):
            served.page(IMAGES, "", 1)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(24, "Too many open files"), SystemRefused),
        (ConnectionResetError(104, "Connection reset by peer"), ImagesUnanswered),
        (StarterGone("died"), StarterGone),
    ],
)
def test_a_process_that_can_not_be_started(error: Exception, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        ImagePages("", refusing(error)).page(IMAGES, "", 1)


def test_one_that_is_killed_costs_one_answer(bench: Bench, starter: Starter, runs: Runs) -> None:
    put(bench, many(2))

    def run(module: str, asked: dict[str, Any]) -> socket.socket:
        until(lambda: children(starter.pid), lambda found: not found, "the last one has ended")
        connection = runs(module, asked)
        [pid] = until(lambda: children(starter.pid), bool, "it runs")
        os.kill(pid, signal.SIGKILL)
        return connection

    with pytest.raises(ImagesUnanswered):
        ImagePages(bench.index.store.path, run).page(IMAGES, "", 1)
    assert ImagePages(bench.index.store.path, runs).page(IMAGES, "", 9)["next"] is None


def test_one_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_pages, "ANSWER_S", 0.05)
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(ImagesUnanswered, match="within 0 s"):
        ImagePages("", lambda *_: ours).page(IMAGES, "", 1)


def process(code: str, connection: socket.socket) -> subprocess.Popen[bytes]:
    """A process that has this connection and the module's names."""
    lines = (
        "import socket, time",
        "from chunkd.service.image_process import *",
        "connection = socket.socket(fileno=0)",
    )
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join((*lines, code))],
        stdin=connection.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_it_ends_when_nobody_waits_for_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs, process(f"end_with(connection); print(flush=True); time.sleep({PATIENCE_S})", theirs) as program:
        assert program.stdout
        assert program.stdout.readline() == b"\n"
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(1.5 * image_process.CHECK_EVERY_S)
        ours.close()
        assert program.wait(PATIENCE_S / 2) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="no other system enforces the limit")
def test_memory_is_bounded() -> None:
    ours, theirs = socket.socketpair()
    code = "limit_memory(1 << 30); bytes(64 << 20)\ntry: bytes(1 << 30)\nexcept MemoryError: print('refused')"
    with ours, theirs, process(code, theirs) as program:
        assert program.communicate(timeout=PATIENCE_S) == (b"refused\n", b"")


def bounds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bounds that a process sets itself, which are only noted from now on."""
    noted: list[Any] = []
    for name in ("end_with", "limit_memory"):
        monkeypatch.setattr(image_process, name, noted.append)
    return noted


def answer(monkeypatch: pytest.MonkeyPatch, computed: Callable[[dict[str, Any]], list[bytes]]) -> dict[str, Any]:
    """What the process sends, in this one, whose memory and time stay as they are."""
    bounded = bounds(monkeypatch)
    monkeypatch.setattr(image_process, "answered", lambda asked: bounded.append("computed") or computed(asked))  # type: ignore[func-returns-value]

    def run(_: str, asked: dict[str, Any]) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            image_process.main(theirs, asked)
            assert bounded == [theirs, image_process.MEMORY_BYTES, "computed"]
        return ours

    return ImagePages("", run).page(IMAGES, "", 1)


def test_an_answer_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_process, "REPLY_BYTES", 31)
    head = b'{"images":[],"commit":1}\n'
    assert answer(monkeypatch, lambda _: [head, b'"row"\n'])["images"] == ["row"]
    with pytest.raises(ImagesUnanswered, match="MiB"):
        answer(monkeypatch, lambda _: [head, b'"rows"\n'])


def test_one_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImagesUnanswered, match="memory"):
        answer(monkeypatch, refusing(MemoryError()))


def test_a_client_that_has_gone_is_no_error_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    bounds(monkeypatch)
    monkeypatch.setattr(image_process, "answered", lambda _: [b"{}\n"])
    with theirs:
        image_process.main(theirs, {})
