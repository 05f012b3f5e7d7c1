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
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from chunkd.errors import CachesDropped, IndexUnwritable, NoCacheNamed
from chunkd.index import records
from chunkd.index.index import Index
from chunkd.index.replacement import take_over_at_start
from chunkd.ingest.adopt import LeftCaches, adopt_rules, holds_nothing, known_places, number_caches
from chunkd.ingest.writer import Writer
from chunkd.model import ChunkParams, Timing
from chunkd.names.beside import reading_beside, reading_file
from chunkd.objects.choose import bucket_of, check_usable
from chunkd.service.live import DaemonAnswers
from chunkd.service.notify import Notifier
from chunkd.service.reload import reload
from chunkd.settings.config import Config
from chunkd.settings.resolve import timing_of
from chunkd.sources.activity import Activity
from chunkd.sources.cache import ServedCache
from chunkd.sources.folder import FolderSource
from chunkd.sources.names_reader import NamesReader
from chunkd.sources.numbered import Devices
from chunkd.sources.scanner import Scanner
from chunkd.sources.wakeup import Wakeup
from chunkd.worker import decode, recompress, sandbox
from chunkd.worker.pool import Pool
from chunkd.worker.spawn import Starter, courtesy_of, make_pool

if TYPE_CHECKING:
    from chunkd.api.server import Endpoint

log = logging.getLogger(__name__)

TURN_S = 1.0
# How long blobs that are being read may take once the daemon must end.
DRAIN_S = 5.0
# How long the caches' threads may take then. A file system that does not answer may hold one for ever.
CACHES_END_S = 2.0
READER_CHECK_S = 60.0


class Service:
    """One index with its writer, caches and workers; with `watch` also watchers and an endpoint (the daemon).

    Raises what opening an index, serving caches and binding the socket raise. Use as a context manager.
    """

    def __init__(
        self, config: Config, holder: str, *, watch: bool, replace: bool, start: Callable[..., Starter] = Starter
    ) -> None:
        self.config, self._watch = config, watch
        self.timing = timing_of(os.environ)
        self._stack = contextlib.ExitStack()
        self._threads: dict[str, threading.Thread] = {}
        self.failure: BaseException | None = None
        self.stopping = threading.Event()
        self.at_rest = threading.Event()  # set again at each of the writer's turns after which nothing is left to do
        self.endpoint: Endpoint | None = None
        self.metrics: Endpoint | None = None
        try:
            self._assemble(holder, replace, start)
        except BaseException:
            self._stack.close()
            raise

    def _assemble(self, holder: str, replace: bool, start: Callable[..., Starter]) -> None:
        config = self.config
        rules = rules_of(config)
        checked = () if os.path.exists(os.path.join(config.index_dir, "data.mdb")) else config.caches
        check_caches(checked, config.caches_named)  # before an index is made for nothing
        take_over_at_start(config.state_dir)
        self.index = Index(config.state_dir, rules, holder)
        self._stack.callback(self.index.close)
        adopt_rules(self.index, rules)
        left = self._left(replace, checked)
        self.activity, self.wakeup = Activity(), Wakeup()
        self._stack.callback(self.wakeup.close)
        self._workers = courtesy_of(config.workers, config.nice, config.io_priority, config.read_bytes_per_s)
        using = self.index.rules
        pool = make_pool(*self._workers, using.params, using.caps, using.measure, start)
        self._stack.callback(pool.close)
        self.caches = self._serve(pool)
        self.names_file: NamesReader | None = None
        if config.names_file is not None:
            self.names_file = NamesReader(partial(reading_file, config.names_file), wake_writer=self.wakeup.wake)
        self.writer = Writer(
            self.index, pool, self.caches, self.activity, self.wakeup, left=left, names_file=self.names_file,
            verify_interval_s=config.verify_interval_s,
            settle_s=self.timing.settle_s,
        )  # fmt: skip
        self.scanner = Scanner(self.caches, config.scan_interval_s)
        if self._watch:
            from chunkd.api.routes import METRICS_ALONE  # as below: only a daemon needs these
            from chunkd.api.server import Endpoint
            from chunkd.api.unix_socket import TcpListener

            self.answers = DaemonAnswers(self.writer, self.scanner, config.metrics_repositories)
            self.endpoint = Endpoint(config.socket, self.answers)
            self.endpoint.start()
            self._stack.callback(self.endpoint.stop)
            if config.metrics_address:
                self.metrics = Endpoint(config.metrics_address, self.answers, TcpListener, METRICS_ALONE)
                self.metrics.start()
                log.info("metrics over TCP at %s, for whoever can reach it", config.metrics_address)
                self._stack.callback(self.metrics.stop)

    def _left(self, replace: bool, checked: Collection[str]) -> LeftCaches | None:
        """The caches that the index has and that the settings do not name; None without any. Raises CachesDropped."""
        with self.index.snapshot() as txn:
            known = {cache.path for cache in self.index.store.caches(txn).values()}
        new = [path for path in self.config.caches if path not in known and path not in checked]
        check_caches(new, self.config.caches_named)
        dropped = sorted(known - set(self.config.caches))
        if dropped and not replace:
            raise CachesDropped(self.config.state_dir, dropped)
        for path in dropped:
            log.warning("cache %s: no longer served; its blobs are subtracted once the others are listed", path)
        self._records, left = number_caches(self.index, self.config.caches)
        return LeftCaches(self.index, left) if left else None

    def _serve(self, pool: Pool) -> dict[int, ServedCache]:
        devices = Devices()
        make_watcher = None
        if self._watch:
            from chunkd.sources.watch import start_watcher

            make_watcher = start_watcher
        served = {}
        for number, record in self._records.items():
            given: dict[str, Any] = {
                "make_watcher": make_watcher,
                "polled_s": self.config.polled_scan_interval_s,
                "timing": self.timing,
                "read_names": partial(reading_beside, record.path),
            }
            if (bucket := bucket_of(record.path, pool.run)) is not None:
                self._stack.callback(bucket.close)
                given |= bucket.served_as(self._watch, self.timing)
                given["read_names"] = partial(reading_beside, record.path, bucket.beside)
            served[number] = ServedCache(
                number, record, bucket or FolderSource(record.path), self.activity, wake_writer=self.wakeup.wake,
                empty=holds_nothing(self.index, number), devices=devices, known=known_places(self.index, number),
                **given,
            )  # fmt: skip
        return served

    # --- running --------------------------------------------------------------------------------------------------

    def start(self, why: str = "at start", **asked: bool) -> int:
        """Start the threads and the first scan; its number."""
        log.info("workers: up to %d, %s; %s", *self._workers, sandbox.described())
        number = self.scanner.request(why, **asked)
        self._run("writer", self._write)
        if self.endpoint is not None:
            self._run("endpoint", self.endpoint.serve_forever)
            self._run("images", self._summarize)
        if self.metrics is not None:
            self._run("metrics", self.metrics.serve_forever)
        if self.names_file is not None:
            self._run("names file", partial(self._read, self.names_file))
        for cache in self.caches.values():
            self._run(f"cache {cache.number}", cache.run)
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
            self.writer.turn(TURN_S)
            if self.writer.tasks.being_read:
                _ = self.index.lookup  # numpy is imported while the first worker reads, and not at all if nothing is
            if self.writer.scans.finished and self.activity.idle():
                self.at_rest.set()
        self.writer.drain(DRAIN_S)

    def _read(self, reader: NamesReader) -> None:
        while not self.stopping.is_set():
            reader.news.wait(TURN_S)
            reader.news.clear()
            while reader.step():
                pass

    def _summarize(self) -> None:
        while not self.stopping.wait(TURN_S):
            self.answers.image_summary.turn()

    def check(self) -> None:
        """Raises the exception that ended a thread, if one did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Finish what is being read if that takes only seconds, commit, and leave nothing behind.

        A file system that does not answer may keep its cache's thread, and so the process, for ever. The index is
        closed, its lock released and the socket removed all the same.
        """
        writer = self._threads.get("writer")
        at_rest = writer is not None and self.writer.scans.finished > 0 and self.activity.idle()
        self.stopping.set()
        self.wakeup.wake()
        if writer is not None:
            writer.join(DRAIN_S + 10)
            if writer.is_alive():
                # The index is safe at any moment; closing it under a writer is not.
                log.error("the writer does not end; leaving without it")
                logging.shutdown()
                os._exit(1)
        if writer is not None and self.failure is None:
            try:
                self.index.record_at_rest(at_rest and self.activity.idle())
            except IndexUnwritable as error:
                log.warning("whether anything was left to be done is not noted: %s", error)
        for cache in self.caches.values():
            cache.stop()
        deadline = time.monotonic() + CACHES_END_S
        for cache in self.caches.values():
            thread = self._threads.get(f"cache {cache.number}")
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    log.warning("cache %s: its file system does not answer; leaving without it", cache.path)
        self._stack.close()
        for name, thread in self._threads.items():
            if not name.startswith("cache "):
                thread.join(2)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rules_of(config: Config) -> records.Rules:
    """The rules that the settings ask for."""
    measure = dataclasses.replace(config.measure, library=recompress.library())
    return records.Rules(ChunkParams(), config.caps, decode.decoder_rule(), measure)


def check_caches(paths: Iterable[str], named: bool = True) -> None:
    """Raises CacheUnusable if one of these is not a folder, or can't be listed, and NoCacheNamed if it is not there and
    nobody `named` it. Does not wait for a file system that does not answer: health will name its cache.
    """
    found: dict[str, Exception] = {}

    def check(path: str) -> None:
        try:
            check_usable(path)
        except Exception as error:
            found[path] = error

    threads = [threading.Thread(target=check, args=(path,), name=f"look at {path}", daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + Timing().hung_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for path, error in found.copy().items():
        raise error if named or os.path.lexists(path) else NoCacheNamed(path)


def run_daemon(
    config: Config, read_again: Callable[[], Config], ready: Callable[[Service], None] = lambda _: None
) -> None:
    """Serve until SIGTERM or SIGINT; on SIGHUP take over the settings that are `read_again`, and scan. Raises what
    stopped it otherwise.
    """
    with signals() as came, Service(config, "chunkd run", watch=True, replace=True) as service:
        notify = Notifier()
        service.start()
        ready(service)
        notify.say("READY=1")
        log.info("ready: socket %s, index %s, caches %s", config.socket, config.state_dir, ", ".join(config.caches))
        beat = 0
        readers_at = time.monotonic()
        while not service.stopping.is_set():
            with contextlib.suppress(queue.Empty):
                number = came.get(timeout=1.0)
                if number != signal.SIGHUP:
                    log.info("stopping: %s", signal.Signals(number).name)
                    break
                service.config = reload(service.config, read_again, service.scanner, service.writer)
                service.scanner.request("SIGHUP")
            service.index.check_there()
            now = time.monotonic()
            service.scanner.tick(service.writer.progress.scans)
            if now >= readers_at + READER_CHECK_S:
                service.index.store.env.reader_check()
                readers_at = now
            if service.writer.progress.turns != beat:
                beat = service.writer.progress.turns
                service.answers.moved()
                notify.say(f"WATCHDOG=1\nSTATUS={_status(service)}")
        notify.say("STOPPING=1")
        service.check()


def _status(service: Service) -> str:
    progress = service.writer.progress
    if progress.paused:
        return f"paused: {progress.paused}"
    blobs, stored_bytes = service.writer.pending()
    if blobs:
        return f"{blobs:,} blobs pending ({stored_bytes:,} bytes), {progress.done_blobs:,} done"
    return f"idle, {progress.done_blobs:,} blobs read since the start"


@contextlib.contextmanager
def signals() -> Iterator[queue.SimpleQueue[int]]:
    """A queue of the signals received, in order. Of all queues only SimpleQueue may be filled by a signal handler."""
    came: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _: FrameType | None) -> None:
        came.put(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
