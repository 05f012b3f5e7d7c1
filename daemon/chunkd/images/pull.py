"""What a client pulls of an image, in the order of the pull: depth first, as the documents list it, each blob once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from chunkd.images.graph import BlobFacts, platform_of
from chunkd.model import Digest
from chunkd.worker.manifest import Kind, Role


class Pulled(NamedTuple):
    """The blobs that are here, in their order, and of each whether it is a layer; of what should be here and is not,
    the bytes that descriptors claim; and the platforms of the runnable manifests.
    """

    blobs: dict[Digest, bool]
    missing: dict[Digest, int]
    platforms: set[str]


def pulled(blobs: Mapping[Digest, BlobFacts], root: Digest, platform: str = "") -> Pulled:
    """All that a root holds, or with a platform its manifests for that platform and what leads to them.

    `os/architecture` is also every variant of it. Attestations are pulled without a platform alone. Foreign layers are
    pulled from elsewhere, and are never missing.
    """
    found = Pulled({}, {}, set())
    pending = [(root, False, "")]
    while pending:
        digest, is_layer, claimed = pending.pop()
        contents = blobs[digest].contents
        if digest in found.blobs:
            continue
        if contents is not None and contents.kind in (Kind.IMAGE, Kind.SCHEMA_1):
            own = claimed or platform_of(blobs, contents)
            if not _fits(own, platform):
                continue
            found.platforms.add(own)
        found.blobs[digest] = is_layer
        following = []
        for edge in contents.edges if contents is not None else ():
            if edge.role is Role.SUBJECT:
                continue
            is_manifest = edge.role is Role.MANIFEST
            if edge.digest not in blobs:
                if not is_manifest and not edge.foreign:
                    found.missing[edge.digest] = max(found.missing.get(edge.digest, 0), edge.claimed_bytes)
            elif not (
                is_manifest and platform and (edge.attestation or not _fits(edge.platform or platform, platform))
            ):
                following.append((edge.digest, edge.role is Role.LAYER, edge.platform))
        pending += reversed(following)
    return found


def _fits(own: str, wanted: str) -> bool:
    return not wanted or own == wanted or own.startswith(f"{wanted}/")
