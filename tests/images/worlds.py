"""Made-up images for the oracle and for chunkd alike. Digests are numbers, and not of the bytes, so that graphs may
also have cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from chunkd.images.atoms import Chunks, Numbers, Parts, Weight
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, Graph, build
from chunkd.model import Digest, digest_of
from chunkd.names.name import Name, Standing
from chunkd.worker import manifest
from image_oracle import World

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
ATTESTATION = "application/vnd.docker.attestation.manifest.v1+json"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def real(text: str) -> Digest:
    found = digest_of(text)
    assert found
    return found


def facts(world: World) -> dict[Digest, BlobFacts]:
    """What the index would have of each blob that is present."""
    found = {}
    for name in world.present:
        said = manifest.parse(world.bytes_of(name)) if name in world.documents else None
        found[real(name)] = BlobFacts(world.size(name), said)
    return found


def graph_of(world: World) -> Graph:
    names = [
        Name(text, repository, tag, real(name), at_ns, Standing(standing))
        for standing, text, repository, tag, name, at_ns in world.names
    ]
    return build(facts(world), names)


def images_of(world: World) -> Images:
    layers = {real(name): sum(length for _, length in chunks) for name, chunks in world.layers.items()}
    return Images.of(graph_of(world), facts(world), layers, chunks_of(world))


def chunks_of(world: World) -> Chunks:
    recipes = {real(name): np.array([chunk for chunk, _ in some], np.int64) for name, some in world.layers.items()}
    numbers = [chunk for some in world.layers.values() for chunk, _ in some]
    lengths = np.zeros(max(numbers, default=-1) + 1, np.int64)
    for some in world.layers.values():
        for chunk, length in some:
            lengths[chunk] = length
    measured = np.array(sorted(set(numbers) & set(world.measured)), np.int64)

    def measured_in(low: int, high: int) -> tuple[Numbers, Numbers]:
        some = measured[(measured >= low) & (measured < high)]
        return some, np.array([world.measured[number] for number in some.tolist()], np.int64)

    return Chunks(len(lengths), recipes.__getitem__, lambda low, high: lengths[low:high], measured_in)


class Maker:
    """Adds blobs to a world; each method returns the digest."""

    def __init__(self) -> None:
        self.world = World()
        self._next = 1000

    def _new(self) -> str:
        self._next += 1
        return digest(self._next)

    def absent(self) -> str:
        """A digest that nothing has."""
        return self._new()

    def layer(self, *chunks: int, length: int = 100, size: int = 50) -> str:
        found = self._new()
        self.world.layers[found] = [(chunk, length + chunk) for chunk in chunks]
        self.world.sizes[found] = size
        return found

    def blob(self, size: int = 7) -> str:
        """One that says nothing and is not a layer."""
        found = self._new()
        self.world.sizes[found] = size
        return found

    def document(self, document: dict[str, Any]) -> str:
        found = self._new()
        self.world.documents[found] = document
        return found

    def config(self, architecture: str = "amd64", created_s: int = 0) -> str:
        created = {"created": f"1970-01-01T00:00:{created_s:02}Z"} if created_s else {}
        found = self.document({"os": "linux", "architecture": architecture, "rootfs": {"diff_ids": []}, **created})
        self.world.created[found] = created_s
        return found

    def image(self, *layers: str, config: str = "", foreign: Sequence[str] = (), **more: Any) -> str:
        rows = [{"mediaType": LAYER, "digest": one, "size": 50} for one in layers]
        rows += [{"mediaType": FOREIGN, "digest": one, "size": 9} for one in foreign]
        described = {"mediaType": CONFIG, "digest": config or self.config(), "size": 5}
        return self.document({"schemaVersion": 2, "config": described, "layers": rows} | more)

    def index(self, *children: str | tuple[str, str], attestations: Sequence[str] = (), **more: Any) -> str:
        """A child is a digest, or one with its architecture."""
        rows: list[dict[str, Any]] = []
        for child in children:
            name, architecture = (child, "") if isinstance(child, str) else child
            platform = {"platform": {"os": "linux", "architecture": architecture}} if architecture else {}
            rows.append({"digest": name, "size": 3} | platform)
        nowhere = {"os": "unknown", "architecture": "unknown"}
        reference = {"vnd.docker.reference.type": "attestation-manifest"}
        rows += [{"digest": one, "size": 3, "platform": nowhere, "annotations": reference} for one in attestations]
        return self.document({"schemaVersion": 2, "manifests": rows} | more)

    def name(self, text: str, to: str, at_ns: int = 0, standing: str = "named") -> str:
        repository, _, tag = text.partition(":")
        self.world.names.append((standing, "" if standing == "held" else text, repository, tag, to, at_ns))
        return to


NUMBERS = range(40)
PRESENT = {
    "layer": range(8),
    "config": range(8, 14),
    "manifest": range(14, 24),
    "index": range(24, 30),
    "blob": range(30, 33),
}


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any graph of a few blobs: some are absent, some repeated, some in cycles; names point anywhere."""
    world = World()
    lengths = draw(st.lists(st.integers(1, 60), min_size=12, max_size=12))
    some_chunks = st.lists(st.integers(0, 11), min_size=1, max_size=8)
    anything = st.integers(0, 36).map(digest)

    def among(*kinds: str) -> st.SearchStrategy[str]:
        """Mostly of these kinds, else absent, or anything."""
        known = [digest(number) for kind in kinds for number in PRESENT[kind]]
        return st.one_of(st.sampled_from(known), st.sampled_from(known), anything)

    def descriptor(of: st.SearchStrategy[str]) -> dict[str, Any]:
        return {"digest": draw(of), "size": draw(st.integers(0, 9))}

    def maybe_subject() -> dict[str, Any]:
        return {"subject": descriptor(anything)} if draw(st.integers(0, 4)) == 0 else {}

    for number in draw(st.sets(st.sampled_from(PRESENT["layer"]))):
        world.layers[digest(number)] = [(chunk, lengths[chunk]) for chunk in draw(some_chunks)]
        world.sizes[digest(number)] = draw(st.integers(1, 90))
    for number in draw(st.sets(st.sampled_from(PRESENT["blob"]))):
        world.sizes[digest(number)] = draw(st.integers(0, 90))
    for number in draw(st.sets(st.sampled_from(PRESENT["config"]))):
        platform = draw(st.sampled_from([{}, {"os": "linux", "architecture": "arm"}]))
        world.created[digest(number)] = created_s = draw(st.integers(0, 20))
        world.documents[digest(number)] = platform | {
            "created": f"1970-01-01T00:00:{created_s:02}Z", "rootfs": {"diff_ids": None},
        }  # fmt: skip
    for number in draw(st.sets(st.sampled_from(PRESENT["manifest"]))):
        if draw(st.integers(0, 7)) == 0:
            layers = [{"blobSum": draw(among("layer"))} for _ in range(draw(st.integers(0, 3)))]
            world.documents[digest(number)] = {"schemaVersion": 1, "fsLayers": layers}
            continue
        config = descriptor(among("config")) | {"mediaType": draw(st.sampled_from([CONFIG, CONFIG, "application/x"]))}
        rows = [
            descriptor(among("layer")) | {"mediaType": draw(st.sampled_from([LAYER, LAYER, LAYER, FOREIGN]))}
            for _ in range(draw(st.integers(0, 4)))
        ]
        artifact = draw(st.sampled_from([{}, {}, {}, {"artifactType": "application/y"}, {"artifactType": ATTESTATION}]))
        world.documents[digest(number)] = {"config": config, "layers": rows} | maybe_subject() | artifact
    for number in draw(st.sets(st.sampled_from(PRESENT["index"]))):
        children = []
        for _ in range(draw(st.integers(0, 4))):
            child = descriptor(among("manifest", "manifest", "index"))
            kind = draw(st.integers(0, 3))
            if kind == 0:
                child["platform"] = {"os": "unknown", "architecture": "unknown"}
                child["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
            elif kind < 3:
                child["platform"] = {"os": "linux", "architecture": draw(st.sampled_from(["amd64", "arm64"]))}
            children.append(child)
        world.documents[digest(number)] = {"manifests": children} | maybe_subject()
    to = st.one_of(among("manifest", "index"), anything)
    for _ in range(draw(st.integers(0, 8))):
        repository, tag = (
            draw(st.sampled_from(["a", "b/c", "d"])),
            draw(st.sampled_from(["v1", "v2", "sha256-" + "a" * 64])),
        )
        standing, at_ns = (
            draw(st.sampled_from(["named", "named", "held", "earlier"])),
            draw(st.sampled_from([0, 1, 5, 10**10])),
        )
        text = "" if standing == "held" else f"{repository}:{tag}"
        world.names.append((standing, text, repository, "" if standing == "held" else tag, draw(to), at_ns))
    world.measured = {chunk: draw(st.integers(1, 60)) for chunk in draw(st.sets(st.integers(0, 11)))}
    return world


def moved(parts: Parts, client: int, to: int) -> Weight:
    """What the holders in `to` hold, and none of those in `client`."""
    return _sum(parts, lambda holders: bool(holders & to) and not holders & client)


def overlap(parts: Parts, one: int, other: int) -> Weight:
    """What two sets of holders both hold."""
    return _sum(parts, lambda holders: bool(holders & one and holders & other))


def _sum(parts: Parts, counts: Callable[[int], bool]) -> Weight:
    found = Weight()
    for atoms in parts:
        for holders, weight in atoms.items():
            found = found.plus(weight) if counts(holders) else found
    return found
