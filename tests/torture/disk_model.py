"""What a disk holds after a power cut, from the journal of a process's writes and syncs (journal.c).

What was synced is there. Of what was written since, each page of 4 KiB may be there as it was after any of the writes
to it, or not at all, or torn: each of its sectors of 512 bytes for itself. A sector is never torn: disks promise that.
A file's length grows with its pages, or before them (then they read as zeros). A name that was made, moved or removed
is certain once its folder was synced, and until then there or not, each for itself.

After a sync that failed a page is clean, whether or not it is on disk: no later sync writes it (so do ext4 and XFS).
"""

from __future__ import annotations

import enum
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = 4096
SECTOR_BYTES = 512
# LMDB's meta pages: where in page 0 and 1 a commit is written, and how long what it writes is; its number comes last.
META_OFFSETS = (32, PAGE_BYTES + 32)
META_BYTES = 120
HEADER = struct.Struct("<IIQQ")


class Kind(enum.IntEnum):
    CREATE = 0
    MKDIR = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    FAILED_SYNC = 5
    RENAME = 6
    UNLINK = 7


@dataclass(frozen=True, slots=True)
class Operation:
    kind: Kind
    path: str
    offset: int
    data: bytes  # of a rename: the new name

    @property
    def commit(self) -> int:
        """The number of the transaction whose meta page is written, 0 for any other operation."""
        if self.kind != Kind.WRITE or self.offset not in META_OFFSETS or len(self.data) != META_BYTES:
            return 0
        return int.from_bytes(self.data[-8:], "little")


def read_journal(path: Path) -> Iterator[Operation]:
    with path.open("rb") as journal:
        while header := journal.read(HEADER.size):
            kind, path_bytes, offset, data_bytes = HEADER.unpack(header)
            name = os.fsdecode(journal.read(path_bytes))
            yield Operation(Kind(kind), name, offset, journal.read(data_bytes))


@dataclass(slots=True)
class File:
    """`cached` is what programs see, `durable` what is on disk for certain, `versions` of a dirty page what it was.

    `commit` is the newest transaction of an LMDB file, `certain` the newest that no power cut can take back.
    """

    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    versions: dict[int, list[bytes]] = field(default_factory=dict)
    commit: int = 0
    certain: int = 0

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        self.cached.extend(bytes(max(0, end - len(self.cached))))
        self.cached[offset:end] = data
        for page in range(offset // PAGE_BYTES, -(-end // PAGE_BYTES)):
            self.versions.setdefault(page, []).append(_page(self.cached, page))

    def truncate(self, length: int) -> None:
        """At once and for certain: nothing of what is tested depends on it."""
        for content in (self.cached, self.durable):
            del content[length:]
            content.extend(bytes(length - len(content)))
        self.versions = {page: found for page, found in self.versions.items() if page * PAGE_BYTES < length}

    def sync(self, rng: random.Random | None) -> None:
        """All of it is on disk; where the sync failed (`rng`), half of it, and the rest is forgotten."""
        for page in self.versions:
            if rng is None or rng.random() < 0.5:
                _put(self.durable, page, _page(self.cached, page), len(self.cached))
        self.versions.clear()
        if rng is None:
            self.durable.extend(bytes(len(self.cached) - len(self.durable)))
            self.certain = self.commit

    def after_cut(self, rng: random.Random) -> bytes:
        content = bytearray(self.durable)
        kept, torn = rng.choice((0.0, 0.1, 0.5, 0.9, 1.0)), rng.choice((0.0, 0.2, 1.0))
        for page, versions in self.versions.items():
            if rng.random() >= kept:
                continue
            found = rng.choice(versions)
            if rng.random() < torn:
                choices = [_page(self.durable, page), *versions]
                sectors = range(0, PAGE_BYTES, SECTOR_BYTES)
                found = b"".join(rng.choice(choices)[at : at + SECTOR_BYTES] for at in sectors)
            _put(content, page, found, len(self.cached))
        if rng.random() < 0.5:
            content.extend(bytes(len(self.cached) - len(content)))
        return bytes(content)


class Disk:
    """The files below `root`, which is there. With `lies` no sync of a file does anything."""

    def __init__(self, root: Path, seed: int, *, lies: bool = False) -> None:
        self.root, self.lies = str(root), lies
        self._rng = random.Random(seed)
        self.files: dict[str, File] = {}
        # Every change of a name, with the file that gets it, and whether it is certain.
        self._changes: list[tuple[Operation, File, bool]] = []

    def apply(self, operation: Operation) -> None:
        path = operation.path
        if operation.kind == Kind.RENAME and path not in self.files:
            return  # a socket, which no power cut leaves in use
        if operation.kind in (Kind.CREATE, Kind.MKDIR, Kind.RENAME, Kind.UNLINK):
            made = self.files[path] if operation.kind == Kind.RENAME else File()
            _name(self.files, operation, made)
            self._changes.append((operation, made, False))
        elif operation.kind in (Kind.SYNC, Kind.FAILED_SYNC):
            failed = operation.kind == Kind.FAILED_SYNC
            if path in self.files:
                if not self.lies:
                    self.files[path].sync(self._rng if failed else None)
            elif not failed:
                self._changes = [
                    (change, made, certain or os.path.dirname(_target(change)) == path)
                    for change, made, certain in self._changes
                ]
        elif operation.kind == Kind.TRUNCATE:
            self.files[path].truncate(operation.offset)
        else:
            self.files[path].write(operation.offset, operation.data)
            self.files[path].commit = operation.commit or self.files[path].commit

    def is_certain(self, path: str) -> bool:
        """Whether a file has its name for certain, and its folder too."""
        names = {_target(change) for change, _, certain in self._changes if certain} | {self.root}
        return path in names and os.path.dirname(path) in names

    def cut(self, rng: random.Random, folder: Path) -> None:
        """Write into a new folder what is there when the power is back."""
        files: dict[str, File] = {}
        folders = {self.root}
        for change, made, certain in self._changes:
            if (certain or rng.random() < 0.5) and os.path.dirname(_target(change)) in folders:
                _name(files, change, made)
                if change.kind == Kind.MKDIR:
                    folders.add(change.path)
        for path in sorted(folders):
            (folder / os.path.relpath(path, self.root)).mkdir(exist_ok=True, parents=True)
        for path, file in files.items():
            (folder / os.path.relpath(path, self.root)).write_bytes(file.after_cut(rng))


def _target(operation: Operation) -> str:
    return os.fsdecode(operation.data) if operation.kind == Kind.RENAME else operation.path


def _name(files: dict[str, File], operation: Operation, made: File) -> None:
    if operation.kind == Kind.CREATE:
        files[operation.path] = made
    elif operation.kind == Kind.UNLINK:
        files.pop(operation.path, None)
    elif operation.kind == Kind.RENAME:
        files.pop(operation.path, None)
        files[_target(operation)] = made


def _page(content: bytearray, page: int) -> bytes:
    return bytes(content[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]).ljust(PAGE_BYTES, b"\0")


def _put(content: bytearray, page: int, data: bytes, most_bytes: int) -> None:
    """Set a page, growing the content to its end, or to `most_bytes` if that comes first."""
    start = page * PAGE_BYTES
    end = min(start + PAGE_BYTES, most_bytes)
    content.extend(bytes(max(0, end - len(content))))
    content[start:end] = data[: end - start]
