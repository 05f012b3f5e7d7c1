"""An index that was made beside another one takes its place, and the history goes on."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

import pytest

from chunkd.check.recount import recount
from chunkd.errors import FormatMismatch, IndexBusy, IndexDamaged, IndexUnwritable
from chunkd.figures.totals import Totals
from chunkd.index import records, replacement
from chunkd.index.history import MINUTE_NS, History, moment_key
from chunkd.index.index import Index
from chunkd.index.records import Head, Rules
from chunkd.index.storage.lock import IndexLock
from chunkd.model import Cache
from indexing import NOW_NS, add, chunks_of, edit, records_of

NOW = NOW_NS // MINUTE_NS
HOUR_NS = 60 * MINUTE_NS


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, type[object] | None]]:
    """What the log says of a replacement: each line's level, and the kind of error in it."""
    lines = [line for line in caplog.records if line.name == replacement.__name__]
    return [
        (line.levelname, type(line.args[0]) if isinstance(line.args, tuple) and line.args else None) for line in lines
    ]


def made(state_dir: Path, counted: dict[int, range], begin_ns: int) -> Totals:
    """An index that gets a blob an hour; its totals in the end."""
    clock = iter(range(begin_ns, begin_ns + 10 * HOUR_NS, HOUR_NS))
    index = Index(str(state_dir), Rules(), "a test", clock_ns=lambda: next(clock))
    for number, chunks in counted.items():
        with index.transaction() as change:
            change.set_caches({1: Cache("/cache")})
            add(change, number, chunks_of(chunks))
    with index.snapshot() as txn:
        totals = index.store.head(txn).totals
    index.close()
    return totals


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory whose index has two rows of history, and one beside that is whole and has three."""
    monkeypatch.setattr(time, "time_ns", lambda: NOW_NS + 10 * HOUR_NS)
    found = tmp_path / "state"
    made(found, {1: range(9), 2: range(500)}, NOW_NS)
    made(found / "remeasured", {1: range(9), 2: range(500), 3: range(900)}, NOW_NS + HOUR_NS // 2)
    replacement.mark_whole(str(found))
    return found


def rows(state_dir: Path) -> dict[bytes, bytes]:
    return records_of(state_dir)["history"]


def head(state_dir: Path) -> Head:
    return records.unpack_head(records_of(state_dir)["meta"][b"head"])


def differences(state_dir: Path) -> list[str]:
    index = Index(str(state_dir), Rules(), "a test")
    with contextlib.closing(index), index.snapshot() as txn:
        return [str(difference) for difference in recount(index.store, txn).differences]


def test_the_history_goes_with_the_index_and_the_one_of_its_making_does_not(state: Path) -> None:
    old, totals = rows(state), head(state / "remeasured").totals
    assert list(old) == [moment_key(NOW), moment_key(NOW + 60)]
    assert len(rows(state / "remeasured")) == 3
    assert replacement.take_over(str(state))
    assert head(state).totals == totals
    assert rows(state) == old | {moment_key(NOW + 600): records.pack_totals(totals)}
    assert not (state / "remeasured").exists()
    assert differences(state) == []


def test_a_take_over_that_was_cut_off_before_its_rename_comes_to_the_same(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, totals = records_of(state), head(state / "remeasured").totals

    def cut_off(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            replacement.take_over(str(state))
    assert records_of(state) == old
    assert replacement.take_over(str(state))
    assert rows(state) == old["history"] | {moment_key(NOW + 600): records.pack_totals(totals)}


def test_what_was_counted_after_it_was_whole_is_in_the_history(state: Path) -> None:
    index = Index(str(state), Rules(), "a daemon", clock_ns=lambda: NOW_NS + 5 * HOUR_NS)
    with contextlib.closing(index), index.transaction() as change:
        add(change, 7, chunks_of(range(30)))
    assert replacement.take_over(str(state))
    assert list(rows(state)) == [moment_key(NOW + minutes) for minutes in (0, 60, 300, 600)]


@pytest.mark.parametrize("damage", ["format", "head"])
def test_a_history_that_can_not_be_read_begins_anew(state: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    if damage == "format":
        edit(state, "meta", b"format", records.seal((1).to_bytes(4, "little")))
    else:
        (state / "index" / "data.mdb").write_bytes(bytes(8192))
    assert replacement.take_over(str(state))
    assert [records.unpack_totals(value) for value in rows(state).values()] == [head(state).totals]
    assert told(caplog) == [("WARNING", IndexDamaged if damage == "head" else FormatMismatch)]


def test_on_a_full_disk_the_old_index_goes_on(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = records_of(state)

    def full(*_: object) -> None:
        raise IndexUnwritable(str(state), "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(History, "note", full)
        with pytest.raises(IndexUnwritable):
            replacement.take_over(str(state))
        replacement.take_over_at_start(str(state))
    assert told(caplog) == [("WARNING", IndexUnwritable)]
    assert records_of(state) == old
    caplog.clear()
    caplog.set_level(logging.INFO)
    replacement.take_over_at_start(str(state))
    assert told(caplog) == [("INFO", None)]
    assert len(rows(state)) == 3


def test_one_that_is_of_no_use_does_not_keep_the_old_index_from_going_on(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = records_of(state)
    (state / "remeasured" / "index" / "data.mdb").write_bytes(bytes(8192))
    with pytest.raises(IndexDamaged):
        replacement.take_over(str(state))
    replacement.take_over_at_start(str(state))
    assert told(caplog) == [("ERROR", IndexDamaged)]
    assert records_of(state) == old


def test_how_the_last_writer_ended_is_not_forgotten_for_one_that_is_of_no_use(state: Path) -> None:
    """Opening the old index looks at every page when that one was killed."""
    (state / "remeasured" / "index" / "data.mdb").write_bytes(bytes(8192))
    (state / "lock").write_text("chunkd run (pid 7)")
    replacement.take_over_at_start(str(state))
    with IndexLock(str(state), exclusive=True, holder="a test") as lock:
        assert lock.left == "chunkd run (pid 7)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_makes_belongs_to_whom_the_index_belongs_to(state: Path) -> None:
    for path in (state, *(state / "index").rglob("*"), state / "index"):
        os.chown(path, 65534, 65534)
    replacement.mark_whole(str(state))
    made = [state / "remeasured", *(state / "remeasured").rglob("*")]
    assert len(made) >= 4
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65534, 65534)}
    assert replacement.take_over(str(state))
    assert (state / "index" / "data.mdb").stat().st_uid == 65534


def test_nobody_marks_or_discards_one_that_is_being_written(state: Path) -> None:
    replacement.mark_unfinished(str(state))
    with IndexLock(str(state / "remeasured"), exclusive=True, holder="another"):
        for done in (replacement.mark_whole, replacement.discard):
            with pytest.raises(IndexBusy):
                done(str(state))
    assert not replacement.take_over(str(state))
    replacement.discard(str(state))
    assert not (state / "remeasured").exists()
