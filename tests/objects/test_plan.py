"""What a scan of a bucket would take is said without reading any of it."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blobs import gz, layer
from buckets import TOP, Served, blob_key, fill, served
from chunkd.cli.plan import plan_lines
from chunkd.errors import UsageError
from chunkd.objects import plan
from chunkd.objects.reader import RANGE_BYTES
from chunkd.objects.store import PAGE_KEYS, Bucket, Object
from chunkd.service import plan as service_plan
from chunkd.settings.config import load

GB = 10**9
BESIDE: dict[str, Any] = {
    "url": "s3://registry",
    "listed_s": 1.0,
    "is_aws": True,
    "bucket_region": "eu-west-1",
    "own_region": "eu-west-1",
}


def name_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def made_up(keys: int) -> Iterator[list[Object]]:
    """A listing of that many keys: blobs of 10 MB, and what lies in a registry beside them."""
    page: list[Object] = []
    for number in range(keys):
        key, size = blob_key(name_of(number)), 10_000_000
        if number % 10 == 8:
            key, size = f"{TOP}/repositories/app/_manifests/revisions/sha256/{name_of(number)}/link", 71
        elif number % 100 == 9:
            key, size = f"{TOP}/repositories/app/_uploads/{number}/data", 5_000_000
        page.append(Object(key, size, '"tag"', 1))
        if len(page) == PAGE_KEYS:
            yield page
            page = []
    yield page


def planned(counted: plan.Counted, classes: dict[str, tuple[int, int]], **where: object) -> dict[str, Any]:
    prices: Any = where.pop("prices", None)
    return plan.plan(counted, classes, 100e6, 4, BESIDE | where, prices)


def test_everything_listed_is_counted_once() -> None:
    counted = plan.count("s3://registry", "", made_up(10_000))
    assert (counted.objects, counted.blobs, counted.upload_objects, counted.other_objects) == (10_000, 8900, 100, 1000)
    assert (counted.blob_bytes, counted.upload_bytes, counted.other_bytes) == (8900 * 10**7, 100 * 5 * 10**6, 71_000)
    assert (counted.pages, counted.ranges) == (11, 8900 * -(-(10**7) // RANGE_BYTES))
    assert plan.SAMPLE <= len(counted.sample) < 2 * plan.SAMPLE
    assert {one.key[len(TOP) :][:14] for one in counted.sample} == {"/blobs/sha256/"}
    again = plan.count("s3://registry", "", [*made_up(1000), *made_up(1000)])
    assert (again.objects, again.blobs) == (2000, 890)
    empty, of = hashlib.sha256(b"").hexdigest(), Object("", 0, '"tag"', 1)
    listed = [of._replace(key=f"a/{blob_key(name)}") for name in (empty, name_of(1))]
    found = plan.count("s3://registry/a", "a/", [listed])
    assert (found.blobs, found.placeholders, found.blob_bytes) == (1, 1, 0)


def test_figures_follow_from_the_listing_the_sample_and_the_speed() -> None:
    counted = plan.count("s3://registry", "", made_up(10_000))
    reply = planned(counted, {"STANDARD": (50, 500), "STANDARD_IA": (25, 250), "GLACIER": (25, 250)})
    assert reply["archived_bytes"] == reply["retrieval_bytes"] == counted.blob_bytes // 4
    assert reply["read_bytes"] == counted.blob_bytes - counted.blob_bytes // 4
    assert reply["cpu_hours"] == reply["read_bytes"] / 100e6 / 3600
    assert reply["wall_s"] == reply["read_bytes"] / 100e6 / 4
    assert reply["cost"] is None
    cost = planned(counted, {}, prices={"cpu_hour": 36.0, "transfer_per_gb": 2.0})["cost"]
    assert cost == {
        "cpu_hour": pytest.approx(counted.blob_bytes / 100e6 / 100),
        "transfer_per_gb": pytest.approx(counted.blob_bytes / GB * 2),
        "sum": pytest.approx(counted.blob_bytes / 1e10 + counted.blob_bytes / GB * 2),
    }
    assert json.loads(json.dumps(reply)) == reply
    assert f"{counted.blobs:,}" in "\n".join(plan_lines(reply))


@pytest.mark.parametrize(
    ("where", "classes", "words"),
    [
        ({}, {"STANDARD": (1, 1)}, ["NAT gateway", "_uploads/"]),
        ({"own_region": "us-east-1"}, {}, ["us-east-1", "NAT gateway", "_uploads/"]),
        ({"own_region": None}, {}, ["internet", "NAT gateway", "_uploads/"]),
        ({"is_aws": False, "bucket_region": None, "own_region": None}, {}, ["_uploads/"]),
        ({}, {"ONEZONE_IA": (1, 1)}, ["NAT gateway", "infrequent", "_uploads/"]),
        ({}, {"INTELLIGENT_TIERING": (1, 1)}, ["NAT gateway", "tiering", "_uploads/"]),
        ({}, {"DEEP_ARCHIVE": (1, 1)}, ["NAT gateway", "archived", "_uploads/"]),
    ],
)
def test_what_may_cost_more_than_the_scan_is_said(
    where: dict[str, Any], classes: dict[str, tuple[int, int]], words: list[str]
) -> None:
    warnings = planned(plan.count("s3://registry", "", made_up(1000)), classes, **where)["warnings"]
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_many_keys_are_counted_fast() -> None:
    """At 100,000 keys a second of the processor, with room for a machine that others use too."""
    pages = list(made_up(100_000))
    began_s = time.process_time()
    plan.count("s3://registry", "", pages)
    assert time.process_time() - began_s < 10


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(tmp_path / "files") as found:
        for name, value in found.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(service_plan, "CALIBRATE_BYTES", 1 << 20)
        yield found


def test_a_plan_of_a_bucket_reads_nothing_of_it(place: Served, tmp_path: Path) -> None:
    fill(place)
    place.blob(gz(layer(6)), "GLACIER")
    place.put(f"{TOP}/repositories/web/_uploads/1/data", b"half")
    config = load({"caches": [place.url], "state_dir": str(tmp_path / "state")}, {"HOME": str(tmp_path)})
    place.proxy.requests.clear()
    reply = service_plan.plan_of(config, None)
    assert (reply["blobs"], reply["upload_bytes"]) == (12, 4)
    assert set(reply["storage_classes"]) == {"STANDARD", "GLACIER"}
    assert reply["archived_bytes"] == len(gz(layer(6)))
    assert reply["stored_bytes_per_cpu_s"] > 1_000_000
    assert {request.method for request in place.proxy.requests if "list-type" not in request.of} == {"HEAD"}
    assert not (tmp_path / "state").exists()
    assert "Signature" not in json.dumps(reply)


def test_what_is_refused_tells_no_class(place: Served) -> None:
    """Such as by a policy that lets objects be listed and not read."""
    place.put("there", b"1")
    objects = [Object(key, 1, "", 0) for key in ("there", "not there")]
    found = service_plan.class_of(Bucket(place.url), objects)
    assert [(of.key, name) for of, name in found] == [("there", "STANDARD"), ("not there", "UNKNOWN")]


def test_prices_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text("cpu_hour = 0.04\nget_per_1000 = 1")
    assert service_plan.prices_of(str(path)) == {"cpu_hour": 0.04, "get_per_1000": 1.0}
    for wrong in ("cpu = 1", "cpu_hour = -1", "cpu_hour = true", "cpu_hour = 'x'", "cpu_hour =", "cpu_hour = nan"):
        path.write_text(wrong)
        with pytest.raises(UsageError):
            service_plan.prices_of(str(path))
    with pytest.raises(UsageError):
        service_plan.prices_of(str(tmp_path / "none"))


def test_a_plan_is_for_one_bucket(tmp_path: Path) -> None:
    for caches in (["/var/lib"], ["s3://one", "s3://two"]):
        with pytest.raises(UsageError):
            service_plan.plan_of(load({"caches": caches}, {"HOME": str(tmp_path)}), None)


def test_the_metadata_service_says_where_this_machine_is() -> None:
    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say(b"token")

        def do_GET(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token"] == "token"
            self._say(b"eu-west-1")

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        here = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}
        assert service_plan.own_region(here) == "eu-west-1"
        assert service_plan.own_region(here | {"AWS_EC2_METADATA_DISABLED": "true"}) is None
        assert service_plan.own_region({"AWS_EXECUTION_ENV": "AWS_ECS", "AWS_REGION": "us-east-1"}) == "us-east-1"
    finally:
        server.shutdown()
        server.server_close()
    assert service_plan.own_region(here) is None
