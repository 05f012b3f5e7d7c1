"""What a worker tells of the tar in a layer: its entries, and what its lists say of packages, packed as columns.

The bytes come from a process that reads hostile input, so `unpack` takes nothing on trust. Paths stay hostile text.
"""

from __future__ import annotations

import operator
import sys
from array import array
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from struct import Struct

from chunkd.sweep.tar_stream import MOST_PATH_BYTES
from chunkd.where.packages import MOST_NAME_BYTES, MOST_PACKAGES, Package

FILE_HASH_BYTES = 16
NO_CONTENT = bytes(FILE_HASH_BYTES)
# Of one layer. Its entries beyond either count as outside of any, and the layer as damaged.
MOST_ENTRIES = 1 << 20
MOST_PATHS_BYTES = 64 << 20
# With the columns of as many entries, and as many bytes of listed paths again.
MOST_TRACE_BYTES = 2 * MOST_PATHS_BYTES + 64 * MOST_ENTRIES
MOST_REASON_BYTES = 200

_COLUMNS = 9
_LENGTHS = Struct(f"<Q{_COLUMNS}Q")


@dataclass(slots=True)
class Trace:
    """The entries of a layer's tar, column by column, in the order of the tar.

    An entry has the bytes from its begin to the next one's, the last one those up to `end`; what follows is outside.
    `hashes` has FILE_HASH_BYTES for each, NO_CONTENT for what is not a file with content. `owners` has the number of
    its package in `packages` plus 1, or 0. `listed` are further paths that the layer's lists give to packages, with
    their numbers in `listed_owners`. `damaged` says why the tar could not be read on.
    """

    end: int = 0
    begins: array[int] = field(default_factory=lambda: array("Q"))
    hashes: bytearray = field(default_factory=bytearray)
    paths: list[bytes] = field(default_factory=list)
    owners: array[int] = field(default_factory=lambda: array("H"))
    packages: list[Package] = field(default_factory=list)
    listed: list[bytes] = field(default_factory=list)
    listed_owners: array[int] = field(default_factory=lambda: array("H"))
    damaged: str = ""


def pack(trace: Trace) -> bytes:
    """The columns one after the other, behind their lengths."""
    names = "\n".join(" ".join(map(_word, package)) for package in trace.packages)
    columns = [
        _bytes_of(trace.begins), bytes(trace.hashes), _lengths(trace.paths),
        b"".join(trace.paths), _bytes_of(trace.owners), names.encode(), _lengths(trace.listed), b"".join(trace.listed),
        _bytes_of(trace.listed_owners),
    ]  # fmt: skip
    damaged = trace.damaged.encode()
    head = _LENGTHS.pack(trace.end, *map(len, columns))
    return b"".join([len(damaged).to_bytes(2, "little"), damaged, head, *columns])


def unpack(data: bytes, uncompressed_bytes: int) -> Trace:
    """Raises ValueError for what `pack` does not make of a layer of so many bytes."""
    reason_bytes = int.from_bytes(data[:2], "little")
    damaged = data[2 : 2 + reason_bytes].decode()
    at = 2 + reason_bytes + _LENGTHS.size
    if len(data) < at or reason_bytes > MOST_REASON_BYTES or not damaged.isprintable():
        raise ValueError("a trace without its head")
    end, *lengths = _LENGTHS.unpack_from(data, 2 + reason_bytes)
    if at + sum(lengths) != len(data):
        raise ValueError("a trace of another length than it says")
    columns = []
    for length in lengths:
        columns.append(data[at : at + length])
        at += length
    begins, hashes, path_lengths, paths, owners, names, listed_lengths, listed, listed_owners = columns
    trace = Trace(
        end, _array("Q", begins), bytearray(hashes), _split(path_lengths, paths),
        _array("H", owners), _packages(names), _split(listed_lengths, listed), _array("H", listed_owners), damaged,
    )  # fmt: skip
    _check(trace, uncompressed_bytes)
    return trace


def _check(trace: Trace, uncompressed_bytes: int) -> None:
    entries, begins = len(trace.begins), trace.begins
    columns = (len(trace.paths), len(trace.owners), len(trace.hashes) // FILE_HASH_BYTES)
    if set(columns) != {entries} or len(trace.hashes) % FILE_HASH_BYTES or entries > MOST_ENTRIES:
        raise ValueError("a trace with columns of other lengths")
    if not trace.end <= uncompressed_bytes or not all(map(operator.lt, begins, begins[1:])):
        raise ValueError("entries that are not in order")
    if (begins[0] if entries else trace.end) or (entries and begins[-1] >= trace.end):
        raise ValueError("entries that do not begin with the tar, or go beyond its end")
    if len(trace.listed) != len(trace.listed_owners) or len(trace.packages) > MOST_PACKAGES:
        raise ValueError("lists of packages of other lengths")
    most = len(trace.packages)
    if any(owner > most for owner in trace.owners) or any(owner >= most for owner in trace.listed_owners):
        raise ValueError("a package that is not there")


def _bytes_of(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def _array(typecode: str, data: bytes) -> array[int]:
    found = array(typecode)
    found.frombytes(data)  # raises ValueError for half an item
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _lengths(texts: list[bytes]) -> bytes:
    return _bytes_of(array("H", map(len, texts)))


def _split(packed_lengths: bytes, data: bytes) -> list[bytes]:
    lengths = _array("H", packed_lengths)
    if sum(lengths) != len(data) or max(lengths, default=0) > MOST_PATH_BYTES:
        raise ValueError("paths of other lengths")
    return [data[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]


def _word(text: str) -> str:
    """Without what would part the words, or a terminal would obey."""
    return "".join(one if one.isprintable() and one != " " else "?" for one in text) or "-"


def _packages(names: bytes) -> list[Package]:
    found = []
    for line in names.decode().split("\n") if names else ():
        manager, name, version = line.split(" ")
        if manager not in ("dpkg", "apk") or not line.isprintable():
            raise ValueError("a package of another manager")
        if max(len(name), len(version)) > MOST_NAME_BYTES:
            raise ValueError("a package with a long name")
        found.append(Package(manager, name, "" if version == "-" else version))
    return found
