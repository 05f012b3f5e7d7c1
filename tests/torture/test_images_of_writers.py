"""Images of real layers that real programs push and collect, in any order, while a daemon watches.

Whenever nothing is left to do, the figures are those of the oracle, which reads the same tree. What `chunkd freed` says
of any set of images is what goes from the disk when they are removed and collected, digest by digest, and what
`unique_bytes` falls by. The timer's scan is set to a day and nobody asks for one.
"""

from __future__ import annotations

import json
import random
import shutil
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Daemon, Home, npm_layers, until
from image_oracle import Oracle, World
from invariants import assert_invariants, assert_sums, printed
from test_commands import compare
from test_real_trees import listed
from test_registry_collection import CONFIG, IMAGE, LAYER, Layout
from test_writers import NEVER, copy, need, on_disk, registry
from test_writers_many import containerd, run
from trees import reference, world_of

# The oracle cuts some 2 MB a second, and each has 2.4.
VERSIONS = share_of(16, 6)
REMOVALS = share_of(10, 3)
ORDERS = share_of(30, 4)

Row = dict[str, Any]


def image(layout: Layout, *layers: Path, architecture: str = "amd64", step: int = 0) -> Row:
    config = {
        "created": f"2024-01-01T00:{step:02}:00Z", "architecture": architecture, "os": "linux",
        "config": {"Env": [f"STEP={step}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.name}" for layer in layers]},
    }  # fmt: skip
    document = {
        "schemaVersion": 2, "mediaType": IMAGE, "config": layout.put(json.dumps(config).encode(), CONFIG),
        "layers": [layout.put(layer.read_bytes(), LAYER) for layer in layers],
    }  # fmt: skip
    return layout.put(json.dumps(document).encode(), IMAGE)


def drawn_pushes(layout: Layout, draw: random.Random) -> list[tuple[Row, str]]:
    """An image for each version of a package, over one of two bases; two tags of one digest; an image in two
    repositories; a tag that moves twice, which leaves two images untagged; indexes of two platforms that share one,
    with attestations; a child with a name of its own. In any order, but those that move a tag keep theirs.
    """
    layers = npm_layers()
    bases, versions = (layers[0], layers[3]), layers[50 : 50 + VERSIONS]
    rows = [image(layout, bases[at % 2], one, step=at) for at, one in enumerate(versions)]
    arm = image(layout, bases[1], versions[1], architecture="arm64")
    both = layout.index(layout.attestation(1), amd64=rows[2], arm64=arm)
    found = [(row, f"npm/vue:v{at}") for at, row in enumerate(rows) if at != 2]
    found += [
        (rows[0], "npm/vue:latest"), (rows[1], "team/web:v1"), (both, "npm/both:v1"), (arm, "npm/both:arm64"),
        (layout.index(layout.attestation(2), amd64=rows[3], arm64=arm), "npm/both:v2"),
    ]  # fmt: skip
    moves = [image(layout, bases[0], versions[at], step=30 + at) for at in range(3)]
    draw.shuffle(found)
    for row in moves:
        at = max((at for at, (_, name) in enumerate(found, 1) if name == "npm/vue:nightly"), default=0)
        found.insert(draw.randint(at, len(found)), (row, "npm/vue:nightly"))
    return found


@dataclass
class Watched:
    """A tree of images that a daemon watches. `world` reads it, `remove` removes what a reply of `freed` is about and
    collects.
    """

    home: Home
    daemon: Daemon
    cache: Path
    world: Callable[[], World]
    remove: Callable[[dict[str, Any]], None]

    def settled(self) -> Oracle:
        """The figures of the tree as it is now, once the daemon's are the same."""
        expected = Oracle(self.world())
        assert set(expected.world.present) == on_disk(self.cache)
        known = expected.images()
        known["images"] = [row | {"left_out": 0} for row in known["images"]]

        def differing() -> list[tuple[Any, Any]]:
            self.daemon.until(lambda stats: stats["settled"], "nothing is left to do")
            found = printed(self.home, "images")
            rows = zip_longest(found["images"], known["images"])
            others = [(found[name], known[name]) for name in ("partial", "unheld")]
            return [(one, other) for one, other in (*rows, *others) if one != other]

        # A tag of a manifest that was here before is no event: it is seen when somebody asks after a minute.
        until(differing, lambda found: not found, "the figures are the oracle's", 2 * PATIENCE_S)
        return expected

    def prove(self, draw: random.Random, tell: Tell, writer: str) -> None:
        expected = self.settled()
        assert_invariants(self.home, expected, compare(self.home, expected), draw)
        self.remove({"images": [], "collection": {"delete": []}})
        expected, freed_blobs, all_roots = self.settled(), 0, len(expected.roots)
        for number in range(REMOVALS):
            left = REMOVALS - number
            some = draw.sample(expected.roots, max(1, len(expected.roots) // left if left < 3 else draw.randint(1, 3)))
            freed, known = printed(self.home, "freed", *some), expected.freed(some)
            assert {name: freed[name] for name in known} == known
            before, unique_bytes = on_disk(self.cache), self.daemon.stats()["unique_bytes"]
            self.remove(freed)
            assert sorted(before - on_disk(self.cache)) == freed["stored"]["blobs"]
            expected = self.settled()
            assert unique_bytes - self.daemon.stats()["unique_bytes"] == freed["chunks"]["bytes"]
            freed_blobs += len(freed["stored"]["blobs"])
            if not expected.roots:
                break
        if expected.roots:
            compare(self.home, expected)
        self.home.check()
        stats = self.daemon.stats()
        assert (stats["scans"], stats["failed_blobs"], stats["watching"]) == (1, 0, True)
        tell(f"{all_roots} images by {writer}, {number + 1} removals with {freed_blobs} blobs freed, as foretold")


def put_orphan(folder: Path) -> None:
    """A push cut short: a layer whose manifest never came."""
    layer = npm_layers()[-1]
    partial = folder.parent / "partial"
    partial.mkdir()
    shutil.copyfile(layer, partial / "data")
    if folder.name == "sha256" and not (folder.parent.parent / "oci-layout").exists():
        to = folder / layer.name[:2] / layer.name
        to.parent.mkdir(exist_ok=True)
        partial.rename(to)
    else:
        (partial / "data").rename(folder / layer.name)
        partial.rmdir()


def test_skopeo_into_docker_registry(home: Home, seed: int, tell: Tell) -> None:
    need("skopeo", "docker-registry")
    draw, cache, layout = random.Random(seed), home.cache(), Layout(home.root / "made")
    base = cache / "docker/registry/v2"
    daemon = home.start(cache, environ=NEVER)
    with registry(home, cache) as (address, settings):

        def remove(freed: dict[str, Any]) -> None:
            for row in freed["collection"]["delete"]:
                request = urllib.request.Request(
                    f"http://{address}/v2/{row['repository']}/manifests/{row['digest']}", method="DELETE"
                )
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - this test's own
                    assert reply.status == 202
            run(home, "docker-registry", "garbage-collect", settings)

        for row, name in drawn_pushes(layout, draw):
            copy(home, layout.chosen(row), "--all", "--dest-tls-verify=false", f"docker://{address}/{name}")
        put_orphan(base / "blobs/sha256")
        Watched(home, daemon, cache, lambda: world_of(base), remove).prove(draw, tell, "skopeo and docker-registry")


def collect(layout: Path, freed: dict[str, Any]) -> None:
    """Rows go from index.json, then all blobs that none of the others reaches."""
    document = json.loads((layout / "index.json").read_text())
    document["manifests"] = [row for row in document["manifests"] if row["digest"] not in freed["images"]]
    (layout / "index.json").write_text(json.dumps(document))
    reached, pending = set(), [row["digest"] for row in document["manifests"]]
    while pending:
        digest = pending.pop()
        path = layout / "blobs" / digest.replace(":", "/")
        if digest in reached or not path.exists():
            continue
        reached.add(digest)
        data = path.read_bytes()
        said = json.loads(data) if data.startswith(b"{") else {}
        rows = [said["config"]] if "layers" in said else []
        pending += [row["digest"] for row in rows + said.get("layers", []) + said.get("manifests", [])]
    for path in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" not in reached:
            path.unlink()


def test_skopeo_into_an_oci_layout(home: Home, seed: int, tell: Tell) -> None:
    need("skopeo")
    draw, cache, made = random.Random(seed), home.cache(), Layout(home.root / "made")
    daemon = home.start(cache, environ=NEVER)
    layout = cache / "shop"
    for row, name in drawn_pushes(made, draw):
        copy(home, made.chosen(row), "--all", f"oci:{layout}:{name}")
    put_orphan(layout / "blobs/sha256")
    watched = Watched(
        home, daemon, cache, lambda: world_of(layout, called="shop"), lambda freed: collect(layout, freed)
    )
    watched.prove(draw, tell, "skopeo")


def test_containerd(home: Home, seed: int, tell: Tell) -> None:
    need("skopeo", "containerd", "ctr")
    draw, made = random.Random(seed), Layout(home.root / "made")
    cache = home.cache("containerd/io.containerd.content.v1.content")
    daemon = home.start(cache, environ=NEVER)
    imported: list[str] = []
    with containerd(home) as ctr:

        def world() -> World:
            """With the names that containerd itself lists, in the order in which they came."""
            names = {f"{name}": str(digest) for name, digest in listed(home, ctr).items()}
            rows = [reference(name, "", digest, imported.index(name) + 1) for name, digest in names.items()]
            return world_of(cache, names=rows)

        def remove(freed: dict[str, Any]) -> None:
            names = [name for name, digest in listed(home, ctr).items() if str(digest) in freed["images"]]
            if names:
                run(home, *ctr, "images", "rm", "--sync", *names)

        for row, name in drawn_pushes(made, draw):
            single = home.root / "single"
            copy(home, made.chosen(row), "--all", f"oci:{single}")
            with tarfile.open(home.root / "image.tar", "w") as archive:
                archive.add(single, arcname=".")
            shutil.rmtree(single)
            run(home, *ctr, "images", "import", "--no-unpack", "--all-platforms", "--index-name", name, "image.tar",
                cwd=home.root)  # fmt: skip
            if name in imported:
                imported.remove(name)
            imported.append(name)
        # What moving a tag left behind is collected some time later, or now.
        run(home, *ctr, "images", "tag", imported[0], "last")
        run(home, *ctr, "images", "rm", "--sync", "last")
        Watched(home, daemon, cache, world, remove).prove(draw, tell, "containerd")


def test_any_order_of_arrival_and_removal(home: Home, seed: int, tell: Tell) -> None:
    """Blobs land and go one by one, and names too, in any order, so that most images lack something meanwhile. At the
    end all are there, and the reply is the one that a fresh index gives.
    """
    draw, made = random.Random(seed), Layout(home.root / "made")
    cache = home.cache()
    layout = cache / "shop"
    (layout / "blobs/sha256").mkdir(parents=True)
    rows = [
        row | {"annotations": {"org.opencontainers.image.ref.name": name}} for row, name in drawn_pushes(made, draw)
    ]
    blobs = sorted((made.path / "blobs/sha256").iterdir())
    (layout / "index.json").write_text('{"manifests": []}')
    daemon = home.start(cache, environ=NEVER)
    watched = Watched(home, daemon, cache, lambda: world_of(layout, called="shop"), lambda _: None)
    partial = 0
    for number in range(ORDERS + 1):
        share = 1.0 if number == ORDERS else draw.choice((0.3, 0.6, 0.9))
        for blob in draw.sample(blobs, len(blobs)):
            to = layout / "blobs/sha256" / blob.name
            if draw.random() < share and not to.exists():
                shutil.copyfile(blob, layout / "partial")
                (layout / "partial").rename(to)
            elif draw.random() > share and to.exists():
                to.unlink()
        some = rows if number == ORDERS else draw.sample(rows, draw.randint(1, len(rows)))
        (layout / "partial").write_text(json.dumps({"manifests": some}))
        (layout / "partial").rename(layout / "index.json")
        expected = watched.settled()
        reply = printed(home, "images")
        assert_sums(home, reply)
        partial += reply["partial"]["images"]
    assert partial
    assert_invariants(home, expected, compare(home, expected), draw)
    assert daemon.stop() == 0
    home.check()
    fresh = home.root / "fresh"
    home.scan(cache, state=fresh)
    again = json.loads(home.command("images", "--json", state=fresh).stdout)
    moment = ("commit", "as_of", "names_as_of")
    assert {key: again[key] for key in again if key not in moment} == {
        key: reply[key] for key in reply if key not in moment
    }
    tell(f"{ORDERS} orders of {len(blobs)} blobs, in which images lacked something {partial} times")
