"""Two real writers push into watched caches: skopeo into an OCI layout, and skopeo into docker-registry.

The timer's scan is set to a day and nobody asks for one: each blob is found by an event, or by a doubt of the daemon's.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobs import digest_of, gz, noise, tar, text, zst
from chunkd.model import Cause
from daemon import BRISK, PATIENCE_S, ZEROS, Daemon, Home, figures, until
from ports import free_port

# Level debug has a line for each blob, however many there are.
NEVER = BRISK | {
    "CHUNKD_LOG_LEVEL": "debug",
    "CHUNKD_SCAN_INTERVAL_S": "86400",
    "CHUNKD_POLLED_SCAN_INTERVAL_S": "86400",
}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGES = 6
EVENTS = (Cause.MOVED_IN, Cause.WRITTEN, Cause.CREATED)
# A blob that lies in two places is found by the second one when it has left the first as it was read.
FOUND_BY = {cause.value for cause in (*EVENTS, Cause.LISTED, Cause.BLOB_FOLDER, Cause.SAME_DIGEST)}


def need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian packages of the same name)")


def make_image(layout: Path, number: int) -> None:
    """An OCI layout with one image: a base layer that all share, one that half share, and one or two of its own."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = digest_of(data)
        (blobs / digest.hex).write_bytes(data)
        return {"mediaType": kind, "digest": str(digest), "size": len(data)}

    trees = [
        tar({"etc/base": text(200_000, 1), "usr/lib/base.so": noise(300_000, 1)}),
        tar({"usr/lib/half.so": noise(200_000, 10 + number % 2)}),
        tar({"app/own": noise(100_000, 100 + number), "usr/lib/base.so": noise(300_000, 1)}),
    ]
    layers = [put(gz(tree), "application/vnd.oci.image.layer.v1.tar+gzip") for tree in trees]
    if number % 3 == 0:
        trees.append(tar({"app/more": text(150_000, 200 + number)}))
        layers.append(put(zst(trees[-1]), "application/vnd.oci.image.layer.v1.tar+zstd"))
    settings = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [f"NUMBER={number}"]},
        "rootfs": {"type": "layers", "diff_ids": [str(digest_of(tree)) for tree in trees]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put(json.dumps(settings).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), MANIFEST)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture
def images(home: Home) -> list[Path]:
    return make_images(home, IMAGES)


def make_images(home: Home, count: int) -> list[Path]:
    paths = [home.root / "images" / str(number) for number in range(count)]
    for number, path in enumerate(paths):
        make_image(path, number)
    return paths


def copy(home: Home, image: Path, *to: str) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", f"oci:{image}", *to],
        env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def on_disk(cache: Path) -> set[str]:
    """The digests whose files are in a cache, by their paths alone."""
    found = set()
    for path in cache.rglob("*"):
        name = path.parent.name if path.name == "data" else path.name
        if path.is_file() and "blobs/sha256" in str(path) and re.fullmatch("[0-9a-f]{64}", name):
            found.add(f"sha256:{name}")
    return found


def indexed(daemon: Daemon) -> set[str]:
    return {row["digest"] for row in daemon.blobs() if row["state"] in ("layer", "other")}


def all_is_indexed(home: Home, daemon: Daemon, cache: Path) -> None:
    """Everything that lies in the cache is in the figures, found without a scan after the one at start."""
    present = on_disk(cache)
    stats = daemon.until(lambda stats: stats["blobs"] == len(present) and stats["settled"], "every blob indexed")
    assert indexed(daemon) == present
    assert figures(stats) == home.fresh(cache)
    assert (stats["scans"], stats["failed_blobs"], stats["watching"]) == (1, 0, True)
    told = dict(re.findall(r"indexed (sha256:[0-9a-f]{64}), .*; found: (.+)", daemon.log))
    assert told.keys() >= present
    for digest in present:
        assert told[digest] in FOUND_BY, told[digest]
    home.check()


def test_skopeo_into_an_oci_layout(home: Home, images: list[Path]) -> None:
    need("skopeo")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    for number, image in enumerate(images):
        copy(home, image, f"oci:{cache}/layout{number % 2}:tag{number}")
    all_is_indexed(home, daemon, cache)
    before = figures(daemon.stats())
    assert before["layers"] == 1 + 2 + IMAGES + IMAGES // 3

    for number, image in enumerate(images):  # pushed again: renamed over, truncated and written again
        copy(home, image, f"oci:{cache}/layout{number % 2}:tag{number}")
    daemon.until_figures(before)
    all_is_indexed(home, daemon, cache)
    shutil.rmtree(cache / "layout1")
    daemon.until_figures(home.fresh(cache))
    shutil.rmtree(cache / "layout0")
    daemon.until_figures(ZEROS)
    home.check()


@contextlib.contextmanager
def registry(
    home: Home, store: Path, logged: str = "{level: error, accesslog: {disabled: true}}"
) -> Iterator[tuple[str, Path]]:
    """A docker-registry on a free port: its address and its settings' file. Its log is `registry.log`."""
    address = f"127.0.0.1:{free_port()}"
    settings = home.root / "registry.yml"
    settings.write_text(
        f"version: 0.1\nlog: {logged}\n"
        f"storage: {{filesystem: {{rootdirectory: {store}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (home.root / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(settings)], stdout=log, stderr=log, env=home.environ
        )

        def answers() -> bool:
            assert process.poll() is None, (home.root / "registry.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
                return True
            return False

        try:
            until(answers, bool, "docker-registry answers")
            yield address, settings
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def delete_image(address: str, repository: str, image: Path) -> None:
    digest = json.loads((image / "index.json").read_text())["manifests"][0]["digest"]
    request = urllib.request.Request(f"http://{address}/v2/{repository}/manifests/{digest}", method="DELETE")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310 - of this test's own registry
        assert reply.status == 202


def test_skopeo_into_docker_registry_and_its_garbage_collection(home: Home, images: list[Path]) -> None:
    need("skopeo", "docker-registry")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    with registry(home, cache) as (address, settings):
        for number, image in enumerate(images):
            copy(home, image, "--dest-tls-verify=false", f"docker://{address}/team/app{number % 2}:{number}")
        all_is_indexed(home, daemon, cache)
        before = figures(daemon.stats())
        assert before["layers"] == 1 + 2 + IMAGES + IMAGES // 3
        for number, image in enumerate(images):
            copy(home, image, "--dest-tls-verify=false", f"docker://{address}/team/app{number % 2}:{number}")
        all_is_indexed(home, daemon, cache)
        assert figures(daemon.stats()) == before

        order = list(enumerate(images))
        random.Random(0).shuffle(order)
        for number, image in order[:4]:
            delete_image(address, f"team/app{number % 2}", image)
    subprocess.run(
        ["docker-registry", "garbage-collect", str(settings)],
        env=home.environ, capture_output=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    after = home.fresh(cache)
    assert 0 < after["layers"] < before["layers"]
    daemon.until_figures(after)
    all_is_indexed(home, daemon, cache)
