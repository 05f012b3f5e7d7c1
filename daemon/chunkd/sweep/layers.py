"""Which layers a sweep reads, and where they lie: those that the index holds, or those that caches list."""

from __future__ import annotations

from collections.abc import Sequence

from chunkd.check.read_again import place_of
from chunkd.index.storage.environment import reading_first
from chunkd.model import Digest
from chunkd.objects.choose import bucket_of, check_usable
from chunkd.settings.paths import normal
from chunkd.sources import layouts
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import walk
from chunkd.sweep.question import Share
from chunkd.sweep.tally import Layer, Layers, picked
from chunkd.urls import OBJECT_STORES

# What a layer decompresses to as a multiple of its size, where that is not known. It only plans.
_LIKELY_RATIO = 4


def found(states: Sequence[str], caches: Sequence[str], share: Share) -> Layers:
    """What these caches list, or the layers of the first index that there is if none is named. Raises IndexMissing,
    CacheUnusable, and what reading an index raises.
    """
    return listed(caches, share) if caches else indexed(states, share)


def indexed(states: Sequence[str], share: Share) -> Layers:
    """The layers of the first index that there is. Raises IndexMissing and what else `reading_first` raises."""
    found = []
    with reading_first(states) as (store, state_dir), store.snapshot() as txn:
        store.check_format(txn, None)
        roots: dict[str, int] = {}
        caches = {number: cache.path for number, cache in store.caches(txn).items()}
        for blob in store.blobs(txn, "blobs"):
            if blob.state == "layer" and share.has(blob.digest):
                root, path = place_of(store, txn, caches, blob.digest)
                number = roots.setdefault(root, len(roots))
                found.append(Layer(blob.digest, blob.stored_bytes, blob.uncompressed_bytes, number, path))
    return Layers(tuple(roots), picked(found), state_dir, [])


def listed(caches: Sequence[str], share: Share) -> Layers:
    """The blobs of some caches, each digest once; what is not a layer is told when it is read. Raises CacheUnusable."""
    found: dict[Digest, Layer] = {}
    problems = []
    roots = tuple(cache if cache.startswith(OBJECT_STORES) else normal(cache) for cache in caches)
    for number, root in enumerate(roots):
        check_usable(root)
        source = bucket_of(root) or FolderSource(root)
        for listing in walk(source, "", lambda _: None):
            if listing.problem:
                problems.append(listing.problem)
            for name in listing.blobs:
                path = listing.blob_path(name)
                named = layouts.identify(root, path)
                if named is None or not share.has(named[0]) or named[0] in found:
                    continue
                try:
                    with source.view() as view:
                        seen = view.look(path)
                except OSError:
                    continue  # gone since it was listed
                if not seen.kind:
                    size = seen.mark.stored_bytes
                    found[named[0]] = Layer(named[0], size, _LIKELY_RATIO * size, number, path)
    return Layers(roots, picked(found.values()), None, problems)
