"""Manifests and names made to do harm, in the caches of a real daemon beside good images: each has its stated result,
and the good images have the figures that they have alone.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

import bolts
from chunkd.names.containerd import DATABASE
from conftest import Tell
from daemon import BRISK, Daemon, Home, until, without_rights
from invariants import assert_sums, printed
from test_commands import HOSTILE, filled_layout
from test_hostile import memory_and_cpu
from test_registry_collection import IMAGE, INDEX, LAYER, Layout
from test_writers import NEVER

MOST_BYTES = 4 << 20
LIE_BYTES = 1 << 62
CHILDREN = 30_000
STRANGER = 54321
NAMES = (HOSTILE, "../../../etc/passwd", "a\0b\x07:\x1b]0;x\x07", "..", "$(reboot):v1", "\u202emoc.live:v1")


def gone(number: int) -> dict[str, Any]:
    """A descriptor of what is not here."""
    return {"mediaType": LAYER, "digest": f"sha256:{number:064x}", "size": 10}


def documents(layer: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Each with what must be said of it where it has a name. A kind `unknown` is one that could not be parsed."""
    unknown = {"kind": "unknown", "missing_blobs": 0, "platforms": []}

    def image(**more: Any) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer]} | more).encode()

    deep = b'{"schemaVersion":2,"layers":' + b"[" * (MOST_BYTES // 2 - 16)
    objects = b'{"manifests":' * (MOST_BYTES // 14)
    children = [{"digest": gone(number)["digest"], "size": number} for number in range(CHILDREN)]
    return {
        "4 MiB of lists in lists": (deep + b"]" * (MOST_BYTES - len(deep) - 1) + b"}", unknown),
        "4 MiB of objects in objects": (objects + b"1" + b"}" * (MOST_BYTES // 14), unknown),
        "4 MiB of values": (b'{"layers":[' + b"7," * (MOST_BYTES // 2 - 20) + b"7]}", unknown),
        "more than 4 MiB": (image() + b" " * MOST_BYTES, unknown),
        "duplicate keys": (image().replace(b'"config"', b'"layers": [], "config"'), unknown),
        "digests that are none": (image(layers=[layer | {"digest": "sha256:../../../etc/passwd"}]), unknown),
        "a digest in capitals": (image(layers=[layer | {"digest": layer["digest"].upper()}]), unknown),
        "sizes that lie": (
            image(layers=[layer | {"size": 1}, gone(1) | {"size": LIE_BYTES}]),
            {"kind": "image", "missing_blobs": 1, "missing_bytes": LIE_BYTES, "chunks": None},
        ),
        "an index of 30,000 children": (
            json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).encode(),
            {"kind": "index", "missing_blobs": 0, "platforms": [], "left_out": CHILDREN - 1000},
        ),
        "a subject that is not here": (image(subject=gone(2)), {"kind": "referrer", "missing_blobs": 0}),
        "a subject that contains nothing": (image(subject=layer), {"kind": "referrer", "missing_blobs": 0}),
        "two kinds at once": (image(manifests=[]), unknown),
        "cut short": (image()[:-1], unknown),
    }  # fmt: skip


def layer_and_config(made: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of an image that no good one shares anything with."""
    path = made.path / "blobs/sha256" / str(made.image(40)["digest"]).removeprefix("sha256:")
    said = json.loads(path.read_bytes())
    path.unlink()
    return said["layers"][0], said["config"]


def write_names(layout: Path, rows: list[dict[str, Any]]) -> None:
    (layout / "partial").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))
    (layout / "partial").rename(layout / "index.json")


def rows_of(home: Home) -> dict[str, dict[str, Any]]:
    found = printed(home, "images")
    assert_sums(home, found)
    return {row["digest"]: row for row in found["images"]}


def figures_of(rows: dict[str, dict[str, Any]], digests: set[str]) -> dict[str, Any]:
    """Without the names, and without what depends on the order of all images."""
    return {
        digest: {name: value for name, value in rows[digest].items() if name not in ("names", "left_out")}
        for digest in digests
    }


def test_hostile_manifests_and_names(home: Home, tell: Tell) -> None:
    made = filled_layout(home)
    good_rows = json.loads((made.path / "index.json").read_text())["manifests"]
    daemon = home.start(made.path, environ=NEVER)
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    before = rows_of(home)
    good = set(before)
    layer, config = layer_and_config(made)
    expected, rows = {}, []
    for number, (what, (content, said)) in enumerate(documents(layer, config).items()):
        row = made.put(content, IMAGE)
        rows.append(row | {"annotations": {"org.opencontainers.image.ref.name": f"hostile:v{number}"}})
        expected[str(row["digest"])] = what, said
    rows += [good_rows[0] | {"annotations": {"org.opencontainers.image.ref.name": name}} for name in NAMES]
    rows += [{"digest": "sha256:../../x"}, {"digest": None}, "row", 7, None, {}, {"annotations": []}]  # type: ignore[list-item]
    write_names(made.path, [*good_rows, *rows])

    def named() -> dict[str, dict[str, Any]]:
        daemon.until(lambda stats: stats["settled"], "nothing is left to do")
        return rows_of(home)

    found = until(named, lambda found: set(found) >= set(expected), "all have their names")
    for digest, (what, said) in expected.items():
        row = found[digest]
        assert {name: row[name] for name in said} == said, what
        assert row["stored"]["exclusive_bytes"] <= row["stored"]["referenced_bytes"]
    assert figures_of(found, good) == figures_of(before, good)
    assert set(found) == good | set(expected)
    assert set(found[good_rows[0]["digest"]]["names"]) >= {*NAMES} - {".."}
    for pid in daemon.workers():
        assert memory_and_cpu(pid)[0] <= 64
    for command in (("images",), ("images", "--partial"), ("similar",), ("freed", good_rows[0]["digest"])):
        done = home.command(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert all(line.isprintable() for line in done.stdout.splitlines()), command

    # A broken index.json keeps the names; the blobs' figures go on.
    (made.path / "index.json").write_bytes((made.path / "index.json").read_bytes()[:-9])
    as_of = printed(home, "images")["names_as_of"]
    daemon.settled_after_scan()
    until(lambda: printed(home, "images")["names_as_of"], lambda now: now > as_of, "names were read again")
    assert rows_of(home) == found
    (made.path / "blobs/sha256" / next(iter(expected)).removeprefix("sha256:")).unlink()
    daemon.until(lambda stats: stats["blobs"] == len(list((made.path / "blobs/sha256").iterdir())), "it went")
    assert next(iter(expected)) not in rows_of(home)
    assert daemon.stop() == 0
    home.check()
    tell(f"{len(expected)} hostile manifests and {len(NAMES)} names beside {len(good)} good images")


# --- containerd's database -----------------------------------------------------------------------------------------


def containerd_root(home: Home) -> tuple[Path, dict[str, Any]]:
    """One with an image in it, and its row."""
    root = home.cache("containerd")
    made = Layout(root / "io.containerd.content.v1.content")
    row = made.image(1, 2)
    (root / DATABASE).parent.mkdir()
    return root, row


def database(digest: str, name: bytes) -> bytes:
    images = {b"%s:v%d" % (name, at): bolts.image(digest, at + 1) for at in range(40)}
    return bolts.database({b"v1": {b"version": b"1", b"default": {b"images": images}}})


def names_after_a_scan(home: Home, daemon: Daemon) -> set[str]:
    as_of = printed(home, "images")["names_as_of"] or ""
    daemon.settled_after_scan()
    reply = until(lambda: printed(home, "images"), lambda now: (now["names_as_of"] or "") > as_of, "read again")
    return {name for row in reply["images"] for name in row["names"]}


def test_a_damaged_meta_db_keeps_the_names_and_stops_no_figure(home: Home, seed: int) -> None:
    root, row = containerd_root(home)
    path, good = root / DATABASE, database(row["digest"], b"docker.io/a")
    path.write_bytes(good)
    draw = random.Random(seed)
    daemon = home.start(root, environ=BRISK | {"CHUNKD_SCAN_INTERVAL_S": "86400"})
    assert names_after_a_scan(home, daemon) == {f"docker.io/a:v{at}" for at in range(40)}
    figures = figures_of(rows_of(home), {row["digest"]})
    noise = bytearray(good)
    for at in range(2048, len(noise), 100):
        noise[at] = draw.randrange(256)
    cyclic = bytes(good[:3072] + good[2048:3072] * (len(good) // 1024 - 3))
    damaged = [b"", good[:-1024], good[: len(good) // 2], bytes(len(good)), bytes(noise), cyclic, draw.randbytes(9000)]
    for bad in damaged:
        path.write_bytes(bad)
        found = names_after_a_scan(home, daemon)
        assert figures_of(rows_of(home), {row["digest"]}) == figures
        assert found == {f"docker.io/a:v{at}" for at in range(40)}
    said = [line.partition(" ")[2] for line in daemon.log.splitlines() if "meta.db" in line]
    assert 0 < len(said) <= len(damaged), "each time that something else is wrong"
    path.write_bytes(database(row["digest"], b"docker.io/b"))
    assert names_after_a_scan(home, daemon) == {f"docker.io/b:v{at}" for at in range(40)}
    assert daemon.stop() == 0
    home.check()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_meta_db_that_may_not_be_read_is_without_names(home: Home) -> None:
    """As containerd's is for everybody but root: its owner alone may read it, and the daemon is somebody else."""
    root, row = containerd_root(home)
    path = root / DATABASE
    path.write_bytes(database(row["digest"], b"docker.io/a"))
    path.chmod(0o600)
    os.chown(path, STRANGER, STRANGER)
    daemon = home.start(root, environ=NEVER, under=without_rights())
    for _ in range(3):
        assert names_after_a_scan(home, daemon) == set()
    found = rows_of(home)
    assert list(found) == [row["digest"]]
    assert found[row["digest"]]["chunks"]["uncompressed_bytes"] > 0
    assert daemon.log.count("meta.db") == 1
    path.chmod(0o644)
    assert len(names_after_a_scan(home, daemon)) == 40
    assert daemon.stop() == 0
    home.check()
