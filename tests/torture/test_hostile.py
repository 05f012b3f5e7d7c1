"""Hostile blobs in numbers: cut, flipped and swollen, in one process, in a worker and before the whole daemon."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import blobs
import fuzz_decode
import working
from blobs import gz, skippable, zst
from chunkd.model import Caps, Digest, Finding
from chunkd.worker import decode
from conftest import Tell
from counts import share_of
from daemon import BRISK, NPM_TOTALS, Home, figures, npm_layers, opened

SMALL = blobs.tar({"usr/lib/some": blobs.text(1200)})
MEMBER_BYTES = 1000
KINDS: dict[str, bytes] = {
    "gzip": gz(SMALL),
    "eStargz": blobs.estargz(SMALL, MEMBER_BYTES),
    "zstd": zst(SMALL),
    "zstd without checksum": zst(SMALL, checksum=False),
    "zstd:chunked": blobs.zstd_chunked(SMALL, MEMBER_BYTES),
}
GIB = 1 << 30


def examined(digest: Digest, path: Path) -> Finding:
    return working.examined(digest, path)


def decoded(data: bytes) -> tuple[str, str, bytes]:
    """The codec, the reason of a failure and the bytes of a success."""
    return fuzz_decode.outcome(data, decode.BUFFER_BYTES, sys.maxsize, Caps())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path, anew=True) as found:
        yield found


# --- cut and flipped ------------------------------------------------------------------------------------------------


def test_small_layers_cut_at_every_byte(tmp_path: Path, tell: Tell) -> None:
    """Under their own name they mismatch. Under the name of what is left they are truncated, or end at a seam."""
    path = tmp_path / "blob"
    found: Counter[str] = Counter()
    for kind, stored in KINDS.items():
        for left in range(4, len(stored)):
            path.write_bytes(stored[:left])
            assert examined(blobs.digest_of(stored), path).kind == "mismatched", (kind, left)
            finding = examined(blobs.digest_of(stored[:left]), path)
            if finding.kind == "undecodable":
                assert finding.reason.startswith("truncated"), (kind, left, finding.reason)
            else:
                # A seam: what comes before it is a stream of its own.
                data = decoded(stored[:left])[2]
                assert SMALL.startswith(data), (kind, left)
                assert finding.kind == ("layer" if data else "other")
                found["ends at a seam"] += 1
            found["cuts"] += 1
    assert found["ends at a seam"] == 2 * -(-len(SMALL) // MEMBER_BYTES) + 1
    tell(f"{found['cuts']} cuts of {len(KINDS)} kinds, {found['ends at a seam']} of them at a seam between members")


def test_small_layers_with_each_bit_flipped(tell: Tell) -> None:
    """No other bytes come of it where there is a checksum: what the name holds and no checksum does is what it is."""
    found: Counter[str] = Counter()
    for kind, stored in KINDS.items():
        for at in range(len(stored)):
            for bit in range(8):
                flipped = bytearray(stored)
                flipped[at] ^= 1 << bit
                codec, reason, out = decoded(bytes(flipped))
                became = "failed" if reason else "other" if codec == "other" else "the same" if out == SMALL else "new"
                assert became != "new" or kind == "zstd without checksum", (kind, at, bit)
                # A frame that is said to end sooner, or to have no checksum, is whole, and what is left of it is no
                # frame; nor is one whose magic number is altered, behind another.
                assert became != "other" or at < 4 or kind.startswith("zstd"), (kind, at, bit)
                found[became] += 1
    assert min(found["failed"], found["the same"], found["other"], found["new"]) > 0
    tell(f"{found.total()} flips: {', '.join(f'{count} {became}' for became, count in sorted(found.items()))}")


def test_real_layers_cut_and_flipped_in_many_places(tell: Tell, seed: int) -> None:
    draw = random.Random(seed)
    cuts = flips = same = 0
    for layer in npm_layers():
        stored = layer.read_bytes()
        whole = decoded(stored)[2]
        for _ in range(share_of(8, 2)):
            assert decoded(stored[: draw.randrange(4, len(stored))])[1].startswith("truncated"), layer.name
            cuts += 1
            flipped = bytearray(stored)
            flipped[draw.randrange(3, len(stored))] ^= 1 << draw.randrange(8)
            codec, reason, out = decoded(bytes(flipped))
            assert codec == "gzip"
            assert reason or out == whole, layer.name
            same += not reason
            flips += 1
    tell(f"{cuts} cuts and {flips} flips of 90 npm layers; {same} flips changed a header's time or flags and no byte")


# --- swollen --------------------------------------------------------------------------------------------------------


def rle_frame(window: int, uncompressed_bytes: int) -> bytes:
    """A zstd frame of zeros, 4 bytes for each 128 KiB of them. `window` is the byte of its header."""
    block = ((131072 << 3) | 2).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0" + bytes([window]) + block * (uncompressed_bytes // 131072) + b"\1\0\0"


def padded(stored: bytes, stored_bytes: int) -> bytes:
    return stored + skippable(bytes(stored_bytes - len(stored) - 8))


def named_member(name_bytes: int) -> bytes:
    return b"\x1f\x8b\x08\x08" + bytes(4) + b"\0\xff" + b"n" * name_bytes + b"\0" + gz(b"")[10:]


ZSTD_10_GB = padded(rle_frame(0x58, 10**10), 10**6)
# Each with its kind or its reason, and what it may cost a worker: CPU seconds, and MiB of memory at the most.
BOMBS: dict[str, tuple[Callable[[], bytes], str, int, int]] = {
    "10 GB from 1 MB of zstd": (
        lambda: ZSTD_10_GB, f"max_ratio = 2000 times its {10**6} bytes", 30, 64,
    ),
    # 16 MiB of zeros are 16,320 bytes: 1,028 to 1, and 1,029 is the most that deflate can.
    "10 GiB of gzip at its maximum": (lambda: gz(bytes(16 << 20)) * 640, "gzip", 120, 64),
    "a window of 128 MiB": (lambda: rle_frame(0x88, 300 << 20), "zstd", 30, 64 + 128),
    "a window of 128 MiB and a bit": (
        lambda: rle_frame(0x89, 300 << 20), f"max_zstd_window_bytes = {128 << 20}", 10, 64,
    ),
    "50 windows of 128 MiB": (lambda: rle_frame(0x88, 10 << 20) * 50, "zstd", 30, 64 + 128),
    "a window of 3.75 TiB": (lambda: rle_frame(0xFF, 1 << 20), f"max_zstd_window_bytes = {128 << 20}", 10, 64),
    "a name of 64 MB in a gzip's header": (
        lambda: named_member(64 * 10**6), "a member's header does not fit into the decoder's buffer", 10, 64,
    ),
    "64 MB of headers as long as may be": (lambda: named_member(520_000) * 123, "other", 10, 64),
    "64 MB of NULs behind a gzip": (lambda: gz(b"a") + bytes(64 * 10**6), "gzip", 10, 64),
    "200,000 empty members": (lambda: gz(b"") * 200_000, "other", 10, 64),
    "100,000 empty frames": (lambda: zst(b"") * 100_000, "other", 60, 64),
    "100,000 skippable frames of nothing": (lambda: skippable(b"") * 100_000, "other", 60, 64),
    "a million empty blocks": (lambda: gz(b"")[:10] + b"\0\0\0\xff\xff" * 10**6 + gz(b"")[10:], "other", 10, 64),
}  # fmt: skip


def memory_and_cpu(pid: int) -> tuple[int, float]:
    """The most MiB that a process has held, and the CPU seconds that it has taken."""
    status = Path(f"/proc/{pid}/status").read_text()
    most = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return most >> 10, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_costs_a_worker_bounded_time_and_memory(what: str, home: Home, tell: Tell) -> None:
    make, expected, most_cpu_s, most_mib = BOMBS[what]
    cache = home.cache()
    daemon = home.start(cache, environ=BRISK | {"CHUNKD_WORKERS": "1"})
    blobs.write_blob(cache, gz(SMALL))
    daemon.until(lambda stats: stats["layers"] == 1 and stats["settled"], "a good one")
    (pid,) = daemon.workers()
    mib_before, cpu_before_s = memory_and_cpu(pid)
    digest, path = blobs.write_blob(cache, make())
    stored_bytes = path.stat().st_size
    stats = daemon.until(
        lambda stats: stats["settled"] and stats["blobs"] + stats["failed_blobs"] == 2, "the bomb", 2 * most_cpu_s + 60
    )
    assert daemon.workers() == [pid], "the worker did not survive it"
    mib, cpu_s = memory_and_cpu(pid)
    rows = {row["digest"]: row for row in daemon.blobs() + daemon.blobs(failed=True)}
    row = rows[str(digest)]
    assert expected in (row["codec"], row["state"]) or row["reason"].endswith(expected), row
    assert mib <= most_mib, f"{mib} MiB"
    assert cpu_s - cpu_before_s <= most_cpu_s, f"{cpu_s - cpu_before_s:.1f} s"
    tell(
        f"{what}: {stored_bytes:,} bytes, {stats['uncompressed_bytes'] - len(SMALL):,} counted, "
        f"{cpu_s - cpu_before_s:.1f} s of CPU, {mib} MiB at the most ({mib_before} before)"
    )
    path.unlink()
    daemon.until_figures({"layers": 1, "uncompressed_bytes": len(SMALL)})
    daemon.stop()
    home.check()


# --- all of it at once ----------------------------------------------------------------------------------------------


def one_digit_off(name: str) -> list[str]:
    last = "0" if name[-1] != "0" else "1"
    return [name[:-1], name + "0", name[:-1] + last, name[:-1] + "g", "A" + name[1:]]


def flipped(layer: bytes, draw: random.Random) -> bytes:
    """The layer with a bit flipped that matters: a few are in padding, and Python's gzip decodes the same bytes."""
    while True:
        ruin = bytearray(layer)
        ruin[draw.randrange(len(layer) // 2, len(layer) - 8)] ^= 1 << draw.randrange(8)
        try:
            gzip.decompress(ruin)
        except (OSError, EOFError, zlib.error):
            return bytes(ruin)


def failed(home: Home) -> list[dict[str, str]]:
    return [json.loads(line) for line in home.command("blobs", "--failed", "--json").stdout.splitlines()]


def test_a_cache_full_of_hostile_blobs_has_the_figures_of_the_good_ones(home: Home, tell: Tell, seed: int) -> None:
    """90 real layers, four times as many ruins of them, and whatever else may lie in a folder."""
    draw = random.Random(seed)
    folder = home.cache() / "blobs" / "sha256"
    folder.mkdir(parents=True)
    undecodable, misnamed, ignored = set(), set(), set()
    for number, layer in enumerate(npm_layers()):
        stored = layer.read_bytes()
        (folder / layer.name).hardlink_to(layer) if number % 2 else (folder / layer.name).write_bytes(stored)
        for ruin in (stored[: draw.randrange(100, len(stored))], flipped(stored, draw), stored + b"trailing"):
            undecodable.add(hashlib.sha256(ruin).hexdigest())
            blobs.write_blob(folder, ruin)
        lie = hashlib.sha256(b"a lie" + layer.name.encode()).hexdigest()
        misnamed.add(lie)
        (folder / lie).write_bytes(stored)
        if number < 5:
            short, long, other, no_hex, upper = one_digit_off(layer.name)
            misnamed.add(other)
            ignored |= {short, long, no_hex, upper}
            for name in (short, long, other, no_hex, upper):
                (folder / name).write_bytes(stored)
    irregular = [hashlib.sha256(bytes([n])).hexdigest() for n in range(6)]
    ignored |= set(irregular)
    (folder / irregular[0]).symlink_to(npm_layers()[0])
    (folder / irregular[1]).symlink_to(irregular[1])
    (folder / irregular[2]).mkdir()
    os.mkfifo(folder / irregular[3])
    os.mknod(folder / irregular[4], 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero, which has no end
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path has 104 characters at most
        listener.bind(irregular[5])
        os.chdir(here)

        daemon = home.start(home.cache(), environ=BRISK)
        stats = daemon.until(
            lambda stats: stats["settled"] and stats["failed_blobs"] == len(undecodable | misnamed), "all told", 120
        )
        assert {name: stats[name] for name in NPM_TOTALS} == NPM_TOTALS
        rows = {row["digest"].rpartition("/")[2].removeprefix("sha256:"): row["reason"] for row in failed(home)}
        assert {name for name in misnamed if rows[name] != "its bytes do not match its name"} == set()
        assert {name for name in undecodable if rows[name] == "its bytes do not match its name"} == set()
        assert set(rows) == undecodable | misnamed | ignored
        assert stats["pending_blobs"] == 0
        assert figures(daemon.settled_after_scan(verify=True)) == figures(stats)
        for pid in daemon.workers():
            assert memory_and_cpu(pid)[0] <= 64
        daemon.stop()
    home.check()
    tell(
        f"90 good layers, {len(undecodable)} that do not decode, {len(misnamed)} under another's name, "
        f"{len(ignored)} that are no blob: the good ones' figures"
    )
