"""The blobs of a tree of images, and the names beside them, for the oracle. No code is shared with chunkd."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import oracle
from image_oracle import World

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
Names = Iterable[tuple[str, str, str, str, str, int]]


@cache  # by the name of its file, which is its digest
def layer_chunks(path: Path) -> list[tuple[int, int, int | None]]:
    """Each chunk of a layer by its hash, with its length and what it takes recompressed if that is measured."""
    found = []
    data = path.read_bytes()
    plain = zstd.decompress(data) if data.startswith(ZSTD) else gzip.decompress(data)
    for chunk in oracle.chunks(plain):
        name = oracle.chunk_hash(chunk)
        taken = oracle.recompressed_bytes(chunk) if oracle.is_picked(name) else None
        found.append((int.from_bytes(name, "big"), len(chunk), taken))
    return found


def world_of(base: Path, names: Names | None = None, called: str = "") -> World:
    """The tree at `base`, an OCI layout or distribution's. `names` takes the place of those that lie there; `called` is
    the repository of a layout's tags.
    """
    world = World()
    for path in (base / "blobs" / "sha256").rglob("*"):
        if path.is_file():
            add_blob(world, path, (path.parent if path.name == "data" else path).name)
    found = registry_names(base) if (base / "repositories").exists() else layout_names(base, called)
    world.names += found if names is None else names
    return world


def add_blob(world: World, path: Path, hex_digits: str) -> None:
    digest, data = f"sha256:{hex_digits}", path.read_bytes()
    world.sizes[digest] = len(data)
    if data.startswith(b"{"):
        document = world.documents[digest] = json.loads(data)
        if document.get("created"):
            world.created[digest] = int(dt.datetime.fromisoformat(document["created"]).timestamp())
    elif data.startswith((GZIP, ZSTD)):
        chunks = layer_chunks(path)
        world.layers[digest] = [(name, length) for name, length, _ in chunks]
        world.measured |= {name: taken for name, _, taken in chunks if taken is not None}


def layout_names(base: Path, called: str) -> Iterator[tuple[str, str, str, str, str, int]]:
    rows: list[dict[str, Any]] = json.loads((base / "index.json").read_text())["manifests"]
    for row in rows:
        said = [row.get("annotations", {}).get(key, "") for key in NAMES]
        yield reference(next(filter(None, said), ""), called, row["digest"])


def reference(text: str, called: str, digest: str, at_ns: int = 0) -> tuple[str, str, str, str, str, int]:
    if not text:
        return "held", "", called, "", digest, at_ns
    if called and TAG.fullmatch(text):
        text = f"{called}:{text}"
    repository, colon, tag = text.rpartition(":")
    if not colon or not TAG.fullmatch(tag):
        repository, tag = text, ""
    return "named", text, repository, tag, digest, at_ns


def registry_names(base: Path) -> Iterator[tuple[str, str, str, str, str, int]]:
    for link in (base / "repositories").rglob("link"):
        path = link.relative_to(base / "repositories").as_posix()
        repository, _, kind = path.partition("/_manifests/")
        at_ns = link.stat().st_mtime_ns
        match kind.split("/"):
            case ["tags", tag, "current", _]:
                yield "named", f"{repository}:{tag}", repository, tag, link.read_text(), at_ns
            case ["tags", tag, "index", algorithm, digits, _]:
                digest = f"{algorithm}:{digits}"
                if digest != (link.parents[3] / "current" / "link").read_text():
                    yield "earlier", f"{repository}:{tag}", repository, tag, digest, at_ns
            case ["revisions", algorithm, digits, _]:
                yield "held", "", repository, "", f"{algorithm}:{digits}", at_ns
