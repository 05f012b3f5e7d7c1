"""An index into a store: segments for the blobs that the source's last snapshot lacked, and then a snapshot.

The index is read in transactions of one moment each, the first of which lists what there is. Recipes of blobs never
change. So those that are read later are still those of that moment, unless a blob has gone meanwhile; then all is
listed once more.
"""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from chunkd.errors import ChunkdError
from chunkd.fleet import snapshot
from chunkd.fleet.index_recipes import recipes_of
from chunkd.fleet.key import Key
from chunkd.fleet.segment import Entry, SegmentRules, digest_bytes, read_blobs, segment_id, write
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.store import Store, is_partial
from chunkd.index import records
from chunkd.index.storage import durability
from chunkd.index.storage.environment import Store as Index
from chunkd.index.storage.environment import reading
from chunkd.model import Blob, Recipe
from chunkd.names import record

if TYPE_CHECKING:
    import lmdb

# So many chunks and blobs a segment at most on the average, which are read in one transaction.
SEGMENT_CHUNKS = 1_000_000
# How often blobs may go while they are read.
TRIES = 5
SNAPSHOTS_KEPT = 2

Held = tuple[bytes, str, int, str]
# The digest, the kind and the stored bytes of a blob, as they are in a snapshot: who has these has the blob.
Fact = tuple[bytes, str, int]
# Stored bytes that are done, those of all blobs, and how many blobs are left.
Progress = Callable[[int, int, int], None]


class IndexMoves(ChunkdError):
    def __init__(self, path: str) -> None:
        super().__init__(f"index {path}: blobs went while they were exported, {TRIES} times; export again")


class SourceUnusable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"source {path}: {problem}; this file keeps the id by which stores know this index")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did: the blobs of its snapshot, and those of them that were read. `segments` are those that were
    made, and `reused` those that were there though no snapshot of this source had them.
    """

    source: str
    moment: str
    blobs: int
    read: int
    segments: int
    reused: int


@dataclass(frozen=True, slots=True)
class _Listing:
    """What an index held at one moment. `names` are records of `names.record`."""

    rules: records.Rules
    blobs: list[Blob]
    names: list[bytes]
    names_as_of_ns: int
    as_of_ns: int
    scanned_at_ns: int
    moment_ns: int


def export(
    state_dir: str, store: Store, facts: Facts, key: Key | None = None, progress: Progress = lambda *_: None
) -> Exported:
    """Bring the store up to date with the index of a state directory.

    Of `facts` an `as_of_ns` of 0 means that nobody watches the caches: then it is that of the index. Raises IndexMoves,
    RulesDiffer and StoreUnusable, and what `reading` raises.
    """
    listing = _list(state_dir, with_names=key is None)
    source = source_id(state_dir)
    job = _Export(state_dir, store, source, key, progress)
    for _ in range(TRIES):
        held = job.held(listing)
        if held is None:
            listing = _list(state_dir, with_names=key is None)
            continue
        facts = replace(
            facts, as_of_ns=listing.moment_ns if facts.as_of_ns else max(listing.as_of_ns, listing.scanned_at_ns),
            scanned_at_ns=listing.scanned_at_ns, names_as_of_ns=listing.names_as_of_ns,
        )  # fmt: skip
        rules = SegmentRules.of(listing.rules, key)
        moment = snapshot.put(store, source, listing.moment_ns, facts, rules, held, listing.names)
        tidy(store, source)
        return Exported(source, moment, len(held), job.read, job.segments, job.reused)
    raise IndexMoves(state_dir)


def source_id(state_dir: str) -> str:
    """The id of the index's source, which is made with the first export. Raises SourceUnusable."""
    path = Path(state_dir, "source")
    try:
        if not path.exists():
            partial = path.with_name(f"source.{secrets.token_hex(8)}.new")
            with open(partial, "x") as file:
                file.write(f"{uuid.uuid4()}\n")
                file.flush()
                os.fsync(file.fileno())
            durability.give_away((partial,), path.parent.stat())
            try:
                os.link(partial, path)
            except FileExistsError:
                pass  # another export was faster
            finally:
                os.unlink(partial)
        return str(uuid.UUID(path.read_text().strip()))
    except OSError as error:
        raise SourceUnusable(str(path), error.strerror or str(error)) from None
    except ValueError:
        raise SourceUnusable(str(path), "it has no UUID") from None


class _Export:
    """What was done so far; it is kept when the index has to be listed once more."""

    def __init__(self, state_dir: str, store: Store, source: str, key: Key | None, progress: Progress) -> None:
        self._state_dir, self._store, self._key, self._progress = state_dir, store, key, progress
        self._last = snapshot.latest(store, source)
        self._done: dict[Fact, str] = {}
        self._rules: SegmentRules | None = None
        self.read = self.segments = self.reused = 0

    def held(self, listing: _Listing) -> list[Held] | None:
        """The rows of a snapshot. None if a blob has gone before it was read."""
        rules = SegmentRules.of(listing.rules, self._key)
        self._store.begin(rules.params, rules.key)
        facts = {(digest_bytes(blob.digest, self._key), blob.state, blob.stored_bytes): blob for blob in listing.blobs}
        if rules != self._rules:
            self._rules, self._done = rules, self._known(rules, facts)
        missing = [(fact, blob) for fact, blob in facts.items() if fact not in self._done]
        whole, left, left_bytes = True, len(missing), sum(size for (_, _, size), _ in missing)
        all_bytes = sum(size for _, _, size in facts)
        for group in _groups(missing):
            whole &= self._put(listing.rules, group)
            left, left_bytes = left - len(group), left_bytes - sum(size for (_, _, size), _ in group)
            self._progress(all_bytes - left_bytes, all_bytes, left)
        return sorted((*fact, self._done[fact]) for fact in facts) if whole else None

    def _known(self, rules: SegmentRules, facts: Mapping[Fact, Blob]) -> dict[Fact, str]:
        """The segments of the last snapshot, but for those of which less than a half is still held."""
        if self._last is None or self._last.rules != rules:
            return {}
        held = self._last.held
        columns = (held[name].to_pylist() for name in ("digest", "kind", "stored_bytes", "segment"))
        known = {(digest, kind, size): segment for digest, kind, size, segment in zip(*columns, strict=True)}
        lost = {segment for fact, segment in known.items() if fact not in facts}
        live: Counter[str] = Counter()
        for fact, segment in known.items():
            if fact in facts:
                live[segment] += 1 + facts[fact].chunks
        usable = {
            segment: self._store.has_segment(segment)
            and (segment not in lost or 2 * live[segment] >= self._size(segment))
            for segment in set(known.values())
        }
        return {fact: segment for fact, segment in known.items() if fact in facts and usable[segment]}

    def _size(self, segment: str) -> int:
        table = read_blobs(self._store, segment).table
        return int(table.num_rows + (pc.sum(table["chunks"]).as_py() or 0))

    def _put(self, rules: records.Rules, group: Sequence[tuple[Fact, Blob]]) -> bool:
        """Put a segment of these blobs into the store. False if one of them has gone, or has changed."""
        with reading(self._state_dir) as index, index.snapshot() as txn:
            if index.check_format(txn, None) != rules:
                return False
            entries = list(_entries(index, txn, [blob for _, blob in group]))
        if not entries:
            return False
        segment = segment_id(SegmentRules.of(rules, self._key), (blob for blob, _, _ in entries), self._key)
        if self._store.has_segment(segment):
            self._store.keep_segment(segment)
            self.reused += 1
        else:
            write(self._store, rules, entries, self._key)
            self.segments += 1
        present = {blob.digest for blob, _, _ in entries}
        self._done |= {fact: segment for fact, blob in group if blob.digest in present}
        self.read += len(entries)
        return len(entries) == len(group)


def _list(state_dir: str, *, with_names: bool) -> _Listing:
    with reading(state_dir) as index, index.snapshot() as txn:
        rules, head = index.check_format(txn, None), index.head(txn)
        blobs = [*index.blobs(txn, "blobs"), *index.blobs(txn, "failed")]
        names, names_as_of_ns = [], 0
        if with_names:
            names = [record.without_paths(value) for _, value in index.names(txn)]
            readings = {cache: record.decode_reading(value) for cache, value in index.name_readings(txn).items()}
            names_as_of_ns = record.names_as_of_ns(readings, index.caches(txn)) or 0
        return _Listing(rules, blobs, names, names_as_of_ns, head.as_of_ns, head.scanned_at_ns, time.time_ns())


def _entries(index: Index, txn: lmdb.Transaction, blobs: Sequence[Blob]) -> Iterator[Entry]:
    """Those of the blobs that the index still has as they were listed."""
    there = []
    for blob in blobs:
        value = index.get(txn, "blobs" if blob.counted else "failed", records.digest_key(blob.digest))
        if value is not None and _alike(blob, records.unpack_blob(blob.digest, value)):
            there.append(blob)
    recipes = recipes_of(index, txn, [blob for blob in there if blob.state == "layer"])
    for blob in there:
        manifest = index.get(txn, "manifests", records.digest_key(blob.digest)) or b""
        yield blob, next(recipes) if blob.state == "layer" else Recipe(), manifest


def _alike(one: Blob, other: Blob) -> bool:
    return (one.state, one.stored_bytes, one.chunks) == (other.state, other.stored_bytes, other.chunks)


def _groups(blobs: Sequence[tuple[Fact, Blob]]) -> Iterator[list[tuple[Fact, Blob]]]:
    """Blobs in groups of some SEGMENT_CHUNKS. The digests decide the group. So a blob more or less changes one group
    alone, and an export that was cut short finds the others done.
    """
    size = sum(1 + blob.chunks for _, blob in blobs)
    bits = max(0, (size - 1) // SEGMENT_CHUNKS).bit_length()
    groups: dict[int, list[tuple[Fact, Blob]]] = {}
    for fact, blob in blobs:
        groups.setdefault(int.from_bytes(fact[0][1:5], "big") >> (32 - bits), []).append((fact, blob))
    yield from groups.values()


def tidy(store: Store, source: str) -> None:
    """Remove the source's older snapshots, and their segments that no snapshot of any source refers to."""
    moments = snapshot.moments(store, source)
    older, kept = moments[:-SNAPSHOTS_KEPT], moments[-SNAPSHOTS_KEPT:]
    used = {one for moment in kept for one in snapshot.segments(snapshot.read(store, source, moment))}
    named = {moment: snapshot.segments_at(store, source, moment) for moment in older}
    gone = {one for segments in named.values() for one in segments} - used
    for other in snapshot.sources(store) if gone else ():
        for moment in snapshot.moments(store, other) if other != source else ():
            gone -= snapshot.segments_at(store, other, moment)
    store.remove_old("segments", lambda name: not is_partial(name) and name.partition(".")[0] not in gone)
    done = tuple(moment for moment in older if not any(store.has_segment(one) for one in named[moment] & gone))
    store.remove_old(f"snapshots/{source}", lambda name: not (done and name.startswith(done)), 0)
    whole = tuple(moments)
    store.remove_old(
        f"snapshots/{source}",
        lambda name: not is_partial(name) and (name.startswith(whole) or not name.endswith(".names.parquet")),
    )
