from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkd.model import Digest
from chunkd.worker import manifest, manifest_record
from chunkd.worker.manifest import MOST_EDGES, UNKNOWN, Contents, Edge, Kind, Role, parse
from chunkd.worker.manifest_record import BadRecord, decode, encode

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
DOCKER_ATTESTATION = "application/vnd.docker.attestation.manifest.v1+json"
LINUX = {"os": "linux", "architecture": "amd64"}


def digest(number: int, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, f"{number:064x}" if algorithm == "sha256" else f"{number:0128x}")


def described(number: int, media_type: str | None = LAYER, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"digest": str(digest(number)), "size": 10 * number} | more
    return found if media_type is None else {"mediaType": media_type} | found


def layer(number: int, *, foreign: bool = False) -> Edge:
    return Edge(Role.LAYER, digest(number), 10 * number, foreign)


def config(number: int) -> Edge:
    return Edge(Role.CONFIG, digest(number), 10 * number)


def child(number: int, platform: str = "", *, attestation: bool = False) -> Edge:
    return Edge(Role.MANIFEST, digest(number), 10 * number, False, attestation, platform)


def image(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2, "mediaType": MANIFEST, "config": described(1, IMAGE_CONFIG), "layers": [described(2)],
    } | more  # fmt: skip


def index(*children: object, **more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "manifests": list(children)} | more


def parsed(document: object) -> Contents:
    found = parse(document if isinstance(document, bytes) else json.dumps(document).encode())
    assert decode(encode(found)) == found
    return found


# --- what is what --------------------------------------------------------------------------------------------------

EDGES = (config(1), layer(2))
KNOWN: dict[str, tuple[object, Contents]] = {
    "an image": (image(), Contents(Kind.IMAGE, EDGES)),
    "without media types": (
        {"config": described(1, None), "layers": [described(2, None)]},
        Contents(Kind.IMAGE, EDGES),
    ),
    "a layer listed twice": (
        image(layers=[described(2), described(3), described(2)]),
        Contents(Kind.IMAGE, (config(1), layer(2), layer(3), layer(2))),
    ),
    "no layer": (image(layers=None), Contents(Kind.IMAGE, (config(1),))),
    "a docker image with a foreign layer": (
        image(
            config=described(1, "application/vnd.docker.container.image.v1+json"),
            layers=[
                described(2, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
                described(3, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
                described(4, "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"),
            ],
        ),
        Contents(Kind.IMAGE, (config(1), layer(2, foreign=True), layer(3), layer(4, foreign=True))),
    ),
    "an image with a subject and a time": (
        image(subject=described(9), annotations={"org.opencontainers.image.created": "1970-01-01T00:00:07Z"}),
        Contents(Kind.IMAGE, (*EDGES, Edge(Role.SUBJECT, digest(9), 90)), 7),
    ),
    "schema 1, uppermost first": (
        {"schemaVersion": 1, "fsLayers": [{"blobSum": str(digest(3))}, {"blobSum": str(digest(2))}], "history": [{}]},
        Contents(Kind.SCHEMA_1, (Edge(Role.LAYER, digest(2)), Edge(Role.LAYER, digest(3)))),
    ),
    "a config": (
        {
            "created": "2024-02-29T12:00:00.123456789+02:00", "architecture": "arm", "os": "linux", "variant": "v7",
            "config": {"Env": ["A=b"]}, "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]},
        },
        Contents(Kind.CONFIG, (), 1709200800, "linux/arm/v7"),
    ),
    "an index": (
        index(
            described(1, MANIFEST, platform=LINUX),
            described(2, MANIFEST, platform=LINUX | {"variant": "v8", "os.version": "1"}),
            described(3, MANIFEST, platform={"os": "a b", "architecture": "c"}),
            described(4, MANIFEST, platform={"os": "linux"}),
            described(
                5, MANIFEST, platform={"os": "unknown", "architecture": "unknown"},
                annotations={"vnd.docker.reference.type": "attestation-manifest"},
            ),
            described(6, MANIFEST, artifactType=DOCKER_ATTESTATION),
            described(7, MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
        ),
        Contents(
            Kind.INDEX,
            (
                child(1, "linux/amd64"), child(2, "linux/amd64/v8"), child(3), child(4),
                child(5, "unknown/unknown", attestation=True), child(6, attestation=True), child(7, "unknown/unknown"),
            ),
        ),
    ),
    "an index of nothing": (index(), Contents(Kind.INDEX)),
    "an attestation by its layers": (
        image(layers=[described(2, IN_TOTO), described(3, IN_TOTO)]),
        Contents(Kind.ATTESTATION, (config(1), layer(2), layer(3))),
    ),
    "an attestation by its type": (image(artifactType=DOCKER_ATTESTATION), Contents(Kind.ATTESTATION, EDGES)),
    "a signature as cosign's first ones": (
        image(layers=[described(2, "application/vnd.dev.cosign.simplesigning.v1+json")]),
        Contents(Kind.ARTIFACT, EDGES),
    ),
    "an artifact by its type": (image(artifactType="application/x"), Contents(Kind.ARTIFACT, EDGES)),
    "an artifact by its config": (
        image(config=described(1, "application/vnd.cncf.helm.config.v1+json")),
        Contents(Kind.ARTIFACT, EDGES),
    ),
    "a build cache": (image(config=described(1, CACHE_CONFIG)), Contents(Kind.BUILD_CACHE, EDGES)),
    "a build cache that is an index": (
        index(described(2), described(1, CACHE_CONFIG)),
        Contents(Kind.BUILD_CACHE, (layer(2), config(1))),
    ),
    "sha512": (
        image(layers=[{"digest": str(digest(5, "sha512")), "size": 1}]),
        Contents(Kind.IMAGE, (config(1), Edge(Role.LAYER, digest(5, "sha512"), 1))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", KNOWN)
def test_what_it_is(which: str) -> None:
    document, expected = KNOWN[which]
    assert parsed(document) == expected


@pytest.mark.parametrize("size", [-1, 1 << 63, 1e3, 1.5, "7", None, True, [], 10**4000])
def test_an_impossible_size_is_left_out(size: object) -> None:
    found = parsed(image(layers=[described(2) | {"size": size}]))
    assert found.edges[1] == Edge(Role.LAYER, digest(2), 0)


@pytest.mark.parametrize("size", [0, 1, (1 << 63) - 1])
def test_a_size_that_lies_is_the_claim_that_it_is(size: int) -> None:
    assert parsed(image(layers=[described(2) | {"size": size}])).edges[1].claimed_bytes == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-02t00:00:00.999z", 86400),
        ("1969-12-31T23:00:01-01:00", 1),
        ("9999-12-31T23:59:59-23:59", 253402300799 + 86340),
        *((text, 0) for text in ("0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "", "2024-02-30T00:00:00Z")),
        *((text, 0) for text in ("2024-01-01", "2024-01-01T25:00:00Z", "2024-01-01T00:00:60Z", "٢٠٢٤-01-01T00:00:00Z")),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert parsed({"rootfs": {"diff_ids": []}, "created": text}).created_s == seconds


# --- what is none --------------------------------------------------------------------------------------------------

BAD_DIGESTS: tuple[object, ...] = (
    "", "sha256", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64, "md5:" + "a" * 32,
    "sha256:../" + "a" * 61, "sha512:" + "a" * 64, "sha256:" + "a" * 64 + "\n", "\ud800", 7, None, ["sha256"], {},
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD_DIGESTS)
@pytest.mark.parametrize(
    "document",
    [
        lambda bad: image(layers=[described(2), described(3) | {"digest": bad}]),
        lambda bad: image(config=described(1) | {"digest": bad}),
        lambda bad: image(subject=described(1) | {"digest": bad}),
        lambda bad: index(described(1) | {"digest": bad}),
        lambda bad: {"schemaVersion": 1, "fsLayers": [{"blobSum": bad}]},
    ],
)
def test_a_descriptor_without_a_digest_makes_it_unknown(document: Callable[[object], object], bad: object) -> None:
    assert parsed(document(bad)) == UNKNOWN


@pytest.mark.parametrize(
    "document",
    [
        *(None, 7, "text", [], {}, [image()], {"layers": []}, {"config": described(1)}, b"", b"{", b"\x1f\x8b"),
        image(manifests=[]),
        index(layers=[]),
        index(config=described(1)),
        image(rootfs={"diff_ids": []}),
        image(config=None),
        image(layers={}),
        image(layers=[7]),
        image(layers="layers"),
        image(subject=[]),
        {"rootfs": 7},
        {"rootfs": {"diff_ids": 7}},
        index(*[described(1, None)] * (MOST_EDGES + 1)),
        json.dumps(image()).replace('"size"', '"digest"').encode(),
        json.dumps(image()).replace("20", "NaN").encode(),
        json.dumps(image(deep=json.loads("[" * 20 + "]" * 20))).encode(),
        json.dumps(image()).encode("utf-16"),
        json.dumps(image()).encode() + b" " * manifest.MOST_BYTES,
    ],
)
def test_what_is_nothing_that_is_known(document: object) -> None:
    assert parsed(document) == UNKNOWN


def test_no_memory_makes_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def contents(_: object) -> Contents:
        raise MemoryError

    monkeypatch.setattr(manifest, "_contents", contents)
    assert parsed(image()) == UNKNOWN


def test_surrogates_and_odd_types_are_no_obstacle() -> None:
    odd = {"mediaType": "\ud800", "annotations": ["a"], "platform": {"os": "\udfff", "architecture": 7, "variant": {}}}
    found = parsed(index(described(1) | odd, annotations="x", artifactType=[]))
    assert found == Contents(Kind.INDEX, (child(1),))


def test_the_widest_index_in_bounded_time_and_bytes() -> None:
    """30,000 children in 3 MB."""
    document = json.dumps(index(*({"digest": str(digest(at)), "size": at} for at in range(30_000)))).encode()
    assert len(document) < manifest.MOST_BYTES
    begun = time.process_time()
    found = parse(document)
    record = encode(found)
    assert decode(record) == found
    assert time.process_time() - begun < 20
    assert (found.kind, len(found.edges)) == (Kind.INDEX, 30_000)
    assert len(record) < len(document) / 2
    assert len(record) < manifest_record.MOST_RECORD_BYTES


# --- the record ----------------------------------------------------------------------------------------------------


def test_the_record_byte_by_byte() -> None:
    found = encode(Contents(Kind.INDEX, (child(7, "linux/amd64"),), 258))
    assert found == (
        b"\x01\x01" + bytes([2, 1, 0, 0, 0, 0, 0, 0]) + bytes([1, 0, 0, 0]) + b"\0"
        + b"\x00" + bytes([70, 0, 0, 0, 0, 0, 0, 0]) + bytes(31) + b"\x07" + b"\x0blinux/amd64"
    )  # fmt: skip


@pytest.mark.parametrize("which", KNOWN)
def test_a_record_that_is_cut_or_goes_on_is_refused(which: str) -> None:
    record = encode(parsed(KNOWN[which][0]))
    for end in range(len(record)):
        with pytest.raises(BadRecord):
            decode(record[:end])
    with pytest.raises(BadRecord):
        decode(record + b"\0")


@pytest.mark.parametrize(
    "contents",
    [
        Contents(Kind.UNKNOWN, (layer(1),)),
        Contents(Kind.CONFIG, (layer(1),)),
        Contents(Kind.INDEX, (layer(1),)),
        Contents(Kind.SCHEMA_1, (config(1),)),
        Contents(Kind.IMAGE, (child(1),)),
        Contents(Kind.IMAGE, (Edge(Role.SUBJECT, digest(1)), layer(2))),
        Contents(Kind.IMAGE, (Edge(Role.SUBJECT, digest(1)), Edge(Role.SUBJECT, digest(1)))),
        Contents(Kind.IMAGE, (config(1)._replace(foreign=True),)),
        Contents(Kind.IMAGE, (config(1)._replace(attestation=True),)),
        Contents(Kind.IMAGE, (layer(1)._replace(platform="linux/amd64"),)),
        Contents(Kind.IMAGE, (), 1 << 38),
        Contents(Kind.IMAGE, (layer(1),) * (MOST_EDGES + 1)),
        Contents(Kind.IMAGE, (), 0, "linux/amd64"),
        Contents(Kind.CONFIG, (), 0, "linux\n"),
        Contents(Kind.CONFIG, (), 0, "a" * 99),
    ],
)
def test_what_no_blob_says_is_refused(contents: Contents) -> None:
    with pytest.raises(BadRecord):
        decode(encode(contents))


@given(st.sampled_from(list(KNOWN)), st.integers(0, 300), st.integers(1, 255))
def test_a_record_with_a_changed_byte_is_refused_or_another(which: str, at: int, by: int) -> None:
    record = bytearray(encode(parsed(KNOWN[which][0])))
    record[at % len(record)] ^= by
    try:
        found = decode(bytes(record))
    except BadRecord:
        return
    assert encode(found) == bytes(record)
