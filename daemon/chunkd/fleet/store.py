"""A store: a folder that hosts share. Nothing in it is ever changed in place.

rules.json                        what all that is in it must agree in
segments/<id>.rows.parquet        the chunks of some blobs
segments/<id>.blobs.parquet       these blobs; a segment exists when this file does
snapshots/<source>/               what one source held at a moment
sweeps/<key>/                     what a sweep that asks one question found in each layer
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from chunkd.errors import ChunkdError
from chunkd.index.storage import durability
from chunkd.model import ChunkParams

FORMAT = 1
# What nobody refers to is removed after so long: somebody may be about to refer to it.
GRACE_S = 2 * 86400
RULES_BYTES = 4096

_PARTIAL = re.compile(r"\.[0-9a-f]+\.new")


class StoreUnusable(ChunkdError):
    """The store, or a file of it, is not there or can't be read or written."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"store {path}: {problem}")


class RulesDiffer(ChunkdError):
    """Two things were made by rules whose figures can't be added up."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"unlike rules: {one}, and {other}: their chunks can't be compared; use a store for each")


class Store:
    """The folder at `path`. Raises StoreUnusable where the system refuses something."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = Path(path)

    def begin(self, params: ChunkParams, key_id: str) -> None:
        """Make the store if it is not there, or see that it has these rules. Raises RulesDiffer."""
        rules = {"format": FORMAT, "params": asdict(params), "key": key_id or None}
        if not self.exists("rules.json"):
            self.put("rules.json", lambda path: Path(path).write_text(json.dumps(rules, indent=1) + "\n"))
        self.check(params, key_id)

    def check(self, params: ChunkParams, key_id: str, who: str = "asked for is") -> None:
        """Raises RulesDiffer unless the store has these rules; `who` is the beginning of what differs."""
        found = self.rules()
        for name, value in (("params", asdict(params)), ("key", key_id or None)):
            if found.get(name) != value:
                own = f"store {self.path} has {name} {json.dumps(found.get(name))[:500]}"
                raise RulesDiffer(own, f"{who} {json.dumps(value)}")

    def rules(self) -> dict[str, object]:
        """What `rules.json` says."""
        if not self.exists("rules.json"):
            raise StoreUnusable(self.path, "it has no rules.json: it is not a store; `chunkd export` makes one")
        try:
            found = json.loads(self.read("rules.json", RULES_BYTES))
        except (ValueError, RecursionError) as error:
            raise StoreUnusable(self.path, f"rules.json is not JSON: {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise StoreUnusable(self.path, f"rules.json is not of format {FORMAT}, which this chunkd reads")
        return found

    def exists(self, name: str) -> bool:
        with self._refusals():
            try:
                return stat.S_ISREG(os.lstat(self._root / name).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def folder(self, name: str) -> Path:
        """The path of a folder, which is made if it is not there."""
        with self._refusals():
            _make_folder(self._root / name)
        return self._root / name

    def file(self, name: str, most_bytes: int) -> str:
        """The path of a file to read. It is a regular file of at most so many bytes."""
        path = self._root / name
        with self._refusals():
            found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
            raise StoreUnusable(self.path, f"{name} is not a regular file of at most {most_bytes} bytes")
        return str(path)

    def read(self, name: str, most_bytes: int) -> bytes:
        path = self.file(name, most_bytes)
        with self._refusals():
            return Path(path).read_bytes()

    def put(self, name: str, write: Callable[[str], object]) -> None:
        """Make a file: `write` is given the path of a new, empty one. It is on disk before it has its name, so that
        nobody meets half of one. If there is one of this name already, that stays.
        """
        target = self._root / name
        partial = target.parent / f".{secrets.token_hex(8)}.new"
        with self._refusals():
            _make_folder(target.parent)
            try:
                with open(partial, "xb"):
                    pass
                write(str(partial))
                durability.sync(partial)
                with contextlib.suppress(FileExistsError):
                    os.link(partial, target)
                    durability.sync(target.parent)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)

    def names(self, folder: str, suffix: str) -> list[str]:
        """The files of a folder, sorted, without this suffix; none of those that are being made."""
        with self._refusals():
            try:
                found = os.listdir(self._root / folder)
            except FileNotFoundError:
                return []
        return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix) and name[0] != ".")

    def has_segment(self, segment: str) -> bool:
        return self.exists(blobs_name(segment))

    def keep_segment(self, segment: str) -> None:
        """Somebody is about to refer to the segment: it counts as new."""
        with self._refusals():
            for name in (rows_name(segment), blobs_name(segment)):
                os.utime(self._root / name)

    def remove_old(self, folder: str, wanted: Callable[[str], bool], age_s: float = GRACE_S) -> None:
        """Remove the files of a folder that are not wanted, if they are older than `age_s`."""
        before_s = time.time() - age_s
        with self._refusals(), contextlib.suppress(FileNotFoundError):
            # Of a segment the file that makes it exist goes first.
            for entry in sorted(os.scandir(self._root / folder), key=lambda entry: entry.name):
                with contextlib.suppress(FileNotFoundError):  # another host was faster
                    if wanted(entry.name) or entry.is_dir(follow_symlinks=False):
                        continue
                    if entry.stat(follow_symlinks=False).st_mtime <= before_s:
                        os.unlink(entry.path)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = ""
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP) and error.filename2:
                advice = "; its file system must have hard links"
            named = os.path.relpath(error.filename, self.path) if isinstance(error.filename, str) else ""
            raise StoreUnusable(self.path, f"{named}: {error.strerror}{advice}".removeprefix(": ")) from None


def is_partial(name: str) -> bool:
    """Whether a file of this name was being made. Others with a dot are not ours: file servers have some everywhere."""
    return _PARTIAL.fullmatch(name) is not None


def rows_name(segment: str) -> str:
    return f"segments/{segment}.rows.parquet"


def blobs_name(segment: str) -> str:
    return f"segments/{segment}.blobs.parquet"


def _make_folder(path: Path) -> None:
    """The folder is there, and on disk."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        durability.sync(path.parent)
