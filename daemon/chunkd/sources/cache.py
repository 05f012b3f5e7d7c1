"""The caches that are served: where each is, whether it is there, and how news of it comes."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path

from chunkd.errors import CacheUnusable
from chunkd.model import METADATA_ALONE, Cache, CacheState


@dataclass(slots=True)
class ServedCache:
    """One cache. `device` and `inode` are those of its root as the index recorded them, 0 before the first look.

    While `stale` says why, its figures are kept and nothing of it is added or subtracted. `polled` says why no events
    come; `unwatched` why a watch could not be set. `mounts` has the devices of what is mounted below the root and holds
    blobs, by folder; it is replaced and never changed, since several threads read it, and add to it by `note_mount`.
    """

    number: int
    path: str
    device: int = 0
    inode: int = 0
    layouts: set[str] = field(default_factory=set)
    stale: str = ""
    polled: str = ""
    unwatched: str = ""
    layerless: str = ""
    mounts: dict[str, int] = field(default_factory=dict)
    warned: tuple[str, ...] = ()
    _noting: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def check_root(self) -> os.stat_result | None:
        """Look at the root; None, with `stale` set, when it is not the one whose blobs are in the index."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            self.stale = f"its root can't be reached: {error.strerror}"
            return None
        if not stat.S_ISDIR(status.st_mode):
            self.stale = "its root is no folder"
            return None
        if self.device and status.st_dev != self.device:
            self.stale = (
                f"its root is on another device than recorded; if that is meant, run `chunkd scan --accept {self.path}`"
            )
            return None
        self.stale = ""
        return status

    def accept(self, status: os.stat_result) -> None:
        self.device, self.inode, self.stale = status.st_dev, status.st_ino, ""

    def mount_of(self, path: str) -> str:
        """The recorded mount below the root that a path below the root belongs to, `""` for the root's own."""
        return max((mount for mount in self.mounts if f"{path}/".startswith(f"{mount}/")), key=len, default="")

    def away(self, path: str) -> str:
        """Why a path that is not there proves nothing: what it lay on is no longer mounted; else `""`: it is gone."""
        mount = self.mount_of(path)
        if not mount:
            return ""
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(self.path, mount)).st_dev == self.mounts[mount]:
                return ""
        return (
            f"{os.path.join(self.path, mount)}: what was mounted there is away; if that is meant, run"
            f" `chunkd scan --accept {self.path}`"
        )

    def note_mount(self, folder: str) -> None:
        """Record where that is mounted which holds the blobs of this folder, unless that is known.

        Nothing is told by a root that is not the recorded one: it went meanwhile, or no scan has recorded it yet. Nor
        by what lies where a mount is away.
        """
        with contextlib.suppress(OSError):
            device = os.stat(os.path.join(self.path, folder)).st_dev
            known = self.mount_of(folder)
            if device in (self.device, self.mounts.get(known)) or os.stat(self.path).st_dev != self.device:
                return
            if self.away(folder):
                return
            while (parent := os.path.dirname(folder)) and os.stat(os.path.join(self.path, parent)).st_dev == device:
                folder = parent
            with self._noting:
                self.mounts = self.mounts | {folder: device}

    def forget_mounts(self) -> None:
        """Those that are away, which is meant, and those on the device that the root itself is on now."""
        gone = {mount for mount, device in self.mounts.items() if device == self.device or self.away(mount)}
        with self._noting:
            self.mounts = {mount: device for mount, device in self.mounts.items() if mount not in gone}

    def record(self) -> Cache:
        mounts = tuple(sorted(self.mounts.items()))
        return Cache(self.path, self.device, self.inode, tuple(sorted(self.layouts)), self.layerless, mounts)

    def state(self, watching: bool) -> CacheState:
        """As it is shown. `watching` says whether this process watches at all."""
        if self.stale:
            state, reason = "stale", self.stale
        elif self.polled:
            state, reason = "polled", self.polled
        elif not watching:
            state, reason = "unwatched", self.unwatched or "the watcher does not live"
        elif self.unwatched:
            state, reason = "unwatched", self.unwatched
        else:
            state, reason = "watched", ""
        return CacheState(self.path, tuple(sorted(self.layouts)), state, reason or None, warnings(self.record()))


def warnings(cache: Cache) -> tuple[str, ...]:
    """What is odd about a cache, though nothing is wrong with it."""
    found = []
    if any(Path(cache.path, name).is_dir() for name in ("overlay-images", "overlay2", "vfs-images")):
        found.append(
            "this is an unpacked image store, which keeps no layers as blobs; point chunkd at a registry's folder"
        )
    elif not cache.layouts and _holds_other_things(cache.path):
        found.append(
            "no blob was recognised in it; name the folder of an OCI layout, a registry's or containerd's store,"
            " or a folder of files named by their digest"
        )
    if cache.layerless == METADATA_ALONE:
        found.append(
            "it holds blobs and no layer: does containerd discard layers once they are unpacked"
            " (discard_unpacked_layers, the default of EKS and Talos)? Then point chunkd at a registry"
        )
    elif cache.layerless:
        found.append(
            f"it holds no layer that chunkd decodes (gzip, zstd or plain tar); its large blobs are: {cache.layerless}"
        )
    return tuple(found)


def idle_state(cache: Cache) -> CacheState:
    """A cache as an index without a daemon tells of it."""
    return CacheState(cache.path, cache.layouts, "idle", None, warnings(cache))


def _holds_other_things(path: str) -> bool:
    """Whether a root has entries, and none that a store has before its first blob."""
    try:
        names = os.listdir(path)
    except OSError:
        return False
    known = {"blobs", "docker", "ingest", "oci-layout", "index.json", "sha256", "sha512"}
    return bool(names) and known.isdisjoint(names)


def check_usable(path: str) -> None:
    """Raises CacheUnusable when there is no folder at `path`, or it can't be listed."""
    try:
        with os.scandir(path):
            pass
    except FileNotFoundError:
        raise CacheUnusable(path, "does not exist; name the folder that holds the blobs") from None
    except NotADirectoryError:
        raise CacheUnusable(path, "is no folder; name the folder that holds the blobs") from None
    except PermissionError:
        raise CacheUnusable(
            path, "can't be listed: permission denied; run chunkd as a user or in a group that may read it"
        ) from None
    except OSError as error:
        raise CacheUnusable(path, f"can't be listed: {error.strerror}") from error
