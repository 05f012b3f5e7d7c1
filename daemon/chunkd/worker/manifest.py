"""What a blob is among an image's blobs, by its content: an index, a manifest, a config, or nothing that is known.

`mediaType` of the document itself is a claim that decides nothing. The descriptors of other blobs are claims too, and
are passed on as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple

from chunkd import untrusted_json
from chunkd.model import Digest, digest_of

# What registries accept at most, and descriptors of the least length that a document of this size has room for.
MOST_BYTES = 4 << 20
MOST_EDGES = 1 << 15
# Sizes and times beyond are not claimed by anything that exists.
SIZE_BITS = 63
CREATED_BITS = 38


class Kind(Enum):
    """What a blob is. `CONFIG` and `UNKNOWN` have no edges."""

    UNKNOWN = "unknown"
    INDEX = "index"
    IMAGE = "image"
    SCHEMA_1 = "image of schema 1"
    CONFIG = "config"
    ATTESTATION = "attestation"
    BUILD_CACHE = "build cache"
    ARTIFACT = "artifact"


class Role(Enum):
    """What one blob is to the other that names it. SUBJECT is the weak edge: it holds nothing."""

    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"
    SUBJECT = "subject"


class Edge(NamedTuple):
    """A blob that another names, as that one describes it.

    `claimed_bytes` is 0 when the descriptor has no possible size. `foreign`: a layer that no registry passes on, and
    that is not expected here. `attestation`: an index says that this manifest is one. `platform` is
    `os/architecture[/variant]` as the index has it, or "".
    """

    role: Role
    digest: Digest
    claimed_bytes: int = 0
    foreign: bool = False
    attestation: bool = False
    platform: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a blob says. The edges are in the document's order, with repetitions; a subject comes last.

    `created_s` is in seconds since the epoch, 0 if none is given. `platform` is a config's own, or "".
    """

    kind: Kind
    edges: tuple[Edge, ...] = ()
    created_s: int = 0
    platform: str = ""


UNKNOWN = Contents(Kind.UNKNOWN)

_PLATFORM_PART = re.compile(r"[A-Za-z0-9._-]{1,32}")
MOST_PLATFORM_CHARACTERS = 3 * 32 + 2
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.\d{1,20})?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII)

_IMAGE_CONFIGS = (
    "",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_IMAGE_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_FOREIGN = (".image.layer.nondistributable.", ".image.rootfs.foreign.")
_IN_TOTO = "application/vnd.in-toto+json"
_DOCKER_ATTESTATION = "application/vnd.docker.attestation.manifest.v1+json"
_BUILD_CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"


class _Malformed(ValueError):
    """The document has the keys of a kind, and no contents that go with them."""


def may_be_one(head: bytes, stored_bytes: int) -> bool:
    """Whether a blob of this size that begins so is worth parsing."""
    return stored_bytes <= MOST_BYTES and head.lstrip(b" \t\r\n").startswith(b"{")


def parse(data: bytes) -> Contents:
    """What the blob of these bytes is. Never raises: whatever can't be parsed within the bounds is UNKNOWN.

    UNKNOWN is also what has the keys of more than one kind (clients would differ over it), a descriptor without a
    digest that chunkd can look up, or more than MOST_EDGES descriptors. Impossible sizes, times and platforms are left
    out instead. Memory is bounded by MOST_BYTES and by `untrusted_json`.
    """
    try:
        document = untrusted_json.parse(data, MOST_BYTES)
        return _contents(document) if isinstance(document, dict) else UNKNOWN
    except (untrusted_json.BadJson, _Malformed, MemoryError):
        return UNKNOWN


def _contents(document: Mapping[str, Any]) -> Contents:
    kinds = {"manifests": _index, "layers": _manifest, "fsLayers": _schema_1, "rootfs": _config}
    present = [of for key, of in kinds.items() if key in document]
    if len(present) != 1 or ("manifests" in document and "config" in document):
        return UNKNOWN
    return present[0](document)


def _index(document: Mapping[str, Any]) -> Contents:
    children = _objects(document, "manifests")
    if any(_text(child, "mediaType") == _BUILD_CACHE_CONFIG for child in children):
        # BuildKit's older form: the layers themselves, and the cache's config among them.
        edges = [_descriptor(Role.LAYER, child) for child in children]
        return Contents(Kind.BUILD_CACHE, (*edges, *_subject(document)), _created(document))
    edges = [_child(child) for child in children]
    return Contents(Kind.INDEX, (*edges, *_subject(document)), _created(document))


def _child(descriptor: Mapping[str, Any]) -> Edge:
    platform = _platform(descriptor.get("platform"))
    attested = platform == "unknown/unknown" and bool(_annotation(descriptor, "vnd.docker.reference.type"))
    attested |= _text(descriptor, "artifactType") == _DOCKER_ATTESTATION
    return _descriptor(Role.MANIFEST, descriptor)._replace(platform=platform, attestation=attested)


def _manifest(document: Mapping[str, Any]) -> Contents:
    config, layers = document.get("config"), _objects(document, "layers")
    if not isinstance(config, dict):
        raise _Malformed
    edges = [_descriptor(Role.CONFIG, config), *(_descriptor(Role.LAYER, layer) for layer in layers)]
    artifact_type, config_type = _text(document, "artifactType"), _text(config, "mediaType")
    types = [_text(layer, "mediaType") for layer in layers]
    kind = Kind.IMAGE
    if config_type == _BUILD_CACHE_CONFIG:
        kind = Kind.BUILD_CACHE
    elif artifact_type == _DOCKER_ATTESTATION or (types and set(types) == {_IN_TOTO}):
        kind = Kind.ATTESTATION
    elif artifact_type or config_type not in _IMAGE_CONFIGS or _are_of_no_image(types):
        kind = Kind.ARTIFACT
    return Contents(kind, (*edges, *_subject(document)), _created(document))


def _are_of_no_image(types: list[str]) -> bool:
    """Whether each layer says that it is something else than a part of a file system, as signatures do."""
    return bool(types) and all(kind and not kind.startswith(_IMAGE_LAYERS) for kind in types)


def _schema_1(document: Mapping[str, Any]) -> Contents:
    """Docker's first form, which lists the uppermost layer first and has no sizes."""
    layers = reversed(_objects(document, "fsLayers"))
    return Contents(Kind.SCHEMA_1, tuple(Edge(Role.LAYER, _digest(layer, "blobSum")) for layer in layers))


def _config(document: Mapping[str, Any]) -> Contents:
    rootfs = document["rootfs"]
    if not isinstance(rootfs, dict) or not isinstance(rootfs.get("diff_ids"), list | None):
        raise _Malformed
    return Contents(Kind.CONFIG, (), _time(_text(document, "created")), _platform(document))


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list. Go writes an empty one as null."""
    found = [] if document[key] is None else document[key]
    if not isinstance(found, list) or len(found) > MOST_EDGES or not all(isinstance(one, dict) for one in found):
        raise _Malformed
    return found


def _subject(document: Mapping[str, Any]) -> tuple[Edge, ...]:
    subject = document.get("subject")
    if subject is None:
        return ()
    if not isinstance(subject, dict):
        raise _Malformed
    return (_descriptor(Role.SUBJECT, subject),)


def _descriptor(role: Role, descriptor: Mapping[str, Any]) -> Edge:
    media_type, size = _text(descriptor, "mediaType"), descriptor.get("size")
    if role is Role.LAYER and media_type == _BUILD_CACHE_CONFIG:
        role = Role.CONFIG
    claimed_bytes = size if type(size) is int and 0 <= size < 1 << SIZE_BITS else 0
    foreign = role is Role.LAYER and any(part in media_type for part in _FOREIGN)
    return Edge(role, _digest(descriptor, "digest"), claimed_bytes, foreign)


def _digest(descriptor: Mapping[str, Any], key: str) -> Digest:
    found = digest_of(descriptor.get(key))
    if found is None:
        raise _Malformed
    return found


def _text(document: Mapping[str, Any], key: str) -> str:
    """The text there; "" when there is something else, or nothing."""
    found = document.get(key)
    return found if isinstance(found, str) else ""


def _annotation(document: Mapping[str, Any], key: str) -> str:
    annotations = document.get("annotations")
    return _text(annotations, key) if isinstance(annotations, dict) else ""


def _platform(described: object) -> str:
    if not isinstance(described, dict):
        return ""
    parts = [_text(described, key) for key in ("os", "architecture", "variant")]
    if not parts[2]:
        parts.pop()
    return "/".join(parts) if all(map(_PLATFORM_PART.fullmatch, parts)) else ""


def _created(document: Mapping[str, Any]) -> int:
    return _time(_annotation(document, "org.opencontainers.image.created"))


def _time(text: str) -> int:
    """Seconds since the epoch of a time as RFC 3339 has it; 0 for any other text, and for times before the epoch."""
    match = _TIME.fullmatch(text)
    if match is None:
        return 0
    day, clock, sign, hours, minutes = match.groups()
    try:
        since = datetime.fromisoformat(f"{day}T{clock}") - datetime(1970, 1, 1)
    except ValueError:
        return 0
    offset_s = 3600 * int(hours or 0) + 60 * int(minutes or 0)
    return max(0, since // timedelta(seconds=1) + (offset_s if sign == "-" else -offset_s))
