"""The result of each layer, as a plain file: in `state_dir/sweep` until the sweep is done, or in a folder that hosts
share.

A file is complete under its final name, and has a checksum. After a first line with the question's key come blocks of
chunks (hashes, lengths and recompressed lengths, as in a `Recipe`), then what each block is, one JSON object with what
was found, the lengths of these two, and the checksum of all before. In a folder that hosts share anybody may have
written it, so it is read as hostile input.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from chunkd.errors import ChunkdError
from chunkd.model import CHUNK_HASH_BYTES, HEX_DIGITS, Digest
from chunkd.sweep.messages import (
    LEAST_BYTES_A_CHUNK,
    MOST_BLOCK_CHUNKS,
    MOST_FOUND_BYTES,
    Block,
    LayerFinding,
    SweepJob,
    finding_json,
    finding_of,
)
from chunkd.sweep.question import Question
from chunkd.untrusted_json import parse
from chunkd.worker.protocol import LENGTH_BYTES

if TYPE_CHECKING:
    from chunkd.model import Job

# A block's rule, its chunks, and how many of them are measured.
_BLOCK = struct.Struct("<HII")
# How many blocks there are, and the length of the JSON.
_TAIL = struct.Struct("<QQ")
_CHECKSUM_BYTES = 16
# As many as 256 GiB have with 64 rules; a block ends each 16 MiB.
MOST_BLOCKS = 1 << 20
MOST_SHIFT = 40
_NAME = re.compile(r"(sha256|sha512)-([0-9a-f]+)")
_QUESTION, _LOCK = "question.json", "lock"


class SweepBusy(ChunkdError):
    def __init__(self, folder: str) -> None:
        super().__init__(f"sweep {folder}: another sweep is under way there; wait for it, or use another `--state DIR`")


class SweepUnwritable(ChunkdError):
    def __init__(self, folder: str, problem: str) -> None:
        super().__init__(f"sweep {folder}: can't be written: {problem}; use another `--state DIR` or `--store STORE`")


class ResultChanged(ChunkdError):
    def __init__(self, path: str) -> None:
        super().__init__(f"sweep {path}: was changed or removed meanwhile, or is damaged; run the command again")


class FolderInPlace(ChunkdError):
    def __init__(self, path: str) -> None:
        super().__init__(f"sweep {path}: is a folder in the place of a result; remove it, and run the command again")


class NothingToResume(ChunkdError):
    def __init__(self, folder: str) -> None:
        super().__init__(f"sweep {folder}: no unfinished sweep to resume; start one without --resume")


class Asked(NamedTuple):
    """What a sweep was asked, in the words of the command line, and its question's key, which settings decide too."""

    caches: list[str]
    rules: str
    one_in: int
    layers: str
    key: str


class Result(NamedTuple):
    """The result of one layer, without its chunks. `shifts` say of each rule how many zero bits the hashes of the kept
    chunks begin with.
    """

    digest: Digest
    stored_bytes: int
    finding: LayerFinding
    shifts: tuple[int, ...]
    checksum: bytes = b""


class Draft:
    """The result of a layer that is being read. `kept` counts the chunks of each rule."""

    def __init__(self, results: Results, digest: Digest) -> None:
        self._results, self._digest = results, digest
        self._draft = results.folder / f".{secrets.token_hex(8)}.new"
        self.kept = [0] * len(results.question.rules)
        self._blocks: list[Block] = []
        with results.guarded():
            self._file: BinaryIO = self._draft.open("wb")
            self._hash = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
            self._write(results.first_line)

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def add(self, block: Block, chunks: bytes) -> None:
        self.kept[block.rule] += block.chunks
        self._blocks.append(block)
        with self._results.guarded():
            self._write(chunks)

    def end(self, job: Job, found: LayerFinding) -> None:
        """The layer has been read. What may be otherwise the next time is not kept."""
        assert isinstance(job, SweepJob)
        if found.kind not in ("layer", "other", "undecodable"):
            self.discard()
            return
        blocks = self._blocks if found.kind == "layer" else []
        said = {"stored_bytes": job.mark.stored_bytes, "finding": finding_json(found), "shifts": job.shifts}
        with self._results.guarded():
            encoded = json.dumps(said).encode()
            self._write(b"".join(_BLOCK.pack(*block) for block in blocks))
            self._write(encoded + _TAIL.pack(len(blocks), len(encoded)))
            self._file.write(self._hash.digest())
            self._file.close()
            self._results.put(self._draft, self._digest, job.mark.stored_bytes)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._draft.unlink()
        with contextlib.suppress(OSError):
            self._file.close()  # which writes, and fails on a full disk


class Results:
    """The results of one question in a folder that hosts share. What is whole there is never changed."""

    def __init__(self, folder: Path, question: Question) -> None:
        """Raises SweepUnwritable."""
        self.folder, self.question = folder, question
        self.first_line = f"chunkd sweep {question.key}\n".encode()
        with self.guarded():
            self.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SweepUnwritable(str(self.folder), error.strerror or str(error)) from error

    def path(self, digest: Digest) -> Path:
        return self.folder / f"{digest.algorithm}-{digest.hex}"

    def draft(self, digest: Digest) -> Draft:
        return Draft(self, digest)

    def put(self, draft: Path, digest: Digest, stored_bytes: int) -> None:
        """Give a whole draft its name, unless there is a whole result of this name."""
        try:
            os.link(draft, self.path(digest))
        except FileExistsError:
            if self.result(digest, verify=True, stored_bytes=stored_bytes) is None:
                draft.replace(self.path(digest))
                return
        draft.unlink()

    def _digests(self) -> Iterator[tuple[Path, Digest | None]]:
        """What is in the folder, and of which layer it is the result by its name."""
        with self.guarded():
            names = sorted(os.listdir(self.folder))
        for name in names:
            match = _NAME.fullmatch(name)
            is_ours = match is not None and len(match[2]) == HEX_DIGITS[match[1]]
            yield self.folder / name, Digest(match[1], match[2]) if match and is_ours else None

    def kept(self, wanted: Mapping[Digest, int]) -> Iterator[Result]:
        """Of these layers with their stored bytes the results that are there and whole. Raises FolderInPlace."""
        for _, digest in self._digests():
            if (
                digest
                and digest in wanted
                and (result := self.result(digest, verify=True, stored_bytes=wanted[digest]))
            ):
                yield result

    def result(self, digest: Digest, *, verify: bool = False, stored_bytes: int | None = None) -> Result | None:
        """None for a file that is not what a sweep has written, or of a layer of another size. Raises FolderInPlace."""
        try:
            with self._open(digest) as file:
                said, blocks, checksum = self._said(file)
                finding = finding_of(said["finding"], len(self.question.rules))
                result = Result(digest, said["stored_bytes"], finding, tuple(said["shifts"]), checksum)
                if stored_bytes not in (None, result.stored_bytes):
                    return None
                if verify:
                    self._check(result, blocks)
                    self._check_content(result, blocks, file)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return result

    def _open(self, digest: Digest) -> BinaryIO:
        """Raises OSError, FolderInPlace, and ValueError for what is not a file either."""
        path = self.path(digest)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        raise FolderInPlace(str(path)) if stat.S_ISDIR(mode) else ValueError("a result that is not a file")

    def _said(self, file: BinaryIO) -> tuple[dict[str, Any], list[Block], bytes]:
        """What a file says of itself, its blocks and its checksum. Raises ValueError if it has other parts."""
        size = os.fstat(file.fileno()).st_size
        end = file.seek(max(0, size - _TAIL.size - _CHECKSUM_BYTES))
        tail = file.read()
        if len(tail) != _TAIL.size + _CHECKSUM_BYTES:
            raise ValueError("a result that is not whole")
        count, length = _TAIL.unpack(tail[:-_CHECKSUM_BYTES])
        if count > MOST_BLOCKS or length > MOST_FOUND_BYTES or count * _BLOCK.size + length > end:
            raise ValueError("a result that is not whole")
        file.seek(end - length - count * _BLOCK.size)
        blocks = [Block(*row) for row in _BLOCK.iter_unpack(file.read(count * _BLOCK.size))]
        said = parse(file.read(length), MOST_FOUND_BYTES)
        sizes = sum(block.size for block in blocks)
        if len(self.first_line) + sizes + count * _BLOCK.size + length != end:
            raise ValueError("blocks that are not the file")
        if any(block.chunks > MOST_BLOCK_CHUNKS or block.measured > block.chunks for block in blocks):
            raise ValueError("a block that no worker sends")
        return said, blocks, tail[-_CHECKSUM_BYTES:]

    def _check(self, result: Result, blocks: list[Block]) -> None:
        """Raises ValueError unless what is said goes together, and with the caps."""
        finding, stored_bytes, rules = result.finding, result.stored_bytes, len(self.question.rules)
        if type(stored_bytes) is not int or not 0 <= stored_bytes < 1 << 63 or len(result.shifts) != rules:
            raise ValueError("stored bytes or shifts that no layer has")
        if any(type(shift) is not int or not 0 <= shift <= MOST_SHIFT for shift in result.shifts):
            raise ValueError("a shift out of bounds")
        most_bytes = self.question.caps.most_uncompressed_bytes(stored_bytes)
        if finding.kind not in ("layer", "other", "undecodable") or finding.uncompressed_bytes > most_bytes:
            raise ValueError("more than the caps allow")
        kept = [0] * rules
        for block in blocks:
            if not finding.totals:
                raise ValueError("blocks of something that is not a layer")
            kept[block.rule] += block.chunks  # IndexError
        for totals, count, shift in zip(finding.totals, kept, result.shifts, strict=bool(finding.totals)):
            stored = totals.chunks - totals.holes
            if totals.bytes != finding.uncompressed_bytes or not totals.hole_bytes <= totals.bytes or stored < count:
                raise ValueError("chunks that do not add up to the layer")
            if (not shift and count != stored) or totals.chunks > 2 + most_bytes // LEAST_BYTES_A_CHUNK:
                raise ValueError("not all chunks, or more than the layer can have")

    def _check_content(self, result: Result, blocks: list[Block], file: BinaryIO) -> None:
        """Raises ValueError unless the file has its checksum, and the chunks of each rule have the layer's bytes."""
        found = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
        file.seek(0)
        if file.read(len(self.first_line)) != self.first_line:
            raise ValueError("of another question")
        found.update(self.first_line)
        kept_bytes = [0] * len(self.question.rules)
        for block in blocks:
            data = file.read(block.size)
            found.update(data)
            lengths = memoryview(data[block.chunks * CHUNK_HASH_BYTES :][: block.chunks * LENGTH_BYTES]).cast("I")
            kept_bytes[block.rule] += sum(lengths)
            if block.measured != self.question.measure.picked(data[: block.chunks * CHUNK_HASH_BYTES]) or not all(
                lengths
            ):
                raise ValueError("chunks that no worker sends")
        left = len(blocks) * _BLOCK.size + MOST_FOUND_BYTES + _TAIL.size
        rest = file.read(left + _CHECKSUM_BYTES)
        found.update(rest[:-_CHECKSUM_BYTES])
        if not found.digest() == rest[-_CHECKSUM_BYTES:] == result.checksum:
            raise ValueError("a result that is damaged")
        for totals, of_kept, shift in zip(result.finding.totals, kept_bytes, result.shifts, strict=False):
            stored = totals.bytes - totals.hole_bytes
            if of_kept > stored or (not shift and of_kept != stored):
                raise ValueError("chunks of other bytes than the layer has")

    def blocks(self, result: Result, rule: int) -> Iterator[tuple[Block, bytes]]:
        """The blocks of a rule with their bytes. Raises ResultChanged if the file is not that of the result."""
        try:
            with self._open(result.digest) as file:
                _, blocks, checksum = self._said(file)
                if checksum != result.checksum:
                    raise ValueError("another result")
                offsets = itertools.accumulate((block.size for block in blocks), initial=len(self.first_line))
                for block, offset in zip(blocks, offsets, strict=False):
                    if block.rule == rule:
                        file.seek(offset)
                        data = file.read(block.size)
                        if len(data) < block.size:
                            raise ValueError("a result that is not whole")
                        yield block, data
        except (OSError, ValueError):
            raise ResultChanged(str(self.path(result.digest))) from None

    def done(self) -> None:
        """The sweep is done; other hosts may need the results of it."""


class OwnResults(Results):
    """The results in a state directory, of one question. One process at a time has them."""

    def __init__(self, state_dir: str, question: Question) -> None:
        """Raises SweepBusy and SweepUnwritable."""
        super().__init__(Path(state_dir, "sweep"), question)
        with self.guarded():
            self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SweepBusy(str(self.folder)) from None

    def put(self, draft: Path, digest: Digest, _stored_bytes: int) -> None:
        draft.replace(self.path(digest))

    def note_question(self, asked: Asked) -> None:
        """For `--resume`."""
        with self.guarded():
            draft = self.folder / f"{_QUESTION}.part"
            draft.write_text(json.dumps(asked._asdict()))
            draft.replace(self.folder / _QUESTION)

    def kept(self, wanted: Mapping[Digest, int]) -> Iterator[Result]:
        """As above. A file that is not whole, or of another question, is removed."""
        for path, digest in self._digests():
            if digest is None:
                if path.name not in (_LOCK, _QUESTION):
                    self._remove(path)
            elif path.is_dir() or (result := self.result(digest, verify=True)) is None:
                self._remove(path)
            elif wanted.get(digest) == result.stored_bytes:
                yield result

    def _remove(self, path: Path) -> None:
        with self.guarded():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

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
