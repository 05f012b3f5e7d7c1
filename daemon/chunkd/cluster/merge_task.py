"""A task of a merge: the chunks of one range of hashes are summed up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chunkd.fleet import snapshot
from chunkd.fleet.merge import Sources, loaded
from chunkd.fleet.store import Store
from chunkd.fleet.tables import Measured
from chunkd.worker.pool import Wakeup


def run(task: dict[str, Any], _: Wakeup, _check_asker: Callable[[], None]) -> dict[str, Any]:
    """Carry out a task. Raises what `loaded` and `Tables.chunk_sums` do."""
    store = Store(task["store"])
    counted = tuple(snapshot.read(store, source, moment) for source, moment in task["snapshots"])
    low, high = map(bytes.fromhex, task["range"])
    with loaded(store, Sources(counted, ())) as tables:
        return {"sums": tables.chunk_sums(low, high, task["max_bytes"], Measured(*task["measured"]))}
