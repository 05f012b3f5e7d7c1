"""What the index says of places and digests, changed as the disk is seen to be: who holds a blob, and who is next.

All of it happens inside one transaction of the one writer; what must follow once that is committed is handed back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from chunkd.index.index import Change
from chunkd.index.records import Held
from chunkd.ingest.counters import MISMATCHED, UNDECODABLE
from chunkd.model import Blob, Digest, FileMark, Hint, Job, Place
from chunkd.sources.cache import ServedCache

# A failed blob is tried again after so many seconds; from the fourth failure on, daily.
RETRY_S = (60, 600, 3600, 86400)
# Of a digest with more places than this, not all are asked whether they are links of one file: hashing tells as well.
MAX_KIN = 64


@dataclass(slots=True)
class Task:
    """A job that waits, or is being worked on once `given`. `counted` jobs only hash again what stands in the figures.

    `others` are places that are looked at when it is done.
    """

    job: Job
    place: Place
    why: str
    stored_bytes: int
    counted: bool
    tries: int = 0
    given: bool = False
    others: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class AfterCommit:
    """What follows from a transaction once it is committed; nothing of it happens when it is not."""

    tasks: list[Task] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    later: list[tuple[Hint, float]] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # When the blobs that were counted had landed, in ns since the epoch.
    landings: list[int] = field(default_factory=list)


class PlaceChanges:
    """One transaction's view of places, with the caches they lie in. `now_s` is seconds since the epoch."""

    def __init__(self, change: Change, caches: dict[int, ServedCache], after_commit: AfterCommit, now_s: float) -> None:
        self.change, self.caches, self.after_commit, self.now_s = change, caches, after_commit, now_s

    def path(self, place: Place) -> str:
        return os.path.join(self.caches[place.cache].path, place.path)

    def mark(self, place: Place) -> FileMark | None:
        """What the disk says of a place's file now, None when it can't be told or is no file."""
        try:
            return mark_of(self.status(place))
        except OSError:
            return None

    def status(self, place: Place) -> os.stat_result:
        """As `os.stat`, without following a symbolic link anywhere below the cache's root: no scan does."""
        root = self.caches[place.cache].path
        for end, letter in enumerate(place.path):
            if letter == "/" and os.path.islink(os.path.join(root, place.path[:end])):
                raise NotADirectoryError
        return os.stat(self.path(place), follow_symlinks=False)

    def hidden(self, place: Place, held: Held | None) -> bool:
        """Whether what a counted blob lies on is away: another file at its place says nothing of it."""
        if held is None or not self.caches[place.cache].away(place.path):
            return False
        return self.change.blob(held.digest) is not None

    def task(self, digest: Digest, place: Place, why: str, stored_bytes: int, *, counted: bool, tries: int = 0) -> None:
        job = Job(digest, self.path(place), decode=not counted)
        self.after_commit.tasks.append(Task(job, place, why, stored_bytes, counted, tries))

    def say(self, level: int, text: str) -> None:
        self.after_commit.log.append((level, text))

    def forget(self, place: Place, held: Held, why: str) -> None:
        """A place is gone. When it was the one that was verified, another takes over, or the blob is subtracted."""
        self.change.release(place, held.digest)
        if self.change.blob(held.digest) is not None:
            if held.state == "verified":
                self.hand_over(held.digest, held.mark, why)
            elif self.change.needs_rehash(held.digest):
                self.hand_over(held.digest, None, why)
        elif next(self.change.holders(held.digest), None) is None:
            self.change.clear_failure(held.digest)

    def hand_over(self, digest: Digest, lost: FileMark | None, why: str) -> None:
        """A place of a counted digest no longer holds it. Keeps it by another, or subtracts it.

        `lost` is the mark of a file that was verified and is gone: a hard link of it needs no hashing. None when the
        bytes themselves are in doubt. While its other places can't be listed it stays, and is hashed when they can.
        """
        candidate: tuple[Place, Held] | None = None
        out_of_sight = False
        for count, (place, held) in enumerate(self.change.holders(digest)):
            if held.state == "verified":
                return
            if count >= MAX_KIN and candidate is not None:
                break
            if held.state == "untested" and candidate is None:
                cache = self.caches[place.cache]
                if cache.stale or cache.away(place.path):
                    out_of_sight = True
                else:
                    candidate = place, held
            if held.state == "untested" and lost is not None and held.mark[:3] == lost[:3]:
                mark = self.mark(place)
                if mark is not None and mark[:3] == lost[:3]:
                    # Unlinking changed its ctime, behind which a change of its bytes may hide.
                    self.change.hold(place, Held(digest, "verified", mark._replace(ctime_ns=0)))
                    return
        if candidate is not None:
            self.change.require_rehash(digest)
            place, held = candidate
            self.task(digest, place, f"its verified place is gone ({why})", held.mark.stored_bytes, counted=True)
        elif out_of_sight:
            self.change.require_rehash(digest)  # until that can be listed again
        else:
            self.subtract(digest, why)

    def subtract(self, digest: Digest, why: str) -> None:
        """No place holds the digest any longer."""
        self.change.remove(digest)
        self.say(20, f"subtracted {digest}: {why}")
        bad = next(self.change.holders(digest), None)
        if bad is not None:
            self.fail(digest, bad[0], bad[1].mark, MISMATCHED, "its bytes do not match its name")

    def read_again(self, digest: Digest, why: str) -> None:
        """Subtract a counted blob and have it read again, where that can be done now."""
        places = [place for place, _ in self.change.holders(digest)]
        if not any(self.mark(place) for place in places):
            return
        for place in places:
            self.change.release(place, digest)
            self.after_commit.hints.append(Hint(place, why))
        self.change.remove(digest)
        self.say(30, f"subtracted {digest}, to be read again: {why}")

    def fail(self, digest: Digest, place: Place, mark: FileMark, kind: str, reason: str) -> None:
        """Record a failure of a kind of `counts`, in no figure but the failed ones; tried again later unless its bytes
        are known to be undecodable, which is for good.
        """
        for_good = kind == UNDECODABLE
        self.after_commit.failures.append(kind)
        old = self.change.failed(digest)
        tries = (old.tries if old else 0) + 1
        retry_at = 0 if for_good else int(self.now_s) + RETRY_S[min(tries, len(RETRY_S)) - 1]
        if old is not None and not for_good and self.now_s < old.retry_at:
            # Another of its places, or an event: that is the same round.
            tries, retry_at = old.tries, old.retry_at
        self.change.fail(Blob(digest, "failed", mark.stored_bytes, reason=reason[:400], tries=tries, retry_at=retry_at))
        self.change.hold(place, Held(digest, "verified" if for_good else "bad", mark))
        if old is None or old.reason != reason[:400]:
            self.say(30, f"failed {digest} at {self.path(place)}: {reason}")

    def put_right(self) -> list[Hint]:
        """A hint for each place of a failed blob where another file is than the one that failed."""
        failed = [blob for blob in self.change.store.blobs(self.change.txn, "failed") if blob.retry_at > self.now_s]
        return [
            Hint(place, "changed since it failed")
            for blob in failed
            for place, held in self.change.holders(blob.digest)
            if self.mark(place) != held.mark
        ]


def mark_of(status: os.stat_result) -> FileMark:
    return FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def retries(change: Change, due: Callable[[Blob], bool]) -> list[Hint]:
    """A hint for each place of the failed blobs that are due."""
    blobs = [blob for blob in change.store.blobs(change.txn, "failed") if due(blob)]
    return [Hint(place, "retry") for blob in blobs for place, _ in change.holders(blob.digest)]
