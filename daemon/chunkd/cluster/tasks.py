"""Work in tasks: how it is dealt out, and what becomes of tasks that die."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from chunkd.cluster.engine import ALLOWED_FAILURES, Engine
from chunkd.errors import ChunkdError
from chunkd.model import Digest
from chunkd.worker.spawn import Courtesy

# What a task has at most. A larger blob is a task by itself.
TASK_BYTES, TASK_BLOBS = 16 * 10**9, 1000
# Where there is little to do, tasks are smaller than that, so that each process has some; but not smaller than this.
TASKS_A_PROCESS, LEAST_TASK_BYTES = 4, 64 * 10**6

# Stored bytes that are done, those of all blobs, and how many blobs are left.
Progress = Callable[[int, int, int], None]
Blob = TypeVar("Blob")


class TaskFailed(ChunkdError):
    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; run the command again: it goes on from what the store has")


class Shard(NamedTuple):
    """The part `number`, from 0 on, `of` so many of all digests, by their own bits."""

    number: int
    of: int

    def has(self, digest: Digest) -> bool:
        return int(digest.hex[:16], 16) % self.of == self.number


class Hands(NamedTuple):
    """Who does the work: `workers` decode in each task, of which `processes` are carried out at once."""

    courtesy: Courtesy
    workers: int
    processes: int


def split(blobs: Sequence[tuple[Blob, int]], processes: int) -> Iterator[list[Blob]]:
    """Blobs, each with its stored bytes, in tasks. They keep their order, which should have the largest first."""
    share_bytes = sum(size for _, size in blobs) // (TASKS_A_PROCESS * processes)
    most_bytes = min(TASK_BYTES, max(LEAST_TASK_BYTES, share_bytes))
    some: list[Blob] = []
    some_bytes = 0
    for blob, size in blobs:
        if some and (some_bytes + size > most_bytes or len(some) >= TASK_BLOBS):
            yield some
            some, some_bytes = [], 0
        some.append(blob)
        some_bytes += size
    if some:
        yield some


def carried_out(
    tasks: Sequence[list[Blob]], task_of: Callable[[list[Blob]], Mapping[str, Any]], start: Callable[[], Engine]
) -> Generator[list[tuple[list[Blob], dict[str, Any]]], None, None]:
    """Tasks with what they said, as they end; nothing in between, so that whoever asks may give up. `task_of` makes a
    task as it is given out. Raises TaskFailed.
    """
    if not tasks:
        return
    waiting, running, deaths = list(range(len(tasks)))[::-1], set[int](), Counter[int]()
    engine = start()
    try:
        while waiting or running:
            while waiting and len(running) < engine.room:
                number = waiting.pop()
                running.add(number)
                engine.submit(number, dict(task_of(tasks[number])))
            ended = []
            for number, said in engine.gather():
                running.discard(number)
                if "error" in said:
                    raise TaskFailed(said["error"])
                if "died" not in said:
                    ended.append((tasks[number], said))
                    continue
                deaths[number] += 1
                if deaths[number] >= ALLOWED_FAILURES:
                    raise TaskFailed(f"a task died {ALLOWED_FAILURES} times, the last time since {said['died']}")
                waiting.append(number)
            yield ended
    finally:
        engine.cancel()
