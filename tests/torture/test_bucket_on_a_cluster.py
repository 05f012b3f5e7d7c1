"""The whole path with real servers: a registry in a bucket, read by two machines of a cluster, merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from answering import short_directory
from clusters import cluster
from conftest import Tell
from counts import share_of
from daemon import PATIENCE_S, Home, opened
from test_registry_in_a_bucket import BUCKET, Store, says_no_secret, store
from test_scan_into_store import images, images_of_index, merged, of_scan, said, small

IMAGES = share_of(20, 6)
__all__ = ["store"]  # a fixture


@pytest.fixture
def home() -> Iterator[Home]:
    with short_directory() as root, opened(root, anew=True) as found:
        yield found


def merged_images(home: Home) -> dict[str, Any]:
    words = [sys.executable, "-m", "chunkd", "merge", str(home.root / "store"), "--images", "--json"]
    done = subprocess.run(words, env=home.environ, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return images(json.loads(done.stdout))


def files_of(store: Store) -> Path:
    """All objects as files, as old as they are: the order of pushes decides who brought a chunk first."""
    folder = store.files()
    for page in store.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page["Contents"]:
            os.utime(folder / found["Key"], (found["LastModified"].timestamp(),) * 2)
    return folder


def test_a_registry_in_a_bucket_on_a_cluster_equals_its_files(home: Home, store: Store, tell: Tell) -> None:
    for number in range(IMAGES):
        store.push(number)
    with cluster(home.root, home.environ) as found:
        engine = ("--engine", f"dask:{found.address}")
        first = said(home, small(home, 5, f"s3://{BUCKET}", *engine))
        assert (first["failed"], first["pending"], first["read"]) == (0, 0, first["counted"])
        files = files_of(store)
        assert merged(home) == of_scan(home, files)
        assert merged_images(home) == images_of_index(home)
        # One more image: only what it has is read.
        store.push(IMAGES)
        second = said(home, small(home, 5, f"s3://{BUCKET}", *engine))
        assert (second["reused"], second["read"]) == (first["counted"], second["counted"] - first["counted"])
        assert second["read"] > 0
        shutil.rmtree(files)
        assert merged(home) == of_scan(home, files_of(store))
    assert len(merged_images(home)["images"]) == IMAGES + 1
    says_no_secret(home, home.root / "store")
    for name in ("scheduler", "worker"):
        content = (home.root / f"dask-{name}.log").read_text()
        assert "a-secret" not in content
    tell(f"{IMAGES} images: {first['counted']} blobs in {first['segments']} segments by two workers of a cluster")
