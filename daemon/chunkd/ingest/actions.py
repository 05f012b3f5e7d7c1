"""What can follow from an observation or a finding, as values. `decide` makes them, `places` carries them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from chunkd.model import Digest, FileMark, Finding, Place
from chunkd.sources.activity import Token


@dataclass(slots=True)
class Task:
    """A blob that waits for a worker, until its result is committed. `given`: a worker has it. `was_read`: the worker
    is done.

    `counted`: it is in the figures and is only hashed again. `inherit` is the token of the thing it follows from.
    `others` are places to observe when it is done. `mark` is the file that was opened.
    """

    digest: Digest
    place: Place
    why: str
    stored_bytes: int
    counted: bool
    tries: int = 0
    given: bool = False
    was_read: bool = False
    others: list[Place] = field(default_factory=list)
    mark: FileMark | None = None
    descriptor: int = -1
    inherit: Token | None = None
    token: Token | None = None


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A file that did not match its name when it was read as `read`, and that has looked like `seen` since `since_s` of
    the monotonic clock. `vain_bytes` counts what was read of it in vain.
    """

    digest: Digest
    read: FileMark
    seen: FileMark
    since_s: float
    delay_s: float
    vain_bytes: int


class Hold(NamedTuple):
    """The place holds the digest, in this state."""

    state: str
    mark: FileMark


class TakeOver(NamedTuple):
    """The place is a link of the verified file that is gone, so it needs no hashing."""

    mark: FileMark


class Forget(NamedTuple):
    """The place no longer holds anything."""

    why: str


class Ignore(NamedTuple):
    """There is no blob at the place, for this reason."""

    reason: str


class Unignore(NamedTuple):
    pass


class Read(NamedTuple):
    """A worker reads the place, to decode it or only to hash it."""

    stored_bytes: int
    decode: bool


class Join(NamedTuple):
    """The digest is being read. The place is observed again when that is done."""


class Observe(NamedTuple):
    """Observe the place again: at once, or after `delay_s`."""

    delay_s: float = 0.0
    waited_for: bool = False
    by_event: bool = False


class Doubt(NamedTuple):
    """The place can't be looked at. It is observed again, at growing intervals."""

    problem: str


class Settle(NamedTuple):
    """From now on this is waited for at the place; nothing if both are None."""

    unsettled: Unsettled | None = None
    expected_s: float | None = None


class Fail(NamedTuple):
    kind: str
    mark: FileMark
    reason: str


class Count(NamedTuple):
    """Count the blob as it was found. `landed_ns` is when its file last changed."""

    finding: Finding
    mark: FileMark
    landed_ns: int


class Verified(NamedTuple):
    """The place was hashed and holds its counted digest."""

    mark: FileMark


class Lost(NamedTuple):
    """A place of a counted digest was read as `read` and does not hold it. `now` is the file that is there, as seen at
    `now_s`, by the monotonic clock.
    """

    read: FileMark
    now: FileMark
    now_s: float


class CantReadAgain(NamedTuple):
    """A counted blob can't be read now; its figures stand, and it is tried again after `delay_s`."""

    reason: str
    delay_s: float


class TooLong(NamedTuple):
    """The path can't be kept in the index."""


Action = (
    Hold | TakeOver | Forget | Ignore | Unignore | Read | Join | Observe | Doubt | Settle | Fail | Count | Verified
    | Lost | CantReadAgain | TooLong
)  # fmt: skip
