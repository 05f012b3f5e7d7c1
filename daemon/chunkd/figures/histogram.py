"""How the unique chunks spread over copies and over sizes: rows of four sums, which the totals have too.

A row of copies holds 1, 2, 3 to 4, 5 to 8 copies and so on, doubling. A row of sizes spans a sixteenth of the longest
chunk's bytes.
"""

from __future__ import annotations

import struct
from typing import Any

# 40 bits of copies; each power of two is the last of its row.
COPIES_ROWS = 41
SIZE_ROWS = 16
ROWS = COPIES_ROWS + SIZE_ROWS
# Each column has the name of the total that it adds up to, over the rows of copies and again over those of sizes.
COLUMNS = ("unique_chunks", "chunks", "unique_bytes", "uncompressed_bytes")
PACKED = struct.Struct(f"<{ROWS * len(COLUMNS)}Q")


def copies_of(row: int) -> tuple[int, int]:
    """The least and the most copies of a row."""
    return (1 << row - 1) + 1 if row > 1 else row + 1, 1 << row


def sizes_of(row: int, max_bytes: int) -> tuple[int, int]:
    """The least and the most bytes of a row's chunks."""
    width = size_step_bytes(max_bytes)
    return row * width + 1, (row + 1) * width


def size_step_bytes(max_bytes: int) -> int:
    return -(-max_bytes // SIZE_ROWS)


def pack(rows: list[list[int]]) -> bytes:
    """Little-endian u64, row by row. Raises struct.error for a number that does not fit."""
    return PACKED.pack(*(figure for row in rows for figure in row))


def unpack(packed: bytes) -> list[list[int]]:
    figures = PACKED.unpack(packed)
    return [list(figures[start : start + len(COLUMNS)]) for start in range(0, len(figures), len(COLUMNS))]


def to_json(rows: list[list[int]], max_bytes: int) -> dict[str, Any]:
    """The two tables of `histogram --json` and `GET /v1/histogram`. That of copies ends with the last row in use."""
    copies, sizes = rows[:COPIES_ROWS], rows[COPIES_ROWS:]
    last = max((number for number, row in enumerate(copies) if row[0]), default=-1)
    return {
        "copies": [_row(copies_of(number), row) for number, row in enumerate(copies[: last + 1])],
        "sizes": [_row(sizes_of(number, max_bytes), row, "_bytes") for number, row in enumerate(sizes)],
    }


def _row(bounds: tuple[int, int], row: list[int], unit: str = "") -> dict[str, int]:
    return {f"from{unit}": bounds[0], f"to{unit}": bounds[1]} | dict(zip(COLUMNS, row, strict=True))
