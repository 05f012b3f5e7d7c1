"""The rounds over many records: in slices, and the next begins when the last has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkd.ingest import rounds, writer
from chunkd.model import Cause
from chunkd.service.live import DaemonAnswers
from ingesting import Content, World, land, looks, oci, world_in, wrong

INTERVAL_S = 60.0
PLACES = 20


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(rounds, "PLACES_A_SLICE", 2)
    with world_in(tmp_path) as made:
        made.verify_interval_s = INTERVAL_S
        made.restart()
        yield made


@pytest.fixture
def contents(world: World) -> list[Content]:
    made = [Content(f"OTHER{number}", "other", b"%d" % number) for number in range(PLACES)]
    for content in made:
        land(oci(world.roots[0], content), content.stored)
    world.settle()
    world.scan(verify=True)  # so that no ctime is in doubt
    return made


def compared(world: World, turns: int, each_s: float) -> Counter[str]:
    """How often each place is compared in so many turns."""
    with looks() as looked:
        for _ in range(turns):
            world.ahead_s += each_s
            world.run_turns(1)
        world.step()
    return Counter(hint.place.path for hint in looked if hint.cause is Cause.VERIFY)


def verified_s(world: World) -> float | None:
    with world.index.snapshot() as txn:
        return world.index.store.verified_s(txn)


def test_a_round_that_takes_longer_than_its_interval_is_ended_before_the_next(
    world: World, contents: list[Content]
) -> None:
    assert world.writer.verify_round.late_s == 0
    before = verified_s(world)
    world.ahead_s += INTERVAL_S
    first = compared(world, PLACES // 4, INTERVAL_S / 2)
    assert set(first.values()) == {1}
    assert 0 < len(first) < PLACES
    assert verified_s(world) == before, "it has not ended"
    assert INTERVAL_S < world.writer.verify_round.late_s <= PLACES // 4 * INTERVAL_S / 2
    rest = compared(world, PLACES // 4 + 1, INTERVAL_S / 2)
    assert set((first + rest).values()) == {1}, "a place was compared twice, and others not yet"
    assert len(first + rest) == len(contents)
    assert world.writer.verify_round.late_s == 0
    assert verified_s(world) == pytest.approx(world.clock_s(), abs=INTERVAL_S)
    # The next one was due meanwhile, and begins at once.
    following = compared(world, 3, 1)
    assert len(following) >= 2
    assert set(following.values()) == {1}


def test_a_round_in_time_is_followed_by_the_next_an_interval_after_it_began(
    world: World, contents: list[Content]
) -> None:
    turns = PLACES // 2 + 1
    assert len(compared(world, turns, INTERVAL_S)) == PLACES  # whatever was due
    world.ahead_s += INTERVAL_S
    assert compared(world, 2 * turns, 0.5) == Counter(
        {world.place(oci(world.roots[0], content)).path: 1 for content in contents}
    )
    assert compared(world, 1, INTERVAL_S - turns - 1) == Counter()
    assert len(compared(world, 3, 1)) > 0


def test_health_says_that_a_round_takes_longer_than_its_interval(world: World, contents: list[Content]) -> None:
    answers = DaemonAnswers(world.writer, world.scanner)
    before = answers.health()["reasons"]
    world.ahead_s += INTERVAL_S
    world.run_turns(2)
    assert answers.health()["reasons"] == before, "it has just begun"
    world.ahead_s += INTERVAL_S + 1
    health = answers.health()
    [reason] = set(health["reasons"]) - set(before)
    assert f"{world.writer.verify_round.late_s:.0f} s" in reason
    assert health["state"] == "degraded"
    compared(world, len(contents), 0.5)
    assert answers.health()["reasons"] == before


def test_a_round_that_a_restart_cut_off_is_done_once_more(world: World, contents: list[Content]) -> None:
    world.ahead_s += INTERVAL_S
    cut_off = compared(world, 4, 1)
    assert 0 < len(cut_off) < PLACES
    world.restart()
    world.ahead_s += INTERVAL_S
    assert len(compared(world, PLACES, 0.5)) == len(contents)


def test_a_round_goes_on_while_there_is_always_something_to_do(world: World, contents: list[Content]) -> None:
    busy = Content("BUSY", "other", b"busy")
    for content in contents[::2]:
        land(oci(world.roots[0], content), wrong(content))
    world.pool.held = True
    world.heard(land(oci(world.roots[0], busy), busy.stored))
    world.ahead_s += INTERVAL_S
    seen = compared(world, PLACES, writer.TIDY_EVERY_S)
    assert world.activity.working()
    assert len(seen) == PLACES
    world.pool.held = False
    world.rest()
    assert world.counted() == {content.digest for content in (*contents[1::2], busy)}
