"""How blobs are dealt out in tasks, which count as done, and what becomes of tasks that die."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, write_blob
from chunkd.cluster import engine, scan, scan_task, tasks
from chunkd.cluster.engine import ALLOWED_FAILURES, DaskMissing, EngineGone, Local, make_engine
from chunkd.cluster.listing import Where, source_id
from chunkd.errors import UsageError
from chunkd.fleet import segment
from chunkd.fleet.segment import SegmentRules
from chunkd.fleet.store import Store
from chunkd.index.records import Rules
from chunkd.model import Caps, Digest
from chunkd.worker import spawn
from fleets import failed, split
from indexing import blob_of, chunks_of, digest_of
from stores import Blobs, store_at
from working import Leaving

Listed = dict[Digest, list[Where]]
BLOBS: Blobs = {number: chunks_of(range(number * 40, number * 40 + 60)) for number in range(1, 5)} | {20: []}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(tmp_path / "store")


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_is_bounded_and_the_order_is_kept(seed: int) -> None:
    draw = random.Random(seed)
    sizes = sorted((draw.choice((10**6, 3 * 10**9, 20 * 10**9)) for _ in range(4000)), reverse=True)
    made = list(tasks.split(list(zip(enumerate(sizes), sizes, strict=True)), 4))
    assert [blob for task in made for blob in task] == list(enumerate(sizes))
    of_tasks = [[size for _, size in task] for task in made]
    for task in of_tasks:
        assert len(task) <= tasks.TASK_BLOBS
        assert sum(task) <= tasks.TASK_BYTES or len(task) == 1
    assert any(len(task) == 1 and task[0] > tasks.TASK_BYTES for task in of_tasks)
    assert any(len(task) == tasks.TASK_BLOBS for task in of_tasks)


def test_with_little_to_do_each_process_has_some() -> None:
    assert len(list(tasks.split([("a", 10**6)] * 50, 8))) == 1
    assert 32 <= len(list(tasks.split([("a", 10**8)] * 320, 8))) <= 33
    assert list(tasks.split([], 8)) == []


def test_shards_take_each_digest_once() -> None:
    digests = [digest_of(number) for number in range(500)]
    shards = [tasks.Shard(number, 7) for number in range(7)]
    assert all(sum(shard.has(digest) for shard in shards) == 1 for digest in digests)
    assert all(30 < sum(map(shard.has, digests)) < 120 for shard in shards)


# --- what is done -----------------------------------------------------------------------------------------------------


def named(number: int) -> Digest:
    return blob_of(number, ()).digest


def places(numbers: Iterable[int], sizes: Mapping[int, int] | None = None) -> Listed:
    return {named(number): [Where("a", (sizes or {}).get(number, 1000 + number))] for number in numbers}


def test_what_a_finished_segment_has_is_done(store: Store) -> None:
    rules = SegmentRules.of(Rules())
    assert scan.done(store, rules, places(BLOBS)) == {}
    made = segment.write(store, Rules(), split(BLOBS, [1, 2, 20]))
    found = scan.done(store, rules, places(BLOBS))
    assert {row[3] for row in found.values()} == {made}
    assert found.keys() == {named(number) for number in (1, 2, 20)}
    # A file of another size is another file.
    assert named(1) not in scan.done(store, rules, places(BLOBS, {1: 1}))
    Path(store.path, f"segments/{made}.blobs.parquet").unlink()
    assert scan.done(store, rules, places(BLOBS)) == {}


@pytest.mark.parametrize("first", [True, False])
def test_a_counted_blob_wins_over_one_that_failed(store: Store, first: bool) -> None:
    entries = [split(BLOBS, [2]), [failed(2, 1002)]]
    for one in entries if first else entries[::-1]:
        segment.write(store, Rules(), one)
    assert [row[1] for row in scan.done(store, SegmentRules.of(Rules()), places([2])).values()] == ["layer"]


def test_by_other_rules_only_what_is_still_so_is_done(store: Store) -> None:
    rules = Rules()
    segment.write(store, rules, [*split(BLOBS, [1, 2]), failed(30, 1030)])
    listed_blobs = places([1, 2, 30])
    assert len(scan.done(store, SegmentRules.of(rules), listed_blobs)) == 3
    for other in (replace(rules, decoder="another"), replace(rules, caps=Caps(ratio=7))):
        found = scan.done(store, SegmentRules.of(other), listed_blobs)
        assert found.keys() == {named(1), named(2)}
    for other in (
        replace(rules, measure=replace(rules.measure, library="another")),
        replace(rules, measure=replace(rules.measure, one_in=1)),
    ):
        assert scan.done(store, SegmentRules.of(other), listed_blobs) == {}


# --- a task -----------------------------------------------------------------------------------------------------------


def test_a_task_goes_on_when_a_worker_that_was_leaving_has_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "Pool", Leaving)
    cache = tmp_path / "cache"
    cache.mkdir()
    paths = [write_blob(cache, gz(layer(number, 20_000)))[1] for number in range(4)]
    blobs = [("sha256", path.name, [(str(path.relative_to(cache)), path.stat().st_size, "", 0)]) for path in paths]
    task = {
        "store": store.path, "rules": SegmentRules.of(Rules()).pack().decode(), "source": str(cache), "workers": 1,
        "courtesy": (0, "normal", 0), "key_file": "", "blobs": blobs,
    }  # fmt: skip
    asker, asking = socket.socketpair()
    with asker, asking:
        said = scan_task.run(task, asker, lambda: None)
    assert said["read"]["blobs"] == 4
    assert (said["vanished"], said["unread"]) == ([], {})


# --- engines ----------------------------------------------------------------------------------------------------------


class Interrupted(dict[Any, int]):
    """Ctrl-C comes when a task has been given out, before anybody has noted it."""

    def __setitem__(self, key: Any, value: int) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_while_a_task_is_given_out_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TASK", (sys.executable, "-c", "import time; time.sleep(600)"))
    before = {*threading.enumerate()}
    local = Local(2)
    monkeypatch.setattr(local, "_running", Interrupted())
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            local.submit(number, {})
    threads = {*threading.enumerate()} - before
    local.cancel()
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)


class Dying:
    """An engine on which each task dies so often, and which notes how many it had at once."""

    room = 3

    def __init__(self, deaths: dict[int, int], said: dict[str, Any] | None = None) -> None:
        self._deaths, self._said, self._running = deaths, said or {"read": 1}, list[int]()
        self.most, self.cancelled = 0, 0

    def submit(self, number: int, task: dict[str, Any]) -> None:
        assert set(task) == {"blobs", "store"}
        self._running.append(number)
        self.most = max(self.most, len(self._running))

    def gather(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = self._running.pop(0)
        self._deaths[number] = self._deaths.get(number, 0) - 1
        yield number, {"died": "a test"} if self._deaths[number] >= 0 else self._said

    def cancel(self) -> None:
        self.cancelled += 1


def carried_out(engine: Any, count: int) -> list[list[int]]:
    steps = tasks.carried_out(
        [[number] for number in range(count)], lambda blobs: {"store": "s", "blobs": blobs}, lambda: engine
    )
    return [task for ended in steps for task, _ in ended]


def test_a_task_that_dies_is_carried_out_again() -> None:
    engine = Dying({1: 1, 4: ALLOWED_FAILURES - 1})
    assert len(carried_out(engine, 9)) == 9
    assert (engine.most, engine.cancelled) == (3, 1)
    engine = Dying({2: ALLOWED_FAILURES})
    with pytest.raises(tasks.TaskFailed):
        carried_out(engine, 9)
    assert engine.cancelled == 1


def test_a_task_that_cannot_be_carried_out_ends_the_scan() -> None:
    engine = Dying({}, {"error": "worker there: the reason"})
    with pytest.raises(tasks.TaskFailed) as raised:
        carried_out(engine, 2)
    assert "worker there: the reason" in str(raised.value)
    assert engine.cancelled == 1


def test_without_anything_to_do_no_engine_is_started() -> None:
    def start() -> Any:
        raise AssertionError

    assert list(tasks.carried_out([], lambda _: {}, start)) == []


def test_without_dask_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DaskMissing) as raised:
        make_engine("dask", 1)
    assert "pip install 'chunkd[dask]'" in str(raised.value)
    for name in ("ray", "local:8", ""):
        with pytest.raises(UsageError):
            make_engine(name, 1)
    local = make_engine("local", 2)
    assert isinstance(local, Local)
    local.cancel()


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from chunkd.cluster import engine

    monkeypatch.setattr(engine, "CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises((UsageError, EngineGone)) as raised:
            make_engine(f"dask:{address}", 1)
        assert address in str(raised.value)


def test_a_source_is_the_same_wherever_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://one:1")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = source_id("s3://bucket/a", "host")
    assert bucket == source_id("s3://bucket/a/", "another host")
    others = {source_id("s3://bucket/b", "host"), source_id("s3://other/a", "host"), source_id("/a", "host")}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://two:1")
    others |= {source_id("s3://bucket/a", "host"), source_id("/a", "another host")}
    assert len(others | {bucket}) == 6
    assert source_id("/a", "host") in others
    assert len({source_id(f"/a{odd}", "host") for odd in ("\udcff", "\udcfe", "\u00ff")}) == 3, "paths may be no UTF-8"


def test_a_task_may_die_before_it_has_read_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(_: object) -> str:
        time.sleep(0.3)
        return "{}"

    monkeypatch.setattr(engine, "TASK", ("true",))
    monkeypatch.setattr("json.dumps", late)
    assert list(engine.carry_out({})) == ["died"]
