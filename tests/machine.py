"""Whatever writers do to the caches, and whatever is lost on the way, as steps that Hypothesis puts in any order.

Beside the caches stands a model: which file, with which bytes, lies at which place. Once things have come to rest the
index must hold exactly what the model does, and the names that lie beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from chunkd.model import Cause, Job
from chunkd.names.beside import read_names, repository_of
from chunkd.names.name import Part
from ingesting import BROKEN, LAYER, LIKE_IT, Content, World, distribution, oci, totals_of, wrong

BLOBS = (LAYER, LIKE_IT, BROKEN)
STEPS = 40
EXAMPLES_A_ROUND = 25
MOST_ROUNDS = 48
KINDS = (
    "land", "land in place in pieces", "replace", "push the same again", "hard-link", "remove", "remove while decoding",
    "replace while decoding", "move between caches", "move within a cache", "move a folder", "restart", "be killed",
    "scan", "lose an event", "lose all events", "lose a cache", "name", "break names", "remove names",
)  # fmt: skip
# Where memory can hold an example's files, no disk is waited for.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108

contents = st.sampled_from(BLOBS)
# Which of a blob's places: two repositories of the first cache; the second cache has another layout, and a flat one.
wheres = st.integers(0, 3)
events = st.sampled_from([True, True, False])
picks = st.integers(0, 11)
besides = st.integers(1, 3)
kinds = st.sampled_from(["whole", "whole", "whole", "part", "wrong"])

At = tuple[Content, int]

LOOKING = settings(
    max_examples=EXAMPLES_A_ROUND,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(eq=False)
class File:
    """What lies at one place or, hard-linked, at several; no `data` when it is not a regular file."""

    data: bytes | None


@dataclass
class Writing:
    """A file that a writer has open under its final name; `rest` is still to come."""

    at: At
    file: File
    opened: BinaryIO
    rest: bytes
    pieces: int = 0


class Caches(RuleBasedStateMachine):
    """Two caches with three blobs of four places each, and the daemon's inside under them.

    `lost` is set once something happened that nothing told of: then a scan with `verify` must find it. Otherwise what
    was told must be enough, without any scan that was not asked for by the daemon itself. `counts` tells what came to
    pass in all examples together.
    """

    counts: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chunkd-", dir=MEMORY))
        self.world = World(self.folder, "one", "two")
        self.model: dict[At, File] = {}
        self.moved_out: dict[At, File] = {}
        self.ever_named: set[Part] = set()
        self.writing: Writing | None = None
        self.lost = False
        self.away = False

    def teardown(self) -> None:
        try:
            self.compare()
        finally:
            if self.writing is not None:
                self.writing.opened.close()
            self.world.stop()
            shutil.rmtree(self.folder)

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    # --- places ---------------------------------------------------------------------------------------------------

    def path(self, at: At) -> Path:
        (content, where), (one, two) = at, self.world.roots
        return (
            oci(one, content),
            oci(one, content, "repository"),
            distribution(two, content),
            two / content.hex,
        )[where]

    def reachable(self, at: At) -> bool:
        return not (self.away and at[1] > 1)

    def pick(self, number: int, *, regular: bool = False) -> At | None:
        """One of the places where something lies now."""
        there = [at for at in self.model if self.reachable(at) and not (regular and self.model[at].data is None)]
        return there[number % len(there)] if there else None

    def ready(self, at: At, heard: bool) -> bool:
        """Make the folders of a place, and clear a folder that lies at it; whether an event at it would be seen."""
        path = self.path(at)
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        if missing and heard:
            self.world.event(missing[-1], Cause.CREATED, folder=True)
        return heard and not missing

    def tell(self, at: At, cause: Cause, heard: bool, seen: bool = True) -> None:
        if heard and seen:
            self.world.event(self.path(at), cause)
        if not heard:
            self.count("lose an event")
            self.lost = True

    def linked(self, file: File) -> bool:
        return sum(other is file for other in self.model.values()) > 1

    # --- what writers do ------------------------------------------------------------------------------------------

    @rule(content=contents, where=wheres, kind=kinds, heard=events)
    def land(self, content: Content, where: int, kind: str, heard: bool) -> None:
        self.land_at((content, where), kind, heard)

    @rule(pick=picks, kind=kinds, heard=events)
    def land_over(self, pick: int, kind: str, heard: bool) -> None:
        at = self.pick(pick)
        if at is not None:
            self.land_at(at, kind, heard)

    def land_at(self, at: At, kind: str, heard: bool) -> None:
        if self.reachable(at):
            data = {"whole": at[0].stored, "part": at[0].stored[:-5], "wrong": wrong(at[0])}[kind]
            before = self.model.get(at)
            self.count("land" if before is None else "push the same again" if before.data == data else "replace")
            self.rename_in(at, data, heard)

    def rename_in(self, at: At, data: bytes, heard: bool) -> None:
        path = self.path(at)
        seen = self.ready(at, heard)
        partial = path.with_name(".partial")
        partial.write_bytes(data)
        partial.rename(path)
        self.model[at] = File(data)
        self.tell(at, Cause.MOVED_IN, heard, seen)

    @rule(pick=picks, heard=events, how=st.sampled_from(["renamed over", "written in place"]))
    def push_the_same_again(self, pick: int, heard: bool, how: str) -> None:
        at = self.pick(pick, regular=True)
        if at is None:
            return
        file = self.model[at]
        assert file.data is not None
        self.count("push the same again")
        if how == "renamed over":
            self.rename_in(at, file.data, heard)
        else:
            self.path(at).write_bytes(file.data)
            self.tell(at, Cause.WRITTEN, heard)
            self.lost |= self.linked(file)  # the file's other name has no event

    @rule(content=contents, where=wheres, heard=events, size=st.integers(1, 2000), last=st.booleans())
    def write_in_place(self, content: Content, where: int, heard: bool, size: int, last: bool) -> None:
        """Open a file under its final name, or write another piece of the one that is open, maybe the last."""
        if self.writing is None:
            self.open_in_place((content, where), heard)
        if self.writing is not None:
            self.write_a_piece(self.writing, 1 << 20 if last else size)
            if last:
                self.close_what_is_written(heard)

    def open_in_place(self, at: At, heard: bool) -> None:
        there = self.model.get(at)
        if self.reachable(at) and (there is None or there.data is not None):
            seen = self.ready(at, heard)
            file = self.model.setdefault(at, File(b""))
            file.data = b""
            self.lost |= self.linked(file)
            self.writing = Writing(at, file, self.path(at).open("wb"), at[0].stored)
            self.tell(at, Cause.CREATED, heard, seen)

    def write_a_piece(self, writing: Writing, size: int) -> None:
        piece, writing.rest = writing.rest[:size], writing.rest[size:]
        writing.opened.write(piece)
        writing.opened.flush()
        writing.file.data = (writing.file.data or b"") + piece
        writing.pieces += 1

    def close_what_is_written(self, heard: bool) -> None:
        """Whole or not, and under whatever name the file has by now, if any."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        writing.opened.close()
        names = [at for at, file in self.model.items() if file is writing.file and self.reachable(at)]
        if names:
            self.tell(names[0], Cause.WRITTEN, heard)
            whole = "land in place in pieces" if writing.pieces > 1 else "write in place at once"
            self.count("leave a part in place" if writing.rest else whole)
        self.lost |= len(names) != 1

    @rule(pick=picks, beside=besides, heard=events)
    def hard_link(self, pick: int, beside: int, heard: bool) -> None:
        """A file gets another name beside the one that it has."""
        if (names := self.names(pick, beside)) is not None:
            first, second = names
            seen = self.ready(second, heard)
            self.path(second).unlink(missing_ok=True)
            os.link(self.path(first), self.path(second))
            self.model[second] = self.model[first]
            self.count("hard-link")
            self.tell(second, Cause.CREATED, heard, seen)

    @rule(pick=picks, beside=besides, heard=events)
    def move(self, pick: int, beside: int, heard: bool) -> None:
        if (names := self.names(pick, beside)) is not None:
            first, second = names
            seen = self.ready(second, heard)
            self.path(second).unlink(missing_ok=True)
            self.path(first).rename(self.path(second))
            self.model[second] = self.model.pop(first)
            self.count("move between caches" if (first[1] > 1) != (second[1] > 1) else "move within a cache")
            self.tell(first, Cause.MOVED_OUT, heard)
            self.tell(second, Cause.MOVED_IN, heard, seen)

    def names(self, pick: int, beside: int) -> tuple[At, At] | None:
        """A place of a file, and another one of the same digest, where something may lie or not."""
        first = self.pick(pick, regular=True)
        second = first and (first[0], (first[1] + beside) % 4)
        return (first, second) if first and second and self.reachable(second) else None

    @rule(pick=picks, heard=events, folder=st.booleans())
    def remove(self, pick: int, heard: bool, folder: bool) -> None:
        at = self.pick(pick)
        if at is not None:
            self.count("remove")
            self.unlink(at, heard, folder)

    def unlink(self, at: At, heard: bool, folder: bool = False) -> None:
        path = self.path(at)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        del self.model[at]
        self.tell(at, Cause.DELETED, heard)
        if folder and at[1] == 2:
            path.parent.rmdir()
            if heard:
                self.world.event(path.parent, Cause.DELETED, folder=True)

    @rule(content=contents, where=wheres, kind=st.sampled_from(["link", "fifo", "folder"]), heard=events)
    def be_strange(self, content: Content, where: int, kind: str, heard: bool) -> None:
        at = content, where
        if self.reachable(at):
            path = self.path(at)
            seen = self.ready(at, heard)
            path.unlink(missing_ok=True)
            if kind == "link":
                target = self.folder / "elsewhere"
                target.write_bytes(content.stored)
                path.symlink_to(target)
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.mkdir()
            self.model[at] = File(None)
            self.count("put something else there")
            if kind == "folder" and heard and seen:
                self.world.event(path, Cause.CREATED, folder=True)
            self.tell(at, Cause.CREATED, heard, seen)

    @rule(
        content=contents, where=wheres, heard=events, change=st.sampled_from(["remove", "replace"]),
        reads=st.integers(1, 4),
    )  # fmt: skip
    def change_while_decoding(self, content: Content, where: int, heard: bool, change: str, reads: int) -> None:
        """A blob lands, and goes or becomes another when a worker has read so much of it."""
        at = content, where
        if not self.reachable(at):
            return
        self.rename_in(at, content.stored, heard=True)
        self.world.pool.held = True
        inode = self.path(at).stat().st_ino
        self.world.run()

        def meanwhile(job: Job) -> None:
            nonlocal reads
            reads -= job.mark.inode == inode
            if reads == 0 and at in self.model:
                reads = -1
                self.count(f"{change} while decoding" if job.decode else f"{change} while hashing")
                if change == "remove":
                    self.unlink(at, heard)
                else:
                    self.rename_in(at, wrong(at[0]), heard)

        self.world.pool.read(meanwhile)

    @rule()
    def move_a_repository(self) -> None:
        """Out of its cache with all that is in it, or in again."""
        inside, outside = self.world.roots[0] / "repository", self.folder / "outside"
        if inside.exists() == outside.exists():
            return
        self.count("move a folder")
        if inside.exists():
            inside.rename(outside)
            self.moved_out = {at: self.model.pop(at) for at in list(self.model) if at[1] == 1}
            self.world.event(inside, Cause.MOVED_OUT, folder=True)
        else:
            outside.rename(inside)
            self.model |= self.moved_out
            self.world.event(inside, Cause.MOVED_IN, folder=True)

    @rule()
    def lose_the_second_cache(self) -> None:
        """Its root goes and comes again. No event tells, and a scan follows."""
        root = self.world.roots[1]
        hidden = self.folder / "hidden"
        hidden.rename(root) if self.away else root.rename(hidden)
        self.away = not self.away
        self.count("lose a cache" if self.away else "find a cache again")
        self.world.scanner.request("the root is another than before", verify=True)

    @rule()
    def overflow(self) -> None:
        """Every event that was not seen to yet is lost, and the kernel says so."""
        lost = self.world.lose_hints()
        self.count("lose all events" if lost else "overflow")
        for cache in self.world.caches.values():
            cache.hints.doubt("the kernel's event queue overflowed")

    # --- names ----------------------------------------------------------------------------------------------------

    @rule(where=st.integers(0, 2), how=st.sampled_from(["name", "name", "break names", "remove names"]))
    def change_names(self, where: int, how: str) -> None:
        """Of a layout or, where distribution's blobs are, of a repository. No event tells of it."""
        base = self.folder_of(where)
        if not base.exists():
            return
        self.count(how)
        if where == 2:
            link = base / "repositories/app/_manifests/tags/latest/current/link"
            link.parent.mkdir(parents=True, exist_ok=True)
            digest = {"name": f"sha256:{self.counts[how]:064x}", "break names": "sha256:1"}.get(how)
            link.unlink(missing_ok=True) if digest is None else link.write_text(digest)
        elif how == "remove names":
            (base / "index.json").unlink(missing_ok=True)
        else:
            tag = {"org.opencontainers.image.ref.name": f"v{self.counts[how]}"}
            text = json.dumps({"manifests": [{"digest": str(LAYER.digest), "annotations": tag}]})
            (base / "index.json").write_text(text if how == "name" else text[:-5])
            self.ever_named |= {
                *filter(None, read_names(str(base), repository_of(str(self.world.roots[0]), str(base))))
            }

    def folder_of(self, where: int) -> Path:
        one, two = self.world.roots
        return (one, one / "repository", two)[where]

    def the_names_are_those_on_disk(self) -> None:
        """Where an index.json is cut short, names may stand that lay there before."""
        kept, there = self.world.names(), self.world.names_on_disk()
        read = {at: {part for part in parts if part.names is not None} for at, parts in there.items()}
        for at in kept.keys() | there.keys():
            stand = kept.get(at, set()) - read.get(at, set())
            assert read.get(at, set()) <= kept.get(at, set()), at
            assert stand <= self.ever_named, at
            assert len(stand) <= len(there.get(at, set()) - read.get(at, set())), at

    # --- what the daemon does -------------------------------------------------------------------------------------

    @rule()
    def turn(self) -> None:
        self.world.writer.turn(0)

    @rule(number=st.integers(1, 2))
    def step_of_a_cache(self, number: int) -> None:
        self.world.caches[number].step()

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

    @rule(verify=st.booleans())
    def scan(self, verify: bool) -> None:
        self.count("scan")
        self.world.pool.held = False
        self.world.scan(verify=verify)

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        """Told to stop, or killed; and a new daemon. Its clock may be another."""
        self.world.pool.held = False
        self.count("be killed" if killed else "restart")
        if not killed:
            self.world.drain()
        self.world.ahead_s = 0.0
        self.world.restart()
        self.lost = True

    @rule()
    def settle(self) -> None:
        if not self.away:
            self.compare()

    def compare(self) -> None:
        """Let everything come to rest; then the index must hold what the model does."""
        self.count("settle" + " with a scan" * self.lost)
        self.world.pool.held = False
        self.close_what_is_written(heard=True)
        if self.away:
            self.lose_the_second_cache()
        if self.lost:
            self.world.settle(verify=True)
        else:
            self.world.rest()
        self.lost = False
        self.world.read_names()
        self.the_model_is_true()
        self.the_names_are_those_on_disk()
        there = {at[0] for at, file in self.model.items() if file.data is not None}
        holding = {at[0] for at, file in self.model.items() if file.data == at[0].stored}
        counted = {content for content in holding if content.kind != "undecodable"}
        self.world.holds_exactly(*counted, failed={content.digest for content in there - counted})
        assert self.world.writer.pending() == (0, 0)
        assert self.world.suspects() == 0
        assert self.world.totals.unique_bytes == totals_of(counted).unique_bytes

    def the_model_is_true(self) -> None:
        """Of this file, not of the daemon: what the model says of the disk is so."""
        for at in [(content, where) for content in BLOBS for where in range(4)]:
            path, file = self.path(at), self.model.get(at)
            assert os.path.lexists(path) == (file is not None), path
            if file is not None and file.data is not None:
                assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(file.data).digest(), path

    @invariant()
    def the_index_is_sound(self) -> None:
        self.count("step")
        assert self.world.differences() == []


def look(steps: int, of_each: int, seed: int) -> Counter[str]:
    """Run examples until there were so many steps, and so many of each kind; how often each came to pass."""
    counts = Caches.counts
    counts.clear()
    for number in range(MOST_ROUNDS):
        hypothesis.seed(seed + number)(Caches)
        run_state_machine_as_test(Caches, settings=LOOKING)
        if counts["step"] >= steps and all(counts[kind] >= of_each for kind in KINDS):
            break
    assert counts["step"] >= steps
    assert {kind: counts[kind] for kind in KINDS if counts[kind] < of_each} == {}
    return counts
