"""The order of versions, and of pushes."""

from __future__ import annotations

import random

import pytest

from chunkd.images.versions import PUSHES, VERSIONS, by_push, by_version, version_of
from chunkd.names.name import Name, Standing
from worlds import digest, real

IN_ORDER = (
    "0.9", "1", "1.0.1-alpha", "1.0.1-alpha.1", "1.0.1-alpha.beta", "1.0.1-beta", "1.0.1-beta.2", "1.0.1-beta.11",
    "1.0.1-rc.1", "v1.0.1", "1.2rc9", "1.2RC10", "v1.2", "1.2.3-4", "1.2.3", "1.9.12", "1.10-rc1", "1.10",
    "2024-01-09", "2024-01-10", "2024", "20240101",
)  # fmt: skip


def name(tag: str, number: int, at_ns: int = 0, standing: Standing = Standing.NAMED) -> Name:
    return Name(f"a/b:{tag}", "a/b", tag, real(digest(number)), at_ns, standing)


def test_versions_stand_as_semver_has_them() -> None:
    names = [name(tag, number) for number, tag in enumerate(IN_ORDER)]
    for seed in range(5):
        shuffled = random.Random(seed).sample(names, len(names))
        found = by_version(shuffled)
        assert [step.tags for step in found.steps if not step.series] == [(tag,) for tag in IN_ORDER if known(tag)]
        assert (found.kind, found.unordered) == (VERSIONS, ())


def known(tag: str) -> bool:
    found = version_of(tag)
    return found is not None and not found.variant


@pytest.mark.parametrize(
    "tag", ["latest", "", "v", "stable-1.2", "1.", ".1", "1..2", "1-", "3a4", "12ab34f", "sha256-" + "a" * 64, "1._2",
            "9" * 19, "vv1", "1\u0660"],
)  # fmt: skip
def test_what_is_no_version(tag: str) -> None:
    assert version_of(tag) is None


@pytest.mark.parametrize(
    ("tag", "variant"),
    [("1.2-alpine", "alpine"), ("3.9-slim-rc", "slim-rc"), ("1.2.x", "x"), ("v1.2-14-gabcdef", "14-gabcdef"),
     ("1.2-rc1", ""), ("1.2_3", "")],
)  # fmt: skip
def test_variants(tag: str, variant: str) -> None:
    found = version_of(tag)
    assert found
    assert found.variant == variant


def test_a_variant_is_compared_with_itself_alone() -> None:
    found = by_version([name(tag, number) for number, tag in enumerate(["1.1", "1.1-x", "1.2-x", "1.2", "1.0-y"])])
    assert [(step.series, step.tags[0]) for step in found.steps] == [
        ("", "1.1"), ("", "1.2"), ("x", "1.1-x"), ("x", "1.2-x"), ("y", "1.0-y"),
    ]  # fmt: skip
    alone = by_version([name(tag, number) for number, tag in enumerate(["1.1", "1.1-x", "1.2-y", "latest"])])
    assert (alone.kind, alone.unordered) == (None, ("latest",))


def test_an_image_stands_where_its_most_exact_tag_does() -> None:
    """A tag such as 1.2 moves with its last patch; one in two variants belongs to the plain one."""
    tags = [("1", 3), ("1.2", 3), ("1.2.4", 3), ("1.2.4-bookworm", 3), ("1.1", 1), ("1.1.9", 1), ("3", 1), ("1.2.3", 2)]
    found = by_version([name(*one) for one in tags])
    assert [step.tags for step in found.steps] == [("1.1.9", "1.1", "3"), ("1.2.3",), ("1.2.4", "1.2", "1")]


def test_a_tag_that_two_caches_have_is_the_one_that_was_pushed_last() -> None:
    names = [name("1", 1), name("2", 2, 5), name("2", 3, 4), name("2", 4, 5)]
    for some in (names, names[::-1]):
        assert [step.digest for step in by_version(some).steps] == [real(digest(1)), real(digest(4))]


def test_pushes_stand_by_their_first_known_time() -> None:
    names = [
        name("latest", 1, 30), name("old", 1, 10), name("latest", 2, 20, Standing.EARLIER), name("latest", 3, 20),
        name("never", 4), name("late", 5), name("late", 5, 90),
    ]  # fmt: skip
    for seed in range(5):
        found = by_push(random.Random(seed).sample(names, len(names)))
        assert found.kind == PUSHES
        assert [step.tags for step in found.steps] == [("latest", "old"), ("latest",), ("latest",), ("late",)]
        assert [step.digest for step in found.steps[1:3]] == [real(digest(2)), real(digest(3))]
        assert (found.unordered, found.same_time) == (("never",), 1)
    assert by_push([name("a", 1, 1), name("b", 2)]).kind is None
