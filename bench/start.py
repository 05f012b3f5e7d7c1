"""What does a start cost when nothing has changed, and what the timer's scan? Against a bare `os.scandir`.

    python bench/start.py [BLOBS [FOLDER]]     100,000, made in the current folder, unless said

Two caches of as many blobs, one flat and one in distribution's layout, are indexed without being decoded. Taking turns:
a bare `os.scandir` of every folder, the folders that hold one blob of distribution included; listing and comparing in
this process; and `chunkd run` until its first scan is done, with the same caches and with an empty one, whose time is
taken off. Each daemon then scans once more, as it does on a timer, and tells its memory. The figures must stay as they
were, and strace, where it is there, must see no blob opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chunkd.check.recount import recount
from chunkd.figures.totals import Totals
from chunkd.index.index import Index
from chunkd.index.records import Held, Rules
from chunkd.index.storage.environment import reading
from chunkd.ingest.diff import gone, news
from chunkd.model import Blob, Cache, Digest, FileMark, Place, Recipe
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import walk
from measure import of_runs, save, take_turns
from running import PATIENCE_S, environ

ROUNDS = 5
BAR = 3.0
# Every fourth blob is a layer: an image has a manifest, a config and some layers.
LAYER_EVERY = 4
MOST_HINTS = 2048
ONE_CHUNK = Recipe(b"one and the same", (4096).to_bytes(4, "little"))
LAYOUTS = {
    "flat": "{hex}",
    "distribution": "blobs/sha256/{hex:.2}/{hex}/data",
}


@dataclass
class Made:
    """A cache whose every blob is in the index. `folders` are all there are."""

    name: str
    cache: Path
    state: Path
    folders: list[str]

    def totals(self) -> Totals:
        with reading(str(self.state)) as store, store.env.begin() as txn:
            return store.head(txn).totals


def make(parent: Path, name: str, blobs: int, like: Made | None = None) -> Made:
    """Files of 16 bytes. Their names are the digests of others: what is counted is trusted until an event names it.

    `like` has the same blobs in another layout: its index is copied, and then its places are changed.
    """
    cache, state = parent / name, parent / f"{name}.state"
    cache.mkdir()
    root = cache.stat()
    if like is not None:
        shutil.copytree(like.state, state)
    index = Index(str(state), Rules(), "bench/start.py")
    with index.transaction() as change:
        change.set_caches({1: Cache(str(cache), root.st_dev, root.st_ino)})
        for number in range(blobs):
            digest = Digest("sha256", hashlib.sha256(str(number).encode()).hexdigest())
            file = cache / LAYOUTS[name].format(hex=digest.hex)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(number.to_bytes(16, "big"))
            status = file.stat()
            mark = FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
            if like is not None:
                change.release(Place(1, LAYOUTS[like.name].format(hex=digest.hex)), digest)
            change.hold(Place(1, str(file.relative_to(cache))), Held(digest, "verified", mark))
            if like is None and number % LAYER_EVERY == 0:
                change.add(Blob(digest, "layer", 16, 4096, 1, "gzip"), ONE_CHUNK)
            elif like is None:
                change.add(Blob(digest, "other", 16), Recipe(b"", b""))
    with index.snapshot() as txn:
        assert not recount(index.store, txn).differences
    index.close()
    return Made(name, cache, state, [folder for folder, _, _ in os.walk(cache)])


def bare(made: Made) -> None:
    """One process, one thread: every entry of every folder, and nothing asked of any."""
    found = 0
    for folder in made.folders:
        with os.scandir(folder) as entries:
            for _ in entries:
                found += 1
    assert found >= len(made.folders) - 1


def in_process(made: Made) -> None:
    """What the cache's thread and the writer do with it, without their threads."""
    with reading(str(made.state)) as store:
        for listing in walk(FolderSource(str(made.cache)), "", lambda _: None):
            with store.env.begin() as txn:
                assert not list(news(store, txn, 1, listing, verify=False))
                after: bytes | None = b""
                while listing.last and after is not None:
                    hints, after = gone(store, txn, 1, listing, after, MOST_HINTS)
                    assert not hints


class Start:
    """`chunkd run`, followed by its log. Seconds count from its start, `scan_s` from the signal for another scan."""

    def __init__(self, made: Made, under: Sequence[str] = (), scan: bool = True) -> None:
        with tempfile.TemporaryDirectory(prefix="chunkd-") as short:
            start = time.perf_counter()
            self._process = subprocess.Popen(
                [
                    *under, sys.executable, "-m", "chunkd", "run", str(made.cache), "--state", str(made.state),
                    "--socket", f"{short}/chunkd.sock",
                ],
                env=environ(Path(short)), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            patience = threading.Timer(PATIENCE_S, self._process.kill)
            patience.start()
            try:
                said = self._read("ready: ", "scan 1: done")
                self.ready_s, self.done_s = (moment - start for moment in said)
                if scan:
                    start = time.perf_counter()
                    self._process.send_signal(signal.SIGHUP)
                    self.scan_s = self._read("scan 2: done")[0] - start
                    self.anonymous_bytes = self._anonymous_bytes()
            finally:
                self._process.terminate()
                self._process.communicate()
                patience.cancel()

    def _read(self, *texts: str) -> list[float]:
        """When the log said each of them, in whatever order."""
        assert self._process.stderr is not None
        moments: dict[str, float] = {}
        for line in self._process.stderr:
            moments |= {text: time.perf_counter() for text in texts if text in line}
            if len(moments) == len(texts):
                return [moments[text] for text in texts]
        sys.exit(f"the daemon ended, or patience did, before it said all of {texts}")

    def _anonymous_bytes(self) -> int:
        """0 where the system does not tell."""
        status = Path(f"/proc/{self._process.pid}/status")
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text() if status.exists() else "")
        return int(found[1]) * 1024 if found else 0


def opened_blobs(made: Made) -> int | None:
    """How many blobs a start opens, by strace; None where that is not there."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.NamedTemporaryFile("r") as trace:
        Start(made, [strace, "-D", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", trace.name], scan=False)
        seen = trace.read()
    assert str(made.cache) in seen, "strace saw nothing"
    # O_PATH opens nothing: it looks.
    opened = re.findall(r'"[^"]*[0-9a-f]{64}(?:/data)?", (.*)', seen)
    return sum("O_PATH" not in how for how in opened)


def compare(made: Made, empty: Made) -> dict[str, list[float]]:
    """Seconds of each contender in each round; what an empty cache takes is taken off the daemon's."""
    starts: list[Start] = []
    empties: list[Start] = []

    def daemon(of: Made, into: list[Start]) -> Callable[[], float]:
        def run() -> float:
            into.append(Start(of))
            return into[-1].done_s

        return run

    seconds = take_turns(
        {
            "bare os.scandir": lambda: bare(made),
            "list and compare": lambda: in_process(made),
            "chunkd run, an empty cache": daemon(empty, empties),
            "chunkd run": daemon(made, starts),
        },
        ROUNDS,
    )
    pairs = list(zip(starts, empties, strict=True))[1:]
    seconds["until it is ready, less empty"] = [one.ready_s - none.ready_s for one, none in pairs]
    seconds["until the first scan is done, less empty"] = [one.done_s - none.done_s for one, none in pairs]
    seconds["another scan, less empty"] = [one.scan_s - none.scan_s for one, none in pairs]
    seconds["anonymous bytes"] = [one.anonymous_bytes for one, _ in pairs]
    return seconds


def told(name: str, blobs: int, seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Print the table; the ratio of each contender to the bare listing of its round."""
    base = seconds["bare os.scandir"]
    ratios = {}
    print(f"\n{name}: {blobs:,} blobs\n{'':<42}{'median s':>10}{'min':>9}{'max':>9}{'ratio':>8}")
    for what, taken in seconds.items():
        if what == "anonymous bytes":
            print(f"{what:<42}{statistics.median(taken) / 2**20:>6.1f} MiB")
            continue
        ratios[what] = [one / other for one, other in zip(taken, base, strict=True)]
        print(
            f"{what:<42}{statistics.median(taken):>10.4f}{min(taken):>9.4f}{max(taken):>9.4f}"
            f"{statistics.median(ratios[what]):>8.2f}"
        )
    return ratios


def main() -> None:
    blobs = int(sys.argv[1] if len(sys.argv) > 1 else 100_000)
    parent = Path(sys.argv[2] if len(sys.argv) > 2 else ".").resolve()
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        made = make_all(Path(folder), blobs)
        measure(made[0], made[1:], blobs)


def make_all(folder: Path, blobs: int) -> list[Made]:
    """An empty cache, and one in each layout."""
    (folder / "none").mkdir()
    made = [make(folder / "none", "flat", 0), make(folder, "flat", blobs)]
    return [*made, make(folder, "distribution", blobs, like=made[-1])]


def measure(empty: Made, caches: Sequence[Made], blobs: int) -> None:
    """Measure each, print and save. Exits when a figure has changed or a blob was opened."""
    results: dict[str, object] = {"blobs": blobs}
    bars = []
    for made in caches:
        before = made.totals()
        seconds = compare(made, empty)
        opened = opened_blobs(made)
        if made.totals() != before or opened:
            sys.exit(f"{made.totals()} were {before}; {opened} blobs were opened")
        ratios = told(made.name, blobs, seconds)
        print("no blob was opened" if opened == 0 else "strace is not there: whether a blob was opened is unknown")
        results[made.name] = {"values": seconds, "ratios": ratios, "opened_blobs": opened}
        what = f"a start with {blobs:,} unchanged blobs ({made.name}), against os.scandir of the same folders"
        bars.append(of_runs(what, ratios["until the first scan is done, less empty"], BAR))
    save("start", results, bars)


if __name__ == "__main__":
    main()
