"""The index's one writer: transactions in which recipes, counts and totals change together, and nowhere else."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from chunkd.errors import IndexDamaged, IndexRemoved, IndexUnreachable, IndexUnwritable, RecipeImpossible
from chunkd.figures import histogram
from chunkd.figures.totals import sums
from chunkd.index import records
from chunkd.index.history import History
from chunkd.index.storage.create import create, give_away, is_there
from chunkd.index.storage.environment import (
    AT_REST_KEY,
    CACHES_KEY,
    HEAD_KEY,
    HISTOGRAM_KEY,
    RULES_KEY,
    VERIFIED_KEY,
    Store,
)
from chunkd.index.storage.lock import IndexLock
from chunkd.model import Blob, Cache, Digest, Place, Recipe

if TYPE_CHECKING:
    from chunkd.index.blocks import Numbers
    from chunkd.index.chunks.lookup import Lookup
    from chunkd.index.chunks.table import ChunkRecords

# If more counted blobs than these agree on a chunk's length, a new recipe that contradicts them is not believed.
MOST_DOUBTED = 8


class RecipeContradicts(RecipeImpossible):
    """Two recipes give one chunk two lengths, so one of their workers lied.

    `digests` are the counted blobs that have the chunk and must be read again. It is empty if more than `MOST_DOUBTED`
    have it: then the new recipe is taken to be wrong.
    """

    def __init__(self, chunk_hash: bytes, digests: tuple[Digest, ...]) -> None:
        others = ", ".join(map(str, digests)) or f"more than {MOST_DOUBTED} other blobs"
        super().__init__(f"chunk {chunk_hash.hex()} has another length in {others}")
        self.chunk_hash, self.digests = chunk_hash, digests


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


class Index:
    """An open index. It belongs to the owner of its state directory, even when root has made it.

    Raises IndexBusy when another process writes it, ParamsMismatch when it was made with other parameters.
    """

    def __init__(
        self, state_dir: str, rules: records.Rules, holder: str, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        try:
            Path(state_dir).mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise IndexUnreachable(state_dir, f"{error.strerror}; name another with `--state DIR`") from error
        self._lock = IndexLock(state_dir, exclusive=True, holder=holder)
        path = Path(state_dir, "index")
        try:
            if not is_there(path):
                create(path, rules)
            # The last writer was killed or crashed, perhaps at a damaged page, where this one would end too.
            self.store = Store(str(path), readonly=False, audit=bool(self._lock.left))
        except BaseException:
            self._lock.close()
            raise
        try:
            self._clock_ns = clock_ns
            # Blocks without a live chunk, which a compaction will delete. A chunk that revives takes its block out.
            self.dead_blocks: set[int] = set()
            self._history = History(self.store.databases["history"])
            # Whether the newest commit is on disk. After another process's last commit nobody knows.
            self._synced = False
            with self.store.snapshot() as txn:
                self.rules = self.store.check_format(txn, rules.params)
            give_away(path)
            self._files = {name: _identity(name) for name in (self._lock.path, path / "data.mdb", path / "lock.mdb")}
        except BaseException:
            self.close()
            raise

    @functools.cached_property
    def lookup(self) -> Lookup:
        from chunkd.index.chunks.lookup import Lookup  # brings numpy: so long to import as all else together

        return Lookup(self.store.databases["young"], self.store.databases["dense"])

    def check_there(self) -> None:
        """Raises IndexRemoved when the index's files and its lock are no longer those that were opened."""
        try:
            there = all(_identity(name) == identity for name, identity in self._files.items())
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError as error:
            raise IndexUnreachable(self.store.path, str(error.strerror)) from error
        if not there:
            raise IndexRemoved(self.store.path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Change]:
        """Commits and syncs everything that is done with the `Change`, or nothing if anything is raised.

        Raises IndexUnwritable when the disk can't take it (the index is as before), IndexDamaged for damage.
        """
        try:
            if not self._synced:
                self.store.resync()
                self._synced = True
            with self.store.guarded(), self.store.env.begin(write=True, buffers=True) as txn:
                change = Change(self, txn)
                yield change
                now_ns = self._clock_ns()
                change.write_head(now_ns)
                if change.totals_changed:
                    self._history.note(txn, now_ns, change.head.totals)
        except BaseException as error:
            self._synced &= not isinstance(error, IndexUnwritable)
            self.lookup.forget()
            raise
        self.rules = change.rules

    def snapshot(self) -> contextlib.AbstractContextManager[lmdb.Transaction]:
        return self.store.snapshot()

    def record_at_rest(self, is_at_rest: bool = True) -> None:
        """Record whether nothing is left to do: every known blob is in the figures or has failed. The next change of
        the index removes the record. Writes nothing if the record is right already. Raises IndexUnwritable.
        """
        with self.snapshot() as txn:
            if self.store.at_rest(txn) == is_at_rest:
                return
        with self.transaction() as change:
            if is_at_rest:
                change.txn.put(AT_REST_KEY, records.seal(b""), db=self.store.databases["meta"])
            else:
                change.txn.delete(AT_REST_KEY, db=self.store.databases["meta"])

    def close(self) -> None:
        self.store.close()
        self._lock.close()


class Change:
    """One write transaction."""

    def __init__(self, index: Index, txn: lmdb.Transaction) -> None:
        self.index, self.store, self.txn = index, index.store, txn
        self.rules = index.rules
        self.head = self._head = self.store.head(txn)
        self._touched = False
        # By how much the totals and the histogram grow. Their records are written once.
        self._steps: Counter[str] = Counter()
        self._grown: Numbers | None = None

    @functools.cached_property
    def chunks(self) -> ChunkRecords:
        from chunkd.index.chunks.table import ChunkRecords

        return ChunkRecords(self.txn, self.store.databases, self.index.lookup, self.index.rules, self.index.dead_blocks)

    @property
    def totals_changed(self) -> bool:
        return self.head.totals != self._head.totals

    # --- reading --------------------------------------------------------------------------------------------------

    def blob(self, digest: Digest) -> Blob | None:
        """The counted blob of that digest."""
        return self._blob("blobs", digest)

    def failed(self, digest: Digest) -> Blob | None:
        return self._blob("failed", digest)

    def _blob(self, database: str, digest: Digest) -> Blob | None:
        value = self.store.get(self.txn, database, records.digest_key(digest))
        return None if value is None else records.unpack_blob(digest, value)

    def held(self, place: Place) -> records.Held | None:
        value = self.store.get(self.txn, "places", records.place_key(place))
        return None if value is None else records.unpack_held(value)

    def holders(self, digest: Digest) -> Iterator[tuple[Place, records.Held]]:
        """Every place of a digest. Don't change places while walking."""
        for place in self.store.holders(self.txn, digest):
            held = self.held(place)
            if held is None or held.digest != digest:
                raise records.Damaged(f"{digest} is said to be at {place.path!r}, whose record says otherwise")
            yield place, held

    def caches(self) -> dict[int, Cache]:
        return self.store.caches(self.txn)

    # --- places ---------------------------------------------------------------------------------------------------

    def hold(self, place: Place, held: records.Held) -> None:
        self._put("places", records.place_key(place), records.pack_held(held))
        self._put("holders", records.holder_key(held.digest, place), b"")

    def release(self, place: Place, digest: Digest) -> None:
        self._delete("places", records.place_key(place))
        self._delete("holders", records.holder_key(digest, place))

    def ignore(self, place: Place, reason: str) -> bool:
        """Returns whether this changed the record."""
        key = records.place_key(place)
        if self.store.get(self.txn, "ignored", key) == reason.encode():
            return False
        self._put("ignored", key, reason.encode())
        return True

    def unignore(self, place: Place) -> None:
        self._discard("ignored", records.place_key(place))

    def require_rehash(self, digest: Digest) -> None:
        """Record that a counted digest has lost its verified place: another place must be hashed."""
        self._put("needs_rehash", records.digest_key(digest), b"")

    def needs_rehash(self, digest: Digest) -> bool:
        return self.store.get(self.txn, "needs_rehash", records.digest_key(digest)) is not None

    def rehashed(self, digest: Digest) -> None:
        self._discard("needs_rehash", records.digest_key(digest))

    # --- names ----------------------------------------------------------------------------------------------------

    def put_names(self, key: bytes, value: bytes) -> None:
        """Keep the record of names, or of their last reading, under its `records.names_key`."""
        self._put("names", key, records.seal(value))

    def drop_names(self, key: bytes) -> None:
        self._discard("names", key)

    # --- what is not derived from blobs ---------------------------------------------------------------------------

    def set_caches(self, caches: dict[int, Cache]) -> None:
        self._put("meta", CACHES_KEY, records.pack_caches(caches))

    def set_rules(self, rules: records.Rules) -> None:
        self._put("meta", RULES_KEY, records.pack_rules(rules))
        self.rules = rules

    def scanned(self, at_ns: int) -> None:
        self.head = replace(self.head, scanned_at_ns=at_ns)

    def verified(self, at_s: float) -> None:
        """Record that a round has compared every place."""
        self._put("meta", VERIFIED_KEY, records.seal(int(at_s).to_bytes(8, "little")))

    def fail(self, blob: Blob) -> None:
        """Record a failed blob, replacing its record."""
        self.clear_failure(blob.digest)
        self._put("failed", records.digest_key(blob.digest), records.pack_blob(blob))
        self._steps.update(sums("failed", blob))

    def clear_failure(self, digest: Digest) -> None:
        """Remove the record of a failure, if it exists."""
        old = self.failed(digest)
        if old is not None:
            self._delete("failed", records.digest_key(digest))
            self._steps.subtract(sums("failed", old))

    # --- blobs: the rule of truth ---------------------------------------------------------------------------------

    def add(self, blob: Blob, recipe: Recipe, manifest: bytes = b"") -> int:
        """Count a blob and return how many of its chunks are new. Clears the record of its failure, if any. `manifest`
        is the record of what a manifest, an index or a config says, and is kept until the blob is removed.

        Raises, with nothing changed, RecipeImpossible when the recipe is not valid or does not fit the blob, and
        RecipeContradicts when counted blobs have one of its chunks with another length.
        """
        from chunkd.index.chunks.table import ChunkContradicted

        head = self.head
        try:
            numbered = self.chunks.number(blob, recipe, head.next_number)
        except ChunkContradicted as error:
            raise RecipeContradicts(error.chunk_hash, self._holders_of_chunk(error.number)) from None
        if new := numbered.new:
            following = head.next_number + new
            young, hand = self.index.lookup.merge(self.txn, head.young_entries + new, head.hand, new, following)
            dead = head.dead_chunks + new
            self.head = replace(head, next_number=following, dead_chunks=dead, young_entries=young, hand=hand)
        self.clear_failure(blob.digest)
        self.apply(blob, numbered.numbers, +1, numbered.recompressed)
        if manifest:
            self._put("manifests", records.digest_key(blob.digest), manifest)
        return new

    def _holders_of_chunk(self, number: int) -> tuple[Digest, ...]:
        """The counted blobs whose recipes have a chunk; empty if they are more than `MOST_DOUBTED`.

        Walks every recipe, because no record leads from a chunk to its blobs.
        """
        having = (blob.digest for blob in self.store.blobs(self.txn, "blobs") if number in self._recipe(blob))
        found = tuple(itertools.islice(having, MOST_DOUBTED + 1))
        return found if len(found) <= MOST_DOUBTED else ()

    def _recipe(self, blob: Blob) -> Numbers:
        from chunkd.index.blocks import unpack_recipe

        return unpack_recipe(self.store.get(self.txn, "recipes", records.digest_key(blob.digest)) or b"", blob.chunks)

    def remove(self, digest: Digest) -> bool:
        """Subtract a counted blob. Returns whether it was a manifest, an index or a config."""
        blob = self.blob(digest)
        if blob is None:
            raise records.Damaged(f"{digest} is to be removed and is not there")
        numbers = self._recipe(blob)
        self.apply(blob, numbers, -1, 0 * numbers)
        self.rehashed(digest)
        return self._discard("manifests", records.digest_key(digest))

    def apply(self, blob: Blob, numbers: Numbers, sign: int, recompressed: Numbers) -> None:
        """Count one recipe in (+1) or out (-1): changes the record, its chunks' copies, the totals and the histogram
        together. `recompressed` has the lengths of the chunks that the rule picks, used for those that come to life.
        """
        from chunkd.index.blocks import pack_recipe

        key = records.digest_key(blob.digest)
        if (self.blob(blob.digest) is None) != (sign > 0):
            raise records.Damaged(f"{blob.digest} can't be counted {'in' if sign > 0 else 'out'} twice")
        is_layer = {blob.state == "layer", blob.chunks > 0, blob.uncompressed_bytes > 0}
        if not blob.counted or len(numbers) != blob.chunks or len(is_layer) > 1:
            raise records.Damaged(
                f"{blob.digest} is a {blob.state} of {blob.chunks} chunks, its recipe has {len(numbers)}"
            )
        if blob.chunks:
            growth = self.chunks.count(numbers, sign, recompressed)
            if growth.totals["uncompressed_bytes"] != sign * blob.uncompressed_bytes:
                raise records.Damaged(f"the chunks of {blob.digest} do not add up to {blob.uncompressed_bytes} bytes")
            self._steps.update(growth.totals)
            self.head = replace(self.head, dead_chunks=self.head.dead_chunks - growth.totals["unique_chunks"])
            self._grown = growth.table if self._grown is None else self._grown + growth.table
        if sign > 0:
            self._put("blobs", key, records.pack_blob(blob))
            if blob.chunks:
                self._put("recipes", key, pack_recipe(numbers))
        else:
            self._delete("blobs", key)
            if blob.chunks:
                self._delete("recipes", key)
        (self._steps.update if sign > 0 else self._steps.subtract)(sums("blobs", blob))

    # --- writing --------------------------------------------------------------------------------------------------

    def set_histogram(self, rows: list[list[int]]) -> None:
        self._put("meta", HISTOGRAM_KEY, records.seal(histogram.pack(rows)))

    def _put(self, database: str, key: bytes, value: bytes) -> None:
        self.txn.put(key, value, db=self.store.databases[database])
        self._touched = True

    def _discard(self, database: str, key: bytes) -> bool:
        """Delete a record. Returns whether it existed."""
        found = self.txn.delete(key, db=self.store.databases[database])
        self._touched |= found
        return found

    def _delete(self, database: str, key: bytes) -> None:
        if not self._discard(database, key):
            raise IndexDamaged(self.store.path, f"a record of {database!r} is missing")

    def write_head(self, now_ns: int) -> None:
        """Write the head and the histogram with all changes of this transaction."""
        if self._grown is not None:
            rows = self._grown + self.store.histogram(self.txn)
            if (rows < 0).any():
                raise records.Damaged("a row of the histogram would be negative")
            self.set_histogram(rows.tolist())
            self._grown = None
        if any(self._steps.values()):
            totals, self._steps = self.head.totals.plus(self._steps), Counter()
            if short := [name for name, value in vars(totals).items() if value < 0]:
                raise records.Damaged(f"the totals {', '.join(short)} would be negative")
            self.head = replace(self.head, totals=totals)
        if self.head != self._head:
            self.head = replace(self.head, as_of_ns=max(now_ns, 1))
            self._put("meta", HEAD_KEY, records.pack_head(self.head))
        if self._touched:
            # A change means that there was something to do. The writer's end records again that nothing is left.
            self.txn.delete(AT_REST_KEY, db=self.store.databases["meta"])
