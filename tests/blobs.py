"""Blobs for the tests: small, and the same bytes at each run."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import random
import sys
import tarfile
from pathlib import Path

import oracle
from chunkd.model import Digest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_SKIPPABLE_MAGIC = 0x184D2A50
# The letter of each byte, by its upper four bits.
LETTERS = bytes(b"abcdefghijklmnop"[byte >> 4] for byte in range(256))
# What many tests make anew is kept, if it is so small.
KEPT_BYTES = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def text(size: int, seed: int = 0) -> bytes:
    """Bytes that compress to about half: what `choices` draws of 16 letters, in a quarter of its time."""
    return random.Random(seed).randbytes(8 * size)[3::8].translate(LETTERS)


def tar(files: dict[str, bytes]) -> bytes:
    """A layer's tar: regular files only, with no owner and no time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


@functools.lru_cache(64)
def layer(seed: int = 0, size: int = 300_000) -> bytes:
    """A tar of three files, of about `size` bytes in all; another seed changes all but the third."""
    return tar(
        {
            "etc/hostname": b"host-%d\n" % seed,
            "usr/lib/own.so": noise(size // 3, seed) + text(size // 3, seed),
            "usr/lib/shared.so": text(size // 3, 1_000_000),
        }
    )


def gz(data: bytes) -> bytes:
    return _gz(data) if len(data) <= KEPT_BYTES else gzip.compress(data, mtime=0)


@functools.lru_cache(64)
def _gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def zst(data: bytes, *, level: int = 3, checksum: bool = True, window_log: int = 0) -> bytes:
    """One frame without its content's size, as a streaming writer makes it."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: int(checksum),
    }  # fmt: skip
    if window_log:
        options[zstd.CompressionParameter.window_log] = window_log
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


def skippable(data: bytes, variant: int = 0) -> bytes:
    return (ZSTD_SKIPPABLE_MAGIC + variant).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def estargz(data: bytes, member_bytes: int = 50_000) -> bytes:
    """Like an eStargz layer: many gzip members, the last an empty one with a pointer in its extra field."""
    members = [gz(data[start : start + member_bytes]) for start in range(0, len(data), member_bytes)]
    extra = b"SG\x16\x00" + b"%016xSTARGZ" % sum(map(len, members))
    footer = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + len(extra).to_bytes(2, "little") + extra
    return b"".join(members) + footer + b"\x01\x00\x00\xff\xff" + bytes(8)


def zstd_chunked(data: bytes, frame_bytes: int = 50_000) -> bytes:
    """Like a zstd:chunked layer: many frames, then the manifest and the footer in skippable ones."""
    frames = [zst(data[start : start + frame_bytes]) for start in range(0, len(data), frame_bytes)]
    manifest = json.dumps({"version": 1, "entries": []}).encode()
    return b"".join(frames) + skippable(zst(manifest)) + skippable(bytes(56) + b"GNUlInUx")


@functools.cache
def cut_here() -> bytes:
    """Bytes after which a chunk ends, if it is long enough: the last 14 decide."""
    table, rng = oracle.gear(), random.Random(0)
    while True:
        found, h = rng.randbytes(14), 0
        for byte in found:
            h = 2 * h + table[byte]
        if h % (1 << 14) == 0:
            return found


def least_chunks(rng: random.Random, count: int) -> list[bytes]:
    """Chunks of the least length that the chunker makes, so that small blobs have many."""
    return [rng.randbytes(2048 - 14) + cut_here() for _ in range(count)]


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())


def write_blob(folder: Path, data: bytes, algorithm: str = "sha256") -> tuple[Digest, Path]:
    """The blob under its name in a flat cache, moved there whole as a careful writer does."""
    digest = digest_of(data, algorithm)
    path = folder / digest.hex
    partial = folder / f"{digest.hex}.partial"
    partial.write_bytes(data)
    partial.rename(path)
    return digest, path


class InMemory(io.FileIO):
    """A file in memory that stands where a file on disk does; each read gives `most` bytes at most."""

    def __init__(self, data: bytes, most: int = sys.maxsize) -> None:
        super().__init__(os.devnull)
        self.data, self.most, self.at = data, most, 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        got = self.data[self.at : self.at + min(len(buffer), self.most)]
        buffer[: len(got)] = got
        self.at += len(got)
        return len(got)
