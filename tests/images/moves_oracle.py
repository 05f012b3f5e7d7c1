"""What a pull moves, in plain Python from the definitions: it shares no code with chunkd.

A layer is (name, stored bytes, chunks in order); a chunk has a length, and maybe a recompressed length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from image_oracle import Oracle

Layer = tuple[str, int, list[int]]
GAPS = (0, 8192, 131072, 1048576, None)
FEW = 31


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


class Pull:
    """Of `image`, whose layers are in their order, by a client that has the layers named in `held` and some chunks."""

    def __init__(
        self,
        chunks: set[int],
        held: set[str],
        image: Sequence[Layer],
        lengths: dict[int, int],
        measured: dict[int, int],
    ) -> None:
        self.lengths, self.measured, self.image = lengths, measured, image
        self.layers = [layer for layer in image if layer[0] not in held]
        # For each layer a flag for each of its places.
        self.fetched: list[list[bool]] = []
        seen = set(chunks)
        for _, _, recipe in self.layers:
            flags = []
            for chunk in recipe:
                flags.append(chunk not in seen)
                seen.add(chunk)
            self.fetched.append(flags)
        self.missing = [
            chunk
            for (_, _, recipe), flags in zip(self.layers, self.fetched, strict=True)
            for chunk, flag in zip(recipe, flags, strict=True)
            if flag
        ]
        self.measured_by, self.ratio = self._ratio()

    def _ratio(self) -> tuple[str | None, Fraction]:
        own = [chunk for chunk in self.missing if chunk in self.measured]
        if len(own) >= FEW or len(own) == len(self.missing):
            return "set", self._of(own)
        image = [chunk for chunk in {one for layer in self.image for one in layer[2]} if chunk in self.measured]
        if len(image) >= FEW:
            return "image", self._of(image)
        return ("cache", self._of(list(self.measured))) if self.measured else (None, Fraction(0))

    def _of(self, some: list[int]) -> Fraction:
        size = sum(self.lengths[chunk] for chunk in some)
        return Fraction(sum(self.measured[chunk] for chunk in some), size) if size else Fraction(0)

    def cost(self, chunk: int) -> Fraction:
        everywhere = {one for layer in self.layers for one in layer[2]}
        if everywhere <= set(self.measured):
            return Fraction(self.measured[chunk])
        return self.lengths[chunk] * self.ratio

    def runs(self, gap_bytes: int | None) -> tuple[int, Fraction]:
        """How many ranges there are, and what they move."""
        count, moved = 0, Fraction(0)
        for (_, _, recipe), flags in zip(self.layers, self.fetched, strict=True):
            gap: Fraction | None = None  # what lies behind the last fetched chunk of this layer
            for chunk, flag in zip(recipe, flags, strict=True):
                if not flag:
                    gap = None if gap is None else gap + self.cost(chunk)
                    continue
                if gap is None or (gap and gap_bytes is not None and gap > gap_bytes):
                    count += 1
                else:
                    moved += gap
                moved += self.cost(chunk)
                gap = Fraction(0)
        return count, moved

    def expected(self) -> dict[str, Any]:
        rows, so_far, before = [], Fraction(0), 0
        for (name, stored, recipe), flags in zip(self.layers, self.fetched, strict=True):
            mine = [chunk for chunk, flag in zip(recipe, flags, strict=True) if flag]
            so_far += sum((self.cost(chunk) for chunk in mine), Fraction(0))
            recompressed: int | None = half_up(so_far) - before
            before = half_up(so_far)
            if self.measured_by is None and mine:
                recompressed = None
            runs = sum(flag and not (at and flags[at - 1]) for at, flag in enumerate(flags))
            size = sum(self.lengths[chunk] for chunk in mine)
            rows.append((name, stored, len(recipe), len(mine), size, recompressed, runs))
        ranges = [] if self.measured_by is None else [(gap, *self.runs(gap)) for gap in GAPS]
        return {
            "missing": len(self.missing),
            "bytes": sum(self.lengths[chunk] for chunk in self.missing),
            "recipe_bytes": 40 * sum(len(layer[2]) for layer in self.layers),
            "runs": sum(row[6] for row in rows),
            "ranges": [(gap, count, half_up(moved)) for gap, count, moved in ranges],
            "layers": rows,
            "measured_by": self.measured_by,
            "recompressed": None if self.measured_by is None else half_up(self.whole()),
        }

    def whole(self) -> Fraction:
        return sum((self.cost(chunk) for chunk in self.missing), Fraction(0))


def fits(own: str, wanted: str) -> bool:
    return not wanted or (own + "/").startswith(wanted + "/")


def pulled(oracle: Oracle, root: str, platform: str = "") -> tuple[dict[str, bool], dict[str, int]] | None:
    """The blobs of a pull in their order, and whether each is a layer; and what is missing. None: no such platform."""
    found: dict[str, bool] = {}
    missing: dict[str, int] = {}
    runnable = []

    def visit(digest: str, is_layer: bool, said: str) -> None:
        if digest in found:
            return
        if oracle.kind_of_document(digest) == "image":
            if not fits(said or oracle.platform_of(digest), platform):
                return
            runnable.append(digest)
        found[digest] = is_layer
        schema_1 = "fsLayers" in oracle.world.documents.get(digest, {})  # lists the last layer first
        for role, some in (oracle.edges(digest) or {}).items():
            for one in reversed(some) if schema_1 else some:
                foreign = role == "layers" and "nondistributable" in one.get("mediaType", "")
                if one["digest"] not in oracle.world.present:
                    if role != "manifests" and not foreign:
                        missing[one["digest"]] = max(missing.get(one["digest"], 0), one.get("size", 0))
                    continue
                told = one.get("platform")
                claimed = f"{told['os']}/{told['architecture']}" if told and not oracle.is_attestation(one) else ""
                skipped = oracle.is_attestation(one) or (claimed and not fits(claimed, platform))
                if not (role == "manifests" and platform and skipped):
                    visit(one["digest"], role == "layers", claimed)

    visit(root, False, "")
    return (found, missing) if runnable or not platform else None
