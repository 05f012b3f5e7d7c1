"""Blobs that land, are replaced and go, as chance has it, and what must be true of them at any moment.

A layer is made of blocks of 2048 bytes, of which each is one chunk: it ends with 14 bytes after which the gear hash's
low 14 bits are 0, whatever came before. So every figure and recipe is known without cutting anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gzip
import hashlib
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import blobs
import oracle
from indexing import Chunk

BLOCK_BYTES = 2048
FIRE = bytes.fromhex("47bdfcb483b1a57789a1ac40c68b")

IN_OPEN, IN_CLOSE_NOWRITE, IN_Q_OVERFLOW = 0x20, 0x10, 0x4000


def block(seed: int) -> bytes:
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(BLOCK_BYTES - len(FIRE)) + FIRE


@functools.cache
def chunk(seed: int) -> Chunk:
    """What the chunk of that block is: hash and length."""
    return oracle.chunk_hash(block(seed)), BLOCK_BYTES


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@dataclass(frozen=True, slots=True)
class Made:
    """A blob that was made up: a layer of the blocks with these seeds. Without any it is no layer, or `broken`."""

    stored: bytes
    blocks: tuple[int, ...]
    hex: str
    broken: bool = False


def made(blocks: Sequence[int], pack: Callable[[bytes], bytes] = blobs.zst) -> Made:
    stored = pack(b"".join(map(block, blocks)))
    return Made(stored, tuple(blocks), hashlib.sha256(stored).hexdigest())


def other(number: int) -> Made:
    stored = b'{"schemaVersion": 2, "number": %d}' % number
    return Made(stored, (), hashlib.sha256(stored).hexdigest())


def broken(blocks: Sequence[int]) -> Made:
    """A gzip whose end is missing, under the name that its bytes have: it fails for good."""
    stored = gz(b"".join(map(block, blocks)))[:-9]
    return Made(stored, (), hashlib.sha256(stored).hexdigest(), broken=True)


def figures_of(present: Iterable[Made]) -> dict[str, int]:
    """The figures of these blobs, each once."""
    found = {one.hex: one for one in present}.values()
    counted = [one for one in found if not one.broken]
    layers = [one for one in counted if one.blocks]
    chunks = sum(len(one.blocks) for one in layers)
    unique = len({seed for one in layers for seed in one.blocks})
    return {
        "blobs": len(counted),
        "layers": len(layers),
        "stored_bytes": sum(len(one.stored) for one in counted),
        "layer_stored_bytes": sum(len(one.stored) for one in layers),
        "uncompressed_bytes": chunks * BLOCK_BYTES,
        "chunks": chunks,
        "unique_chunks": unique,
        "unique_bytes": unique * BLOCK_BYTES,
        "failed_blobs": len(found) - len(counted),
        "failed_bytes": sum(len(one.stored) for one in found if one.broken),
    }


def recipes_of(present: Iterable[Made]) -> dict[str, list[Chunk]]:
    """The layers' chunks, as `indexing.recipes_of` reads them from an index."""
    return {one.hex: [chunk(seed) for seed in one.blocks] for one in present if one.blocks}


class Churn:
    """What a writer does to some folders of blobs, step by step, and what is in them now.

    `places` hold what their names say; those in `spoilt` hold other bytes until the next step that puts them right.
    """

    def __init__(self, folders: Sequence[Path], staging: Path, contents: Sequence[Made], rng: random.Random) -> None:
        self.folders, self.staging, self.contents, self.rng = folders, staging, contents, rng
        self.places: dict[Path, Made] = {}
        self.spoilt: dict[Path, Made] = {}
        self.done: Counter[str] = Counter()
        self.touched: Counter[str] = Counter()
        self._steps: tuple[tuple[int, Callable[[], bool]], ...] = (
            (10, self.land), (3, self.push_again), (2, self.spoil), (2, self.link), (2, self.move), (8, self.remove),
        )  # fmt: skip

    def step(self) -> None:
        """One of them, by chance, that can be done."""
        weights = [weight for weight, _ in self._steps]
        while True:
            step = self.rng.choices([step for _, step in self._steps], weights)[0]
            if step():
                self.done[step.__name__] += 1
                return

    def land(self) -> bool:
        """A blob that was not there, or the right bytes where they were wrong."""
        folder, content = self.rng.choice(self.folders), self.rng.choice(self.contents)
        path = folder / content.hex
        return path not in self.places and self.write(path, content)

    def write(self, path: Path, content: Made) -> bool:
        self._rename(path, content, content.stored)
        self.spoilt.pop(path, None)
        self.places[path] = content
        return True

    def push_again(self) -> bool:
        path = self._any(self.places)
        return path is not None and self.write(path, self.places[path])

    def spoil(self) -> bool:
        """Other bytes of the same length under a name that stays."""
        path = self._any(self.places)
        if path is None:
            return False
        self.spoilt[path] = content = self.places.pop(path)
        self._rename(path, content, hashlib.shake_128(content.stored).digest(len(content.stored)))
        return True

    def link(self) -> bool:
        """A hard link in another folder."""
        path = self._any(self.places)
        target = path and self._elsewhere(path)
        if not path or not target:
            return False
        os.link(path, target)
        self.places[target] = self._touch(self.places[path])
        return True

    def move(self) -> bool:
        path = self._any(self.places)
        target = path and self._elsewhere(path)
        if not path or not target:
            return False
        path.rename(target)
        self.places[target] = self._touch(self.places.pop(path))
        return True

    def remove(self) -> bool:
        path = self._any(self.places)
        if path is None:
            return False
        path.unlink()
        self._touch(self.places.pop(path))
        return True

    def put_right(self) -> None:
        """No place holds what its name does not say."""
        for path, content in list(self.spoilt.items()):
            if self.rng.random() < 0.5:
                self.write(path, content)
            else:
                path.unlink()
                self._touch(self.spoilt.pop(path))

    def present(self) -> dict[str, Made]:
        return {content.hex: content for content in self.places.values()}

    def _rename(self, path: Path, content: Made, data: bytes) -> None:
        partial = self.staging / "partial"
        partial.write_bytes(data)
        partial.rename(path)
        self._touch(content)

    def _touch(self, content: Made) -> Made:
        self.touched[content.hex] += 1
        return content

    def _any(self, places: dict[Path, Made]) -> Path | None:
        return self.rng.choice(list(places)) if places else None

    def _elsewhere(self, path: Path) -> Path | None:
        """Where no file has that name yet."""
        targets = [folder / path.name for folder in self.folders]
        return next((path for path in targets if path not in self.places and path not in self.spoilt), None)


class Opens:
    """How often each name in some folders was opened, as the kernel tells it (inotify(7))."""

    def __init__(self, folders: Iterable[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in folders:
            # Closing is asked for too: two events in a row that are alike would be one.
            watched = libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_OPEN | IN_CLOSE_NOWRITE)
            assert watched >= 0, os.strerror(ctypes.get_errno())
        self._counts: Counter[str] = Counter()

    def read(self) -> None:
        """Take what the kernel holds; it holds 16,384 events."""
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._fd, 65536):
                at = 0
                while at < len(events):
                    _, mask, _, length = struct.unpack_from("iIII", events, at)
                    name = events[at + 16 : at + 16 + length].rstrip(b"\0").decode()
                    assert not mask & IN_Q_OVERFLOW, "the test asked too seldom"
                    self._counts[name] += bool(name and mask & IN_OPEN)
                    at += 16 + length

    def take(self) -> Counter[str]:
        """All since the last call."""
        self.read()
        counts, self._counts = +self._counts, Counter()
        return counts

    def close(self) -> None:
        os.close(self._fd)
