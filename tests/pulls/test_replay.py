"""The figures of a replay against the oracle, for any layers, pulls and formats, and the bounds of its memory."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.figures import net_saving
from chunkd.pulls import clients, layer_classes, replay, rows
from chunkd.pulls.layer_classes import classes_of
from chunkd.pulls.replay import Indexed, Replay
from counts import counted
from image_oracle import World
from lines import FORMATS, line_of
from pull_oracle import Get, Known, Oracle
from worlds import chunks_of, digest, real

DAYS = ("2026-10-30", "2026-10-31", "2026-11-01")


def indexed_of(known: Known) -> Indexed:
    layers = sorted(known.layers)
    world = World(layers=known.layers, sizes=known.sizes, measured=known.measured)
    numbered = [*layers, *sorted(set(known.sizes) - set(layers))]
    return Indexed(
        {name.encode(): (number, known.sizes[name]) for number, name in enumerate(numbered)},
        [len(known.layers[name]) for name in layers],
        classes_of([real(name) for name in layers], chunks_of(world)),
    )


def replayed(indexed: Indexed, lines: Iterable[bytes]) -> dict[str, Any]:
    found = Replay(indexed)
    for _ in found.file(lines):
        pass
    return found.to_json()


def like_the_oracle(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the oracle does not say."""
    left_out = ("from", "to", "lines", "other_days", "other_repositories")
    return {name: value for name, value in found.items() if name not in left_out}


@st.composite
def knowns(draw: st.DrawFn) -> Known:
    lengths = draw(st.lists(st.integers(1, 60), min_size=25, max_size=25))
    layers = draw(st.lists(st.lists(st.integers(0, 24), min_size=1, max_size=14), max_size=6))
    sizes = {digest(number): draw(st.integers(0, 90)) for number in range(len(layers) + 2)}
    measured = {chunk: draw(st.integers(1, 60)) for chunk in draw(st.sets(st.integers(0, 24)))}
    named = {digest(at): [(chunk, lengths[chunk]) for chunk in layer] for at, layer in enumerate(layers)}
    return Known(sizes, named, measured)


@st.composite
def gets(draw: st.DrawFn) -> list[Get]:
    references = st.one_of(st.integers(0, 12).map(digest), st.sampled_from(["v1", "latest"]))
    one = st.builds(
        Get, st.just(""), st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]),
        st.sampled_from(["a", "b/c", "b/blobs/d"]), references, st.integers(0, 10**6), st.booleans(),
    )  # fmt: skip
    found = draw(st.lists(one, max_size=40))
    days = sorted(draw(st.lists(st.sampled_from(DAYS), min_size=len(found), max_size=len(found))))
    return [get._replace(day=day) for get, day in zip(found, days, strict=True)]


@settings(max_examples=counted(80), deadline=None)
@given(
    known=knowns(), gets=gets(), form=st.sampled_from(FORMATS), least=st.sampled_from([2, 31]),
    numbers=st.integers(1, 30), kept_bytes=st.sampled_from([0, 1500, 1 << 20]),
)  # fmt: skip
def test_the_figures_are_those_of_the_oracle(
    known: Known, gets: list[Get], form: str, least: int, numbers: int, kept_bytes: int
) -> None:
    """Also when chunks come in many ranges, and nothing of what can be computed again is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_classes, "RANGE_NUMBERS", numbers)
        for module in (net_saving, rows):
            patch.setattr(module, "LEAST_MEASURED", least)
        for name in ("MOST_SETS_BYTES", "MOST_ANSWERS_BYTES"):
            patch.setattr(clients, name, kept_bytes)
        found = replayed(indexed_of(known), [line_of(get, form, at) for at, get in enumerate(gets)])
    assert like_the_oracle(found) == Oracle(known, gets, least).to_json()
    assert found["lines"]["pulls"] == len(gets)
    assert sum(found["lines"]["unread"].values()) == 0
    nothing = Oracle(known, []).row(Oracle(known, []).whole)
    assert found["other_days"] == found["other_repositories"] == nothing


def made_up(seed: int, count: int = 400, clients: int = 6) -> tuple[Known, list[Get]]:
    draw = random.Random(seed)
    layers = {digest(at): [(draw.randrange(300), 0) for _ in range(40)] for at in range(12)}
    layers = {name: [(chunk, 100 + chunk % 7) for chunk, _ in layer] for name, layer in layers.items()}
    known = Known({digest(at): 3000 for at in range(14)}, layers, {chunk: 40 + chunk % 5 for chunk in range(0, 300, 4)})
    return known, [
        Get("2026-11-01", f"192.0.2.{draw.randrange(clients)}", f"r{draw.randrange(9)}", digest(draw.randrange(16)), 5)
        for _ in range(count)
    ]


def lines_of(gets: Sequence[Get], form: str = "combined") -> list[bytes]:
    return [line_of(get, form) for get in gets]


@pytest.mark.parametrize("seed", range(6))
def test_long_logs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many repositories, so that some are wholly measured; and with odd seeds almost nothing is kept."""
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 100) for _ in range(60)]
    layers = {
        digest(at): [(chunk, lengths[chunk]) for chunk in draw.choices(range(60), k=draw.randrange(1, 20))]
        for at in range(15)
    }
    measured = {chunk: draw.randrange(1, 50) for chunk in range(60) if draw.random() < 0.6}
    known = Known({digest(at): draw.randrange(1000) for at in range(18)}, layers, measured)
    gets = [
        Get("2026-11-01", f"192.0.2.{draw.randrange(8)}", f"r{draw.randrange(90)}", digest(draw.randrange(20)), 5)
        for _ in range(400)
    ]
    if seed % 2:
        monkeypatch.setattr(clients, "MOST_SETS_BYTES", 0)
        monkeypatch.setattr(clients, "MOST_ANSWERS_BYTES", 3000)
    assert like_the_oracle(replayed(indexed_of(known), lines_of(gets))) == Oracle(known, gets).to_json()


def test_the_error_is_known_with_enough_measured_chunks() -> None:
    known, gets = made_up(1)
    found = replayed(indexed_of(known), lines_of(gets))
    assert like_the_oracle(found) == Oracle(known, gets).to_json()
    assert found["own_caches"]["chunks"]["error_bytes"] > found["shared_cache"]["chunks"]["error_bytes"] > 0


def test_one_cache_for_one_client_is_its_own() -> None:
    known, gets = made_up(2, clients=1)
    found = replayed(indexed_of(known), lines_of(gets))
    assert found["own_caches"] == found["shared_cache"]


def test_clients_beyond_the_bound_are_forgotten_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    known, gets = made_up(3, clients=40)
    whole = replayed(indexed_of(known), lines_of(gets))
    monkeypatch.setattr(clients, "MOST_HISTORY_BYTES", 5000)
    found = replayed(indexed_of(known), lines_of(gets))
    assert (whole["clients"], whole["forgotten_clients"]) == (40, 0)
    assert found["forgotten_clients"] > 0
    assert found["clients"] > 40
    assert found["served"] == whole["served"]
    assert found["shared_cache"] == whole["shared_cache"]
    assert found["own_caches"]["layers"]["bytes"] > whole["own_caches"]["layers"]["bytes"]


def test_equal_pulls_share_one_history() -> None:
    known, _ = made_up(4)
    found = clients.Clients(12, indexed_of(known).classes)
    for client in range(1000):
        for blob in (1, 5, 3, 13) if client % 2 else (13, 3, 5, 1):
            assert found.pull(client, blob) is not None
            assert found.pull(client, blob) is None
    assert found.bytes == 1000 * clients.CLIENT_BYTES + clients.HISTORY_BYTES + 16


def test_rows_beyond_the_bounds_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known, gets = made_up(5)
    gets = [get._replace(day=f"2026-11-{1 + at * 20 // len(gets):02}") for at, get in enumerate(gets)]
    whole = replayed(indexed_of(known), lines_of(gets))
    monkeypatch.setattr(replay, "MOST_DAYS", 3)
    monkeypatch.setattr(replay, "MOST_REPOSITORIES", 5)
    monkeypatch.setattr(replay, "REPOSITORIES_SHOWN", 2)
    found = replayed(indexed_of(known), lines_of(gets))
    assert [row["day"] for row in found["days"]] == ["2026-11-01", "2026-11-02", "2026-11-03"]
    assert len(found["repositories"]) == 2
    for rows_, rest in (("days", "other_days"), ("repositories", "other_repositories")):
        assert sum(row["served"]["bytes"] for row in (*found[rows_], found[rest])) == found["served"]["bytes"]
    assert {name: found[name] for name in ("served", "own_caches", "shared_cache")} == {
        name: whole[name] for name in ("served", "own_caches", "shared_cache")
    }


def test_digests_beyond_the_bound_are_new_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    known, _ = made_up(6)
    gets = [Get("2026-11-01", "192.0.2.1", "a", digest(100 + at % 3), 10) for at in range(9)]
    assert replayed(indexed_of(known), lines_of(gets))["own_caches"]["layers"] == {"bytes": 30, "requests": 3}
    monkeypatch.setattr(replay, "MOST_UNKNOWN", 2)
    found = replayed(indexed_of(known), lines_of(gets))
    assert found["own_caches"]["layers"] == found["shared_cache"]["layers"] == {"bytes": 50, "requests": 5}
    assert found["not_indexed_bytes"] == 90


def test_a_request_with_two_lines_counts_once() -> None:
    """The registry logs the fields of a response, and then its line of the access log, with a proxy's address."""
    known, gets = made_up(7)
    both = [line for get in gets for line in (line_of(get, "text"), line_of(get._replace(client="p"), "combined"))]
    found = replayed(indexed_of(known), both)
    assert like_the_oracle(found) == Oracle(known, gets).to_json()
    assert (found["lines"]["pulls"], found["lines"]["twice"]) == (len(gets), len(gets))


def test_a_clock_that_goes_back_costs_one_line() -> None:
    known, gets = made_up(8, 20)
    strange = {5: "2031-01-01", 12: "1971-01-01"}
    gets = [get._replace(day=strange.get(at, get.day)) for at, get in enumerate(gets)]
    found = replayed(indexed_of(known), lines_of(gets))
    read = [get for at, get in enumerate(gets) if at not in (6, 12)]
    assert like_the_oracle(found) == Oracle(known, read).to_json()
    assert found["lines"]["unread"]["clock_went_back"] == 2


@pytest.mark.parametrize("name", ["MOST_CLASSES", "MOST_PAIRS", "MOST_NUMBERS"])
def test_an_index_that_is_too_large(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_classes, name, 3)
    with pytest.raises(layer_classes.TooManyClasses):
        indexed_of(made_up(9)[0])


def test_no_address_is_in_what_is_kept() -> None:
    known, gets = made_up(10)
    found = Replay(indexed_of(known))
    list(found.file(lines_of(gets)))
    assert b"192.0.2" in pickle.dumps(gets)
    assert b"192.0.2" not in pickle.dumps([found, found.to_json()])
