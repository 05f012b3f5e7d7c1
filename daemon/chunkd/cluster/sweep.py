"""A sweep into a store: layers without a result there are dealt out in tasks, and whoever asks sums up all results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from chunkd.cluster.engine import Engine
from chunkd.cluster.sweep_task import results_of
from chunkd.cluster.task import versions
from chunkd.cluster.tasks import Hands, Shard, carried_out, split
from chunkd.errors import CacheUnusable
from chunkd.fleet.store import Store, is_partial
from chunkd.model import ChunkParams, Digest
from chunkd.objects.choose import check_usable
from chunkd.sweep import layers
from chunkd.sweep.figures import counted
from chunkd.sweep.question import Question, Share
from chunkd.sweep.results import Results
from chunkd.sweep.sweep import Sweep
from chunkd.sweep.tally import Layer, Progress, Tally

NO_RESULT = "it has changed since it was listed, or its result did not come into the store whole"


def begin(
    states: Sequence[str], caches: Sequence[str], question: Question, share: Share, store: Store, hands: Hands,
    start: Callable[[], Engine], shard: Shard | None = None,
) -> Sweep:  # fmt: skip
    """A sweep as `sweep.opened` makes it, with its results in a store, where they stay. `start` makes the engine, if
    there is something to do.

    Raises IndexMissing, CacheUnusable, RulesDiffer, StoreUnusable, SweepUnwritable and what reading an index raises.
    """
    store.begin(ChunkParams(), "")
    found = layers.found(states, caches, share)
    if shard:
        found = found._replace(layers=[layer for layer in found.layers if shard.has(layer.digest)])
    results = results_of(store, question)
    store.remove_old(f"sweeps/{question.key}", lambda name: not is_partial(name))
    tally = Tally(found, len(question.rules))
    tally.take(results.kept(tally.wanted))
    seen: list[int] = []

    def task_of(of: list[Layer]) -> dict[str, Any]:
        return {
            "kind": "sweep", "versions": versions(), "store": store.path, "question": asdict(question),
            "roots": tally.layers.roots, "seen": seen, "layers": of, "totals": tally.totals,
            "shifts": tally.least_shifts, "courtesy": hands.courtesy, "workers": hands.workers,
        }  # fmt: skip

    def read() -> Generator[Progress, None, None]:
        left = tally.left
        seen.extend(root for root in sorted({layer.root for layer in left}) if _is_usable(found.roots[root]))
        tasks = list(split([(layer, layer.stored_bytes) for layer in left], hands.processes))
        try:
            with contextlib.closing(carried_out(tasks, task_of, start)) as steps:
                yield from _take(tally, results, steps)
        except GeneratorExit:  # somebody gives up: also what tasks had done that have not ended
            for result in results.kept({layer.digest: layer.stored_bytes for layer in tally.left}):
                tally.add(result)
            raise

    return Sweep(tally, results, share, read)


def _is_usable(root: str) -> bool:
    try:
        check_usable(root)
    except CacheUnusable:  # an index knows caches that are gone: each of their layers is named
        return False
    return True


def _take(
    tally: Tally, results: Results, steps: Iterator[list[tuple[list[Layer], dict[str, Any]]]]
) -> Generator[Progress, None, None]:
    """Add what tasks have done. Raises TaskFailed."""
    yield tally.progress()
    for ended in steps:
        for of, said in ended:
            bad = {Digest(*digest): why for *digest, why in said["bad"]}
            for layer in of:
                if layer.digest in bad:
                    tally.give_up(layer.digest, bad[layer.digest])
                elif result := results.result(layer.digest, verify=True, stored_bytes=layer.stored_bytes):
                    tally.add(result)
                else:
                    tally.give_up(layer.digest, NO_RESULT)
        yield tally.progress()


def shard_reply(sweep: Sweep, shard: Shard) -> dict[str, Any]:
    """The object of `sweep --shard --json`: how much of the shard is done. A shard has no figures of its own. It is
    complete when each layer has a result, if only that it can't be decoded.
    """
    tally = sweep.tally
    return {
        "shard": f"{shard.number}/{shard.of}",
        "complete": tally.is_complete and not tally.bad and not tally.layers.problems,
        "layers": counted(tally, tally.layer_results()),
    }
