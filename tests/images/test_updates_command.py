"""`chunkd updates` on a tree on disk: from the index and from a daemon, and as text."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chunkd.chunkers.gear import Chunker
from chunkd.cli.update_lines import PAIRS_SHOWN, all_lines, update_lines
from chunkd.model import ChunkParams, MeasureRule
from chunkd.worker.recompress import Recompressor
from daemon import NPM_FIGURES, Home, npm_layers
from invariants import printed
from test_commands import HOSTILE, filled_layout, filled_registry, settled, without_moment
from test_diff_command import two_versions
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout

MIB = 1 << 20


def test_it_is_the_same_from_the_index_and_from_a_daemon(home: Home) -> None:
    base = filled_registry(home)
    home.scan(base / "blobs")
    asked: tuple[tuple[str, ...], ...] = (
        ("shop/api",), ("shop/api:moved",), ("shop/both", "--platform", "linux/arm64"), ("--all",),
        ("--all", "--platform", "linux/amd64"),
    )  # fmt: skip
    offline = {" ".join(words): printed(home, "updates", *words) for words in asked}
    [pair] = offline["shop/api"]["pairs"]
    diff = printed(home, "diff", "shop/api:v1", "shop/api:v2")
    assert {name: pair[name] for name in ("layers", "chunks", "cheaper", "pulled")} == {
        name: diff[name] for name in ("layers", "chunks", "cheaper", "pulled")
    }
    assert pair["to_names"] == ["shop/api:v2"]
    assert offline["shop/api"]["left_out"]["tags"] == ["latest", "moved"]
    assert offline["--all"]["repositories"][0]["repository"] == "shop/api"
    settled(home, base / "blobs")
    for words in asked:
        served = printed(home, "updates", *words)
        assert without_moment({"": served}) == without_moment({"": offline[" ".join(words)]}), words
        text = home.command("updates", *words)
        assert (text.returncode, text.stderr) == (0, "")
        assert max(map(len, text.stdout.splitlines()[1:])) <= 100  # the first has a path


def test_the_history_of_a_tag_that_moved(home: Home) -> None:
    base = filled_registry(home)
    tags = base / "repositories/shop/api/_manifests/tags"
    digests = [(tags / tag / "current/link").read_text() for tag in ("v1", "v2")]
    for at_ns, digest in enumerate(digests, 10):
        for folder in ("current", f"index/{digest.replace(':', '/')}"):
            (tags / "nightly" / folder).mkdir(parents=True, exist_ok=True)
            (tags / "nightly" / folder / "link").write_text(digest)
            os.utime(tags / "nightly" / folder / "link", ns=(at_ns, at_ns))
    home.scan(base / "blobs")
    found = printed(home, "updates", "shop/api:nightly")
    assert (found["order"], found["same_time"]) == ("pushes", 0)
    assert [[pair["from"], pair["to"]] for pair in found["pairs"]] == [digests]


def test_what_can_not_be_asked(home: Home) -> None:
    home.scan(filled_layout(home).path)
    for words in (
        [], ["shop/api", "--all"], [""], ["a b"], ["a\x07b"], ["shop/none"], ["shop/api:v9"], ["shop/*"],
        ["shop/api", "--platform", "a b"], ["shop/api", "--platform", "linux/s390x"],
    ):  # fmt: skip
        done = home.command("updates", *words)
        assert (done.returncode, done.stdout) == (2, ""), words


def test_hostile_names_steer_no_terminal(home: Home) -> None:
    made = filled_layout(home)
    document = json.loads((made.path / "index.json").read_text())
    row = document["manifests"][0]
    for name in (HOSTILE.replace(":1", ":2"), "e\x1b[2Jvil:1.0\x07"):
        document["manifests"].append(row | {"annotations": {"org.opencontainers.image.ref.name": name}})
    (made.path / "index.json").write_text(json.dumps(document))
    home.scan(made.path)
    rows = printed(home, "updates", "--all")["repositories"]
    assert HOSTILE.rpartition(":")[0] in [row["repository"] for row in rows if row["pairs"]]
    done = home.command("updates", "--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.isprintable() for line in done.stdout.splitlines())


def made_up_pair(at: int = 41, **more: Any) -> dict[str, Any]:
    return {
        "from": "sha256:" + "b" * 64, "to": "sha256:" + "c" * 64, "from_names": [f"shop/api:v{at - 1}"],
        "to_names": [f"shop/api:v{at}", "shop/api:latest"], "partial": {"from": 0, "to": 0, "to_bytes": 0},
        "pulled": {"layers": 9, "stored_bytes": 106 * MIB}, "measured_by": "set",
        "layers": {"missing": 3, "blobs": 5, "stored_bytes": 42 * MIB},
        "chunks": {"total_bytes": 5 * MIB, "recompressed_error_bytes": MIB // 4, "runs": 231, "missing": 992},
        "cheaper": {"bytes": 4 * MIB, "error_bytes": 0, "whole_layers": 1},
    } | more  # fmt: skip


def made_up(pairs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    medians = {
        "unknown": 0, "dearer": 0, "without_error": 0, "left_out": 0, "median_requests": 77,
        "median_layer_bytes": 31 * MIB, "median_chunk_bytes": 3 * MIB, "median_cheaper_bytes": 2 * MIB,
    }  # fmt: skip
    left_out = {"absent": 0, "not_images": 0, "unordered": 0, "without_platform": 0, "earlier": 0, "tags": []}
    return {
        "repository": "shop/api", "tag": None, "platform": None, "order": "versions", "versions": len(pairs) + 1,
        "series": 1, "same_time": 0, "left_out": left_out, "first_pull": made_up_pair(), "pairs": pairs,
        "names_as_of": None,
        "distances": [{"distance": one, "pairs": max(0, len(pairs) - one + 1)} | medians for one in (1, 2, 5, 10)],
    } | more  # fmt: skip


def test_no_line_is_wider_than_the_table_and_each_figure_is_there() -> None:
    long = made_up_pair(from_names=["shop/api:v1.10.0-beta.12"], chunks=made_up_pair()["chunks"] | {
        "total_bytes": 2048 * MIB, "recompressed_error_bytes": 1023 * MIB, "runs": 12_345_678})  # fmt: skip
    reply = made_up([made_up_pair(at) for at in range(1, 60)] + [long])
    lines = list(update_lines(reply, "from a test"))
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for figure in ("v58", "42.0 MiB", "5.0 MiB", "256.0 KiB", "4.0 MiB", "231", "88 % less", "4776 % MORE", "31.0 MiB",
                   "3.0 MiB", "2.0 MiB", "77", "10 versions on", "v1.10.0-beta.12"):  # fmt: skip
        assert figure in text, figure
    assert sum("42.0 MiB" in line and "A first pull" not in line for line in lines) == PAIRS_SHOWN
    assert "latest" not in text


def test_a_first_pull_that_costs_more_as_chunks_is_said_to() -> None:
    chunks = made_up_pair()["chunks"] | {"total_bytes": 53 * MIB}
    lines = list(update_lines(made_up([], first_pull=made_up_pair(chunks=chunks)), "from a test"))
    assert [line for line in lines if "53.0 MiB as chunks: 26 % MORE than as layers" in line]
    dear = made_up([made_up_pair()])
    dear["distances"][0] |= {"dearer": 1, "without_error": 1}
    assert [line for line in update_lines(dear, "from a test") if "1 consecutive pair cost MORE" in line]


def test_what_is_unknown_is_not_printed_as_a_figure() -> None:
    unknown = made_up_pair(chunks=None, cheaper=None, partial={"from": 0, "to": 1, "to_bytes": 7})
    unmeasured = made_up_pair(chunks=made_up_pair()["chunks"] | {"total_bytes": None}, cheaper=None)
    client = made_up_pair(partial={"from": 1, "to": 0, "to_bytes": 0})
    pairs = [unknown, unmeasured, client]
    reply = made_up(pairs, first_pull=unknown)
    for row in reply["distances"]:
        row |= {"unknown": row["pairs"], "median_layer_bytes": None, "median_chunk_bytes": None}
    lines = list(update_lines(reply, "from a test"))
    assert not [line for line in lines if "5.0 MiB" in line]
    assert sum("unknown" in line for line in lines) >= 5


def test_tags_of_one_name_are_told_apart_by_digests() -> None:
    moved = made_up_pair(from_names=["shop/api:latest"], to_names=["shop/api:latest"])
    text = "\n".join(update_lines(made_up([moved], tag="latest", order="pushes", same_time=2), "from a test"))
    assert "sha256:bbbbbbbb" in text
    assert "sha256:cccccccc" in text


def test_all_repositories_are_a_line_each() -> None:
    row = {
        "repository": "shop/api", "pairs": 40, "unknown": 0, "layer_bytes": 100 * MIB, "chunk_bytes": 12 * MIB,
        "saved_bytes": 88 * MIB, "saved": 0.88, "without_error": 0, "median_layer_bytes": 31 * MIB,
        "median_chunk_bytes": 3 * MIB, "median_cheaper_bytes": 2 * MIB,
    }  # fmt: skip
    dear = row | {
        "repository": "x" * 60,
        "chunk_bytes": 400 * MIB,
        "saved_bytes": -300 * MIB,
        "saved": -3.0,
        "unknown": 2,
    }
    none = row | {"repository": "lone", "pairs": 0}
    median = {name: value for name, value in row.items() if name.startswith("median")}
    median |= {"repositories": 2, "median_saved": -1.06}
    reply = {"platform": None, "most_pairs": 100, "left_out": {"pairs": 5}, "median": median, "names_as_of": None,
             "repositories": [row, dear, none]}  # fmt: skip
    lines = list(all_lines(reply, "from a test"))
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for figure in (
        "31.0 MiB",
        "3.0 MiB",
        "+88.0 MiB",
        "88 % less",
        "-300.0 MiB",
        "300 % MORE",
        "lone",
        "median of 2",
        "106 % MORE",
    ):
        assert figure in text, figure
    empty = reply | {"repositories": [], "median": {"repositories": 0}, "left_out": {"pairs": 0}}
    assert list(all_lines(empty, "from a test"))


def test_two_versions_on_disk_are_one_update(home: Home) -> None:
    two_versions(home)
    found = home.command("updates", "app")
    assert found.returncode == 0
    assert "v1 " in found.stdout
    assert isinstance(printed(home, "updates", "app")["pairs"][0]["chunks"]["total_bytes"], int)


def npm_images(home: Home) -> dict[str, list[Path]]:
    """The npm layers as images, each of one layer, with its package as the repository and its version as the tag. The
    layers of each package, in the order of its versions. Every chunk is measured.
    """
    made = Layout(home.root / "cache")
    rows, packages = [], dict[str, list[tuple[list[int], Path]]]()
    for path, layer in zip(npm_layers(), NPM_FIGURES["layers"], strict=True):
        shutil.copyfile(path, made.path / "blobs" / "sha256" / path.name)
        package, _, version = layer["npm"].rpartition("@")
        described = {"mediaType": LAYER, "digest": f"sha256:{path.name}", "size": layer["stored_bytes"]}
        config = made.put(json.dumps({"rootfs": {"type": "layers"}, "npm": layer["npm"]}).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [described]}
        name = {"org.opencontainers.image.ref.name": f"{package}:{version}"}
        rows.append(made.put(json.dumps(document).encode(), IMAGE) | {"annotations": name})
        packages.setdefault(package, []).append((list(map(int, version.split("."))), path))
    (made.path / "index.json").write_text(json.dumps({"manifests": rows}))
    done = home.command("scan", made.path, "--measure-one-in", "1")
    assert done.returncode == 0, done.stderr
    return {package: [path for _, path in sorted(own)] for package, own in packages.items()}


def chunks_of(path: Path) -> tuple[dict[bytes, int], int]:
    """What each distinct chunk of a layer takes recompressed, and how many chunks it has."""
    chunker = Chunker(ChunkParams(), measure=Recompressor(MeasureRule(one_in=1)))
    chunker.feed(gzip.decompress(path.read_bytes()))
    recipe = chunker.finish()
    hashes = [recipe.hashes[at : at + 16] for at in range(0, len(recipe.hashes), 16)]
    return dict(zip(hashes, np.frombuffer(recipe.measured, "<u4").tolist(), strict=True)), len(hashes)


def test_packages_of_npm_as_images(home: Home) -> None:
    """Each version is one new layer: as layers an update is the whole image, as chunks those that the last version had
    not.
    """
    medians = {}
    for package, paths in npm_images(home).items():
        found = printed(home, "updates", package)
        recipes = [chunks_of(path) for path in paths]
        whole = [pair["chunks"]["whole_bytes"] for pair in (found["first_pull"], *found["pairs"])]
        assert max(whole) < 1000  # a manifest and a config
        for row in found["distances"]:
            apart = row["distance"]
            layers, chunks = [], []
            for (client, _), (image, count), path in zip(recipes, recipes[apart:], paths[apart:], strict=False):
                layers.append(path.stat().st_size)
                chunks.append(sum(image[one] for one in image.keys() - client) + 40 * count)
            assert row["pairs"] == len(paths) - apart
            assert row["median_layer_bytes"] == pytest.approx(statistics.median(layers), abs=1000)
            assert row["median_chunk_bytes"] == pytest.approx(statistics.median(chunks), abs=1000)
            assert row["dearer"] == sum(map(int.__lt__, layers, chunks))
        medians[package] = [row["median_chunk_bytes"] / row["median_layer_bytes"] for row in found["distances"]]
        assert {pair["measured_by"] for pair in found["pairs"]} == {"set"}
        first = found["first_pull"]
        assert first["chunks"]["recompressed_bytes"] == sum(recipes[-1][0].values())
        text = home.command("updates", package).stdout
        assert ("% MORE" in text.partition("FROM ")[0]) == (
            first["chunks"]["total_bytes"] > first["layers"]["stored_bytes"]
        )
    found = printed(home, "updates", "--all")
    assert [row["repository"] for row in found["repositories"]] == ["react-dom", "vue", "lodash"]
    assert found["median"]["median_saved"] == found["repositories"][1]["saved"]
    # Of versions that are farther apart, more moves; of lodash then more than as layers.
    assert all(ratios[0] < ratios[-1] for ratios in medians.values())
    assert medians["lodash"][0] < 1 < medians["lodash"][-1]
    assert [ratio < 1 for package in ("react-dom", "vue") for ratio in medians[package]] == [True] * 8
