"""An index that is made beside another one, and replaces it when it is complete."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from chunkd.errors import BadIndex, IndexBusy, IndexUnreachable, IndexUnwritable
from chunkd.index import history, records
from chunkd.index.storage import durability, upgrade
from chunkd.index.storage.environment import Store
from chunkd.index.storage.lock import IndexLock

log = logging.getLogger(__name__)


def state_beside(state_dir: str) -> str:
    """The state directory of the new index."""
    return os.path.join(state_dir, "remeasured")


def give_away(state_dir: str) -> None:
    """Give the new index to the owner of the old one, if root has made it, so that the owner can take it over."""
    beside = Path(state_beside(state_dir))
    durability.give_away((beside, *beside.rglob("*")), Path(state_dir, "index", "data.mdb").stat())


def mark_whole(state_dir: str) -> None:
    """Mark the new index as complete, ready to be taken over. Raises IndexBusy when another process has begun to write
    it.
    """
    beside = Path(state_beside(state_dir))
    with IndexLock(str(beside), exclusive=True, holder="chunkd scan --remeasure"):
        (beside / "whole").touch()
        give_away(state_dir)
        durability.sync(beside)


def mark_unfinished(state_dir: str) -> None:
    """Mark the new index as not complete. The caller holds its lock."""
    Path(state_beside(state_dir), "whole").unlink(missing_ok=True)


def discard(state_dir: str) -> None:
    """Remove the new index, complete or not. Raises IndexBusy while another process writes it."""
    beside = state_beside(state_dir)
    if os.path.exists(beside):
        with IndexLock(beside, exclusive=True, holder="chunkd"):
            shutil.rmtree(beside)


def take_over(state_dir: str) -> bool:
    """Put the new index in the place of the old one if it is complete, with the old one's history. Returns whether it
    did.

    One rename decides: a crash leaves the old index or the new one. Raises IndexBusy while another process (such as a
    daemon) writes either, IndexUnwritable when the disk can't take the history, BadIndex and IndexUnreachable when the
    new index can't be used.
    """
    beside, index = Path(state_beside(state_dir)), Path(state_dir, "index")
    if not os.path.exists(beside / "whole"):
        return False
    made = beside / "index" / "data.mdb"
    with contextlib.ExitStack() as stack:
        stack.enter_context(IndexLock(str(beside), exclusive=True, holder="chunkd"))
        there = made.exists()
        # Opened before the old index's lock is taken, because taking it erases how the last writer ended.
        store = stack.enter_context(contextlib.closing(Store(str(made.parent), readonly=False))) if there else None
        lock = stack.enter_context(IndexLock(state_dir, exclusive=True, holder="chunkd"))
        if store is not None:
            index.mkdir(mode=0o750, exist_ok=True)
            history.inherit(store, history_of(str(index), audit=bool(lock.left)), time.time_ns())
            store.close()
            # Processes that still read the old index keep its files. LMDB's lock file belongs to one data file.
            with contextlib.suppress(FileNotFoundError):
                (index / "lock.mdb").unlink()
            made.rename(index / "data.mdb")
            durability.sync(index)
        shutil.rmtree(beside)
    return there


def history_of(index: str, *, audit: bool) -> list[tuple[bytes, bytes]]:
    """The readable rows of an index's history, for `history.inherit`; also of an index of chunkd 0.1."""
    found: list[tuple[bytes, bytes]] = []
    try:
        store = Store(index, readonly=True, lock=False, audit=audit, any_format=True)
        with contextlib.closing(store), store.guarded():
            store.databases["history"] = store.open_database("history")
            found += _rows(store)
    except BadIndex as error:
        log.warning("the history begins anew where the old one can't be read: %s", error)
    return found


def _rows(store: Store) -> Iterator[tuple[bytes, bytes]]:
    with store.env.begin() as txn:
        is_old = store.format(txn) == upgrade.FORMAT
        if not is_old:
            store.check_format(txn, None)
        for key, value in store.walk(txn, "history"):
            with contextlib.suppress(records.Damaged):
                history.moment_from_key(key)
                row = upgrade.upgraded_row(value) if is_old else value
                records.unpack_totals(row)
                yield key, row


def take_over_at_start(state_dir: str) -> None:
    """As `take_over`, for a daemon's start. If another process writes an index, nothing happens here, and opening the
    index raises IndexBusy. On a full disk, and if the new index can't be used, the old one stays in use.
    """
    with contextlib.suppress(IndexBusy):
        try:
            if take_over(state_dir):
                log.info("the index that was made beside is taken over: every layer has been measured anew")
        except IndexUnwritable as error:
            log.warning("the index that was made beside is not taken over yet: %s", error)
        except (BadIndex, IndexUnreachable) as error:
            log.error(
                "the index that was made beside can't be used; `chunkd scan --remeasure` makes another: %s", error
            )
