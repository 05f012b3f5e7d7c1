"""Writes small bbolt databases, of pages of every kind: large buckets and small ones, branches, overflow."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from chunkd.names.bolt import fnv1a

PAGE_BYTES = 1024
BRANCH, LEAF, META, FREELIST = 1, 2, 4, 16
Contents = Mapping[bytes, Any]  # bytes, or again such a mapping


def page(number: int, flags: int, count: int, body: bytes, page_bytes: int = PAGE_BYTES) -> bytes:
    """A page with as many pages behind it as its body takes."""
    size = -(-(16 + len(body)) // page_bytes) * page_bytes
    return (struct.pack("<QHHI", number, flags, count, size // page_bytes - 1) + body).ljust(size, b"\0")


def leaf_body(items: Sequence[tuple[int, bytes, bytes]]) -> bytes:
    elements, data = b"", b""
    for at, (flags, key, value) in enumerate(items):
        position = (len(items) - at) * 16 + len(data)
        elements += struct.pack("<4I", flags, position, len(key), len(value))
        data += key + value
    return elements + data


def branch_body(items: Sequence[tuple[bytes, int]]) -> bytes:
    elements, data = b"", b""
    for at, (key, number) in enumerate(items):
        elements += struct.pack("<2IQ", (len(items) - at) * 16 + len(data), len(key), number)
        data += key
    return elements + data


def meta(
    number: int, transaction: int, root: int, pages: int, page_bytes: int = PAGE_BYTES, *, version: int = 2
) -> bytes:
    body = struct.pack("<4I6Q", 0xED0CDAED, version, page_bytes, 0, root, 0, 2, pages, transaction, 0)[:-8]
    return page(number, META, 0, body + struct.pack("<Q", fnv1a(body)), page_bytes)


class Writer:
    """Pages from number 3 on, as they are needed; 0 and 1 are the metas, 2 is an empty list of free pages."""

    def __init__(self, page_bytes: int = PAGE_BYTES, children: int = 3) -> None:
        self._page_bytes, self._children = page_bytes, children
        self.pages: list[bytes] = []
        self.next = 3

    def add(self, flags: int, count: int, body: bytes) -> int:
        number = self.next
        self.pages.append(page(number, flags, count, body, self._page_bytes))
        self.next += len(self.pages[-1]) // self._page_bytes
        return number

    def bucket(self, contents: Contents, *, inline: bool = True) -> tuple[int, bytes]:
        """The number of its root and nothing, or 0 and the page that stands in the value."""
        items, has_buckets = [], False
        for key, value in sorted(contents.items()):
            if isinstance(value, bytes):
                items.append((0, key, value))
            else:
                has_buckets = True
                root, inside = self.bucket(value)
                items.append((1, key, struct.pack("<2Q", root, 0) + inside))
        body = leaf_body(items)
        if inline and not has_buckets and len(body) < self._page_bytes // 4:
            return 0, struct.pack("<QHHI", 0, LEAF, len(items), 0) + body
        level: list[tuple[bytes, int]] = []
        while items or not level:
            taken = 1
            while taken < len(items) and 16 + len(leaf_body(items[: taken + 1])) <= self._page_bytes:
                taken += 1
            key = items[0][1] if items else b""
            level.append((key, self.add(LEAF, len(items[:taken]), leaf_body(items[:taken]))))
            items = items[taken:]
        while len(level) > 1:
            groups = [level[at : at + self._children] for at in range(0, len(level), self._children)]
            level = [(group[0][0], self.add(BRANCH, len(group), branch_body(group))) for group in groups]
        return level[0][1], b""


def database(contents: Contents, page_bytes: int = PAGE_BYTES, children: int = 3, transaction: int = 7) -> bytes:
    """A whole file; its newest meta page is the one that `transaction` is written to."""
    writer = Writer(page_bytes, children)
    root, _ = writer.bucket(contents, inline=False)
    metas = sorted(
        (number % 2, meta(number % 2, number, root, writer.next, page_bytes))
        for number in (transaction - 1, transaction)
    )
    head = metas[0][1] + metas[1][1] + page(2, FREELIST, 0, b"", page_bytes)
    return head + b"".join(writer.pages)


def image(digest: str, updated_s: int = 0) -> Contents:
    """As containerd keeps an image."""
    found: dict[bytes, Any] = {
        b"createdat": go_time(1),
        b"target": {b"digest": digest.encode(), b"mediatype": b"m", b"size": b"\x10"},
    }
    return found | {b"updatedat": go_time(updated_s)} if updated_s else found


def go_time(seconds: int, nanoseconds: int = 0) -> bytes:
    return struct.pack(">Bqih", 1, seconds + 62_135_596_800, nanoseconds, -1)
