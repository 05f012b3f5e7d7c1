"""Which bytes of layers are further copies, why, and in which files: in plain Python, over what tarfile unpacks.

It shares no code with chunkd.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import oracle


@dataclass
class Found:
    """Bytes by cause, and for each path (`None` outside of all) by cause; the paths of entries that have content."""

    uncompressed_bytes: int = 0
    unique_bytes: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    paths: dict[str | None, Counter[str]] = field(default_factory=dict)
    entries: Counter[str] = field(default_factory=Counter)
    layers: dict[str, set[str]] = field(default_factory=dict)


def entries(data: bytes) -> list[tuple[int, int, str, bytes]]:
    """Begin, end, path and content of each member; no content for what is not a file of at least one byte."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        members = archive.getmembers()
    found = []
    for at, member in enumerate(members):
        end = member.offset_data + -(-member.size // 512) * 512 * member.isreg()
        if at + 1 < len(members):
            end = members[at + 1].offset
        content = data[member.offset_data : member.offset_data + member.size] if member.isreg() else b""
        found.append((member.offset, end, "/" + member.name.removeprefix("./").strip("/"), content))
    return found


def where(
    layers: Mapping[str, bytes],
    chunks: Callable[[bytes], Sequence[bytes]] = oracle.chunks,
    unpack: Callable[[bytes], list[tuple[int, int, str, bytes]]] = entries,
) -> Found:
    found = Found()
    seen_chunks: set[bytes] = set()
    seen_recipes: set[tuple[bytes, ...]] = set()
    seen_files: dict[bytes, set[str]] = {}
    for digest in sorted(layers):
        data = layers[digest]
        cut = [bytes(chunk) for chunk in chunks(data)]
        recipe = tuple(map(oracle.chunk_hash, cut))
        is_twin = recipe in seen_recipes
        seen_recipes.add(recipe)
        cause_of = []
        for begin, end, path, content in unpack(data):
            cause = "parts"
            if content and content in seen_files:
                cause = "same_path" if path in seen_files[content] else "other_path"
            if content:
                seen_files.setdefault(content, set()).add(path)
            cause_of.append((begin, end, path, "same_layer" if is_twin else cause))
        at = 0
        for name, chunk in zip(recipe, cut, strict=True):
            end_of_chunk = at + len(chunk)
            if name in seen_chunks:
                left = len(chunk)
                for begin, end, path, cause in cause_of:
                    size = min(end, end_of_chunk) - max(begin, at)
                    if size > 0:
                        left -= size
                        count(found, path, cause if any(chunk) else "zeros", size)
                        found.layers.setdefault(path, set()).add(digest)
                count(found, None, ("same_layer" if is_twin else "parts") if any(chunk) else "zeros", left)
            else:
                found.unique_bytes += len(chunk)
            seen_chunks.add(name)
            at = end_of_chunk
        found.uncompressed_bytes += at
    return found


def count(found: Found, path: str | None, cause: str, size: int) -> None:
    if size:
        found.causes[cause] += size
        found.paths.setdefault(path, Counter())[cause] += size
