"""A task of a scan: some blobs of a source are read, and their recipes put into the store. It keeps nothing.

Its workers decode; it does not, and of a bucket it only asks what an object is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EAGAIN
from typing import Any

from chunkd.errors import RecipeImpossible
from chunkd.fleet import segment
from chunkd.fleet.key import Key
from chunkd.fleet.segment import Entry, SegmentRules
from chunkd.fleet.store import Store
from chunkd.index.records import Rules
from chunkd.model import Blob, Digest, FileMark, Finding, Job, Recipe
from chunkd.objects.choose import bucket_of
from chunkd.sources.folder import FolderSource
from chunkd.sources.source import Seen
from chunkd.worker.pool import Pool, Result, Wakeup
from chunkd.worker.spawn import Courtesy, make_pool

# So many chunks a segment, and those of one blob more: making one takes some 100 bytes for each.
MOST_CHUNKS = 1 << 22
# How often one place is read.
TRIES = 3
# A file that changed so recently may still be written.
SETTLE_S = 10.0
NO_FILE = FileMark(0, 0, 0, 0)


@dataclass(slots=True)
class _Wanted:
    """A blob that is to be read. `mark` is that of the file that was opened last, `said` what became of its places."""

    digest: Digest
    places: list[str]
    tries: int = 0
    mark: FileMark = NO_FILE
    said: dict[str, FileMark] = field(default_factory=dict)


def run(task: dict[str, Any], asker: Wakeup, check_asker: Callable[[], None]) -> dict[str, Any]:
    """Carry out a task. The `asker` ends a wait, and `check_asker` raises when it has gone. Raises what `Store` and
    `Pool` do.
    """
    said = SegmentRules.unpack(task["rules"].encode())
    rules = Rules(said.params, said.caps, said.decoder, said.measure)
    store = Store(task["store"])
    key = Key(task["key_file"]) if task["key_file"] else None
    store.check(rules.params, key.id if key else "")  # also that it is there: nobody would find what is put elsewhere
    with contextlib.ExitStack() as stack:
        pool = make_pool(task["workers"], Courtesy(*task["courtesy"]), rules.params, rules.caps, rules.measure)
        stack.callback(pool.close)
        return _Task(task, store, rules, key, pool, stack).run(asker, check_asker)


class _Task:
    def __init__(
        self, task: dict[str, Any], store: Store, rules: Rules, key: Key | None, pool: Pool, stack: contextlib.ExitStack
    ) -> None:
        self._store, self._rules, self._key, self._pool = store, rules, key, pool
        self._bucket = bucket_of(task["source"], pool.run)
        self._source = self._bucket or FolderSource(task["source"])
        self._waiting: list[_Wanted] = []
        self._in_hand: dict[Digest, _Wanted] = {}
        self._entries: list[Entry] = []
        self._chunks = 0
        self._segments: list[str] = []
        self._read = Counter[str]()
        self._vanished: list[Digest] = []
        self._unread = Counter[str]()
        if self._bucket:
            stack.callback(self._bucket.close)
        for algorithm, hex_digits, places in reversed(task["blobs"]):
            self._waiting.append(_Wanted(Digest(algorithm, hex_digits), [path for path, *_ in places]))
            for path, *of in places if self._bucket else ():
                self._remember(path, *of)

    def _remember(self, path: str, stored_bytes: int, tag: str, changed_ns: int) -> None:
        from chunkd.objects.store import Object

        if self._bucket and tag:
            self._bucket.remember(Object(self._bucket.prefix + path, stored_bytes, tag, changed_ns), looks=0)

    def run(self, asker: Wakeup, check_asker: Callable[[], None]) -> dict[str, Any]:
        while self._waiting or self._in_hand:
            while self._waiting and self._pool.idle:
                self._give(self._waiting.pop())
            if self._in_hand or self._waiting:  # also for the end of a worker that has nothing in hand any more
                for result in self._pool.collect(1.0, asker):
                    self._take(self._in_hand.pop(result.job.digest), result)
            check_asker()
            if self._chunks >= MOST_CHUNKS:
                self._write()
        self._write()
        return {
            "segments": self._segments, "read": self._read, "vanished": self._vanished, "unread": self._unread,
        }  # fmt: skip

    def _give(self, wanted: _Wanted) -> None:
        """Have a blob read at its first place."""
        path = wanted.places[0]
        try:
            with self._source.view() as view:
                before = None if self._bucket else view.look(path)
                descriptor, seen = view.open(path)
        except (FileNotFoundError, NotADirectoryError):
            return self._next_place(wanted)
        except OSError as error:
            wanted.tries += 1
            if error.errno == EAGAIN and wanted.tries < TRIES:  # whoever reads objects has died
                return self._waiting.append(wanted)
            return self._next_place(wanted, f"can't be read: {error.strerror}")
        if seen.kind:
            return self._next_place(wanted)
        # Some file systems give a file another inode by its path than by a descriptor.
        wanted.mark = (before or seen).mark
        try:
            self._pool.give(Job(wanted.digest, seen.mark), descriptor)
        finally:
            os.close(descriptor)
        self._in_hand[wanted.digest] = wanted
        return None

    def _take(self, wanted: _Wanted, result: Result) -> None:
        finding = result.finding
        wanted.tries += 1
        if finding is None and wanted.tries < TRIES:
            self._waiting.append(wanted)
        elif finding is None:
            self._next_place(wanted, result.died)
        elif finding.kind in ("layer", "other", "undecodable"):
            self._add(wanted.digest, result.job.mark.stored_bytes, finding)
        else:
            self._doubt(wanted, finding)

    def _doubt(self, wanted: _Wanted, finding: Finding) -> None:
        """The bytes are not those of the name, or could not be read: by what is there now, try again, or give up."""
        try:
            with self._source.view() as view:
                now: Seen = view.look(wanted.places[0])
        except (FileNotFoundError, NotADirectoryError):
            return self._next_place(wanted)
        except OSError as error:
            return self._next_place(wanted, f"can't be read: {error.strerror}")
        has_failed = finding.kind == "mismatched" or now.archived
        if wanted.tries < TRIES and (now.mark != wanted.mark or not has_failed):
            return self._waiting.append(wanted)
        if now.mark != wanted.mark:
            return self._next_place(wanted, "is being written")
        if finding.kind == "mismatched":
            is_young = time.time_ns() - now.mark.ctime_ns < SETTLE_S * 1e9
            return self._next_place(wanted, "is being written" if is_young else "failed")
        return self._next_place(
            wanted, "archived" if now.archived else f"can't be read: {now.problem or finding.reason}"
        )

    def _next_place(self, wanted: _Wanted, said: str = "") -> None:
        """Of a blob whose places have all been tried, what is known of its bytes decides."""
        del wanted.places[0]
        wanted.tries = 0
        if said:
            wanted.said[said] = wanted.mark
        if wanted.places:
            self._waiting.append(wanted)
            return
        for state in ("failed", "archived"):
            if state in wanted.said:
                self._keep(Blob(wanted.digest, state, wanted.said[state].stored_bytes), Recipe(), b"")
                return
        if wanted.said:
            self._unread.update([next(iter(wanted.said))])
        else:
            self._vanished.append(wanted.digest)

    def _add(self, digest: Digest, stored_bytes: int, finding: Finding) -> None:
        if finding.kind == "layer":
            chunks = len(finding.recipe)
            blob = Blob(digest, "layer", stored_bytes, finding.uncompressed_bytes, chunks, finding.codec)
        else:
            blob = Blob(digest, "other" if finding.kind == "other" else "failed", stored_bytes)
        self._keep(blob, finding.recipe, finding.manifest)

    def _keep(self, blob: Blob, recipe: Recipe, manifest: bytes) -> None:
        self._entries.append((blob, recipe, manifest))
        self._chunks += blob.chunks
        self._read.update({"blobs": 1, "bytes": blob.stored_bytes})

    def _write(self) -> None:
        if not self._entries:
            return
        try:
            made = segment.write(self._store, self._rules, self._entries, self._key)
        except RecipeImpossible:
            self._entries = [_possible(entry, self._rules) for entry in self._entries]
            made = segment.write(self._store, self._rules, self._entries, self._key)
        self._segments.append(made)
        self._entries, self._chunks = [], 0


def _possible(entry: Entry, rules: Rules) -> Entry:
    """The entry, or one of a failed blob if its worker sent what no chunker makes."""
    try:
        segment.check(entry, rules)
    except RecipeImpossible:
        return Blob(entry[0].digest, "failed", entry[0].stored_bytes), Recipe(), b""
    return entry
