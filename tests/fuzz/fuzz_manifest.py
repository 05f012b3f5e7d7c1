"""The parser of manifests and the decoder of its record on whatever bytes, against Python's own JSON.

The first byte says which: a document, or a record.
"""

from __future__ import annotations

import json
import sys

import fuzzing

with fuzzing.instrumented():
    from chunkd import untrusted_json
    from chunkd.worker import manifest, manifest_record

SHAPES = {"manifests", "layers", "fsLayers", "rootfs"}


def check_document(data: bytes) -> None:
    found = manifest.parse(data)
    record = manifest_record.encode(found)
    assert manifest_record.decode(record) == found
    assert len(record) <= manifest_record.MOST_RECORD_BYTES
    try:
        expected = json.loads(data.decode())
    except (ValueError, RecursionError):
        expected = None
    try:
        parsed = untrusted_json.parse(data, manifest.MOST_BYTES)
    except untrusted_json.BadJson:
        assert found == manifest.UNKNOWN
    else:
        assert repr(parsed) == repr(expected)
    if found != manifest.UNKNOWN:
        assert isinstance(expected, dict)
        assert len(SHAPES & set(expected)) == 1
        written = json.dumps(expected)
        assert all(edge.digest.hex in written for edge in found.edges)


def check_record(data: bytes) -> None:
    try:
        found = manifest_record.decode(data)
    except manifest_record.BadRecord:
        return
    assert manifest_record.encode(found) == data


def check(data: bytes) -> None:
    if data:
        (check_document, check_record)[data[0] % 2](data[1:])


def seeds() -> list[bytes]:
    """One document of each kind, and its record."""

    def one(number: int, media_type: str, **more: object) -> dict[str, object]:
        return {"mediaType": media_type, "digest": f"sha256:{number:064x}", "size": number} | more

    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    reference = {"vnd.docker.reference.type": "attestation-manifest"}
    created = {"org.opencontainers.image.created": "2024-01-01T00:00:00.5+01:00"}
    layer, config = "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.config.v1+json"
    nowhere = {"os": "unknown", "architecture": "unknown"}
    documents: list[object] = [
        {"manifests": [one(1, "m", platform=platform), one(2, "m", platform=nowhere, annotations=reference)]},
        {"manifests": [one(1, layer), one(2, "application/vnd.buildkit.cacheconfig.v0")]},
        {"config": one(1, config), "layers": [one(2, layer)], "subject": one(3, "m"), "annotations": created},
        {"config": one(1, config), "layers": [one(2, "application/vnd.in-toto+json")]},
        {"config": one(1, "a"), "layers": None, "artifactType": "b"},
        {"schemaVersion": 1, "fsLayers": [{"blobSum": f"sha512:{7:0128x}"}]},
        {"rootfs": {"diff_ids": []}, "created": "2024-01-01T00:00:00Z", **platform, "config": {'\\"': ["{[", "é"]}},
    ]
    texts = [json.dumps(document).encode() for document in documents]
    return [
        *(b"\0" + text for text in (*texts, b'{"a":NaN}', b"[[]]", b'{"a":1,"a":2}')),
        *(b"\1" + manifest_record.encode(manifest.parse(text)) for text in texts),
    ]


if __name__ == "__main__":
    fuzzing.run(sys.argv, check, seeds())
