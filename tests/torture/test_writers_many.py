"""More real writers, each with many images that share layers, while the daemon runs: indexed equals present.

The timer's scan is set to a day and nobody asks for one. Every image is removed by a program of its kind as well.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import short_directory
from blobs import noise, tar, text
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, ZEROS, Daemon, Home, figures, opened, until
from test_writers import NEVER, all_is_indexed, copy, delete_image, make_image, need, on_disk, registry

# A third of them have a layer more.
IMAGES = 3 * share_of(10, 3)
BASES = 3
# A program in an image without a shell: it must be there before anything can be run.
WRITES_A_FILE = """
#include <stdio.h>
int main(int count, char **words) { FILE *out = fopen(words[1], "w"); return !out || fputs(words[1], out) < 0; }
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


def run(home: Home, *command: object, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)], env=home.environ, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def drawn(seed: int) -> list[int]:
    """Half of the images, in any order."""
    return random.Random(seed).sample(range(IMAGES), IMAGES // 2)


def removed(home: Home, daemon: Daemon, cache: Path, before: dict[str, int]) -> None:
    """What was removed from the cache is gone from the figures too, and what stayed is in them."""
    after = home.fresh(cache)
    assert 0 < after["layers"] < before["layers"]
    daemon.until_figures(after)
    all_is_indexed(home, daemon, cache)


def count(daemon: Daemon, tell: Tell, writer: str) -> None:
    stats = daemon.stats()
    landed = daemon.log.count("indexed sha256:")
    tell(f"{IMAGES} images by {writer}: {landed} blobs landed, {stats['blobs']} were left")


def test_umoci(home: Home, seed: int, tell: Tell) -> None:
    need("umoci")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    layout = cache / "layout"
    run(home, "umoci", "init", "--layout", layout)
    for base in range(BASES):
        run(home, "umoci", "new", "--image", f"{layout}:base{base}")
        (home.root / "base.tar").write_bytes(tar({"lib/base": noise(200_000, base), "etc/all": text(100_000)}))
        run(home, "umoci", "raw", "add-layer", "--image", f"{layout}:base{base}", home.root / "base.tar")
    for number in range(IMAGES):
        (home.root / "own.tar").write_bytes(tar({"own": noise(80_000, 100 + number), "etc/all": text(100_000)}))
        image = f"{layout}:base{number % BASES}"
        run(home, "umoci", "raw", "add-layer", "--image", image, "--tag", f"image{number}", home.root / "own.tar")
    all_is_indexed(home, daemon, cache)
    before = figures(daemon.stats())
    assert before["layers"] == BASES + IMAGES

    for number in drawn(seed):
        run(home, "umoci", "rm", "--image", f"{layout}:image{number}")
    run(home, "umoci", "gc", "--layout", layout)
    removed(home, daemon, cache, before)
    count(daemon, tell, "umoci")


def test_buildah_in_a_chroot(home: Home, seed: int, tell: Tell) -> None:
    need("buildah", "umoci", "gcc")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    storage = ("--root", home.root / "storage", "--runroot", home.root / "run", "--storage-driver", "vfs")

    def build(name: str, *lines: str) -> None:
        """An image by that name in buildah's own storage; its layers are pushed to the cache."""
        (context / "Containerfile").write_text("\n".join(lines))
        flags = ("--isolation", "chroot", "--layers=false", "--quiet", "--pull-never")
        run(home, "buildah", *storage, "build", *flags, "--tag", name, context)
        run(home, "buildah", *storage, "push", "--quiet", name, f"oci:{cache}/layout:{name}")

    context = home.root / "context"
    context.mkdir()
    (home.root / "write.c").write_text(WRITES_A_FILE)
    run(home, "gcc", "-static", "-O1", "-s", "-o", context / "write", home.root / "write.c")
    for base in range(BASES):
        (context / f"base{base}").write_bytes(noise(200_000, base))
        build(f"localhost/base{base}", "FROM scratch", f"COPY write base{base} /bin/")
    for number in range(IMAGES):
        (context / "own").write_bytes(noise(80_000, 100 + number))
        lines = [f"FROM localhost/base{number % BASES}", "COPY own /own"]
        if not number % 3:  # a second each
            lines.append(f'RUN ["/bin/write", "/number-{number}"]')
        build(f"localhost/image{number}", *lines)
    all_is_indexed(home, daemon, cache)
    before = figures(daemon.stats())
    assert before["layers"] == BASES + IMAGES

    for number in drawn(seed):
        run(home, "umoci", "rm", "--image", f"{cache}/layout:localhost/image{number}")
    run(home, "umoci", "gc", "--layout", cache / "layout")
    removed(home, daemon, cache, before)
    count(daemon, tell, "buildah")


@contextlib.contextmanager
def containerd(home: Home) -> Iterator[tuple[str, ...]]:
    """A containerd with everything of its own under the home: the start of a `ctr` command that asks it."""
    address = home.root / "containerd.sock"
    settings = home.root / "containerd.toml"
    settings.write_text(
        f'version = 2\nroot = "{home.root}/containerd"\nstate = "{home.root}/containerd-state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\n  address = "{address}"\n[ttrpc]\n  address = "{home.root}/ttrpc.sock"\n'
    )
    with (home.root / "containerd.log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "--config", str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=home.environ,
        )  # fmt: skip
        ctr = ("ctr", "--address", str(address))

        def answers() -> bool:
            assert process.poll() is None, (home.root / "containerd.log").read_text()
            return subprocess.run([*ctr, "version"], capture_output=True, timeout=PATIENCE_S).returncode == 0

        try:
            until(answers, bool, "containerd answers")
            yield ctr
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def test_containerd(home: Home, seed: int, tell: Tell) -> None:
    need("containerd", "ctr")
    cache = home.cache("containerd/io.containerd.content.v1.content")
    daemon = home.start(cache, environ=NEVER)
    with containerd(home) as ctr:
        for number in range(IMAGES):
            make_image(home.root / "image", number)
            with tarfile.open(home.root / "image.tar", "w") as archive:
                archive.add(home.root / "image", arcname=".")
            shutil.rmtree(home.root / "image")
            name = f"local/image{number}"
            run(home, *ctr, "images", "import", "--no-unpack", "--all-platforms", "--index-name", name, "image.tar",
                cwd=home.root)  # fmt: skip
        all_is_indexed(home, daemon, cache)
        before = figures(daemon.stats())
        assert before["layers"] == 1 + 2 + IMAGES + IMAGES // 3

        run(home, *ctr, "images", "rm", "--sync", *(f"local/image{number}" for number in drawn(seed)))
        removed(home, daemon, cache, before)
        left = run(home, *ctr, "images", "ls", "--quiet").split()
        run(home, *ctr, "images", "rm", "--sync", *left)
        assert not on_disk(cache)
        daemon.until_figures(ZEROS)
        home.check()
    count(daemon, tell, "containerd")


def test_skopeo_into_docker_registry(home: Home, seed: int, tell: Tell) -> None:
    need("skopeo", "docker-registry")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    images = [home.root / "images" / str(number) for number in range(IMAGES)]
    with registry(home, cache) as (address, settings):
        for number, image in enumerate(images):
            make_image(image, number)
            copy(home, image, "--dest-tls-verify=false", f"docker://{address}/team/app{number % 3}:{number}")
        all_is_indexed(home, daemon, cache)
        before = figures(daemon.stats())
        assert before["layers"] == 1 + 2 + IMAGES + IMAGES // 3
        for number in drawn(seed):
            delete_image(address, f"team/app{number % 3}", images[number])
    run(home, "docker-registry", "garbage-collect", settings)
    removed(home, daemon, cache, before)
    count(daemon, tell, "skopeo into docker-registry")


def test_skopeo_into_an_oci_layout(home: Home, seed: int, tell: Tell) -> None:
    need("skopeo", "umoci")
    cache = home.cache()
    daemon = home.start(cache, environ=NEVER)
    layout = cache / "layout"
    for number in range(IMAGES):
        make_image(home.root / "images" / str(number), number)
        copy(home, home.root / "images" / str(number), f"oci:{layout}:image{number}")
    all_is_indexed(home, daemon, cache)
    before = figures(daemon.stats())
    assert before["layers"] == 1 + 2 + IMAGES + IMAGES // 3
    for number in drawn(seed):
        run(home, "umoci", "rm", "--image", f"{layout}:image{number}")
    run(home, "umoci", "gc", "--layout", layout)
    removed(home, daemon, cache, before)
    count(daemon, tell, "skopeo into an OCI layout")
