"""The index is removed or replaced under its daemon: the daemon says so and ends, and the next one starts anew."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from blobs import gz, layer, write_blob
from chunkd.client import http
from chunkd.errors import IndexRemoved, NoDaemon, RequestRefused, SocketUnusable
from chunkd.queries.read import read_stats
from daemon import Daemon, Home
from indexing import Bench

MOST_S = 5.0


def replace(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def asked(daemon: Daemon) -> set[int]:
    """The HTTP status of a question; none when the daemon is ending."""
    try:
        return {200} if http.ask(str(daemon.socket), "GET", "/v1/stats") else set()
    except RequestRefused as refused:
        return {refused.status}
    except (NoDaemon, SocketUnusable):
        return set()


@pytest.mark.parametrize("name", [".", "index", "index/data.mdb", "index/lock.mdb", "lock"])
def test_a_daemon_whose_index_is_removed_ends_with_an_error(home: Home, name: str) -> None:
    cache = home.cache()
    write_blob(cache, gz(layer(1)))
    daemon = home.start(cache)
    stats = daemon.until_figures({"layers": 1})
    path = home.state / name
    if path.is_dir():
        shutil.rmtree(path)
    elif name == "index/data.mdb":
        replace(path)
    else:
        path.unlink()
    removed_s, statuses = time.monotonic(), set()
    while daemon.process.poll() is None:
        assert time.monotonic() < removed_s + MOST_S, daemon.log
        statuses |= asked(daemon)
        time.sleep(0.1)
    assert statuses <= {200, 503}
    assert daemon.process.returncode == IndexRemoved.exit_code
    assert str(IndexRemoved(str(home.state / "index"))) in daemon.log
    assert "Traceback" not in daemon.log

    again = home.start(cache).until_figures({"layers": 1})
    assert again["unique_bytes"] == stats["unique_bytes"]
    home.check()


def test_questions_about_an_index_that_is_gone_are_refused_with_its_name(bench: Bench) -> None:
    path = Path(bench.index.store.path)
    bench.index.check_there()
    path.rename(path.with_name("away"))
    with pytest.raises(IndexRemoved, match=str(path)):
        read_stats(bench.index.store, ())
    with pytest.raises(IndexRemoved, match=str(path)):
        bench.index.check_there()
    path.with_name("away").rename(path)
    bench.index.check_there()
