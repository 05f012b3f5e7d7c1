"""One place, looked at: what the disk says of it now, what the index says, and so what is to be done."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass

from chunkd.errors import RecipeImpossible
from chunkd.index.index import RecipeContradicts
from chunkd.index.records import Held
from chunkd.ingest.counters import IMPOSSIBLE, MISMATCHED, UNDECODABLE, UNREADABLE
from chunkd.ingest.places import MAX_KIN, PlaceChanges, Task, mark_of
from chunkd.model import MAX_PATH_BYTES, Blob, Digest, FileMark, Finding, Hint, Place
from chunkd.sources import layouts
from chunkd.sources.listing import kind_of_file

# A file whose bytes do not match its name may still be written: it is pending until so long after its last change.
SETTLE_S = 10.0
# It is looked at again after this, and then at doubled intervals; read again only when it has changed and come to rest.
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 2.0
UNREADABLE_S = 60.0
# So begins the reason of a failure that says nothing of the blob's bytes.
CAN_NOT_BE_READ = "can't be read: "


@dataclass(slots=True)
class Unsettled:
    """A file that did not match its name when it was read at `read`, and is seen as `seen` since `since_s`."""

    digest: Digest
    read: FileMark
    seen: FileMark
    since_s: float
    delay_s: float = FIRST_LOOK_S


class Reconciler:
    """Looks at places and settles what workers found. Remembers only what the disk will tell again after a restart."""

    def __init__(self) -> None:
        self.unsettled: dict[Place, Unsettled] = {}
        # Folders of distribution whose `data` was not there yet, with the next interval.
        self.expected: dict[Place, float] = {}
        self.told: set[str] = set()

    def waited_for(self) -> list[Hint]:
        """A hint for each place that is looked at again later, for when the hint that was to come may be lost."""
        waits = [Hint(place, "waited for as a scan ended") for place in self.unsettled]
        return waits + [Hint(place, "folder waited for as a scan ended") for place in self.expected]

    # --- a hint ---------------------------------------------------------------------------------------------------

    def look(self, at: PlaceChanges, hint: Hint, task: Task | None) -> None:
        """`task` is the one that waits or runs for this place's digest already, if any."""
        place = hint.place
        held = at.change.held(place)
        cache = at.caches[place.cache]
        if cache.stale or self._too_long(at, place):
            self._wait_no_longer(place)
            return
        try:
            status = at.status(place)
        except (FileNotFoundError, NotADirectoryError):
            self._look_at_nothing(at, hint, held)
            return
        except OSError as error:
            self._tell_once(at, f"can't look at {at.path(place)}: {error.strerror}")
            at.after_commit.later.append((hint, UNREADABLE_S))
            return
        self.expected.pop(place, None)
        if at.hidden(place, held):
            self._wait_no_longer(place)  # this is another file, which hides where the blob was
            return
        found = layouts.identify(cache.path, place.path)
        if found is None or not stat.S_ISREG(status.st_mode):
            self.unsettled.pop(place, None)
            if held is not None:
                at.forget(place, held, "no regular file is there any longer")
            if found is None:
                at.change.unignore(place)
            else:
                self.ignore(at, place, kind_of_file(status.st_mode))
            return
        at.change.unignore(place)
        cache.layouts.add(found[1])
        if held is None:
            # Its folder may be listed only when what is mounted there is away, and it with that.
            cache.note_mount(os.path.dirname(place.path))
        self._look_at_file(at, hint, found[0], status, held, task)

    def _wait_no_longer(self, place: Place) -> None:
        """Its root is away: when it is back, a scan finds the place anew."""
        self.unsettled.pop(place, None)
        self.expected.pop(place, None)

    def _too_long(self, at: PlaceChanges, place: Place) -> bool:
        """Whether a path can't be kept in the index."""
        if len(os.fsencode(place.path)) <= MAX_PATH_BYTES:
            return False
        self._tell_once(at, f"ignored {at.path(place)}: its path is longer than {MAX_PATH_BYTES} bytes")
        return True

    def _look_at_nothing(self, at: PlaceChanges, hint: Hint, held: Held | None) -> None:
        place = hint.place
        cache = at.caches[place.cache]
        if cache.check_root() is None or (held is not None and cache.away(place.path)):
            self._wait_no_longer(place)
            return
        if at.mark(place) is not None:  # its root was away and is back, or a blob came a moment ago
            at.after_commit.hints.append(hint)
            return
        self.unsettled.pop(place, None)
        at.change.unignore(place)
        if held is not None:
            at.forget(place, held, f"removed, {hint.why}")
        delay_s = self.expected.pop(place, FIRST_LOOK_S / 2)
        if hint.why.startswith("folder") and delay_s < SETTLE_S and os.path.isdir(os.path.dirname(at.path(place))):
            # Its folder was made a moment ago; the blob is moved in or written within milliseconds.
            self.expected[place] = delay_s * 2
            at.after_commit.later.append((hint, delay_s))

    def _look_at_file(
        self, at: PlaceChanges, hint: Hint, digest: Digest, status: os.stat_result, held: Held | None, task: Task | None
    ) -> None:
        place, mark = hint.place, mark_of(status)
        if at.change.blob(digest) is not None:
            self.unsettled.pop(place, None)
            linked = status.st_nlink > 1 and (held is None or held.mark != mark)
            kin = self._kin(at, digest, mark) if linked else None
            unsure = held is not None and held.state == "verified" and held.mark != mark != kin
            if held is None or (held.mark != mark and not unsure):
                at.change.hold(place, self._held_as(digest, mark, kin))
            if task is not None and (unsure or place == task.place):
                self._join(task, hint)
            elif task is None and (unsure or at.change.needs_rehash(digest)):
                at.task(digest, place, hint.why, mark.stored_bytes, counted=True)
            return
        if task is not None:
            self._join(task, hint)
            return
        failed = at.change.failed(digest)
        if failed is not None and not hint.retry:
            if failed.retry_at == 0:
                # Its bytes are known to be no whole stream, wherever they lie.
                if held is None or held.mark != mark:
                    at.change.hold(place, Held(digest, held.state if held else "untested", mark))
                self.unsettled.pop(place, None)
                return
            if held is not None and held.mark == mark and not hint.by_event:
                self.unsettled.pop(place, None)
                return
        waits = self.unsettled.get(place)
        if waits is not None and not hint.by_event and not self._ripe(at, hint, waits, mark):
            return
        at.task(digest, place, hint.why, mark.stored_bytes, counted=False)

    @staticmethod
    def _held_as(digest: Digest, mark: FileMark, kin: FileMark | None) -> Held:
        """How a further place of a counted digest is held, which may be a link of what was verified as `kin`."""
        if kin is None:
            return Held(digest, "untested", mark)
        # A link changes the file's ctime, and so may hide that its bytes changed with it: 0 is for "unknown".
        return Held(digest, "verified", mark if kin == mark else mark._replace(ctime_ns=0))

    def _join(self, task: Task, hint: Hint) -> None:
        """The digest is being worked on: this place is looked at when that is done, unless it is the one worked on.

        That one too when an event names it after it was given to a worker, which may have read it before.
        """
        seen_to = hint.place == task.place and not (task.given and hint.by_event)
        if not seen_to and hint.place not in task.others:
            task.others.append(hint.place)

    def _kin(self, at: PlaceChanges, digest: Digest, mark: FileMark) -> FileMark | None:
        """What was verified of the very file that `mark` is of, under another name; its mark as of now, if that was."""
        found = None
        for _, held in itertools.islice(at.change.holders(digest), MAX_KIN):
            if held.state == "verified" and held.mark[:3] == mark[:3]:
                if held.mark == mark:
                    return mark
                found = held.mark
        return found

    def _ripe(self, at: PlaceChanges, hint: Hint, waits: Unsettled, mark: FileMark) -> bool:
        """Whether a file that did not match is worth reading again; if not, it is looked at later, or fails."""
        if mark == waits.seen != waits.read:
            return True
        if mark == waits.read and _at_rest(at, mark, waits.since_s):
            del self.unsettled[hint.place]
            at.fail(waits.digest, hint.place, mark, MISMATCHED, "its bytes do not match its name")
            return False
        if mark != waits.seen:
            waits.seen, waits.since_s = mark, at.now_s
        waits.delay_s = min(waits.delay_s * 2, LAST_LOOK_S)
        at.after_commit.later.append((hint, waits.delay_s))
        return False

    def ignore(self, at: PlaceChanges, place: Place, reason: str) -> None:
        if not self._too_long(at, place) and at.change.ignore(place, reason):
            at.say(20, f"ignored {at.path(place)}: {reason}")

    def _tell_once(self, at: PlaceChanges, text: str) -> None:
        if text not in self.told and len(self.told) < 10000:
            self.told.add(text)
            at.say(30, text)

    # --- a finding ------------------------------------------------------------------------------------------------

    def settle(self, at: PlaceChanges, task: Task, finding: Finding) -> None:
        """A worker has read a blob. The disk, looked at now that the work is done, says whether it still holds."""
        digest, place = task.job.digest, task.place
        now = at.mark(place)
        held, cache = at.change.held(place), at.caches[place.cache]
        if cache.stale or (now is None and cache.check_root() is None) or at.hidden(place, held):
            self._wait_no_longer(place)
            return
        if now is None or finding.kind in ("gone", "ignored"):
            at.after_commit.hints.append(Hint(place, f"{task.why}; gone or replaced while it was read"))
            return
        read = mark = finding.mark or now
        if now[:3] != mark[:3] and finding.kind not in ("mismatched", "unreadable"):
            at.after_commit.hints.append(Hint(place, "replaced while it was read (event)"))
            return
        if now != mark:
            mark = mark._replace(ctime_ns=0)
            if finding.kind in ("layer", "other", "matched") and finding.mark and finding.mark.ctime_ns:
                at.after_commit.hints.append(Hint(place, "changed while it was read"))
        waits = self.unsettled.pop(place, None)
        if finding.kind in ("layer", "other"):
            self._count(at, task, finding, mark, now.ctime_ns)
        elif finding.kind == "matched" and at.change.blob(digest) is None:
            # Subtracted while it was hashed, and here again.
            at.task(digest, place, task.why, mark.stored_bytes, counted=False)
        elif finding.kind == "matched":
            at.change.hold(place, Held(digest, "verified", mark))
            at.change.rehashed(digest)
        elif at.change.blob(digest) is not None:
            self._lost(at, task, finding, held, read, now)
        elif finding.kind == "undecodable":
            at.fail(digest, place, mark, UNDECODABLE, finding.reason)
        elif finding.kind == "unreadable":
            at.fail(digest, place, now, UNREADABLE, f"{CAN_NOT_BE_READ}{finding.reason}")
        elif read == now and _at_rest(at, now, at.now_s):
            at.fail(digest, place, now, MISMATCHED, "its bytes do not match its name")
        else:
            delay_s = waits.delay_s if waits else FIRST_LOOK_S
            self.unsettled[place] = Unsettled(digest, read, now, at.now_s, delay_s)
            at.after_commit.later.append(
                (Hint(place, f"{task.why}; looked at again, as it did not match its name"), delay_s)
            )

    def _count(self, at: PlaceChanges, task: Task, finding: Finding, mark: FileMark, landed_ns: int) -> None:
        digest, place = task.job.digest, task.place
        at.change.hold(place, Held(digest, "verified", mark))
        if at.change.blob(digest) is None:
            chunks = len(finding.recipe)
            blob = Blob(digest, finding.kind, mark.stored_bytes, finding.uncompressed_bytes, chunks, finding.codec)
            try:
                new = at.change.add(blob, finding.recipe)
            except RecipeImpossible as error:
                if isinstance(error, RecipeContradicts):
                    for other in error.digests:
                        at.read_again(other, f"{digest} contradicts it")
                at.fail(digest, place, mark, IMPOSSIBLE, str(error))
                return
            at.after_commit.landings.append(landed_ns)
            what = f"{finding.codec} layer, {chunks:,} chunks, {new:,} never seen before" if chunks else "not a layer"
            at.say(20, f"indexed {digest}, {mark.stored_bytes:,} bytes, {what}; found: {task.why}")

    def _lost(
        self, at: PlaceChanges, task: Task, finding: Finding, held: Held | None, read: FileMark, now: FileMark
    ) -> None:
        """A place of a counted digest was read again, and does not hold it, or can't be read."""
        digest, place = task.job.digest, task.place
        if finding.kind == "unreadable":
            self._tell_once(at, f"can't read {at.path(place)} again: {finding.reason}; its figures stand")
            at.after_commit.later.append((Hint(place, "retry"), UNREADABLE_S))
            return
        if held is not None:
            at.change.release(place, digest)
        for other, link in list(at.change.holders(digest)):
            if link.state == "verified" and link.mark[:2] == read[:2]:
                # Another name of the very file that was read.
                at.change.hold(other, link._replace(state="untested"))
        at.hand_over(digest, None, "its bytes changed")
        if at.change.blob(digest) is not None:
            # What is there now may have come since it was read.
            at.change.hold(place, Held(digest, "bad" if read == now else "untested", now))
            return
        # Subtracted. It may be a writer at work: pending until it has come to rest.
        self.unsettled[place] = Unsettled(digest, read, now, at.now_s)
        at.after_commit.later.append((Hint(place, "looked at again, as it did not match its name"), FIRST_LOOK_S))


def _at_rest(at: PlaceChanges, mark: FileMark, since_s: float) -> bool:
    """Whether a file last changed long enough ago, by its own time or, as that may lie ahead of ours, by our watch."""
    return max(at.now_s - mark.ctime_ns / 1e9, at.now_s - since_s) >= SETTLE_S
