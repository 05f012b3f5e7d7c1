"""How much later does a layer count because somebody asks about images?

    python bench/landings.py [IMAGES]     10,000 unless said, over 2 million chunks

Layers of 185 new chunks land 20 ms apart, each in a transaction: alone, beside each question as the daemon answers it,
in a process of its own, and beside one that a thread of this process answers. Fsync is on.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from chunkd.images import answers
from chunkd.index import records
from chunkd.index.blocks import Numbers
from chunkd.index.index import Index
from chunkd.index.records import Held, Rules
from chunkd.model import Blob, Cache, Caps, ChunkParams, Digest, FileMark, Place, Recipe
from chunkd.names import record
from chunkd.names.name import Name, Part
from chunkd.service.image_pages import ImagePages, Question
from chunkd.worker import manifest_record
from chunkd.worker.spawn import Courtesy, Starter
from images import CHUNK_BYTES, IMAGES, MadeUp, made_up
from measure import Bar, save

LAYER_CHUNKS = 185
FRAME_BYTES = 8000
BLOBS_AT_ONCE = 500
EVERY_S = 0.02
ALONE_S = 10.0
ROUNDS = 3
# The longest delay of a landing that was asked for.
DELAY_S = 0.05
QUESTIONS: dict[str, Question] = {
    "images": ("images", ("image",)),
    "by repository": ("images", ("repository",)),
    "freed": ("freed", (("team/app1?:*",), 0)),
    "similar": ("similar", (500,)),
}
MARK = FileMark(1, 1, 1000, 1)


def recipe(hashes: Numbers) -> Recipe:
    picked = np.count_nonzero(hashes[:, 14:].copy().view("<u2") < (1 << 16) // 16)
    lengths = np.full(len(hashes), CHUNK_BYTES, "<u4")
    return Recipe(hashes.tobytes(), lengths.tobytes(), np.full(picked, FRAME_BYTES, "<u4").tobytes())


def random_hashes(draw: np.random.Generator, count: int) -> Numbers:
    return draw.integers(0, 256, (count, 16), dtype=np.uint8)


def filled(index: Index, made: MadeUp) -> None:
    hashes = random_hashes(np.random.default_rng(1), made.count)
    blobs = list(made.blobs.items())
    with index.transaction() as change:
        change.set_caches({1: Cache("/cache")})
    for first in range(0, len(blobs), BLOBS_AT_ONCE):
        with index.transaction() as change:
            for digest, facts in blobs[first : first + BLOBS_AT_ONCE]:
                change.hold(Place(1, digest.hex), Held(digest, "verified", MARK))
                if facts.contents is None:
                    numbers = made.recipes[digest]
                    layer = Blob(digest, "layer", 1000, len(numbers) * CHUNK_BYTES, len(numbers), "gzip")
                    change.add(layer, recipe(hashes[numbers]))
                else:
                    said = manifest_record.encode(facts.contents)
                    change.add(Blob(digest, "other", 1000, reason=facts.contents.kind.value), Recipe(), said)
    of_repositories: dict[str, list[Name]] = {}
    for name in made.names:
        of_repositories.setdefault(name.repository, []).append(name)
    with index.transaction() as change:
        for repository, names in of_repositories.items():
            part = Part("registry", repository, tuple(names))
            change.put_names(records.names_key(1, record.key_of("", part)), record.encode(record.Kept("", part, 1)))


def landings(index: Index, starter: Starter, go_on: Callable[[], bool]) -> Iterator[float]:
    """Seconds of each landing."""
    draw = np.random.default_rng()
    while go_on():
        starter.read()  # as the writer does
        digest, landing = Digest("sha256", draw.bytes(32).hex()), recipe(random_hashes(draw, LAYER_CHUNKS))
        blob = Blob(digest, "layer", 1000, LAYER_CHUNKS * CHUNK_BYTES, LAYER_CHUNKS, "gzip")
        start = time.perf_counter()
        with index.transaction() as change:
            change.hold(Place(1, digest.hex), Held(digest, "verified", MARK))
            change.add(blob, landing)
        yield time.perf_counter() - start
        time.sleep(EVERY_S)


def beside(index: Index, starter: Starter, question: Callable[[], Any]) -> tuple[float, list[float]]:
    """The seconds of the question, and of each landing meanwhile."""
    took_s: list[float] = []

    def ask() -> None:
        start = time.perf_counter()
        question()
        took_s.append(time.perf_counter() - start)

    thread = threading.Thread(target=ask)
    thread.start()
    landed_s = list(landings(index, starter, thread.is_alive))
    thread.join()
    return took_s[0], landed_s


def before(end_s: float) -> bool:
    return time.monotonic() < end_s


def percent(seconds: list[float], part: int) -> float:
    return sorted(seconds)[len(seconds) * part // 100]


def measured(index: Index, starter: Starter) -> tuple[dict[str, Any], list[Bar]]:
    pages = ImagePages(index.store.path, starter.run)
    ways: dict[str, Callable[[], Any] | None] = {"alone": None}
    for name, asked in QUESTIONS.items():
        ways[name] = functools.partial(pages.page, asked, "", 1000)
    ways["images, in a thread"] = lambda: answers.asked(index.store, (answers.images, ("image",)))
    landed_s: dict[str, list[float]] = {way: [] for way in ways}
    took_s: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, question in ways.items():
            if question is None:
                landed_s[way] += landings(index, starter, functools.partial(before, time.monotonic() + ALONE_S))
            else:
                question_s, more_s = beside(index, starter, question)
                took_s[way].append(question_s)
                landed_s[way] += more_s
    print(f"{'landings, ms':<22}{'n':>6}{'median':>9}{'95 %':>9}{'99 %':>9}{'most':>9}   the question, s")
    for way, seconds in landed_s.items():
        figures = (statistics.median(seconds), percent(seconds, 95), percent(seconds, 99), max(seconds))
        took = f"{statistics.median(took_s[way]):>8.1f}" if took_s[way] else ""
        print(f"{way:<22}{len(seconds):>6}{''.join(f'{1000 * figure:>9.1f}' for figure in figures)}{took}")
    alone_s = percent(landed_s["alone"], 99)
    bars = [
        Bar(f"delay of a landing beside {name}, 99 in 100", percent(landed_s[name], 99) - alone_s, DELAY_S, "s")
        for name in QUESTIONS
    ]
    return {"landed_s": landed_s, "took_s": took_s}, bars


def main() -> None:
    made = made_up(int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
    with tempfile.TemporaryDirectory(dir=".", prefix="landings-") as place:
        starter = Starter(ChunkParams(), Caps(), Courtesy(19, "idle", 0))
        index = Index(place, Rules(), "the benchmark")
        filled(index, made)
        print(f"{len(made.names):,} images, {made.count:,} chunks")
        results, bars = measured(index, starter)
        index.close()
        starter.close()
    save("landings", results, bars)


if __name__ == "__main__":
    main()
