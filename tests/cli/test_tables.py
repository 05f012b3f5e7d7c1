"""The figures as people read them, word by word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chunkd.cli import tables
from chunkd.figures import words as text
from chunkd.figures.histogram import COPIES_ROWS, ROWS, to_json
from chunkd.figures.stats import Stats
from chunkd.figures.totals import Totals
from chunkd.model import CacheState, Caps, ChunkParams

TOTALS = Totals(
    layers=8,
    others=3,
    stored_bytes=64_200_000,
    layer_stored_bytes=64_172_313,
    uncompressed_bytes=222_298_112,
    chunks=13_201,
    unique_chunks=11_000,
    unique_bytes=188_953_395,
)
AS_OF = "2026-01-02T03:04:05Z"
DIGEST = "sha256:" + "ab" * 32


def stats(
    totals: Totals = TOTALS,
    *caches: CacheState,
    pending_blobs: int = 0,
    pending_bytes: int = 0,
    scanned_at: str | None = AS_OF,
) -> dict[str, Any]:
    return Stats(
        totals, pending_blobs, pending_bytes, AS_OF, scanned_at, True, 4096, ChunkParams(), Caps(), caches
    ).to_json()


def test_the_figures() -> None:
    found = list(tables.stats_lines(stats(), text.daemon_source("/run/chunkd/chunkd.sock", AS_OF)))
    assert found == [
        "from the daemon at /run/chunkd/chunkd.sock, as of 2026-01-02T03:04:05Z",
        "",
        "layers              8",
        "on disk             61.2 MiB      64,172,313 bytes",
        "uncompressed        212.0 MiB     222,298,112 bytes",
        "chunks              13,201        16.4 KiB on average",
        "unique chunks       11,000",
        "unique chunk bytes  180.2 MiB     188,953,395 bytes",
        "redundancy          15.0 %",
        "",
        "A chunk store saves storage only if its unique chunks, recompressed, take less than the layers do",
        "now: here, if they compress to at most 33.9 % of their size.",
    ]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        # Every chunk, all of them 17 kB; a third of what the layers take is left.
        ((11_000, 188_953_395, 21_000_000), "21.0 MiB with the store's index, instead of 61.2 MiB: 65.7 % less."),
        ((11_000, 188_953_395, 72_000_000), "69.6 MiB with the store's index, instead of 61.2 MiB: 13.7 % more."),
        ((30, 500_000, 100_000), "roughly: only 30 chunks measured."),
    ],
)
def test_the_answer_is_a_sentence(sample: tuple[int, int, int], words: str) -> None:
    chunks, size, recompressed = sample
    totals = replace(
        TOTALS, measured_chunks=chunks, measured_bytes=size, measured_recompressed_bytes=recompressed,
        measured_xx=size * size, measured_xy=size * recompressed, measured_yy=recompressed * recompressed,
    )  # fmt: skip
    found = " ".join(tables.stats_lines(stats(totals)))
    assert "As chunks, each recompressed, these layers would take" in found
    assert words in found


def test_images_are_counted_once_they_are_known() -> None:
    images = {"images": 1042, "names": 61, "partial_images": 3, "unreached_bytes": 12_345_678, "as_of": "\x1b"}
    found = list(tables.stats_lines(stats(TOTALS) | {"images": images}))
    plain = list(tables.stats_lines(stats(TOTALS)))
    assert found[: len(plain)] == plain
    assert found[len(plain) + 1].split()[:5] == ["images", "1,042", "61", "names,", "3"]
    assert found[len(plain) + 1].endswith("as of \\x1b")
    assert found[len(plain) + 2].split()[4:] == ["11.8", "MiB", "12,345,678", "bytes", "on", "disk"]


def test_the_saving_comes_in_parts_where_it_is_asked_for() -> None:
    found = {
        "layer_stored_bytes": 64_000_000, "codec_saving_bytes": -3_000_000, "deduplication_saving_bytes": 30_000_000,
        "index_overhead_bytes": 1_000_000, "net_bytes": 26_000_000, "net": 0.40625,
    }  # fmt: skip
    totals = replace(TOTALS, measured_chunks=30, measured_bytes=500_000, measured_recompressed_bytes=100_000)
    plain, explained = (list(tables.stats_lines(stats(totals) | found, explain=told)) for told in (False, True))
    assert explained[: len(plain)] == plain
    assert [line.split("  ")[0] for line in explained[len(plain) :]] == [
        "", "codec", "deduplication", "index", "net saving",
    ]  # fmt: skip
    assert explained[-4].split()[1:3] == ["-2.9", "MiB"]
    assert explained[-1].split()[2:6] == ["+24.8", "MiB", "40.6", "%"]
    assert max(map(len, explained)) <= 100
    unknown = stats(totals) | found | {"net": None}
    assert list(tables.stats_lines(unknown, explain=True)) == list(tables.stats_lines(unknown))


def test_a_histogram_is_two_tables() -> None:
    rows = [[0] * 4 for _ in range(ROWS)]
    rows[0] = rows[COPIES_ROWS] = [1, 1, 4096, 4096]
    rows[2] = rows[COPIES_ROWS + 15] = [1, 3, 65536, 196608]
    found = list(tables.histogram_lines(to_json(rows, 65536), "from here"))
    assert found[:6] == [
        "from here",
        "",
        "copies               unique chunks          chunks        unique        in all    share",
        "1                                1               1       4.0 KiB       4.0 KiB    2.0 %",
        "2                                0               0       0 bytes       0 bytes    0.0 %",
        "3 to 4                           1               3      64.0 KiB     192.0 KiB   98.0 %",
    ]
    assert found[7:9] == [
        "bytes of a chunk     unique chunks          chunks        unique        in all    share",
        "1 to 4,096                       1               1       4.0 KiB       4.0 KiB    2.0 %",
    ]
    assert len(found) == 8 + 16
    nothing = to_json([[0] * 4 for _ in range(ROWS)], 65536)
    assert list(tables.histogram_lines(nothing, "from here")) == [
        "from here",
        "",
        "There is no chunk in the index yet.",
    ]


def test_layers_that_are_not_compressed_need_no_recompression() -> None:
    totals = Totals(1, 0, 2048, 2048, 2048, 2, 1, 1024)
    found = list(tables.stats_lines(stats(totals)))
    assert found[-2:] == [
        "A chunk store saves storage only if its unique chunks, recompressed, take less than the layers do",
        "now: here they do even without compression.",
    ]
    assert "redundancy          50.0 %" in found


@pytest.mark.parametrize(("stored", "percent"), [(999, "99.9"), (1, "0.1"), (338, "33.8")])
def test_the_break_even_is_never_rounded_up(stored: int, percent: str) -> None:
    totals = Totals(1, 0, stored, stored, 1000, 1, 1, 1000)
    assert f"at most {percent} % of" in "".join(tables.stats_lines(stats(totals)))
    totals = Totals(1, 0, stored * 1000 + 999, stored * 1000 + 999, 10**6, 1, 1, 10**6)
    assert f"at most {percent} % of" in "".join(tables.stats_lines(stats(totals)))


def test_an_empty_index_says_so() -> None:
    source = text.index_source("/var/lib/chunkd/index", None)
    assert list(tables.stats_lines(stats(Totals(others=2, stored_bytes=5)), source)) == [
        "from the index at /var/lib/chunkd/index, no daemon runs; nothing indexed yet",
        "",
        "There is no layer in the index yet.",
    ]


def test_layers_without_a_byte_inside() -> None:
    assert list(tables.stats_lines(stats(Totals(layers=1, layer_stored_bytes=20)))) == [
        "layers              1",
        "on disk             20 bytes",
        "uncompressed        0 bytes",
    ]


def test_what_makes_it_less_than_the_truth_is_said_beside() -> None:
    caches = [
        CacheState("/quiet", state="watched"),
        CacheState("/offline", state="idle"),
        CacheState("/a", state="stale", reason="it is on another device"),
        CacheState("/b", state="polled", reason="nfs"),
        CacheState("/c", state="unwatched", reason="too many watches", warnings=("12 of 256 folders unwatched",)),
    ]
    totals = Totals(failed_blobs=1, failed_bytes=3 << 20)
    found = list(tables.stats_lines(stats(totals, *caches, pending_blobs=1200, pending_bytes=1, scanned_at=None)))
    assert found == [
        "There is no layer in the index yet.",
        "",
        "pending             1,200 blobs   1 byte, not counted yet",
        "failed              1 blob        3.0 MiB, in no figure; `chunkd blobs --failed` says why",
        "not scanned         no scan has been completed: there may be more blobs than these",
        "stale               /a: it is on another device (its figures are kept as they were last known)",
        "polled              /b: nfs (no events come from it; it is listed on a timer)",
        "unwatched           /c: too many watches (its events do not come; it is listed on a timer)",
        "warning             /c: 12 of 256 folders unwatched",
    ]


def test_each_is_said_only_when_it_is_so() -> None:
    plain = list(tables.stats_lines(stats()))
    for given in (
        stats(pending_blobs=1),
        stats(scanned_at=None),
        stats(TOTALS, CacheState("/a", state="stale")),
        stats(TOTALS, CacheState("/a", state="watched", warnings=("w",))),
    ):
        found = list(tables.stats_lines(given))
        assert found[: len(plain)] == plain
        assert len(found) == len(plain) + 2


def test_lines_are_at_most_a_hundred_columns() -> None:
    words = "word " * 60
    huge = Totals(10**12, 1, 10**17, 10**17, 10**18, 10**14, 10**13, 10**17 + 1, 10**9, 10**16)
    given = stats(
        huge,
        CacheState("/a", state="stale", reason=words, warnings=(words,)),
        pending_blobs=10**9,
        pending_bytes=10**16,
    )
    lines = list(tables.stats_lines(given, text.daemon_source("/" + "s" * 90, AS_OF)))
    lines += tables.health_lines({"state": "degraded", "reasons": [words]})
    assert max(map(len, lines)) <= 100
    long = "/" + "p" * 150
    lines = list(tables.stats_lines(stats(TOTALS, CacheState(long, state="stale", reason=words))))
    assert f"{long}:" in "\n".join(lines)  # whole, to be copied
    assert sum(len(line) > 100 for line in lines) == 1


def test_a_terminal_is_not_obeyed() -> None:
    evil = "\x1b[2J\n\x9b\u202e\udc80\x00"
    shown = r"\x1b[2J\n\x9b\u202e\udc80\x00"
    given = stats(TOTALS, CacheState(evil, state="stale", reason=evil, warnings=(evil,)))
    blob = {"digest": DIGEST, "state": "failed", "stored_bytes": 1, "codec": evil, "reason": evil}
    lines = [*tables.stats_lines(given, text.index_source(evil, evil)), *tables.blob_lines([blob])]
    lines += tables.health_lines({"state": evil, "reasons": [evil]})
    assert all(line.isprintable() for line in lines)
    assert "".join(lines).count(shown) == 10


def test_blobs() -> None:
    blob = {"digest": DIGEST, "uncompressed_bytes": 0, "chunks": 0, "codec": "", "reason": ""}
    blobs = [
        blob
        | {"state": "layer", "codec": "gzip", "stored_bytes": 1 << 20, "uncompressed_bytes": 3 << 20, "chunks": 1234},
        blob | {"state": "other", "stored_bytes": 815},
        blob | {"state": "failed", "codec": "zstd", "stored_bytes": 1 << 40, "reason": "zstd: it ends early"},
        blob | {"digest": "/c/x", "state": "ignored", "stored_bytes": 0, "reason": "a FIFO"},
    ]
    assert list(tables.blob_lines(blobs)) == [
        f"{DIGEST}  layer    gzip       1.0 MiB      3.0 MiB      1,234 chunks",
        f"{DIGEST}  other    -        815 bytes",
        f"{DIGEST}  failed   zstd       1.0 TiB  zstd: it ends early",
        "/c/x  ignored  -                -  a FIFO",
    ]


def test_health() -> None:
    assert list(tables.health_lines({"state": "ok", "reasons": []})) == ["ok"]
    assert list(tables.health_lines({"state": "degraded", "reasons": ["/a is stale", "2 blobs failed"]})) == [
        "degraded",
        "- /a is stale",
        "- 2 blobs failed",
    ]


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1023 << 10, "1023.0 KiB"),
        (int(1.25 * (1 << 30)), "1.2 GiB"),
        (1 << 50, "1.0 PiB"),
        (1 << 62, "4096.0 PiB"),
    ],
)
def test_sizes(size_bytes: int, shown: str) -> None:
    assert text.bytes_text(size_bytes) == shown
