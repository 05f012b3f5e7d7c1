"""What `manifest.parse` found, as bytes and back: what a worker sends, and what the index keeps with the blob."""

from __future__ import annotations

import struct

from chunkd.model import HEX_DIGITS, Digest
from chunkd.worker.manifest import (
    CREATED_BITS,
    MOST_EDGES,
    MOST_PLATFORM_CHARACTERS,
    SIZE_BITS,
    UNKNOWN,
    Contents,
    Edge,
    Kind,
    Role,
)

VERSION = 1

# The numbers of the kinds, the roles and the algorithms are their places here, for good: new ones come at the end.
KINDS = (
    Kind.UNKNOWN, Kind.INDEX, Kind.IMAGE, Kind.SCHEMA_1, Kind.CONFIG, Kind.ATTESTATION, Kind.BUILD_CACHE, Kind.ARTIFACT,
)  # fmt: skip
ROLES = (Role.MANIFEST, Role.CONFIG, Role.LAYER, Role.SUBJECT)
ALGORITHMS = ("sha256", "sha512")

# Version, kind, created_s, how many edges; then the platform. Of an edge: what it is, claimed bytes; then the digest
# and the platform. A platform is its length in one byte and its ASCII.
HEAD = struct.Struct("<BBQI")
EDGE = struct.Struct("<BQ")
_ROLE_BITS, _SHA512, _FOREIGN, _ATTESTATION = 3, 4, 8, 16
MOST_RECORD_BYTES = (
    HEAD.size + 1 + MOST_PLATFORM_CHARACTERS + (MOST_EDGES + 1) * (EDGE.size + 64 + 1 + MOST_PLATFORM_CHARACTERS)
)

_OF_A_MANIFEST = {Role.CONFIG, Role.LAYER, Role.SUBJECT}
_ROLES_OF = {
    Kind.UNKNOWN: set[Role](),
    Kind.INDEX: {Role.MANIFEST, Role.SUBJECT},
    Kind.IMAGE: _OF_A_MANIFEST,
    Kind.SCHEMA_1: {Role.LAYER},
    Kind.CONFIG: set[Role](),
    Kind.ATTESTATION: _OF_A_MANIFEST,
    Kind.BUILD_CACHE: _OF_A_MANIFEST,
    Kind.ARTIFACT: _OF_A_MANIFEST,
}


class BadRecord(ValueError):
    """The bytes are not what `encode` makes of anything. The caller knows where they came from, and says so."""


def encode(contents: Contents) -> bytes:
    """A record of 15 bytes and 42 for each edge with a SHA-256, and the platforms. Of UNKNOWN contents no bytes."""
    if contents.kind is Kind.UNKNOWN:
        return b""
    head = HEAD.pack(VERSION, KINDS.index(contents.kind), contents.created_s, len(contents.edges))
    return head + _pack_platform(contents.platform) + b"".join(map(_pack_edge, contents.edges))


def _pack_edge(edge: Edge) -> bytes:
    what = ROLES.index(edge.role) | _SHA512 * ALGORITHMS.index(edge.digest.algorithm)
    what |= _FOREIGN * edge.foreign | _ATTESTATION * edge.attestation
    return EDGE.pack(what, edge.claimed_bytes) + bytes.fromhex(edge.digest.hex) + _pack_platform(edge.platform)


def _pack_platform(platform: str) -> bytes:
    return bytes([len(platform)]) + platform.encode("ascii")


def decode(value: bytes) -> Contents:
    """The contents of a record; `encode` makes the same bytes of them. Raises BadRecord for any other bytes."""
    if not value:
        return UNKNOWN
    try:
        version, kind, created_s, edges = HEAD.unpack_from(value)
        if version != VERSION or not 0 < kind < len(KINDS) or created_s >> CREATED_BITS or edges > MOST_EDGES + 1:
            raise BadRecord(f"version {version}, kind {kind}, created {created_s}, {edges} edges are none of a blob's")
        platform, at = _platform_at(value, HEAD.size)
        found = []
        for _ in range(edges):
            edge, at = _edge_at(value, at)
            found.append(edge)
    except (struct.error, IndexError) as error:
        raise BadRecord("it ends too early") from error
    if at != len(value):
        raise BadRecord("it goes on behind its end")
    contents = Contents(KINDS[kind], tuple(found), created_s, platform)
    _check(contents)
    return contents


_KIND_OF = {kind.value: kind for kind in Kind}


def check(value: bytes, reason: str) -> None:
    """Raises BadRecord unless the kind in a record is the blob's `reason`; without a record that is another text."""
    kind = decode(value).kind
    said = _KIND_OF.get(reason, Kind.UNKNOWN)
    if kind is not said:
        raise BadRecord(f"the record is of kind {kind.value!r}, and the blob of {reason!r}")


def _edge_at(value: bytes, at: int) -> tuple[Edge, int]:
    what, claimed_bytes = EDGE.unpack_from(value, at)
    if what >= 2 * _ATTESTATION or claimed_bytes >> SIZE_BITS:
        raise BadRecord(f"what {what}, claimed bytes {claimed_bytes} are none of an edge's")
    algorithm = ALGORITHMS[bool(what & _SHA512)]
    at += EDGE.size
    end = at + HEX_DIGITS[algorithm] // 2
    digest = Digest(algorithm, value[at:end].hex())
    platform, after = _platform_at(value, end)  # which finds out when the digest is cut short
    role = ROLES[what & _ROLE_BITS]
    return Edge(role, digest, claimed_bytes, bool(what & _FOREIGN), bool(what & _ATTESTATION), platform), after


def _platform_at(value: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + value[at]
    text = value[at + 1 : end]
    if value[at] > MOST_PLATFORM_CHARACTERS or len(text) < value[at] or not text.isascii():
        raise BadRecord("a platform that is too long, cut short or not ASCII")
    platform = text.decode("ascii")
    if not platform.isprintable() or " " in platform:
        raise BadRecord("a platform that can't be shown")
    return platform, end


def _check(contents: Contents) -> None:
    """What is not of its kind was not made by `parse`."""
    roles = [edge.role for edge in contents.edges]
    if not set(roles) <= _ROLES_OF[contents.kind]:
        raise BadRecord(f"{contents.kind.value}, and edges that do not go with it")
    if Role.SUBJECT in roles[:-1] or (len(roles) > MOST_EDGES and roles[-1] is not Role.SUBJECT):
        raise BadRecord("a subject that is not the last edge, or too many edges")
    for edge in contents.edges:
        if (edge.foreign and edge.role is not Role.LAYER) or (edge.attestation and edge.role is not Role.MANIFEST):
            raise BadRecord(f"{edge.role.value}, and a sign that does not go with it")
        if edge.platform and edge.role is not Role.MANIFEST:
            raise BadRecord(f"{edge.role.value}, and a platform")
    if contents.platform and contents.kind is not Kind.CONFIG:
        raise BadRecord(f"{contents.kind.value}, and a platform")
