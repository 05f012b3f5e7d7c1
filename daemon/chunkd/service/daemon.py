"""Puts the parts together, starts, signals and stops them. The only place where threads are made."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from chunkd.api.routes import METRICS_ALONE
from chunkd.api.server import Endpoint
from chunkd.api.unix_socket import TcpListener
from chunkd.errors import CachesDropped, IndexUnwritable
from chunkd.index import records
from chunkd.index.index import Index
from chunkd.index.replacement import take_over_at_start
from chunkd.ingest.adopt import adopt_rules, serve_exactly
from chunkd.ingest.writer import Ingest
from chunkd.model import ChunkParams
from chunkd.service.live import DaemonAnswers, settled
from chunkd.service.notify import Notifier
from chunkd.settings.config import Config
from chunkd.sources import cache as served
from chunkd.sources import filesystems
from chunkd.sources.cache import ServedCache
from chunkd.sources.hints import HintQueue
from chunkd.sources.listing import Listed, ScanEnd
from chunkd.sources.scanner import Intervals, Scanner
from chunkd.sources.watch import Watcher, start_watcher
from chunkd.worker import decode, recompress, sandbox
from chunkd.worker.pool import Worker
from chunkd.worker.spawn import courtesy_of, make_pool, spawn_worker

log = logging.getLogger(__name__)

LISTINGS_AT_ONCE = 16
TURN_S = 1.0
# How long blobs that are being read may take to end once the daemon is told to.
DRAIN_S = 5.0
LOOK_AT_ROOTS_S = 5.0
READER_CHECK_S = 60.0


class Service:
    """One index with its writer, scanner and workers; with `watch` also a watcher and an endpoint (the daemon).

    Raises what opening an index, serving caches and binding the socket raise. Use as a context manager.
    """

    def __init__(
        self, config: Config, holder: str, *, watch: bool, replace: bool, spawn: Callable[..., Worker] = spawn_worker
    ) -> None:
        self.config, self._watch = config, watch
        self._stack = contextlib.ExitStack()
        self._threads: dict[str, threading.Thread] = {}
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self._watcher: Watcher | None = None
        self.endpoint: Endpoint | None = None
        self.metrics: Endpoint | None = None
        try:
            self._assemble(holder, replace, spawn)
        except BaseException:
            self._stack.close()
            raise

    def _assemble(self, holder: str, replace: bool, spawn: Callable[..., Worker]) -> None:
        config = self.config
        rules = rules_of(config)
        if not os.path.exists(os.path.join(config.index_dir, "data.mdb")):
            for path in config.caches:
                served.check_usable(path)  # before an index is made for nothing
        take_over_at_start(config.state_dir)
        self.index = Index(config.state_dir, rules, holder)
        self._stack.callback(self.index.close)
        adopt_rules(self.index, rules)
        roots = self._roots(replace)
        self.hint_queue = HintQueue()
        self._stack.callback(self.hint_queue.close)
        listings: queue.Queue[Listed | ScanEnd] = queue.Queue(LISTINGS_AT_ONCE)
        settings = config.workers, config.nice, config.io_priority, config.read_bytes_per_s
        self._workers = courtesy_of(*settings)
        using = self.index.rules
        pool = make_pool(*self._workers, using.params, using.caps, using.measure, spawn)
        self._stack.callback(pool.close)
        self.ingest = Ingest(self.index, pool, self.hint_queue, roots, listings, config.verify_interval_s)
        intervals = Intervals(config.scan_interval_s, config.polled_scan_interval_s)
        self.scanner = Scanner(roots, self.hint_queue, listings, intervals, lambda: self._watcher)
        if self._watch:
            for cache in roots.values():
                cache.polled = filesystems.polled_because(cache.path) or ""
                if cache.polled:
                    log.info("cache %s: polled: %s", cache.path, cache.polled)
            self.answers = DaemonAnswers(self.ingest, self.scanner, watching=True)
            self.endpoint = Endpoint(config.socket, self.answers)
            self.endpoint.start()
            self._stack.callback(self.endpoint.stop)
            if config.metrics_address:
                self.metrics = Endpoint(config.metrics_address, self.answers, TcpListener, METRICS_ALONE)
                self.metrics.start()
                log.info("metrics over TCP at %s, for whoever can reach it", config.metrics_address)
                self._stack.callback(self.metrics.stop)
            self._stack.callback(self._close_watcher)
            self._start_watcher()

    def _roots(self, replace: bool) -> dict[int, ServedCache]:
        with self.index.snapshot() as txn:
            known = {cache.path for cache in self.index.store.caches(txn).values()}
        for path in self.config.caches:
            if path not in known:
                served.check_usable(path)
        dropped = sorted(known - set(self.config.caches))
        if dropped and not replace:
            raise CachesDropped(self.config.state_dir, dropped)
        for path in dropped:
            log.warning("cache %s: no longer served; its blobs are subtracted", path)
        return serve_exactly(self.index, self.config.caches)

    def _close_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.close()

    # --- running --------------------------------------------------------------------------------------------------

    def start(self) -> int:
        """Start the threads and the first scan; its number. The roots are watched then. The scan watches each folder
        below right before it lists it: one listing is enough, for what lands is in it or gives an event.
        """
        log.info("workers: up to %d, %s; %s", *self._workers, sandbox.described())
        if self._watch:
            for cache in self.ingest.caches.values():
                if cache.check_root() is not None:
                    self.scanner.enter(cache, "")
        number = self.scanner.request("at start")
        self._run("writer", self._write)
        if self.endpoint is not None:
            self._run("endpoint", self.endpoint.serve_forever)
        if self.metrics is not None:
            self._run("metrics", self.metrics.serve_forever)
        self._run("scanner", self.scanner.run)
        return number

    def _run(self, name: str, target: Callable[[], None]) -> None:
        def run() -> None:
            try:
                target()
            except BaseException as error:  # raised again by whoever waits for the service
                self.failure = self.failure or error
                self.stopping.set()

        self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name].start()

    def _write(self) -> None:
        while not self.stopping.is_set():
            self.ingest.turn(TURN_S)
        self.ingest.drain(DRAIN_S)

    def check(self) -> None:
        """Raises what a thread failed of. A bug comes out as it is."""
        if self.failure is not None:
            raise self.failure

    def mend_watcher(self) -> None:
        """A watcher that has died, or could not be had, is replaced, and everything is listed again."""
        if not self._watch or (self._watcher is not None and self._watcher.alive):
            return
        if self._watcher is not None:
            log.error("the watcher died; a new one is started and everything is scanned")
            with contextlib.suppress(OSError):
                self._watcher.close()
            self._watcher = None
        if self._start_watcher():
            self.scanner.request("there was no watcher", verify=True)

    def _start_watcher(self) -> bool:
        """Whether there is one now; without one, every cache is polled."""
        try:
            self._watcher = start_watcher(self.hint_queue)
        except OSError as error:
            reason = f"can't be watched: {error.strerror}"
            for cache in self.ingest.caches.values():
                if cache.unwatched != reason:
                    log.error("no watcher can be started: cache %s %s; it is listed on a timer", cache.path, reason)
                cache.unwatched = reason
            return False
        return True

    def check_roots(self) -> None:
        """A root that vanished, came back or was replaced gives no event: compare its device and inode."""
        for cache in list(self.ingest.caches.values()):
            before, inode = cache.stale, cache.inode
            status = cache.check_root()
            if (before and not cache.stale) or (status is not None and inode and status.st_ino != inode):
                self.scanner.request(f"the root of {cache.path} is another than before", verify=True)
        if self._watcher is not None:
            self._watcher.check()

    def close(self) -> None:
        """Finish what is being read if that takes seconds, commit, and leave nothing behind."""
        writer = self._threads.get("writer")
        at_rest = writer is not None and self.ingest.progress.scans > 0 and settled(self.scanner, self.ingest)
        self.stopping.set()
        self.scanner.stop()
        self.hint_queue.wake_writer()
        if writer is not None:
            writer.join(DRAIN_S + 10)
            if writer.is_alive():
                # The index is safe at any moment; closing it under a writer is not.
                log.error("the writer does not end; leaving without it")
                logging.shutdown()
                os._exit(1)
        if writer is not None and self.failure is None:
            try:
                self.index.record_at_rest(at_rest and not self.ingest.busy)
            except IndexUnwritable as error:
                log.warning("whether anything was left to be done is not noted: %s", error)
        self._stack.close()
        for thread in self._threads.values():
            thread.join(2)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rules_of(config: Config) -> records.Rules:
    """The rules that the settings ask for."""
    measure = dataclasses.replace(config.measure, library=recompress.library())
    return records.Rules(ChunkParams(), config.caps, decode.decoder_rule(), measure)


def run_daemon(config: Config, ready: Callable[[Service], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT. Raises what stopped it otherwise."""
    with signals() as came, Service(config, "chunkd run", watch=True, replace=True) as service:
        notify = Notifier()
        service.start()
        ready(service)
        notify.say("READY=1")
        log.info("ready: socket %s, index %s, caches %s", config.socket, config.state_dir, ", ".join(config.caches))
        beat = 0
        roots_at = readers_at = time.monotonic()
        while not service.stopping.is_set():
            with contextlib.suppress(queue.Empty):
                number = came.get(timeout=1.0)
                if number != signal.SIGHUP:
                    log.info("stopping: %s", signal.Signals(number).name)
                    break
                service.scanner.request("SIGHUP")
            now = time.monotonic()
            service.mend_watcher()
            if now >= roots_at + LOOK_AT_ROOTS_S:
                service.check_roots()
                roots_at = now
            if now >= readers_at + READER_CHECK_S:
                service.index.store.env.reader_check()
                readers_at = now
            if service.ingest.progress.turns != beat:
                beat = service.ingest.progress.turns
                service.answers.moved()
                notify.say(f"WATCHDOG=1\nSTATUS={_status(service)}")
        notify.say("STOPPING=1")
        service.check()


def _status(service: Service) -> str:
    progress = service.ingest.progress
    if progress.paused:
        return f"paused: {progress.paused}"
    blobs, stored_bytes = service.ingest.pending()
    if blobs:
        return f"{blobs:,} blobs pending ({stored_bytes:,} bytes), {progress.done_blobs:,} done"
    return f"idle, {progress.done_blobs:,} blobs read since the start"


@contextlib.contextmanager
def signals() -> Iterator[queue.SimpleQueue[int]]:
    """The signals that came, in order: of all queues this one may be filled from a handler, and wakes who waits."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _: FrameType | None) -> None:
        came.put(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
