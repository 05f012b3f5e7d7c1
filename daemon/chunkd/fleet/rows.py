"""The rows of a segment as somebody else may have written them: looked at before they are used, and read through when
the sums do not add up.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from chunkd.fleet import segment as segments
from chunkd.fleet.segment import MOST_ROWS_BYTES, ROWS_SCHEMA, SegmentBad
from chunkd.fleet.store import Store, rows_name
from chunkd.index import blocks

# What a row takes before it is compressed is 34 bytes.
MOST_BYTES_A_ROW, MOST_BYTES_A_GROUP = 64, 1 << 20
MOST_ROWS = 1 << 32
MOST_CHUNK_BYTES = (1 << 24) - 1


def opened_rows(store: Store, segment: str) -> parquet.ParquetFile:
    """The rows of a segment, which are not read yet. Raises SegmentBad."""
    name = rows_name(segment)
    file = segments.opened(store, name, ROWS_SCHEMA, MOST_ROWS_BYTES, MOST_ROWS)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        if group.total_byte_size > MOST_BYTES_A_ROW * group.num_rows + MOST_BYTES_A_GROUP:
            raise SegmentBad(name, f"has a row group that takes {group.total_byte_size} bytes")
    return file


def check_rows(store: Store, segment: str, max_bytes: int) -> None:
    """Read a whole segment. Raises SegmentBad unless its rows are sorted, possible, and add up to its blobs."""
    name = rows_name(segment)
    rules, blobs, _ = segments.read_blobs(store, segment)
    threshold = rules.measure.threshold
    # By the level alone, a chunk below the first is not measured, and one from the second on is.
    may_level, must_level = 16 - (threshold - 1).bit_length(), 17 - threshold.bit_length()
    sums = np.zeros((blobs.num_rows, 2), np.int64)
    before = (-1, -1, -1)
    with opened_rows(store, segment) as file:
        for number in range(file.metadata.num_row_groups):
            try:
                rows = file.read_row_group(number, use_threads=False)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise segments.unreadable(store, name, "can't be read", error) from None
            hashes = b"".join(
                chunk.buffers()[1][16 * chunk.offset :][: 16 * len(chunk)] for chunk in rows["hash"].chunks
            )
            statistics = file.metadata.row_group(number).column(0).statistics
            if (
                statistics
                and statistics.has_min_max
                and (statistics.min, statistics.max) != (hashes[:16], hashes[-16:])
            ):
                raise SegmentBad(name, "has statistics that are not those of its rows")
            length, blob, copies, level = (
                rows[column].to_numpy().astype(np.int64) for column in ("length", "blob", "copies", "level")
            )
            measured = rows["measured"].fill_null(0).to_numpy().astype(np.int64)
            least, most = blocks.frame_bounds(length)
            possible = (length > 0) & (length <= max_bytes) & (copies > 0) & (level <= 16) & (blob < blobs.num_rows)
            possible &= (measured == 0) | ((measured >= least) & (measured <= most) & (level >= may_level))
            possible &= (measured > 0) | (level < must_level)
            if not possible.all():
                raise SegmentBad(name, "has impossible rows")
            np.add.at(sums, blob, np.stack((copies, copies * length), axis=1))
            leading, rest = np.frombuffer(hashes, ">u8").reshape(-1, 2).astype(np.uint64).T
            order = np.lexsort((blob, rest, leading))
            first = (int(leading[0]), int(rest[0]), int(blob[0]))
            if first <= before or (np.diff(order) != 1).any():
                raise SegmentBad(name, "is not sorted")
            before = (int(leading[-1]), int(rest[-1]), int(blob[-1]))
    said = np.stack([blobs[column].to_numpy() for column in ("chunks", "uncompressed_bytes")], axis=1)
    if (sums.astype(np.uint64) != said).any():
        raise SegmentBad(name, "has rows that do not add up to its blobs")
