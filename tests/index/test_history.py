"""The totals over time: when a row is written, what is left of it with age, and what clocks that jump do to it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, write_blob
from chunkd.check.recount import recount
from chunkd.check.repair import repair_index
from chunkd.cli import tables
from chunkd.errors import IndexDamaged, UsageError
from chunkd.figures.names import KEPT
from chunkd.figures.totals import Totals
from chunkd.index import history, records
from chunkd.index.history import (
    DAY,
    HOUR,
    LAST_MINUTE,
    MINUTE_NS,
    MONTH,
    History,
    minute_of,
    moment_key,
)
from chunkd.index.index import Index
from chunkd.index.records import Damaged, Rules, seal
from chunkd.model import Cache
from chunkd.queries import history as queried
from chunkd.queries.read import read_stats
from daemon import Home
from indexing import add, chunks_of, edit, remove

NOW = 28_400_000  # a minute in 2023
YEAR_2099 = minute_of(4_070_908_800 * 10**9)


@dataclasses.dataclass
class Clocked:
    """An index whose clock is set by hand, in minutes."""

    state_dir: Path
    minute: int = NOW

    def __post_init__(self) -> None:
        self.open()
        with self.index.transaction() as change:
            change.set_caches({1: Cache("/cache")})

    def open(self) -> None:
        self.index = Index(str(self.state_dir), Rules(), "a test", clock_ns=lambda: self.minute * MINUTE_NS + 7)

    def add(self, number: int) -> Totals:
        with self.index.transaction() as change:
            add(change, number, chunks_of([number, 1]))
        return self.totals

    @property
    def totals(self) -> Totals:
        with self.index.snapshot() as txn:
            return self.index.store.head(txn).totals

    def rows(self, since: int = 0, until: int = LAST_MINUTE) -> dict[int, Totals]:
        with self.index.snapshot() as txn:
            return dict(queried.rows(self.index.store, txn, since, until))

    def stood(self, at: int) -> Totals | None:
        with self.index.snapshot() as txn:
            return queried.stood(self.index.store, txn, at)

    def note(self, minutes: list[int]) -> None:
        """A row for each of these minutes, written in this order; each says its minute."""
        with self.index.transaction() as change:
            kept = History(self.index.store.databases["history"])
            for minute in minutes:
                kept.note(change.txn, minute * MINUTE_NS, Totals(layers=minute))

    def page(self, since: str, limit: int = 1000) -> dict[str, Any]:
        return queried.read_history(self.index.store, since, limit, self.minute * MINUTE_NS)

    def differences(self) -> list[str]:
        with self.index.snapshot() as txn:
            return [str(difference) for difference in recount(self.index.store, txn).differences]


@pytest.fixture
def clocked(tmp_path: Path) -> Iterator[Clocked]:
    found = Clocked(tmp_path / "state")
    yield found
    differences = found.differences()
    found.index.close()
    assert differences == []


# --- when a row is written ----------------------------------------------------------------------------------------


def test_a_row_holds_the_totals_of_its_minute_and_is_written_with_them(clocked: Clocked) -> None:
    assert clocked.rows() == {}
    clocked.add(1)
    first = clocked.add(3)
    assert clocked.rows() == {NOW: first}
    clocked.minute += 5
    second = clocked.add(5)
    assert clocked.rows() == {NOW: first, NOW + 5: second}
    with contextlib.suppress(RuntimeError), clocked.index.transaction() as change:
        add(change, 7, chunks_of([7]))
        raise RuntimeError
    clocked.minute += 1
    with clocked.index.transaction() as change:
        change.scanned(1)  # changes no figure
    assert clocked.rows() == {NOW: first, NOW + 5: second}
    clocked.index.close()
    clocked.open()
    assert clocked.rows() == {NOW: first, NOW + 5: second}


def test_how_it_stood_is_what_the_last_row_says(clocked: Clocked) -> None:
    assert clocked.stood(NOW) is None
    first = clocked.add(1)
    clocked.minute += 100
    second = clocked.add(3)
    asked = {-5: None, 0: None, NOW - 1: None, NOW: first, NOW + 99: first, NOW + 100: second, LAST_MINUTE: second}
    assert {at: clocked.stood(at) for at in asked} == asked


def test_the_changes_over_a_day_and_a_week(clocked: Clocked) -> None:
    clocked.add(1)
    clocked.minute += 6 * DAY
    clocked.add(3)
    clocked.minute += DAY - 1

    def changes() -> Any:
        now_ns = clocked.minute * MINUTE_NS
        return read_stats(clocked.index.store, (), now_ns=now_ns).to_json()["changes"]

    assert changes() == {"day": {name: (changes()["day"][name]) for name in KEPT}, "week": None}
    assert changes()["day"]["layers"] == 1  # a day ago there was one: that minute was yet to come
    clocked.minute += 1
    assert changes()["day"].keys() == set(KEPT)
    assert set(changes()["day"].values()) <= {0, None}
    assert changes()["week"]["layers"] == 1
    with clocked.index.transaction() as change:
        remove(change, 1)
        remove(change, 3)
    gone = changes()
    assert (gone["day"]["layers"], gone["week"]["layers"], gone["day"]["redundancy"]) == (-2, -1, None)
    assert gone["week"]["unique_bytes"] < 0


# --- what age leaves ----------------------------------------------------------------------------------------------


def test_minutes_for_a_day_hours_for_a_month_days_for_ever(clocked: Clocked) -> None:
    written = list(range(NOW, NOW + 40 * DAY, 5))
    clocked.note(written)
    now, rows = written[-1], clocked.rows()
    assert all(totals.layers == minute for minute, totals in rows.items())
    lasts = {size: {minute // size: minute for minute in written} for size in (HOUR, DAY)}
    wanted = {minute for minute in written if now - minute <= DAY}
    wanted |= {minute for minute in lasts[HOUR].values() if now - minute <= MONTH}
    wanted |= set(lasts[DAY].values())
    assert wanted <= set(rows)
    # What is due and not dropped yet: a slice's worth.
    assert len(rows) - len(wanted) <= 10


def test_what_a_long_stand_left_is_thinned_as_new_rows_come(clocked: Clocked) -> None:
    written = list(range(NOW, NOW + DAY))
    clocked.note(written)
    assert list(clocked.rows()) == written
    later = NOW + 100 * DAY
    clocked.note([later])
    assert len(clocked.rows()) == DAY + 1 - history.DROPS_A_SLICE
    clocked.note(list(range(later + 1, later + DAY)))
    days = {minute // DAY for minute in written}
    assert [minute for minute in clocked.rows() if minute < later] == [
        max(minute for minute in written if minute // DAY == day) for day in sorted(days)
    ]


def test_processes_that_end_after_a_row_thin_as_one_that_goes_on(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chunkd scan` on a timer: each row is written by another process."""
    monkeypatch.setattr(history, "ROWS_A_SLICE", 8)
    clocked.note(list(range(NOW, NOW + 30 * DAY, DAY)))
    written = list(range(NOW + 30 * DAY, NOW + 33 * DAY, 10))
    with clocked.index.transaction() as change:
        for minute in written:
            History(clocked.index.store.databases["history"]).note(change.txn, minute * MINUTE_NS, Totals())
    old = [minute for minute in clocked.rows(since=NOW + 30 * DAY) if written[-1] - minute > DAY]
    assert len(old) == len({minute // HOUR for minute in old})


def test_rows_are_bounded(clocked: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_ROWS", 50)
    monkeypatch.setattr(history, "ROWS_A_SLICE", 8)
    chance = random.Random(1)
    for _ in range(5):
        clocked.note([chance.randrange(LAST_MINUTE) for _ in range(200)])
        assert len(clocked.rows()) <= 51
    clocked.note([0, LAST_MINUTE, LAST_MINUTE, 0])
    assert len(clocked.rows()) <= 51


# --- clocks -------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_ahead_for_an_hour_leaves_nothing_ahead(clocked: Clocked) -> None:
    clocked.note([NOW, *range(NOW + 60, NOW + 90), NOW + 30])
    assert list(clocked.rows()) == [NOW, NOW + 30]
    clocked.note([NOW + 40, NOW + 30])  # put back into a minute that has a row
    assert list(clocked.rows()) == [NOW, NOW + 30]


@pytest.mark.parametrize("fallen_to", [0, NOW - DAY - 20])
def test_a_clock_that_fell_far_back_takes_nothing_with_it(clocked: Clocked, fallen_to: int) -> None:
    before, wrong = list(range(NOW, NOW + 100)), list(range(fallen_to, fallen_to + 20))
    clocked.note(before)
    clocked.note(wrong)
    assert clocked.rows(since=NOW).keys() == set(before)
    clocked.minute = fallen_to + 20
    shown = [row["at"] for row in clocked.page("7d")["history"]]
    assert shown == [queried.shown(minute) for minute in wrong]  # what is ahead is not shown
    clocked.note([NOW + 101])
    assert set(before) <= clocked.rows().keys()


def test_a_clock_far_ahead_costs_two_rows_for_each_of_its_own(clocked: Clocked) -> None:
    before = list(range(NOW, NOW + DAY))
    clocked.note(before)
    clocked.note(list(range(YEAR_2099, YEAR_2099 + 10)))
    left = clocked.rows(until=NOW + DAY)
    assert len(left) == DAY - 10 * history.DROPS_A_SLICE
    clocked.minute = NOW + DAY
    clocked.add(1)
    shown = clocked.page("1970-01-01", 2000)["history"]
    assert len(shown) == len(left) + 1
    assert shown[-1]["at"] == queried.shown(NOW + DAY)


def test_a_clock_before_1970_or_after_9999_is_at_the_end_of_its_range(clocked: Clocked) -> None:
    with clocked.index.transaction() as change:
        kept = History(clocked.index.store.databases["history"])
        for minute in (-5, LAST_MINUTE + 5):
            kept.note(change.txn, minute * MINUTE_NS, Totals())
    assert list(clocked.rows()) == [0, LAST_MINUTE]
    clocked.minute = LAST_MINUTE
    assert clocked.page("1970-01-01")["history"][-1]["at"] == "9999-12-31T23:59:00Z"


def test_what_lies_ahead_hides_from_no_one_how_it_stands(clocked: Clocked) -> None:
    clocked.note([NOW, YEAR_2099])
    for since in ("0m", "2024-01-01", "9999-12-31"):
        assert [row["at"] for row in clocked.page(since)["history"]] == [queried.shown(NOW)]


# --- records ------------------------------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_went() -> None:
    totals = Totals(*range(10**20, 10**20 + len(dataclasses.fields(Totals))))
    assert records.unpack_totals(records.pack_totals(totals)) == totals
    for wrong in (b"", records.pack_totals(totals)[:-1], seal(b"x" * 15), records.pack_totals(totals) + b"\0"):
        with pytest.raises(Damaged):
            records.unpack_totals(wrong)


def test_a_bad_row_is_found_told_and_repaired(clocked: Clocked) -> None:
    clocked.add(1)
    clocked.index.close()
    bad = {
        moment_key(NOW + 1): b"x",
        b"abc": records.pack_totals(Totals()),
        moment_key(LAST_MINUTE + 1): records.pack_totals(Totals()),
    }
    for key, value in bad.items():
        edit(clocked.state_dir, "history", key, value)
    clocked.open()
    told = clocked.differences()
    assert len(told) == 3
    assert all(line.startswith("history ") and "the totals of a minute" in line for line in told)
    clocked.minute += 1
    with pytest.raises(IndexDamaged):
        clocked.page("1d")
    assert repair_index(clocked.index, set()) == []
    assert clocked.rows().keys() == {NOW}


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "minute"),
    [
        ("7d", NOW - 7 * DAY), ("90m", NOW - 90), ("0h", NOW), ("2w", NOW - 14 * DAY), ("999999999w", 0),
        ("1970-01-02", DAY), ("1970-01-01T01:02Z", 62), ("1970-01-01T01:02:59Z", 62), ("0001-01-01", 0),
        ("9999-12-31", LAST_MINUTE - 1439),
    ],
)  # fmt: skip
def test_what_names_a_time(since: str, minute: int) -> None:
    assert queried.since_minute(since, NOW) == minute


@pytest.mark.parametrize(
    "since",
    ["", "7", "d", "7 d", "7y", "-1d", "1.5d", "9999999999d", "2026-02-30", "2026-01-31T12:00", "20260131", "\u0667d",
     "2026-01-31T25:00Z", "2026-01-31 12:00Z", "yesterday", "7d\n", "0000-01-01"],
)  # fmt: skip
def test_what_names_no_time(since: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        queried.since_minute(since, NOW)


def test_pages_follow_one_another(clocked: Clocked) -> None:
    assert clocked.page("7d") == {"history": [], "next": None}
    minutes = list(range(NOW, NOW + 50, 5))
    clocked.note(minutes)
    clocked.minute = NOW + 60
    whole = clocked.page("1d")["history"]
    assert [row["at"] for row in whole] == [queried.shown(minute) for minute in minutes]
    found, since = [], "1d"
    while since:
        page = clocked.page(since, 3)
        found += page["history"]
        since = page["next"]
    assert found == whole
    # The row before is how it stood at the time that was asked for.
    assert clocked.page("8m")["history"] == whole[-1:]
    assert clocked.page("18m")["history"] == whole[-2:]
    assert clocked.page("15m")["history"] == whole[-1:]
    assert clocked.page("0m")["history"] == whole[-1:]
    assert clocked.page("9999-01-01")["history"] == whole[-1:]


# --- as text, and the command -------------------------------------------------------------------------------------


def test_the_lines_of_a_table() -> None:
    some = {"layers": 8, "layer_stored_bytes": 1024, "uncompressed_bytes": 4096, "unique_bytes": 2048}
    lines = list(
        tables.history_lines(
            [
                {"at": "2026-01-02T03:04:00Z", "redundancy": 0.5, "net": -0.0312} | some,
                {"at": "2026-01-02T03:05:00Z", "redundancy": None, "net": None} | dict.fromkeys(some, 0),
                {"at": "2026-01-02T03:06:00Z", "redundancy": 0.25, "net": 0.4} | some | {"unique_bytes": 3072},
            ]
        )
    )
    assert lines == [
        "at (UTC)               layers     on disk  uncompressed      unique  redundancy      net",
        "2026-01-02T03:04:00Z        8     1.0 KiB       4.0 KiB     2.0 KiB      50.0 %   -3.1 % #######",
        "2026-01-02T03:05:00Z        0     0 bytes       0 bytes     0 bytes           -        -",
        "2026-01-02T03:06:00Z        8     1.0 KiB       4.0 KiB     3.0 KiB      25.0 %   40.0 % ###########",
    ]
    assert len(list(tables.history_lines([]))) == 1


def test_the_changes_in_the_figures() -> None:
    none = dict.fromkeys(KEPT, 0)
    grown = none | {"layers": -2, "layer_stored_bytes": 2048, "unique_bytes": -1024, "redundancy": 0.012, "net": -0.004}
    stats = {"layers": 0, "pending_blobs": 0, "failed_blobs": 0, "scanned_at": "now", "caches": [], "warnings": []}
    assert list(tables.stats_lines(stats | {"changes": {"day": None, "week": None}}))[1:] == []
    assert list(tables.stats_lines(stats | {"changes": {"day": grown, "week": none}}))[2:] == [
        "over a day          -2 layers, +2.0 KiB on disk, -1.0 KiB unique, +1.2 points redundancy, -0.4",
        f"{'':20}points net",
        "over a week         none of the figures above has changed",
    ]
    for name in "redundancy", "net":
        assert name not in "".join(tables.stats_lines(stats | {"changes": {"day": grown | {name: None}}}))


def test_the_command_offline_and_by_the_daemon(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1, 60_000)))
    stats = home.scan(cache)
    done = home.command("history", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[-1] == {"at": rows[-1]["at"]} | {name: stats[name] for name in KEPT}
    table = list(csv.DictReader(io.StringIO(home.command("history", "--csv").stdout)))
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows] == table
    assert home.command("history", "--since", "1h").stdout.splitlines() == list(tables.history_lines(rows))
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    assert [json.loads(line) for line in home.command("history", "--json").stdout.splitlines()] == rows
    assert daemon.stats()["changes"] == {"day": None, "week": None}
    for flags in (("--since", "soon"), ("--json", "--csv")):
        wrong = home.command("history", *flags)
        assert (wrong.returncode, wrong.stdout) == (2, "")
