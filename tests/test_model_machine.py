"""Whatever writers do to the caches, and whatever is lost on the way: once things have settled, the index holds exactly
what lies on the disk.

`HYPOTHESIS_PROFILE=large` looks ten times as long.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ingesting import BROKEN, LAYER, LIKE_IT, Content, World, distribution, oci, totals_of, wrong

BLOBS = (LAYER, LIKE_IT, BROKEN)
EXAMPLES, STEPS = (1000, 60) if os.environ.get("HYPOTHESIS_PROFILE") == "large" else (300, 40)

contents = st.sampled_from(BLOBS)
# Which of a blob's places: two repositories of the first cache; the second cache has another layout, and a flat one.
wheres = st.integers(0, 3)
events = st.sampled_from([True, True, False])
picks = st.integers(0, 11)


class Caches(RuleBasedStateMachine):
    """Two caches with three blobs of four places each, and the daemon's inside under them.

    `lost` is set once something happened that no event told of: then only a scan with `verify` must find it.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chunkd-"))
        self.world = World(self.folder, "one", "two")
        self.lost = False
        self.away = False

    def teardown(self) -> None:
        try:
            self.compare()
        finally:
            self.world.stop()
            shutil.rmtree(self.folder)

    def place(self, content: Content, where: int) -> Path:
        one, two = self.world.roots
        return (
            oci(one, content),
            oci(one, content, "repository"),
            distribution(two, content),
            two / content.hex,
        )[where]

    def reachable(self, where: int) -> bool:
        return not (self.away and where > 1)

    # --- what writers do ------------------------------------------------------------------------------------------

    def ready(self, path: Path, heard: bool) -> bool:
        """Make the folders of a path and clear what lies there; whether an event at the path itself would be seen."""
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        if missing and heard:
            self.world.event(missing[-1], "created (event)", folder=True)
        return heard and not missing

    def tell(self, path: Path, why: str, heard: bool, seen: bool = True) -> None:
        if heard and seen:
            self.world.event(path, why)
        self.lost |= not heard

    def data(self, content: Content, kind: str) -> bytes:
        return {"whole": content.stored, "part": content.stored[:-5], "wrong": wrong(content)}[kind]

    @rule(
        content=contents, where=wheres, kind=st.sampled_from(["whole", "whole", "whole", "part", "wrong"]), heard=events
    )
    def land(self, content: Content, where: int, kind: str, heard: bool) -> None:
        if self.reachable(where):
            path = self.place(content, where)
            seen = self.ready(path, heard)
            partial = path.with_name(".partial")
            partial.write_bytes(self.data(content, kind))
            partial.rename(path)
            self.tell(path, "moved in (event)", heard, seen)

    @rule(content=contents, where=wheres, kind=st.sampled_from(["whole", "part", "wrong"]), heard=events)
    def write_in_place(self, content: Content, where: int, kind: str, heard: bool) -> None:
        path = self.place(content, where)
        if self.reachable(where) and not path.is_symlink() and not path.is_fifo():
            linked = path.is_file() and path.stat().st_nlink > 1
            seen = self.ready(path, heard)
            path.write_bytes(self.data(content, kind))
            self.tell(path, "written (event)", heard, seen)
            self.lost |= linked  # the file's other name has no event

    def pick(self, number: int) -> tuple[Content, int] | None:
        """One of the places where something lies now."""
        there = [
            (content, where)
            for content in BLOBS
            for where in range(4)
            if self.reachable(where) and os.path.lexists(self.place(content, where))
        ]
        return there[number % len(there)] if there else None

    @rule(pick=picks, where=wheres, heard=events, moved=st.booleans())
    def link_or_move(self, pick: int, where: int, heard: bool, moved: bool) -> None:
        """A file gets another name: beside the one that it has, or instead of it."""
        picked = self.pick(pick)
        if picked is None or not self.reachable(where) or picked[1] == where:
            return
        first, second = self.place(*picked), self.place(picked[0], where)
        if first.is_symlink() or not first.is_file():
            return
        seen = self.ready(second, heard)
        second.unlink(missing_ok=True)
        if moved:
            first.rename(second)
            self.tell(first, "moved out (event)", heard)
            self.tell(second, "moved in (event)", heard, seen)
        else:
            os.link(first, second)
            self.tell(second, "created (event)", heard, seen)

    @rule(pick=picks, heard=events, folder=st.booleans())
    def remove(self, pick: int, heard: bool, folder: bool) -> None:
        picked = self.pick(pick)
        if picked is None:
            return
        path = self.place(*picked)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        self.tell(path, "deleted (event)", heard)
        if folder and picked[1] == 2:
            path.parent.rmdir()
            if heard:
                self.world.event(path.parent, "deleted (event)", folder=True)

    @rule(content=contents, where=wheres, kind=st.sampled_from(["link", "fifo", "folder"]), heard=events)
    def be_strange(self, content: Content, where: int, kind: str, heard: bool) -> None:
        if self.reachable(where):
            path = self.place(content, where)
            seen = self.ready(path, heard)
            path.unlink(missing_ok=True)
            if kind == "link":
                target = self.folder / "elsewhere"
                target.write_bytes(content.stored)
                path.symlink_to(target)
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.mkdir()
            if kind == "folder" and heard and seen:
                self.world.event(path, "created (event)", folder=True)
            self.tell(path, "created (event)", heard, seen)

    @rule()
    def lose_the_second_cache(self) -> None:
        """Its root goes and comes again. No event tells, and a scan follows."""
        root = self.world.roots[1]
        hidden = self.folder / "hidden"
        hidden.rename(root) if self.away else root.rename(hidden)
        self.away = not self.away
        self.world.scanner.request("the root is another than before")

    # --- what the daemon does -------------------------------------------------------------------------------------

    @rule()
    def turn(self) -> None:
        self.world.ingest.turn(0)

    @rule()
    def hold_what_is_read(self) -> None:
        self.world.pool.held = True

    @rule()
    def read(self) -> None:
        self.world.pool.read()

    @rule()
    def run(self) -> None:
        self.world.pool.held = False
        self.world.run()

    @rule(seconds=st.sampled_from([0.1, 3.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.pool.held = False
        self.world.pass_s(seconds)

    @rule()
    def scan(self) -> None:
        self.world.scan()

    @rule()
    def die(self) -> None:
        """Killed, and a new daemon. Its clock may be another."""
        self.world.ahead_s = 0.0
        self.world.restart()
        self.lost = True

    @precondition(lambda self: not self.away)
    @rule()
    def settle(self) -> None:
        self.compare()

    def compare(self) -> None:
        """Let everything come to rest; then the index must hold what the disk does."""
        self.world.pool.held = False
        if self.away:
            self.lose_the_second_cache()
        self.world.settle(verify=self.lost)
        self.lost = False
        holding = {content for content in BLOBS for where in range(4) if self.holds(content, where, whole=True)}
        there = {content for content in BLOBS for where in range(4) if self.holds(content, where, whole=False)}
        counted = {content for content in holding if content.kind != "undecodable"}
        self.world.holds_exactly(*counted, failed={content.digest for content in there - counted})
        assert self.world.ingest.pending() == (0, 0)
        assert self.world.suspects() == 0
        assert self.world.totals.unique_bytes == totals_of(counted).unique_bytes

    def holds(self, content: Content, where: int, *, whole: bool) -> bool:
        path = self.place(content, where)
        if path.is_symlink() or not path.is_file():
            return False
        return not whole or hashlib.sha256(path.read_bytes()).hexdigest() == content.hex

    @invariant()
    def the_index_is_sound(self) -> None:
        assert self.world.differences() == []


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("chunkd")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


TestCaches = Caches.TestCase
TestCaches.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
