"""What one source holds now: its blobs with their places, and the names beside them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from chunkd.model import Digest
from chunkd.names import record
from chunkd.names.beside import base_of, reading_beside
from chunkd.objects.choose import bucket_of
from chunkd.sources import layouts
from chunkd.sources.folder import FolderSource
from chunkd.sources.listing import walk
from chunkd.urls import OBJECT_STORES

if TYPE_CHECKING:
    from chunkd.objects.bucket import BucketSource
    from chunkd.sources.source import View

# Below it there is an id for each source that has no state directory to keep one in.
_SOURCES = uuid.UUID("b0f7f1b2-6a53-5c0e-9a41-6d0c3d1e7a55")


class Where(NamedTuple):
    """A path that holds a blob. Of an object also its tag and the time of its last change."""

    path: str
    stored_bytes: int
    tag: str = ""
    changed_ns: int = 0


@dataclass(slots=True)
class Held:
    """What a source holds, as of a moment. `unrecognised` counts what lies among blobs and is not one. `names` are
    records of `names.record`, which may lack those of `unread_names` places.
    """

    as_of_ns: int
    blobs: dict[Digest, list[Where]] = field(default_factory=dict)
    unrecognised: int = 0
    unlisted_folders: int = 0
    names: list[bytes] = field(default_factory=list)
    unread_names: int = 0


def source_id(path: str, name: str) -> str:
    """The same for a bucket from wherever it is listed, and for a folder of one `name`: a host's, or one that is given
    where many hosts mount it.
    """
    if bucket := bucket_of(path):
        return str(uuid.uuid5(_SOURCES, f"{bucket.bucket.device:x} {path.rstrip('/')}"))
    # Names and paths may have bytes that are no UTF-8.
    of = os.fsencode(f"{name} {path}").decode(errors="backslashreplace")
    return str(uuid.uuid5(_SOURCES, of))


def listed(path: str) -> Held:
    """What the source at a path or URL holds. Raises OSError where it is not there."""
    bucket = bucket_of(path)
    source = bucket or FolderSource(path)
    found, bases = Held(time.time_ns()), set[str]()
    source.look_at_root()
    for listing in walk(source, "", lambda _: None):
        found.unlisted_folders += bool(listing.problem)
        found.unrecognised += len(listing.ignored)
        with source.view() as view:
            for name in listing.blobs:
                where = _where(bucket, view, listing.blob_path(name))
                identified = layouts.identify(path, where.path) if where else None
                if where is None or identified is None:
                    continue
                found.blobs.setdefault(identified[0], []).append(where)
                bases.add(base_of(path, where.path) or "")
    _add_names(found, path, bases - {""}, bucket)
    return found


def _where(bucket: BucketSource | None, view: View, path: str) -> Where | None:
    """None for what has gone since it was listed."""
    try:
        if bucket is None:
            return Where(path, view.look(path).mark.stored_bytes)
        key = bucket.prefix + path
        if key not in bucket.listed:
            view.look(path)
        return Where(path, *bucket.listed[key][0][1:])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Where(path, 0)  # whoever reads it says what is wrong


def _add_names(found: Held, path: str, bases: set[str], bucket: BucketSource | None) -> None:
    read = reading_beside(path, bucket.beside if bucket else None)
    for base in sorted(bases):
        try:
            for part in read(base):
                if part is not None and part.record:
                    found.names.append(record.without_paths(part.record))
                elif part is not None:
                    found.unread_names += 1
        except OSError:
            found.unread_names += 1


def sizes(blobs: Mapping[Digest, list[Where]]) -> Iterator[tuple[Digest, int]]:
    """Each blob with the stored bytes of its largest place."""
    for digest, places in blobs.items():
        yield digest, max(where.stored_bytes for where in places)


def shown_as(path: str, name: str) -> str:
    """What a source is called in the figures: a bucket by its URL, a folder by the host's name, without its path."""
    return path if path.startswith(OBJECT_STORES) else name
