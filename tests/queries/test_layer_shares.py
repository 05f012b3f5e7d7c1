"""What of each layer is exclusive, shared and repeated: by a plain count, in pages, and as the command says."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobs import gz, layer, write_blob
from chunkd.cli import lists, main, tables
from chunkd.client.ask import Client
from chunkd.errors import IndexDamaged, UsageError
from chunkd.queries import layer_shares
from counts import counted
from daemon import NPM_FIGURES, Home, land, npm_layers
from indexing import (
    SLOTS,
    Bench,
    Chunk,
    blob_of,
    chunk,
    chunks_of,
    digest_of,
    edit,
    recounted,
    small_bounds,
)  # fmt: skip

PARTS = ("exclusive_bytes", "shared_bytes", "repeated_bytes")
TABLES = st.dictionaries(
    st.integers(0, 9), st.lists(st.integers(0, 40), max_size=60).map(lambda numbers: chunks_of(numbers)), max_size=7
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with recounted(tmp_path / "state") as found:
        yield found


def expected(layers: Mapping[int, Sequence[Chunk]]) -> dict[str, tuple[int, int, int]]:
    """The three parts of each layer, counted chunk by chunk."""
    copies = Counter(one for chunks in layers.values() for one in chunks)
    found = {}
    for number, chunks in layers.items():
        exclusive = shared = repeated = 0
        seen: set[Chunk] = set()
        for one in chunks:
            if one in seen:
                repeated += one[1]
            elif copies[one] == chunks.count(one):
                exclusive += one[1]
            else:
                shared += one[1]
            seen.add(one)
        if chunks:
            found[str(blob_of(number, chunks).digest)] = exclusive, shared, repeated
    return found


def pages(bench: Bench, limit: int = 1000) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        page = layer_shares.read_layers(bench.index.store, after, limit)
        yield page
        if page["next"] is None:
            return
        after = page["next"]


def rows(bench: Bench, limit: int = 1000) -> list[dict[str, Any]]:
    return [row for page in pages(bench, limit) for row in page["layers"]]


def parts(bench: Bench, limit: int = 1000) -> dict[str, tuple[int, ...]]:
    return {row["digest"]: tuple(row[name] for name in PARTS) for row in rows(bench, limit)}


@settings(max_examples=counted(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=TABLES, gone=st.sets(st.integers(0, 9)), limit=st.integers(1, 8))
def test_after_any_history_the_parts_are_those_of_a_plain_count(
    tmp_path_factory: pytest.TempPathFactory, layers: dict[int, list[Chunk]], gone: set[int], limit: int
) -> None:
    with small_bounds(), recounted(tmp_path_factory.mktemp("index")) as bench:
        for number, chunks in layers.items():
            bench.add(number, chunks)
        for number in gone & set(layers):
            bench.remove(number)
        left = {number: chunks for number, chunks in layers.items() if number not in gone}
        assert parts(bench, limit) == expected(left)
        for row in rows(bench):
            assert sum(row[name] for name in PARTS) == row["uncompressed_bytes"]
        # And to the figures: what is in one layer only, and what is in several, is what is unique.
        holders = Counter(one for chunks in left.values() for one in set(chunks))
        in_several = sum(length for (_, length), times in holders.items() if times > 1)
        assert sum(row["exclusive_bytes"] for row in rows(bench)) + in_several == bench.totals.unique_bytes


def test_exclusive_is_what_removal_frees(bench: Bench) -> None:
    layers = {1: chunks_of([1, 2, 2, 3]), 2: chunks_of([3, 4]), 3: chunks_of([5, 5])}
    for number, chunks in layers.items():
        bench.add(number, chunks)
    for number, chunks in layers.items():
        exclusive = parts(bench)[str(blob_of(number, chunks).digest)][0]
        before = bench.totals.unique_bytes
        bench.remove(number)
        assert before - bench.totals.unique_bytes == exclusive
        bench.add(number, chunks)


def test_a_layer_alone_shares_nothing(bench: Bench) -> None:
    assert rows(bench) == []
    bench.add(1, chunks_of([7, 8, 7]))
    assert list(parts(bench).values()) == [(chunk(7)[1] + chunk(8)[1], 0, chunk(7)[1])]
    bench.add(3, chunks_of([7, 8, 7]))
    assert set(parts(bench).values()) == {(0, chunk(7)[1] + chunk(8)[1], chunk(7)[1])}


def test_a_page_is_bounded_in_layers_chunks_and_blobs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        bench.add(number, chunks_of(range(number, number + 10)) if number % 3 else [])
    whole = rows(bench)
    assert [len(page["layers"]) for page in pages(bench, 3)] == [3, 3, 2]
    assert rows(bench, 3) == whole
    assert {page["commit"] for page in pages(bench, 3)} == {next(pages(bench))["commit"]}
    monkeypatch.setattr(layer_shares, "CHUNKS_A_PAGE", 20)
    assert max(len(page["layers"]) for page in pages(bench)) == 2
    assert rows(bench) == whole
    monkeypatch.setattr(layer_shares, "BLOBS_A_PAGE", 1)
    assert len(list(pages(bench))) == 13
    assert rows(bench) == whole


def test_pages_of_other_commits_say_so(bench: Bench) -> None:
    for number in range(1, 4):
        bench.add(number, chunks_of([number]))
    before = layer_shares.read_layers(bench.index.store, "", 1)
    bench.add(4, chunks_of([1]))
    after = layer_shares.read_layers(bench.index.store, before["next"], 9)
    assert before["commit"] < after["commit"]


@pytest.mark.parametrize("after", ["x", "0", "layers:01", "\u0660\u0660"])
def test_what_is_no_cursor_is_refused(bench: Bench, after: str) -> None:
    with pytest.raises(UsageError, match="not the `next`"):
        layer_shares.read_layers(bench.index.store, after, 1)


def test_a_record_that_contradicts_is_damage(bench: Bench) -> None:
    bench.add(1, chunks_of([1, 2, 2]))
    key = (0).to_bytes(8, "big")
    with bench.closed() as records:
        block = records["chunks"][key]
    assert len(block) == SLOTS * 24
    lower = bytearray(block)
    lower[24 + 16 + 3] -= 1  # one copy less of the second chunk
    shorter = bytearray(block)
    shorter[16] ^= 1
    for altered in (lower, shorter):
        bench.close()
        edit(bench.state_dir, "chunks", key, bytes(altered))
        bench.open()
        with pytest.raises(IndexDamaged, match=str(digest_of(1, "sha512"))):
            rows(bench)
    bench.close()
    edit(bench.state_dir, "chunks", key, block)
    bench.open()


def test_of_those_who_ask_at_once_the_fifth_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, inside = threading.Event(), threading.Semaphore(0)
    at_once: list[int] = []
    running = [0]

    def read(*_: object) -> dict[str, Any]:
        running[0] += 1
        at_once.append(running[0])
        inside.release()
        assert gate.wait(20)
        running[0] -= 1
        return {}

    monkeypatch.setattr(layer_shares, "read_layers", read)
    answers = layer_shares.LayerPages(bench.index.store)
    entered = threading.Semaphore(0)
    acquire = answers._asked.acquire  # noqa: SLF001

    def acquired(blocking: bool = True) -> bool:
        try:
            return acquire(blocking=blocking)
        finally:
            entered.release()

    monkeypatch.setattr(answers._asked, "acquire", acquired)  # noqa: SLF001
    threads = [threading.Thread(target=answers.read, args=("", 1)) for _ in range(layer_shares.PAGES_AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert entered.acquire(timeout=20)
    assert inside.acquire(timeout=20)
    with pytest.raises(layer_shares.PagesBusy):
        answers.read("", 1)
    gate.set()
    for thread in threads:
        thread.join(20)
    assert at_once == [1] * layer_shares.PAGES_AT_ONCE
    assert answers.read("", 1) == {}


# --- the command --------------------------------------------------------------------------------------------------


def test_the_lines_name_their_columns() -> None:
    sizes = {"stored": 1000, "uncompressed": 6144, "exclusive": 1024, "shared": 2048, "repeated": 3072}
    digest = "sha256:" + "ab" * 32
    row: dict[str, Any] = {"digest": digest} | {f"{name}_bytes": size for name, size in sizes.items()}
    heading, line = tables.layer_lines([row])
    assert heading.split() == ["layer", "stored", "uncompressed", "exclusive", "shared", "repeated"]
    assert line == digest + "    1000 bytes       6.0 KiB       1.0 KiB       2.0 KiB       3.0 KiB"
    assert len(heading) == len(line)


def listed(home: Home, *flags: object) -> list[dict[str, Any]]:
    done = home.command("blobs", "--json", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_sorts_and_limits_offline_and_by_the_daemon(home: Home) -> None:
    cache = home.cache()
    base = layer(1, 200_000)
    for data in (base, base + layer(2, 90_000), layer(3, 400_000), layer(3, 400_000) + base, layer(4, 30_000)):
        write_blob(cache, gz(data))
    write_blob(cache, b"{}")
    home.scan(cache)
    offline = {order: listed(home, "--sort", order) for order in lists.ORDERS}
    for order, name in lists.ORDERS.items():
        values = [row[name] for row in offline[order]]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert all(sum(row[part] for part in PARTS) == row["uncompressed_bytes"] for row in offline[order])
        assert listed(home, "--sort", order, "--limit", 2) == offline[order][:2]
    assert offline["exclusive"] != offline["shared"]
    assert len(listed(home, "--limit", 4)) == 4
    lines = home.command("blobs", "--sort", "shared").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *(row["digest"] for row in offline["shared"])]
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    assert {order: listed(home, "--sort", order) for order in lists.ORDERS} == offline


def test_flags_that_do_not_go_together(home: Home) -> None:
    for flags in (("--sort", "exclusive", "--failed"), ("--sort", "colour"), ("--limit", "0"), ("--limit", "x")):
        assert home.command("blobs", *flags).returncode == 2


def test_a_change_between_two_pages_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [{"layers": [], "next": "01", "commit": 1}, {"layers": [], "next": None, "commit": 2}]
    monkeypatch.setattr(Client, "layer_pages", lambda _: iter(made))
    monkeypatch.setattr(Client, "stats", lambda _: {"caches": []})
    main.main(["blobs", "--sort", "size", "--json"], standalone_mode=False)
    found = capsys.readouterr()
    assert (found.out, len(found.err.splitlines())) == ("", 1)


def test_real_layers(home: Home) -> None:
    """Of all 90, and then of half: what was shared with what is gone is exclusive."""
    paths = npm_layers()
    cache = home.cache()
    for path in paths:
        land(path, cache)
    assert home.scan(cache)["unique_bytes"] == NPM_FIGURES["totals"]["unique_bytes"]
    every = listed(home, "--sort", "exclusive")
    assert len(every) == len(paths)
    assert sum(row["uncompressed_bytes"] for row in every) == NPM_FIGURES["totals"]["uncompressed"]
    assert all(sum(row[part] for part in PARTS) == row["uncompressed_bytes"] for row in every)
    largest = every[0]
    (cache / largest["digest"].removeprefix("sha256:")).unlink()
    after = home.scan(cache)["unique_bytes"]
    assert NPM_FIGURES["totals"]["unique_bytes"] - after == largest["exclusive_bytes"] > 0
