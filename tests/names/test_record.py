from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.model import Digest
from chunkd.names.name import Name, Part, Standing
from chunkd.names.record import BadNames, Kept, decode, encode, key_of

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
    ],
)  # fmt: skip
def test_what_no_names_are_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(BadNames):
        decode(json.dumps(change(json.loads(encode(ONE))), separators=(",", ":")).encode())
