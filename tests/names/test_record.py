from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.model import Digest
from chunkd.names.name import Name, Part, Standing
from chunkd.names.record import (
    BadNames,
    Kept,
    Reading,
    alike,
    decode,
    decode_reading,
    encode,
    encode_reading,
    key_of,
    reading_of,
    still_holds,
)
from chunkd.sources.names_reader import NamesRead

DIGESTS = st.binary(min_size=32, max_size=32).map(lambda made: Digest("sha256", made.hex()))
TEXTS = st.one_of(st.text(max_size=20), st.binary(max_size=20).map(lambda made: made.decode(errors="surrogateescape")))
TIMES = st.integers(0, 1 << 62)
NAMES = st.builds(Name, TEXTS, TEXTS, TEXTS, DIGESTS, TIMES, st.sampled_from(Standing))
PARTS = st.builds(Part, st.sampled_from(["layout", "registry"]), TEXTS, st.lists(NAMES).map(tuple), TEXTS, TIMES)
KEPT = st.builds(Kept, TEXTS, PARTS, TIMES)
ONE = Kept("/base", Part("layout", "", (Name("a:b", "a", "b", Digest("sha256", "0" * 64), 7),)), 9)


@given(KEPT)
def test_names_come_back_as_they_were(kept: Kept) -> None:
    assert decode(encode(kept)) == kept


@given(KEPT, KEPT, TIMES)
def test_only_the_time_of_reading_may_differ_in_what_is_alike(one: Kept, other: Kept, at_ns: int) -> None:
    assert alike(encode(one), encode(one._replace(read_at_ns=at_ns)))
    assert alike(encode(one), encode(other)) == (one[:2] == other[:2])


@given(st.builds(Reading, st.integers(1, 1 << 62), st.lists(TEXTS).map(tuple), TIMES))
def test_a_reading_comes_back_as_it_was(reading: Reading) -> None:
    assert decode_reading(encode_reading(reading)) == reading


@pytest.mark.parametrize(
    "value",
    [b"", b"[", b"[]", b"[1,[],0,0]", b"[0,[],0]", b"[-1,[],0]", b'["1",[],0]', b"[1,[5],0]", b"[1, [],0]", b"{}"],
)
def test_what_no_reading_is_is_refused(value: bytes) -> None:
    with pytest.raises(BadNames):
        decode_reading(value)


def test_what_is_said_of_unread_places_is_bounded() -> None:
    reading = reading_of(5, [NamesRead("/base", problem="x" * 5000)] * 500)
    assert (len(reading.unread), len(reading.unread[0]), reading.unread_places) == (20, 1000, 500)


@pytest.mark.parametrize(
    ("source", "where", "held"),
    [
        ("", "", True), ("registry", "", True), ("layout", "", False), ("registry", "a", True),
        ("registry", "a/b", True), ("registry", "a/", True), ("registry", "a/b/", False), ("registry", "b", False),
        ("registry", "a/b/c", False), ("registry", "a/bc", False),
    ],
)  # fmt: skip
def test_what_still_holds_when_a_place_could_not_be_read(source: str, where: str, held: bool) -> None:
    kept = Kept("/base", Part("registry", "a/b", ()), 1)
    assert still_holds(kept, {("/base", source, where)}) == held
    assert not still_holds(kept, {("/other", source, where)})


def test_many_unread_places_take_no_longer() -> None:
    """The writer asks for each part that was not read, of which there may be 131,072."""
    unread = {("/base", "registry", f"org/app{number}") for number in range(4096)}
    parts = [Kept("/base", Part("registry", f"org/app{number}/deep", ()), 1) for number in range(2048, 6144)]
    began_s = time.process_time()
    assert sum(still_holds(kept, unread) for kept in parts) == 2048
    assert time.process_time() - began_s < 1


def test_the_key_is_of_the_place_and_not_of_what_was_read_there() -> None:
    assert key_of(ONE.base, ONE.part) == key_of(ONE.base, Part("layout", "", (), "a problem", 5))
    places = [("/base", "layout", ""), ("/base", "layout", "a"), ("/base", "registry", ""), ("/other", "layout", "")]
    assert len({key_of(base, Part(source, where, ())) for base, source, where in places}) == len(places)


@pytest.mark.parametrize("end", range(len(encode(ONE))))
def test_what_is_cut_is_refused(end: int) -> None:
    with pytest.raises(BadNames):
        decode(encode(ONE)[:end])


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields[:-1], lambda fields: [*fields, 1], lambda fields: {"a": fields},
        lambda fields: [*fields[:-1], [["a"]]], lambda fields: [*fields[:-1], 5],
        lambda fields: [*fields[:-1], [[*fields[-1][0][:3], "sha256:0", 7, "named"]]],
        lambda fields: [*fields[:-1], [[*fields[-1][0][:4], "7", "named"]]],
        lambda fields: [*fields[:-1], [[*fields[-1][0][:5], "unheard of"]]],
        lambda fields: [*fields[:-1], [[5, *fields[-1][0][1:]]]],
        lambda fields: [str(fields[0]), *fields[1:]], lambda fields: [fields[0], 5, *fields[2:]],
        lambda fields: [*fields[:2], 5, *fields[3:]], lambda fields: [*fields[:5], "7", *fields[6:]],
    ],
)  # fmt: skip
def test_what_no_names_are_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(BadNames):
        decode(json.dumps(change(json.loads(encode(ONE))), separators=(",", ":")).encode())
