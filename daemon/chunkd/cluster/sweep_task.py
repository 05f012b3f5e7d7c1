"""A task of a sweep: some layers are read once, by all rules, and each one's result put into the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chunkd.fleet.store import Store
from chunkd.model import Caps, ChunkParams, Digest, MeasureRule
from chunkd.objects.choose import check_usable
from chunkd.sweep.messages import Totals
from chunkd.sweep.question import Question
from chunkd.sweep.reading import Reading
from chunkd.sweep.results import Results
from chunkd.sweep.tally import Layer, Layers, Tally
from chunkd.worker.pool import Wakeup
from chunkd.worker.spawn import Courtesy


def results_of(store: Store, question: Question) -> Results:
    """The results in a store of all sweeps that ask this. Raises RulesDiffer, and StoreUnusable if it is not there."""
    store.check(ChunkParams(), "")
    return Results(store.folder(f"sweeps/{question.key}"), question)


def run(task: dict[str, Any], _: Wakeup, check_asker: Callable[[], None]) -> dict[str, Any]:
    """Carry out a task, while `check_asker` does not raise. Raises CacheUnusable, and what `Store` and `Reading` do."""
    asked = task["question"]
    question = Question(
        tuple(asked["rules"]), MeasureRule(**asked["measure"]), Caps(**asked["caps"]), asked["baselines"]
    )
    results = results_of(Store(task["store"]), question)
    layers = [Layer(Digest(*digest), *of) for digest, *of in task["layers"]]
    for root in {layer.root for layer in layers}.intersection(task["seen"]):
        check_usable(task["roots"][root])  # as whoever asked sees it
    totals = [Totals(*one) for one in task["totals"]]
    tally = Tally(Layers(tuple(task["roots"]), layers, None, []), len(question.rules), totals, task["shifts"])
    kept = (results.result(layer.digest, verify=True, stored_bytes=layer.stored_bytes) for layer in layers)
    tally.take(result for result in kept if result)  # what another run has done meanwhile
    for _step in Reading(tally, results, Courtesy(*task["courtesy"]), task["workers"]).run():
        check_asker()
    return {"bad": [(*digest, why) for digest, why in tally.bad.items()]}
