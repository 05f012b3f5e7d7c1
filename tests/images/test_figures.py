from __future__ import annotations

import random
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.images import atoms
from chunkd.images.atoms import Atoms, Chunks, Parts, Weight, members, regrouped
from chunkd.images.columns import Column, freed
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, build
from chunkd.model import Digest
from chunkd.names.name import Name
from counts import counted
from image_oracle import Oracle, World
from worlds import Maker, chunks_of, images_of, moved, overlap, worlds

WORLDS = settings(max_examples=counted(120), deadline=None)


def without_order(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "order"}


def sets_of(images: Images, draw: random.Random, count: int) -> list[int]:
    return [draw.getrandbits(len(images.graph.roots) + 1) % (1 << len(images.graph.roots)) for _ in range(count)]


def assert_like_the_oracle(world: World) -> tuple[Images, Oracle]:
    images, oracle = images_of(world), Oracle(world)
    assert without_order(images.to_json()) == oracle.images()
    assert without_order(images.by_repository()) == oracle.by_repository()
    assert images.summary() == oracle.summary()
    return images, oracle


@WORLDS
@given(worlds(), st.integers(0, 1 << 30))
def test_all_figures_are_those_of_the_oracle(world: World, seed: int) -> None:
    images, oracle = assert_like_the_oracle(world)
    for some in sets_of(images, random.Random(seed), 3):
        roots = [str(images.graph.roots[number].digest) for number in members(some)] if some else []
        assert images.freed(some) == oracle.freed(roots)


# --- what must hold to the byte ------------------------------------------------------------------------------------


def check_sums(found: dict[str, Any], what: str, stored_bytes: int, unique_bytes: int) -> None:
    rows = found[what]
    for row in rows:
        chunks = row["chunks"]
        if chunks is not None:  # 1
            parts = chunks["exclusive_bytes"] + chunks["shared_bytes"] + chunks["repeated_bytes"]
            assert parts == chunks["uncompressed_bytes"]
            assert min(chunks["repeated_bytes"], chunks["shared_bytes"]) >= 0
    for name in ("fair_share_bytes", "new_bytes"):  # 2 and 3
        assert sum(row["stored"][name] for row in rows) + found["unheld"]["stored_bytes"] == stored_bytes
        told = sum(row["chunks"][name] for row in rows if row["chunks"]) + found["partial"][name]
        assert told + found["unheld"]["unique_bytes"] == unique_bytes
    assert found["partial"][what] == sum(row["chunks"] is None for row in rows)


@WORLDS
@given(worlds(), st.integers(0, 1 << 30))
def test_the_sums_that_must_hold(world: World, seed: int) -> None:
    images, draw = images_of(world), random.Random(seed)
    stored_bytes = sum(map(world.size, world.present))
    unique_bytes = sum(dict(chunk for layer in world.layers.values() for chunk in layer).values())
    check_sums(images.to_json(), "images", stored_bytes, unique_bytes)
    check_sums(images.by_repository(), "repositories", stored_bytes, unique_bytes)  # 7
    everything = (1 << len(images.graph.roots)) - 1
    for parts, total in (([images.stored], stored_bytes), (list(images.chunk_parts()), unique_bytes)):
        column = Column(parts, len(images.graph.roots))
        assert column.total_bytes == total
        rows = column.rows
        for number, row in enumerate(rows):  # 4
            assert freed(parts, 1 << number).bytes == row.exclusive_bytes
        assert freed(parts, everything).bytes == total - column.unheld.bytes
        for _ in range(3):
            one, other = sets_of(images, draw, 2)
            other &= ~one
            assert freed(parts, one | other).bytes >= freed(parts, one).bytes + freed(parts, other).bytes
            if rows:  # 5
                a, b = draw.randrange(len(rows)), draw.randrange(len(rows))
                assert moved(parts, 0, 1 << b) == rows[b].referenced
                assert moved(parts, 1 << a, 1 << a) == Weight()
                left = rows[a].referenced.bytes + moved(parts, 1 << a, 1 << b).bytes
                assert left == rows[b].referenced.bytes + moved(parts, 1 << b, 1 << a).bytes
                both_bytes = rows[a].referenced.bytes + rows[b].referenced.bytes - left
                assert overlap(parts, 1 << a, 1 << b).bytes == both_bytes == overlap(parts, 1 << b, 1 << a).bytes


@WORLDS
@given(worlds())
def test_new_bytes_add_up_in_any_order(world: World) -> None:
    """3: the order is the numbers' own, so the atoms are regrouped by other numbers."""
    images = images_of(world)
    count = len(images.graph.roots)
    order = random.Random(count).sample(range(count), count)
    again = Column(regrouped(images.chunk_parts(), [1 << number for number in order]), count)
    assert sum(row.new_bytes for row in again.rows) + again.unheld.bytes == again.total_bytes
    for number, row in enumerate(Column(images.chunk_parts(), count).rows):
        other = again.rows[order[number]]
        assert (row.referenced, row.exclusive_bytes) == (other.referenced, other.exclusive_bytes)


@given(worlds(), st.integers(0, 1 << 30))
@settings(max_examples=counted(60), deadline=None)
def test_any_order_of_arrival_gives_the_same_figures(world: World, seed: int) -> None:
    """Also of the numbers of chunks, which are the order of their arrival, and with numbers that are not in use."""
    draw = random.Random(seed)
    new = draw.sample(range(40), 12)
    shuffled = World(
        names=draw.sample(world.names, len(world.names)),
        measured={new[chunk]: size for chunk, size in world.measured.items()},
        created=world.created,
    )
    for name in draw.sample(sorted(world.layers), len(world.layers)):
        shuffled.layers[name] = [(new[chunk], length) for chunk, length in world.layers[name]]
    for mine, theirs in ((shuffled.sizes, world.sizes), (shuffled.documents, world.documents)):
        for name in draw.sample(sorted(theirs), len(theirs)):
            mine[name] = theirs[name]  # type: ignore[assignment]
    assert images_of(shuffled).to_json() == images_of(world).to_json()


def merged(parts: Parts) -> Atoms:
    found: Atoms = {}
    for some in parts:
        for holders, weight in some.items():
            atoms.add(found, holders, weight)
    return found


@given(worlds(), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=counted(60), deadline=None)
def test_ranges_of_numbers_change_nothing(world: World, numbers: int, classes: int, sets: int) -> None:
    images = images_of(world)
    expected, figures = merged(images.chunk_parts()), images.to_json()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atoms, "MOST_NUMBERS", numbers)
        patch.setattr(atoms, "MOST_CLASSES", classes)
        patch.setattr(atoms, "MOST_SET_BYTES", sets)
        assert merged(images.chunk_parts()) == expected
        assert images.to_json() == figures


def test_a_range_with_too_many_classes_is_taken_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    make, read = Maker(), list[str]()
    for at in range(8):
        make.image(make.layer(at, at + 1, at + 2), make.layer(at))
    images, chunks = images_of(make.world), chunks_of(make.world)
    counted = replace(chunks, recipe=lambda digest: read.append(str(digest)) or chunks.recipe(digest))  # type: ignore[func-returns-value]
    layers = [digest for digest, _ in images.graph.holders_of() if str(digest) in make.world.layers]
    whole = list(atoms.chunk_atoms(images.graph, layers, counted))
    assert (len(whole), len(read)) == (1, 16)
    for bound in ("MOST_CLASSES", "MOST_SET_BYTES"):
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr(atoms, bound, 10)
            parts = list(atoms.chunk_atoms(images.graph, layers, counted))
        assert len(parts) > 1
        assert len(read) > 32
        assert merged(parts) == merged(whole)


# --- exact numbers -------------------------------------------------------------------------------------------------


def test_fair_shares_are_rounded_by_largest_remainder() -> None:
    column = Column([{0b111: Weight(100, 1), 0b001: Weight(1, 1)}, {0: Weight(5, 1)}], 3)
    assert [row.fair_share_bytes for row in column.rows] == [35, 33, 33]
    assert (column.total_bytes, column.unheld.bytes) == (106, 5)
    column = Column([{0b11: Weight(1, 1), 0b111: Weight(1, 1), 0b110: Weight(1, 1)}], 3)
    # 5/6, 4/3 and 5/6.
    assert [row.fair_share_bytes for row in column.rows] == [1, 1, 1]


def test_fair_shares_are_exact_with_many_holders() -> None:
    draw = random.Random(1)
    count = 300
    some = {
        draw.getrandbits(count) & draw.getrandbits(count) | 1 << at % count: Weight(draw.getrandbits(50), 1)
        for at in range(500)
    }
    some |= {(1 << at) - 1: Weight(draw.getrandbits(60), 1) for at in range(1, count)}
    exact = [Fraction(0)] * count
    for holders, weight in some.items():
        for holder in members(holders).tolist():
            exact[holder] += Fraction(weight.bytes, holders.bit_count())
    expected = [int(share) for share in exact]
    left = sum(weight.bytes for weight in some.values()) - sum(expected)
    assert 0 < left < count
    for holder in sorted(range(count), key=lambda one: expected[one] - exact[one])[:left]:
        expected[holder] += 1
    column = Column([some], count)
    assert [row.fair_share_bytes for row in column.rows] == expected
    sets = sorted(some)
    again = Column([{holders: some[holders] for holders in sets[at::3]} for at in range(3)], count)
    assert again.rows == column.rows


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 50)), max_size=12))
def test_equal_shares_are_equal_however_they_were_summed(some: list[tuple[int, int]]) -> None:
    """Each of six holders has the same bytes with as many others, in another order: all shares are equal, and the
    earlier ones are rounded up.
    """
    parts = [
        {1 << first | ((1 << size) - 1) << 6 + 6 * number: Weight(size_bytes, 1)}
        for first in range(6)
        for number, (size, size_bytes) in enumerate(some[first % 3 :] + some[: first % 3])
    ]
    shares = [row.fair_share_bytes for row in Column(parts, 6 + 6 * 12).rows[:6]]
    exact = sum((Fraction(size_bytes, size + 1) for size, size_bytes in some), Fraction())
    assert all(abs(share - exact) < 1 for share in shares)
    assert shares == sorted(shares, reverse=True)


def test_a_third_and_a_sixth_are_a_half() -> None:
    """Five holders have a half, and four are rounded up: the last one is not, though the first one's is a sum."""
    some = {0b11 << 10 | 1: 1, 0b11111 << 20 | 1: 1, 0b11 << 1: 1, 0b11 << 3: 1}
    column = Column([{holders: Weight(size, 1) for holders, size in some.items()}], 30)
    assert [row.fair_share_bytes for row in column.rows[:5]] == [1, 1, 1, 1, 0]
    assert sum(row.fair_share_bytes for row in column.rows) == 4


def test_sums_of_products_are_exact() -> None:
    """Chunks of 16 MiB, whose squares do not fit into a float, nor their sum into 63 bits."""
    length = (1 << 24) - 1
    many = 1 << 16
    make = Maker()
    layer = make.layer()
    make.world.layers[layer] = [(0, length)]
    make.image(layer)
    graph = images_of(make.world).graph
    lengths = np.full(many, length, np.int64)
    chunks = atoms.Chunks(
        many, lambda _: np.arange(many), lambda low, high: lengths[low:high],
        lambda low, high: (np.arange(low, high), lengths[low:high] - 2),
    )  # fmt: skip
    [digest] = [one for one, holders in graph.holders_of() if holders and str(one) == layer]
    [(holders, weight)] = merged(atoms.chunk_atoms(graph, [digest], chunks)).items()
    assert (holders, weight.bytes, weight.number) == (1, many * length, many)
    y = length - 2
    assert weight.sample == (many, many * length, many * y, many * length**2, many * length * y, many * y**2)
    [row] = Column([{1: weight}], 1).rows
    assert row.referenced == weight


@pytest.mark.parametrize("holders", [1, 2, 0b1011, 1 << 70, (1 << 100) - 1])
def test_members(holders: int) -> None:
    assert members(holders).tolist() == [at for at in range(101) if holders >> at & 1]


def test_a_repository_for_each_image_takes_no_longer_than_images() -> None:
    """As where each service has one. Each image's place among all repositories is not searched for."""
    digests = [Digest("sha256", f"{number:064x}") for number in range(16_000)]
    blobs = {digest: BlobFacts(10) for digest in digests}
    graph = build(blobs, [Name(f"app{digest.hex}:v1", f"app{digest.hex}", "v1", digest) for digest in digests])
    empty = np.empty(0, np.int64)
    images = Images.of(graph, blobs, {}, Chunks(0, lambda _: empty, lambda _low, _high: empty))
    began_s = time.process_time()
    found = images.by_repository()["repositories"]
    assert time.process_time() - began_s < 6
    assert [row["repository"] for row in found] == [f"app{root.digest.hex}" for root in graph.roots]
    assert {row["images"] for row in found} == {1}


def test_no_image_at_all() -> None:
    make = Maker()
    assert_like_the_oracle(make.world)
    make.layer(1, 2)
    images, _ = assert_like_the_oracle(make.world)
    assert images.to_json()["unheld"] == {"blobs": 1, "stored_bytes": 50, "unique_bytes": 203}
