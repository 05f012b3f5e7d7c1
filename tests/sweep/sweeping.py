"""What the tests of `chunkd sweep` share: the reply of a command, and what plain Python says of the same layers."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from daemon import Home

Reply = dict[str, Any]


def swept(home: Home, *words: object, code: int = 0) -> Reply:
    done = home.command("sweep", "--json", "--quiet", *words)
    assert done.returncode == code, done.stderr
    found: Reply = json.loads(done.stdout)
    return found


def row(reply: Reply, name: str) -> Reply:
    [found] = [one for one in reply["rules"] if one["name"] == name]
    return found  # type: ignore[no-any-return]


def kept(home: Home) -> dict[str, tuple[int, int]]:
    """The finished results on disk, each with its inode and time."""
    folder = home.state / "sweep"
    paths = [path for path in folder.glob("sha*-*") if path.suffix != ".part"] if folder.exists() else []
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def files_of(layer: bytes) -> tuple[list[bytes], bytes]:
    """The files of a tar, and all its other bytes, by Python's own reader."""
    files, rest, at = [], b"", 0
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for member in archive:
            if member.isreg():
                begin = member.offset_data
                files.append(layer[begin : begin + member.size])
                rest += layer[at:begin]
                at = begin + member.size
    return [file for file in files if file], rest + layer[at:]


def whole_files(layers: Iterable[bytes]) -> tuple[int, int, int]:
    """How many chunks whole files are, and how many and how large the unique ones are, told by SHA-256."""
    count = 0
    unique: dict[bytes, int] = {}
    for layer in layers:
        files, rest = files_of(layer)
        for content in (*files, rest):
            count += 1
            unique[hashlib.sha256(content).digest()] = len(content)
    return count, len(unique), sum(unique.values())


def cache_of(home: Home, layers: Iterable[Path]) -> Path:
    cache = home.cache()
    for path in layers:
        (cache / path.name).write_bytes(path.read_bytes())
    return cache
