"""The figures of images as the JSON objects that are served: all images, by repository, and what a removal would free.

Two columns are never mixed: *stored* is the size on disk of what an image holds, manifests and configs included;
*chunks* are the uncompressed bytes of the distinct chunks of its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from chunkd.figures.net_saving import estimate
from chunkd.images.atoms import Atoms, Chunks, Parts, Weight, blob_atoms, chunk_atoms, members, regrouped
from chunkd.images.columns import Column, Row, freed, held_back, unreached
from chunkd.images.graph import ORDER, BlobFacts, Graph
from chunkd.model import Digest


@dataclass(frozen=True, slots=True)
class _Columns:
    """The three columns over the same holders: blobs, layers (uncompressed, each once), chunks."""

    stored: Column
    layers: Column
    chunks: Column

    def rows(self, heads: Iterable[dict[str, Any]], partial: Iterable[bool], what: str) -> dict[str, Any]:
        """A row for each holder, and the parts without a row that close the sums. The chunks of a partial one are
        unknown.
        """
        rows, shares, new = [], [], []
        for number, (head, is_partial) in enumerate(zip(heads, partial, strict=True)):
            chunks = self._chunks(number)
            if is_partial:
                shares.append(chunks["fair_share_bytes"])
                new.append(chunks["new_bytes"])
            rows.append(
                head | {"stored": _bytes_of(self.stored.rows[number]), "chunks": None if is_partial else chunks}
            )
        return {
            "order": ORDER,
            what: rows,
            "partial": {what: len(shares), "fair_share_bytes": sum(shares), "new_bytes": sum(new)},
            "unheld": {
                "blobs": self.stored.unheld.number,
                "stored_bytes": self.stored.unheld.bytes,
                "unique_bytes": self.chunks.unheld.bytes,
            },
        }

    def _chunks(self, number: int) -> dict[str, Any]:
        row, uncompressed_bytes = self.chunks.rows[number], self.layers.rows[number].referenced.bytes
        repeated_bytes = uncompressed_bytes - row.referenced.bytes
        own = {"uncompressed_bytes": uncompressed_bytes, "repeated_bytes": repeated_bytes}
        return own | _bytes_of(row) | _recompressed(row.referenced)


@dataclass(frozen=True, slots=True)
class Images:
    """The graph and all that its figures are computed from, at one moment. A set of images is an integer with the bits
    of their numbers. Each question goes through the chunks once, and may take seconds.
    """

    graph: Graph
    stored: Atoms
    layers: Atoms
    _layer_digests: frozenset[Digest]
    _chunks: Chunks

    @classmethod
    def of(
        cls, graph: Graph, blobs: Mapping[Digest, BlobFacts], layers: Mapping[Digest, int], chunks: Chunks
    ) -> Images:
        """Of a graph, the blobs it was built of, the uncompressed bytes of each layer that counts, and the chunks."""
        stored = blob_atoms(graph, {digest: facts.stored_bytes for digest, facts in blobs.items()})
        return cls(graph, stored, blob_atoms(graph, layers), frozenset(layers), chunks)

    def chunk_parts(self) -> Parts:
        """The atoms of the chunks, computed anew."""
        return chunk_atoms(self.graph, self._layer_digests, self._chunks)

    def _parts(self) -> tuple[Parts, Parts, Parts]:
        return [self.stored], [self.layers], self.chunk_parts()

    def to_json(self) -> dict[str, Any]:
        """The object of `images --json`, but for the times."""
        heads = (
            {
                "digest": str(root.digest),
                "kind": root.kind,
                "names": list(root.names),
                "platforms": list(root.platforms),
                "absent_platforms": list(root.absent_platforms),
                "missing_blobs": root.missing_blobs,
                "missing_bytes": root.missing_bytes,
            }
            for root in self.graph.roots
        )
        partial = (root.is_partial for root in self.graph.roots)
        columns = _Columns(*(Column(parts, len(self.graph.roots)) for parts in self._parts()))
        return columns.rows(heads, partial, "images")

    def by_repository(self) -> dict[str, Any]:
        """The same with a repository in place of an image. Images without a name are one group, whose name is ""."""
        groups: dict[str, int] = {}
        groups_of = []
        for root in self.graph.roots:  # so the repositories are in the order of their first images
            found = 0
            for repository in root.repositories or ("",):
                found |= 1 << groups.setdefault(repository, len(groups))
            groups_of.append(found)
        images, partial = [0] * len(groups), [False] * len(groups)
        for root, found in zip(self.graph.roots, groups_of, strict=True):
            for number in members(found).tolist():
                images[number] += 1
                partial[number] |= root.is_partial
        heads = ({"repository": name, "images": images[number]} for name, number in groups.items())
        columns = _Columns(*(Column(regrouped(parts, groups_of), len(groups)) for parts in self._parts()))
        return columns.rows(heads, partial, "repositories")

    def summary(self) -> dict[str, int]:
        """How many images there are, names of these, and partial ones; and the blobs and stored bytes that no name
        reaches: only images without a name hold them, or none.
        """
        roots = self.graph.roots
        unnamed = sum(1 << number for number, root in enumerate(roots) if not root.names)
        found = unreached([self.stored], unnamed)
        return {
            "images": len(roots),
            "names": sum(len(root.names) for root in roots),
            "partial_images": sum(root.is_partial for root in roots),
            "unreached_blobs": found.number,
            "unreached_bytes": found.bytes,
        }

    def freed(self, some: int) -> dict[str, Any]:
        """The object of `freed --json` for a set of images: what no other image holds."""
        stored, chunks = freed([self.stored], some), freed(self.chunk_parts(), some)
        return {
            "images": [str(root.digest) for number, root in enumerate(self.graph.roots) if some >> number & 1],
            "stored": {
                "bytes": stored.bytes,
                "blobs": [
                    str(digest) for digest, holders in self.graph.holders_of() if holders and not holders & ~some
                ],
            },
            "chunks": {"bytes": chunks.bytes} | _recompressed(chunks),
            "held_by_others_bytes": held_back([self.stored], some).bytes,
        }


def _bytes_of(row: Row) -> dict[str, int]:
    return {
        "referenced_bytes": row.referenced.bytes,
        "exclusive_bytes": row.exclusive_bytes,
        "shared_bytes": row.shared_bytes,
        "fair_share_bytes": row.fair_share_bytes,
        "new_bytes": row.new_bytes,
    }


def _recompressed(weight: Weight) -> dict[str, int | None]:
    """What the chunks would take, each compressed, and half of the 95 % interval of that estimate."""
    found = estimate(weight.sample, weight.number, weight.bytes)
    return {"recompressed_bytes": found.recompressed_bytes, "recompressed_error_bytes": found.error_bytes}
