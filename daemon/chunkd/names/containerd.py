"""The names in containerd's metadata, `meta.db`: `v1/<namespace>/images/<name>` with `target/digest`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from chunkd.model import digest_of
from chunkd.names import bolt
from chunkd.names.name import MOST_NAMES, Part, Rows, named
from chunkd.sources.beneath import Beneath

# Below containerd's root, beside the folder of its blobs.
DATABASE = "io.containerd.metadata.v1.bolt/meta.db"
# Go's time: a version, seconds since the year 1, nanoseconds, then the time zone.
_EPOCH_S = 62_135_596_800


def read_containerd(root: Beneath) -> list[Part]:
    """The names of all images, a part for each namespace. A database that can't be read is one part with its problem,
    and without names.
    """
    try:
        descriptor = root.open_file(DATABASE)
    except OSError as error:
        return [Part("containerd", "", None, f"{DATABASE}: {error.strerror}")]
    try:
        return bolt.read(lambda at, size: os.pread(descriptor, size, at), lambda state: list(parts_of(state)))
    except (OSError, bolt.BadBolt) as error:
        return [Part("containerd", "", None, f"{DATABASE}: {getattr(error, 'strerror', error)}")]
    finally:
        os.close(descriptor)


def parts_of(state: bolt.Snapshot) -> Iterator[Part]:
    """As `read_containerd`, from one state of the database. Raises BadBolt."""
    version = state.bucket(b"v1")
    left = MOST_NAMES
    for namespace, bucket in state.buckets(version) if version else ():
        rows = Rows(left)
        if images := state.below(bucket, b"images"):
            for name, image in state.buckets(images):
                _add_image(state, name, image, rows)
        left -= len(rows)
        yield rows.part("containerd", _text(namespace))


def _add_image(state: bolt.Snapshot, name: bytes, image: bolt.Bucket, rows: Rows) -> None:
    values, buckets = state.contents(image)
    target = state.contents(buckets[b"target"])[0] if b"target" in buckets else {}
    digest = digest_of(_text(target.get(b"digest", b"")))
    if digest is None or not name:
        rows.leave_out("an image without a digest")
    else:
        rows.add(named(_text(name), "", digest, _time_ns(values.get(b"updatedat", b""))))


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _time_ns(value: bytes) -> int:
    """In ns since the epoch; 0 for what is not a time, and for times before the epoch."""
    if len(value) not in (15, 16) or value[0] not in (1, 2):
        return 0
    seconds = int.from_bytes(value[1:9], "big", signed=True) - _EPOCH_S
    return max(0, seconds * 1_000_000_000 + int.from_bytes(value[9:13], "big")) if seconds >> 34 == 0 else 0
