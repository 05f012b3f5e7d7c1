"""`chunkd scan --remeasure`: reads every layer again by the measuring rule of the settings.

It makes an index beside the old one, whose figures stay in use until the new one is complete. After an interruption
the next call goes on where this one stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from chunkd.errors import BadIndex, IndexBusy, IndexMissing, IndexUnreachable, RemeasureIncomplete
from chunkd.index.records import digest_key
from chunkd.index.replacement import give_away, mark_unfinished, mark_whole, state_beside, take_over
from chunkd.index.storage.environment import Store, reading
from chunkd.index.storage.lock import IndexLock
from chunkd.ingest.reconcile import CAN_NOT_BE_READ
from chunkd.model import Digest, MeasureRule
from chunkd.queries.history import time_text
from chunkd.service.daemon import check_caches
from chunkd.service.oneshot import Progress, caches_in, scan_here
from chunkd.settings.config import Config
from chunkd.worker import recompress


def remeasure(config: Config, progress: Progress) -> dict[str, Any]:
    """The figures by the new rule, of the caches that the index serves. A daemon takes them over when it starts again.

    Raises IndexMissing, IndexDamaged, CacheUnusable when a root is missing, RemeasureIncomplete when a folder could not
    be listed or a counted blob could not be read, IndexBusy while another call reads.
    """
    with reading(config.state_dir, any_format=True) as store:
        caches = caches_in(store)
    if not caches:
        raise IndexMissing(config.index_dir)
    check_caches(caches)
    beside = dataclasses.replace(config, state_dir=state_beside(config.state_dir), caches=caches)
    _begin(config, beside)
    began = time_text(time.time_ns())
    stats = scan_here(beside, {"retry_failed": True}, replace=True, progress=progress)
    stale = any(cache["state"] in ("stale", "hung") for cache in stats["caches"])
    if stale or (stats["scanned_at"] or "") < began:
        raise RemeasureIncomplete(config.state_dir, "not every folder could be listed")
    if unread := _unread(config, beside):
        raise RemeasureIncomplete(
            config.state_dir, f"{len(unread)} of the blobs that they count can't be read, such as {unread[0]}"
        )
    mark_whole(config.state_dir)
    try:
        take_over(config.state_dir)
    except IndexBusy as busy:
        print(
            f"{busy.holder} holds the index, and takes the new figures over when it is started again", file=sys.stderr
        )
    return stats


def _begin(config: Config, beside: Config) -> None:
    """Keep what an earlier call has read by the same rule. Raises IndexBusy while another call still reads."""
    wanted = dataclasses.replace(config.measure, library=recompress.library())
    try:
        Path(beside.state_dir).mkdir(mode=0o750, exist_ok=True)
    except OSError as error:
        raise IndexUnreachable(beside.state_dir, str(error.strerror)) from error
    with IndexLock(beside.state_dir, exclusive=True, holder="chunkd scan --remeasure") as lock:
        mark_unfinished(config.state_dir)
        if _rule_of(beside.index_dir, audit=bool(lock.left)) != wanted and os.path.exists(beside.index_dir):
            shutil.rmtree(beside.index_dir)
        give_away(config.state_dir)


def _unread(config: Config, beside: Config) -> list[Digest]:
    """The blobs that the old index counts and that could not be read for the new one."""
    with reading(beside.state_dir) as store, store.snapshot() as txn:
        failed = [
            blob
            for blob in store.blobs(txn, "failed")
            if blob.state == "archived" or blob.reason.startswith(CAN_NOT_BE_READ)
        ]
    try:
        with reading(config.state_dir) as store, store.snapshot() as txn:
            return [blob.digest for blob in failed if store.get(txn, "blobs", digest_key(blob.digest)) is not None]
    except BadIndex:
        return []  # the old index has another format, for example


def _rule_of(index: str, *, audit: bool) -> MeasureRule | None:
    """The measuring rule of the index there; None if no index there can be read."""
    try:
        store = Store(index, readonly=True, lock=False, audit=audit)
        with contextlib.closing(store), store.snapshot() as txn:
            return store.check_format(txn, None).measure
    except BadIndex:
        return None
