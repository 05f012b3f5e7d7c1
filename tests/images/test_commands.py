"""`chunkd images`, `freed` and `similar` on trees on disk: from the index and from a daemon the figures are those of
the oracle, which reads the same trees.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer, noise, tar, write_blob
from chunkd.client.ask import IMAGES_TRIES, Client
from chunkd.errors import IndexMoves
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.index.storage.environment import reading
from chunkd.model import Digest
from chunkd.model import digest_of as digest_in
from chunkd.names import record
from chunkd.names.name import Name, Part, Standing
from chunkd.settings.resolve import Resolved
from daemon import NPM_FIGURES, Daemon, Home, npm_layers
from image_oracle import Oracle
from indexed import put_names
from invariants import assert_invariants, assert_sums, printed
from test_registry import Tree
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout
from trees import world_of

HOSTILE = "evil\x1b[2J`touch x`$(y)'\"\n:1"


def keep_names(home: Home, parts: list[Part]) -> None:
    """As a reading of the names leaves them in the index; nobody has it open."""
    with reading(str(home.state)) as store, store.snapshot() as txn:
        params = store.check_format(txn, None).params
        [cache] = store.caches(txn)
    index = Index(str(home.state), Rules(params), "a test")
    try:
        with index.transaction() as change:
            put_names(change, "", parts, cache)
        index.record_at_rest()
    finally:
        index.close()


def names_of(home: Home) -> list[Part]:
    """The names that the last scan read into the index."""
    with reading(str(home.state)) as store, store.snapshot() as txn:
        return [record.decode(value).part for _, value in store.names(txn)]


def filled_layout(home: Home) -> Layout:
    """Two repositories that share a base; two tags of one digest; an index of two platforms with an attestation, of
    which a third platform is absent; untagged images; one that lacks a layer; an orphan.
    """
    made = Layout(home.root / "cache")
    absent = made.image(11, architecture="riscv64")
    rows = [
        (made.image(1, 2), "shop/api:v1"),
        (made.image(1, 3), "shop/api:v2"),
        (made.image(1, 3), "shop/api:latest"),
        (made.image(1, 2, step=1), "shop/web:v1"),
        (
            made.index(
                made.attestation(1), amd64=made.image(1, 7), arm64=made.image(5, architecture="arm64"), riscv64=absent
            ),
            "shop/both:v1",
        ),
        (made.image(8, 9), "shop/half:v1"),
        (made.image(1, 3), HOSTILE),
    ]
    made.image(1, 10)
    made.put(gz(tar({"orphan": noise(4000, 99)})), LAYER)
    document = {"schemaVersion": 2, "manifests": [
        row | {"annotations": {"org.opencontainers.image.ref.name": name}} for row, name in rows
    ]}  # fmt: skip
    (made.path / "index.json").write_text(json.dumps(document))
    blobs = made.path / "blobs" / "sha256"
    (blobs / str(absent["digest"]).removeprefix("sha256:")).unlink()
    lacking = json.loads((blobs / str(rows[5][0]["digest"]).removeprefix("sha256:")).read_text())
    (blobs / lacking["layers"][1]["digest"].removeprefix("sha256:")).unlink()
    return made


def filled_registry(home: Home) -> Path:
    """The same as distribution has it, with a tag that moved, revisions of the children of an index, and one untagged
    manifest without a revision.
    """
    made, base = filled_layout(home), home.root / "registry/docker/registry/v2"
    for path in (made.path / "blobs" / "sha256").iterdir():
        to = base / "blobs" / "sha256" / path.name[:2] / path.name
        to.mkdir(parents=True)
        shutil.copyfile(path, to / "data")
    tree = Tree(base)
    document = json.loads((made.path / "index.json").read_text())
    for at_ns, row in enumerate(document["manifests"], 10):
        name = row["annotations"]["org.opencontainers.image.ref.name"]
        if name == HOSTILE:
            continue
        repository, _, tag = name.partition(":")
        digest = digest_in(row["digest"])
        assert digest
        tree.push(repository, tag, digest, at_ns)
        manifest = json.loads((made.path / "blobs/sha256" / digest.hex).read_bytes())
        for child in manifest.get("manifests", ()):
            if (made.path / "blobs/sha256" / child["digest"].removeprefix("sha256:")).exists():
                tree.hold(repository, Digest("sha256", child["digest"].removeprefix("sha256:")), at_ns)
        if name == "shop/api:v2":
            tree.link(tree.manifests(repository) / "tags/moved/index/sha256" / digest.hex, digest, 5)
            tree.push(repository, "moved", digest, at_ns)
    shutil.rmtree(made.path)
    return base


def compare(home: Home, expected: Oracle) -> dict[str, Any]:
    """Each command's JSON against the oracle's; what was asked, to be asked of a daemon again."""
    found = printed(home, "images")
    for row in found["images"]:
        assert row["left_out"] == 0
    known = expected.images()
    assert {name: found[name] for name in known} == known | {
        "images": [row | {"left_out": 0} for row in known["images"]]
    }
    by_repository, known = printed(home, "images", "--by", "repository"), expected.by_repository()
    assert {name: by_repository[name] for name in known} == known
    everything = {"images": found, "repositories": by_repository, "similar": printed(home, "similar")}
    for root in expected.roots:
        everything[root] = printed(home, "freed", root)
        known = expected.freed([root])
        assert {name: everything[root][name] for name in known} == known
    everything["all"] = printed(home, "freed", *expected.roots)
    known = expected.freed(expected.roots)
    assert {name: everything["all"][name] for name in known} == known
    return everything


def settled(home: Home, cache: Path) -> Daemon:
    daemon = home.start(cache)
    daemon.until(lambda stats: stats["settled"] and stats["scans"], "scanned")
    return daemon


def without_moment(replies: dict[str, Any]) -> dict[str, Any]:
    moment = ("commit", "as_of", "names_as_of")
    return {name: {key: value for key, value in reply.items() if key not in moment} for name, reply in replies.items()}


@pytest.mark.parametrize("kind", ["layout", "registry"])
def test_the_figures_are_those_of_the_oracle_from_the_index_and_from_a_daemon(home: Home, kind: str) -> None:
    base = filled_layout(home).path if kind == "layout" else filled_registry(home)
    home.scan(base)
    expected = Oracle(world_of(base, called="cache"))
    offline = compare(home, expected)
    assert_invariants(home, expected, offline, random.Random(1))
    reply = offline["images"]
    assert reply["names_as_of"] is not None
    assert reply["partial"]["images"] == 1
    assert {row["kind"] for row in reply["images"]} >= {"image", "index"}
    assert len(offline["similar"]["alike"]) >= 2
    daemon = settled(home, base)
    assert without_moment(compare(home, expected)) == without_moment(offline)
    # Over the socket the rows come in pages.
    rows, after = [], ""
    while after is not None:
        page = daemon.get(f"/v1/images?limit=2&after={after}")
        rows += page["images"]
        after = page["next"]
    assert rows == reply["images"]
    home.check()


def test_what_a_registry_would_collect(home: Home) -> None:
    """Nothing of what has a revision link, all of the image without one."""
    base = filled_registry(home)
    home.scan(base)
    [untagged] = [row for row in printed(home, "images", "--untagged")["images"] if row["kind"] == "image"]
    found = printed(home, "freed", untagged["digest"])
    assert found["stored"]["bytes"] > 0
    assert found["collection"]["sources"] == []
    linked = printed(home, "freed", "shop/both:v1")
    collection = linked["collection"]
    assert (collection["sources"], collection["freed_now_bytes"]) == (["registry"], 0)
    assert collection["has_index"]
    # The index itself, two platforms and the attestation.
    assert {row["repository"] for row in collection["delete"]} == {"shop/both"}
    assert len(collection["delete"]) == 4
    both = printed(home, "freed", "shop/both:v1", untagged["digest"])
    assert both["collection"]["freed_now_bytes"] == found["stored"]["bytes"]
    text = home.command("freed", "shop/both:v1").stdout
    assert text.count("skopeo delete") == 4
    assert "--delete-untagged" not in text


def test_a_glob_and_the_last_ones(home: Home) -> None:
    base = filled_registry(home)
    home.scan(base)
    found = printed(home, "freed", "shop/api:v*")
    assert found["names"] == ["shop/api:v1"]
    assert [row["names"] for row in found["kept"]] == [["shop/api:latest", "shop/api:moved"]]
    every = printed(home, "freed", "shop/api:*")
    assert len(every["images"]) == 2
    last = printed(home, "freed", "shop/api:*", "--keep-last", "1")
    assert (last["names"], last["kept_last"]) == (["shop/api:v1"], 1)
    assert printed(home, "freed", "shop/api:*", "--keep-last", "2")["images"] == []


@pytest.mark.parametrize("with_daemon", [False, True])
def test_references_that_mean_nothing_are_usage_errors(home: Home, with_daemon: bool) -> None:
    base = filled_layout(home).path
    home.scan(base)
    if with_daemon:
        settled(home, base)
    for references in (["shop/api:v9"], ["sha256:"], ["nothing*"], ["a b"], ["\x1b"], [""], [], ["a" * 3001]):
        done = home.command("freed", *references)
        assert (done.returncode, done.stdout) == (2, ""), references
    assert "shop/api:v1" in home.command("freed", "shop/api:v9").stderr
    for flags in (["--threshold", "0"], ["--threshold", "nan"], ["--threshold", "1.01"], ["--threshold", "0.1234"]):
        assert home.command("similar", *flags).returncode == 2
    assert home.command("images", "--by", "repository", "--partial").returncode == 2
    assert home.command("images", "--sort", "colour").returncode == 2


def test_hostile_names_steer_no_terminal_and_reach_no_command(home: Home) -> None:
    made = filled_layout(home)
    home.scan(made.path)
    parts = names_of(home)
    [hostile] = [name for part in parts for name in part.names or () if name.text == HOSTILE]
    # As if a registry had such a repository.
    keep_names(home, [Part("registry", "x", (Name("", HOSTILE, "", hostile.digest, 0, Standing.HELD),))])
    for command in (["images"], ["images", "--untagged"], ["images", "--partial"], ["images", "--by", "repository"],
                    ["freed", str(hostile.digest)], ["similar"], ["similar", "--threshold", "0.001"]):  # fmt: skip
        done = home.command(*command)
        assert (done.returncode, done.stderr) == (0, "")
        assert all(line.isprintable() for line in done.stdout.splitlines()), command
        assert "skopeo" not in done.stdout


def test_an_index_without_images_and_no_index(home: Home) -> None:
    for command in (["images"], ["similar"], ["freed", "x"]):
        assert home.command(*command).returncode == 3
    cache = home.cache()
    write_blob(cache, gz(layer(1, 30_000)))
    home.scan(cache)
    assert printed(home, "images")["unheld"]["blobs"] == 1
    assert home.command("images").returncode == 0
    assert printed(home, "similar")["alike"] == []
    assert home.command("freed", "x").returncode == 2


def test_an_index_that_moves_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []

    def ask(target: str, _offline: Any, _timeout_s: float) -> Any:
        commit = commits.pop(0)
        last = "after=&" not in target
        return {"images": [{"digest": str(commit)}], "commit": commit, "next": None if last else f"{commit}-1"}

    client = Client(Resolved({}, {}))
    monkeypatch.setattr(client, "_ask", ask)
    commits[:] = [1, 2, 3, 3]
    assert [row["digest"] for row in client.images()["images"]] == ["3", "3"]
    commits[:] = [1, 2] * IMAGES_TRIES
    with pytest.raises(IndexMoves):
        client.images()


def test_real_layers(home: Home) -> None:
    """Images of the 90 npm layers, one a version, over two shared bases: the sums hold to the byte."""
    layers = npm_layers()
    made = Layout(home.root / "cache")
    blobs = made.path / "blobs" / "sha256"
    rows = []
    for path in layers:
        shutil.copyfile(path, blobs / path.name)
    for number, path in enumerate(layers[2:80]):
        described = [
            {"mediaType": LAYER, "digest": f"sha256:{one.name}", "size": os.stat(one).st_size}
            for one in (layers[number % 2], path)
        ]
        config = made.put(json.dumps({"rootfs": {"type": "layers"}, "number": number}).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": described}
        name = {"org.opencontainers.image.ref.name": f"npm/p{number // 10}:v{number % 10}"}
        rows.append(made.put(json.dumps(document).encode(), IMAGE) | {"annotations": name})
    (made.path / "index.json").write_text(json.dumps({"manifests": rows[:60]}))
    home.scan(made.path)
    reply = printed(home, "images")
    assert len(reply["images"]) == 78
    assert reply["unheld"]["blobs"] == 10
    assert_sums(home, reply)
    freed = printed(home, "freed", *(row["digest"][7:27] for row in rows))
    assert freed["chunks"]["bytes"] + reply["unheld"]["unique_bytes"] == NPM_FIGURES["totals"]["unique_bytes"]
    some = printed(home, "freed", "npm/p[0-2]:*")
    before = printed(home, "stats")["unique_bytes"]
    for name in some["stored"]["blobs"]:
        (blobs / name.removeprefix("sha256:")).unlink()
    assert before - home.scan(made.path)["unique_bytes"] == some["chunks"]["bytes"] > 0
    assert_sums(home, printed(home, "images"))
