"""`chunkd where` on a tree on disk: from the index, beside a daemon, for an image and a repository, and as text."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import where_oracle
from blobs import digest_of, gz, noise, text, zst
from chunkd.cli.where_lines import where_lines
from chunkd.model import Caps, ChunkParams, Digest, FileMark, Job, MeasureRule
from chunkd.settings.config import effective
from chunkd.settings.resolve import Resolved
from chunkd.where import where
from chunkd.where.causes import CAUSES
from chunkd.where.trace import MOST_TRACE_BYTES
from chunkd.where.traced import Traced, Tracers, TracesEnd
from chunkd.worker import spawn
from chunkd.worker.spawn import Courtesy, make_pool
from daemon import Home, npm_layers
from invariants import printed
from tars import END, entry, header
from test_commands import settled
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout
from working import Leaving

SHARED, MOVED, EDITED = noise(90_000, 1), noise(80_000, 2), text(120_000, 3)
HOSTILE = b"\x1b]0;x\x07\xff/name"


def tar(*files: tuple[bytes, bytes]) -> bytes:
    return b"".join(entry(*one) for one in files) + END


TARS = {
    "base": tar((b"usr/lib/a.so", SHARED), (b"opt/m", MOVED), (b"zeros", bytes(150_000)), (HOSTILE, EDITED)),
    "same": tar((b"usr/lib/a.so", SHARED), (b"own", b"1")),
    "moved": tar((b"srv/m", MOVED), (b"usr/lib/x", EDITED[:60_000] + b"!" + EDITED[60_000:])),
    "zeros": tar((b"other/zeros", bytes(200_000))),
    "broken": entry(b"fine", SHARED) + header(b"x")[:-1] + b"\1" + MOVED + END,
}


class Made:
    """A layout of images of these tars, one of them also as zstd, which is another layer of the same chunks."""

    def __init__(self, home: Home) -> None:
        self.layout = Layout(home.root / "cache")
        self.layers: dict[str, bytes] = {}
        rows = [
            self.image("shop/api:v1", gz(TARS["base"]), gz(TARS["same"])),
            self.image("shop/api:v2", zst(TARS["base"]), gz(TARS["moved"]), gz(TARS["zeros"])),
            self.image("shop/web:v1", gz(TARS["broken"]), gz(TARS["same"])),
        ]
        (self.layout.path / "index.json").write_text(json.dumps({"manifests": rows}))
        home.scan(self.layout.path)

    def image(self, name: str, *layers: bytes) -> dict[str, Any]:
        config = self.layout.put(json.dumps({"rootfs": {"type": "layers"}, "name": name}).encode(), CONFIG)
        put = [self.layout.put(layer, LAYER) for layer in layers]
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": put}
        row = self.layout.put(json.dumps(document).encode(), IMAGE)
        return row | {"annotations": {"org.opencontainers.image.ref.name": name}}

    def expected(self, *names: str) -> where_oracle.Found:
        """Of these tars, each with its digests; the one that is broken has the entries before the damage."""
        layers = {}
        for name in names:
            for data in (gz(TARS[name]), zst(TARS[name])):
                if self.path_of(data).exists():
                    layers[self.path_of(data).name] = TARS[name]
        return where_oracle.where(layers, unpack=entries)

    def path_of(self, layer: bytes) -> Path:
        return self.layout.path / "blobs" / "sha256" / digest_of(layer).hex


def entries(data: bytes) -> list[tuple[int, int, str, bytes]]:
    if data == TARS["broken"]:
        return [(0, len(entry(b"fine", SHARED)), "/fine", SHARED)]
    return where_oracle.entries(data)


@pytest.fixture
def made(home: Home) -> Made:
    return Made(home)


def assert_same(reply: dict[str, Any], expected: where_oracle.Found) -> None:
    assert reply["causes"] == {f"{cause}_bytes": expected.causes[cause] for cause in CAUSES}
    assert sum(reply["causes"].values()) == reply["copied_bytes"] == reply["uncompressed_bytes"] - reply["unique_bytes"]
    assert reply["uncompressed_bytes"] == expected.uncompressed_bytes
    assert reply["unique_bytes"] == expected.unique_bytes
    assert reply["outside_bytes"] == expected.paths.get(None, Counter()).total()
    if reply["by"] == "file":
        assert {row["name"]: row["copied_bytes"] for row in reply["rows"]} == {
            path: sizes.total() for path, sizes in expected.paths.items() if path is not None
        }


@pytest.mark.parametrize("with_daemon", [False, True])
def test_it_is_what_the_oracle_says(home: Home, made: Made, with_daemon: bool) -> None:
    if with_daemon:
        settled(home, made.layout.path)
    reply = printed(home, "where", "-q", "--by", "file")
    assert_same(reply, made.expected(*TARS))
    assert all(reply["causes"].values()), "a cause that was not met"
    stats = printed(home, "stats")
    assert (reply["uncompressed_bytes"], reply["unique_bytes"]) == (stats["uncompressed_bytes"], stats["unique_bytes"])
    assert (reply["layers"], reply["one_in"], reply["damaged_layers"]) == (6, 1, 1)
    assert reply["damaged"][0]["digest"] == f"sha256:{made.path_of(gz(TARS['broken'])).name}"
    for reference, names in (
        ("shop/api:v1", ["base", "same"]), ("shop/api", ["base", "same", "moved", "zeros"]),
        ("shop/web:v1", ["broken", "same"]), ("shop/*", list(TARS)),
    ):  # fmt: skip
        reply = printed(home, "where", "-q", "--by", "file", reference)
        layers = {"shop/api:v1": 2, "shop/api": 5, "shop/web:v1": 2, "shop/*": 6}[reference]
        assert (reply["layers"], reply["of"]["reference"]) == (layers, reference)
        if reference != "shop/api:v1":  # of which the zstd layer is none
            assert_same(reply, made.expected(*names))
        else:
            assert reply["causes"]["same_path_bytes"] > 50_000 > reply["causes"]["same_layer_bytes"]


@pytest.mark.usefixtures("made")
def test_rows_name_the_images_that_have_them(home: Home) -> None:
    reply = printed(home, "where", "-q", "--by", "directory", "--depth", "2")
    [row] = [row for row in reply["rows"] if row["name"] == "/usr/lib"]
    assert (row["layers"] >= 3, row["images"]) == (True, 3)
    assert row["image_names"] == ["shop/api:v1", "shop/api:v2", "shop/web:v1"]
    for by in ("directory", "extension", "package", "file"):
        done = home.command("where", "-q", "--by", by)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(line.isprintable() for line in done.stdout.splitlines())
        assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.usefixtures("made")
def test_a_sample_is_picked_by_digest_and_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    one_in = printed(home, "where", "-q", "--layers", "1/2")
    assert one_in["one_in"] == 2
    assert one_in == printed(home, "where", "-q", "--layers", "1/2")
    assert "sample" in home.command("where", "-q", "--layers", "1/2").stdout
    digests = [Digest("sha256", f"{at:x}" * 64) for at in range(16)]
    assert [digest.hex[0] for digest in digests if where.is_picked(digest, 4)] == list("0123")
    monkeypatch.setattr(where, "SAMPLE_BYTES", 3 << 20)
    assert where.part_within(digests, dict.fromkeys(digests, 1 << 20)) == 8
    assert where.part_within(digests, dict.fromkeys(digests, 1)) == 1


def test_a_layer_that_can_not_be_read_is_named_and_left_out(home: Home, made: Made) -> None:
    bad = made.path_of(gz(TARS["moved"]))
    bad.write_bytes(b"x" * bad.stat().st_size)
    done = home.command("where", "-q", "--json", "--by", "file")
    assert done.returncode == 7
    reply = json.loads(done.stdout)
    assert [one["digest"] for one in reply["unread"]] == [f"sha256:{bad.name}"]
    bad.unlink()
    assert_same(reply, made.expected(*TARS))
    done = home.command("where", "-q")
    assert (done.returncode, bad.name in done.stdout) == (7, True)


def where_here(home: Home, monkeypatch: pytest.MonkeyPatch, workers: int, shown: list[tuple[int, int, int]]) -> Any:
    for name, value in home.environ.items():
        monkeypatch.setenv(name, value)
    asked = Resolved({"state_dir": str(home.state), "socket": None, "workers": str(workers)})
    return where.where(
        effective(asked, serving=False), [str(home.state)], where.Question(), lambda *said: shown.append(said)
    )[0]


@pytest.mark.usefixtures("made")
def test_progress_goes_on_and_never_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int, int]] = []
    reply = where_here(home, monkeypatch, 2, shown)
    read_bytes = [done for done, _, _ in shown]
    assert read_bytes == sorted(read_bytes)
    assert shown[-1] == (shown[0][1], shown[0][1], 0)
    assert reply["layers"] == 6


@pytest.mark.usefixtures("made")
def test_no_layer_is_left_out_while_a_worker_is_leaving(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = where_here(home, monkeypatch, 1, [])
    monkeypatch.setattr(spawn, "Pool", Leaving)
    shown: list[tuple[int, int, int]] = []
    assert where_here(home, monkeypatch, 1, shown) == expected
    assert shown[-1][2] == 0


@pytest.mark.usefixtures("made")
def test_what_can_not_be_asked(home: Home) -> None:
    for words in (
        ["shop/api:v9"], ["a b"], ["shop/x*"], ["--by", "letter"], ["--depth", "0"], ["--layers", "2/3"],
        ["--layers", "1/0"], ["--layers", "x"], ["shop/api:v1", "shop/api:v2"],
    ):  # fmt: skip
        done = home.command("where", *words)
        assert (done.returncode, done.stdout) == (2, ""), words


def test_without_an_index_there_is_nothing_to_ask(home: Home) -> None:
    assert home.command("where").returncode == 3


def test_the_real_layers(home: Home) -> None:
    home.scan(npm_layers()[0].parents[2])
    reply = printed(home, "where", "-q", "--by", "extension")
    assert reply["causes"] == {
        "zeros_bytes": 0, "same_layer_bytes": 0, "same_path_bytes": 13_919_556, "other_path_bytes": 0,
        "parts_bytes": 188_173_000,
    }  # fmt: skip
    assert (reply["copied_bytes"], reply["rows"][0]["name"]) == (202_092_556, ".js")


def test_a_reply_without_copies_or_with_long_names_is_printed() -> None:
    row = {"name": "/" + "\x1b" * 2000, "copied_bytes": 7, "files": 1, "layers": 1, "images": 5, "image_names": ["\n"]}
    row |= {f"{cause}_bytes": 1 for cause in CAUSES}
    reply = {
        "of": {"what": "image", "reference": "a\x1b", "images": 1, "missing_blobs": 2}, "one_in": 4, "layers": 2,
        "uncompressed_bytes": 70, "unique_bytes": 63, "copied_bytes": 7, "by": "file", "rows": [row] * 30,
        "causes": {f"{cause}_bytes": 1 for cause in CAUSES}, "left_out": {"rows": 3, "copied_bytes": 2},
        "outside_bytes": 1, "unread": [{"digest": "sha256:a", "reason": "\x07"}] * 30, "unread_layers": 99,
        "damaged": [], "damaged_layers": 0,
    }  # fmt: skip
    lines = list(where_lines(reply, "/state"))
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("13 more")]
    assert list(where_lines(reply | {"copied_bytes": 0}, "/state"))


# --- the workers -----------------------------------------------------------------------------------------------------


def job(stored_bytes: int) -> Job:
    return Job(Digest("sha256", "a" * 64), FileMark(0, 0, stored_bytes, 0))


FINDING = {
    "kind": "layer", "codec": "gzip", "uncompressed_bytes": 10, "reason": "", "read_until_ns": 1, "chunks": 1,
    "measured": 0, "manifest_bytes": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "trace",
    [(MOST_TRACE_BYTES + 1).to_bytes(8, "little"), (5).to_bytes(8, "little") + b"trace", bytes(8)],
    ids=["too long", "no trace", "empty"],
)
def test_a_worker_that_lies_about_a_trace_is_found_out(trace: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        end = TracesEnd(ours, ChunkParams(), Caps())
        theirs.sendall(json.dumps(FINDING).encode() + b"\n" + bytes(16) + (10).to_bytes(4, "little"))
        end.read()
        assert end.word(job(10)) is None
        theirs.sendall(trace)
        end.read()
        with pytest.raises(ValueError, match="trace"):
            end.word(job(10))
        end.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the walls are those of Linux")
def test_workers_have_the_walls_of_any_worker(tmp_path: Path) -> None:
    """Each can open no file and gains no right, while it has read a layer."""
    (tmp_path / "layer").write_bytes(gz(TARS["base"]))
    pool = make_pool(1, Courtesy(0, "normal", 0), ChunkParams(), Caps(), MeasureRule(), Tracers)
    try:
        descriptor = os.open(tmp_path / "layer", os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        digest = digest_of((tmp_path / "layer").read_bytes())
        pool.give(Job(digest, FileMark(0, 0, size, 0)), descriptor)
        os.close(descriptor)
        results = pool.collect(0.1)
        while not results:
            results = pool.collect(0.1)
        finding = results[0].finding
        assert isinstance(finding, Traced)
        assert finding.trace.paths == [b"usr/lib/a.so", b"opt/m", b"zeros", HOSTILE]
        [worker] = pool._workers  # noqa: SLF001 - its process is nobody else's business
        said = Path(f"/proc/{worker.process.pid}/status").read_text()  # type: ignore[attr-defined]
        assert re.search(r"^NoNewPrivs:\t1$", said, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", said, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", said, re.MULTILINE)
    finally:
        pool.close()
