"""Any order of events, twenty thousand steps long: the machine that the quick tests run for a while."""

from __future__ import annotations

import logging

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

import machine
from conftest import Tell

STEPS = 20_000
EXAMPLES_A_ROUND = 100
MOST_ROUNDS = 12
EACH = 100
KINDS = (
    "land", "land in place in pieces", "replace", "push the same again", "hard-link", "remove", "remove while decoding",
    "replace while decoding", "move between caches", "move within a cache", "move a folder", "restart", "be killed",
    "scan", "lose an event", "lose all events", "lose a cache",
)  # fmt: skip


def test_the_index_is_the_models_whatever_the_order(
    seed: int, tell: Tell, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = machine.Caches.counts
    monkeypatch.setattr(machine.Caches, "_hypothesis_internal_use_seed", seed, raising=False)
    with caplog.at_level(logging.CRITICAL, "chunkd"):
        for number in range(MOST_ROUNDS):
            hypothesis.seed(seed + number)(machine.Caches)
            run_state_machine_as_test(machine.Caches, settings=machine.looking(EXAMPLES_A_ROUND))
            if counts["step"] >= STEPS and all(counts[kind] >= EACH for kind in KINDS):
                break
    tell(f"{counts['step']:,} steps, " + ", ".join(f"{kind}: {counts[kind]}" for kind in sorted(counts)))
    assert counts["step"] >= STEPS
    assert {kind: counts[kind] for kind in KINDS if counts[kind] < EACH} == {}
