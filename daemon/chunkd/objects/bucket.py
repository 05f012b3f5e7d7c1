"""A bucket, or what lies below a prefix of it, as the source of a cache.

Folders are what ends with a slash in the keys. What a listing says of an object serves until the object is opened, so a
new blob costs no request before it is read. The bytes are those with that ETag, or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from errno import EAGAIN, EINVAL, ENOTSUP
from typing import Any, NamedTuple

from chunkd.errors import CacheUnusable, StarterGone
from chunkd.model import HEX_DIGITS, Timing
from chunkd.objects import reader
from chunkd.objects.store import Bucket, Object
from chunkd.objects.tree import Links, Tree
from chunkd.sources import layouts
from chunkd.sources.source import Entry, RootMark, Seen

# What listings said of so many objects is kept, and why so many could not be read.
MOST_LISTED, MOST_UNREAD = 1 << 16, 4096
# Looks at an object before its bytes are read: at the mount it is on, when it is observed, and when it is opened.
LOOKS_A_LISTING = 3
# So long the bucket is taken to be there, unless an object was absent: each look at it is a request that is paid for.
ROOT_S = 60.0
# How long the process that reads may take to start, or to take a request; and the most that it says at once.
START_S, LINE_BYTES = 20.0, 1 << 16
# What a request that is tried again may take as a whole. A cache is hung after that.
HUNG_S = 200.0
PLACEHOLDER = "a placeholder of no bytes, as zot has for a blob that another repository has"
EMPTY = {hashlib.new(algorithm).hexdigest() for algorithm in HEX_DIGITS}

# Starts `main` of a module in a process of its own, and returns the connection to it (`worker.pool.Pool.run`).
Run = Callable[[str, dict[str, Any]], socket.socket]


class Unread(NamedTuple):
    """Why the object with this tag could not be read."""

    tag: str
    problem: str
    archived: bool


class BucketSource:
    """`run` starts the process that reads objects; without it nothing can be opened. Raises what `Bucket` does."""

    def __init__(self, url: str, run: Run | None = None) -> None:
        self.path, self.prefix, self.bucket = url, prefix_of(url), Bucket(url)
        self.listed: dict[str, tuple[Object, int]] = {}  # with how many looks it still serves
        self.opened: set[str] = set()  # those that were not looked at since
        self.unread: dict[str, Unread] = {}
        self._run = run
        self._connection: socket.socket | None = None
        self._heard = b""
        self._root = RootMark(self.bucket.device, self.bucket.device)
        self._root_until_s = 0.0
        self._links = Links()

    def look_at_root(self) -> RootMark:
        """Raises OSError where there is no such bucket, or it can't be listed. A prefix without objects is there."""
        if time.monotonic() >= self._root_until_s:
            self.bucket.has_any(self.prefix)
            self._root_until_s = time.monotonic() + ROOT_S
        return self._root

    @contextlib.contextmanager
    def view(self) -> Iterator[BucketView]:
        yield BucketView(self, self._root)

    def forget(self, keys: Iterable[str]) -> None:
        """Ask the bucket for these at the next look."""
        for key in keys:
            self.opened.discard(key)
            self.listed.pop(key, None)

    def absent(self) -> None:
        """An object was not there: is the bucket?"""
        self._root_until_s = 0.0

    def remember(self, of: Object, looks: int = LOOKS_A_LISTING) -> None:
        """Keep what is known of an object until it is opened, and for so many looks."""
        self.listed.pop(of.key, None)
        while len(self.listed) >= MOST_LISTED:
            del self.listed[next(iter(self.listed))]
        self.listed[of.key] = of, looks

    @contextlib.contextmanager
    def beside(self, base: str, _: str = "") -> Iterator[Tree]:
        """What lies beside blobs, below a URL in the same bucket."""
        yield Tree(self.bucket, prefix_of(base), self._links)

    def served_as(self, watch: bool, timing: Timing) -> dict[str, Any]:
        """What `ServedCache` is told of a bucket. A listing is paid for, so only the scans of all caches list it."""
        make_watcher = (lambda *_: NoEvents()) if watch else None
        return {"make_watcher": make_watcher, "polled_s": math.inf, "timing": replace(timing, hung_s=HUNG_S)}

    # --- reading --------------------------------------------------------------------------------------------------

    def open(self, of: Object) -> int:
        """A descriptor from which the object's bytes can be read. Raises OSError."""
        ours, theirs = reader.pair()
        with ours:
            try:
                self._send(json.dumps(of).encode(), ours)
            except BaseException:
                theirs.close()
                raise
        return theirs.detach()

    def _send(self, request: bytes, end: socket.socket) -> None:
        for connection in (self._connection, None):
            try:
                self._connection = connection or self._started()
                if not select.select([], [self._connection], [], START_S)[1]:
                    raise TimeoutError
                socket.send_fds(self._connection, [request], [end.fileno()])
                return
            except (ConnectionError, TimeoutError) as error:
                self.close()
                if connection is None:  # it was just started
                    raise OSError(EAGAIN, "the process that reads objects has ended, or does not answer") from error

    def _started(self) -> socket.socket:
        if self._run is None:
            raise OSError(ENOTSUP, "nothing reads objects here")
        try:
            connection = self._run(reader.__name__, {"url": self.bucket.url, "environ": dict(os.environ)})
        except StarterGone as error:
            raise OSError(EAGAIN, str(error)) from error
        try:
            connection.settimeout(START_S)
            # It takes no request before: who reads the first line may take more than that.
            if connection.recv(1) != reader.READY:
                raise ConnectionError
            connection.setblocking(False)
        except OSError:
            connection.close()
            raise
        return connection

    def hear(self) -> None:
        """Take in what the reading process said of objects that it could not read."""
        if self._connection is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self._heard += self._connection.recv(LINE_BYTES)
        *lines, self._heard = self._heard.split(b"\n")
        try:
            if len(self._heard) > LINE_BYTES:
                raise ValueError("a line without end")
            for line in lines:
                key, tag, problem, archived = json.loads(line)
                if not problem:
                    self.listed.pop(key, None)
                    continue
                while len(self.unread) >= MOST_UNREAD:
                    del self.unread[next(iter(self.unread))]
                self.unread[key] = Unread(str(tag), str(problem), bool(archived))
        except (ValueError, TypeError, RecursionError):
            self.close()  # it reads what others wrote, and may say anything: the next one is another process

    def close(self) -> None:
        """End the process that reads."""
        if self._connection is not None:
            self._connection.close()
            self._connection, self._heard = None, b""


class BucketView:
    """`Source.view` of a bucket."""

    def __init__(self, source: BucketSource, root: RootMark) -> None:
        self._source, self.root = source, root
        self._ahead: dict[str, Object | OSError] = {}

    def look_ahead(self, paths: Sequence[str]) -> None:
        keys = [key for key in map(self._key, paths) if self._source.listed.get(key, (None, 0))[1] < 1]
        self._ahead = dict(zip(keys, self._source.bucket.looks(keys), strict=True)) if keys else {}

    def look(self, path: str) -> Seen:
        key = self._key(path)
        self._source.hear()
        self._source.opened.discard(key)
        listed, left = self._source.listed.get(key, (None, 0))
        if listed is not None and left:
            self._source.listed[key] = listed, left - 1
        else:
            listed = self._asked(key)
        return self._seen(listed)

    def _asked(self, key: str) -> Object:
        """What the bucket says of an object now."""
        found = self._ahead.pop(key, None) or self._source.bucket.looks([key])[0]
        if isinstance(found, FileNotFoundError):
            self._source.listed.pop(key, None)
            self._source.absent()
        if isinstance(found, OSError):
            raise found
        self._source.remember(found, looks=0)
        return found

    def _seen(self, of: Object) -> Seen:
        mark, kind = of.mark(self.root.device), PLACEHOLDER if _is_placeholder(of) else ""
        unread = self._source.unread.get(of.key)
        return Seen(mark, 1, kind) if unread is None or unread.tag != of.tag else Seen(mark, 1, kind, *unread[1:])

    def list(self, folder: str) -> Iterator[Entry]:
        prefix = self._key(f"{folder}/" if folder else "")
        # A reading that was done before finds nothing wrong with an object that this listing lacks.
        read = {key for key in self._source.opened if key.startswith(prefix)}
        # Here each folder is a blob's: one listing has what is in all of them.
        if layouts.naming(self._source.path, folder).layout == "distribution":
            objects = itertools.chain.from_iterable(self._source.bucket.keys(prefix))
            for name, inside in itertools.groupby(objects, lambda of: of.key[len(prefix) :].partition("/")[0]):
                for of in inside:
                    if of.key == f"{prefix}{name}/{layouts.DATA}":
                        read.discard(of.key)
                        yield self._entry(name, of, is_folder=True)
            self._source.forget(read)
            return
        found, folders = self._source.bucket.folder(prefix)
        there = {of.key for of in found} | set(folders)
        self._source.forget(key for key in read if prefix + key[len(prefix) :].partition("/")[0] not in there)
        for of in found:
            if of.key.startswith(prefix):  # not the mark of the folder itself
                yield self._entry(of.key[len(prefix) :], of, is_folder=False)
        for path in folders:
            yield Entry(path[len(prefix) :], is_file=False, is_folder=True)

    def _entry(self, name: str, of: Object, *, is_folder: bool) -> Entry:
        self._source.remember(of)
        return Entry(name, not is_folder, is_folder, self._seen(of))

    def open(self, path: str) -> tuple[int, Seen]:
        key = self._key(path)
        of = self._source.listed.get(key, (None, 0))[0] or self._asked(key)
        self._source.unread.pop(key, None)
        self._source.remember(of, looks=1)  # after the reading, which is a look: it says so if the object is another
        self._source.opened.add(key)
        seen = self._seen(of)
        return (-1 if seen.kind else self._source.open(of)), seen

    def _key(self, path: str) -> str:
        if "\0" in path or not {".", ".."}.isdisjoint(path.split("/")):
            raise OSError(EINVAL, "not a path below the prefix", path)
        return self._source.prefix + path


class NoEvents:
    """The watcher of a cache that gives no events."""

    alive = True

    def enter(self, folder: str) -> None: ...
    def leave(self) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


def prefix_of(url: str) -> str:
    """What all keys below a URL begin with."""
    prefix = url.partition("://")[2].partition("/")[2].strip("/")
    return f"{prefix}/" if prefix else ""


def check_usable(url: str) -> None:
    """Raises CacheUnusable when the bucket can't be listed, or there is nothing below the prefix."""
    bucket = Bucket(url)
    try:
        found = bucket.has_any(prefix_of(url))
    except OSError as error:
        raise CacheUnusable(url, f"can't be listed: {error.strerror}") from None
    if not found:
        raise CacheUnusable(url, "has no object; name the bucket, or the prefix that the registry writes below")


def _is_placeholder(of: Object) -> bool:
    name = of.key.removesuffix(f"/{layouts.DATA}").rpartition("/")[2]
    return not of.stored_bytes and len(name) in HEX_DIGITS.values() and name not in EMPTY
