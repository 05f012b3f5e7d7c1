"""What chunkd must say of images, in plain Python, from the definitions: it shares no code with chunkd.

It has the blobs as bytes and parses their JSON itself. Every figure is a sum over Python sets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

IMAGE_CONFIGS = (
    "", "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json",
)  # fmt: skip


@dataclass
class World:
    """What is present. `layers` has for each layer its chunks in order, as (chunk, length); `measured` the recompressed
    lengths of some chunks. A name is (standing, text, repository, tag, digest, time), with the standing `named`,
    `earlier` or `held`. `created` has seconds, so that the oracle need not read times.
    """

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    layers: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    measured: dict[int, int] = field(default_factory=dict)
    names: list[tuple[str, str, str, str, str, int]] = field(default_factory=list)
    created: dict[str, int] = field(default_factory=dict)

    def bytes_of(self, digest: str) -> bytes:
        return json.dumps(self.documents[digest]).encode()

    def size(self, digest: str) -> int:
        return self.sizes[digest] if digest in self.sizes else len(self.bytes_of(digest))

    @property
    def present(self) -> set[str]:
        return set(self.sizes) | set(self.documents)


Holder = str


class Oracle:
    def __init__(self, world: World) -> None:
        self.world = world
        self.named = {name[4] for name in world.names if name[0] == "named"} & world.present
        containers = {digest for digest in world.present if self.edges(digest) is not None}
        contained = {to for digest in containers for to in self.children(digest)}
        roots = (containers - contained) | self.named
        self.holds = {root: self.reachable(root) for root in roots}
        self.roots = sorted(roots, key=self.order)

    # --- the graph

    def edges(self, digest: str) -> dict[str, list[dict[str, Any]]] | None:
        """Children of an index, config and layers of a manifest; None for what contains nothing."""
        document = self.world.documents.get(digest, {})
        if "manifests" in document:
            return {"manifests": document["manifests"], "config": [], "layers": []}
        if "layers" in document and "config" in document:
            return {"manifests": [], "config": [document["config"]], "layers": document["layers"] or []}
        if "fsLayers" in document:
            layers = [{"digest": row["blobSum"]} for row in document["fsLayers"]]
            return {"manifests": [], "config": [], "layers": layers}
        return None

    def children(self, digest: str) -> set[str]:
        edges = self.edges(digest) or {}
        return {one["digest"] for some in edges.values() for one in some}

    def reachable(self, root: str) -> set[str]:
        found: set[str] = set()
        new = {root}
        while new:
            found |= new
            new = {child for digest in new for child in self.children(digest) & self.world.present} - found
        return found

    def kind_of_document(self, digest: str) -> str:
        document = self.world.documents.get(digest, {})
        if "manifests" in document:
            return "index"
        if "fsLayers" in document:
            return "image"
        if "layers" not in document or "config" not in document:  # such as the config of BuildKit's cache
            return "unknown"
        if document.get("artifactType") == "application/vnd.docker.attestation.manifest.v1+json":
            return "attestation"
        layers = document["layers"] or []
        if layers and all(row.get("mediaType") == "application/vnd.in-toto+json" for row in layers):
            return "attestation"
        config = document["config"].get("mediaType", "")
        if config == "application/vnd.buildkit.cacheconfig.v0":
            return "build cache"
        return "image" if config in IMAGE_CONFIGS and not document.get("artifactType") else "artifact"

    def kind(self, root: str) -> str:
        kind = self.kind_of_document(root)
        tags = [name[3] for name in self.world.names if name[4] == root and name[0] == "named" and name[3]]
        if kind == "index" and tags and all(re.fullmatch("sha256-[0-9a-f]{64}", tag) for tag in tags):
            return "referrers list"
        if kind in ("attestation", "build cache", "unknown"):
            return kind
        return "referrer" if "subject" in self.world.documents[root] else kind

    def order(self, root: str) -> tuple[bool, int, str]:
        times = [name[5] for name in self.world.names if name[4] == root and name[5]]
        created = [
            self.world.created.get(one, 0) for one in self.holds[root] if "rootfs" in self.world.documents.get(one, {})
        ]
        at = min(times) if times else 10**9 * max([0, *created])
        return at == 0, at, root

    def is_attestation(self, child: dict[str, Any]) -> bool:
        return "vnd.docker.reference.type" in child.get("annotations", {})

    def platform_of(self, manifest: str) -> str:
        config = self.world.documents.get(self.world.documents[manifest].get("config", {}).get("digest", ""), {})
        return f"{config['os']}/{config['architecture']}" if "os" in config and "rootfs" in config else "unknown"

    def platforms(self, root: str) -> tuple[set[str], set[str]]:
        """Those that are present, and those that are absent."""
        present, absent = set(), set()
        if self.kind_of_document(root) == "image":
            present.add(self.platform_of(root))
        for digest in self.holds[root]:
            for child in (self.edges(digest) or {"manifests": []})["manifests"]:
                said = child.get("platform")
                platform = f"{said['os']}/{said['architecture']}" if said else ""
                if self.is_attestation(child):
                    continue
                if child["digest"] not in self.world.present:
                    absent.add(platform or child["digest"])
                elif self.kind_of_document(child["digest"]) == "image":
                    present.add(platform or self.platform_of(child["digest"]))
        return present, absent

    def missing(self, root: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for digest in self.holds[root]:
            edges = self.edges(digest) or {"config": [], "layers": []}
            for one in edges["config"] + edges["layers"]:
                foreign = one in edges["layers"] and "nondistributable" in one.get("mediaType", "")
                if one["digest"] not in self.world.present and not foreign:
                    found[one["digest"]] = max(found.get(one["digest"], 0), one.get("size", 0))
        return found

    # --- figures

    def chunks_of(self, root: str) -> dict[int, int]:
        return dict(chunk for digest in self.holds[root] for chunk in self.world.layers.get(digest, ()))

    def all_chunks(self) -> dict[int, int]:
        return dict(chunk for layer in self.world.layers.values() for chunk in layer)

    def common_chunks(self) -> dict[int, int]:
        """Those that more than half of all roots hold, from 20 roots on: they make no two of them alike."""
        sets = [self.chunks_of(root) for root in self.roots]
        every = self.all_chunks() if len(sets) >= 20 else {}
        return {chunk: size for chunk, size in every.items() if 2 * sum(chunk in one for one in sets) > len(sets)}

    def stored_of(self, root: str) -> dict[str, int]:
        return {digest: self.world.size(digest) for digest in self.holds[root]}

    def recompressed(self, chunks: dict[int, int]) -> dict[str, int | None]:
        """By the ratio of those that were measured (Cochran, "Sampling Techniques", sections 6.2 to 6.4); with fewer
        than 31 of them there is no error.
        """
        sample = {chunk: self.world.measured[chunk] for chunk in chunks if chunk in self.world.measured}
        x, y = sum(chunks[chunk] for chunk in sample), sum(sample.values())
        if len(sample) == len(chunks):
            return {"recompressed_bytes": y, "recompressed_error_bytes": 0}
        if not sample:
            return {"recompressed_bytes": None, "recompressed_error_bytes": None}
        ratio, every, number = Fraction(y, x), sum(chunks.values()), len(sample)
        value = math.floor(every * ratio + Fraction(1, 2))
        if number < 31:
            return {"recompressed_bytes": value, "recompressed_error_bytes": None}
        # Two chunks are assumed that do not compress.
        squares = 2 * (1 - ratio) ** 2 * Fraction(sum(chunks[chunk] ** 2 for chunk in sample), number)
        squares += sum((size - ratio * chunks[chunk]) ** 2 for chunk, size in sample.items())
        squares /= number - 1
        variance = Fraction(every, x) ** 2 * number * (1 - Fraction(number, len(chunks))) * squares
        return {"recompressed_bytes": value, "recompressed_error_bytes": math.ceil(1.96 * math.sqrt(int(variance)))}

    def column(self, held: dict[Holder, dict[Any, int]]) -> dict[Holder, dict[str, int]]:
        """The figures of each holder, which stand in their order, from what each holds with its bytes."""
        many: dict[Any, int] = {}
        for things in held.values():
            for thing in things:
                many[thing] = many.get(thing, 0) + 1
        rows, before = {}, set[Any]()
        for holder, things in held.items():
            rows[holder] = {
                "referenced_bytes": sum(things.values()),
                "exclusive_bytes": sum(size for thing, size in things.items() if many[thing] == 1),
                "shared_bytes": sum(size for thing, size in things.items() if many[thing] > 1),
                "new_bytes": sum(size for thing, size in things.items() if thing not in before),
            }
            before |= set(things)
        exact = {
            holder: sum((Fraction(size, many[thing]) for thing, size in things.items()), Fraction())
            for holder, things in held.items()
        }
        rounded = {holder: int(share) for holder, share in exact.items()}
        left = sum(exact.values()) - sum(rounded.values())
        by_remainder = sorted(exact, key=lambda holder: rounded[holder] - exact[holder])
        for holder in by_remainder[: int(left)]:
            rounded[holder] += 1
        return {holder: row | {"fair_share_bytes": rounded[holder]} for holder, row in rows.items()}

    def rows(self, groups: dict[Holder, list[str]], what: str) -> dict[str, Any]:
        """All figures of groups of roots; `what` they are."""

        def together(of: Callable[[str], dict[Any, int]]) -> dict[str, dict[Any, int]]:
            return {
                name: {thing: size for root in roots for thing, size in of(root).items()}
                for name, roots in groups.items()
            }

        stored, chunk_sets = self.column(together(self.stored_of)), together(self.chunks_of)
        chunks = self.column(chunk_sets)
        rows, partial = {}, []
        for name, roots in groups.items():
            layers = {digest for root in roots for digest in self.holds[root] if digest in self.world.layers}
            uncompressed = sum(length for digest in layers for _, length in self.world.layers[digest])
            column: dict[str, Any] | None = chunks[name] | {
                "uncompressed_bytes": uncompressed,
                "repeated_bytes": uncompressed - chunks[name]["referenced_bytes"],
                **self.recompressed(chunk_sets[name]),
            }
            if any(map(self.missing, roots)):
                partial.append(chunks[name])
                column = None
            rows[name] = {"stored": stored[name], "chunks": column}
        held_chunks = set().union(*chunk_sets.values()) if chunk_sets else set()
        held_blobs = set().union(*(self.holds[root] for root in self.roots)) if self.roots else set()
        unheld = self.world.present - held_blobs
        return {
            what: rows,
            "partial": {
                what: len(partial), "fair_share_bytes": sum(row["fair_share_bytes"] for row in partial),
                "new_bytes": sum(row["new_bytes"] for row in partial),
            },
            "unheld": {
                "blobs": len(unheld), "stored_bytes": sum(map(self.world.size, unheld)),
                "unique_bytes": sum(length for chunk, length in self.all_chunks().items() if chunk not in held_chunks),
            },
        }  # fmt: skip

    def images(self) -> dict[str, Any]:
        found = self.rows({root: [root] for root in self.roots}, "images")
        rows = []
        for root in self.roots:
            present, absent = self.platforms(root)
            missing = self.missing(root)
            head = {
                "digest": root, "kind": self.kind(root),
                "names": sorted({name[1] for name in self.world.names if name[4] == root and name[0] == "named"}),
                "platforms": sorted(present), "absent_platforms": sorted(absent), "missing_blobs": len(missing),
                "missing_bytes": sum(missing.values()),
            }  # fmt: skip
            rows.append(head | found["images"][root])
        return found | {"images": rows}

    def repositories_of(self, root: str) -> set[str]:
        return {name[2] for name in self.world.names if name[4] == root and name[0] == "named" and name[2]} or {""}

    def by_repository(self) -> dict[str, Any]:
        groups: dict[str, list[str]] = {}
        for root in self.roots:
            for repository in sorted(self.repositories_of(root)):
                groups.setdefault(repository, []).append(root)
        found = self.rows(groups, "repositories")
        rows = found["repositories"]
        heads = ({"repository": name, "images": len(roots)} for name, roots in groups.items())
        return found | {"repositories": [head | rows[head["repository"]] for head in heads]}

    def summary(self) -> dict[str, int]:
        rows = self.images()["images"]
        reached = {blob for row in rows if row["names"] for blob in self.stored_of(row["digest"])}
        others = [blob for blob in self.world.present if blob not in reached]
        return {
            "images": len(rows), "names": sum(len(row["names"]) for row in rows),
            "partial_images": sum(row["chunks"] is None for row in rows),
            "unreached_blobs": len(others), "unreached_bytes": sum(map(self.world.size, others)),
        }  # fmt: skip

    def freed(self, some: Iterable[str]) -> dict[str, Any]:
        some = set(some)
        others = [root for root in self.roots if root not in some]

        def only(of: Callable[[str], dict[Any, int]]) -> dict[Any, int]:
            kept = {thing for root in others for thing in of(root)}
            return {thing: size for root in some for thing, size in of(root).items() if thing not in kept}

        stored, chunks = only(self.stored_of), only(self.chunks_of)
        every = {thing: size for root in some for thing, size in self.stored_of(root).items()}
        return {
            "images": [root for root in self.roots if root in some],
            "stored": {"bytes": sum(stored.values()), "blobs": sorted(stored)},
            "chunks": {"bytes": sum(chunks.values()), **self.recompressed(chunks)},
            "held_by_others_bytes": sum(every.values()) - sum(stored.values()),
        }
