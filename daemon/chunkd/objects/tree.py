"""What lies beside the blobs of a bucket, for the reading of names.

A repository of distribution's has a link for each tag and revision. They are listed as a whole, and only the links that
say where a tag points are read, each once.
"""

from __future__ import annotations

from errno import EFBIG, ENOENT
from itertools import chain

from chunkd.objects.store import Bucket, Object

# Links of one repository, and links whose content is remembered, each of so many bytes at most.
MOST_LINKS = 1 << 19
MOST_REMEMBERED, REMEMBERED_BYTES = 1 << 16, 256
_MANIFESTS = "/_manifests"


class Links:
    """The content of small objects, by key and tag."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bytes]] = {}

    def get(self, of: Object) -> bytes | None:
        tag, content = self._known.get(of.key, ("", b""))
        return content if tag == of.tag else None

    def keep(self, of: Object, content: bytes) -> None:
        if len(content) <= REMEMBERED_BYTES:
            while len(self._known) >= MOST_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[of.key] = of.tag, content


class Tree:
    """`source.Beside` of a prefix in a bucket."""

    def __init__(self, bucket: Bucket, prefix: str, links: Links) -> None:
        self._bucket, self._prefix, self._links = bucket, prefix, links
        # The folder that is listed as a whole, and what is in it.
        self._top = "/"
        self._objects: dict[str, Object] = {}
        self._folders: dict[str, set[str]] = {}

    def is_there(self, path: str) -> bool:
        key = self._prefix + path
        found = self._bucket.looks([key])[0]
        if isinstance(found, FileNotFoundError):
            return self._bucket.has_any(f"{key}/")
        return True

    def folders(self, path: str) -> list[str]:
        if self._load(path):
            if path not in self._folders:
                raise FileNotFoundError(ENOENT, "no such folder", path)
            return list(self._folders[path])
        prefix = f"{self._prefix}{path}/" if path else self._prefix
        found, below = self._bucket.folder(prefix)
        if not (found or below):
            raise FileNotFoundError(ENOENT, "no such folder", path)
        return [one[len(prefix) :] for one in below]

    def changed_ns(self, path: str) -> int:
        return self._look(path).changed_ns

    def read_small(self, path: str, most_bytes: int) -> tuple[bytes, int]:
        of = self._look(path) if self._load(path) else None
        content = None if of is None else self._links.get(of)
        if content is None:
            content, of = self._bucket.read(self._prefix + path, most_bytes)
            self._links.keep(of, content)
        assert of is not None
        return content, of.changed_ns

    def _look(self, path: str) -> Object:
        if not self._load(path):
            found = self._bucket.looks([self._prefix + path])[0]
            if isinstance(found, OSError):
                raise found
            return found
        if path not in self._objects:
            raise FileNotFoundError(ENOENT, "no such object", path)
        return self._objects[path]

    def _load(self, path: str) -> bool:
        """Whether the path is in a folder of links, which is listed as a whole if it is another than before."""
        name, manifests, _ = f"{path}/".partition(f"{_MANIFESTS}/")
        if not manifests:
            return False
        top = name + _MANIFESTS
        if top == self._top:
            return True
        self._top, self._objects, self._folders = "/", {}, {}
        for of in chain.from_iterable(self._bucket.keys(f"{self._prefix}{top}/")):
            if len(self._objects) >= MOST_LINKS:
                raise OSError(EFBIG, f"more than {MOST_LINKS} links", top)
            found = of.key[len(self._prefix) :]
            self._objects[found] = of
            above = found.rpartition("/")[0]
            while len(above) > len(top):
                upper, _, name = above.rpartition("/")
                self._folders.setdefault(above, set())
                self._folders.setdefault(upper, set()).add(name)
                above = upper
        self._top = top
        return True
