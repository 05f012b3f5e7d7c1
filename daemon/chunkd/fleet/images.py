"""The images of all sources of a store: what one index would say that had the blobs and the names of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chunkd.errors import UsageError
from chunkd.fleet import snapshot
from chunkd.fleet.merge import Progress, Sources, fleet_of, loaded, measured_alike
from chunkd.fleet.segment import SegmentBad, read_blobs
from chunkd.fleet.store import Store, blobs_name
from chunkd.fleet.tables import Numbers, Tables
from chunkd.images.answers import list_of
from chunkd.images.atoms import Chunks
from chunkd.images.figures import Images
from chunkd.images.graph import BlobFacts, build
from chunkd.images.read import MOST_BLOBS, MOST_NAMES, bound, contents_of
from chunkd.index import records
from chunkd.model import Digest
from chunkd.names.name import Name
from chunkd.queries.read import moment
from chunkd.worker.manifest import Contents

# 4 bytes each are held while the figures are computed, and as many while a range is read.
MOST_ROWS = 1 << 27
STORE = "the store"


def images(store: Store, sources: Sources, by: str, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The object of `chunkd images --json` over all sources, with `fleet` as `merge` has it.

    Raises UsageError under a key, which leaves names out, TooManyImages, and as `merge` does.
    """
    if sources.counted[0].rules.key:
        raise UsageError(f"store {store.path}: it is under a key, and has no names of images")
    with loaded(store, sources) as tables:
        tables.check_rows_files()
        facts = tables.counted()
        bound(len(facts), MOST_BLOBS, "blobs", STORE)
        bound(tables.rows, MOST_ROWS, "rows of chunks", STORE)
        contents = _contents(store, facts)
        sizes = ((records.digest_from_key(key), size) for key, size, _ in facts)
        blobs = {digest: BlobFacts(size, contents.get(digest)) for digest, size in sizes}
        layers = {records.digest_from_key(key): size for key, size in tables.layers()}
        chunks = _chunks(tables, sources, list(layers), progress)
        held = tables.source_sums()
    found = Images.of(build(blobs, _names(store, sources)), blobs, layers, chunks)
    as_of_ns = min(one.facts.as_of_ns for one in sources.counted)
    names_as_of_ns = min(one.facts.names_as_of_ns for one in sources.counted)
    head = {"as_of": moment(as_of_ns), "names_as_of": moment(names_as_of_ns), "commit": None}
    return head | list_of(found, by) | {"next": None, "fleet": fleet_of(sources, held)}


def _contents(store: Store, facts: list[tuple[bytes, int, str]]) -> dict[Digest, Contents]:
    """What each manifest, index and config says."""
    wanted: dict[str, set[bytes]] = {}
    for key, _, segment in facts:
        if segment:
            wanted.setdefault(segment, set()).add(key)
    segment = ""

    def manifests() -> Iterator[tuple[Digest, bytes]]:
        nonlocal segment
        for segment, keys in wanted.items():
            table = read_blobs(store, segment).table
            for key, value in zip(table["digest"].to_pylist(), table["manifest"].to_pylist(), strict=True):
                if value and key in keys:
                    yield records.digest_from_key(key), value

    return contents_of(manifests(), lambda problem: SegmentBad(blobs_name(segment), problem), STORE)


def _names(store: Store, sources: Sources) -> list[Name]:
    """The names that any source knows."""
    found: list[Name] = []
    for one in sources.counted:
        for kept in snapshot.names(store, one):
            found += kept.part.names or ()
            bound(len(found), MOST_NAMES * len(sources.counted), "names", STORE)
    found = list(dict.fromkeys(found))
    bound(len(found), MOST_NAMES, "names", STORE)
    return found


def _chunks(tables: Tables, sources: Sources, layers: list[Digest], progress: Progress) -> Chunks:
    """All chunks, numbered in the order of their hashes."""
    measured = measured_alike(sources)[0]
    numbers_of: list[list[NDArray[np.uint32]]] = [[] for _ in layers]
    lengths, recompressed = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)]
    count = 0
    ranges = list(tables.ranges())
    for done, (low, high) in enumerate(ranges, 1):
        recipes = tables.recipes(low, high, measured)
        edges = np.searchsorted(recipes.layers, np.arange(len(layers) + 1))
        numbers = (recipes.numbers + count).astype(np.uint32)
        for layer, own in enumerate(numbers_of):
            if edges[layer] < edges[layer + 1]:
                own.append(numbers[edges[layer] : edges[layer + 1]])
        lengths.append(recipes.lengths)
        recompressed.append(recipes.recompressed)
        count += len(recipes.lengths)
        progress(tables.rows_bytes * done // len(ranges), tables.rows_bytes, len(ranges) - done)
    all_lengths, all_recompressed = np.concatenate(lengths), np.concatenate(recompressed)
    at = {digest: number for number, digest in enumerate(layers)}

    def recipe(digest: Digest) -> Numbers:
        return np.concatenate([np.empty(0, np.uint32), *numbers_of[at[digest]]]).astype(np.int64)

    def recompressed_of(low: int, high: int) -> tuple[Numbers, Numbers]:
        own = np.flatnonzero(all_recompressed[low:high]) + low
        return own, all_recompressed[own].astype(np.int64)

    return Chunks(count, recipe, lambda low, high: all_lengths[low:high].astype(np.int64), recompressed_of)
