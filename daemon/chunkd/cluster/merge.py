"""A merge in tasks: each sums up the chunks of one range of hashes, and whoever asks adds the ranges up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from chunkd.cluster.engine import Engine
from chunkd.cluster.task import versions
from chunkd.cluster.tasks import carried_out
from chunkd.fleet.merge import Sources, Summed
from chunkd.fleet.store import Store
from chunkd.fleet.tables import Measured, Range, Tables


def in_tasks(store: Store, sources: Sources, start: Callable[[], Engine]) -> Summed:
    """What sums ranges up on the engine that `start` makes. It raises TaskFailed and what the engine raises."""

    def summed(_: Tables, ranges: Sequence[Range], max_bytes: int, measured: Measured) -> Iterator[dict[str, int]]:
        task = {
            "kind": "merge", "versions": versions(), "store": store.path, "max_bytes": max_bytes, "measured": measured,
            "snapshots": [(one.source, one.moment) for one in sources.counted],
        }  # fmt: skip

        def task_of(of: list[Range]) -> dict[str, Any]:
            return {**task, "range": [end.hex() for end in of[0]]}

        steps = carried_out([[one] for one in ranges], task_of, start)
        for _range, said in itertools.chain.from_iterable(steps):
            yield said["sums"]

    return summed
