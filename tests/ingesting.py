"""The whole path of a blob in one thread and one process, at the test's pace, with a clock that the test moves.

Nothing is faked but time, the workers' processes (`examine` is called here) and the watcher (a test gives its hints).
Whatever a test did, its index is recounted at the end, and what is counted must be in it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import blobs
import oracle
from chunkd.check.recount import recount
from chunkd.errors import ChunkdError
from chunkd.figures.totals import Totals
from chunkd.index.index import Index
from chunkd.index.records import Held, Rules, digest_from_key
from chunkd.index.storage import environment
from chunkd.ingest import writer
from chunkd.ingest.actions import Action
from chunkd.ingest.adopt import LeftCaches, adopt_rules, holds_nothing, known_places, number_caches
from chunkd.ingest.names import FRESH_S
from chunkd.ingest.reconcile import Known, decide
from chunkd.ingest.writer import Writer
from chunkd.model import Blob, Caps, Cause, ChunkParams, Digest, Finding, Hint, Job, Place
from chunkd.names import record as names_record
from chunkd.names.beside import base_of, read_names, reading_beside, reading_file, repository_of
from chunkd.names.name import Part
from chunkd.names.names_file import read_names_file
from chunkd.sources import watch
from chunkd.sources.activity import Activity
from chunkd.sources.cache import Request, ServedCache
from chunkd.sources.folder import FolderSource
from chunkd.sources.names_reader import NamesReader
from chunkd.sources.numbered import Devices
from chunkd.sources.scanner import Scanner
from chunkd.sources.source import Observation, Source
from chunkd.sources.wakeup import Wakeup
from chunkd.sources.watching import WatchMaker
from chunkd.worker import examine, manifest_record
from chunkd.worker.manifest import Contents, parse
from chunkd.worker.pool import Pool, Result, Worker

# So small that blobs of a few kilobytes have many chunks.
PARAMS = ChunkParams(min_bytes=64, mask_bits=6, max_bytes=1024)
CAPS = Caps()
TURNS = 2000


@dataclass(frozen=True)
class Content:
    """The bytes of a blob, and what must become of them."""

    name: str
    kind: str  # layer, other or undecodable
    stored: bytes
    data: bytes = b""
    digest: Digest = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", blobs.digest_of(self.stored))

    @property
    def hex(self) -> str:
        return self.digest.hex

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - Hypothesis's name for it
        printer.text(self.name)


def layer_of(name: str, data: bytes, pack: Callable[[bytes], bytes] = blobs.gz) -> Content:
    return Content(name, "layer", pack(data), data)


_TAR = blobs.tar({"a": blobs.text(3000, 1), "b": blobs.noise(500, 1)})
LAYER = layer_of("LAYER", _TAR)
LIKE_IT = layer_of("LIKE_IT", blobs.tar({"a": blobs.text(3000, 1), "c": blobs.noise(700, 2)}), blobs.zst)
PLAIN = layer_of("PLAIN", blobs.tar({"c": blobs.noise(700, 2)}), bytes)
OTHER = Content(
    "OTHER",
    "other",
    json.dumps(
        {"schemaVersion": 2, "config": {"digest": f"sha256:{7:064x}"}, "layers": [{"digest": str(LAYER.digest)}]}
    ).encode(),
)
BROKEN = Content("BROKEN", "undecodable", blobs.gz(_TAR)[:-9])
CONTENTS = (LAYER, LIKE_IT, PLAIN, OTHER, BROKEN)


def totals_of(counted: Iterable[Content]) -> Totals:
    """The figures of these blobs, counted by the oracle."""
    found = list(counted)
    layers = [content for content in found if content.kind == "layer"]
    chunks = [chunk for content in layers for chunk in _chunks(content.data)]
    unique = {name: size for name, size, _ in chunks}
    measured = [(size, frame, times) for (_, size, frame), times in Counter(chunks).items() if frame]
    return Totals(
        layers=len(layers),
        others=len(found) - len(layers),
        stored_bytes=sum(len(content.stored) for content in found),
        layer_stored_bytes=sum(len(content.stored) for content in layers),
        uncompressed_bytes=sum(len(content.data) for content in layers),
        chunks=len(chunks),
        unique_chunks=len(unique),
        unique_bytes=sum(unique.values()),
        **oracle.sample(measured),
    )


_CHUNKS: dict[bytes, list[tuple[bytes, int, int]]] = {}


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Hash, length, and length recompressed (0 where it is not measured) of each chunk."""
    if data not in _CHUNKS:
        start, found = 0, []
        for size in oracle.lengths(data, PARAMS.min_bytes, PARAMS.mask_bits, PARAMS.max_bytes):
            chunk = data[start : start + size]
            name = oracle.chunk_hash(chunk)
            found.append((name, size, oracle.recompressed_bytes(chunk) if oracle.is_picked(name) else 0))
            start += size
        _CHUNKS[data] = found
    return _CHUNKS[data]


class NoStarter:
    """There are no worker processes."""

    def fileno(self) -> int:
        raise AssertionError

    def start(self) -> Worker:
        raise AssertionError("a worker process was asked for")

    def run(self, module: str, asked: object) -> socket.socket:
        raise AssertionError(f"{module} was to be run: {asked}")

    def read(self) -> None: ...

    def close(self) -> None: ...


class HerePool(Pool):
    """Examines blobs in this process. While `held`, only when told to `read`, and hands out nothing until let go.

    `given` are all jobs that were ever handed in; `deaths` says how often a worker dies of a digest yet, `refusals` how
    often none can be started. `waits_for` are caches of stalled workers.
    """

    def __init__(self, world: World, caps: Caps, count: int = 4) -> None:
        super().__init__(NoStarter(), count)
        self.world, self.caps = world, caps
        self.held = False
        self.given: list[Job] = []
        self.deaths: dict[Digest, int] = {}
        self.refusals = 0
        self.waits_for: set[int] = set()
        self.give_error: OSError | None = None
        self._in_hand: list[tuple[Job, int]] = []
        self._read: list[Result] = []

    @property
    def idle(self) -> int:
        return self.count - len(self.jobs())

    @property
    def stalled(self) -> set[int]:
        return self.waits_for

    def jobs(self) -> list[Job]:
        return [job for job, _ in self._in_hand] + [result.job for result in self._read]

    def give(self, job: Job, descriptor: int, cache: int = 0) -> None:  # noqa: ARG002
        if self.give_error is not None:
            raise self.give_error
        assert self.idle > 0
        assert job.digest not in {other.digest for other in self.jobs()}
        self.given.append(job)
        self._in_hand.append((job, os.dup(descriptor)))

    def read(self, meanwhile: Callable[[Job], None] = lambda _: None) -> None:
        """What the jobs in hand find now. `meanwhile` is called after each of its reads."""
        for job, descriptor in self._in_hand:
            if self.refusals:
                self.refusals -= 1
                os.close(descriptor)
                self._read.append(Result(job, None, "the system started no worker", begun=False))
            elif self.deaths.get(job.digest, 0):
                self.deaths[job.digest] -= 1
                os.close(descriptor)
                self._read.append(Result(job, None, "its worker died (signal 11)"))
            else:
                self._read.append(Result(job, self._examine(job, descriptor, meanwhile)))
        self._in_hand.clear()

    def found(self, changed: Callable[[Job, Finding], Finding]) -> None:
        """What was read and is not collected yet is found to be so."""
        self._read = [
            replace(result, finding=changed(result.job, result.finding)) if result.finding else result
            for result in self._read
        ]

    def _examine(self, job: Job, descriptor: int, meanwhile: Callable[[Job], None]) -> Finding:
        with mock.patch.object(examine, "_PROGRESS_S", 0.0):
            found = examine.examine(job, descriptor, PARAMS, self.caps, lambda _: meanwhile(job))
        # The worker's clock is the world's.
        ahead_ns = int(self.world.ahead_s * 1e9) if found.read_until_ns else 0
        return replace(found, read_until_ns=found.read_until_ns + ahead_ns)

    def collect(self, timeout_s: float, bell: object = None) -> list[Result]:  # noqa: ARG002
        if self.held:
            return []
        self.read()
        found, self._read = self._read, []
        return found

    def close(self) -> None:
        for _, descriptor in self._in_hand:
            os.close(descriptor)
        self._in_hand.clear()
        self._read.clear()

    @property
    def decoded(self) -> list[Digest]:
        return [job.digest for job in self.given if job.decode]

    @property
    def hashed_again(self) -> list[Digest]:
        return [job.digest for job in self.given if not job.decode]


class Deaf:
    """A watcher that hears of nothing."""

    alive = True

    def enter(self, folder: str) -> None: ...

    def leave(self) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class World:
    """Caches on disk and the daemon's inside, without its threads. `roots` are the caches, by their numbers.

    `sources` may have another source for a cache's path than the folder there. No cache has a watcher but by
    `make_watcher`. `names_file` is the setting. What is set of these is so from the next start on.
    """

    index: Index
    pool: HerePool
    activity: Activity
    caches: dict[int, ServedCache]
    writer: Writer
    scanner: Scanner

    def __init__(self, folder: Path, *names: str, caps: Caps = CAPS, decoder: str = "1") -> None:
        self.folder = folder
        self.roots = [folder / name for name in names or ("cache",)]
        for root in self.roots:
            root.mkdir(parents=True, exist_ok=True)
        self.sources: dict[str, Source] = {}
        self.make_watcher: WatchMaker | None = None
        self.names_file: Path | None = None
        self.verify_interval_s = 86400.0
        self.begun_s, self.ahead_s = time.time(), 0.0
        self.start(caps, decoder)

    # --- the daemon's life ----------------------------------------------------------------------------------------

    def start(self, caps: Caps = CAPS, decoder: str = "1") -> None:
        rules = Rules(PARAMS, caps, decoder)
        # Observations are dated by this clock, and a file is at rest by them. All else is told the world's own clock.
        self._monotonic = mock.patch("time.monotonic_ns", self._monotonic_ns)
        self._monotonic.start()
        with mock.patch.object(environment, "MAP_BYTES", 1 << 28):  # address space runs out when many are open
            self.index = Index(str(self.folder / "state"), rules, "a test")
        adopt_rules(self.index, rules)
        self.serve()

    def serve(self) -> None:
        """A writer and the caches at these roots, on the index that is open."""
        records, left = number_caches(self.index, tuple(map(str, self.roots)))
        self.activity, self.wakeup = Activity(), Wakeup()
        devices = Devices()
        self.caches = {
            number: ServedCache(
                number, record, self.sources.get(record.path) or FolderSource(record.path), self.activity,
                wake_writer=self.wakeup.wake, empty=holds_nothing(self.index, number), clock_s=self.clock_s,
                make_watcher=self.make_watcher, devices=devices, known=known_places(self.index, number),
                read_names=functools.partial(reading_beside, record.path),
            )
            for number, record in records.items()
        }  # fmt: skip
        self.file_reader: NamesReader | None = None
        if self.names_file is not None:
            make = functools.partial(reading_file, str(self.names_file))
            self.file_reader = NamesReader(make, wake_writer=self.wakeup.wake, clock_s=self.clock_s)
        self.pool = HerePool(self, self.index.rules.caps)
        self.writer = Writer(
            self.index, self.pool, self.caches, self.activity, self.wakeup,
            left=LeftCaches(self.index, left) if left else None, verify_interval_s=self.verify_interval_s,
            clock_s=self.clock_s, names_file=self.file_reader,
        )  # fmt: skip
        self.scanner = Scanner(self.caches, 600, self.clock_s)

    def stop(self) -> None:
        """As kill -9 would: what is in memory is lost."""
        self.pool.close()
        for cache in self.caches.values():
            cache.stop()
            cache.run()
        self.index.close()
        self.wakeup.close()
        self._monotonic.stop()

    def drain(self) -> None:
        """As a daemon that ends does, while the caches' threads go on."""
        collect = self.pool.collect

        def stepping(timeout_s: float, bell: object = None) -> list[Result]:
            self.step()
            return collect(timeout_s, bell)

        with mock.patch.object(self.pool, "collect", stepping):
            self.writer.drain(5)

    def lose_hints(self) -> int:
        """Every hint that waits is lost; how many there were."""
        lost = 0
        for cache in self.caches.values():
            tokens = [token for _, token in cache.hints.take(1 << 20)]
            while (folder := cache.hints.take_folder()) is not None:
                tokens.append(folder[1])
            for token in tokens:
                self.activity.give_back(token)
            lost += len(tokens)
        return lost

    def restart(self, caps: Caps = CAPS, decoder: str = "1") -> None:
        self.stop()
        self.start(caps, decoder)

    # --- time -----------------------------------------------------------------------------------------------------

    def clock_s(self) -> float:
        return self.begun_s + self.ahead_s

    def _monotonic_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) + int(self.ahead_s * 1e9)

    def pass_s(self, seconds: float) -> None:
        """Time passes, and the writer does what has become due."""
        self.ahead_s += seconds
        self.run()

    def step(self) -> None:
        """What each cache's thread would do until it has nothing to do."""
        for cache in self.caches.values():
            for _ in range(TURNS):
                if not cache.step():
                    break
        while self.file_reader is not None and self.file_reader.step():
            pass

    def run(self) -> None:
        """Turns until there is nothing to do at once; while the pool is held, until all is handed to it."""
        for _ in range(TURNS):
            self.step()
            self.writer.turn(0.0)
            self.step()
            if not self.activity.working() or (self.pool.held and self._all_in_hand()):
                return
        raise AssertionError(f"it never ends: {self.activity}")

    def run_turns(self, count: int) -> None:
        for _ in range(count):
            self.step()
            self.writer.turn(0.0)

    def _all_in_hand(self) -> bool:
        """Whether all that is left are blobs that workers have, and those that wait for one."""
        jobs = len(self.pool.jobs())
        return (jobs == len(self.writer.tasks) > 0 or not self.pool.idle) and not any(
            cache.observations or cache.listings or cache.opened or len(cache.hints) for cache in self.caches.values()
        )

    def scan(self, *, verify: bool = False, accept: bool = False, retry_failed: bool = False) -> None:
        """A whole scan, and all that follows from it at once."""
        self.scanner.request("a test", verify=verify, accept=accept, retry_failed=retry_failed)
        self.run()

    def settle(self, *, verify: bool = False) -> None:
        """A scan, and time passes until nothing is waited for any longer."""
        self.scan(verify=verify)
        self.rest()

    def rest(self) -> None:
        """Time passes until nothing is waited for any longer. What was not told of is not found."""
        self.run()
        for _ in range(20):
            if self.activity.idle():
                return
            self.pass_s(11)
        raise AssertionError(f"it never settles: {self.activity}, {self.writer.remembered}")

    # --- names ----------------------------------------------------------------------------------------------------

    def read_names(self) -> None:
        """Time passes, somebody asks for fresh names, and all that follows from it."""
        self.pass_s(FRESH_S + 1)
        self.writer.names.ask()
        self.rest()

    def names(self) -> dict[tuple[int, str], set[Part]]:
        """What the index keeps of names, by cache and base."""
        found: dict[tuple[int, str], set[Part]] = {}
        with self.index.snapshot() as txn:
            for key, value in self.index.store.names(txn):
                kept = names_record.decode(value)
                found.setdefault((int.from_bytes(key[:4], "big"), kept.base), set()).add(kept.part)
        return found

    def names_on_disk(self) -> dict[tuple[int, str], set[Part]]:
        """What lies beside the places that the index has, and in the names file. A part may have no names."""
        found: dict[tuple[int, str], set[Part]] = {}
        for number, cache in self.caches.items():
            with self.index.snapshot() as txn:
                paths = [place.path for place in self.index.store.under(txn, "places", number, "")]
            for base in {base for path in paths if (base := base_of(cache.path, path))}:
                parts = {*filter(None, read_names(base, repository_of(cache.path, base)))}
                if parts:
                    found[number, base] = parts
        if self.names_file is not None:
            found[0, ""] = {read_names_file(str(self.names_file))}
        return found

    def readings(self) -> dict[int, names_record.Reading]:
        with self.index.snapshot() as txn:
            found = self.index.store.name_readings(txn)
        return {number: names_record.decode_reading(value) for number, value in found.items()}

    # --- events ---------------------------------------------------------------------------------------------------

    def event(self, path: Path, cause: Cause = Cause.MOVED_IN, *, folder: bool = False) -> None:
        """What the watcher would make of an event."""
        cache = self.cache_of(path)
        watch.hint_at(cache.hints, cache.path, str(path.relative_to(cache.path)), folder, cause)

    def heard(self, path: Path, cause: Cause = Cause.MOVED_IN) -> None:
        """An event, and all that follows from it at once."""
        self.event(path, cause)
        self.run()

    def cache_of(self, path: Path) -> ServedCache:
        return next(cache for cache in self.caches.values() if path.is_relative_to(cache.path))

    def place(self, path: Path) -> Place:
        cache = self.cache_of(path)
        return Place(cache.number, str(path.relative_to(cache.path)))

    # --- what the index says --------------------------------------------------------------------------------------

    @property
    def totals(self) -> Totals:
        with self.index.snapshot() as txn:
            return self.index.store.head(txn).totals

    @property
    def scanned_at_ns(self) -> int:
        with self.index.snapshot() as txn:
            return self.index.store.head(txn).scanned_at_ns

    def counted(self) -> set[Digest]:
        with self.index.snapshot() as txn:
            return {blob.digest for blob in self.index.store.blobs(txn, "blobs")}

    def failed(self) -> dict[Digest, Blob]:
        with self.index.snapshot() as txn:
            return {blob.digest: blob for blob in self.index.store.blobs(txn, "failed")}

    def ignored(self) -> dict[str, str]:
        """Reasons by path relative to the cache."""
        with self.index.snapshot() as txn:
            return {place.path: reason for place, reason in self.index.store.ignored(txn)}

    def held(self, path: Path) -> Held | None:
        with self.index.transaction() as change:
            return change.held(self.place(path))

    def suspects(self) -> int:
        with self.index.snapshot() as txn:
            return sum(1 for _ in self.index.store.walk(txn, "needs_rehash"))

    def differences(self) -> list[str]:
        with self.index.snapshot() as txn:
            return [str(difference) for difference in recount(self.index.store, txn).differences]

    def holds_exactly(self, *contents: Content, failed: Iterable[Digest] = ()) -> None:
        """The index counts these and nothing else, its figures are the oracle's, and a recount finds no difference."""
        names = {content.digest: content.name for content in CONTENTS}
        assert {names.get(digest, digest) for digest in self.counted()} == {content.name for content in contents}
        assert set(self.failed()) == set(failed)
        totals, blobs_failed = self.totals, self.failed().values()
        expected = totals_of(contents)
        for name in expected.__dataclass_fields__:
            if not name.startswith("failed"):
                assert getattr(totals, name) == getattr(expected, name), name
        assert (totals.failed_blobs, totals.failed_bytes) == (
            len(blobs_failed),
            sum(blob.stored_bytes for blob in blobs_failed),
        )
        says = {content.digest: content.stored for content in contents if content is OTHER}
        assert self.manifests() == {digest: parse(stored) for digest, stored in says.items()}
        assert self.differences() == []

    def manifests(self) -> dict[Digest, Contents]:
        """What the index keeps of manifests."""
        with self.index.snapshot() as txn:
            found = self.index.store.walk(txn, "manifests")
            return {digest_from_key(key): manifest_record.decode(value) for key, value in found}


@contextlib.contextmanager
def world_in(folder: Path, *names: str, caps: Caps = CAPS) -> Iterator[World]:
    """A world whose index is recounted when the test has ended well."""
    world = World(folder, *names, caps=caps)
    try:
        yield world
        assert world.differences() == []
    finally:
        with contextlib.suppress(ChunkdError):
            world.stop()


@contextlib.contextmanager
def looks() -> Iterator[list[Hint]]:
    """Every hint whose place is observed meanwhile."""
    looked: list[Hint] = []

    def noted(observed: Observation, known: Known, now_s: float) -> list[Action]:
        looked.append(observed.hint)
        return decide(observed, known, now_s)

    with mock.patch.object(writer, "decide", noted):
        yield looked


@contextlib.contextmanager
def comparisons() -> Iterator[list[Request]]:
    """The scans that caches ask for themselves meanwhile, because they may have missed events."""
    asked: list[Request] = []
    request_scan = ServedCache.request_scan

    def noted(cache: ServedCache, request: Request) -> None:
        if request.verify and request.number == 0:
            asked.append(request)
        request_scan(cache, request)

    with mock.patch.object(ServedCache, "request_scan", noted):
        yield asked


# --- files ------------------------------------------------------------------------------------------------------------


def oci(root: Path, content: Content, repository: str = "") -> Path:
    return root / repository / "blobs" / content.digest.algorithm / content.hex


def distribution(root: Path, content: Content) -> Path:
    return root / "blobs" / content.digest.algorithm / content.hex[:2] / content.hex / "data"


def land(path: Path, data: bytes) -> Path:
    """As most writers do: written beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / ".in-flight"
    partial.write_bytes(data)
    partial.rename(path)
    return path


def write_in_place(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def touch(path: Path) -> None:
    """Change the file's metadata until the file system's clock shows it."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        os.chmod(path, 0o600 if path.stat().st_mode & 0o040 else 0o644)


def wrong(content: Content) -> bytes:
    """Other bytes of the same length."""
    return hashlib.shake_128(content.stored).digest(len(content.stored))


def logged(records: Iterable[logging.LogRecord], value: object, level: int = logging.INFO) -> list[logging.LogRecord]:
    """The records from `level` on that name a value, such as a path."""
    return [record for record in records if record.levelno >= level and str(value) in record.getMessage()]
