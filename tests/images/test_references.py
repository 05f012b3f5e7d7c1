"""Which images a reference means, and what is said when it is none."""

from __future__ import annotations

import difflib
import time
from array import array

import pytest

from chunkd.errors import UsageError
from chunkd.images.graph import Graph
from chunkd.images.references import alike, latest, one, resolve
from worlds import Maker, graph_of


class Shop:
    def __init__(self) -> None:
        self.make = make = Maker()
        self.v1, self.v2, self.v3, self.untagged = (make.image(make.layer(number)) for number in range(4))
        make.name("shop/api:v1", self.v1, 1)
        make.name("shop/api:v2", self.v2, 2)
        make.name("shop/api:v3", self.v3, 3)
        make.name("shop/api:latest", self.v3, 3)
        make.name("shop/web:v1", self.v2, 2)

    @property
    def graph(self) -> Graph:
        return graph_of(self.make.world)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def digests(graph: Graph, images: int) -> set[str]:
    return {str(root.digest) for number, root in enumerate(graph.roots) if images >> number & 1}


def test_a_name_and_a_digest_mean_one_image(shop: Shop) -> None:
    graph = shop.graph
    references = {
        "shop/api:v3": shop.v3, "shop/api:latest": shop.v3, "shop/web:v1": shop.v2, shop.untagged: shop.untagged,
        shop.v1.removeprefix("sha256:"): shop.v1,
    }  # fmt: skip
    for reference, digest in references.items():
        assert str(graph.roots[one(graph, reference)].digest) == digest
    found = resolve(graph, ["shop/api:v3", shop.untagged])
    assert digests(graph, found.images) == {shop.v3, shop.untagged}
    assert found.kept == {}


def test_the_beginning_of_a_digest(shop: Shop) -> None:
    shop.make.world.sizes["sha256:" + "abcd" + "0" * 60] = 1
    shop.make.name("odd:1", "sha256:" + "abcd" + "0" * 60)
    graph = shop.graph
    for reference in ("abcd", "sha256:abcd", "abcd000"):
        assert graph.roots[one(graph, reference)].names == ("odd:1",)
    for reference in ("abc", "sha512:abcd", "abcde", "ABCD"):
        with pytest.raises(UsageError):
            one(graph, reference)


def test_a_name_comes_before_the_beginning_of_a_digest(shop: Shop) -> None:
    shop.make.name("0000", shop.v1)
    assert str(shop.graph.roots[one(shop.graph, "0000")].digest) == shop.v1


def test_an_ambiguous_reference_names_what_it_may_be(shop: Shop) -> None:
    with pytest.raises(UsageError) as refused:
        one(shop.graph, "sha256:0000")
    assert shop.v1 in str(refused.value)
    assert "shop/api:v1" in str(refused.value)
    shop.make.name("shop/api:v1", shop.untagged)  # by another source
    with pytest.raises(UsageError) as refused:
        one(shop.graph, "shop/api:v1")
    assert {shop.v1, shop.untagged} <= set(str(refused.value).replace(",", "").split())


@pytest.mark.parametrize(
    ("reference", "near"),
    [
        ("shop/api:v9", ["shop/api:v1", "shop/api:latest"]),
        ("shop/api", ["shop/api:v1"]),
        ("shop/ap:v2", ["shop/api:v2"]),
        ("shop/x", ["shop/api:v1"]),
        ("shop/api:x*", ["shop/api:v1"]),
    ],
)
def test_an_unknown_reference_names_near_ones(shop: Shop, reference: str, near: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        resolve(shop.graph, [reference])
    for name in near:
        assert name in str(refused.value)


@pytest.mark.parametrize("reference", ["shop/api:v1", "shop/*"])
def test_where_no_image_is_known_that_is_said(reference: str) -> None:
    with pytest.raises(UsageError, match="no images"):
        resolve(Graph((), (), array("Q"), ()), [reference])


def test_a_part_of_an_image_is_no_image(shop: Shop) -> None:
    layer = next(iter(shop.make.world.layers))
    with pytest.raises(UsageError) as refused:
        one(shop.graph, layer)
    assert "shop/api:v1" in str(refused.value)


def test_messages_do_not_steer_a_terminal(shop: Shop) -> None:
    shop.make.name("shop/api:\x1b[2J", shop.v1)
    for reference in ("shop/api:v9", "\x1b]0;", "\x1b*", "sha256:0000"):
        with pytest.raises(UsageError) as refused:
            resolve(shop.graph, [reference])
        assert str(refused.value).isprintable()


def test_a_glob_takes_images_all_of_whose_names_match(shop: Shop) -> None:
    graph = shop.graph
    found = resolve(graph, ["shop/api:v*"])
    assert digests(graph, found.images) == {shop.v1}
    kept = {str(graph.roots[number].digest): names for number, names in found.kept.items()}
    assert kept == {shop.v2: ("shop/web:v1",), shop.v3: ("shop/api:latest",)}
    every = resolve(graph, ["*"])
    assert digests(graph, every.images) == {shop.v1, shop.v2, shop.v3}  # not the one without a name
    assert every.kept == {}


def test_a_name_with_brackets_is_a_name(shop: Shop) -> None:
    """Containerd's names have the registry's address, which may be one of IPv6."""
    name = "[fd00::1]:5000/shop/api:v1"
    shop.make.name(name, shop.v1)
    graph = shop.graph
    assert digests(graph, resolve(graph, [name]).images) == {shop.v1}
    assert digests(graph, resolve(graph, [name, "shop/[aw]*:*"]).images) == {shop.v1, shop.v2, shop.v3}
    shop.make.name("*", shop.v1)  # does not make the glob mean one image
    assert digests(shop.graph, resolve(shop.graph, ["*"]).images) == {shop.v1, shop.v2, shop.v3}


def test_a_digest_is_not_compared_with_names(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With names that have digests, as signatures have, that takes a millisecond a name."""
    monkeypatch.setattr(difflib, "get_close_matches", None)
    for reference in ("sha256:" + 64 * "0", "sha512:12345", 40 * "0"):
        with pytest.raises(UsageError):
            resolve(shop.graph, [reference])


def test_names_as_hostile_as_can_be_are_compared_in_bounded_time() -> None:
    names = [("ab" * 100)[: 199 - number % 50] + f"{number:06}" for number in range(20_000)]
    begin = time.process_time()
    alike(("ab" * 100)[:199], names)
    assert time.process_time() - begin < 6.0


def test_several_references_together(shop: Shop) -> None:
    graph = shop.graph
    both = resolve(graph, ["shop/api:*", "shop/web:?1"])
    assert digests(graph, both.images) == {shop.v1, shop.v2, shop.v3}
    with_one = resolve(graph, ["shop/api:v[12]", "shop/web:v1"])
    assert digests(graph, with_one.images) == {shop.v1, shop.v2}
    assert with_one.kept == {}


def test_the_latest_of_each_repository(shop: Shop) -> None:
    graph = shop.graph
    everything = (1 << len(graph.roots)) - 1
    # v3 is the latest of shop/api, v2 of shop/web; what has no repository is one by itself.
    assert digests(graph, latest(graph, everything, 1)) == {shop.v3, shop.v2, shop.untagged}
    assert latest(graph, everything, 9) == everything
    of_two = resolve(graph, ["shop/api:v1", "shop/api:v2"]).images
    assert digests(graph, latest(graph, of_two, 1)) == {shop.v2}
    assert latest(graph, 0, 1) == 0
