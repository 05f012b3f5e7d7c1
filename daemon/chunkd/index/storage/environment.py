"""The LMDB environment under the index: opening it, checking its format and rules, and reading its figures.

Neither numpy nor the look-up is imported here, so that `chunkd stats` can read an index quickly when no daemon runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import lmdb

from chunkd.errors import (
    FormatMismatch,
    IndexBusy,
    IndexDamaged,
    IndexMissing,
    IndexRemoved,
    IndexUnreachable,
    IndexUnwritable,
    ParamsMismatch,
    ProcessNumberTaken,
)
from chunkd.figures import histogram
from chunkd.index import records
from chunkd.index.storage import durability, upgrade
from chunkd.index.storage.lock import IndexLock, as_whom
from chunkd.index.storage.page_audit import audit_pages, cut_short, problem_of, seek
from chunkd.model import Blob, Cache, ChunkParams, Digest, Place

# The map takes address space only: the file is as long as its used pages.
MAP_BYTES = 1 << 40
DATABASES = (
    "meta", "blobs", "failed", "places", "holders", "ignored", "needs_rehash", "recipes", "manifests", "names",
    "chunks", "measured", "young", "dense", "history",
)  # fmt: skip
MAX_READERS = 126
# An index of up to this size is followed whenever it is opened: 3 to 12 ms a MiB. At some damage LMDB ends the process,
# and at some a writer finds no record where one is, and writes it a second time.
AUDITED_BYTES = 16 << 20
Record = TypeVar("Record")

FORMAT_KEY, RULES_KEY, HEAD_KEY, CACHES_KEY, VERIFIED_KEY = b"format", b"rules", b"head", b"caches", b"verified"
HISTOGRAM_KEY, AT_REST_KEY = b"histogram", b"at_rest"


class Store:
    """One open environment with its named databases. Its format and rules are checked before anything else is read."""

    def __init__(
        self, path: str, *, readonly: bool, lock: bool = True, audit: bool = False, any_format: bool = False
    ) -> None:
        """Every page of a small index is checked before any is used, and with `audit` those of a larger one. With
        `any_format` only `meta` is opened, in which `caches` begins alike in every format. An index of chunkd 0.1 is
        upgraded if it is opened for writing. Raises FormatMismatch otherwise.
        """
        self.path, self.readonly = path, readonly
        data = Path(path, "data.mdb")
        # LMDB leaves an empty file when the disk is full as it begins.
        if readonly and not (data.exists() and data.stat().st_size):
            raise IndexMissing(path)
        try:
            if not readonly:
                Path(path).mkdir(mode=0o750, parents=True, exist_ok=True)
                durability.write_out_lock(path)
            self.env = lmdb.open(
                path, map_size=MAP_BYTES, max_dbs=len(DATABASES) + 1, max_readers=MAX_READERS, mode=0o640,
                readonly=readonly, lock=lock, create=not readonly, metasync=False, max_spare_txns=2,
            )  # fmt: skip
        except lmdb.Error as error:
            raise self._unopened(error) from error
        except UnicodeEncodeError:
            raise IndexUnreachable(path, "LMDB needs a path that is UTF-8; use another with `--state DIR`") from None
        except OSError as error:
            raise IndexUnreachable(path, durability.said(path, error.errno, str(error.strerror))) from error
        try:
            with self.guarded():
                if audit or self.index_bytes() <= AUDITED_BYTES or cut_short(self.env, self.index_bytes()):
                    audit_pages(self.env, path, DATABASES)
                self.databases = {"meta": self.open_database("meta")}
                if not any_format:
                    with self.env.begin() as txn:
                        is_new = txn.get(FORMAT_KEY, db=self.databases["meta"]) is None
                        upgradable = not (readonly or is_new) and self.format(txn) == upgrade.FORMAT
                        if not (is_new or upgradable):
                            self._check_format(txn)
                    if upgradable:
                        self.resync()
                        upgrade.upgrade(self.env)
                    self.databases = {name: self.open_database(name) for name in DATABASES}
        except BaseException:
            self.env.close()
            raise

    def open_database(self, name: str) -> lmdb._Database:
        """Raises IndexDamaged when the database is missing and this store may not create it."""
        try:
            return self.env.open_db(name.encode(), create=not self.readonly)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            raise IndexDamaged(self.path, f"it has no database {name!r}") from None

    def _unopened(self, error: lmdb.Error) -> Exception:
        """Why the environment could not be opened, as one of chunkd's errors."""
        # The map is larger than MAP_BYTES if the file says that it must be.
        claimed = isinstance(error, (lmdb.MemoryError, lmdb.InvalidParameterError)) and self.index_bytes() > 0
        if claimed and (problem := problem_of(self.path)):
            return IndexDamaged(self.path, problem)
        if isinstance(error, lmdb.MemoryError):
            return IndexUnreachable(
                self.path,
                f"no address space for its map of {MAP_BYTES >> 40} TiB, of which only its pages take memory;"
                " lift the limit (`ulimit -v`, LimitAS= of systemd, vm.overcommit_memory=2)",
            )
        named = self._named(error)
        return IndexUnreachable(self.path, named.reason) if isinstance(named, IndexUnwritable) else named

    def _named(self, error: lmdb.Error) -> Exception:
        """LMDB's error as one of chunkd's, if it is damage or may pass. Any other is a bug and is returned as it is."""
        text = str(error)
        if isinstance(error, lmdb.LockError):
            return ProcessNumberTaken(self.path, os.getpid())
        if isinstance(error, lmdb.PanicError):
            return IndexUnreachable(self.path, "LMDB gave up after an I/O error; start chunkd again")
        if isinstance(error, lmdb.MapFullError):
            return IndexUnwritable(self.path, f"it has grown to {MAP_BYTES >> 40} TiB, the most it can be")
        for number in durability.UNWRITABLE:
            if os.strerror(number) in text or (isinstance(error, lmdb.DiskError) and number == errno.ENOSPC):
                return IndexUnwritable(self.path, durability.said(self.path, number, os.strerror(number)))
        if any(os.strerror(number) in text for number in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)):
            return IndexUnreachable(self.path, text)
        # A transaction goes bad when an operation in it met a page that it could not use. A cursor is full where pages
        # form a circle. No index outgrows the map.
        damage = (
            lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError,
            lmdb.BadTxnError, lmdb.MapResizedError, lmdb.CursorFullError,
        )  # fmt: skip
        # The binding has no error class for a version that neither of LMDB's engines writes.
        if isinstance(error, damage) or "data format" in text:
            return IndexDamaged(self.path, text)
        return error

    def resync(self) -> None:
        """Make sure that the newest commit is on disk. Call this before the first transaction of a process, and before
        the next one after one has failed. Raises IndexUnwritable, or IndexUnreachable when the commit is lost.

        A commit is final once the sync of the next one has its meta page on disk, before LMDB reuses pages that the
        previous state needs. If that sync fails, the page is clean in memory and not on disk, no later sync writes it,
        and a power cut would find the previous state with its pages overwritten. So the page is written once more.
        """
        with self.guarded():
            try:
                durability.rewrite(str(Path(self.path, "data.mdb")), 2 * self.env.stat()["psize"])
            except OSError as error:
                raise IndexUnwritable(
                    self.path, durability.said(self.path, error.errno, str(error.strerror))
                ) from error
            with self.env.begin() as txn:
                if txn.id() != self.env.info()["last_txnid"]:
                    # Some file systems (btrfs) put back what is on disk when a sync fails.
                    raise IndexUnreachable(self.path, "an I/O error took back its last commit; start chunkd again")

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[lmdb.Transaction]:
        """A read transaction, which sees one moment. Raises as `guarded` does."""
        with self.guarded(), self.env.begin() as txn:
            yield txn

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns an error that LMDB or a record codec raises inside into one of chunkd's errors."""
        try:
            yield
        except lmdb.Error as error:
            raise self._named(error) from error
        except records.Damaged as error:
            raise IndexDamaged(self.path, str(error)) from error

    def get(self, txn: lmdb.Transaction, database: str, key: bytes) -> bytes | None:
        value = txn.get(key, db=self.databases[database])
        return None if value is None else bytes(value)

    def sealed(self, txn: lmdb.Transaction, key: bytes, unpack: Callable[[bytes], Record]) -> Record:
        """A record of `meta`. Raises IndexDamaged when it is missing or its checksum does not match."""
        value = self.get(txn, "meta", key)
        if value is None:
            raise IndexDamaged(self.path, f"the record {key.decode()!r} is missing")
        try:
            return unpack(value)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise IndexDamaged(self.path, f"the record {key.decode()!r}: {error}") from error

    def check_format(self, txn: lmdb.Transaction, params: ChunkParams | None) -> records.Rules:
        """The stored rules. Raises FormatMismatch, and ParamsMismatch when `params` are given and differ."""
        self._check_format(txn)
        rules = self.sealed(txn, RULES_KEY, records.unpack_rules)
        if params is not None and rules.params != params:
            raise ParamsMismatch(self.path, str(rules.params), str(params))
        return rules

    def format(self, txn: lmdb.Transaction) -> int:
        return self.sealed(txn, FORMAT_KEY, records.unpack_format)

    def _check_format(self, txn: lmdb.Transaction) -> None:
        found = self.format(txn)
        if found != records.FORMAT:
            raise FormatMismatch(self.path, found, records.FORMAT, upgradable=found == upgrade.FORMAT)

    def head(self, txn: lmdb.Transaction) -> records.Head:
        return self.sealed(txn, HEAD_KEY, records.unpack_head)

    def histogram(self, txn: lmdb.Transaction) -> list[list[int]]:
        """The rows of `chunkd.figures.histogram`."""
        return self.sealed(txn, HISTOGRAM_KEY, lambda value: histogram.unpack(records.unseal(value)))

    def caches(self, txn: lmdb.Transaction) -> dict[int, Cache]:
        return self.sealed(txn, CACHES_KEY, records.unpack_caches)

    def verified_s(self, txn: lmdb.Transaction) -> int | None:
        """When the last round that compares every place ended, in seconds since the epoch; None if none did."""
        if self.get(txn, "meta", VERIFIED_KEY) is None:
            return None
        return self.sealed(txn, VERIFIED_KEY, lambda value: int.from_bytes(records.unseal(value), "little"))

    def at_rest(self, txn: lmdb.Transaction) -> bool:
        """Whether the last writer ended with nothing left to do, so that the figures have all that was known then."""
        return self.get(txn, "meta", AT_REST_KEY) is not None

    def blobs(self, txn: lmdb.Transaction, database: str, after: bytes = b"") -> Iterator[Blob]:
        """The records of `blobs` or `failed` whose key comes after the given one, in key order."""
        for key, value in self.walk(txn, database, after):
            yield records.unpack_blob(records.digest_from_key(key), value)

    def holders(self, txn: lmdb.Transaction, digest: Digest) -> Iterator[Place]:
        """Every place of a digest, in key order."""
        prefix = records.digest_key(digest)
        for key, _ in self.walk(txn, "holders", prefix):
            if not key.startswith(prefix):
                return
            yield records.place_from_key(key[len(prefix) :])

    def ignored(self, txn: lmdb.Transaction, after: bytes = b"") -> Iterator[tuple[Place, str]]:
        for key, value in self.walk(txn, "ignored", after):
            yield records.place_from_key(key), value.decode(errors="replace")

    def names(self, txn: lmdb.Transaction, cache: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        """The records of names (`names.record`) of a cache, or of all, by their keys. Raises Damaged."""
        prefix = b"" if cache is None else records.names_key(cache, b"")
        for key, value in self.walk(txn, "names", prefix):
            if not key.startswith(prefix):
                return
            if len(key) > records.READING_KEY_BYTES:
                yield key, records.unseal(value)

    def name_readings(self, txn: lmdb.Transaction) -> dict[int, bytes]:
        """The record of each cache's last complete reading of names (`names.record`), by its number. Raises Damaged."""
        found: dict[int, bytes] = {}
        with txn.cursor(db=self.databases["names"]) as cursor:
            cache = 0
            while seek(cursor, records.names_key(cache, b"")):
                key = bytes(cursor.key())
                cache = int.from_bytes(key[: records.READING_KEY_BYTES], "big")
                if len(key) == records.READING_KEY_BYTES:
                    found[cache] = records.unseal(bytes(cursor.value()))
                cache += 1
        return found

    def walk(self, txn: lmdb.Transaction, database: str, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The records of a database whose key comes after the given one, in key order."""
        with txn.cursor(db=self.databases[database]) as cursor:
            if seek(cursor, after) if after else cursor.first():
                for key, value in cursor:
                    if key != after:
                        yield bytes(key), bytes(value)

    def blobs_in(self, txn: lmdb.Transaction, cache: int) -> Iterator[Blob]:
        """Each counted blob that has a place in a cache, once for each of its places."""
        for place in self.under(txn, "places", cache, ""):
            held = records.unpack_held(self.get(txn, "places", records.place_key(place)) or b"")
            value = self.get(txn, "blobs", records.digest_key(held.digest))
            if value is not None:
                yield records.unpack_blob(held.digest, value)

    def place_from(self, txn: lmdb.Transaction, place: Place) -> Place | None:
        """The first place of the same cache that is this one or comes after it, in key order."""
        with txn.cursor(db=self.databases["places"]) as cursor:
            if not seek(cursor, records.place_key(place)):
                return None
            found = records.place_from_key(bytes(cursor.key()))
        return found if found.cache == place.cache else None

    def under(self, txn: lmdb.Transaction, database: str, cache: int, path: str) -> Iterator[Place]:
        """Every place that is `path` or lies below it; all places of the cache for `""`."""
        exact = records.place_key(Place(cache, path))
        if path and txn.get(exact, db=self.databases[database]) is not None:
            yield Place(cache, path)
        prefix = exact + b"/" if path else exact
        for key, _ in self.walk(txn, database, prefix):
            if not key.startswith(prefix):
                return
            yield records.place_from_key(key)

    def index_bytes(self) -> int:
        """The size of the index's file on disk. Raises IndexRemoved."""
        try:
            return Path(self.path, "data.mdb").stat().st_size
        except FileNotFoundError:
            raise IndexRemoved(self.path) from None

    def close(self) -> None:
        self.env.close()


@contextlib.contextmanager
def reading(state_dir: str, *, audit: bool = False, any_format: bool = False) -> Iterator[Store]:
    """The index of a state directory, opened for reading: beside its writer if there is one; else no writer can start
    meanwhile. Raises IndexMissing, IndexUnreachable, IndexDamaged.
    """
    path = str(Path(state_dir, "index"))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(IndexLock(state_dir, exclusive=False))
            # Nobody writes, and nobody can begin to. So LMDB's own lock file is not needed, nor a right to write it.
            lock = False
        except IndexBusy:
            lock = True
        except IndexMissing:
            if not os.path.exists(os.path.join(path, "data.mdb")):
                raise
            lock = False  # a copy without its lock file, which no writer has opened
        try:
            store = Store(path, readonly=True, lock=lock, audit=audit, any_format=any_format)
        except IndexUnreachable as error:
            # Beside a writer a reader writes too: LMDB's own lock file records what it is reading.
            raise IndexUnreachable(path, f"{error.reason}; {as_whom(state_dir)}") from error
        stack.callback(store.close)
        yield store


@contextlib.contextmanager
def reading_first(state_dirs: Sequence[str], *, audit: bool = False) -> Iterator[tuple[Store, str]]:
    """The first index that there is, as `reading` opens it, and its state directory. Raises as that does."""
    with contextlib.ExitStack() as stack:
        for state_dir in state_dirs:
            with contextlib.suppress(IndexMissing):
                store = stack.enter_context(reading(state_dir, audit=audit))
                break
        else:
            raise IndexMissing(", ".join(state_dirs))
        yield store, state_dir
