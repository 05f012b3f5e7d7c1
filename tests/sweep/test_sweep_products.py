"""A row with a product's name has the figures that the product itself comes to, over the same tars."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from blobs import gz, noise, tar, text, write_blob
from daemon import Home
from sweeping import row, swept

# Of a .caibx: the header of the index and that of its table, an item (where its chunk ends, and its hash), the tail.
HEADS_BYTES, ITEM, TAIL_BYTES = 48 + 16, struct.Struct("<Q32s"), 40


def made_by_casync(file: Path) -> list[tuple[bytes, int]]:
    """The hash and length of each chunk, in order."""
    index = file.with_suffix(".caibx")
    done = subprocess.run(
        ["casync", "make", f"--store={file.parent / 'store'}", index, file], env=os.environ | {"LC_ALL": "C"},
        capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = list(ITEM.iter_unpack(index.read_bytes()[HEADS_BYTES:-TAIL_BYTES]))
    begins = [0, *(end for end, _ in ends)]
    return [(name, end - begin) for begin, (end, name) in zip(begins, ends, strict=False)]


@pytest.mark.skipif(shutil.which("casync") is None, reason="casync is not installed (Debian: apt install casync)")
def test_casyncs_row_is_what_casync_makes(home: Home) -> None:
    shared = {f"usr/lib/{at}": noise(90_000 + at, at) + text(150_000, at) for at in range(8)}
    layers = [tar({"etc/name": noise(3000 * number, 77 + number)} | shared) for number in range(3)]
    cache = home.cache()
    chunks = []
    for number, data in enumerate(layers):
        write_blob(cache, gz(data))
        plain = home.root / f"{number}.tar"
        plain.write_bytes(data)
        chunks += made_by_casync(plain)
    found = row(swept(home, cache, "--rules", "casync"), "casync")
    unique = dict(chunks)
    assert found["chunk_bytes"] == sum(map(len, layers)) == sum(length for _, length in chunks)
    assert (found["chunks"], found["unique_chunks"]) == (len(chunks), len(unique))
    assert found["unique_bytes"] == sum(unique.values())
    assert 0.3 < found["unique_bytes"] / found["chunk_bytes"] < 0.9
