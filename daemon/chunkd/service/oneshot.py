"""A scan by this process itself, and a rebuild: the service without a watcher, until all is counted."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from chunkd.errors import BadIndex, Halted, IndexMissing, Interrupted
from chunkd.index import history, records
from chunkd.index.replacement import discard, history_of
from chunkd.index.storage.create import create
from chunkd.index.storage.environment import CACHES_KEY, Store
from chunkd.index.storage.lock import IndexLock
from chunkd.queries.read import read_stats
from chunkd.service.daemon import Service, check_caches, rules_of, signals
from chunkd.service.live import cache_states, unlisted
from chunkd.settings.config import Config
from chunkd.sources.activity import WRITER

POLL_S = 0.1

# (stored bytes done, stored bytes known, blobs pending)
Show = Callable[[int, int, int], None]
Progress = Callable[[], AbstractContextManager[Show]]


def scan_here(config: Config, asked: Mapping[str, bool], replace: bool, progress: Progress) -> dict[str, Any]:
    """The figures after a scan by this process, which `progress` shows.

    Raises Interrupted, Halted, and what `Service` raises.
    """
    with signals() as came, Service(config, "chunkd scan", watch=False, replace=replace) as service, progress() as show:
        writer, activity = service.writer, service.activity
        number = service.start("chunkd scan", **asked)
        only_waiting_since_s, at_rest = time.monotonic(), False
        while not service.stopping.is_set():
            service.at_rest.wait(POLL_S)
            service.at_rest.clear()
            if not came.empty():
                raise Interrupted(writer.progress.done_blobs, writer.pending()[0])
            service.index.check_there()
            blobs, pending_bytes = writer.pending()
            if writer.progress.paused:
                raise Halted(writer.progress.paused, blobs)
            done_bytes = writer.progress.done_bytes
            show(done_bytes + writer.pool.read_bytes, done_bytes + pending_bytes, blobs)
            hung = writer.scans.hung()
            but = hung | {WRITER} if hung else hung
            if len(hung) == len(service.caches):
                break
            if activity.working(but) or writer.scans.finished < number:
                only_waiting_since_s = time.monotonic()
            elif (
                at_rest := activity.idle(but)
            ) or time.monotonic() - only_waiting_since_s > service.timing.unsettled_s:
                break
        service.check()
        states = tuple(
            cache if cache.state in ("stale", "hung") else dataclasses.replace(cache, state="idle", reason=None)
            for cache in cache_states(writer)
        )
        stats = read_stats(service.index.store, states, writer.pending()).to_json()
        settled = at_rest and not hung
        return stats | {"scanning": False, "scans": number, "settled": settled} | unlisted(writer)


def rebuild_index(config: Config, named: bool, progress: Progress) -> dict[str, Any]:
    """Move the index aside and scan anew the caches named, else those that it served as far as it can still be read.
    The history goes on in the new one, where it can be.

    Raises CacheUnusable, with the index left where it is, and IndexBusy while another process writes it.
    """
    old = Path(config.index_dir)
    with IndexLock(config.state_dir, exclusive=True, holder="chunkd rebuild"):
        if not old.exists():
            raise IndexMissing(str(old))
        served = () if named else served_by(config.state_dir)
        caches = served or config.caches
        check_caches(caches, bool(served) or config.caches_named)
        aside = Path(f"{old}.bad-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
        # An unfinished remeasuring belongs to the index that is moved aside.
        discard(config.state_dir)
        rows = history_of(str(old), audit=True)
        old.rename(aside)
        create(old, rules_of(config))
        _inherit(config, rows)
    print(f"the index was moved to {aside}; remove it when it is no longer of use", file=sys.stderr)
    stats = scan_here(dataclasses.replace(config, caches=caches), {}, replace=False, progress=progress)
    # Once more: the rows written while the new index grew show the rebuild, not the caches.
    with IndexLock(config.state_dir, exclusive=True, holder="chunkd rebuild"):
        _inherit(config, rows)
    return stats


def _inherit(config: Config, rows: list[tuple[bytes, bytes]]) -> None:
    with contextlib.closing(Store(config.index_dir, readonly=False)) as store:
        history.inherit(store, rows, time.time_ns())


def served_by(state_dir: str) -> tuple[str, ...]:
    """The caches of an index, of whatever format, as far as it can be read. To be called by who holds its lock."""
    try:
        store = Store(str(Path(state_dir, "index")), readonly=True, lock=False, any_format=True)
        with contextlib.closing(store):
            return caches_in(store)
    except BadIndex:
        return ()


def caches_in(store: Store) -> tuple[str, ...]:
    """The paths of an index's caches. Raises IndexDamaged."""
    with store.snapshot() as txn:
        return store.sealed(txn, CACHES_KEY, records.unpack_paths)
