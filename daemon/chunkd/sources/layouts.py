"""How caches name their blobs, decided path by path: path to digest, and which folders are worth a look.

    flat          <hex>                            in the cache's root
    oci           blobs/<alg>/<hex>                OCI layouts, containerd; also below repository folders, as in zot
    distribution  blobs/<alg>/<2 hex>/<hex>/data   docker-registry; also below docker/registry/v2
    quay          <alg>/<2 hex>/<hex>              Quay's local storage, where no folder blobs is above <alg>

A cache's root may be any folder on the way: `registry`, `registry/blobs` and `registry/blobs/sha256` hold the same
blobs. So a path is judged with its root before it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from chunkd.model import HEX_DIGITS, Digest

_ALGORITHM_OF = {digits: algorithm for algorithm, digits in HEX_DIGITS.items()}
# The name of the blob in distribution's folder for it.
DATA = "data"
# The names in an OCI layout, beside its blobs.
INDEX = "index.json"
_HEX = re.compile(r"[0-9a-f]+")
_HEX_DIGITS = b"0123456789abcdef"
_SLICE_NAMES = 1024
_BLOBS = re.compile(r"(?:^|/)blobs/(?P<algorithm>sha256|sha512)/(?P<rest>.+)\Z", re.DOTALL)
_FOLDER = re.compile(r"(?:^|/)blobs/(?P<algorithm>sha256|sha512)(?:/(?P<pair>[0-9a-f]{2}))?\Z")
_QUAY = re.compile(r"(?:^|/)(?P<algorithm>sha256|sha512)/(?P<pair>[0-9a-f]{2})(?:/(?P<name>[^/]+))?\Z")
# In a root that is one of Quay's 256 folders the blobs are named as in a flat cache.
_END_OF_ROOT = re.compile(r"(?:^|/)(blobs(?:/(?:sha256|sha512)(?:/[0-9a-f]{2})?)?|sha256|sha512)\Z")

# Repositories can't begin with these (the distribution spec), and writers keep what is in flight in such folders:
# .uploads and .sync (zot), .umoci-*, _uploads, _layers and _manifests (distribution).
_PRIVATE = (".", "_")
# What file systems, NAS and Windows keep for themselves, and what containers see as their own file system: files of a
# digest's name in it are not blobs of the cache. The folders of containerd's plugins are its own but for the content.
_FOREIGN = re.compile(
    r"(?:^|/)(?:lost\+found|#recycle|#snapshot|@eaDir|@Recycle|\$RECYCLE\.BIN|System Volume Information"
    r"|io\.containerd\.(?!content\.)[^/]*|overlay2|overlay-(?:containers|images|layers)|kubernetes\.io~[^/]*"
    r"|(?:containers|overlay|volumes)/[0-9a-f]{64}|vfs/dir|vfs-(?:containers|images|layers)|rootfs/overlayfs)(?:/|\Z)"
)
# Distribution's repositories hold links to blobs, as small files, and grow to thousands of folders.
_REGISTRY = "docker/registry/v2"
_REPOSITORIES = re.compile(rf"(?:^|/){_REGISTRY}/repositories(?:/|\Z)")
# Deeper than any known store; a bound on what a strange tree can cost.
MAX_DEPTH = 24


def _digest(algorithm: str | None, name: str) -> Digest | None:
    found = _ALGORITHM_OF.get(len(name))
    if found is None or algorithm not in (None, found) or not _HEX.fullmatch(name):
        return None
    return Digest(found, name)


def _within(root: str, path: str) -> str:
    """The path, with as much of its root in front as belongs to a layout."""
    end = _END_OF_ROOT.search(root)
    return "/".join(filter(None, (end and end[1], path)))


def _leads_nowhere(root: str, folder: str) -> bool:
    """Whether this folder holds no blob of the cache. Only the part of its path below the root is judged: the user
    named the root, and knows what lies there.
    """
    if any(name.startswith(_PRIVATE) for name in folder.split("/")) or _FOREIGN.search(folder):
        return True
    # With so much of the root before it as leaves the last name to the folder.
    return _REPOSITORIES.search(f"{root[-len(_REGISTRY) - 1 :]}/{folder}") is not None


@functools.lru_cache(4096)  # a place is judged some five times on its way into the index
def identify(root: str, path: str) -> tuple[Digest, str] | None:
    """The digest and the layout of the blob at `path` below `root`, None for a path that names no blob."""
    if _leads_nowhere(root, path.rpartition("/")[0]):
        return None
    within = _within(root, path)
    match = _BLOBS.search(within)
    if match is None:
        quay = _QUAY.search(within)
        if quay and quay["name"]:
            digest = _digest(quay["algorithm"], quay["name"])
            return (digest, "quay") if digest and digest.hex.startswith(quay["pair"]) else None
        digest = _digest(None, path)
        return (digest, "flat") if digest else None
    parts = match["rest"].split("/")
    if len(parts) == 1:
        digest = _digest(match["algorithm"], parts[0])
        return (digest, "oci") if digest else None
    if len(parts) == 3 and parts[2] == DATA and len(parts[0]) == 2:
        digest = _digest(match["algorithm"], parts[1])
        return (digest, "distribution") if digest and digest.hex.startswith(parts[0]) else None
    return None


class Naming(NamedTuple):
    """How the blobs right in one folder are named, so that all its names are judged at once.

    In the layout `distribution` these are names of folders, whose `data` is the blob. A `strict` folder is for blobs
    alone: any other name in it is reported as ignored. If no blob can be in the folder, no name fits.
    """

    layout: str
    digits: frozenset[int]
    pair: bytes
    strict: bool

    def fit(self, names: Sequence[bytes]) -> set[bytes]:
        """Those that name a blob: just what `identify` says of each path, at a fraction of its cost."""
        found: set[bytes] = set()
        for start in range(0, len(names), _SLICE_NAMES):
            some = names[start : start + _SLICE_NAMES]
            # Most folders hold nothing else: then one look at all of them will do.
            if not set(map(len, some)) <= self.digits or b"".join(some).translate(None, _HEX_DIGITS):
                some = [name for name in some if len(name) in self.digits and not name.translate(None, _HEX_DIGITS)]
            found.update(some)
        return {name for name in found if name.startswith(self.pair)} if self.pair else found


def _inside(root: str, folder: str) -> re.Match[str] | None:
    """The algorithm and the pair of a folder that is for blobs alone; None for any other."""
    within = _within(root, folder)
    if found := _FOLDER.search(within):
        return found
    found = None if _BLOBS.search(within) else _QUAY.search(within)
    return found if found and not found["name"] else None


def naming(root: str, folder: str) -> Naming:
    """How blobs right in this folder (`""` is the root) are named."""
    inside = _inside(root, folder)
    if inside is None:
        return Naming("flat", frozenset(() if folder else _ALGORITHM_OF), b"", strict=False)
    digits = frozenset(() if _leads_nowhere(root, folder) else (HEX_DIGITS[inside["algorithm"]],))
    pair = (inside["pair"] or "").encode()
    layout = "quay" if inside.re is _QUAY else "distribution" if pair else "oci"
    return Naming(layout, digits, pair, strict=True)


def blob_within(root: str, folder: str, name: str) -> str | None:
    """The path of the blob that a folder of that name in `folder` holds (distribution's `<hex>/data`), if it is one."""
    path = f"{folder}/{name}/{DATA}" if folder else f"{name}/{DATA}"
    return path if identify(root, path) else None


def worth_entering(root: str, folder: str, name: str) -> bool:
    """Whether a folder of that name in `folder` may contain blobs, at any depth."""
    if _leads_nowhere(root, f"{folder}/{name}".lstrip("/")) or folder.count("/") >= MAX_DEPTH:
        return False
    inside = _inside(root, folder)
    if inside is None:
        # A folder where a flat cache would have a blob is none.
        return folder != "" or identify(root, name) is None
    # Below blobs/<alg> there are the 256 folders of distribution, and below those, or Quay's, nothing to enter.
    return inside["pair"] is None and len(name) == 2 and _HEX.fullmatch(name) is not None
