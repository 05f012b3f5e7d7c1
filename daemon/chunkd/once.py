"""`chunkd scan` and `chunkd rebuild`: index what is there now, with progress on stderr, and end."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chunkd import client, records
from chunkd.answers import read_stats, settled
from chunkd.beside import discard
from chunkd.caches import check_usable, idle_state
from chunkd.config import Config
from chunkd.errors import BadIndex, Halted, IndexBusy, IndexMissing, Interrupted, NoDaemon, ServesOthers
from chunkd.lock import IndexLock
from chunkd.service import Service, signals
from chunkd.store import CACHES_KEY, Store

POLL_S = 0.1
# A blob that is still being written holds a scan up for so long and no longer.
UNSETTLED_S = 15.0
# A daemon on a busy cache is never quite settled; nothing pending for so long is enough.
SETTLED_S = 2.0
PLAIN_LINE_EVERY_S = 5.0

# (stored bytes done, stored bytes known, blobs pending)
Show = Callable[[int, int, int], None]


def scan_once(config: Config, sockets: list[str], asked: dict[str, bool], replace: bool) -> dict[str, Any]:
    """The figures after a scan: the daemon's where one serves these caches, else this process's own.

    Raises ServesOthers when a daemon serves other caches from this index, and what `Service` raises.
    """
    others: tuple[str, list[str]] | None = None
    for socket in sockets:
        try:
            answer = client.ask(socket, "GET", "/v1/stats")
        except NoDaemon:
            continue
        served = [cache["path"] for cache in answer["caches"]]
        if replace and set(config.caches) < set(served):
            raise ServesOthers(socket, served)
        if set(config.caches) <= set(served):
            return _ask_daemon(socket, asked)
        others = others or (socket, served)
    try:
        return scan_here(config, asked, replace)
    except IndexBusy as busy:
        if others is not None:
            raise ServesOthers(*others) from busy
        raise


def _ask_daemon(socket: str, asked: dict[str, bool]) -> dict[str, Any]:
    number = client.ask(socket, "POST", "/v1/scan", asked)["scan"]
    with progress() as show:
        most, idle_since = 0, time.monotonic()
        while True:
            answer = client.ask(socket, "GET", "/v1/stats")
            if answer["scans"] < number or answer["pending_blobs"]:
                idle_since = time.monotonic()
            elif answer["settled"] or time.monotonic() - idle_since > SETTLED_S:
                return answer
            most = max(most, answer["pending_bytes"])
            show(most - answer["pending_bytes"], most, answer["pending_blobs"])
            time.sleep(POLL_S)


def scan_here(config: Config, asked: Mapping[str, bool], replace: bool) -> dict[str, Any]:
    """The figures after a scan by this process. Raises Interrupted, Halted, and what `Service` raises."""
    with signals() as came, Service(config, "chunkd scan", watch=False, replace=replace) as service, progress() as show:
        ingest, scanner = service.ingest, service.scanner
        number = scanner.request("chunkd scan", **asked)
        service.start()
        only_unsettled_since, at_rest = time.monotonic(), False
        while not service.stopping.wait(POLL_S):
            if not came.empty():
                raise Interrupted(ingest.progress.done_blobs, ingest.pending()[0])
            blobs, pending_bytes = ingest.pending()
            if ingest.progress.paused:
                raise Halted(ingest.progress.paused, blobs)
            done_bytes = ingest.progress.done_bytes
            show(done_bytes + ingest.pool.read_bytes, done_bytes + pending_bytes, blobs)
            if ingest.progress.scans < number or ingest.working:
                only_unsettled_since = time.monotonic()
            elif (at_rest := settled(scanner, ingest)) or time.monotonic() - only_unsettled_since > UNSETTLED_S:
                break
        service.check()
        states = tuple(
            dataclasses.replace(
                idle_state(cache.record()), state="stale" if cache.stale else "idle", reason=cache.stale or None
            )
            for cache in ingest.caches.values()
        )
        stats = read_stats(service.index.store, states, ingest.pending()).to_json()
        return stats | {"scanning": False, "scans": number, "settled": at_rest}


def rebuild_index(config: Config, named: bool) -> dict[str, Any]:
    """Move the index aside and scan anew the caches named, else those that it served as far as it can still be read.

    Raises CacheUnusable, with the index left where it is, and IndexBusy while another process writes it.
    """
    old = Path(config.index_dir)
    with IndexLock(config.state_dir, exclusive=True, holder="chunkd rebuild"):
        if not old.exists():
            raise IndexMissing(str(old))
        caches = config.caches if named else served_by(config.state_dir) or config.caches
        for cache in caches:
            check_usable(cache)
        aside = Path(f"{old}.bad-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
        # What was read for it is as old as the index itself.
        discard(config.state_dir)
        old.rename(aside)
    print(f"the index was moved to {aside}, with its history; remove it when it is no longer of use", file=sys.stderr)
    return scan_here(dataclasses.replace(config, caches=caches), {}, replace=False)


def served_by(state_dir: str) -> tuple[str, ...]:
    """The caches of an index, of whatever format, as far as it can be read. To be called by who holds its lock."""
    try:
        store = Store(str(Path(state_dir, "index")), readonly=True, lock=False, any_format=True)
    except BadIndex:
        return ()
    try:
        return caches_in(store)
    except BadIndex:
        return ()
    finally:
        store.close()


def caches_in(store: Store) -> tuple[str, ...]:
    """The paths of an index's caches. Raises IndexDamaged."""
    with store.guarded(), store.env.begin() as txn:
        return store.sealed(txn, CACHES_KEY, records.unpack_paths)


@contextmanager
def progress() -> Iterator[Show]:
    """A bar with bytes, rate and time left on a terminal, and a plain line now and then elsewhere; on stderr."""
    if not sys.stderr.isatty():
        told_at = time.monotonic()

        def tell(done_bytes: int, known_bytes: int, blobs: int) -> None:
            nonlocal told_at
            if time.monotonic() >= told_at + PLAIN_LINE_EVERY_S:
                told_at = time.monotonic()
                print(f"scanned {done_bytes:,} of {known_bytes:,} bytes, {blobs:,} blobs to go", file=sys.stderr)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[blobs]:,} blobs to go"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", blobs=0, total=None)
        yield lambda done_bytes, known_bytes, blobs: bar.update(
            task, completed=done_bytes, total=known_bytes or None, blobs=blobs
        )
