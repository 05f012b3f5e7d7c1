"""Power cuts: every write and sync under the real daemon is written down, and then what a cut of the power at any of
them may leave on the disk is put together, hundreds of times.

What must hold: the index opens and a recount finds nothing. It is, to the last record, as a commit left it, and as one
that is no older than the last that is certain: with LMDB's metasync=False the one before the newest. Where its creation
was cut, there is none. The daemon, started on it, catches up.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import blobs
from conftest import Tell
from counts import share_of
from daemon import Daemon, Home, figures, land, opened
from disk_model import META_BYTES, META_OFFSETS, SECTOR_BYTES, Disk, File, Kind, Operation, read_journal
from preloading import Preload

HERE = Path(__file__).parent
CUTS = share_of(300, 100)
CUTS_OF_A_CREATION = share_of(30, 10)
CUTS_OF_FAILED_SYNCS = share_of(100, 40)
CUTS_OF_A_LYING_DISK = share_of(20, 5)
CAUGHT_UP = share_of(24, 5)
AT_ONCE = 25
DATA = "index/data.mdb"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path, anew=True) as made:
        yield made


# --- what is journaled ------------------------------------------------------------------------------------------------


def layer(rng: random.Random, shared: list[bytes]) -> bytes:
    """Chunks of its own, and some that others have too, in runs."""
    start = rng.randrange(len(shared))
    return blobs.zst(
        b"".join(blobs.least_chunks(rng, rng.randrange(1, 300)) + shared[start : start + rng.randrange(200)])
    )


def run_the_daemon(home: Home, preload: Preload, rng: random.Random) -> list[Path]:
    """Blobs land, are replaced and go, mostly one at a time, in three runs of a daemon. Returns those that are left."""
    cache, landing = home.cache(), home.cache("landing")
    shared = blobs.least_chunks(rng, 1000)
    there: list[Path] = []
    for _ in range(3):
        daemon = home.start(cache, environ=preload.environ)
        assert maps_of(daemon, preload.root / DATA) == {"r--s"}, "LMDB must write by calls, or the journal misses it"
        for _ in range(24):
            for _ in range(rng.choice((1, 1, 1, 3))):
                data = layer(rng, shared) if rng.random() < 0.9 else rng.randbytes(20)
                _, path = blobs.write_blob(landing, data)
                there.append(land(path, cache))
            while rng.random() < 0.35 and len(there) > 1:
                there.pop(rng.randrange(len(there))).unlink()
            daemon.until_figures({"blobs": len(there)})
        assert daemon.stop() == 0
    return there


def maps_of(daemon: Daemon, path: Path) -> set[str]:
    lines = Path(f"/proc/{daemon.pid}/maps").read_text().splitlines()
    return {line.split()[1] for line in lines if line.endswith(str(path))}


def run_the_writer(preload: Preload, seed: int, commits: int) -> None:
    command = [
        sys.executable,
        str(HERE / "index_writer.py"),
        str(preload.root),
        str(seed),
        str(commits),
        str(preload.faults),
    ]
    environ = (
        os.environ | preload.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), *sys.path]))}
    )
    subprocess.run(command, env=environ, check=True, timeout=120)


# --- cuts -------------------------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """What may be found after a cut: a commit from `certain` on to `newest`; nothing, unless it `must_exist`."""

    certain: int
    newest: int
    must_exist: bool


@dataclass
class Cuts:
    """Replays a journal and cuts the power after the chosen operations.

    `references` are the records of each commit that a cut may leave; `_commits` is the whole file as of these, from the
    one that is certain on.
    """

    folder: Path
    root: Path
    operations: list[Operation]
    seed: int
    lies: bool = False
    references: dict[int, str] = field(default_factory=dict)
    found: list[tuple[int, Expected, dict[str, Any]]] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    _commits: dict[int, bytes] = field(default_factory=dict)

    def make(self, after: list[int], keep: int = 0) -> None:
        """Cut after each of these operations (positions), and open what is left. Some are kept as they were."""
        rng = random.Random(self.seed)
        wanted = sorted(after)
        chosen = set(rng.sample(range(len(wanted)), keep))
        disk, batch, done = Disk(self.root, self.seed, lies=self.lies), list[tuple[int, Expected, Path]](), 0
        data = str(self.root / DATA)
        for position, operation in enumerate(self.operations):
            disk.apply(operation)
            if operation.commit and operation.path == data:
                self._commits[operation.commit] = bytes(disk.files[data].cached)
            while done < len(wanted) and wanted[done] == position:
                state = self.folder / f"cut-{done}"
                disk.cut(rng, state)
                file = disk.files.get(data, File())
                self._refer(file, batch, position)
                batch.append((position, Expected(file.certain, file.commit, disk.is_certain(data)), state))
                if done in chosen:
                    self.kept.append(shutil.copytree(state, self.folder / f"kept-{done}"))
                done += 1
            if len(batch) >= AT_ONCE:
                self._examine(batch)
        self._examine(batch)
        self.disk = disk

    def _refer(self, file: File, batch: list[tuple[int, Expected, Path]], position: int) -> None:
        """Have the commits examined that this file may be cut back to, each once."""
        self._commits = {commit: data for commit, data in self._commits.items() if commit >= file.certain}
        for commit, data in self._commits.items():
            if commit not in self.references:
                self.references[commit] = ""
                state = self.folder / f"reference-{commit}"
                (state / "index").mkdir(parents=True)
                (state / "lock").touch()
                (state / DATA).write_bytes(data)
                batch.append((position, Expected(commit, commit, True), state))

    def _examine(self, batch: list[tuple[int, Expected, Path]]) -> None:
        for (position, expected, state), answer in zip(batch, examine([state for _, _, state in batch]), strict=True):
            if state.name.startswith("reference-"):
                assert (answer.get("commit"), answer.get("differences")) == (expected.newest, []), answer
                self.references[expected.newest] = answer["records"]
            else:
                self.found.append((position, expected, answer))
            shutil.rmtree(state)
        batch.clear()

    def damages(self) -> list[str]:
        """What is not as it must be after which cut."""
        bad = []
        for position, expected, answer in self.found:
            if answer.get("missing"):
                wrong = expected.must_exist
            else:
                commit = answer.get("commit", -1)
                wrong = answer.get("differences") != [] or not expected.certain <= commit <= expected.newest
                wrong = wrong or (commit in self.references and answer["records"] != self.references[commit])
            if wrong:
                bad.append(f"after operation {position}: {answer}, expected {expected}")
        return bad


def examine(states: list[Path]) -> list[dict[str, Any]]:
    """The answers of examine.py; a process that dies of an index says so by its end."""
    answers: list[dict[str, Any]] = []
    while len(answers) < len(states):
        command = [sys.executable, str(HERE / "examine.py"), *map(str, states[len(answers) :])]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        answers += [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode:
            answers.append({"error": f"ended with {done.returncode}: {done.stderr[-300:]}"})
    return answers


def positions(operations: list[Operation], cuts: int, rng: random.Random) -> list[int]:
    """Operations to cut after: the creation, around the commits, and anywhere."""
    created = next(at for at, found in enumerate(operations) if found.kind == Kind.RENAME)
    commits = [at for at, found in enumerate(operations) if found.commit]
    chosen = [rng.randrange(created + 4) for _ in range(min(CUTS_OF_A_CREATION, cuts // 4))]
    chosen += [min(rng.choice(commits) + rng.randrange(-2, 4), len(operations) - 1) for _ in range(cuts // 3)]
    return chosen + [rng.randrange(len(operations)) for _ in range(cuts - len(chosen))]


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.long(25)
def test_power_cuts_under_the_daemon(home: Home, seed: int, tell: Tell) -> None:
    rng = random.Random(seed)
    home.state.mkdir()
    preload = Preload(home.root, home.state)
    there = run_the_daemon(home, preload, rng)
    expected = home.fresh(home.cache())
    assert expected["blobs"] == len(there)

    operations = list(read_journal(preload.journal))
    cuts = Cuts(home.root / "cuts", home.state, operations, seed)
    cuts.make(positions(operations, CUTS, rng), keep=CAUGHT_UP)
    on_disk = (home.state / DATA).read_bytes()
    assert bytes(cuts.disk.files[str(home.state / DATA)].cached) == on_disk, "the journal has missed a write"
    assert cuts.damages() == []
    assert len(cuts.found) == CUTS
    lost = sum(answer.get("commit", 0) < expected.newest for _, expected, answer in cuts.found if "commit" in answer)
    missing = sum(bool(answer.get("missing")) for _, _, answer in cuts.found)
    # Both happen, or the cuts are too kind.
    assert lost
    assert missing
    catch_up(home, cuts.kept, expected)
    commits = sum(bool(operation.commit) for operation in operations)
    tell(
        f"{CUTS} cuts in {len(operations)} operations of {commits} commits, none damaged;"
        f" {lost} lost the newest commit, {missing} came before there was an index; {len(cuts.kept)} caught up"
    )


def catch_up(home: Home, states: list[Path], expected: dict[str, int]) -> None:
    """The daemon starts on what a cut left, counts what is missing, takes out what is gone, and a recount agrees."""
    for state in states:
        shutil.rmtree(home.state)
        shutil.copytree(state, home.state)
        with_index = (home.state / DATA).exists()
        if with_index:
            home.check()
        daemon = home.start(home.cache())
        assert figures(daemon.until_figures(expected)) == expected
        assert daemon.stop() == 0
        home.check()


def test_power_cuts_after_syncs_that_failed(tmp_path: Path, seed: int, tell: Tell) -> None:
    """A sync that fails has the kernel forget what it could not write; the next one succeeds without it."""
    rng = random.Random(seed)
    preload = Preload(tmp_path, tmp_path / "state")
    preload.root.mkdir()
    run_the_writer(preload, seed, 250)
    operations = list(read_journal(preload.journal))
    failed = [at for at, operation in enumerate(operations) if operation.kind == Kind.FAILED_SYNC]
    assert len(failed) > 25
    after = [min(rng.choice(failed) + rng.randrange(60), len(operations) - 1) for _ in range(CUTS_OF_FAILED_SYNCS)]
    cuts = Cuts(tmp_path / "cuts", preload.root, operations, seed)
    cuts.make(after)
    assert cuts.damages() == []
    tell(f"{len(after)} cuts after {len(failed)} syncs that failed, none damaged")


def test_a_disk_that_lies_is_found_out(tmp_path: Path, seed: int, tell: Tell) -> None:
    """That these tests can fail: where no sync does anything, most cuts damage the index, and it is seen."""
    preload = Preload(tmp_path, tmp_path / "state")
    preload.root.mkdir()
    run_the_writer(preload, seed, 40)
    operations = list(read_journal(preload.journal))
    cuts = Cuts(tmp_path / "cuts", preload.root, operations, seed, lies=True)
    last = len(operations) - 1
    cuts.make([last - back for back in range(CUTS_OF_A_LYING_DISK)])
    damages = cuts.damages()
    assert damages
    tell(f"{len(damages)} of {CUTS_OF_A_LYING_DISK} cuts of a disk whose syncs do nothing damaged the index")


def test_the_meta_page_is_in_one_sector() -> None:
    """What must be written as a whole lies in one sector."""
    for offset in META_OFFSETS:
        assert offset // SECTOR_BYTES == (offset + META_BYTES - 1) // SECTOR_BYTES
