"""The state of a cache as its thread last saw it. It is published as a whole, and any thread may read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chunkd.model import METADATA_ALONE, Cache, CacheState
from chunkd.sources.source import Entry

# So many problems are named; more are counted.
PROBLEMS_SHOWN = 20

LAYERLESS = (
    "it holds blobs and no layer: does containerd discard layers once they are unpacked"
    " (discard_unpacked_layers, the default of EKS and Talos)? Then point chunkd at a registry"
)


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """`stale` says why nothing of the cache is added or subtracted, `polled` why no events come, `unwatched` why a
    watch could not be set. `away` are the recorded mounts that are not there. `problems` are the folders that could not
    be listed, with the reason, as far as they are remembered; `unlisted_folders` counts them all. `unread` says what
    looks like blobs in a cache that gives none; it is among the `warnings` too.
    """

    device: int = 0
    inode: int = 0
    layouts: tuple[str, ...] = ()
    mounts: tuple[tuple[str, int], ...] = ()
    away: frozenset[str] = frozenset()
    stale: str = ""
    polled: str = ""
    unwatched: str = ""
    watched: bool = False
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unlisted_folders: int = 0
    unread: tuple[str, ...] = ()
    fsid: int = 0

    def record(self, path: str, layerless: str) -> Cache:
        """What the index keeps of the cache."""
        return Cache(path, self.device, self.inode, self.layouts, layerless, self.mounts, self.warnings, self.fsid)

    def out_of_sight(self, path: str) -> bool:
        """Whether a place can't be seen now, so that nothing follows from its absence."""
        return bool(self.stale) or any(f"{path}/".startswith(f"{mount}/") for mount in self.away)


def state_of(path: str, status: CacheStatus, hung_s: float, *, layerless: str) -> CacheState:
    """A cache as it is shown. `hung_s` is for how long its file system has not answered, 0 when it does."""
    if hung_s:
        state, reason = "hung", f"its file system has not answered for {hung_s:.0f} s"
    elif status.stale:
        state, reason = "stale", status.stale
    elif status.polled:
        state, reason = "polled", status.polled
    elif not status.watched:
        state, reason = "unwatched", status.unwatched or "the watcher has not started"
    else:
        state, reason = "watched", ""
    return CacheState(path, status.layouts, state, reason or None, warnings(status.warnings, layerless=layerless))


def idle_state(cache: Cache) -> CacheState:
    """A cache as the index knows it. Nothing of the cache itself is looked at."""
    return CacheState(cache.path, cache.layouts, "idle", None, warnings(cache.warnings, layerless=cache.layerless))


def warnings(found: Iterable[str], *, layerless: str) -> tuple[str, ...]:
    if layerless == METADATA_ALONE:
        return (*found, LAYERLESS)
    if layerless:
        what = f"it holds no layer that chunkd decodes (gzip, zstd or plain tar); its large blobs are: {layerless}"
        return (*found, what)
    return tuple(found)


def warnings_of(entries: Iterable[Entry], *, found_blobs: bool) -> tuple[str, ...]:
    """What is odd about a root that holds these, though nothing is wrong with it."""
    names = {entry.name: entry for entry in entries}
    if any(names[name].is_folder for name in ("overlay-images", "overlay2", "vfs-images") if name in names):
        return ("this is an unpacked image store, which keeps no layers as blobs; point chunkd at a registry's folder",)
    known = {"blobs", "docker", "ingest", "oci-layout", "index.json", "sha256", "sha512"}
    if names and not found_blobs and known.isdisjoint(names):
        return (
            "no blob was recognised in it; name the folder of an OCI layout, a registry's or containerd's store,"
            " or a folder of files named by their digest",
        )
    return ()
