"""An index of chunkd 0.1 becomes one of this version, whenever its writer is killed, and says the same as before.

The one in tests/archives/0.1 was made by the code of commit d0f4a45, with what it says in `expected.json`: layers, dead
chunks, a blob that is no layer, a failed one, an ignored place, a digest that needs a rehash, and two rows of history.
"""

from __future__ import annotations

import json
import lzma
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from chunkd.check.recount import recount
from chunkd.errors import FormatMismatch, IndexDamaged
from chunkd.figures.totals import TOTALS, Totals
from chunkd.index import records
from chunkd.index.history import moment_from_key
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.index.storage import upgrade
from chunkd.index.storage.environment import Store, reading
from chunkd.model import Digest
from chunkd.queries.history import read_history
from chunkd.queries.read import read_stats
from counts import some
from indexing import NOW_NS, edit

ARCHIVE = Path(__file__).resolve().parent.parent / "archives" / "0.1"
EXPECTED: dict[str, Any] = json.loads((ARCHIVE / "expected.json").read_text())
LATER_NS = NOW_NS + 180 * 10**9


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return unpacked(tmp_path / "state")


def unpacked(state: Path) -> Path:
    (state / "index").mkdir(parents=True)
    (state / "index" / "data.mdb").write_bytes(lzma.decompress((ARCHIVE / "data.mdb.xz").read_bytes()))
    return state


def opened(state: Path) -> Index:
    return Index(str(state), Rules(), "a test")


def says(store: Store) -> dict[str, Any]:
    """All that `expected.json` has, in its form."""
    with store.snapshot() as txn:
        head = store.head(txn)
        own = {name: getattr(head, name) for name in upgrade.HEAD}
        found = {
            "head": {"totals": {name: vars(head.totals)[name] for name in upgrade.TOTALS}} | own,
            "histogram": store.histogram(txn),
            "history": {
                str(moment_from_key(key)): vars(records.unpack_totals(value))
                for key, value in store.walk(txn, "history")
            },
            "caches": {str(number): list(cache) for number, cache in store.caches(txn).items()},
            "verified_s": store.verified_s(txn),
            "blobs": sorted(str(blob.digest) for blob in store.blobs(txn, "blobs")),
            "failed": [str(blob.digest) for blob in store.blobs(txn, "failed")],
            "ignored": {place.path: reason for place, reason in store.ignored(txn)},
            "needs_rehash": [str(records.digest_from_key(key)) for key, _ in store.walk(txn, "needs_rehash")],
        }
    stats = read_stats(store, now_ns=LATER_NS).to_json()
    found["stats"] = {name: stats[name] for name in EXPECTED["stats"]}
    found["shown"] = read_history(store, "10000d", 100, LATER_NS)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def expected() -> dict[str, Any]:
    # It ends with a digest to be hashed, and said that nothing is pending. A cache had neither warnings nor an
    # fsid, and was layerless or not.
    caches = {number: [*cache[:4], "", cache[5], [], 0] for number, cache in EXPECTED["caches"].items()}
    return EXPECTED | {"caches": caches} | {"stats": EXPECTED["stats"] | {"pending_blobs": None, "pending_bytes": None}}


def is_upgraded(state: Path) -> None:
    """The index says what it said, before and after it is closed, and a recount finds no difference."""
    index = opened(state)
    assert says(index.store) == expected()
    index.close()
    with reading(str(state)) as store, store.snapshot() as txn:
        assert recount(store, txn).differences == []  # of the totals that version 0.1 did not have too
        assert set(vars(store.head(txn).totals)) == set(TOTALS)
        assert says(store) == expected()
        assert store.format(txn) == records.FORMAT


def test_the_writer_upgrades_it_as_it_opens_it(state: Path) -> None:
    assert (ARCHIVE / "data.mdb.xz").stat().st_size < 100_000
    is_upgraded(state)


def test_who_reads_alone_is_told_what_upgrades_it(state: Path) -> None:
    with pytest.raises(FormatMismatch, match="chunkd scan") as caught, reading(str(state)):
        pass
    assert (caught.value.found, caught.value.expected) == (upgrade.FORMAT, records.FORMAT)


def test_what_is_counted_after_it_counts_as_before(state: Path) -> None:
    index = opened(state)
    with index.transaction() as change:
        for name in EXPECTED["blobs"]:
            digest = Digest(*name.split(":"))
            for place, _ in list(change.holders(digest)):
                change.release(place, digest)
            change.remove(digest)
    with index.snapshot() as txn:
        assert index.store.head(txn).totals == Totals(failed_blobs=1, failed_bytes=555)
        assert recount(index.store, txn).differences == []
    index.close()


def killed_at(state: Path, step: int) -> bool:
    """Whether a process that opens the index executes so many lines of the upgrade, and is killed there."""
    process = os.fork()
    if process == 0:
        left = step

        def in_a_line(_: FrameType, event: str, __: object) -> Any:
            nonlocal left
            if event == "line":
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return in_a_line

        def in_a_call(frame: FrameType, _: str, __: object) -> Any:
            own = (upgrade.__file__, sys.modules[Store.__module__].__file__)
            return in_a_line if frame.f_code.co_filename in own else None

        try:
            sys.settrace(in_a_call)
            opened(state)
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.counted
def test_a_writer_that_is_killed_at_any_line_leaves_it_to_the_next_one(tmp_path: Path) -> None:
    formats = set()
    for step in some(range(10_000)):
        state = unpacked(tmp_path / str(step))
        if not killed_at(state, step):
            break
        store = Store(str(state / "index"), readonly=True, any_format=True)
        with store.snapshot() as txn:
            formats.add(store.format(txn))
        store.close()
        is_upgraded(state)
    assert step > 100
    assert formats == {upgrade.FORMAT, records.FORMAT}


@pytest.mark.parametrize("key", [b"head", b"format"])
def test_a_record_that_is_damaged_is_no_index_to_be_upgraded(state: Path, key: bytes) -> None:
    edit(state, "meta", key, b"x" * 100)
    with pytest.raises(IndexDamaged):
        opened(state)


def test_a_row_of_history_that_is_none_is_left_to_check(state: Path) -> None:
    edit(state, "history", b"abcd", b"x" * 100)
    index = opened(state)
    with index.snapshot() as txn:
        assert [difference.record for difference in recount(index.store, txn).differences] == ["history"]
    index.close()


def test_an_index_that_says_an_older_format_than_it_has_is_damaged(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.close()
    edit(tmp_path, "meta", b"format", records.seal((2).to_bytes(4, "little")))
    with pytest.raises(IndexDamaged):
        opened(tmp_path)
