"""`chunkd diff --measure`: the layers that a client lacks are decoded, so that each of their chunks is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chunkd.check.check import compare
from chunkd.check.read_again import read_again
from chunkd.errors import ChunkdError
from chunkd.images import answers
from chunkd.images.atoms import Numbers
from chunkd.images.diff import planned
from chunkd.images.read import read
from chunkd.index.storage.environment import Store, reading_first
from chunkd.settings.config import Config


class LayerUnread(ChunkdError):
    """No exact answer without that layer."""

    def __init__(self, digest: str, problem: str) -> None:
        super().__init__(f"layer {digest} {problem}; `chunkd scan --verify` finds out more")


def decoded_diff(
    config: Config, states: Sequence[str], client: Sequence[str], to: str, platform: str
) -> tuple[dict[str, Any], str]:
    """The whole reply of `images.diff.diff`, exact, and the state directory that it was read from.

    Raises LayerUnread for a layer that can't be read or is another than the index says, IndexMissing, and as `diff`.
    """
    with reading_first(states) as (store, state_dir):
        return _decoded(store, config, client, to, platform), state_dir


def _decoded(store: Store, config: Config, client: Sequence[str], to: str, platform: str) -> dict[str, Any]:
    with store.snapshot() as txn:
        rules = store.check_format(txn, None)
        plan = planned(read(store, txn), client, to, platform)
        numbers, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if plan.is_whole and plan.layers:
            for digest, finding in read_again(store, txn, config, replace(rules.measure, one_in=1), plan.layers):
                if finding is None:
                    raise LayerUnread(str(digest), "can't be read")
                # It was measured by another rule than the index's, which is not compared.
                if difference := compare(store, txn, digest, finding):
                    raise LayerUnread(str(digest), f"is not what the index says: {difference}")
                numbers.append(plan.recipes.recipe(digest))
                lengths.append(np.frombuffer(finding.recipe.measured, "<u4").astype(np.int64))
                if len(numbers[-1]) != len(lengths[-1]):
                    raise LayerUnread(str(digest), "was measured in part")
        known, first = np.unique(np.concatenate(numbers), return_index=True)
        recompressed = np.concatenate(lengths)[first]

        def measured(wanted: Numbers) -> Numbers:
            return recompressed[np.searchsorted(known, wanted)]

        reply = plan.reply(replace(plan.recipes, measured=measured))
        return answers.head(store, txn) | reply | {"next": None}
