"""DESIGN's "When a blob counts" as a table: what is observed and known, and what follows. One row a rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

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
from chunkd.ingest.reconcile import (
    CAN_NOT_BE_READ,
    CTIME_TICK_NS,
    DISAGREEING_S,
    DISAGREES,
    FIRST_LOOK_S,
    LAST_LOOK_S,
    UNREADABLE_S,
    VAIN_BYTES_PER_S,
    WRONG_NAME,
    Known,
    decide,
    decide_finding,
)
from chunkd.model import MAX_PATH_BYTES, Blob, Cause, Digest, FileMark, Finding, Hint, Place, Timing
from chunkd.sources.activity import Token
from chunkd.sources.source import Observation, Presence, Seen

NOW_S = 1_000_000.0
NOW_NS = int(NOW_S * 1e9)
S = 1_000_000_000
DIGEST = Digest("sha256", "ab" * 32)
PLACE, ANOTHER = Place(1, f"blobs/sha256/{DIGEST.hex}"), Place(1, f"library/blobs/sha256/{DIGEST.hex}")
# A file that came to rest long ago; one that was changed just now; a hard link's mark of the first; another file.
OLD = FileMark(7, 100, 5000, NOW_NS - 3600 * S)
YOUNG = OLD._replace(ctime_ns=NOW_NS - S)
AHEAD = OLD._replace(ctime_ns=NOW_NS + 99 * S)
LINKED = OLD._replace(ctime_ns=NOW_NS - 5 * S)
TWIN = OLD._replace(inode=300)
MUCH = int(VAIN_BYTES_PER_S * Timing().settle_s) + 1
OTHER = FileMark(7, 200, 5000, NOW_NS - 3601 * S)
GROWN = YOUNG._replace(stored_bytes=6000)
DOUBLED = YOUNG._replace(stored_bytes=10_000)

FAILED = Blob(DIGEST, "failed", 5000, reason=WRONG_NAME, tries=1, retry_at=int(NOW_S) + 60)
FOR_GOOD = replace(FAILED, reason="truncated", retry_at=0)
DECODING = Task(DIGEST, PLACE, "a test", 5000, counted=False)
HASHING = Task(DIGEST, PLACE, "a test", 5000, counted=True)
ELSEWHERE = Task(DIGEST, ANOTHER, "a test", 5000, counted=True)

NEW = Known(DIGEST)
NO_DIGEST = Known(None)


def held(state: str, mark: FileMark = OLD, **known: object) -> Known:
    """A place of a counted digest."""
    return replace(Known(DIGEST, Held(DIGEST, state, mark), counted=True), **known)  # type: ignore[arg-type]


def failed(blob: Blob = FAILED, state: str = "bad", mark: FileMark = OLD) -> Known:
    return Known(DIGEST, Held(DIGEST, state, mark), failed=blob)


def there(
    mark: FileMark = OLD, *, links: int = 1, kind: str = "", hidden: bool = False, hint: Hint | None = None
) -> Observation:
    seen = Seen(mark, links, kind)
    return Observation(hint or Hint(PLACE, Cause.LISTED), Presence.PRESENT, NOW_NS, Token(1, 1), seen, hidden=hidden)


def heard(mark: FileMark = OLD, **more: int) -> Observation:
    return there(mark, hint=Hint(PLACE, Cause.MOVED_IN, by_event=True), **more)  # type: ignore[arg-type]


def forced(mark: FileMark = OLD) -> Observation:
    return there(mark, hint=Hint(PLACE, Cause.RETRY, force=True))


def gone(*, folder: bool = False, cause: Cause = Cause.DELETED) -> Observation:
    return Observation(Hint(PLACE, cause), Presence.GONE, NOW_NS, Token(1, 1), folder_is_there=folder)


def unknown(problem: str = "") -> Observation:
    return Observation(Hint(PLACE, Cause.LISTED), Presence.UNKNOWN, NOW_NS, Token(1, 1), problem=problem)


def waiting(
    read: FileMark, seen: FileMark, since_s: float = NOW_S - 1, delay_s: float = 0.5, vain_bytes: int = 5000
) -> Unsettled:
    return Unsettled(DIGEST, read, seen, since_s, delay_s, vain_bytes)


def rested(read: FileMark, seen: FileMark, *, vain_bytes: int = 5000) -> Known:
    """A file that did not match, and that has not changed for 10 s since."""
    return replace(NEW, unsettled=waiting(read, seen, NOW_S - Timing().settle_s, vain_bytes=vain_bytes))


def read_on(mark: FileMark, waits: Unsettled) -> list[Action]:
    return [Unignore(), Settle(waits), Read(mark.stored_bytes, decode=True)]


def look_on(seen: FileMark, waits: Unsettled, *, since_s: float | None = None) -> list[Action]:
    settle = Settle(replace(waits, seen=seen, since_s=since_s or waits.since_s, delay_s=2 * waits.delay_s))
    return [Unignore(), settle, Observe(2 * waits.delay_s, waited_for=True)]


TOO_LONG = there(hint=Hint(Place(1, "d" * (MAX_PATH_BYTES + 1)), Cause.LISTED))
DECODE, HASH = Read(5000, decode=True), Read(5000, decode=False)


@dataclass(frozen=True)
class Rule:
    observed: Observation
    known: Known
    actions: list[Action] = field(default_factory=list)


RULES: dict[str, Rule] = {
    "a path that the index can't keep is not served": Rule(TOO_LONG, NEW, [Settle(), TooLong()]),
    # What can't be seen.
    "a root or mount that is away proves nothing": Rule(unknown(), held("verified"), [Settle()]),
    "a place that can't be looked at proves nothing": Rule(unknown("denied"), held("verified"), [Doubt("denied")]),
    "what hides the place of a counted blob says nothing of it": Rule(
        there(OTHER, hidden=True), held("verified"), [Settle()]
    ),
    "a link that hides it neither": Rule(
        there(OTHER, kind="a symbolic link", hidden=True), held("untested"), [Settle()]
    ),
    "what lies where a mount is away is read if nothing is known of it": Rule(
        there(hidden=True), NEW, [Unignore(), Settle(), DECODE]
    ),
    "or only that it failed": Rule(there(OTHER, hidden=True), failed(), [Unignore(), Settle(), DECODE]),
    "and is another place of a counted digest": Rule(
        there(hidden=True), replace(NEW, counted=True), [Unignore(), Settle(), Hold("untested", OLD)]
    ),
    # What is gone.
    "a place that is gone holds nothing": Rule(
        gone(), held("verified"), [Unignore(), Forget("removed, deleted"), Settle()]
    ),
    "a place that was not known and is gone": Rule(gone(), NEW, [Unignore(), Settle()]),
    "a blob whose folder was made is waited for": Rule(
        gone(folder=True),
        NEW,
        [Unignore(), Settle(expected_s=FIRST_LOOK_S), Observe(FIRST_LOOK_S / 2, waited_for=True)],
    ),
    "at doubled intervals": Rule(
        gone(folder=True),
        replace(NEW, expected_s=1.0),
        [Unignore(), Settle(expected_s=2.0), Observe(1.0, waited_for=True)],
    ),
    "but not for ever": Rule(gone(folder=True), replace(NEW, expected_s=Timing().settle_s), [Unignore(), Settle()]),
    "and what was there before it holds nothing meanwhile": Rule(
        gone(folder=True, cause=Cause.NOT_LISTED),
        held("verified"),
        [
            Unignore(),
            Forget("removed, not listed by a scan"),
            Settle(expected_s=FIRST_LOOK_S),
            Observe(FIRST_LOOK_S / 2, waited_for=True),
        ],
    ),
    # What is no blob.
    "what is no regular file is ignored": Rule(there(kind="a FIFO"), NEW, [Settle(), Ignore("a FIFO")]),
    "what is no regular file any longer holds nothing": Rule(
        there(kind="a folder"),
        held("verified"),
        [Settle(), Forget("no regular file is there any longer"), Ignore("a folder")],
    ),
    "what names no blob is neither served nor ignored": Rule(there(), NO_DIGEST, [Settle(), Unignore()]),
    # A digest that is in no figure.
    "a new blob is read": Rule(there(), NEW, [Unignore(), Settle(), DECODE]),
    "an event names it": Rule(heard(), NEW, [Unignore(), Settle(), DECODE]),
    "a digest that is being read is read once": Rule(
        there(OTHER), replace(NEW, task=DECODING), [Unignore(), Settle(), Join()]
    ),
    "and what is waited for stays so": Rule(
        there(OTHER),
        replace(NEW, task=DECODING, unsettled=waiting(OLD, OLD)),
        [Unignore(), Settle(waiting(OLD, OLD)), Join()],
    ),
    # Bytes that do not match yet.
    "a file that did not match is observed again, not read": Rule(
        there(YOUNG),
        replace(NEW, unsettled=waiting(YOUNG, YOUNG)),
        [Unignore(), Settle(waiting(YOUNG, YOUNG, delay_s=1.0)), Observe(1.0, waited_for=True)],
    ),
    "at doubled intervals up to 2 s": Rule(
        there(YOUNG),
        replace(NEW, unsettled=waiting(YOUNG, YOUNG, delay_s=1.5)),
        [Unignore(), Settle(waiting(YOUNG, YOUNG, delay_s=LAST_LOOK_S)), Observe(LAST_LOOK_S, waited_for=True)],
    ),
    "one that changes still is not read yet": Rule(
        there(DOUBLED),
        replace(NEW, unsettled=waiting(OLD, YOUNG)),
        look_on(DOUBLED, waiting(OLD, YOUNG), since_s=NOW_S),
    ),
    "one that has doubled since it was read, and paused, is read": Rule(
        there(DOUBLED), replace(NEW, unsettled=waiting(OLD, DOUBLED)), read_on(DOUBLED, waiting(OLD, DOUBLED))
    ),
    "one that has not is read when it is at rest": Rule(
        there(GROWN), replace(NEW, unsettled=waiting(OLD, GROWN)), look_on(GROWN, waiting(OLD, GROWN))
    ),
    "for 10 s": Rule(
        there(GROWN), rested(OLD, GROWN), read_on(GROWN, waiting(OLD, GROWN, NOW_S - Timing().settle_s))
    ),
    "or longer, when much was read of it in vain": Rule(
        there(GROWN),
        rested(OLD, GROWN, vain_bytes=MUCH),
        look_on(GROWN, waiting(OLD, GROWN, NOW_S - Timing().settle_s, vain_bytes=MUCH)),
    ),
    "another file that is at rest too was not read": Rule(
        there(OTHER),
        replace(NEW, unsettled=waiting(YOUNG, YOUNG)),
        look_on(OTHER, waiting(YOUNG, YOUNG), since_s=NOW_S),
    ),
    "and is read at the second look": Rule(
        there(OTHER), replace(NEW, unsettled=waiting(YOUNG, OTHER)), read_on(OTHER, waiting(YOUNG, OTHER))
    ),
    "one that an event names is read": Rule(
        heard(YOUNG), replace(NEW, unsettled=waiting(YOUNG, YOUNG)), read_on(YOUNG, waiting(YOUNG, YOUNG))
    ),
    "unless twice its size was read in vain": Rule(
        heard(GROWN),
        replace(NEW, unsettled=waiting(OLD, OLD, vain_bytes=12_000)),
        look_on(GROWN, waiting(OLD, OLD, vain_bytes=12_000), since_s=NOW_S),
    ),
    "one that did not change for 10 s fails": Rule(
        there(OLD), rested(OLD, OLD), [Unignore(), Settle(), Fail(MISMATCHED, OLD, WRONG_NAME)]
    ),
    "whatever its own time is": Rule(
        there(AHEAD), rested(AHEAD, AHEAD), [Unignore(), Settle(), Fail(MISMATCHED, AHEAD, WRONG_NAME)]
    ),
    "but not before, though its own time is long ago": Rule(
        there(OLD), replace(NEW, unsettled=waiting(OLD, OLD)), look_on(OLD, waiting(OLD, OLD))
    ),
    "another file is read though its size and ctime are those of the first": Rule(
        there(TWIN), rested(OLD, TWIN), read_on(TWIN, waiting(OLD, TWIN, NOW_S - Timing().settle_s))
    ),
    # A digest that failed.
    "a failed file that is the same is left alone": Rule(there(), failed(), [Unignore(), Settle()]),
    "any event has it read again": Rule(heard(), failed(), [Unignore(), Settle(), DECODE]),
    "as another file has": Rule(there(OTHER), failed(), [Unignore(), Settle(), DECODE]),
    "one that grows still has been read before": Rule(
        heard(GROWN),
        failed(),
        look_on(GROWN, waiting(OLD, GROWN, NOW_S, FIRST_LOOK_S, 15_000), since_s=NOW_S),
    ),
    "and is read when it is twice as large": Rule(
        heard(DOUBLED), failed(), read_on(DOUBLED, waiting(OLD, DOUBLED, NOW_S, FIRST_LOOK_S, 15_000))
    ),
    "and another place": Rule(there(), replace(NEW, failed=FAILED), [Unignore(), Settle(), DECODE]),
    "and its time": Rule(forced(), failed(), [Unignore(), Settle(), DECODE]),
    "one that failed for good is not read": Rule(
        heard(), failed(FOR_GOOD, "verified"), [Unignore(), Settle()]
    ),
    "wherever it lies": Rule(
        heard(OTHER),
        replace(NEW, failed=FOR_GOOD),
        [Unignore(), Settle(), Hold("untested", OTHER)],
    ),
    "nor in another file": Rule(
        heard(OTHER), failed(FOR_GOOD, "verified"), [Unignore(), Settle(), Hold("verified", OTHER)]
    ),
    "but when it is asked for": Rule(forced(), failed(FOR_GOOD, "verified"), [Unignore(), Settle(), DECODE]),
    # A digest that is counted.
    "a counted name is trusted while its mark is the same": Rule(
        heard(), held("verified"), [Unignore(), Settle()]
    ),
    "and hashed again, not decoded, when it is another": Rule(
        there(YOUNG), held("verified"), [Unignore(), Settle(), HASH]
    ),
    "a ctime of 0 never matches": Rule(
        there(), held("verified", OLD._replace(ctime_ns=0)), [Unignore(), Settle(), HASH]
    ),
    "another place of it is taken on trust": Rule(
        heard(), replace(NEW, counted=True), [Unignore(), Settle(), Hold("untested", OLD)]
    ),
    "and again when it is another file": Rule(
        heard(OTHER), held("untested"), [Unignore(), Settle(), Hold("untested", OTHER)]
    ),
    "a place that was bad and has other bytes": Rule(
        heard(OTHER), held("bad"), [Unignore(), Settle(), Hold("untested", OTHER)]
    ),
    "a change while it is hashed is seen to after that": Rule(
        heard(YOUNG), held("verified", task=HASHING), [Unignore(), Settle(), Join()]
    ),
    "also while another place is": Rule(
        heard(YOUNG), held("verified", task=ELSEWHERE), [Unignore(), Settle(), Join()]
    ),
    "and so is the place that is hashed to take over": Rule(
        heard(YOUNG), held("untested", task=HASHING), [Unignore(), Settle(), Hold("untested", YOUNG), Join()]
    ),
    "another untested place need not wait for it": Rule(
        heard(), held("untested", task=ELSEWHERE), [Unignore(), Settle()]
    ),
    # Hard links.
    "a hard link of a verified file is verified": Rule(
        there(links=2),
        replace(NEW, counted=True, kin=OLD),
        [Unignore(), Settle(), Hold("verified", OLD)],
    ),
    "with ctime 0 when the link has changed the file's": Rule(
        there(LINKED, links=2),
        replace(NEW, counted=True, kin=OLD),
        [Unignore(), Settle(), Hold("verified", LINKED._replace(ctime_ns=0))],
    ),
    "a file of one name is no link": Rule(
        there(LINKED),
        replace(NEW, counted=True, kin=OLD),
        [Unignore(), Settle(), Hold("untested", LINKED)],
    ),
    "a link over a copy is one of what was verified": Rule(
        there(LINKED, links=2),
        held("untested", OTHER, kin=LINKED),
        [Unignore(), Settle(), Hold("verified", LINKED)],
    ),
    # A digest whose verified place is gone.
    "a link of the file that is gone takes over": Rule(
        there(LINKED),
        held("untested", needs_rehash=True, lost=OLD),
        [Unignore(), Settle(), TakeOver(LINKED._replace(ctime_ns=0))],
    ),
    "unless another place holds it by now": Rule(
        there(LINKED), held("untested", lost=OLD), [Unignore(), Settle(), Hold("untested", LINKED)]
    ),
    "another file is hashed": Rule(
        there(OTHER), held("untested", OTHER, needs_rehash=True, lost=OLD), [Unignore(), Settle(), HASH]
    ),
    "one of another size too": Rule(
        there(OLD._replace(stored_bytes=4)),
        held("untested", OLD._replace(stored_bytes=4), needs_rehash=True, lost=OLD),
        [Unignore(), Settle(), Read(4, decode=False)],
    ),
    "what needs a rehash and is at hand is hashed": Rule(
        there(), held("untested", needs_rehash=True), [Unignore(), Settle(), HASH]
    ),
    "once": Rule(there(), held("untested", needs_rehash=True, task=ELSEWHERE), [Unignore(), Settle()]),
    "a link waits for the place that is hashed": Rule(
        there(LINKED),
        held("untested", LINKED, needs_rehash=True, lost=OLD, task=ELSEWHERE),
        [Unignore(), Settle()],
    ),
}  # fmt: skip


def with_types(actions: list[Action]) -> list[tuple[type[Action], Action]]:
    """Two actions with the same fields are equal as tuples."""
    return [(type(action), action) for action in actions]


@pytest.mark.parametrize("rule", RULES)
def test_what_follows_from_an_observation(rule: str) -> None:
    row = RULES[rule]
    assert with_types(decide(row.observed, row.known, NOW_S)) == with_types(row.actions)


# --- what a worker found ----------------------------------------------------------------------------------------------

READ_NS = NOW_NS - S // 2
LAYER = Finding("layer", "gzip", 9000, read_until_ns=READ_NS)
NO_LAYER = Finding("other", read_until_ns=READ_NS)
MATCHED = Finding("matched", read_until_ns=READ_NS)
MISMATCH = Finding("mismatched", read_until_ns=READ_NS)
BROKEN = Finding("undecodable", reason="truncated", read_until_ns=READ_NS)
CANT = Finding("unreadable", reason="denied")
# Changed after it was read; changed so shortly before that a second change could hide behind it; and not so shortly.
CHANGED = OLD._replace(ctime_ns=NOW_NS)
HIDING = OLD._replace(ctime_ns=READ_NS - CTIME_TICK_NS + 1)
SURE = OLD._replace(ctime_ns=READ_NS - CTIME_TICK_NS)


def unsure(mark: FileMark) -> FileMark:
    return mark._replace(ctime_ns=0)


@dataclass(frozen=True)
class Found:
    finding: Finding
    observed: Observation
    known: Known
    actions: list[Action]
    opened: FileMark | None = OLD
    why: str = "a test"


PENDING: list[Action] = [
    Settle(Unsettled(DIGEST, YOUNG, YOUNG, NOW_S, FIRST_LOOK_S, 5000)),
    Observe(FIRST_LOOK_S, waited_for=True),
]

FINDINGS: dict[str, Found] = {
    # Where the place is not what it was.
    "a root that is away proves nothing": Found(LAYER, unknown(), NEW, [Settle()]),
    "a place that can't be looked at is observed again": Found(LAYER, unknown("denied"), NEW, [Settle(), Observe()]),
    "what was read where a mount went away says nothing": Found(
        MISMATCH, there(OTHER, hidden=True), held("verified"), [Settle()]
    ),
    "but of what was not known there": Found(
        MATCHED, there(hidden=True), replace(NEW, counted=True), [Settle(), Verified(OLD)]
    ),
    "or had failed": Found(LAYER, there(hidden=True), failed(), [Settle(), Count(LAYER, OLD, OLD.ctime_ns)]),
    "a place that is gone is observed again": Found(LAYER, gone(), NEW, [Settle(), Observe()]),
    "as one that was gone when it was opened": Found(Finding("gone"), there(), NEW, [Settle(), Observe()], None),
    "or no regular file": Found(Finding("ignored", reason="a FIFO"), there(), NEW, [Settle(), Observe()], None),
    "what is waited for there stays so": Found(
        Finding("gone"), gone(), replace(NEW, expected_s=1.0), [Settle(expected_s=1.0), Observe()], None
    ),
    "another file is read again": Found(LAYER, there(OTHER), NEW, [Settle(), Observe(by_event=True)]),
    "also one of other bytes by the same number": Found(
        LAYER, there(OLD._replace(stored_bytes=6)), NEW, [Settle(), Observe(by_event=True)]
    ),
    "also of a counted digest": Found(
        MATCHED, there(OTHER), held("verified", YOUNG), [Settle(), Observe(by_event=True)]
    ),
    "the second time it is waited for as one that is being written": Found(
        LAYER,
        there(OTHER),
        NEW,
        [Settle(Unsettled(DIGEST, OLD, OTHER, NOW_S, FIRST_LOOK_S, 5000)), Observe(FIRST_LOOK_S, waited_for=True)],
        why=Cause.REPLACED.value,
    ),
    "and fails when that happens at rest": Found(
        LAYER, there(OTHER), rested(OLD, OTHER), [Settle(), Fail(UNREADABLE, OTHER, CAN_NOT_BE_READ + DISAGREES)]
    ),
    "and leaves a counted digest as it is": Found(
        MATCHED,
        there(OTHER),
        held("verified", YOUNG),
        [Settle(), CantReadAgain(DISAGREES, DISAGREEING_S)],
        why=Cause.REPLACED.value,
    ),
    "another file is not counted though its size and ctime are those of the one that was read": Found(
        LAYER, there(OLD), NEW, [Settle(), Observe(by_event=True)], TWIN
    ),
    # The bytes match.
    "a layer counts": Found(LAYER, there(), NEW, [Settle(), Count(LAYER, OLD, OLD.ctime_ns)]),
    "and what is none": Found(NO_LAYER, there(), NEW, [Settle(), Count(NO_LAYER, OLD, OLD.ctime_ns)]),
    "so it does though it failed before": Found(LAYER, there(), failed(), [Settle(), Count(LAYER, OLD, OLD.ctime_ns)]),
    "a change within 50 ms before the end of the reading may hide another": Found(
        LAYER, there(HIDING), NEW, [Settle(), Count(LAYER, unsure(HIDING), HIDING.ctime_ns)], HIDING
    ),
    "one before that can't": Found(LAYER, there(SURE), NEW, [Settle(), Count(LAYER, SURE, SURE.ctime_ns)], SURE),
    "metadata that changed while it was read prove nothing": Found(
        LAYER, there(SURE), NEW, [Settle(), Count(LAYER, unsure(OLD), SURE.ctime_ns)]
    ),
    "and it is observed again when that was after it was read": Found(
        LAYER, there(CHANGED), NEW, [Settle(), Count(LAYER, unsure(OLD), CHANGED.ctime_ns), Observe()]
    ),
    "once": Found(
        MATCHED,
        there(CHANGED),
        held("verified"),
        [Settle(), Verified(unsure(OLD))],
        why=Cause.REPLACED.value,
    ),
    "a file system's clock may be ahead": Found(
        LAYER, there(CHANGED), NEW, [Settle(), Count(LAYER, unsure(CHANGED), CHANGED.ctime_ns)], CHANGED
    ),
    "a counted digest that is hashed is verified": Found(
        MATCHED, there(), held("untested"), [Settle(), Verified(OLD)]
    ),
    "as is one that was decoded meanwhile": Found(LAYER, there(), held("untested"), [Settle(), Verified(OLD)]),
    "with ctime 0 when it may have changed": Found(
        MATCHED, there(CHANGED), held("verified"), [Settle(), Verified(unsure(OLD)), Observe()]
    ),
    "what was subtracted while it was hashed is decoded": Found(MATCHED, there(), NEW, [Settle(), DECODE]),
    # The bytes do not match.
    "a young file that does not match is pending": Found(MISMATCH, there(YOUNG), NEW, PENDING, YOUNG),
    "the interval goes on where it was": Found(
        MISMATCH,
        there(YOUNG),
        replace(NEW, unsettled=waiting(OLD, YOUNG, NOW_S - 3, 1.0)),
        [Settle(Unsettled(DIGEST, YOUNG, YOUNG, NOW_S - 3, 1.0, 10_000)), Observe(1.0, waited_for=True)],
        YOUNG,
    ),
    "and so does its rest, unless it changed": Found(
        MISMATCH,
        there(YOUNG),
        replace(NEW, unsettled=waiting(OLD, OLD, NOW_S - 30, 1.0)),
        [Settle(Unsettled(DIGEST, YOUNG, YOUNG, NOW_S, 1.0, 10_000)), Observe(1.0, waited_for=True)],
        YOUNG,
    ),
    "one that has been at rest for 10 s fails": Found(
        MISMATCH, there(), rested(YOUNG, OLD), [Settle(), Fail(MISMATCHED, OLD, WRONG_NAME)]
    ),
    "whatever its descriptor says": Found(
        MISMATCH, there(OTHER), rested(YOUNG, OTHER), [Settle(), Fail(MISMATCHED, OTHER, WRONG_NAME)]
    ),
    "one that changed meanwhile is pending too": Found(
        MISMATCH,
        there(YOUNG),
        NEW,
        [Settle(Unsettled(DIGEST, OLD, YOUNG, NOW_S, FIRST_LOOK_S, 5000)), Observe(FIRST_LOOK_S, waited_for=True)],
    ),
    "one that another has replaced as well": Found(
        MISMATCH,
        there(OTHER),
        NEW,
        [Settle(Unsettled(DIGEST, OLD, OTHER, NOW_S, FIRST_LOOK_S, 5000)), Observe(FIRST_LOOK_S, waited_for=True)],
    ),
    "one that failed before and is the same fails at once": Found(
        MISMATCH, there(), failed(), [Settle(), Fail(MISMATCHED, OLD, WRONG_NAME)]
    ),
    "a file whose own time is long ago is pending too": Found(
        MISMATCH,
        there(),
        NEW,
        [Settle(Unsettled(DIGEST, OLD, OLD, NOW_S, FIRST_LOOK_S, 5000)), Observe(FIRST_LOOK_S, waited_for=True)],
    ),
    "a place of a counted digest that does not match loses it": Found(
        MISMATCH, there(YOUNG), held("verified"), [Settle(), Lost(OLD, YOUNG, NOW_S)]
    ),
    # The bytes match and do not decode.
    "an undecodable one fails": Found(BROKEN, there(), NEW, [Settle(), Fail(UNDECODABLE, OLD, "truncated")]),
    "it may have changed since": Found(
        BROKEN, there(CHANGED), NEW, [Settle(), Fail(UNDECODABLE, unsure(OLD), "truncated")]
    ),
    # It can't be read.
    "an unreadable one fails with the reason": Found(
        CANT, there(), NEW, [Settle(), Fail(UNREADABLE, OLD, "can't be read: denied")], None
    ),
    "what is known of the reason says more": Found(
        CANT, replace(there(), seen=Seen(OLD, 1, "", "503")), NEW,
        [Settle(), Fail(UNREADABLE, OLD, "can't be read: 503")], None,
    ),
    "one in an archive is archived": Found(
        CANT, replace(there(), seen=Seen(OLD, 1, "", "archived (GLACIER)", archived=True)), NEW,
        [Settle(), Fail(ARCHIVED, OLD, "archived (GLACIER)")], None,
    ),
    "but not if it was read": Found(
        LAYER, replace(there(), seen=Seen(OLD, 1, "", "archived (GLACIER)", archived=True)), NEW,
        [Settle(), Count(LAYER, OLD, OLD.ctime_ns)],
    ),
    "as the file that is there now": Found(
        CANT, there(OTHER), NEW, [Settle(), Fail(UNREADABLE, OTHER, "can't be read: denied")]
    ),
    "the figures of a counted one stand": Found(
        CANT, there(YOUNG), held("verified"), [Settle(), CantReadAgain("denied", UNREADABLE_S)], None
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", FINDINGS)
def test_what_follows_from_a_finding(rule: str) -> None:
    row = FINDINGS[rule]
    task = replace(HASHING if row.known.counted else DECODING, mark=row.opened, why=row.why)
    assert with_types(decide_finding(task, row.finding, row.observed, row.known, NOW_S)) == with_types(row.actions)
