"""Three versions of an image, made from the real files of a folder, landing in an OCI layout one blob after another.

    python bench/demo_images.py LAYOUT [SOURCE]

The first version holds the files of SOURCE (Python's own library by default) as they are, in six layers; the second and
the third share its first two, change some files of the others and add some. The same files give the same blobs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

VERSIONS = ("v1", "v2", "v3")
# When they say that they were made, since a layout does not tell in which order its images came.
CREATED = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z")
LAYERS = 6
# A base image, from which all versions are built.
SHARED_LAYERS = 2
# One file in so many is changed from one version to the next, and one in so many is added a second time.
CHANGED_ONE_IN = 12
ADDED_ONE_IN = 40
# Of larger folders, the files that come first by name.
MOST_SOURCE_BYTES = 60_000_000
# Static libraries: a single one would be most of its layer.
MOST_FILE_BYTES = 8_000_000
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages"}

OCI = "application/vnd.oci.image."
Descriptor = dict[str, Any]
# With its diff_id, the digest of what it decompresses to.
Layer = tuple[Descriptor, str]


class Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class HashingWriter:
    """Passes bytes on to `file`, and knows their SHA-256 and how many they were."""

    def __init__(self, file: Sink) -> None:
        self._file, self._sha256, self.written_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.written_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> str:
        return "sha256:" + self._sha256.hexdigest()


def land_images(layout: Path, source: Path) -> Iterator[str]:
    """Write the images, blob by blob, and yield each digest once its blob has landed. `layout` is empty or missing."""
    begin_layout(layout)
    groups = _groups(source, files_below(source, MOST_SOURCE_BYTES, MOST_FILE_BYTES))
    manifests: list[Descriptor] = []
    shared: list[Layer] = []
    for version in range(len(VERSIONS)):
        layers = list(shared)
        for group in groups[len(shared) :]:
            layers.append(land_layer(layout, contents(source, group, version)))
            yield layers[-1][0]["digest"]
        shared = layers[:SHARED_LAYERS]
        yield from land_image(layout, VERSIONS[version], layers, manifests, CREATED[version])


def begin_layout(layout: Path) -> None:
    """An OCI layout without images. Raises FileExistsError where there is one."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    _replace(layout / "oci-layout", {"imageLayoutVersion": "1.0.0"})


def land_image(
    layout: Path, name: str, layers: list[Layer], manifests: list[Descriptor], created: str = ""
) -> Iterator[str]:
    """Write what names these layers as an image, yielding digests as they land; `manifests` grows by its own."""
    config = _land_json(layout, "config.v1+json", _config(layers) | ({"created": created} if created else {}))
    yield config["digest"]
    manifest = _land_json(layout, "manifest.v1+json", _manifest(config, [layer for layer, _ in layers]))
    manifests.append(manifest | {"annotations": {"org.opencontainers.image.ref.name": name}})
    yield manifest["digest"]
    index = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": manifests}
    _replace(layout / "index.json", index)


# --- what is in the images ----------------------------------------------------------------------------------------


def files_below(source: Path, most_bytes: int, most_file_bytes: int) -> list[str]:
    """The readable regular files below `source`, by name, none larger than the one and all together than the other."""
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names]
    files, total_bytes = [], 0
    for path in sorted(found):
        size = path.lstat().st_size
        if path.is_symlink() or not path.is_file() or size > most_file_bytes or not os.access(path, os.R_OK):
            continue
        total_bytes += size
        if total_bytes > most_bytes:
            break
        files.append(path.relative_to(source).as_posix())
    return files


def _groups(source: Path, files: list[str]) -> list[list[str]]:
    """The files of each layer: neighbours by name, and about as many bytes in each."""
    groups: list[list[str]] = [[] for _ in range(LAYERS)]
    sizes = [(source / name).stat().st_size for name in files]
    before = 0
    for name, size in zip(files, sizes, strict=True):
        groups[before * LAYERS // max(sum(sizes), 1)].append(name)
        before += size
    return groups


def contents(source: Path, group: list[str], version: int) -> Iterator[tuple[str, bytes]]:
    """A layer's files as they are in this version, each with its path in the image."""
    for number, name in enumerate(group):
        data = (source / name).read_bytes()
        changes = [later for later in range(1, version + 1) if number % CHANGED_ONE_IN == later]
        yield (
            "usr/lib/demo/" + name,
            data + b"".join(b"# changed in %s\n" % VERSIONS[later].encode() for later in changes),
        )
        for later in range(1, version + 1):
            if number % ADDED_ONE_IN == later:
                yield f"usr/lib/demo-{VERSIONS[later]}/{name}", data


def _config(layers: list[Layer]) -> dict[str, Any]:
    diff_ids = [diff_id for _, diff_id in layers]
    return {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}


def _manifest(config: Descriptor, layers: list[Descriptor]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": config, "layers": layers}


# --- how they land ------------------------------------------------------------------------------------------------


def land_layer(layout: Path, members: Iterable[tuple[str, bytes]], codec: str = "gzip") -> Layer:
    """Write a layer of these files, compressed as Docker and BuildKit do: gzip at level 6, zstd at level 3."""
    diff_ids = []

    def write(file: Sink) -> None:
        with _compressed(file, codec) as compressed:
            plain = HashingWriter(compressed)
            with tarfile.open(fileobj=plain, mode="w|") as tar:  # type: ignore[call-overload]
                for name, data in members:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            diff_ids.append(plain.digest)

    return land(layout, "layer.v1.tar+" + codec, write), diff_ids[0]


def _compressed(file: Sink, codec: str) -> BinaryIO:
    if codec == "zstd":
        return cast("BinaryIO", zstd.ZstdFile(cast("BinaryIO", file), "wb", level=3))
    # No time and no name in the header: the same files give the same bytes.
    return cast("BinaryIO", gzip.GzipFile("", "wb", 6, file, mtime=0))


def _land_json(layout: Path, kind: str, content: dict[str, Any]) -> Descriptor:
    return land(layout, kind, lambda file: _write(file, content))


def _write(file: Sink, content: dict[str, Any]) -> None:
    file.write(json.dumps(content, separators=(",", ":"), sort_keys=True).encode())


def land(layout: Path, kind: str, write: Callable[[Sink], None]) -> Descriptor:
    """A blob comes as skopeo brings it: written in the layout's root, synced, and renamed when it is complete."""
    in_flight = layout / f"oci-put-blob{os.getpid()}"
    with in_flight.open("wb") as file:
        hashing = HashingWriter(file)
        write(hashing)
        file.flush()
        os.fsync(file.fileno())
    in_flight.rename(layout / "blobs" / hashing.digest.replace(":", "/"))
    return {"mediaType": OCI + kind, "digest": hashing.digest, "size": hashing.written_bytes}


def _replace(path: Path, content: dict[str, Any]) -> None:
    in_flight = path.with_name(path.name + ".tmp")
    with in_flight.open("wb") as file:
        _write(file, content)
    in_flight.rename(path)


def main() -> None:
    layout, *source = map(Path, sys.argv[1:])
    for digest in land_images(layout, *source or [Path(sysconfig.get_path("stdlib"))]):
        print(digest)


if __name__ == "__main__":
    main()
