"""An index that is made beside another one, and takes its place when it is whole."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path

from chunkd import disk, history
from chunkd.errors import BadIndex, IndexBusy, IndexUnwritable
from chunkd.lock import IndexLock
from chunkd.store import Store

log = logging.getLogger(__name__)


def state_beside(state_dir: str) -> str:
    """The state directory of the index that is made."""
    return os.path.join(state_dir, "remeasured")


def mark_whole(state_dir: str) -> None:
    """Nothing is left to be done to the index beside but to take it over."""
    beside = Path(state_beside(state_dir))
    (beside / "whole").touch()
    disk.sync_folder(str(beside))


def mark_unfinished(state_dir: str) -> None:
    """There is more to be done to it. To be called by who holds its lock, or before anybody can."""
    Path(state_beside(state_dir), "whole").unlink(missing_ok=True)


def take_over(state_dir: str) -> bool:
    """Put the index beside in the place of the old one, where it is whole, with the old one's history; whether that
    was so.

    One rename decides: a crash leaves the old index or the new one. Raises IndexBusy while another process writes
    either, as a daemon does, and IndexUnwritable when the disk would not take the history.
    """
    beside, index = Path(state_beside(state_dir)), Path(state_dir, "index")
    if not (beside / "whole").exists():
        return False
    with (
        IndexLock(state_dir, exclusive=True, holder="chunkd") as lock,
        IndexLock(str(beside), exclusive=True, holder="chunkd"),
    ):
        made = beside / "index" / "data.mdb"
        there = made.exists()
        if there:
            index.mkdir(mode=0o750, exist_ok=True)
            with contextlib.closing(Store(str(made.parent), readonly=False)) as store:
                history.inherit(store, _history_of(str(index), audit=bool(lock.left)), time.time_ns())
            # Who still reads the old index keeps its files. LMDB's lock file tells of one data file: each has its own.
            with contextlib.suppress(FileNotFoundError):
                (index / "lock.mdb").unlink()
            made.rename(index / "data.mdb")
            disk.sync_folder(str(index))
        shutil.rmtree(beside)
    return there


def _history_of(index: str, *, audit: bool) -> list[tuple[bytes, bytes]]:
    """The records of an index's history; none of one that can't be read, which may be why it is replaced."""
    try:
        with contextlib.closing(Store(index, readonly=True, lock=False, audit=audit)) as store:
            return history.kept(store)
    except BadIndex as error:
        log.warning("the history begins anew, as the old one can't be read: %s", error)
        return []


def take_over_at_start(state_dir: str) -> None:
    """As `take_over`; what another process writes is left to it, and opening the index says so. On a full disk the old
    index goes on.
    """
    with contextlib.suppress(IndexBusy):
        try:
            if take_over(state_dir):
                log.info("the index that was made beside is taken over: every layer has been measured anew")
        except IndexUnwritable as error:
            log.warning("the index that was made beside is not taken over yet: %s", error)
