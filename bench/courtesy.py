"""What do workers cost a machine that is idle, and what other work that is busy?

    python bench/courtesy.py FOLDER [DISK]      FOLDER holds blobs/sha256/<hex>, for instance the pinned npm layers;
                                                DISK is a folder on the disk that is to be read, by default /tmp's

Idle: the whole of `chunkd scan`. Busy: as many workers as cores, kept at work, beside (a) a SHA-256 loop on each core
and (b) a program that reads a cold file in 4 KiB pieces at random, while the workers hash cold files. Each has its own
session, as services have. What is counted is what the other program gets done in a fixed time, and what the workers do.
Linux only: it reads /sys for the disk's scheduler.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chunkd.model import Caps, ChunkParams, Digest, Job, MeasureRule
from chunkd.sources.folder import FolderSource
from chunkd.worker.spawn import Courtesy, core_count, make_pool, share
from measure import save, table, take_turns
from running import environ

ROUNDS = 3
BUSY_S = 1.5
COLD_BYTES = 256 << 20
NOT_AT_ALL = Courtesy(0, "normal", 0)
LIMIT_BYTES_PER_S = 50_000_000

HASH = """
import hashlib, sys, time
block, done = bytes(1 << 20), 0
sys.stdin.readline()
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    hashlib.sha256(block)
    done += 1
print(done)
"""

READ = """
import os, random, sys, time
fd = os.open(sys.argv[2], os.O_RDONLY)
size, done = os.fstat(fd).st_size, 0
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
offsets = [4096 * number for number in range(size // 4096)]
random.Random(1).shuffle(offsets)
sys.stdin.readline()
end = time.monotonic() + float(sys.argv[1])
for offset in offsets:
    os.pread(fd, 4096, offset)
    done += 1
    if time.monotonic() >= end:
        break
print(done)
"""


class Got(NamedTuple):
    """What others got done, as a count, and what the workers read meanwhile."""

    done: int
    read_bytes_per_s: float


def others(program: str, count: int, read_bytes: Callable[[], int], *arguments: str) -> Got:
    """What so many copies of a program, started together, get done in `BUSY_S`, all in all."""
    command = [sys.executable, "-c", program, str(BUSY_S), *arguments]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        for _ in range(count)
    ]
    time.sleep(0.3)  # until each has been imported and waits for its line
    before = read_bytes()
    for process in running:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    time.sleep(BUSY_S)
    read = read_bytes() - before
    return Got(sum(int(process.communicate()[0]) for process in running), read / BUSY_S)


class FileJob(NamedTuple):
    digest: Digest
    path: Path
    decode: bool = True


@contextlib.contextmanager
def working(courtesy: Courtesy | None, jobs: Sequence[FileJob], cold: bool) -> Iterator[Callable[[], int]]:
    """Workers that do these jobs over and over, for None none; gives how many stored bytes they have read so far."""
    if courtesy is None:
        yield lambda: 0
        return
    pool = make_pool(core_count(), courtesy, ChunkParams(), Caps(), MeasureRule())
    stopping = threading.Event()
    done_bytes = 0

    def work() -> None:
        nonlocal done_bytes
        number = 0
        while not stopping.is_set():
            while pool.idle:
                one = jobs[number % len(jobs)]
                with FolderSource(str(one.path.parent)).view() as view:
                    descriptor, seen = view.open(one.path.name)
                pool.give(Job(one.digest, seen.mark, one.decode), descriptor)
                os.close(descriptor)
                number += 1
            for result in pool.collect(0.1):
                if result.finding is None or result.finding.kind not in ("layer", "matched"):
                    sys.exit(f"{result}")
                done_bytes += result.job.mark.stored_bytes
                if cold:
                    forget(next(one.path for one in jobs if one.digest == result.job.digest))

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.6)  # the workers' start
    try:
        yield lambda: done_bytes + pool.read_bytes
    finally:
        stopping.set()
        worker.join()
        pool.close()


def forget(path: Path) -> None:
    """Have the kernel drop the file from its page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def compare(
    title: str,
    courtesies: dict[str, Courtesy | None],
    jobs: Sequence[FileJob],
    run: Callable[[Callable[[], int]], Got],
    cold: bool,
) -> dict[str, Any]:
    """Print and return, for each courtesy, what the others got done and what the workers read, in turns."""
    got: dict[str, list[Got]] = {name: [] for name in courtesies}
    for _ in range(ROUNDS):
        for name, courtesy in courtesies.items():
            if cold:
                for job in jobs:
                    forget(job.path)
            with working(courtesy, jobs, cold) as read_bytes:
                got[name].append(run(read_bytes))
    alone = statistics.median(one.done for one in got["without chunkd"])
    print(f"\n{title}\n{'':<40}{'left':>8}{'min':>8}{'max':>8}   workers, stored MB/s")
    rows = {}
    for name, runs in got.items():
        left = [one.done / alone for one in runs]
        rate = statistics.median(one.read_bytes_per_s for one in runs)
        rows[name] = {"left": statistics.median(left), "min": min(left), "max": max(left), "read_bytes_per_s": rate}
        print(f"{name:<40}{rows[name]['left']:>8.3f}{min(left):>8.3f}{max(left):>8.3f}{rate / 1e6:>12.1f}")
    return rows


def scan(folder: Path, *flags: str) -> int:
    """The program itself, into a new index; the unique bytes that it found."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "chunkd", "scan", str(folder), "--state", state, "--json", *flags]
        done = subprocess.run(command, env=environ(Path(state)), capture_output=True, check=True)
    return int(json.loads(done.stdout)["unique_bytes"])


def scheduler_of(path: Path) -> str:
    """The I/O scheduler of the disk that holds the path, as /sys has it, or why it is not known."""
    device = path.stat().st_dev
    for place in ("queue/scheduler", "../queue/scheduler"):  # of a disk, or of the disk of a partition
        with contextlib.suppress(OSError):
            said = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/{place}").read_text()
            return said.partition("[")[2].partition("]")[0] or said.strip()
    return "not on a disk of its own"


def main() -> None:
    folder = Path(sys.argv[1])
    cores = core_count()
    layers = sorted((folder / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)
    stored_bytes = sum(path.stat().st_size for path in layers)
    unique_bytes = set()
    idle = take_turns(
        {
            "nice 0, normal": lambda: unique_bytes.add(scan(folder, "--nice", "0", "--io-priority", "normal")),
            "nice 19, idle (as it comes)": lambda: unique_bytes.add(scan(folder)),
        },
        2 * ROUNDS,
    )
    if len(unique_bytes) != 1:
        sys.exit(f"the figures differ: {unique_bytes}")
    idle_table = table("an idle machine: chunkd scan", idle, stored_bytes, "nice 0, normal")
    jobs = [FileJob(Digest("sha256", path.name), path) for path in layers]
    limit = share(LIMIT_BYTES_PER_S, cores)
    busy = compare(
        f"what is left to a SHA-256 loop on each of {cores} cores, the layers in memory",
        {
            "without chunkd": None,
            "nice 0": NOT_AT_ALL,
            "nice 10": Courtesy(10, "normal", 0),
            "nice 19": Courtesy(19, "normal", 0),
            f"nice 0, {LIMIT_BYTES_PER_S / 1e6:.0f} MB/s": Courtesy(0, "normal", limit),
        },
        jobs,
        lambda read_bytes: others(HASH, cores, read_bytes),
        cold=False,
    )
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        files = [Path(name, str(number)) for number in range(cores + 1)]
        for number, path in enumerate(files):
            block = hashlib.sha256(b"%d" % number).digest() * 32768
            with path.open("wb") as file:
                for _ in range(COLD_BYTES // len(block)):
                    file.write(block)
                os.fsync(file.fileno())
        cold_jobs = []
        for path in files[1:]:
            with path.open("rb") as opened:
                digest = Digest("sha256", hashlib.file_digest(opened, "sha256").hexdigest())
            cold_jobs.append(FileJob(digest, path, decode=False))
        scheduler = scheduler_of(Path(name))
        cold = compare(
            f"what is left to a reader of a cold file, beside workers that hash cold files; scheduler: {scheduler}",
            {
                "without chunkd": None,
                "nice 0, normal": NOT_AT_ALL,
                "nice 19, normal": Courtesy(19, "normal", 0),
                "nice 19, idle (as it comes)": Courtesy(19, "idle", 0),
                f"nice 19, idle, {LIMIT_BYTES_PER_S / 1e6:.0f} MB/s": Courtesy(19, "idle", limit),
            },
            cold_jobs,
            lambda read_bytes: others(READ, 1, read_bytes, str(files[0])),
            cold=True,
        )
    save("courtesy", {"idle": idle_table, "busy": busy, "cold": cold, "scheduler": scheduler})


if __name__ == "__main__":
    main()
