"""How long does `chunkd replay` take over a long log, and how much memory?

    python bench/replay.py [LINES [IMAGES]]     1,000,000 lines over 2,000 images unless said

The images are those of `images.py`, in a real index. The log is in the combined format: 2,000 clients pull images, some
much more often than others; half of the clients keep what they pulled, and the others (runners that begin empty) pull
all of it again. One line in a hundred is hostile. The bytes must be those that were written into the log.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chunkd.index.index import Index
from chunkd.index.records import Held, Rules
from chunkd.model import Blob, Cache, Digest, FileMark, Place, Recipe
from chunkd.worker.manifest import Role
from images import MadeUp, made_up
from made_up import lengths_of, recipe_of
from measure import Bar, save

LINES, IMAGES = 1_000_000, 2_000
CLIENTS = 2_000
# What was asked for.
BAR_S, BAR_MIB = 60.0, 256
HOSTILE = (b"junk", b"x" * 3000, b"\x1b[2J" * 9, b"{" * 500, b'time="' + b"\\" * 200, b"\xff\xfe" * 50)
LAYERS_A_COMMIT = 200


class Written(NamedTuple):
    pulls: int
    hostile: int
    served_bytes: int


def main() -> None:
    lines, images = (int(sys.argv[at]) if len(sys.argv) > at else default for at, default in ((1, LINES), (2, IMAGES)))
    with tempfile.TemporaryDirectory(prefix="replay-") as place:
        save("replay", *replayed(Path(place), lines, images))


def replayed(place: Path, lines: int, images: int) -> tuple[dict[str, object], list[Bar]]:
    found = made_up(images)
    put(found, str(place / "state"))
    log = place / "access.log"
    with log.open("wb") as file:
        written = write(found, lines, file.write)
    command = [sys.executable, "-m", "chunkd", "replay", "--json", "--state", str(place / "state"), str(log)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    with process.stdout:
        reply = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    taken_s, peak_mib = time.perf_counter() - began, usage.ru_maxrss / 1024
    process.returncode = os.waitstatus_to_exitcode(status)
    told = Written(reply["lines"]["pulls"], sum(reply["lines"]["unread"].values()), reply["served"]["bytes"])
    if process.returncode or told != written:
        sys.exit(f"replay exited {process.returncode} and counted {told}; the log has {written}")
    print(
        f"{lines:,} lines, {log.stat().st_size / 1e6:,.0f} MB, {reply['clients']:,} clients, {images:,} images of"
        f" {found.count:,} chunks: {taken_s:.1f} s ({usage.ru_utime + usage.ru_stime:.1f} s of a processor),"
        f" {peak_mib:.0f} MiB at the peak"
    )
    results: dict[str, object] = {
        "lines": lines,
        "images": images,
        "chunks": found.count,
        "seconds": taken_s,
        "peak_mib": peak_mib,
    }
    return results, [
        Bar("a replay", taken_s, BAR_S, "s"),
        Bar("a replay at its peak", peak_mib, BAR_MIB, "MiB"),
    ]


def put(found: MadeUp, state: str) -> None:
    """All blobs into an index; without what manifests say, as a replay does not ask."""
    index = Index(state, Rules(), "bench/replay.py")
    with index.transaction() as change:
        change.set_caches({1: Cache("/made-up")})
    digests = list(found.blobs)
    for begin in range(0, len(digests), LAYERS_A_COMMIT):
        with index.transaction() as change:
            for digest in digests[begin : begin + LAYERS_A_COMMIT]:
                stored_bytes = stored_bytes_of(found, digest)
                blob, recipe = Blob(digest, "other", stored_bytes), Recipe(b"", b"", b"")
                if digest in found.recipes:
                    numbers = found.recipes[digest]
                    recipe, size = recipe_of(numbers), int(lengths_of(numbers).sum())
                    blob = Blob(digest, "layer", stored_bytes, size, len(numbers), "gzip")
                change.hold(Place(1, digest.hex), Held(digest, "verified", FileMark(1, 1, stored_bytes, 1)))
                change.add(blob, recipe)
    index.record_at_rest()
    index.close()


def stored_bytes_of(found: MadeUp, digest: Digest) -> int:
    return 12_000 * len(found.recipes[digest]) if digest in found.recipes else found.blobs[digest].stored_bytes


def write(found: MadeUp, lines: int, write_line: object) -> Written:
    assert callable(write_line)
    pulls = hostile = served_bytes = 0
    draw = random.Random(1)
    for number, (client, repository, target, size) in zip(range(lines), requests(found, draw), strict=False):
        if number % 100 == 0:
            write_line(draw.choice(HOSTILE) + b"\n")
            hostile += 1
            continue
        at = number * 86_400 * 30 // lines
        when = f"{1 + at // 86_400:02}/Nov/2026:{at // 3600 % 24:02}:{at // 60 % 60:02}:{at % 60:02} +0000"
        line = f'10.0.{client >> 8}.{client & 255} - - [{when}] "GET /v2/{repository}/{target} HTTP/1.1" 200 {size}'
        write_line(f'{line} "" "containerd/1.7.2"\n'.encode())
        pulls += 1
        served_bytes += size
    return Written(pulls, hostile, served_bytes)


def requests(found: MadeUp, draw: random.Random) -> Iterator[tuple[int, str, str, int]]:
    """Client, repository, what is asked for, and its bytes, without end."""
    kept: list[set[Digest]] = [set() for _ in range(CLIENTS)]
    names = found.names
    while True:
        client = min(CLIENTS - 1, int(draw.expovariate(4 / CLIENTS)))
        name = names[min(len(names) - 1, int(draw.expovariate(8 / len(names))))]
        contents = found.blobs[name.digest].contents
        assert contents
        yield client, name.repository, f"manifests/{name.tag}", 1000
        yield client, name.repository, f"manifests/{name.digest}", 1000
        for edge in contents.edges:
            if edge.role in (Role.CONFIG, Role.LAYER) and edge.digest not in kept[client]:
                if client % 2:
                    kept[client].add(edge.digest)
                yield client, name.repository, f"blobs/{edge.digest}", stored_bytes_of(found, edge.digest)


if __name__ == "__main__":
    main()
