"""A bucket in the tests' own process, with a registry in it, and the same files in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import proxy
from blobs import gz, layer

ACCESS_KEY = "AKIDTHATNOBODYMAYSEE"
SECRET = "a/secret+that/nobody+may/see"  # noqa: S105
BUCKET = "registry"
TOP = "docker/registry/v2"


@dataclass
class Served:
    """One bucket behind a proxy. What is put into it is put into the folder `files` too, unless it is archived."""

    proxy: proxy.Proxy
    client: Any
    files: Path
    prefix: str = ""
    put_keys: set[str] = field(default_factory=set)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}"

    def put(self, key: str, content: bytes, storage_class: str = "STANDARD") -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, StorageClass=storage_class)
        if storage_class == "STANDARD":
            path = self.files / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)
        (self.files / key).unlink()

    def blob(self, content: bytes, storage_class: str = "STANDARD") -> str:
        """The hex of a blob in distribution's layout."""
        found = hashlib.sha256(content).hexdigest()
        self.put(blob_key(found), content, storage_class)
        return found

    def image(self, repository: str, tag: str, *layers: bytes) -> list[str]:
        """The hexes of its manifest, its config and its layers."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}, "of": tag}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar+gzip", one) for one in layers],
        }
        said = json.dumps(manifest).encode()
        found = [self.blob(one) for one in (said, config, *layers)]
        link = f"sha256:{found[0]}".encode()
        manifests = f"{TOP}/repositories/{repository}/_manifests"
        self.put(f"{manifests}/revisions/sha256/{found[0]}/link", link)
        self.put(f"{manifests}/tags/{tag}/index/sha256/{found[0]}/link", link)
        self.put(f"{manifests}/tags/{tag}/current/link", link)
        return found


def blob_key(found: str) -> str:
    return f"{TOP}/blobs/sha256/{found[:2]}/{found}/data"


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


@contextlib.contextmanager
def served(files: Path) -> Iterator[Served]:
    # Not while tests are collected, which each process of a run does.
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with proxy.before(f"http://{host}:{port}") as front:
            client = boto3.client(
                "s3",
                endpoint_url=f"http://{host}:{port}",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET,
                region_name="us-east-1",
            )
            client.create_bucket(Bucket=BUCKET)
            try:
                yield Served(front, client, files)
            finally:
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                    for found in page.get("Contents", ()):
                        client.delete_object(Bucket=BUCKET, Key=found["Key"])
                client.delete_bucket(Bucket=BUCKET)
                client.close()
    finally:
        server.stop()


def fill(bucket: Served) -> None:
    """Three images of two repositories, of five layers."""
    base = gz(layer(1))
    bucket.image("shop/api", "v1", base, gz(layer(2)))
    bucket.image("shop/api", "v2", base, gz(layer(3)))
    bucket.image("web", "latest", base, gz(layer(4)), gz(layer(5, 900_000)))
