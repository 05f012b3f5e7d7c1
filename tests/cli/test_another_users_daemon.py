"""A daemon that this user may not ask is another user's: it is passed over, unless the command names its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, write_blob
from chunkd.cli import scan
from chunkd.client import http
from chunkd.client.ask import Client
from chunkd.errors import SocketDenied
from chunkd.settings import paths
from chunkd.settings.config import effective
from chunkd.settings.resolve import Resolved


def denied(*_: object, **__: object) -> Any:
    raise SocketDenied("/run/chunkd/chunkd.sock", "chunkd")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(http, "ask", denied)
    monkeypatch.setattr(paths, "SYSTEM_FILE", str(tmp_path / "none.toml"))
    monkeypatch.setattr(paths, "SYSTEM_STATE", str(tmp_path / "system"))
    write_blob(tmp_path, gz(layer(1, 60_000)))
    return tmp_path


def of_this_user(home: Path, **flags: object) -> Resolved:
    return Resolved({"caches": (str(home),), **flags}, {"HOME": str(home / "home"), "CHUNKD_CONFIG": "/dev/null"})


def test_a_scan_passes_it_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "scan_here", lambda *_: {"layers": 1})
    config = effective(of_this_user(home))
    assert scan.scan_once(config, ["/run/chunkd/chunkd.sock"], {}, False, place_was_given=False) == {"layers": 1}
    with pytest.raises(SocketDenied):
        scan.scan_once(config, ["/run/chunkd/chunkd.sock"], {}, False, place_was_given=True)


def test_the_users_own_index_answers(home: Path) -> None:
    where = of_this_user(home)
    client = Client(where)
    with pytest.raises(SocketDenied):
        client.stats()  # there is no own index yet
    scan.scan_once(effective(where), [], {}, False)
    assert client.stats()["layers"] == 1
    assert (client.socket, client.state_dir) == ("", where.own_state_dir)
    with pytest.raises(SocketDenied):
        Client(of_this_user(home, socket="/run/chunkd/chunkd.sock")).stats()
