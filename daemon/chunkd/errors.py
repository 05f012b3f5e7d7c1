"""Every error that chunkd raises on purpose has one base class; its leaves carry values.

A bad blob is recorded and skipped, a bad index stops the daemon, a bad request is answered. Anything that is not a
`ChunkdError` is a bug and is left to crash. A message names the thing, then what is wrong, then what to do.
"""

from __future__ import annotations


class ChunkdError(Exception):
    """The base. `exit_code` is what the command line returns for it."""

    exit_code = 1


class OutputUnwritable(ChunkdError):
    """Standard output takes no more: what it goes to is full, or fails. That its reader has gone is another thing."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"standard output: can't be written: {problem}")
        self.problem = problem


# --- a bad blob: recorded with its reason, and skipped -------------------------------------------------------------


class BlobError(ChunkdError):
    """The bytes of one blob can't be taken in."""


class BlobUndecodable(BlobError):
    """The bytes match the name and are no whole stream, or break a cap."""

    def __init__(self, codec: str, reason: str) -> None:
        super().__init__(f"{codec}: {reason}")
        self.codec, self.reason = codec, reason


class RecipeImpossible(BlobError):
    """A worker sent what no chunker makes: it was taken over by its blob, or has a bug. It costs the blob."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"its worker gave an impossible recipe: {problem}")
        self.problem = problem


# --- a bad index: the daemon stops, and says which command mends it ------------------------------------------------


class BadIndex(ChunkdError):
    """The index can't be used as it is."""


class IndexMissing(BadIndex):
    exit_code = 3

    def __init__(self, path: str) -> None:
        super().__init__(f"index {path}: there is none; `chunkd run` or `chunkd scan` makes it")
        self.path = path


class IndexDamaged(BadIndex):
    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"index {path}: damaged: {what}; `chunkd rebuild` moves it aside and reads the caches anew")
        self.path, self.what = path, what


class Unrepairable(BadIndex):
    exit_code = 4

    def __init__(self, path: str, left: str) -> None:
        super().__init__(
            f"index {path}: not all could be repaired ({left});"
            " `chunkd rebuild` moves it aside and reads the caches anew"
        )
        self.path, self.left = path, left


class FormatMismatch(BadIndex):
    def __init__(self, path: str, found: int, expected: int, *, upgradable: bool = False) -> None:
        advice = "use the version that wrote it, or `chunkd rebuild`"
        if upgradable:
            advice = "`chunkd run` or `chunkd scan` upgrades it in place"
        super().__init__(f"index {path}: format {found}, and this chunkd reads format {expected}; {advice}")
        self.path, self.found, self.expected = path, found, expected


class ParamsMismatch(BadIndex):
    def __init__(self, path: str, found: str, expected: str) -> None:
        super().__init__(
            f"index {path}: made with the chunker's parameters {found}, asked for {expected};"
            " figures of the two can't be mixed: use another `--state DIR`, or `chunkd rebuild`"
        )
        self.path, self.found, self.expected = path, found, expected


class IndexBusy(ChunkdError):
    """Another process holds the index's lock."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"index {path}: in use by {holder}; stop that one, or name another with `--state DIR`")
        self.path, self.holder = path, holder


class IndexUnwritable(ChunkdError):
    """A transaction could not be written (disk full, I/O error). The index is as before it; trying again is right."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"index {path}: can't be written: {reason}; it is as it was before")
        self.path, self.reason = path, reason


class IndexUnreachable(ChunkdError):
    """The index's folder or a file in it can't be opened."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"index {path}: can't be opened: {reason}")
        self.path, self.reason = path, reason


class CopiesOverflow(ChunkdError):
    def __init__(self, number: int, copies: int) -> None:
        super().__init__(f"chunk {number}: {copies} copies do not fit the 40 bits of its record")
        self.number, self.copies = number, copies


# --- what the user gave -------------------------------------------------------------------------------------------


class UsageError(ChunkdError):
    exit_code = 2


class SettingInvalid(UsageError):
    def __init__(self, name: str, source: str, problem: str) -> None:
        super().__init__(f"setting {name} ({source}): {problem}; `chunkd run --help` shows every setting")
        self.name, self.source, self.problem = name, source, problem


class KernelMissing(UsageError):
    def __init__(self, kernel: str, present: tuple[str, ...]) -> None:
        super().__init__(f"kernel {kernel}: this processor or build lacks it; it has {', '.join(present)}")
        self.kernel, self.present = kernel, present


class CacheUnusable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"cache {path}: {problem}")
        self.path, self.problem = path, problem


class CachesDropped(UsageError):
    def __init__(self, state: str, dropped: list[str]) -> None:
        super().__init__(
            f"index {state}: also serves {', '.join(dropped)}, which would be dropped;"
            " say `--replace` if that is meant, or name another index with `--state DIR`"
        )
        self.state, self.dropped = state, dropped


class Interrupted(ChunkdError):
    def __init__(self, done: int, left: int) -> None:
        super().__init__(f"interrupted: {done} blobs were read, {left} are left; run it again to go on from there")
        self.done, self.left = done, left


class ServesOthers(UsageError):
    def __init__(self, socket: str, caches: list[str]) -> None:
        super().__init__(
            f"socket {socket}: a daemon serves {', '.join(caches)} from this index;"
            " name those, stop it, or name another index with `--state DIR`"
        )
        self.socket, self.caches = socket, caches


class Halted(ChunkdError):
    """Where a daemon would pause, a command ends: who started it decides when to go on."""

    def __init__(self, why: str, left: int) -> None:
        super().__init__(f"{why}; {left} blobs are left: run it again to go on from there")
        self.why, self.left = why, left


class RemeasureIncomplete(ChunkdError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"index {path}: the old figures stay, as {why}; run it again to go on from there")
        self.path, self.why = path, why


# --- the socket ---------------------------------------------------------------------------------------------------


class SocketUnusable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"socket {path}: {problem}")
        self.path, self.problem = path, problem


class NoDaemon(ChunkdError):
    exit_code = 3

    def __init__(self, tried: list[str]) -> None:
        super().__init__(f"no daemon answers ({', '.join(tried)}); start one with `chunkd run`")
        self.tried = tried


class SocketDenied(ChunkdError):
    """Never to be taken for "no daemon": one may well be there."""

    def __init__(self, path: str, group: str) -> None:
        advice = f"join the group {group} (usermod -aG {group} $USER)"
        if group == "root":
            advice = "ask as root; where the daemon runs as a user of its own, join the group of that"
        super().__init__(f"socket {path}: permission denied; {advice}")
        self.path, self.group = path, group


class RequestRefused(ChunkdError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the daemon answered {status}: {message}")
        self.status, self.message = status, message
