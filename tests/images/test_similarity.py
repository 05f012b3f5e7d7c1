from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkd.errors import TooManyImages
from chunkd.images import similarity
from chunkd.images.atoms import Weight
from chunkd.images.similarity import COMMON_FROM_ROOTS, Pair, Similarities
from counts import counted
from image_oracle import Oracle, World
from worlds import Maker, images_of, overlap, worlds


@given(worlds(), st.integers(1, 1000))
@settings(max_examples=counted(60), deadline=None)
def test_overlaps_and_clusters_are_those_of_the_chunk_sets(world: World, permille: int) -> None:
    images, oracle = images_of(world), Oracle(world)
    found = Similarities(images.chunk_parts(), len(images.graph.roots))
    parts = list(images.chunk_parts())
    sets = [oracle.chunks_of(root) for root in oracle.roots]
    assert len(sets) < COMMON_FROM_ROOTS
    clusters = [{number} for number in range(len(sets))]
    for one, mine in enumerate(sets):
        overlaps = found.overlaps(one).tolist()
        for other, theirs in enumerate(sets):
            expected = sum(mine[chunk] for chunk in mine.keys() & theirs.keys())
            assert overlap(parts, 1 << one, 1 << other).bytes == expected
            assert overlap(parts, 1 << other, 1 << one).bytes == expected
            assert overlaps[other] == (expected if one < other else 0)
            union = sum((mine | theirs).values())
            assert (expected == union) == (mine == theirs)
            if expected and Fraction(expected, union) >= Fraction(permille, 1000):
                joined = clusters[one] | clusters[other]
                for number in joined:
                    clusters[number] = joined
    assert {frozenset(group) for group in found.clusters(permille)} == {
        frozenset(group) for group in clusters if len(group) > 1
    }


def test_clusters_and_pairs() -> None:
    make = Maker()
    for at, (name, chunks) in enumerate(
        {
            "a:v1": (0, 1, 2, 3), "a:v2": (0, 1, 2, 4), "b:v1": (0, 1, 5, 6), "c:v1": (7, 8), "c:v2": (7, 8, 9),
            "d:v1": (10,),
        }.items(), 1,
    ):  # fmt: skip
        make.name(name, make.image(make.layer(*chunks)), at)
    images = images_of(make.world)
    found = Similarities(images.chunk_parts(), len(images.graph.roots))
    assert found.clusters(500) == [[0, 1], [3, 4]]
    assert found.clusters(250) == [[0, 1, 2], [3, 4]]
    assert found.clusters(1000) == []
    assert Fraction(215, 324) > Fraction(663, 1000)
    assert found.clusters(663) == [[3, 4]]
    assert found.clusters(664) == []
    repositories = [root.repositories for root in images.graph.roots]
    assert found.largest(9, repositories) == [Pair(0, 2, 201), Pair(1, 2, 201)]
    assert found.largest(1, repositories) == [Pair(0, 2, 201)]
    assert found.common_bytes == 0


@given(st.integers(2, 40))
def test_what_most_images_have_makes_none_alike(count: int) -> None:
    """Zeros and padding, from 20 images on; and never what half of them have."""
    everybody, half = (1 << count) - 1, (1 << count // 2) - 1
    atoms = {everybody: Weight(1000, 1), half: Weight(10, 1), 0: Weight(7, 1)}
    atoms |= {1 << at: Weight(20, 1) for at in range(count) if 1 << at not in atoms}
    found = Similarities([atoms], count)
    assert found.common_bytes == (1000 if count >= COMMON_FROM_ROOTS else 0)
    overlaps = {int(size) for one in range(count) for size in found.overlaps(one)} - {0}
    if count >= COMMON_FROM_ROOTS:
        assert overlaps == {10}
        assert [len(cluster) for cluster in found.clusters(100)] == [count // 2]
    else:
        assert overlaps <= {1000, 1010}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "MOST_MEMBERS", 10)
    atoms = {0b11 << at: Weight(1, 1) for at in range(5)}
    found = Similarities([atoms], 6)
    assert [found.overlaps(one).tolist() for one in (0, 4, 5)] == [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6]
    with pytest.raises(TooManyImages):
        Similarities([atoms, {1: Weight(1, 1)}], 6)
