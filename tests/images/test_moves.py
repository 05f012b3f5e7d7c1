"""What a pull moves as chunks: as the oracle has it, and what must hold between any images."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.figures.net_saving import LEAST_MEASURED
from chunkd.figures.totals import Sample
from chunkd.images import moves as module
from chunkd.images.atoms import Numbers
from chunkd.images.moves import Moves, Recipes, TooManyChunks, moves
from chunkd.model import Digest
from counts import counted
from moves_oracle import Layer, Pull

MADE = settings(max_examples=counted(300), deadline=None)


class Store:
    """Layers of some chunks. A chunk's number is `renumbered` of its name."""

    def __init__(
        self, lengths: dict[int, int], measured: dict[int, int], renumbered: Callable[[int], int] = lambda one: one
    ) -> None:
        self.lengths, self.measured, self.renumbered = lengths, measured, renumbered
        self._by_number = {renumbered(chunk): chunk for chunk in lengths}
        sample = [(lengths[chunk], y) for chunk, y in measured.items()]
        self._cache = Sample(
            len(sample), sum(x for x, _ in sample), sum(y for _, y in sample),
            sum(x * x for x, _ in sample), sum(x * y for x, y in sample), sum(y * y for _, y in sample),
        )  # fmt: skip

    def numbers(self, chunks: Sequence[int]) -> Numbers:
        return np.array([self.renumbered(chunk) for chunk in chunks], np.int64)

    def recipes(self, layers: Mapping[str, Sequence[int]]) -> Recipes:
        def facts(of: Callable[[int], int]) -> Callable[[Numbers], Numbers]:
            def found(numbers: Numbers) -> Numbers:
                assert (np.diff(numbers) > 0).all()
                return np.array([of(self._by_number[number]) for number in numbers.tolist()], np.int64)

            return found

        return Recipes(
            {named(name): len(chunks) for name, chunks in layers.items()},
            lambda digest: self.numbers(layers[str(digest.hex.lstrip("0"))]),
            facts(self.lengths.__getitem__),
            facts(lambda chunk: self.measured.get(chunk, 0)),
            lambda: self._cache,
        )


def named(name: str) -> Digest:
    return Digest("sha256", f"{name:>064}")


def pull(store: Store, chunks: set[int], held: set[str], image: Sequence[Layer]) -> Moves:
    recipes = store.recipes({name: recipe for name, _, recipe in image})
    lacking = {named(name): stored for name, stored, _ in image if name not in held}
    return moves(store.numbers(sorted(chunks)), lacking, recipes, [named(name) for name, _, _ in image])


def plain(found: Moves) -> dict[str, Any]:
    """As the oracle says it."""
    return {
        "missing": found.missing,
        "bytes": found.bytes,
        "recipe_bytes": found.recipe_bytes,
        "runs": found.runs,
        "ranges": [tuple(one) for one in found.ranges],
        "layers": [(layer.digest.hex.lstrip("0"), *layer[1:]) for layer in found.layers],
        "measured_by": found.measured_by,
        "recompressed": found.recompressed.recompressed_bytes,
    }


@st.composite
def stores(draw: st.DrawFn) -> Store:
    """At most 60 chunks, of which all, most, few or none are measured."""
    count = draw(st.integers(1, 60))
    size = st.integers(1, 65_536) if draw(st.booleans()) else st.integers(1, 3)
    lengths = {chunk: draw(size) for chunk in range(count)}
    part = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    chance = draw(st.randoms(use_true_random=False))
    measured = {chunk: chance.randint(1, x + 20) for chunk, x in lengths.items() if chance.random() < part}
    return Store(lengths, measured)


@st.composite
def images(draw: st.DrawFn, store: Store, layers: dict[str, Layer]) -> list[Layer]:
    """A few layers of a pool that fills as images are made."""
    found: dict[str, Layer] = {}
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from("abcdef"))
        if name not in layers:
            recipe: list[int] = []
            for _ in range(draw(st.integers(0, 5))):  # stretches, as an update leaves them
                start, length = draw(st.integers(0, len(store.lengths) - 1)), draw(st.integers(1, 30))
                recipe += [chunk for chunk in range(start, start + length) if chunk < len(store.lengths)]
            layers[name] = (name, draw(st.integers(0, 500_000)), recipe)
        found[name] = layers[name]
    return list(found.values())


def chunks_of(image: Sequence[Layer]) -> set[int]:
    return {chunk for _, _, recipe in image for chunk in recipe}


def names_of(image: Sequence[Layer]) -> set[str]:
    return {name for name, _, _ in image}


@MADE
@given(stores(), st.data())
def test_it_is_what_the_oracle_says(store: Store, data: st.DataObject) -> None:
    layers: dict[str, Layer] = {}
    client, image = data.draw(images(store, layers)), data.draw(images(store, layers))
    found = pull(store, chunks_of(client), names_of(client), image)
    oracle = Pull(chunks_of(client), names_of(client), image, store.lengths, store.measured)
    assert plain(found) == oracle.expected()


@MADE
@given(stores(), st.data())
def test_what_must_hold_between_images(store: Store, data: st.DataObject) -> None:
    layers: dict[str, Layer] = {}
    some = [data.draw(images(store, layers)) for _ in range(3)]

    def moved(one: Sequence[Layer], other: Sequence[Layer]) -> Moves:
        return pull(store, chunks_of(one), names_of(one), other)

    def referenced(image: Sequence[Layer]) -> int:
        return sum(store.lengths[chunk] for chunk in chunks_of(image))

    for a in some:
        first, again = moved([], a), moved(a, a)
        assert (first.bytes, first.missing) == (referenced(a), len(chunks_of(a)))
        assert (again.bytes, again.missing, again.runs, again.recipe_bytes, again.layers) == (0, 0, 0, 0, ())
        assert again.recompressed == (0, 0)
        for b in some:
            there, back = moved(a, b), moved(b, a)
            assert referenced(a) + there.bytes == referenced(b) + back.bytes
            for c in some:
                assert moved(a, c).bytes <= there.bytes + moved(b, c).bytes
            ranges = [one.ranges for one in there.ranges]
            assert ranges == sorted(ranges, reverse=True)
            assert [one.bytes for one in there.ranges] == sorted(one.bytes for one in there.ranges)
            if there.measured_by:
                assert ranges[0] == there.runs
                assert ranges[-1] == sum(layer.missing > 0 for layer in there.layers)
                assert there.ranges[0].bytes == there.recompressed.recompressed_bytes
                least, whole = there.cheaper().recompressed_bytes, sum(layer.stored_bytes for layer in there.layers)
                assert least is not None
                assert least <= whole
                assert least <= there.ranges[0].bytes + there.recipe_bytes
            else:
                assert (there.ranges, there.cheaper()) == ((), (None, None))


@MADE
@given(stores(), st.data())
def test_the_numbers_of_chunks_change_nothing(store: Store, data: st.DataObject) -> None:
    layers: dict[str, Layer] = {}
    client, image = data.draw(images(store, layers)), data.draw(images(store, layers))
    places = list(range(3 * len(store.lengths)))
    random.Random(data.draw(st.integers(0, 99))).shuffle(places)
    other = Store(store.lengths, store.measured, places.__getitem__)
    assert pull(store, chunks_of(client), set(), image) == pull(other, chunks_of(client), set(), image)


def test_a_gap_joins_when_it_takes_no_more_than_the_gap_that_is_allowed() -> None:
    """In whole numbers: 3 bytes at 1 to 3 take 1 byte."""
    lengths = {0: 8192 * 3, 1: 8192 * 3 + 1, 2: 3, 3: 3, 4: 3}
    image: list[Layer] = [("a", 1, [2, 0, 3, 1, 4])]
    store = Store(lengths, {2: 1, 3: 1, 4: 1})
    found = {one.gap_bytes: one for one in pull(store, {0, 1}, set(), image).ranges}
    assert (found[0].ranges, found[8192].ranges, found[131072].ranges) == (3, 2, 1)
    assert (found[0].bytes, found[8192].bytes, found[None].bytes) == (3, 3 + 8192, 3 + 2 * 8192)


@pytest.mark.parametrize(
    ("own", "others", "cache", "measured_by", "has_error"),
    [
        (LEAST_MEASURED, 0, 0, "set", True),
        (LEAST_MEASURED - 1, 1, 0, "image", False),
        (LEAST_MEASURED - 1, 0, 1, "cache", False),
        (0, 0, 1, "cache", False),
        (0, 0, 0, None, False),
    ],
)
def test_whose_measured_chunks_count(own: int, others: int, cache: int, measured_by: str, has_error: bool) -> None:
    lengths = dict.fromkeys(range(200), 100)
    missing, known = list(range(100)), list(range(100, 150))
    measured = {chunk: 50 + chunk % 7 for chunk in [*missing[:own], *known[:others]]} | dict.fromkeys(
        range(150, 150 + cache), 20
    )
    found = pull(Store(lengths, measured), set(known), set(), [("a", 1, missing), ("b", 1, known)])
    assert found.measured_by == measured_by
    recompressed_bytes, error_bytes = found.recompressed
    assert (recompressed_bytes is not None) == (measured_by is not None)
    assert (error_bytes is not None) == has_error


def test_the_cheaper_of_the_two_is_taken_layer_by_layer() -> None:
    """At half their length: layer a is cheaper as chunks, b is whole; equal ones are pulled whole."""
    lengths = dict.fromkeys(range(300), 1000)
    measured = {chunk: 500 + chunk % 3 - 1 for chunk in range(0, 300, 2)}
    a, b, c = list(range(100)), list(range(100, 200)), list(range(200, 300))
    found = pull(Store(lengths, measured), set(), set(), [("a", 60_000, a), ("b", 10_000, b), ("c", 54_000, c)])
    first, second, third = found.layers
    assert [layer.is_cheaper_whole for layer in found.layers] == [False, True, True]
    assert first.recompressed_bytes
    least, error_bytes = found.cheaper()
    assert least == first.recompressed_bytes + 40 * 100 + 10_000 + 54_000
    whole_error_bytes = found.recompressed.error_bytes
    assert error_bytes
    assert whole_error_bytes
    assert 0 < error_bytes < whole_error_bytes
    assert second.stored_bytes + third.stored_bytes == 64_000


def test_two_images_of_a_hundred_thousand_chunks_take_less_than_a_third_of_a_second() -> None:
    draw = np.random.default_rng(1)
    count = 140_000
    sizes, compressed = draw.integers(2048, 65536, count), draw.integers(1, 2048, count)
    compressed[draw.random(count) > 1 / 16] = 0
    shared, changed = np.arange(100_000), np.arange(100_000)
    changed[draw.integers(0, 100_000, 40_000)] = np.arange(100_000, 140_000)
    pieces = np.array_split(changed, 10)
    names = [named(str(number + 1)) for number in range(10)]
    recipes = Recipes(
        dict.fromkeys(names, 10_000), dict(zip(names, pieces, strict=True)).__getitem__, sizes.__getitem__,
        compressed.__getitem__, Sample,
    )  # fmt: skip
    taken_s = []
    for _ in range(5):
        begin = time.process_time()
        found = moves(shared, dict.fromkeys(names, 1 << 24), recipes, names)
        taken_s.append(time.process_time() - begin)
    assert found.missing > 30_000
    assert min(taken_s) < 0.3


def test_more_chunks_than_memory_is_meant_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CHUNKS", 3)
    store = Store({1: 1, 2: 1}, {})
    assert pull(store, set(), set(), [("a", 1, [1, 2, 1])]).missing == 2
    with pytest.raises(TooManyChunks):
        pull(store, set(), set(), [("a", 1, [1, 2, 1]), ("b", 1, [1])])
