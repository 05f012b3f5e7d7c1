"""`chunkd diff` on a tree on disk: from the index, from a daemon, as a gate, and as text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import oracle
from blobs import gz, noise, tar
from chunkd.cli.diff_lines import Link, diff_lines, with_seconds
from daemon import Home
from image_oracle import Oracle
from invariants import printed
from test_commands import HOSTILE, filled_layout, settled, without_moment
from test_pulls import expected
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout
from trees import world_of

MIB = 1 << 20


@pytest.fixture
def base(home: Home) -> Path:
    found = filled_layout(home).path
    home.scan(found)
    return found


PULLS: tuple[tuple[list[str], list[str], str, str], ...] = (
    (["shop/api:v1", "shop/api:v2"], ["shop/api:v1"], "shop/api:v2", ""),
    (["--from", "none", "shop/both:v1"], [], "shop/both:v1", ""),
    (["shop/api:v*", "shop/web:v1", "shop/both:v1"], ["shop/api:v1", "shop/api:v2", "shop/web:v1"], "shop/both:v1", ""),
    (["shop/api:v1", "shop/both:v1", "--platform", "linux/amd64"], ["shop/api:v1"], "shop/both:v1", "linux/amd64"),
    (["shop/api:v1", "shop/half:v1"], ["shop/api:v1"], "shop/half:v1", ""),
)


def test_it_is_what_the_oracle_says_from_the_index_and_from_a_daemon(home: Home, base: Path) -> None:
    known = Oracle(world_of(base))
    digests = {name[1]: name[4] for name in known.world.names}
    offline = [printed(home, "diff", *words) for words, *_ in PULLS]
    for reply, (_, client, to, platform) in zip(offline, PULLS, strict=True):
        wanted = expected(known, [digests[name] for name in client], digests[to], platform)
        assert {name: reply[name] for name in wanted if name not in ("chunks", "cheaper")} == {
            name: wanted[name] for name in wanted if name not in ("chunks", "cheaper")
        }
        assert plain_chunks(reply) == wanted["chunks"]
    assert offline[0]["layers"]["missing"] == 1
    assert offline[4]["chunks"] is None
    settled(home, base)
    for reply, (words, *_) in zip(offline, PULLS, strict=True):
        served = printed(home, "diff", *words)
        assert without_moment({"": served}) == without_moment({"": reply})


def plain_chunks(reply: dict[str, Any]) -> dict[str, Any] | None:
    chunks = reply["chunks"]
    return chunks and {name: value for name, value in chunks.items() if name != "recompressed_error_bytes"}


@pytest.mark.usefixtures("base")
def test_a_condition_ends_the_command_with_5(home: Home) -> None:
    pull = ("diff", "shop/api:v1", "shop/api:v2")
    size_bytes = printed(home, *pull)["layers"]["stored_bytes"]
    for condition, code in {
        f"layer_bytes>={size_bytes}": 5,
        f"layer_bytes>{size_bytes}": 0,
        "layer_bytes<1MiB": 5,
        "layer_bytes > 1 GB": 0,
        "missing_layers==1": 5,
        "missing_layers>1KB": 2,
        "redundancy<1": 2,
        "chunk_bytes>50 MiB": 0,
    }.items():
        done = home.command(*pull, "--fail-if", condition)
        assert (done.returncode, bool(done.stdout)) == (code, code != 2), (condition, done.stderr)
    # The lost layer's chunks are unknown: that is no pass.
    assert home.command("diff", "shop/api:v1", "shop/half:v1", "--fail-if", "chunk_bytes>1").returncode == 1


@pytest.mark.usefixtures("base")
def test_both_ways_and_seconds(home: Home) -> None:
    reply = printed(home, "diff", "shop/api:v1", "shop/both:v1", "--both", "--link", "1Mbit,100ms,2")
    back = reply["back"]
    assert (back["from"], [back["to"]]) == ([reply["to"]], reply["from"])
    layers = reply["layers"]
    assert reply["link"]["layers_s"] == 8 * layers["stored_bytes"] / 10**6 + -(-layers["blobs"] // 2) / 10
    assert len(reply["link"]["ranges_s"]) == len(reply["chunks"]["ranges"])
    assert home.command("diff", "shop/api:v1", "shop/both:v1", "--both").stdout.count("as layers today") == 2


def two_versions(home: Home) -> Path:
    """Images of two layers each, in which a part of the files changes."""
    made = Layout(home.root / "cache")
    rows = []
    for version in (1, 2):
        layers = [
            made.put(gz(tar({str(at): noise(60_000, at + 100 * (version * (at % 3 == 0))) for at in some})), LAYER)
            for some in (range(8), range(8, 16))
        ]
        config = made.put(json.dumps({"rootfs": {"type": "layers"}, "version": version}).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers}
        name = {"org.opencontainers.image.ref.name": f"app:v{version}"}
        rows.append(made.put(json.dumps(document).encode(), IMAGE) | {"annotations": name})
    (made.path / "index.json").write_text(json.dumps({"manifests": rows}))
    home.scan(made.path)
    return made.path


@pytest.mark.parametrize("with_daemon", [False, True])
def test_decoded_it_is_exact(home: Home, with_daemon: bool) -> None:
    """Every chunk's own length, also of those that the index has not measured."""
    base = two_versions(home)
    if with_daemon:
        settled(home, base)
    pull, blobs = ("diff", "app:v1", "app:v2"), base / "blobs" / "sha256"
    world = world_of(blobs.parent.parent)
    for path in blobs.iterdir():
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            chunks = oracle.chunks(gzip.decompress(data))
            for (number, _), chunk in zip(world.layers[f"sha256:{path.name}"], chunks, strict=True):
                world.measured[number] = oracle.recompressed_bytes(chunk)
    digests = {name[1]: name[4] for name in world.names}
    wanted = expected(Oracle(world), [digests["app:v1"]], digests["app:v2"])
    plain, found = printed(home, *pull), printed(home, *pull, "--measure")
    assert found["measured_by"] == "decoded"
    assert plain_chunks(found) == wanted["chunks"]
    assert (found["chunks"]["recompressed_error_bytes"], found["by_layer"]) == (0, wanted["by_layer"])
    assert found["layers"] == plain["layers"]
    assert [layer["missing"] > 8 for layer in found["by_layer"]] == [True, True]
    assert home.command(*pull, "--measure", "--both").returncode == 0
    if not with_daemon:  # which would count the layer as gone
        (blobs / found["by_layer"][1]["digest"].removeprefix("sha256:")).write_bytes(b"x")
        assert home.command(*pull, "--measure").returncode == 1


@pytest.mark.usefixtures("base")
def test_what_can_not_be_asked(home: Home) -> None:
    for words in (
        ["shop/api:v1"], ["--from", "none", "shop/api:v1", "shop/api:v2"], ["--from", "x", "shop/api:v1"], [],
        ["shop/api:v9", "shop/api:v1"], ["shop/api:v1", "shop/api:v*"], ["a b", "shop/api:v1"],
        ["shop/api:v1", "shop/both:v1", "--platform", "linux/s390x"], ["shop/api:v1", "shop/api:v2", "--link", "9"],
        ["shop/api:v1", "shop/api:v2", "--link", "0Mbit,1ms,1"], ["shop/api:v1", "shop/api:v2", "--platform", "a b"],
        ["--from", "none", "shop/api:v1", "--both"],
    ):  # fmt: skip
        done = home.command("diff", *words)
        assert (done.returncode, done.stdout) == (2, ""), words


@pytest.mark.usefixtures("base")
def test_hostile_names_steer_no_terminal(home: Home) -> None:
    reply = printed(home, "images")
    [digest] = [row["digest"] for row in reply["images"] if HOSTILE in row["names"]]
    for words in ([digest, "shop/web:v1"], ["shop/web:v1", digest, "--both", "--link", "1kbit,1ms,1"]):
        done = home.command("diff", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(line.isprintable() for line in done.stdout.splitlines())


def made_up(**more: Any) -> dict[str, Any]:
    row = {"digest": "sha256:" + "a" * 64, "stored_bytes": 42 * MIB, "chunks": 1100, "missing": 992, "bytes": 11 * MIB,
           "recompressed_bytes": 5 * MIB, "recipe_bytes": 44_000, "runs": 231, "cheaper": "chunks"}  # fmt: skip
    ranges = [(0, 231, 5), (8192, 148, 6), (131_072, 61, 7), (MIB, 19, 8), (None, 1, 9)]
    chunks = {
        "missing": 992, "bytes": 11 * MIB, "recompressed_bytes": 5 * MIB, "recompressed_error_bytes": MIB // 4,
        "recipe_bytes": 44_000, "runs": 231, "whole_blobs": 2, "whole_bytes": 5000, "total_bytes": 5 * MIB + 49_000,
        "ranges": [{"gap_bytes": gap, "ranges": count, "bytes": size * MIB} for gap, count, size in ranges],
    }  # fmt: skip
    return {
        "from": ["sha256:" + "b" * 64], "from_names": ["shop/api:v40"], "to": "sha256:" + "c" * 64,
        "to_names": ["shop/api:v41"], "platform": None, "partial": {"from": 0, "to": 0, "to_bytes": 0},
        "pulled": {"layers": 9, "stored_bytes": 106 * MIB},
        "layers": {"missing": 1, "blobs": 3, "stored_bytes": 42 * MIB + 5000}, "chunks": chunks,
        "cheaper": {"bytes": 5 * MIB + 49_000, "error_bytes": MIB // 4, "whole_layers": 0}, "measured_by": "set",
        "by_layer": [row],
    } | more  # fmt: skip


def test_no_line_is_wider_than_the_table_and_each_figure_is_there() -> None:
    reply = with_seconds(made_up(), Link(100 * 10**6, 30, 8))
    lines = list(diff_lines(reply, "from a test"))
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for figure in ("106.0 MiB", "42.0 MiB", "5.0 MiB", "992", "231", "148", "61", "19", "88 %", "256.0 KiB", "3.6 s"):
        assert figure in text, figure


def test_that_chunks_cost_more_is_said_as_plainly_as_a_gain() -> None:
    reply = made_up(layers={"missing": 1, "blobs": 3, "stored_bytes": 4 * MIB})
    assert [line for line in diff_lines(reply, "from a test") if "26 % MORE" in line]


def test_what_is_unknown_is_not_printed_as_a_figure() -> None:
    chunks = made_up()["chunks"] | {"recompressed_bytes": None, "total_bytes": None, "ranges": []}
    row = made_up()["by_layer"][0] | {"recompressed_bytes": None, "cheaper": None}
    unmeasured = made_up(chunks=chunks, cheaper=None, measured_by=None, by_layer=[row])
    assert [line for line in diff_lines(unmeasured, "from a test") if "unknown" in line]
    partial = made_up(chunks=None, cheaper=None, measured_by=None, by_layer=[],
                      partial={"from": 1, "to": 2, "to_bytes": MIB})  # fmt: skip
    for reply in (unmeasured, partial):
        assert list(diff_lines(with_seconds(reply, Link(10**6, 1, 1)), "from a test"))
