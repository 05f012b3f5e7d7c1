"""Carries out what was decided about a place: which places hold a blob, and which one takes over. Looks at no cache.

All of it happens inside one transaction of the one writer. What must follow after the commit is handed back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from chunkd.errors import RecipeImpossible
from chunkd.index.index import Change, RecipeContradicts
from chunkd.index.records import Held, digest_key
from chunkd.ingest.actions import (
    Action,
    CantReadAgain,
    Count,
    Doubt,
    Fail,
    Forget,
    Hold,
    Ignore,
    Join,
    Lost,
    Observe,
    Read,
    Settle,
    TakeOver,
    Task,
    TooLong,
    Unignore,
    Unsettled,
    Verified,
)
from chunkd.ingest.counters import ARCHIVED, IMPOSSIBLE, MISMATCHED, UNDECODABLE
from chunkd.ingest.reconcile import WRONG_NAME, Known, wait_for_a_writer
from chunkd.model import MAX_PATH_BYTES, Blob, Cause, Digest, FileMark, Hint, Place, Timing
from chunkd.sources import layouts
from chunkd.sources.activity import Token
from chunkd.sources.cache import ServedCache
from chunkd.sources.source import Observation

# A failed blob is tried again after so many seconds; from the fourth failure on, daily.
RETRY_S = (60, 600, 3600, 86400)
# A place that can't be looked at is observed again after so many seconds, then after twice as many, up to the most.
DOUBT_S, MOST_DOUBT_S = 60.0, 3600.0
# Of a digest with more places than this, not all are asked whether they are links of one file: hashing tells as well.
MAX_KIN = 64
MOST_REMEMBERED = 65536
INFO, WARNING = 20, 30


@dataclass(slots=True)
class Later:
    hint: Hint
    delay_s: float
    waited_for: bool


@dataclass(slots=True)
class AfterCommit:
    """What must follow once a transaction is committed. If it is not, none of it happens."""

    tasks: list[Task] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    settles: list[tuple[Place, Settle]] = field(default_factory=list)
    doubts: dict[Place, float] = field(default_factory=dict)
    # Of digests that wait for another place to take over; None where a link can't, or no longer.
    lost: dict[Digest, FileMark | None] = field(default_factory=dict)
    log: list[tuple[int, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # When the blobs that were counted had landed, in ns since the epoch.
    landings: list[int] = field(default_factory=list)
    # Whether a manifest, an index or a config has come to a place, or has gone from one.
    manifests: bool = False


@dataclass(slots=True)
class Remembered:
    """What the writer remembers about places, only in memory: after a restart the disk shows it again. Changed after a
    commit.
    """

    unsettled: dict[Place, Unsettled] = field(default_factory=dict)
    # Folders of distribution whose `data` was not there yet, with the next interval.
    expected: dict[Place, float] = field(default_factory=dict)
    doubts: dict[Place, float] = field(default_factory=dict)
    # The marks of verified places that are gone, of digests that wait for another place to take over.
    lost: dict[Digest, FileMark] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def update(self, after: AfterCommit) -> None:
        for place, settle in after.settles:
            self.unsettled.pop(place, None)
            self.expected.pop(place, None)
            if settle.unsettled is not None:
                self.unsettled[place] = settle.unsettled
            elif settle.expected_s is not None:
                self.expected[place] = settle.expected_s
        for place, delay_s in after.doubts.items():
            self.doubts.pop(place, None)
            if delay_s and len(self.doubts) < MOST_REMEMBERED:
                self.doubts[place] = delay_s
        for digest, mark in after.lost.items():
            self.lost.pop(digest, None)
            if mark is not None and len(self.lost) < MOST_REMEMBERED:
                self.lost[digest] = mark

    def waited_for(self) -> list[Hint]:
        """A hint for each place that is to be observed again later, in case its own hint was lost."""
        waits = [Hint(place, Cause.WAITED_FOR) for place in self.unsettled]
        return waits + [Hint(place, Cause.WAITED_FOR, folder=True) for place in self.expected]


class PlaceChanges:
    """One transaction's view of places. `now_s` is seconds since the epoch."""

    def __init__(
        self,
        change: Change,
        caches: Mapping[int, ServedCache],
        after_commit: AfterCommit,
        now_s: float,
        remembered: Remembered | None = None,
        settle_s: float = Timing().settle_s,
    ) -> None:
        self.change, self.caches, self.after_commit, self.now_s = change, caches, after_commit, now_s
        self.remembered, self.settle_s = remembered or Remembered(), settle_s

    def path(self, place: Place) -> str:
        return f"{self.caches[place.cache].path}/{place.path}"

    def say(self, level: int, text: str) -> None:
        self.after_commit.log.append((level, text))

    def known(self, observed: Observation, task: Task | None) -> Known:
        """What is known of the observed place."""
        place, seen, remembered = observed.hint.place, observed.seen, self.remembered
        found = layouts.identify(self.caches[place.cache].path, place.path)
        held = self.change.held(place)
        digest = found[0] if found else held.digest if held else None
        if digest is None:
            return Known(None)
        counted = self.change.blob(digest) is not None
        linked = counted and seen is not None and seen.links > 1
        return Known(
            digest if found else None,
            held,
            counted,
            None if counted else self.change.failed(digest),
            counted and self.change.needs_rehash(digest),
            self._kin(digest, seen.mark) if linked and seen is not None else None,
            remembered.lost.get(digest),
            task,
            remembered.unsettled.get(place),
            remembered.expected.get(place),
            self.settle_s,
        )

    def _kin(self, digest: Digest, mark: FileMark) -> FileMark | None:
        """The mark of a verified place that is the same file as `mark` under another name, if there is one."""
        found = None
        for _, held in itertools.islice(self.change.holders(digest), MAX_KIN):
            if held.state == "verified" and held.mark[:3] == mark[:3]:
                if held.mark == mark:
                    return mark
                found = held.mark
        return found

    # --- carrying out ---------------------------------------------------------------------------------------------

    def apply(self, hint: Hint, known: Known, actions: list[Action], why: str, token: Token | None = None) -> None:
        """Carry out what was decided of the hint's place. `why` is for the log; tasks inherit from the `token`."""
        place, after = hint.place, self.after_commit
        tasks = len(after.tasks)
        if place in self.remembered.doubts and not any(isinstance(action, Doubt) for action in actions):
            after.doubts[place] = 0.0
        for action in actions:
            match action:
                case Settle():
                    after.settles.append((place, action))
                case Unignore():
                    self.change.unignore(place)
                case Ignore(reason):
                    self.ignore(place, reason)
                case TooLong():
                    self._tell_once(f"ignored {self.path(place)}: its path is longer than {MAX_PATH_BYTES} bytes")
                case Join():
                    join(known.task, hint)
                case Observe(delay_s, waited_for, by_event):
                    self._observe_again(hint, delay_s, waited_for, by_event)
                case Doubt(problem):
                    before_s = DOUBT_S / 2 if hint.by_event else self.remembered.doubts.get(place, DOUBT_S / 2)
                    delay_s = min(2 * before_s, MOST_DOUBT_S)
                    after.doubts[place] = delay_s
                    after.later.append(Later(hint._replace(by_event=False), delay_s, False))
                    self._tell_once(f"can't look at {self.path(place)}: {problem}")
                case Forget(words):
                    if known.held is not None:
                        self.forget(place, known.held, words)
                case _:
                    assert known.digest is not None
                    self._apply_to_digest(known.digest, place, action, known, why)
        for task in after.tasks[tasks:]:
            task.inherit = token

    def _apply_to_digest(self, digest: Digest, place: Place, action: Action, known: Known, why: str) -> None:
        match action:
            case Hold(state, mark):
                self.after_commit.manifests |= known.held is None and self._is_manifest(digest)
                self.change.hold(place, Held(digest, state, mark))
            case TakeOver(mark) | Verified(mark):
                self.change.hold(place, Held(digest, "verified", mark))
                self.change.rehashed(digest)
                self.after_commit.lost[digest] = None
            case Read(stored_bytes, decode):
                tasks = self.after_commit.tasks
                tasks.append(Task(digest, place, why, stored_bytes, counted=not decode))
            case Fail(kind, mark, reason):
                self.fail(digest, place, mark, kind, reason)
            case Count():
                self._count(digest, place, action, why)
            case Lost():
                self._lose(digest, place, known.held, action)
            case CantReadAgain(reason, delay_s):
                self._tell_once(f"can't read {self.path(place)} again: {reason}; its figures stand")
                self.after_commit.later.append(Later(Hint(place, Cause.RETRY, force=True), delay_s, False))
            case _:
                raise AssertionError(action)

    def _observe_again(self, hint: Hint, delay_s: float, waited_for: bool, by_event: bool) -> None:
        if waited_for:
            cause = hint.cause if hint.folder else Cause.SETTLING
            again = hint._replace(cause=cause, force=False, by_event=hint.by_event and hint.folder)
            self.after_commit.later.append(Later(again, delay_s, True))
        else:
            self.after_commit.hints.append(Hint(hint.place, Cause.REPLACED, by_event=by_event))

    def ignore(self, place: Place, reason: str) -> None:
        """Record why no blob lies at a place, unless its path can't be kept."""
        if len(place.path.encode(errors="surrogateescape")) <= MAX_PATH_BYTES and self.change.ignore(place, reason):
            self.say(INFO, f"ignored {self.path(place)}: {reason}")

    def _tell_once(self, text: str) -> None:
        told = self.remembered.told
        if text not in told and len(told) < 10000:
            told.add(text)
            self.say(WARNING, text)

    def _count(self, digest: Digest, place: Place, count: Count, why: str) -> None:
        finding, mark = count.finding, count.mark
        self.change.hold(place, Held(digest, "verified", mark))
        chunks = len(finding.recipe)
        what_it_is = finding.reason if finding.kind == "other" else ""
        blob = Blob(
            digest, finding.kind, mark.stored_bytes, finding.uncompressed_bytes, chunks, finding.codec, what_it_is
        )  # fmt: skip
        try:
            new = self.change.add(blob, finding.recipe, finding.manifest)
        except RecipeImpossible as error:
            if isinstance(error, RecipeContradicts):
                for other in error.digests:
                    self._read_again(other, f"{digest} contradicts it")
            self.fail(digest, place, mark, IMPOSSIBLE, str(error))
            return
        self.after_commit.landings.append(count.landed_ns)
        self.after_commit.manifests |= bool(finding.manifest)
        layer = f"{finding.codec} layer, {chunks:,} chunks, {new:,} never seen before"
        what = layer if chunks else f"not a layer: {what_it_is}"
        self.say(INFO, f"indexed {digest}, {mark.stored_bytes:,} bytes, {what}; found: {why}")

    # --- who holds a digest ---------------------------------------------------------------------------------------

    def forget(self, place: Place, held: Held, why: str) -> None:
        """A place is gone. If it was the verified one, another place takes over, or the blob is subtracted."""
        self.change.release(place, held.digest)
        self.after_commit.manifests |= self._is_manifest(held.digest)
        if self.change.blob(held.digest) is not None:
            if held.state == "verified":
                self.hand_over(held.digest, held.mark, why)
            elif self.change.needs_rehash(held.digest):
                self.hand_over(held.digest, None, why)
        elif next(self.change.holders(held.digest), None) is None:
            self.change.clear_failure(held.digest)

    def _is_manifest(self, digest: Digest) -> bool:
        return self.change.store.get(self.change.txn, "manifests", digest_key(digest)) is not None

    def hand_over(self, digest: Digest, lost: FileMark | None, why: str) -> None:
        """A place no longer holds a counted digest. Keep the digest by another place, or subtract it.

        `lost` is the mark of a verified file that is gone: a hard link of it needs no hashing once it has been
        observed. It is None if the bytes themselves are in doubt. While the digest's other places are out of sight the
        digest stays, and is hashed when they can be seen.
        """
        candidate: tuple[Place, Held] | None = None
        link: Place | None = None
        out_of_sight = False
        for count, (place, held) in enumerate(self.change.holders(digest)):
            if held.state == "verified":
                return
            if count >= MAX_KIN and candidate is not None:
                break
            cache = self.caches.get(place.cache)
            if held.state != "untested" or cache is None:  # None: it is no longer served
                continue
            if cache.status.out_of_sight(place.path) or cache.hung_s():
                out_of_sight = True
                continue
            candidate = candidate or (place, held)
            if lost is not None and held.mark[:3] == lost[:3]:
                link = link or place
        if candidate is None and not out_of_sight:
            self.subtract(digest, why)
            return
        self.change.require_rehash(digest)
        self.after_commit.lost[digest] = None if link is None else lost
        if link is not None:
            self.after_commit.hints.append(Hint(link, Cause.TAKES_OVER))
        elif candidate is not None:
            place, held = candidate
            words = f"{Cause.TAKES_OVER.value} ({why})"
            self.after_commit.tasks.append(Task(digest, place, words, held.mark.stored_bytes, counted=True))

    def _lose(self, digest: Digest, place: Place, held: Held | None, lost: Lost) -> None:
        """A place of a counted digest was read again and does not hold it."""
        read, now = lost.read, lost.now
        if held is not None:
            self.change.release(place, digest)
        for other, link in list(self.change.holders(digest)):
            if link.state == "verified" and link.mark[:2] == read[:2]:
                # Another name of the very file that was read.
                self.change.hold(other, link._replace(state="untested"))
        self.hand_over(digest, None, "its bytes changed")
        if self.change.blob(digest) is not None:
            # What is there now may have come since it was read.
            self.change.hold(place, Held(digest, "bad" if read == now else "untested", now))
            return
        # Subtracted. It may be a writer at work: pending until it has come to rest.
        hint = Hint(place, Cause.SETTLING)
        self.apply(hint, Known(digest), wait_for_a_writer(digest, read, now, lost.now_s), "")

    def _read_again(self, digest: Digest, why: str) -> None:
        """Subtract a counted blob, and have its places observed if one of them can be seen now."""
        places = [place for place, _ in self.change.holders(digest)]
        caches = {place: self.caches.get(place.cache) for place in places}
        if not any(cache and not cache.status.out_of_sight(place.path) for place, cache in caches.items()):
            return
        for place in places:
            self.change.release(place, digest)
            self.after_commit.hints.append(Hint(place, Cause.DISAGREES))
        self.after_commit.manifests |= self.change.remove(digest)
        self.say(WARNING, f"subtracted {digest}, to be read again: {why}")

    def subtract(self, digest: Digest, why: str) -> None:
        """No place holds the digest any more."""
        self.after_commit.manifests |= self.change.remove(digest)
        self.say(INFO, f"subtracted {digest}: {why}")
        bad = [one for one in self.change.holders(digest) if one[1].state == "bad" and one[0].cache in self.caches]
        for place, held in bad[:1]:
            self.fail(digest, place, held.mark, MISMATCHED, WRONG_NAME)
        # These were read at some earlier time, and may have been put right while nobody watched.
        self.after_commit.hints += [Hint(place, Cause.CHANGED_SINCE_FAILED) for place, _ in bad]

    def fail(self, digest: Digest, place: Place, mark: FileMark, kind: str, reason: str) -> None:
        """Record a failure of a kind of `counters`. It is in no figure but the failed ones. It is tried again later,
        unless its bytes are known to be undecodable.
        """
        for_good = kind == UNDECODABLE
        state = ARCHIVED if kind == ARCHIVED else "failed"
        self.after_commit.failures += [] if kind == ARCHIVED else [kind]
        old = self.change.failed(digest)
        tries = (old.tries if old else 0) + 1
        retry_at = 0 if for_good else int(self.now_s) + RETRY_S[min(tries, len(RETRY_S)) - 1]
        if old is not None and not for_good and self.now_s < old.retry_at:
            # Another of its places, or an event: that is the same round.
            tries, retry_at = old.tries, old.retry_at
        self.change.fail(Blob(digest, state, mark.stored_bytes, reason=reason[:400], tries=tries, retry_at=retry_at))
        self.change.hold(place, Held(digest, "verified" if for_good else "bad", mark))
        if old is None or old.reason != reason[:400]:
            self.say(WARNING, f"{state} {digest} at {self.path(place)}: {reason}")


def join(task: Task | None, hint: Hint) -> None:
    """The digest is being worked on: this place is observed when that is done, unless it is the one worked on.

    That one too when an event names it after it was given to a worker, which may have read it before.
    """
    if task is None:
        return
    seen_to = hint.place == task.place and not (task.given and hint.by_event)
    if not seen_to and hint.place not in task.others:
        task.others.append(hint.place)
