"""The page of `chunkd report`: what it says, what it escapes, how it is written, and how a browser shows it."""

from __future__ import annotations

import datetime as dt
import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import lmdb
import pytest

from blobs import gz, layer, noise, tar, write_blob, zst
from blobs import text as words
from browser import chromium
from chunkd.cli import report
from chunkd.client.ask import Client
from chunkd.errors import UsageError
from chunkd.figures import words as text
from chunkd.figures.histogram import COPIES_ROWS, ROWS, to_json
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.index import records
from chunkd.index.history import minute_of, moment_key
from chunkd.index.storage.environment import DATABASES, reading
from chunkd.model import CacheState, Caps, ChunkParams
from chunkd.report import page, plots, svg
from chunkd.report.data import (
    LAYERS_SHOWN,
    PAIRS_SHOWN,
    POINTS_SHOWN,
    REPOSITORIES_SHOWN,
    ImagesSeen,
    Layers,
    Material,
    Replayed,
    chosen,
    gathered,
    known_until,
    thinned,
)
from chunkd.report.html import document, element
from chunkd.report.replay import read as read_replay
from chunkd.settings.resolve import Resolved
from daemon import Home

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
HOSTILE = "<script>alert(1)</script>&amp;\"'\x1b[31m\u202e<img src=x onerror=alert(2)>"
MOST_BYTES = 300_000
VOID = {"link", "meta"}


class Page(HTMLParser):
    """What a browser's parser would find: the figures, the words, and the tags with their attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.figures: dict[str, str] = {}
        self.words = ""
        self.feed(content)
        self.close()
        assert self.open == []
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "data":
            self.figures[str(found["id"])] = str(found["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += f"{data} "

    @property
    def plots(self) -> int:
        return sum(tag == "svg" for tag, _ in self.tags)


def asks_for_nothing(content: str) -> None:
    """No address, no script, and the browser is told to allow none; every reference is to what is in the page."""
    assert "://" not in content
    assert re.findall(r"@import|url\((?!#)", content) == []
    found = Page(content)
    assert not {"script", "iframe", "img", "object", "embed", "form", "a", "image", "foreignobject"} & {
        tag for tag, _ in found.tags
    }
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith("#") or attributes[name] == "data:,", tag
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", content)) <= set(ids)
    assert "default-src 'none'" in content.partition("<style>")[0]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are empty, which saves a second a page: for what a page says, and how many plots it has."""
    monkeypatch.setattr(plots, "_finished", lambda *_: ET.Element("svg"))


def fill(home: Home, cache: Path) -> list[Totals]:
    """Layers that share much and layers that share nothing, in three steps; the totals after each."""
    common = words(400_000, 7)
    steps = []
    for step in range(3):
        for seed in range(4 * step, 4 * step + 4):
            write_blob(cache, gz(tar({"common": common, "own": noise(50_000 + 9000 * seed, seed)})))
        write_blob(cache, zst(tar({"alone": noise(150_000, 50 + step)})))
        home.scan(cache)
        steps.append(totals_of(home))
    return steps


def totals_of(home: Home) -> Totals:
    with reading(str(home.state)) as store, store.env.begin() as txn:
        return store.head(txn).totals


def put_history(home: Home, rows: dict[int, Totals]) -> None:
    """These totals, so many minutes ago, before the history that there is."""
    now = minute_of(time.time_ns())
    with lmdb.open(str(home.state / "index"), map_size=1 << 30, max_dbs=len(DATABASES)) as env:
        table = env.open_db(b"history", create=False)
        with env.begin(write=True) as txn:
            for minutes, totals in rows.items():
                txn.put(moment_key(now - minutes), records.pack_totals(totals), db=table)


def made(home: Home, *flags: str, **environ: str) -> str:
    """The page, whatever the user has set up for matplotlib."""
    style = home.root / "matplotlibrc"
    style.write_text("text.usetex: True\nfont.size: 40\nsvg.fonttype: path\naxes.facecolor: red\n")
    target = home.root / "report.html"
    done = home.command("report", "-o", target, *flags, environ={"MATPLOTLIBRC": str(style)} | environ)
    assert (done.returncode, done.stderr) == (0, "")
    content = target.read_text(encoding="utf-8")
    assert done.stdout == f"{target}: {text.bytes_text(target.stat().st_size)}\n"
    asks_for_nothing(content)
    return content


def answer_of(home: Home) -> tuple[dict[str, Any], str]:
    """The figures, and the sentence on the net saving as `chunkd stats` prints it."""
    stats = json.loads(home.command("stats", "--json").stdout)
    paragraphs = home.command("stats").stdout.split("\n\n")
    (sentence,) = [paragraph for paragraph in paragraphs if paragraph.startswith("As chunks, ")]
    return stats, " ".join(sentence.split())


# --- what it says -------------------------------------------------------------------------------------------------


def test_it_says_what_the_other_commands_say(home: Home) -> None:
    steps = fill(home, home.cache())
    put_history(home, {3 * 1440: steps[0], 600: steps[1]})
    content = made(home)
    found = Page(content)
    stats, sentence = answer_of(home)
    assert stats["layers"] == 15
    for name, value in found.figures.items():
        assert json.loads(value) == stats[name], name
    assert set(found.figures) >= {"layers", "layer_stored_bytes", "uncompressed_bytes", "unique_bytes", "net"}
    assert sentence in found.words
    assert f"{abs(100 * stats['net']):.1f} % less storage" in found.words
    for table in json.loads(home.command("histogram", "--json").stdout).values():
        for row in table if isinstance(table, list) else ():
            cells = (
                f"{row['unique_chunks']:,}",
                *map(text.bytes_text, (row["unique_bytes"], row["uncompressed_bytes"])),
            )
            assert " ".join(cells) in found.words
    layers = [json.loads(line) for line in home.command("blobs", "--sort", "shared", "--json").stdout.splitlines()]
    for one in layers[:LAYERS_SHOWN]:
        assert row_of(one) in found.words
    alone = [one for one in layers if not one["shared_bytes"]]
    assert len(alone) == 3
    for one in alone:
        assert row_of(one) in found.words
    taken = text.bytes_text(sum(one["stored_bytes"] for one in alone))
    assert f"3 of 15 layers have no chunk that another layer has too, and take {taken} on disk." in found.words
    assert "Over a day: +10 layers" in found.words
    assert found.plots == 7
    assert len(content.encode()) < MOST_BYTES


def row_of(one: dict[str, Any]) -> str:
    sizes = (text.bytes_text(one[f"{part}_bytes"]) for part in ("stored", "exclusive", "shared", "repeated"))
    return " ".join([one["digest"].partition(":")[2][:12], *sizes])


def test_it_is_asked_of_a_daemon_where_one_runs(home: Home) -> None:
    cache = home.cache()
    fill(home, cache)
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"], "settled")
    done = home.command("report", "-o", "-")
    assert (done.returncode, done.stderr) == (0, "")
    found = Page(done.stdout)
    stats = daemon.stats()
    assert {name: json.loads(value) for name, value in found.figures.items()} == {
        name: stats[name] for name in found.figures
    }
    assert f"from the daemon at {daemon.socket}, as of {stats['as_of']}" in found.words
    assert f"Cache {cache}: watched." in found.words


def test_an_empty_cache(home: Home) -> None:
    home.scan(home.cache())
    found = Page(made(home))
    assert "There is no layer in the index yet." in found.words
    assert (found.plots, found.figures) == (0, {})


def test_one_layer_of_a_few_chunks_of_which_none_was_measured_and_no_history(home: Home) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1, 30_000)))
    done = home.command("scan", cache, "--measure-one-in", "4096")
    assert done.returncode == 0
    found = Page(made(home))
    assert "Not known yet" in found.words
    assert "A chunk store saves storage only if" in found.words
    assert found.figures["net"] == ""
    assert "1 of 1 layers has no chunk that another layer has too" in found.words
    assert "No layer has a chunk that another layer has too." in found.words
    assert "less than two minutes of history" in found.words
    assert found.plots == 3  # copies, sizes, the layer


@pytest.mark.usefixtures("undrawn")
def test_a_store_that_would_cost_and_layers_that_all_share() -> None:
    both = {**LAYER, "shared_bytes": 5, "exclusive_bytes": LAYER["exclusive_bytes"] - 5}
    content = page.page(made_up(net=-0.5, layers=Layers([both], [both], 0, 0)))
    found = Page(content)
    assert "50.0 % more storage" in found.words
    assert "Every layer shares something." in found.words
    asks_for_nothing(content)


@pytest.mark.usefixtures("undrawn")
def test_what_makes_the_figures_less_than_the_truth_is_said() -> None:
    caches = (CacheState("/a", state="stale", reason="the root is missing"),)
    found = Page(page.page(made_up(pending_blobs=3, caches=caches, moved=True)))
    assert "pending 3 blobs" in found.words
    assert "/a: the root is missing" in found.words
    assert "the index changed while this page was made" in found.words
    assert "To bear in mind" not in Page(page.page(made_up())).words


@pytest.mark.usefixtures("undrawn")
def test_repositories_with_the_largest_fair_shares_and_what_no_name_reaches() -> None:
    found = Page(page.page(made_up()))
    assert "11 repositories and 4 images without a name. No name reaches 3.0 MiB on disk, 2.0 MiB of" in found.words
    assert (
        "(without a name) 4 9.0 MiB 1.0 MiB 6.0 MiB unknown shop/api0 0 9.0 MiB 1.0 MiB 5.0 MiB 7.0 MiB" in found.words
    )
    assert "shop/api8 8 9.0 MiB" in found.words
    assert "shop/api9" not in found.words
    assert "shop/api:v1 " + "…" + ("ab" * 32)[-39:] + " (partial) 3.0 MiB 25.0 %" in found.words


@pytest.mark.usefixtures("undrawn")
def test_the_updates_that_move_most_and_the_requests_of_the_first() -> None:
    found = Page(page.page(made_up()))
    assert "The median over 12 repositories: 98.0 MiB as layers, 32.0 MiB as chunks. Below are the 10" in found.words
    row = "7 99.0 MiB 33.0 MiB 22.0 MiB"
    assert f"shop/api/dear {row} -3.0 GiB, -30 % shop/api/up11 {row} +4.0 GiB, 40 % shop/api/up10" in found.words
    assert f"shop/api/up2 {row}" not in found.words
    assert "8.0 KiB 148 6.0 MiB 128.0 KiB 61 7.0 MiB 1.0 MiB 19 8.0 MiB any 1 9.0 MiB" in found.words


@pytest.mark.usefixtures("undrawn")
def test_updates_that_are_too_many_and_none() -> None:
    seen = images_made_up()
    plots = Page(page.page(made_up())).plots
    for updates, problem in ((None, "too long"), ({"repositories": [], "median": {}}, "")):
        found = Page(page.page(made_up(images=seen._replace(updates=updates, updates_problem=problem))))
        assert ("Not known: too long." in found.words) == bool(problem)
        assert found.plots == plots - 2
    reply = updates_made_up()
    for row in reply["repositories"]:
        row["last"] = {"chunks": None}
    found = Page(page.page(made_up(images=seen._replace(updates=reply))))
    assert found.plots == plots - 1


@pytest.mark.usefixtures("undrawn")
def test_images_that_are_too_many_and_none() -> None:
    assert "Not known: too many." in Page(page.page(made_up(images=ImagesSeen(problem="too many")))).words
    none = ImagesSeen({"repositories": [], "unheld": {}})
    found = Page(page.page(made_up(images=none)))
    assert "Images" not in found.words
    assert found.plots == Page(page.page(made_up())).plots - 3


def replay_made_up(days: int = 3, name: str = "shop/api", chunks_bytes: int | None = 1 << 30) -> dict[str, Any]:
    """As `chunkd replay --json` prints it."""
    own = {
        "layers": {"bytes": 3 << 30, "requests": 50},
        "chunks": {"bytes": chunks_bytes, "error_bytes": 1 << 20, "ranges": 1234},
    }  # fmt: skip
    row = {"served": {"bytes": 5 << 30, "requests": 90, "redirected": 0}, "own_caches": own, "shared_cache": own}
    return {
        "from": "2026-03-01T00:00:00Z", "to": "2026-03-03T00:00:00Z", "clients": 3, "forgotten_clients": 0,
        "not_indexed_bytes": 1 << 29, **row,
        "days": [{"day": str(dt.date(2026, 3, 1) + dt.timedelta(days=day))} | row for day in range(days)],
        "repositories": [{"repository": f"{name}{number}"} | row for number in range(12)],
    }  # fmt: skip


def replayed(path: Path, reply: object) -> Replayed:
    path.write_text(json.dumps(reply))
    return read_replay(str(path))


@pytest.mark.usefixtures("undrawn")
def test_what_was_really_pulled(tmp_path: Path) -> None:
    found = Page(page.page(made_up()._replace(replayed=replayed(tmp_path / "r", replay_made_up(40)))))
    assert "From 2026-03-01 to 2026-03-03 (UTC) 3 clients pulled 5.0 GiB in 90 requests." in found.words
    assert "512.0 MiB (10.0 %) of what was served are blobs that are not in the index" in found.words
    assert "2026-04-09 5.0 GiB 3.0 GiB 1.0 GiB 1,234 repository served" in found.words
    assert "2026-03-09 5.0" not in found.words, "only the last days are in the table"
    assert "shop/api9 5.0 GiB" in found.words
    assert "shop/api10" not in found.words
    plots_without = Page(page.page(made_up())).plots
    assert found.plots == plots_without + 1
    one = Page(page.page(made_up()._replace(replayed=replayed(tmp_path / "r", replay_made_up(1, chunks_bytes=None)))))
    assert "2026-03-01 5.0 GiB 3.0 GiB unknown 1,234" in one.words
    assert one.plots == plots_without
    nothing = replay_made_up() | {"served": {"bytes": 0, "requests": 0, "redirected": 0}}
    assert "No pull was read." in Page(page.page(made_up()._replace(replayed=replayed(tmp_path / "r", nothing)))).words


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"7", b"\xff", b"[" * 99, json.dumps(replay_made_up() | {"days": [{"day": "x"}]}).encode(),
     json.dumps(replay_made_up() | {"clients": None}).encode(), b"0" * (17 << 20)],
)  # fmt: skip
def test_a_file_that_no_replay_made_is_a_usage_error(home: Home, content: bytes) -> None:
    path = home.root / "replay.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_replay(str(path))
    with pytest.raises(UsageError):
        read_replay(str(home.root / "none"))


# --- what others wrote --------------------------------------------------------------------------------------------

LAYER: dict[str, Any] = {
    "digest": "sha256:" + "ab" * 32, "stored_bytes": 700, "uncompressed_bytes": 2000, "exclusive_bytes": 1500,
    "shared_bytes": 0, "repeated_bytes": 500,
}  # fmt: skip


def images_made_up(name: str = "shop/api") -> ImagesSeen:
    """More repositories than are shown, the last of them partial, and images without a name."""
    sizes = {"referenced_bytes": 9 << 20, "exclusive_bytes": 1 << 20, "fair_share_bytes": 5 << 20}
    chunks = {"fair_share_bytes": 7 << 20}
    rows = [
        {"repository": f"{name}{row}", "images": row, "stored": sizes, "chunks": chunks}
        for row in range(REPOSITORIES_SHOWN + 1)
    ]
    unnamed = {"repository": "", "images": 4, "stored": sizes | {"fair_share_bytes": 6 << 20}, "chunks": None}
    reply = {"repositories": [*rows, unnamed], "unheld": {"blobs": 3, "stored_bytes": 2 << 20, "unique_bytes": 5}}
    one = {"digest": LAYER["digest"], "names": [f"{name}:v1"], "partial": False}
    other = {"digest": LAYER["digest"], "names": [], "partial": True}
    pair = {"images": [one, other], "overlap_bytes": 3 << 20, "similarity": 0.25, "contained": [0.5, 0.4]}
    return ImagesSeen(reply, [pair] * PAIRS_SHOWN, updates=updates_made_up(name))


def updates_made_up(name: str = "shop/api") -> dict[str, Any]:
    """More repositories than are shown; the first two are those in which chunks save most, not those that move most."""
    ranges = [(0, 231, 5), (8192, 148, 6), (131_072, 61, 7), (1 << 20, 19, 8), (None, 1, 9)]
    last = {
        "from": LAYER["digest"], "to": LAYER["digest"], "from_names": [], "to_names": [f"{name}:v2"],
        "chunks": {"ranges": [{"gap_bytes": gap, "ranges": count, "bytes": size << 20} for gap, count, size in ranges]},
    }  # fmt: skip
    rows = [
        {"repository": f"{name}/up{row}", "pairs": 9, "unknown": 2, "layer_bytes": row << 30, "saved_bytes": 4 << 30,
         "saved": 0.4, "median_layer_bytes": 99 << 20, "median_chunk_bytes": 33 << 20,
         "median_cheaper_bytes": 22 << 20, "last": last}
        for row in range(1, REPOSITORIES_SHOWN + 3)
    ]  # fmt: skip
    dear = rows[-1] | {"saved_bytes": -(3 << 30), "saved": -0.3, "repository": f"{name}/dear"}
    unknown = dict.fromkeys(rows[0]) | {"repository": f"{name}/none", "pairs": 0, "unknown": 0}
    median = {"repositories": 12, "median_layer_bytes": 98 << 20, "median_chunk_bytes": 32 << 20}
    return {"repositories": [*rows[:-1], dear, unknown], "median": median}


def made_up(
    net: float = 0.25, layers: Layers | None = None, moved: bool = False, rows: int = 2, **others: Any
) -> Material:
    """A report's material with the most of everything, but for what is given."""
    parts = [[1000 + row, 2000 + row, 5 << 40, 7 << 40] for row in range(ROWS)]
    stored_bytes = 1 << 40
    totals = Totals(
        layers=90, stored_bytes=stored_bytes, layer_stored_bytes=stored_bytes, uncompressed_bytes=3 << 40,
        chunks=1 << 26, unique_chunks=1 << 24, unique_bytes=2 << 40, measured_chunks=1 << 24,
    )  # fmt: skip
    found = Stats(
        totals, others.get("pending_blobs", 0), 0, "2026-03-01T12:00:00.000Z", "2026-03-01T12:00:00.000Z", True, 4096,
        ChunkParams(), Caps(), others.get("caches", ()),
    )  # fmt: skip
    figures = {"net": net, "net_bytes": int(net * stored_bytes), "recompressed_bytes": stored_bytes // 2}
    stats = found.to_json() | figures | {"recompressed_error_bytes": stored_bytes // 100}
    times = [NOW - dt.timedelta(hours=rows - row) for row in range(rows)]
    moments = [figures | {"redundancy": 0.3 + 0.1 * (row % 3), "layer_stored_bytes": 1 << 40} for row in range(rows)]
    ten = [LAYER | {"stored_bytes": number} for number in range(LAYERS_SHOWN)]
    return Material(
        stats, "from nowhere", to_json(parts, 65536), moments, [*times, NOW], layers or Layers(ten, ten, 10, 700),
        others.get("images", images_made_up()), NOW, moved,
    )  # fmt: skip


def hostile_page() -> str:
    hostile = LAYER | {"digest": f"sha256:{HOSTILE}", "codec": HOSTILE}
    caches = (CacheState(HOSTILE, (), "stale", HOSTILE, (HOSTILE,)), CacheState("/caf\u00e9\udc80"))
    material = made_up(layers=Layers([hostile], [hostile], 1, 1), caches=caches, images=images_made_up(HOSTILE))
    with tempfile.NamedTemporaryFile() as file:
        pulls = replayed(Path(file.name), replay_made_up(name=HOSTILE))
    return page.page(material._replace(source=HOSTILE, replayed=pulls))


def test_what_others_wrote_is_no_markup() -> None:
    content = hostile_page()
    asks_for_nothing(content)
    content.encode()  # no surrogate is left
    assert "\x1b" not in content
    assert "\u202e" not in content
    assert Page(content).words.count("<script>alert(1)</script>&amp;") >= 4
    assert "/caf\u00e9\\udc80: idle." in Page(content).words


def test_a_cache_with_a_name_that_is_markup(home: Home) -> None:
    cache = home.cache("<b onclick='x'>&lt;")
    write_blob(cache, gz(layer(1, 90_000)))
    home.scan(cache)
    assert f"Cache {cache}: idle." in Page(made(home)).words


def test_an_element_escapes_text_and_attributes() -> None:
    made_of = element("p", "a<b>&", element("i", "</i>"), 'c"', "\x00\udc80", title="\"'<&\n", class_="x")
    assert Page(document([], [made_of], "")).words == 'a<b>& </i> c"\\x00\\udc80'
    ((_, attributes),) = [found for found in Page(document([], [made_of], "")).tags if found[0] == "p"]
    assert attributes == {"title": "\"'<&\\n", "class": "x"}


# --- what there is room for ---------------------------------------------------------------------------------------


def test_the_largest_page_is_small() -> None:
    content = page.page(made_up(rows=POINTS_SHOWN))
    assert len(content.encode()) < MOST_BYTES
    asks_for_nothing(content)
    found = Page(content)
    assert found.words.count("ab" * 6) >= 2 * LAYERS_SHOWN
    assert len([tag for tag, _ in found.tags if tag == "tr"]) == ROWS + 2 * LAYERS_SHOWN + 10 + 10 + 6 + 5 + 11 + 6


def rows_at(*minutes: int) -> list[dict[str, Any]]:
    return [{"at": f"{NOW + dt.timedelta(minutes=minute):%Y-%m-%dT%H:%M:%SZ}", "n": minute} for minute in minutes]


def test_of_each_part_of_the_time_the_last_row_is_kept() -> None:
    many = list(thinned(rows_at(*range(0, 9000, 3)), NOW, NOW + dt.timedelta(minutes=9000)))
    assert [row["n"] for row in many] == list(range(27, 9000, 30))
    assert len(many) == POINTS_SHOWN
    few = rows_at(0, 1, 2, 7000)
    assert [row["n"] for row in thinned(few, NOW, NOW + dt.timedelta(minutes=9000))] == [2, 7000]
    assert list(thinned(few, NOW, NOW + dt.timedelta(minutes=300))) == few
    assert list(thinned([], NOW, NOW)) == []


def test_rows_before_the_start_and_after_the_end_have_a_place() -> None:
    # The first is how it stood when the time began; the last was written by a clock ahead of ours.
    rows = rows_at(-5000, 10, 40_000)
    assert list(thinned(rows, NOW, NOW + dt.timedelta(minutes=300))) == rows
    assert list(thinned(rows_at(*range(5000)), NOW, NOW))[-1]["n"] == 4999
    assert len(list(thinned(rows_at(*range(5000)), NOW, NOW))) <= POINTS_SHOWN


def test_without_a_daemon_the_time_ends_with_what_is_known() -> None:
    content = {"as_of": "2026-02-01T00:00:00.000Z", "scanned_at": "2026-02-03T00:00:00.000Z"}
    assert known_until("/s", content, NOW) == NOW
    assert known_until("", content, NOW) == dt.datetime(2026, 2, 3, tzinfo=dt.UTC)
    assert known_until("", {"as_of": None, "scanned_at": None}, NOW) == NOW


@pytest.mark.parametrize("moved", [False, True])
def test_a_commit_between_two_questions_is_found(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = [{"as_of": "2026-02-01T00:00:00.000Z"}, {"as_of": f"2026-02-01T00:00:00.00{int(moved)}Z"}]
    client = Client(Resolved({}, {}))
    client.socket = "/s"
    monkeypatch.setattr(client, "stats", lambda: stats.pop(0))
    monkeypatch.setattr(client, "histogram", dict)
    monkeypatch.setattr(client, "history", lambda since: rows_at(0) if since == "31d" else [])
    monkeypatch.setattr(client, "layers", lambda: [LAYER])
    monkeypatch.setattr(client, "repositories", lambda: {"repositories": []})
    monkeypatch.setattr(client, "similar", lambda: {"pairs": []})
    monkeypatch.setattr(client, "all_updates", lambda: {"repositories": []})
    found = gathered(client, "31d")
    assert found.moved == moved
    assert (found.moments, found.layers.alone) == (rows_at(0), 1)


def test_layers_are_chosen_in_one_pass() -> None:
    layers = [
        LAYER | {"digest": f"sha256:{number:064x}", "shared_bytes": number % 7 * 100, "stored_bytes": number}
        for number in range(2500)
    ]
    found = chosen(iter(layers))
    assert [layer["stored_bytes"] for layer in found.most] == [6 + 7 * number for number in range(LAYERS_SHOWN)]
    assert [layer["stored_bytes"] for layer in found.least] == [7 * number for number in range(LAYERS_SHOWN)]
    assert found.alone == 358
    assert found.alone_stored_bytes == sum(range(0, 2500, 7))
    assert chosen([]) == Layers([], [], 0, 0)


# --- how it is written --------------------------------------------------------------------------------------------


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, link = tmp_path / "report.html", tmp_path / "link.html"
    report.write_whole(str(target), b"first")
    link.symlink_to(target)
    report.write_whole(str(link), b"second")
    assert link.is_symlink()
    assert target.read_bytes() == b"second"
    umask = os.umask(0o22)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(report.ReportUnwritable, match="No space left on device"):
        report.write_whole(str(target), b"third")
    assert target.read_bytes() == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "report.html"]

    others = tmp_path / f"report.html.{os.getpid()}.new"
    others.write_bytes(b"another's")
    with pytest.raises(report.ReportUnwritable, match="File exists"):
        report.write_whole(str(target), b"fourth")
    assert (others.read_bytes(), target.read_bytes()) == (b"another's", b"second")


def test_what_can_not_be_written_is_named(home: Home) -> None:
    home.scan(home.cache())
    pipe = home.root / "pipe"
    os.mkfifo(pipe)
    for target in (home.root / "no" / "report.html", home.root, pipe):
        done = home.command("report", "-o", target)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert str(target) in line
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_other_errors_are_those_of_the_other_commands(home: Home) -> None:
    assert home.command("report", "-o", "x.html").returncode == 3
    assert home.command("report").returncode == 2
    home.scan(home.cache())
    bad = home.command("report", "-o", home.root / "x.html", "--since", "yesterday")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "not a time" in bad.stderr
    assert not (home.root / "x.html").exists()


def test_without_matplotlib_it_says_what_to_install(home: Home) -> None:
    home.scan(home.cache())
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv[0] = 'chunkd'; from chunkd.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "-o", "-", "--state", str(home.state)],
        env=home.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "pip install 'matplotlib>=3.8'" in line


# --- plots --------------------------------------------------------------------------------------------------------


def test_a_plot_has_axes_with_units_and_no_colour_of_its_own() -> None:
    made_of = made_up()
    drawn = [
        (plots.saving(made_of.stats), ["on disk, TiB"]),
        (plots.sizes_over_time(made_of.moments, made_of.times), ["on disk, TiB", "time, UTC"]),
        (plots.shares_over_time(made_of.moments, made_of.times), ["%", "time, UTC"]),
        (plots.copies(made_of.histogram["copies"], ["1"] * COPIES_ROWS), ["copies of a chunk", "uncompressed, TiB"]),
        (plots.sizes(made_of.histogram["sizes"]), ["size of a chunk, KiB", "uncompressed, TiB"]),
        (plots.layers([LAYER], ["abc"], "one"), ["uncompressed, KiB", "abc"]),
    ]
    for plot, labels in drawn:
        told = [found.text for found in plot.iter("text")]
        assert set(labels) <= set(told)
        assert sum(bool(re.fullmatch("[0-9.,\u2212]+|[0-9:]+|[A-Z][a-z]+", one or "")) for one in told) >= 3, told
        written = ET.tostring(plot, encoding="unicode")
        assert not re.search("#[0-9a-f]{6}", written)
        assert set(re.findall(r"var\(--([a-z]+)\)", written)) <= set(svg.COLOURS.values())
        assert plot.get("role") == "img"
        assert plot.get("aria-label")
        assert plot[0].tag == "desc"
        assert plot[0].text


@pytest.mark.parametrize("span", [{"seconds": 170}, {"minutes": 170}, {"hours": 70}, {"days": 88}, {"days": 1080}])
def test_a_step_is_found_for_the_axis_of_any_span(span: dict[str, int]) -> None:
    """The longest spans that are still in one unit: matplotlib warns when none of its steps fits, and that is an error
    here.
    """
    made_of = made_up()
    plot = plots.sizes_over_time(made_of.moments[:2], [NOW - dt.timedelta(**span), NOW - dt.timedelta(0), NOW])
    assert "time, UTC" in [found.text for found in plot.iter("text")]


# --- in a browser -------------------------------------------------------------------------------------------------


def test_it_is_shown_on_any_screen_and_on_paper(home: Home) -> None:
    import matplotlib.image as mpimg

    cache = home.cache("cache-" + "long" * 40)
    steps = fill(home, cache)
    put_history(home, {20_000: steps[0], 3000: steps[1]})
    made(home)
    seen: dict[tuple[int, str], bytes] = {}
    with chromium() as browser:
        browser.open(home.root / "report.html")
        for width in (320, 1280):
            for scheme in ("light", "dark"):
                browser.look(width, 900, scheme)
                assert browser.value("document.scrollingElement.scrollWidth <= innerWidth"), width
                seen[width, scheme] = browser.picture()
                back, ink = browser.value(COLOURS_SHOWN)
                assert (back, ink) == (("rgb(255, 255, 255)" if scheme == "light" else "rgb(15, 20, 25)"), "shown")
        browser.look(1280, 900, "dark", "print")
        assert browser.value(COLOURS_SHOWN) == ["rgb(255, 255, 255)", "shown"]
        paper = browser.print()
        assert browser.requested == [(home.root / "report.html").as_uri()]
        assert browser.said == []
    assert paper.startswith(b"%PDF-")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 4
    for width in (320, 1280):
        light, dark = (mpimg.imread(io.BytesIO(seen[width, scheme])) for scheme in ("light", "dark"))
        assert light.shape == dark.shape
        assert width - 20 <= light.shape[1] <= width  # what a scroll bar leaves
        assert light[..., :3].mean() > 0.8
        assert dark[..., :3].mean() < 0.3
        for picture in (light, dark):
            # The bars: blue and orange take a visible part of it.
            red, blue = picture[..., 0].astype(float), picture[..., 2].astype(float)
            assert (blue - red > 0.3).mean() > 0.005
            assert (red - blue > 0.3).mean() > 0.005


def test_the_browser_itself_keeps_a_page_from_asking(home: Home) -> None:
    """Should something get in, past all escaping: the page's own policy stops it."""
    home.scan(home.cache())
    content = made(home)
    marks = (
        "<script>document.title = 'run'</script><img src='http://localhost/x.png'><link rel=stylesheet href='x.css'>"
    )
    (home.root / "bad.html").write_text(content.replace("</main>", f"{marks}</main>"), encoding="utf-8")
    (home.root / "hostile.html").write_text(hostile_page(), encoding="utf-8")
    with chromium() as browser:
        browser.open(home.root / "hostile.html")
        assert browser.value("document.querySelectorAll('script, img').length") == 0
        assert browser.said == []
        browser.open(home.root / "bad.html")
        assert browser.value("document.title") == "chunkd: what a chunk store would save"
        assert len(browser.said) >= 3
        assert all("Content Security Policy" in said for said in browser.said)


# The paper's colour, and whether every plot has a size and its text the ink's colour.
COLOURS_SHOWN = """[
    getComputedStyle(document.body).backgroundColor,
    [...document.querySelectorAll("svg")].every(svg => svg.getBoundingClientRect().height > 50 &&
        [...svg.querySelectorAll("text")].every(text => getComputedStyle(text).fill ===
            getComputedStyle(document.body).color)) && document.querySelectorAll("svg").length === 7 ? "shown" : "not"
]"""
