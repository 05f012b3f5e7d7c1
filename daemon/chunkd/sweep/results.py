"""The result of each layer, as a plain file in `state_dir/sweep`, until the sweep is done.

A file is complete under its final name, and is verified by a checksum when a later run finds it. After a first line
with the question's key come blocks of chunks (hashes, lengths and recompressed lengths, as in a `Recipe`), then one
JSON object with what was found and where each block is, its length, and the checksum of all before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from chunkd.errors import ChunkdError
from chunkd.model import HEX_DIGITS, Digest
from chunkd.sweep.messages import LayerFinding, SweepJob, finding_json, finding_of

if TYPE_CHECKING:
    from chunkd.model import Job

_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 16
_PIECE_BYTES = 1 << 20
_NAME = re.compile(r"(sha256|sha512)-([0-9a-f]+)")
_QUESTION, _LOCK = "question.json", "lock"


class SweepBusy(ChunkdError):
    def __init__(self, folder: str) -> None:
        super().__init__(f"sweep {folder}: another sweep is under way there; wait for it, or use another `--state DIR`")


class SweepUnwritable(ChunkdError):
    def __init__(self, folder: str, problem: str) -> None:
        super().__init__(f"sweep {folder}: can't be written: {problem}; use another `--state DIR`")


class NothingToResume(ChunkdError):
    def __init__(self, folder: str) -> None:
        super().__init__(f"sweep {folder}: there is no unfinished sweep; start one without --resume")


class Asked(NamedTuple):
    """What a sweep was asked, in the words of the command line."""

    caches: list[str]
    rules: str
    one_in: int
    layers: str


class Result(NamedTuple):
    """The result of one layer, without its chunks. `shifts` say of each rule how many zero bits the hashes of the kept
    chunks begin with.
    """

    digest: Digest
    stored_bytes: int
    finding: LayerFinding
    shifts: tuple[int, ...]


class Block(NamedTuple):
    """Where in its file some chunks of a rule are, how many, and how many of them measured."""

    offset: int
    chunks: int
    measured: int


class Draft:
    """The result of a layer that is being read. `kept` counts the chunks of each rule."""

    def __init__(self, results: Results, digest: Digest, rules: int) -> None:
        self._results, self._digest = results, digest
        self._path = results.path(digest)
        self._draft = self._path.with_suffix(".part")
        self.kept = [0] * rules
        self._blocks: list[list[list[int]]] = [[] for _ in range(rules)]
        with results.guarded():
            self._file: BinaryIO = self._draft.open("wb")
            self._hash = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
            self._write(results.first_line)

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def add(self, rule: int, count: int, measured: int, chunks: bytes) -> None:
        self.kept[rule] += count
        with self._results.guarded():
            self._blocks[rule].append([self._file.tell(), count, measured])
            self._write(chunks)

    def end(self, job: Job, found: LayerFinding) -> None:
        """The layer has been read. What may be otherwise the next time is not kept."""
        assert isinstance(job, SweepJob)
        if found.kind not in ("layer", "other", "undecodable"):
            self.discard()
            return
        said = {
            "stored_bytes": job.mark.stored_bytes, "finding": finding_json(found),
            "shifts": job.shifts, "blocks": self._blocks if found.kind == "layer" else [],
        }  # fmt: skip
        with self._results.guarded():
            encoded = json.dumps(said).encode()
            self._write(encoded)
            self._write(_LENGTH.pack(len(encoded)))
            self._file.write(self._hash.digest())
            self._file.close()
            self._draft.replace(self._path)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._draft.unlink()
        with contextlib.suppress(OSError):
            self._file.close()  # which writes, and fails on a full disk


class Results:
    """The results in a state directory, of one question. One process at a time has them."""

    def __init__(self, state_dir: str, key: str, rules: int) -> None:
        """What another question has left is removed. Raises SweepBusy and SweepUnwritable."""
        self.folder = Path(state_dir, "sweep")
        self.first_line = f"chunkd sweep {key}\n".encode()
        self._rules = rules
        with self.guarded():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SweepBusy(str(self.folder)) from None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SweepUnwritable(str(self.folder), error.strerror or str(error)) from error

    def path(self, digest: Digest) -> Path:
        return self.folder / f"{digest.algorithm}-{digest.hex}"

    def draft(self, digest: Digest) -> Draft:
        return Draft(self, digest, self._rules)

    def note_question(self, asked: Asked) -> None:
        """For `--resume`."""
        with self.guarded():
            draft = self.folder / f"{_QUESTION}.part"
            draft.write_text(json.dumps(asked._asdict()))
            draft.replace(self.folder / _QUESTION)

    def kept(self) -> Iterator[Result]:
        """The results that earlier runs have kept. A file that is not whole, or of another question, is removed."""
        with self.guarded():
            paths = sorted(self.folder.iterdir())
        for path in paths:
            match = _NAME.fullmatch(path.name)
            if match is None or len(match[2]) != HEX_DIGITS[match[1]]:
                if path.name not in (_LOCK, _QUESTION):
                    self._remove(path)
                continue
            result = self.result(Digest(match[1], match[2]), verify=True)
            if result is None:
                self._remove(path)
            else:
                yield result

    def _remove(self, path: Path) -> None:
        with self.guarded():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def result(self, digest: Digest, *, verify: bool = False) -> Result | None:
        """None for a file that is not what a sweep has written."""
        try:
            with self.path(digest).open("rb") as file:
                if verify and not self._holds(file):
                    return None
                said = _said(file)
            finding = finding_of(said["finding"], self._rules)
            return Result(digest, said["stored_bytes"], finding, tuple(said["shifts"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _holds(self, file: BinaryIO) -> bool:
        if file.read(len(self.first_line)) != self.first_line:
            return False
        left = os.fstat(file.fileno()).st_size - len(self.first_line) - _CHECKSUM_BYTES
        found = hashlib.blake2b(self.first_line, digest_size=_CHECKSUM_BYTES)
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            found.update(piece)
            left -= len(piece)
        return found.digest() == file.read()

    @contextlib.contextmanager
    def blocks(self, digest: Digest, rule: int) -> Iterator[tuple[BinaryIO, list[Block]]]:
        """The open file of a layer, and the blocks of a rule in it."""
        with self.guarded(), self.path(digest).open("rb") as file:
            rows = _said(file)["blocks"]
            yield file, [Block(*row) for row in rows[rule]] if rows else []

    def done(self) -> None:
        """The sweep is done: remove all results, and the lock last: until then no other sweep begins here."""
        with self.guarded():
            for path in self.folder.iterdir():
                if path.name != _LOCK:
                    self._remove(path)
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let another sweep have them."""
        os.close(self._lock)


def _said(file: BinaryIO) -> dict[str, Any]:
    tail = _LENGTH.size + _CHECKSUM_BYTES
    end = file.seek(-tail, os.SEEK_END)
    length = _LENGTH.unpack(file.read(_LENGTH.size))[0]
    if length > end:
        raise ValueError("a result that is not whole")
    file.seek(end - length)
    said: dict[str, Any] = json.loads(file.read(length))
    return said


def unfinished(state_dir: str) -> Asked:
    """What the unfinished sweep of a state directory was asked. Raises NothingToResume."""
    path = Path(state_dir, "sweep", _QUESTION)
    try:
        asked = Asked(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        raise NothingToResume(str(path.parent)) from None
    is_whole = isinstance(asked.rules, str) and isinstance(asked.one_in, int) and isinstance(asked.layers, str)
    if not is_whole or not isinstance(asked.caches, list) or not all(isinstance(one, str) for one in asked.caches):
        raise NothingToResume(str(path.parent))
    return asked
