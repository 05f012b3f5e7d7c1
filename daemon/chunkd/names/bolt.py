"""Reads a bbolt database that another process writes, without its lock: bbolt's own reader waits until the writer ends.

A transaction of bbolt writes only pages that the newest state does not use, and then one of two meta pages. So what
was read is one state if its meta page is still the newest afterwards: the pages that it uses can be written again only
after a newer meta page.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

Found = TypeVar("Found")
# As os.pread: the bytes at an offset, fewer at the end of the file.
Pread = Callable[[int, int], bytes]

MOST_TRIES = 20
MOST_DEPTH = 32
# What one try may read, with all its pages.
MOST_BYTES = 128 << 20

# bbolt's internal/common/page.go, meta.go and bucket.go: a page's id, flags, count and overflow; a meta's magic,
# version, page size, flags, root page, sequence, free list, high-water mark, transaction and checksum.
PAGE = struct.Struct("<QHHI")
META = struct.Struct("<4I6Q")
BRANCH_ELEMENT = struct.Struct("<2IQ")
LEAF_ELEMENT = struct.Struct("<4I")
BUCKET = struct.Struct("<2Q")
MAGIC, VERSION = 0xED0CDAED, 2
BRANCH, LEAF, META_PAGE = 1, 2, 4
IS_BUCKET = 1
PAGE_SIZES = tuple(1 << bits for bits in range(10, 17))


class BadBolt(Exception):
    """The file is not a bbolt database, is damaged, is larger than the bounds, or never stands still."""


class _Meta(NamedTuple):
    transaction: int
    page_bytes: int
    root: int
    pages: int


class Bucket(NamedTuple):
    """Keys and values in a tree of pages from `root` on, or in one page that stands in the `inline` value."""

    root: int
    inline: bytes = b""


def fnv1a(data: bytes) -> int:
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found


def read(pread: Pread, visit: Callable[[Snapshot], Found], most_bytes: int = MOST_BYTES) -> Found:
    """What `visit` returns for one state of the database. It may be called several times, with other states, and must
    keep nothing from a call that raised. Raises BadBolt, and the OSErrors of `pread`.
    """
    problem: BadBolt | None = None
    for _ in range(MOST_TRIES):
        meta = _newest(pread)
        try:
            found = visit(Snapshot(pread, meta, most_bytes))
        except BadBolt as error:
            problem = error
        else:
            problem = None
        if _newest(pread).transaction == meta.transaction:
            if problem is not None:
                raise problem
            return found
    raise BadBolt(f"changed {MOST_TRIES} times while it was read")


def _newest(pread: Pread) -> _Meta:
    """The valid meta page with the highest transaction. The second page lies where the first one's size says, or, if
    that one is damaged, at one of the usual places.
    """
    first = _meta(pread, 0)
    found = [first] if first else []
    found += filter(None, (_meta(pread, size) for size in ((first.page_bytes,) if first else PAGE_SIZES)))
    if not found:
        raise BadBolt("not a bbolt database, or both of its meta pages are damaged")
    return max(found)


def _meta(pread: Pread, at: int) -> _Meta | None:
    """The meta page at an offset; None when there is not a valid one, or it is just being written."""
    page = pread(at, PAGE.size + META.size)
    if len(page) < PAGE.size + META.size:
        return None
    number, flags, _, _ = PAGE.unpack_from(page)
    magic, version, page_bytes, _, root, _, _, pages, transaction, checksum = META.unpack_from(page, PAGE.size)
    expected = (number, flags & META_PAGE, magic, version) == (at > 0, META_PAGE, MAGIC, VERSION)
    if not expected or page_bytes not in PAGE_SIZES or at not in (0, page_bytes):
        return None
    whole = checksum == fnv1a(page[PAGE.size : PAGE.size + META.size - 8])
    return _Meta(transaction, page_bytes, root, pages) if whole else None


class Snapshot:
    """One state of the database. Every method raises BadBolt for what no database holds, and reads at most
    `most_bytes` together with the others.
    """

    def __init__(self, pread: Pread, meta: _Meta, most_bytes: int) -> None:
        self._pread, self._meta = pread, meta
        self._left_bytes = most_bytes

    def bucket(self, *path: bytes) -> Bucket | None:
        """The bucket at this path; None when there is none."""
        found: Bucket | None = Bucket(self._meta.root)
        for name in path:
            found = self.below(found, name) if found else None
        return found

    def below(self, bucket: Bucket, name: bytes) -> Bucket | None:
        return next((found for key, found in self.buckets(bucket) if key == name), None)

    def buckets(self, bucket: Bucket) -> Iterator[tuple[bytes, Bucket]]:
        """The buckets right in a bucket."""
        return ((key, _bucket(value)) for key, value, is_bucket in self._entries(bucket) if is_bucket)

    def contents(self, bucket: Bucket) -> tuple[dict[bytes, bytes], dict[bytes, Bucket]]:
        """The values and the buckets right in a bucket. For small ones: all of them are in memory at once."""
        values, buckets = {}, {}
        for key, value, is_bucket in self._entries(bucket):
            if is_bucket:
                buckets[key] = _bucket(value)
            else:
                values[key] = value
        return values, buckets

    def _entries(self, bucket: Bucket) -> Iterator[tuple[bytes, bytes, bool]]:
        if not bucket.root:
            yield from _leaf(bucket.inline)
            return
        pending, seen = [(bucket.root, 0)], {bucket.root}
        while pending:
            number, depth = pending.pop()
            page = self._page(number)
            flags = PAGE.unpack_from(page)[1]
            if flags & LEAF:
                yield from _leaf(page)
                continue
            below = _branch(page) if flags & BRANCH else []
            if not below or depth == MOST_DEPTH or not seen.isdisjoint(below) or len(set(below)) < len(below):
                raise BadBolt(f"page {number} is not one of a tree")
            seen.update(below)
            pending += ((child, depth + 1) for child in reversed(below))

    def _page(self, number: int) -> bytes:
        """A page with what overflows of it into the next ones."""
        size = self._meta.page_bytes
        if not 2 <= number < self._meta.pages:
            raise BadBolt(f"page {number} is not one of the file's {self._meta.pages}")
        page = self._read(number * size, size)
        found, _, _, overflow = PAGE.unpack_from(page)
        if found != number or overflow >= self._meta.pages - number:
            raise BadBolt(f"page {number} is another one, or overflows the file")
        return page + self._read((number + 1) * size, overflow * size) if overflow else page

    def _read(self, at: int, size: int) -> bytes:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise BadBolt("more bytes than one reading may read")
        # Offsets and sizes are bounded by 63 bits before they come to the system.
        found = self._pread(at, size) if at + size < 1 << 62 else b""
        if len(found) < size:
            raise BadBolt("cut short")
        return found


def _bucket(value: bytes) -> Bucket:
    if len(value) < BUCKET.size:
        raise BadBolt("a bucket that is cut short")
    root, _ = BUCKET.unpack_from(value)
    return Bucket(root, b"" if root else value[BUCKET.size :])


def _elements(page: bytes, form: struct.Struct) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where each element of a page stands, and what it says."""
    if len(page) < PAGE.size:
        raise BadBolt("a page that is cut short")
    count = PAGE.unpack_from(page)[2]
    if PAGE.size + count * form.size > len(page):
        raise BadBolt("more elements than fit into a page")
    for at in range(PAGE.size, PAGE.size + count * form.size, form.size):
        yield at, form.unpack_from(page, at)


def _branch(page: bytes) -> list[int]:
    return [number for _, (_, _, number) in _elements(page, BRANCH_ELEMENT)]


def _leaf(page: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """No more bytes in all than the page has: in a database no two elements overlap."""
    left_bytes = len(page)
    for element, (flags, position, key_bytes, value_bytes) in _elements(page, LEAF_ELEMENT):
        at = element + position
        left_bytes -= key_bytes + value_bytes
        if at + key_bytes + value_bytes > len(page) or left_bytes < 0:
            raise BadBolt("an element outside its page, or elements that overlap")
        key_end = at + key_bytes
        yield page[at:key_end], page[key_end : key_end + value_bytes], bool(flags & IS_BUCKET)
