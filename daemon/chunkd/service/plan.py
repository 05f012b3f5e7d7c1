"""`chunkd scan --plan`: a bucket is listed, a few objects are asked for their class, and this machine for its speed."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import sys
import sysconfig
import tarfile
import tempfile
import time
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from chunkd.errors import UsageError
from chunkd.model import Digest, FileMark, Job
from chunkd.objects import plan
from chunkd.objects.bucket import prefix_of
from chunkd.objects.store import Bucket, Object
from chunkd.service.daemon import rules_of
from chunkd.settings.config import Config
from chunkd.urls import OBJECT_STORES
from chunkd.worker.examine import examine
from chunkd.worker.recompress import Recompressor
from chunkd.worker.spawn import courtesy_of

# How much of this machine's own files is decoded, so often or so long at most, to know its speed.
CALIBRATE_BYTES, CALIBRATE_TIMES, CALIBRATE_S = 32 << 20, 3, 10.0
PRICES_BYTES = 1 << 16
METADATA_S, CLASS_S = 1.0, 10.0
_CLASSES = ("x-amz-storage-class", "x-goog-storage-class", "x-ms-access-tier")


def plan_of(config: Config, prices_path: str | None) -> dict[str, Any]:
    """The reply for the one bucket that is named. Reads no blob. Raises UsageError, and OSError where it can't be
    listed.
    """
    if len(config.caches) != 1 or not config.caches[0].startswith(OBJECT_STORES):
        raise UsageError("--plan is for one bucket: name it, such as s3://BUCKET/PREFIX")
    prices = None if prices_path is None else prices_of(prices_path)
    [url] = config.caches
    bucket, prefix = Bucket(url), prefix_of(url)
    began_s = time.monotonic()
    try:
        counted = plan.count(url, prefix, bucket.keys(prefix))
    except OSError as error:
        raise UsageError(f"cache {url}: can't be listed: {error.strerror}") from None
    listed_s = time.monotonic() - began_s
    classes = plan.by_class(class_of(bucket, counted.sample))
    workers, _ = courtesy_of(config.workers, config.nice, config.io_priority, config.read_bytes_per_s)
    where = {"url": url, "listed_s": listed_s, **where_of(url, os.environ)}
    return plan.plan(counted, classes, calibrate(config), workers, where, prices)


def prices_of(path: str) -> dict[str, float]:
    """The prices of a TOML file. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            found = tomllib.loads(file.read(PRICES_BYTES).decode())
    except (OSError, ValueError) as error:
        raise UsageError(f"prices {path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    for name, price in found.items():
        if name not in plan.PRICES or isinstance(price, bool) or not isinstance(price, int | float) or not price >= 0:
            raise UsageError(f"prices {path}: {name} must be one of {', '.join(plan.PRICES)}, and a number from 0 on")
    return {name: float(price) for name, price in found.items()}


def class_of(bucket: Bucket, sample: Iterable[Object]) -> Iterator[tuple[Object, str]]:
    """The storage class of each object, which a listing does not have."""
    objects = list(sample)
    for of, url in zip(objects, bucket.signed("HEAD", [one.key for one in objects]), strict=True):
        headers = _headers("HEAD", url, {}, CLASS_S)
        named = next(
            (headers[name] for name in _CLASSES if name in headers), "STANDARD" if "" in headers else "unknown"
        )
        yield of, named.upper()


def where_of(url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """In which region the bucket is, and this machine; None where nobody says."""
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    is_aws = url.startswith("s3://") and (urlsplit(endpoint).hostname or "").endswith("amazonaws.com")
    name = url.partition("://")[2].partition("/")[0]
    region = _headers("HEAD", f"{endpoint}/{name}", {}, CLASS_S).get("x-amz-bucket-region") if is_aws else None
    return {"is_aws": is_aws, "bucket_region": region, "own_region": own_region(environ) if is_aws else None}


def own_region(environ: Mapping[str, str]) -> str | None:
    """The region of AWS that this machine is in, by its metadata service; None outside."""
    if environ.get("AWS_EXECUTION_ENV"):
        return environ.get("AWS_REGION")
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    asked = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _headers("PUT", f"{endpoint}/latest/api/token", asked, METADATA_S).get("")
    if not token:
        return None
    region = f"{endpoint}/latest/meta-data/placement/region"
    return _headers("GET", region, {"X-aws-ec2-metadata-token": token}, METADATA_S).get("")


def _headers(method: str, url: str, headers: dict[str, str], timeout_s: float) -> dict[str, str]:
    """The headers of an answer, and if it is not a refusal its short body under the name ""; none without an answer."""
    split = urlsplit(url)
    make = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
    connection = make(split.netloc, timeout=timeout_s)
    try:
        connection.request(method, f"{split.path}?{split.query}" if split.query else split.path, headers=headers)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return found | ({"": answer.read(256).decode("ascii", "replace")} if answer.status == 200 else {})
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


def calibrate(config: Config) -> float:
    """How many stored bytes of a gzip layer a core decodes, cuts, hashes and measures in a second, tried with this
    machine's own files.
    """
    layer = _layer_of_own_files()
    digest = Digest("sha256", hashlib.sha256(layer).hexdigest())
    began_s, best = time.monotonic(), 0.0
    rules = rules_of(config)
    with tempfile.TemporaryFile() as file:
        file.write(layer)
        file.flush()
        for _ in range(CALIBRATE_TIMES):
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            cpu_s = time.process_time()
            job = Job(digest, FileMark(0, 0, len(layer), 0))
            measure = Recompressor(rules.measure)
            examine(job, os.dup(file.fileno()), rules.params, rules.caps, lambda _: None, measure=measure)
            best = max(best, len(layer) / (time.process_time() - cpu_s))
            if time.monotonic() > began_s + CALIBRATE_S:
                break
    return best


def _layer_of_own_files() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for folder in (sysconfig.get_path("stdlib"), os.path.dirname(sys.executable)):
            for above, _, names in os.walk(folder):
                for name in sorted(names):
                    if out.tell() < CALIBRATE_BYTES and os.path.isfile(path := os.path.join(above, name)):
                        archive.add(path, name, recursive=False)
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(out.getvalue()) + packer.flush()
