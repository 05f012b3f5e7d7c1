"""`chunkd rebuild` makes a new index, in which the history of the old one goes on, also of one of chunkd 0.1."""

from __future__ import annotations

import json
import lzma
import time
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, write_blob
from chunkd.figures.totals import Totals
from chunkd.index import records
from chunkd.index.history import minute_of, moment_key
from daemon import Home
from indexing import edit, records_of

ARCHIVE = Path(__file__).resolve().parent.parent / "archives" / "0.1"
# The last of its day, which is what is kept of so old a row.
ARCHIVED_ROW = "2023-11-14T22:16:00Z"


@pytest.fixture
def archived(home: Home) -> Home:
    """A state directory of chunkd 0.1."""
    (home.state / "index").mkdir(parents=True)
    data = lzma.decompress((ARCHIVE / "data.mdb.xz").read_bytes())
    (home.state / "index" / "data.mdb").write_bytes(data)
    return home


def rows(home: Home) -> list[dict[str, Any]]:
    done = home.command("history", "--json", "--since", "2000-01-01")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_history_goes_on_and_how_the_index_grew_is_not_in_it(home: Home) -> None:
    cache = home.cache()
    for number in range(3):
        write_blob(cache, gz(layer(number, 20_000)))
    stats = home.scan(cache)
    hours_ago = minute_of(time.time_ns()) - 600
    kept = records.pack_totals(Totals.of({"layers": 7, "of_a_later_version": 5}))
    edit(home.state, "history", moment_key(hours_ago), kept)
    edit(home.state, "history", b"garbage", kept)
    edit(home.state, "meta", b"histogram", b"damaged")
    assert home.command("rebuild").returncode == 0
    first, *_, last = rows(home)
    assert (first["layers"], first["uncompressed_bytes"], last["layers"]) == (7, None, 3)
    assert {row["layers"] for row in rows(home)} == {7, 3}
    found = records_of(home.state)["history"]
    assert found[moment_key(hours_ago)] == kept
    assert b"garbage" not in found
    assert json.loads(home.command("stats", "--json").stdout)["layers"] == stats["layers"]
    home.check()


def test_the_history_of_an_index_of_chunkd_0_1_goes_on(archived: Home) -> None:
    cache = archived.cache()
    write_blob(cache, gz(layer(1, 20_000)))
    assert archived.command("rebuild", cache).returncode == 0
    assert [(row["at"], row["layers"]) for row in rows(archived)][:-1] == [(ARCHIVED_ROW, 3)]
    assert rows(archived)[-1]["layers"] == 1
    archived.check()


def test_a_scan_upgrades_an_index_of_chunkd_0_1_which_the_others_ask_for(archived: Home) -> None:
    cache = archived.cache()
    write_blob(cache, gz(layer(1, 20_000)))
    for command in ("stats", "history", "blobs", "check"):
        refused = archived.command(command)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "chunkd scan" in refused.stderr
    done = archived.command("scan", cache, "--replace", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"] == 1
    first = rows(archived)[0]
    assert (first["at"], first["layers"]) == (ARCHIVED_ROW, 3)
    archived.check()
