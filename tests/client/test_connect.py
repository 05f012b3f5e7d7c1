"""`chunkd.connect`: a daemon and an index answer alike, and each answer is of its type; and the page about it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, assert_type

import pytest

import chunkd
import openapi
from blobs import gz, noise, tar
from chunkd import errors
from chunkd.client.ask import Client
from chunkd.errors import NothingThere, SettingInvalid, UsageError
from chunkd.figures.names import KEPT
from chunkd.pulls.log_files import LogUnreadable
from chunkd.replies.figures import Blob, Cache, Health
from chunkd.replies.images import Chunks, Images
from chunkd.replies.pulls import Replay
from daemon import Home
from lines import line_of
from pull_oracle import Get
from test_commands import filled_layout, filled_registry, settled
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout

PAGE = openapi.DOCS / "python.md"
QUESTIONS: dict[str, Callable[[Client], Any]] = {
    "stats": Client.stats,
    "histogram": Client.histogram,
    "blobs": lambda client: list(client.blobs()),
    "failed": lambda client: list(client.blobs(failed=True)),
    "layers": lambda client: list(client.layers()),
    "layer_pages": lambda client: list(client.layer_pages()),
    "history": lambda client: list(client.history()),
    "images": Client.images,
    "repositories": Client.repositories,
    "freed": lambda client: client.freed("shop/both:v1", "shop/api:v*", keep_last=1),
    "similar": lambda client: client.similar(0.001),
    "diff": lambda client: client.diff(["shop/api:v1"], "shop/both:v1", "linux/amd64"),
    "updates": lambda client: client.updates("shop/api"),
    "all_updates": Client.all_updates,
}


def type_of(method: str) -> Any:
    """What a method returns; what an iterator does is a list here."""
    hints = typing.get_type_hints(getattr(Client, method), globalns=vars(sys.modules["chunkd.client.ask"]) | _types())
    kind = hints["return"]
    return list[typing.get_args(kind)[0]] if typing.get_origin(kind) is Iterator else kind  # type: ignore[misc]


def _types() -> dict[str, Any]:
    from chunkd.replies import figures, images, moves, pulls

    return {name: kind for module in (figures, images, moves, pulls) for name, kind in vars(module).items()}


def check(kind: Any, value: Any) -> None:
    named: dict[str, Any] = {}
    schema = openapi.schema_of(kind, named)
    openapi.Replies({"components": {"schemas": named}}).check(schema, value)


def without_moment(answer: Any) -> Any:
    moment = ("as_of", "names_as_of", "commit")
    return {name: value for name, value in answer.items() if name not in moment} if isinstance(answer, dict) else answer


def test_a_daemon_and_an_index_answer_alike_and_each_is_of_its_type(home: Home) -> None:
    base = filled_registry(home)
    home.scan(base / "blobs")
    client = chunkd.connect(state_dir=home.state)
    offline = {name: ask(client) for name, ask in QUESTIONS.items()}
    assert (client.socket, client.state_dir) == ("", str(home.state))
    assert client.health()["state"] == "down"
    daemon = settled(home, base / "blobs")
    client = chunkd.connect(socket=daemon.socket)
    assert client.health() == {"state": "ok", "reasons": []}
    for name, ask in QUESTIONS.items():
        served = ask(client)
        for answer in (served, offline[name]):
            check(type_of({"failed": "blobs"}.get(name, name)), answer)
        if name not in ("stats", "layer_pages"):
            assert without_moment(served) == without_moment(offline[name]), name
    assert {name: client.stats()[name] for name in KEPT} == {name: offline["stats"][name] for name in KEPT}  # type: ignore[literal-required]
    assert (client.socket, client.state_dir) == (str(daemon.socket), "")


def test_logs_are_replayed(home: Home) -> None:
    home.scan(filled_registry(home) / "blobs")
    client = chunkd.connect(state_dir=home.state)
    layer = next(client.layers())
    gets = [Get("2026-01-02", f"192.0.2.{at}", "shop/api", layer["digest"], layer["stored_bytes"]) for at in (1, 2)]
    log = home.root / "log"
    log.write_bytes(b"\n".join(line_of(get, "json") for get in gets))
    shown: list[int] = []
    found = client.replay(str(log), lambda _done_bytes, _known_bytes, pulls: shown.append(pulls))
    assert_type(found, Replay)
    check(Replay, found)
    assert (found["clients"], found["lines"]["pulls"], found["served"]["bytes"]) == (2, 2, 2 * layer["stored_bytes"])
    assert shown[-1] == 2
    assert client.replay([str(log)])["clients"] == 2
    with pytest.raises(LogUnreadable):
        client.replay("absent")


def test_one_image_needs_no_list(home: Home) -> None:
    home.scan(filled_layout(home).path)
    client = chunkd.connect(state_dir=home.state)
    assert client.diff("shop/api:v1", "shop/both:v1") == client.diff(["shop/api:v1"], "shop/both:v1")


@pytest.mark.parametrize("with_daemon", [False, True])
def test_what_can_not_be_asked_is_refused_alike(home: Home, with_daemon: bool) -> None:
    base = filled_layout(home).path
    home.scan(base)
    if with_daemon:
        settled(home, base)
    client = chunkd.connect(state_dir=home.state)
    wrong: tuple[Callable[[], object], ...] = (
        client.freed,
        lambda: client.freed("shop/none"),
        lambda: client.freed("a b"),
        lambda: client.freed("\x1b"),
        lambda: client.freed("x" * 3001),
        lambda: client.freed("\u00fc" * 1000),
        lambda: client.freed("shop/api:v1", keep_last=-1),
        lambda: client.similar(0),
        lambda: client.similar(1.5),
        lambda: client.similar(0.12345),
        lambda: client.similar(float("nan")),
        lambda: client.diff([], ""),
        lambda: client.diff(["shop/none"], "shop/api:v1"),
        lambda: client.diff([], "shop/api:v1", "linux/a b"),
        lambda: client.updates(""),
        lambda: client.updates("shop/none"),
        lambda: client.all_updates("linux/a b"),
        lambda: next(client.history("yesterday")),
    )
    for ask in wrong:
        with pytest.raises(UsageError):
            ask()


def test_where_nothing_is(tmp_path: Path) -> None:
    client = chunkd.connect(state_dir=tmp_path)
    for ask in QUESTIONS.values():
        with pytest.raises(NothingThere):
            ask(client)
    assert client.health()["state"] == "down"
    with pytest.raises(SettingInvalid):
        chunkd.connect(socket="")


def test_importing_chunkd_brings_no_part_of_it() -> None:
    code = "import sys, chunkd; print(*(name for name in sys.modules if name.startswith('chunkd.')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "\n"


def has_types(client: Client) -> None:
    """For mypy alone."""
    assert_type(client.stats()["redundancy"], float | None)
    assert_type(client.stats()["caches"], list[Cache])
    assert_type(client.health(), Health)
    assert_type(next(client.blobs()), Blob)
    assert_type(client.images(), Images)
    assert_type(client.images()["images"][0]["chunks"], Chunks | None)


# --- the page


def shop(home: Home) -> Path:
    """A layout of three versions of an image, in which a part of the files changes, and of another on the same base."""
    made, rows = Layout(home.root / "cache"), []
    for name, version, own in (("shop/api", 1, 1), ("shop/api", 2, 1), ("shop/api", 3, 1), ("shop/web", 1, 2)):
        files = {f"app/{at}": noise(60_000, 100 * own + at + 1000 * version * (at % 4 == 0)) for at in range(8)}
        layers = [made.put(gz(tar(some)), LAYER) for some in ({str(at): noise(60_000, at) for at in range(8)}, files)]
        config = made.put(json.dumps({"rootfs": {"type": "layers"}, "number": version + 10 * own}).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers}
        named = {"org.opencontainers.image.ref.name": f"{name}:v{version}"}
        rows.append(made.put(json.dumps(document).encode(), IMAGE) | {"annotations": named})
    (made.path / "index.json").write_text(json.dumps({"manifests": rows}))
    return made.path


def test_the_page_prints_what_it_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """WRITE_PYTHON_PAGE=1 writes into the page what its blocks print, to be read in the diff."""
    settled(home, shop(home))
    for variable, value in home.environ.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CHUNKD_STATE_DIR", str(home.state))
    names: dict[str, Any] = {"__name__": "page"}

    def printed(block: re.Match[str]) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(block[1], names)  # noqa: S102 - the page's own code
        return f"```python\n{block[1]}```\n\n```text\n{out.getvalue()}```"

    page = PAGE.read_text()
    found, blocks = re.subn(r"```python\n(.*?)```\n\n```text\n.*?```", printed, page, flags=re.DOTALL)
    assert blocks == page.count("```python")
    if os.environ.get("WRITE_PYTHON_PAGE"):
        PAGE.write_text(found)
    assert found == PAGE.read_text(), "to write the page anew: WRITE_PYTHON_PAGE=1"


def test_the_page_names_each_method_and_error() -> None:
    page = PAGE.read_text()
    methods = {name for name, value in vars(Client).items() if callable(value) and not name.startswith("_")}
    assert set(re.findall(r"`([a-z_]+)\(", page)) - {"connect"} == methods - {"source", "layer_pages"}
    for name in re.findall(r"`([A-Z][A-Za-z]+)`", page):
        assert name in vars(errors) or name in _types(), name
