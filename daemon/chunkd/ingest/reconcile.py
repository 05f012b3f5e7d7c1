"""Decides what follows from an observation of a place, and from a worker's finding. Pure: facts in, actions out.

This is DESIGN's "When a blob counts", with one branch for each rule. `now_s` is by the monotonic clock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from chunkd.index.records import Held
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
from chunkd.ingest.counters import ARCHIVED, MISMATCHED, UNDECODABLE, UNREADABLE
from chunkd.model import MAX_PATH_BYTES, Blob, Cause, Digest, FileMark, Finding, Hint, Timing
from chunkd.sources.source import Observation, Presence, Seen

# It is observed again after this, and then at doubled intervals.
FIRST_LOOK_S, LAST_LOOK_S = 0.02, 2.0
# A file that is being written is read on suspicion while less than so many times its size was read of it in vain;
# then only once it has been at rest for so long that this was no more a second.
VAIN_READS, VAIN_BYTES_PER_S = 2, 64 << 20
# A counted blob that can't be read is tried again after this; one whose path is another file each time, after that.
UNREADABLE_S, DISAGREEING_S = 60.0, 3600.0
# A file system's clock may tick as seldom as this: a change that came sooner after another may bear the same ctime.
CTIME_TICK_NS = 50_000_000
# So begins the reason of a failure that says nothing of the blob's bytes.
CAN_NOT_BE_READ = "can't be read: "
DISAGREES = "what is opened there is another file than its metadata are of"
WRONG_NAME = "its bytes do not match its name"


@dataclass(frozen=True, slots=True)
class Known:
    """What the index and the writer know of a place and of its `digest`, None where the path names no blob.

    `kin` is the mark of a verified place that is the same file as the one observed. `lost` is the mark of the verified
    place that is gone, while the digest waits for another to take over. `task` waits or runs for the digest.
    `expected_s` is the next delay while the place's folder is there and it is not.
    """

    digest: Digest | None
    held: Held | None = None
    counted: bool = False
    failed: Blob | None = None
    needs_rehash: bool = False
    kin: FileMark | None = None
    lost: FileMark | None = None
    task: Task | None = None
    unsettled: Unsettled | None = None
    expected_s: float | None = None
    settle_s: float = Timing().settle_s


def decide(observed: Observation, known: Known, now_s: float) -> list[Action]:
    """What follows from an observation."""
    hint, seen = observed.hint, observed.seen
    if len(os.fsencode(hint.place.path)) > MAX_PATH_BYTES:
        return [Settle(), TooLong()]
    if observed.presence is Presence.UNKNOWN:
        return [Doubt(observed.problem)] if observed.problem else [Settle()]
    if observed.presence is Presence.GONE or seen is None:
        return _when_gone(observed, known)
    if observed.hidden and known.held is not None and known.counted:
        return [Settle()]  # this is another file, which hides where the blob was
    if known.digest is None or seen.kind:
        forget = [] if known.held is None else [Forget("no regular file is there any longer")]
        return [Settle(), *forget, Unignore() if known.digest is None else Ignore(seen.kind)]
    return [Unignore(), *_when_there(observed, seen, known, now_s)]


def _when_gone(observed: Observation, known: Known) -> list[Action]:
    forget = [] if known.held is None else [Forget(f"removed, {observed.hint.cause.value}")]
    delay_s = FIRST_LOOK_S / 2 if known.expected_s is None else known.expected_s
    if observed.folder_is_there and delay_s < known.settle_s:
        # Its folder was made a moment ago; the blob is moved in or written within milliseconds.
        return [Unignore(), *forget, Settle(expected_s=delay_s * 2), Observe(delay_s, waited_for=True)]
    return [Unignore(), *forget, Settle()]


def _when_there(observed: Observation, seen: Seen, known: Known, now_s: float) -> list[Action]:
    assert known.digest is not None
    hint = observed.hint
    if known.counted:
        return [Settle(), *_when_counted(hint, seen, known)]
    if known.task is not None:
        return [Settle(known.unsettled), Join()]
    failed, held, mark, waits = known.failed, known.held, seen.mark, known.unsettled
    if failed is not None and not hint.force:
        if failed.retry_at == 0:
            # Its bytes are known to be no whole stream, wherever they lie.
            hold = [Hold(held.state if held else "untested", mark)] if held is None or held.mark != mark else []
            return [Settle(), *hold]
        if held is not None and held.mark == mark and not hint.by_event:
            return [Settle()]
        if waits is None and held is not None and held.mark[:2] == mark[:2] and held.mark != mark:
            # The same file, which is still being written. At most so much of it was read before it failed.
            vain_bytes = (VAIN_READS + 1) * held.mark.stored_bytes
            waits = Unsettled(known.digest, held.mark, mark, now_s, FIRST_LOOK_S, vain_bytes)
    if waits is not None:
        return _when_unsettled(observed, waits, mark, now_s, known.settle_s)
    return [Settle(), Read(mark.stored_bytes, decode=True)]


def _when_counted(hint: Hint, seen: Seen, known: Known) -> list[Action]:
    held, mark, task = known.held, seen.mark, known.task
    if known.needs_rehash and known.lost is not None and mark[:3] == known.lost[:3] and task is None:
        return [TakeOver(mark._replace(ctime_ns=0))]
    # A link changes the file's ctime, and so may hide that its bytes changed with it: 0 is for "unknown".
    kin = known.kin if seen.links > 1 and (held is None or held.mark != mark) else None
    as_kin = None if kin is None else Hold("verified", mark if kin == mark else mark._replace(ctime_ns=0))
    unsure = held is not None and held.state == "verified" and held.mark != mark != kin
    actions: list[Action] = []
    if held is None or (held.mark != mark and not unsure):
        actions.append(as_kin or Hold("untested", mark))
    if task is not None and (unsure or hint.place == task.place):
        actions.append(Join())
    elif task is None and (unsure or known.needs_rehash):
        actions.append(Read(mark.stored_bytes, decode=False))
    return actions


def _when_unsettled(
    observed: Observation, waits: Unsettled, mark: FileMark, now_s: float, settle_s: float
) -> list[Action]:
    """Whether a file that did not match is worth reading again; if not, it is observed again, or fails."""
    rest_s = _rest_s(observed, waits, mark)
    if rest_s >= settle_s and mark == waits.read and not observed.hint.by_event:
        return [Settle(), Fail(MISMATCHED, mark, WRONG_NAME)]
    if _worth_reading(observed.hint.by_event, waits, mark, rest_s, settle_s):
        return [Settle(waits), Read(mark.stored_bytes, decode=True)]
    since_s = waits.since_s if _looks_alike(mark, waits.seen) else now_s
    delay_s = min(waits.delay_s * 2, LAST_LOOK_S)
    return [Settle(replace(waits, seen=mark, since_s=since_s, delay_s=delay_s)), Observe(delay_s, waited_for=True)]


def _worth_reading(by_event: bool, waits: Unsettled, mark: FileMark, rest_s: float, settle_s: float) -> bool:
    """Whether a file that is being written may be whole by now, at the price of reading it. All reading in vain of a
    file stays below a small multiple of its size, however often its writer pauses.
    """
    if not by_event and (rest_s < 0 or mark == waits.read):
        return False
    if rest_s >= max(settle_s, waits.vain_bytes / VAIN_BYTES_PER_S):
        return True
    likely = by_event or mark[:2] != waits.read[:2] or mark.stored_bytes >= 2 * waits.read.stored_bytes
    return likely and waits.vain_bytes < VAIN_READS * mark.stored_bytes


def _looks_alike(one: FileMark, other: FileMark) -> bool:
    """Whether neither size nor ctime differ. That is enough to say that nobody writes, for file systems that give a
    file another inode at each look. It is not enough to say that it is one file: a replacement may have the same ctime.
    """
    return one[2:] == other[2:]


def _rest_s(observed: Observation, waits: Unsettled | None, mark: FileMark) -> float:
    """For how long the file has not changed, as we saw it ourselves; below 0 when it has changed since the last look.

    A file's own times prove nothing here: its file system's clock may be ahead of ours, or ours be put back.
    """
    unchanged = waits is not None and _looks_alike(mark, waits.seen)
    return max(0.0, observed.at_ns / 1e9 - waits.since_s) if waits is not None and unchanged else -1.0


def decide_finding(task: Task, finding: Finding, observed: Observation, known: Known, now_s: float) -> list[Action]:
    """What follows from what a worker found. The observation was made after it was done."""
    opened, kind = task.mark, finding.kind
    if observed.hidden and known.held is not None and known.counted:
        return [Settle()]
    if observed.presence is Presence.UNKNOWN and not observed.problem:
        return [Settle()]
    if observed.presence is not Presence.PRESENT or observed.seen is None or kind in ("gone", "ignored"):
        return [Settle(known.unsettled, known.expected_s), Observe()]
    now = observed.seen.mark
    read = now if opened is None or kind == "unreadable" else opened
    again = task.why == Cause.REPLACED.value
    waits = known.unsettled
    rest_s = _rest_s(observed, waits, now)
    since_s = waits.since_s if waits is not None and rest_s >= 0 else now_s
    if now[:3] != read[:3] and kind not in ("mismatched", "unreadable"):
        if not again and waits is None:
            return [Settle(), Observe(by_event=True)]
        if known.counted:
            return [Settle(), CantReadAgain(DISAGREES, DISAGREEING_S)]
        if rest_s >= known.settle_s:
            return [Settle(), Fail(UNREADABLE, now, f"{CAN_NOT_BE_READ}{DISAGREES}")]
        return wait_for_a_writer(task.digest, read, now, since_s, waits)
    mark = _mark_of_what_was_read(read, now, finding.read_until_ns)
    changed: list[Action] = []
    if now != read and now.ctime_ns > finding.read_until_ns and kind in ("layer", "other", "matched") and not again:
        changed = [Observe()]
    if kind in ("layer", "other") and not known.counted:
        return [Settle(), Count(finding, mark, now.ctime_ns), *changed]
    if kind in ("layer", "other", "matched") and known.counted:
        return [Settle(), Verified(mark), *changed]
    if kind == "matched":
        # Subtracted while it was hashed, and here again.
        return [Settle(), Read(mark.stored_bytes, decode=True)]
    if known.counted and kind == "unreadable":
        return [Settle(), CantReadAgain(finding.reason, UNREADABLE_S)]
    if known.counted:
        return [Settle(), Lost(read, now, now_s)]
    if kind == "undecodable":
        return [Settle(), Fail(UNDECODABLE, mark, finding.reason)]
    if kind == "unreadable" and observed.seen.archived:
        return [Settle(), Fail(ARCHIVED, now, observed.seen.problem)]
    if kind == "unreadable":
        return [Settle(), Fail(UNREADABLE, now, f"{CAN_NOT_BE_READ}{observed.seen.problem or finding.reason}")]
    if rest_s >= known.settle_s or (known.held is not None and known.held == Held(task.digest, "bad", now)):
        return [Settle(), Fail(MISMATCHED, now, WRONG_NAME)]
    return wait_for_a_writer(task.digest, read, now, since_s, waits)


def wait_for_a_writer(
    digest: Digest, read: FileMark, now: FileMark, since_s: float, waits: Unsettled | None = None
) -> list[Action]:
    """The bytes do not match the name yet: pending until the file has come to rest."""
    delay_s, vain_bytes = (waits.delay_s, waits.vain_bytes) if waits else (FIRST_LOOK_S, 0)
    unsettled = Unsettled(digest, read, now, since_s, delay_s, vain_bytes + read.stored_bytes)
    return [Settle(unsettled), Observe(delay_s, waited_for=True)]


def _mark_of_what_was_read(read: FileMark, now: FileMark, read_until_ns: int) -> FileMark:
    """What to record of the file that was read; ctime 0, which never matches, where its bytes may have changed since.

    They can't have when the file is as it was opened, and its last change is so old that one after the reading would
    show in the ctime.
    """
    sure = now == read and read_until_ns - read.ctime_ns >= CTIME_TICK_NS
    return read if sure else read._replace(ctime_ns=0)
