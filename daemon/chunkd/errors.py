"""Every error that chunkd raises on purpose has one base class. An error keeps only values that some code reads.

A bad blob is recorded and skipped, a bad index stops the daemon, a bad request is answered. Anything that is not a
`ChunkdError` is a bug and is left to crash. A message names the thing, then what is wrong, then what to do.
"""

from __future__ import annotations

import errno
import os

REBUILD = "run `chunkd rebuild`, which moves it aside and reads the caches anew"
RUN_AGAIN = "run the command again to go on from there"


class ChunkdError(Exception):
    """The base. `exit_code` is what the command line returns for it."""

    exit_code = 1


class OutputUnwritable(ChunkdError):
    """Standard output can't be written: it is closed, its disk is full, or it fails."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"standard output: can't be written: {problem}")


class SystemRefused(ChunkdError):
    """The system gives this process too few files, processes or memory, or no /dev/null. That is never a bug."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the system refused {what}; see the limits (`ulimit -a`) and mounts of this process")

    @classmethod
    def of(cls, error: OSError) -> SystemRefused | None:
        """The SystemRefused for an OSError by which the system refused something; None for any other."""
        refused = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
        if not (refused or error.filename == os.devnull):
            return None
        return cls(f"{error.filename or 'a file or a process'}: {error.strerror}")


class StarterGone(ChunkdError):
    """The process that starts workers can't be started, has ended under its daemon, or takes no request any more."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the process that starts workers {problem}; start chunkd again")


# --- a bad blob: recorded with its reason, and skipped -------------------------------------------------------------


class BlobError(ChunkdError):
    """One blob can't be counted."""


class BlobUndecodable(BlobError):
    """The blob's bytes match its name, but do not decompress to their end, or break a cap."""

    def __init__(self, codec: str, reason: str) -> None:
        super().__init__(f"{codec}: {reason}")
        self.codec, self.reason = codec, reason


class RecipeImpossible(BlobError):
    """A worker sent a recipe that no chunker makes: its blob took it over, or it has a bug. The blob is failed."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"worker sent an invalid recipe: {problem}")


# --- a bad index: the daemon stops, and says which command mends it ------------------------------------------------


class BadIndex(ChunkdError):
    """The index can't be used as it is."""


class IndexMissing(BadIndex):
    exit_code = 3

    def __init__(self, path: str) -> None:
        super().__init__(f"index {path}: does not exist; make it with `chunkd run` or `chunkd scan`")


class IndexDamaged(BadIndex):
    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"index {path}: damaged: {what}; {REBUILD}")


class Unrepairable(BadIndex):
    exit_code = 4

    def __init__(self, path: str, left: str) -> None:
        super().__init__(f"index {path}: the repair left a difference ({left}); {REBUILD}")


class FormatMismatch(BadIndex):
    def __init__(self, path: str, found: int, expected: int, *, upgradable: bool = False) -> None:
        advice = "use the version that wrote it, or run `chunkd rebuild`"
        if upgradable:
            advice = "run `chunkd run` or `chunkd scan`, which upgrades it in place"
        super().__init__(f"index {path}: has format {found}, and this chunkd reads format {expected}; {advice}")
        self.found, self.expected = found, expected


class ParamsMismatch(BadIndex):
    def __init__(self, path: str, found: str, expected: str) -> None:
        super().__init__(
            f"index {path}: was made with chunker parameters {found}, not {expected}, and their figures can't be mixed;"
            " use another `--state DIR`, or run `chunkd rebuild`"
        )
        self.found, self.expected = found, expected


class IndexBusy(ChunkdError):
    """Another process holds the index's lock."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"index {path}: in use by {holder}; stop that one, or use another index with `--state DIR`")
        self.holder = holder


class ProcessNumberTaken(ChunkdError):
    """LMDB knows the processes at an index by their number, and two containers may each have a process of one."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(
            f"index {path}: in use by process {number} of another container, and LMDB takes this one, which is process"
            f" {number} too, for the same; start this container with `--init`, or run the command in the other one"
        )


class IndexUnwritable(ChunkdError):
    """A transaction was not written (disk full, I/O error). The index is as before it, so it may be tried again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"index {path}: can't be written: {reason}; it is unchanged")
        self.reason = reason


class IndexUnreachable(ChunkdError):
    """The index's folder or a file in it can't be opened."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"index {path}: can't be opened: {reason}")
        self.reason = reason


class IndexRemoved(ChunkdError):
    """A file of the index was removed or replaced while its writer was using it. Further writes would be lost."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"index {path}: removed or replaced while it was in use; start chunkd again, which makes a new index if"
            " there is none"
        )


class CopiesOverflow(ChunkdError):
    def __init__(self, number: int, copies: int) -> None:
        super().__init__(f"chunk {number}: {copies} copies do not fit into the 40 bits of its record")
        self.number, self.copies = number, copies


# --- what the user gave -------------------------------------------------------------------------------------------


class UsageError(ChunkdError):
    exit_code = 2


class SettingInvalid(UsageError):
    def __init__(self, name: str, source: str, problem: str) -> None:
        super().__init__(f"setting {name} ({source}): {problem}; `chunkd config --help` lists the settings")
        self.name, self.source, self.problem = name, source, problem


class SettingsFileUnusable(SettingInvalid):
    """A settings file can't be read, or is not TOML."""

    def __init__(self, path: str, problem: str) -> None:
        self.name, self.source, self.problem = "file", path, problem
        advice = "correct it, or set CHUNKD_CONFIG to another file (/dev/null for none)"
        ChunkdError.__init__(self, f"settings file {path}: {problem}; {advice}")


class RuleUnknown(UsageError):
    """No rule has that name, nor are it sizes that go together."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"rule {name[:80]!r}: unknown; use sizes in KiB, least/mean/most, such as 2/16/64, of which the mean is a"
            f" power of two and the most below 16384, or one of {', '.join(known)}"
        )
        self.name, self.known = name, known


class CacheUnusable(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"cache {path}: {problem}")


class NoCacheNamed(UsageError):
    """No flag, variable or file names a cache, and the default folder is not there."""

    def __init__(self, default: str) -> None:
        super().__init__(
            f"no cache is named, and the default {default} does not exist; name a cache: an argument"
            " (`chunkd scan /var/lib/registry`), CHUNKD_CACHES=/var/lib/registry, or"
            ' caches = ["/var/lib/registry"] in a settings file'
        )


class CachesDropped(UsageError):
    def __init__(self, state: str, dropped: list[str]) -> None:
        super().__init__(
            f"index {state}: also serves {', '.join(dropped)}, which this would drop;"
            " add `--replace` to drop them, or use another index with `--state DIR`"
        )


class Interrupted(ChunkdError):
    def __init__(self, done: int, left: int) -> None:
        super().__init__(f"interrupted: {done} blobs were read and {left} are left; {RUN_AGAIN}")


class ServesOthers(UsageError):
    def __init__(self, socket: str, caches: list[str]) -> None:
        super().__init__(
            f"socket {socket}: its daemon uses this index and serves {', '.join(caches)};"
            " name those caches, stop the daemon, or use another index with `--state DIR`"
        )


class Halted(ChunkdError):
    """A command stops where a daemon would pause, because its user decides when to go on."""

    def __init__(self, why: str, left: int) -> None:
        super().__init__(f"{why}; {left} blobs are left: {RUN_AGAIN}")


class RemeasureIncomplete(ChunkdError):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"index {path}: keeps its old figures, since {why}; {RUN_AGAIN}")


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


class NothingThere(ChunkdError):
    exit_code = 3

    def __init__(self, sockets: list[str], states: list[str]) -> None:
        super().__init__(
            f"no daemon answers ({', '.join(sockets)}) and there is no index ({', '.join(states)});"
            " start `chunkd run`, or run `chunkd scan CACHE`"
        )


class SocketDenied(ChunkdError):
    """A daemon may be there, but this user may not ask it. That differs from "no daemon"."""

    def __init__(self, path: str, group: str) -> None:
        advice = f"join the group {group} (usermod -aG {group} $USER)"
        if group == "root":
            advice = "ask as root, or join the group that the daemon runs as"
        super().__init__(f"socket {path}: permission denied; {advice}")
        self.path, self.group = path, group


class RequestRefused(ChunkdError):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the daemon answered {status}: {message}")
        self.status, self.reason = status, message


class TooManyImages(ChunkdError):
    """The figures of images would take too much time or memory."""

    def __init__(self, why: str) -> None:
        super().__init__(f"images: their figures would take too much time or memory: {why}")


class IndexMoves(ChunkdError):
    def __init__(self, tries: int) -> None:
        super().__init__(f"the index changed while images were read from it, {tries} times; ask again")
