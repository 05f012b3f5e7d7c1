"""The LMDB environment under the index: who may open it, what must be true of it, and reading its figures.

Neither numpy nor the look-up is imported here, so that `chunkd stats` can read an index quickly when no daemon runs.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import lmdb

from chunkd import records
from chunkd.errors import (
    FormatMismatch,
    IndexBusy,
    IndexDamaged,
    IndexMissing,
    IndexUnreachable,
    IndexUnwritable,
    ParamsMismatch,
)
from chunkd.lock import IndexLock
from chunkd.model import Blob, ChunkParams, Digest, Place

# The map is address space and nothing else: the file is as long as its used pages.
MAP_BYTES = 1 << 40
DATABASES = (
    "meta",
    "blobs",
    "failed",
    "places",
    "holders",
    "ignored",
    "suspects",
    "recipes",
    "chunks",
    "young",
    "dense",
)
MAX_READERS = 126
SLICE_KEYS = 64
Record = TypeVar("Record")
_READ_ALL = """
import lmdb, sys
env = lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=32)
with env.begin() as txn:
    for name, _ in list(txn.cursor()):
        for key, value in txn.cursor(db=env.open_db(name, txn, create=False)):
            pass
"""

FORMAT_KEY, RULES_KEY, HEAD_KEY, CACHES_KEY, VERIFIED_KEY = b"format", b"rules", b"head", b"caches", b"verified"


class Store:
    """One open environment with its named databases. Checked for format and rules before anything else is read."""

    def __init__(self, path: str, *, readonly: bool, lock: bool = True) -> None:
        self.path, self.readonly = path, readonly
        data = Path(path, "data.mdb")
        # A file without a byte is what a writer leaves that found the disk full, or was killed, as it began.
        if readonly and not (data.exists() and data.stat().st_size):
            raise IndexMissing(path)
        try:
            if not readonly:
                Path(path).mkdir(mode=0o750, parents=True, exist_ok=True)
            self.env = lmdb.open(
                path, map_size=MAP_BYTES, max_dbs=len(DATABASES), max_readers=MAX_READERS, mode=0o640,
                readonly=readonly, lock=lock, create=not readonly, metasync=False, max_spare_txns=2,
            )  # fmt: skip
        except lmdb.Error as error:
            raise self._named(error) from error
        except OSError as error:
            raise IndexUnreachable(path, str(error.strerror)) from error
        try:
            self._check_length()
            with self.guarded():
                self.databases = {name: self._database(name) for name in DATABASES}
        except BaseException:
            self.env.close()
            raise

    def _check_length(self) -> None:
        """A page behind the end of the file would not be an error but the end of the process (SIGBUS).

        A file may be shorter than the pages that were ever given out, for LMDB leaves those unwritten that were freed
        again at once. So when it is, every record is read first, by a process that may die of it.
        """
        pages = self.env.info()["last_pgno"] + 1
        if self.index_bytes() >= pages * self.env.stat()["psize"]:
            return
        reading = [sys.executable, "-P", "-c", _READ_ALL, self.path]
        if subprocess.run(reading, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise IndexDamaged(self.path, f"its file is cut short at {self.index_bytes()} bytes")

    def _database(self, name: str) -> lmdb._Database:
        try:
            return self.env.open_db(name.encode(), create=not self.readonly)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            raise IndexDamaged(self.path, f"it has no database {name!r}") from None

    def _named(self, error: Exception) -> Exception:
        """LMDB's error as one of chunkd's: what can be waited for, what is damage; a bug stays what it is."""
        if isinstance(error, lmdb.PanicError):
            return IndexUnreachable(self.path, "LMDB gave up after an I/O error; start chunkd again")
        if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)):
            return IndexUnwritable(self.path, str(error))
        text = str(error)
        if any(os.strerror(code) in text for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT)):
            return IndexUnwritable(self.path, text)
        if any(os.strerror(code) in text for code in (errno.EACCES, errno.EPERM, errno.EROFS)):
            return IndexUnreachable(self.path, text)
        if isinstance(
            error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
        ):
            return IndexDamaged(self.path, text)
        return error

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever LMDB or a record codec raises inside comes out as an error with a name."""
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
        """A record of `meta`. Raises IndexDamaged when it is not there or its checksum does not match."""
        value = self.get(txn, "meta", key)
        if value is None:
            raise IndexDamaged(self.path, f"the record {key.decode()!r} is missing")
        try:
            return unpack(value)
        except (ValueError, KeyError, TypeError) as error:
            raise IndexDamaged(self.path, f"the record {key.decode()!r}: {error}") from error

    def check_format(self, txn: lmdb.Transaction, params: ChunkParams | None) -> records.Rules:
        """The stored rules. Raises FormatMismatch, and ParamsMismatch when `params` are given and are others."""
        found = self.sealed(txn, FORMAT_KEY, records.unpack_format)
        if found != records.FORMAT:
            raise FormatMismatch(self.path, found, records.FORMAT)
        rules = self.sealed(txn, RULES_KEY, records.unpack_rules)
        if params is not None and rules.params != params:
            raise ParamsMismatch(self.path, str(rules.params), str(params))
        return rules

    def head(self, txn: lmdb.Transaction) -> records.Head:
        return self.sealed(txn, HEAD_KEY, records.unpack_head)

    def caches(self, txn: lmdb.Transaction) -> dict[int, records.Cache]:
        return self.sealed(txn, CACHES_KEY, records.unpack_caches)

    def verified_s(self, txn: lmdb.Transaction) -> int | None:
        """When the last round that compares every place came to its end, in seconds since the epoch."""
        if self.get(txn, "meta", VERIFIED_KEY) is None:
            return None
        return self.sealed(txn, VERIFIED_KEY, lambda value: int.from_bytes(records.unseal(value), "little"))

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

    def walk(self, txn: lmdb.Transaction, database: str, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(db=self.databases[database]) as cursor:
            if cursor.set_range(after) if after else cursor.first():
                for key, value in cursor:
                    if key != after:
                        yield bytes(key), bytes(value)

    def kinds(self, txn: lmdb.Transaction, cache: int) -> Iterator[str]:
        """The state (`layer`, `other`) of each counted blob that has a place in a cache."""
        for place in self.under(txn, "places", cache, ""):
            held = records.unpack_held(self.get(txn, "places", records.place_key(place)) or b"")
            value = self.get(txn, "blobs", records.digest_key(held.digest))
            if value is not None:
                yield records.unpack_blob(held.digest, value).state

    def children(self, txn: lmdb.Transaction, database: str, cache: int, folder: str) -> set[bytes]:
        """The names right below a folder that lead to a record of `places` or `ignored`, a folder's with a slash."""
        prefix = records.place_key(Place(cache, f"{folder}/" if folder else ""))
        start = len(prefix)
        names: set[bytes] = set()
        with txn.cursor(db=self.databases[database]) as cursor:
            there = cursor.set_range(prefix)
            while there:
                # By the slice: a folder may hold every blob there is.
                keys = cast("list[bytes]", list(itertools.islice(cursor.iternext(values=False), SLICE_KEYS)))
                if not keys[-1].startswith(prefix):
                    keys = [key for key in keys if key.startswith(prefix)]
                below = [key[start:] for key in keys]
                if b"/" in b"".join(below):
                    below = [name[: name.find(b"/") + 1 or None] for name in below]
                names.update(below)
                if len(keys) < SLICE_KEYS:
                    break
                # "0" is what follows "/": on to the first key that is not below the last name.
                after = prefix + below[-1][:-1] + b"0" if below[-1].endswith(b"/") else keys[-1] + b"\0"
                there = cursor.set_range(after)
        return names

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
        """The size of the index's file on disk."""
        return Path(self.path, "data.mdb").stat().st_size

    def close(self) -> None:
        self.env.close()


@contextlib.contextmanager
def reading(state_dir: str) -> Iterator[Store]:
    """The index of a state directory, to be read: beside its writer if there is one, and else with nobody starting to
    write meanwhile. Raises IndexMissing, IndexUnreachable.
    """
    path = str(Path(state_dir, "index"))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(IndexLock(state_dir, exclusive=False))
            # Nobody writes and nobody can begin to: no right to write LMDB's own lock file is needed.
            lock = False
        except IndexBusy:
            lock = True
        except IndexMissing:
            if not os.path.exists(os.path.join(path, "data.mdb")):
                raise
            lock = False  # a copy without its lock file, which no writer has ever opened
        store = Store(path, readonly=True, lock=lock)
        stack.callback(store.close)
        yield store
