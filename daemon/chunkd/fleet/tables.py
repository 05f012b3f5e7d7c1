"""The sums over a store's rows, by DuckDB. It reads files that anybody may have written: it may load no extension, open
no other file, and take so much memory and no more; what it can't read is named.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from chunkd.errors import ChunkdError
from chunkd.fleet import segment as segments
from chunkd.fleet.rows import MOST_CHUNK_BYTES, check_rows, opened_rows
from chunkd.fleet.segment import SegmentBad, first_line
from chunkd.fleet.snapshot import Snapshot
from chunkd.fleet.store import Store, StoreUnusable, blobs_name, rows_name
from chunkd.index.records import FIRST_BYTES, STATES
from chunkd.model import CODECS, HEX_DIGITS

# Beyond it DuckDB writes to temporary files: 10 million rows took 7.3 s of a processor, and 5.5 s with 1 GiB.
MEMORY_BYTES = 256 << 20
# A range of hashes is summed up at once. Ranges are the smallest power of two of them with at most so many rows each.
ROWS_A_RANGE = 16_000_000

# `kind` is the place in STATES: of the kinds that sources know of a digest, the first is that of the digest.
_TABLES = """
create table held (source uinteger, digest blob, kind utinyint, stored_bytes ubigint, segment varchar);
create table blobs (segment varchar, blob uinteger, digest blob, kind utinyint,
                    stored_bytes ubigint, uncompressed_bytes ubigint, chunks ubigint);
"""
_CHOSEN = """
create table wanted as select digest, min(kind) as kind from held group by digest;
create table found as
    select held.source, blobs.*
    from held join wanted using (digest, kind) join blobs using (segment, digest, kind);
create table chosen as
    select blobs.* from blobs
    join (select digest, min(segment) as segment, any_value(kind) as kind from found group by digest)
    using (digest, segment, kind);
"""
# `layer` numbers the layers in the order of their digests.
_LIVE = """
create table live as select ? || '/' || segment || '.rows.parquet' as filename, blob, layer
    from (select *, row_number() over (order by digest) - 1 as layer from chosen where kind = 0) where chunks > 0;
"""
# Each row of the segments that counts. `m` is its recompressed length, if the rule by which all are summed up has it.
_ROWS = """
select filename, blob, hash, length::bigint as l, copies::bigint as c, level,
       case when $measured and level >= $least_level then measured::bigint end as m
from read_parquet($files, filename = true, hive_partitioning = false) semi join live using (filename, blob)
where hash between $low and $high
"""
_SUMS = f"""
with rows as ({_ROWS}),
chunks as (
    select min(l) as l, max(l) as longest, sum(c)::bigint as c, min(m) as m, max(m) as longest_m,
        count(*) as n, count(m) as measured,
        count_if(l not between 1 and $max_bytes or c < 1 or level > 16
            or m not between 10 and l + (l >> 8) + (greatest(131072 - l, 0) >> 11)
            or ($measured and $needed_level <= level and m is null)) as bad
    from rows group by hash
)
select count(*) as unique_chunks, sum(c) as chunks, sum(l) as unique_bytes, sum(l * c) as uncompressed_bytes,
    count(m) as measured_chunks, sum(x) as measured_bytes, sum(m) as measured_recompressed_bytes,
    sum(x * x) as measured_xx, sum(x * m) as measured_xy, sum(m * m) as measured_yy,
    sum(x * c) as measured_copies_bytes, sum(m * c) as measured_copies_recompressed_bytes,
    sum(bad) as bad, count_if(l <> longest or m <> longest_m or measured not in (0, n)) as contradicted
from (select *, case when m is not null then l end as x from chunks)
"""  # noqa: S608


# Each chunk of a range by its place in the order of hashes.
_NUMBERED = f"""
create or replace temp table numbered as
select hash, row_number() over (order by hash) - 1 as number, min(l)::uinteger as l, min(m)::uinteger as m
from ({_ROWS}) group by hash
"""  # noqa: S608
_NUMBERS = f"""
select live.layer, numbered.number
from ({_ROWS}) as rows join live using (filename, blob) join numbered using (hash) order by live.layer, numbered.number
"""  # noqa: S608


Numbers = NDArray[np.int64]
# The first and the last hash of it.
Range = tuple[bytes, bytes]


class StoreTooLarge(ChunkdError):
    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"store {path}: its figures take more memory or temporary space than they may: {problem}")


class SegmentsDisagree(ChunkdError):
    """Two segments contradict one another: one was written by a host whose memory or chunkd has a fault."""

    def __init__(self, one: str, other: str, problem: str) -> None:
        super().__init__(
            f"segments {one} and {other} disagree: {problem}; run `chunkd check --read` on the hosts that have them"
        )
        self.one, self.other = one, other


class BlobsMissing(ChunkdError):
    def __init__(self, source: str, segment: str, blobs: int) -> None:
        super().__init__(
            f"source {source}: segment {segment} lacks {blobs} blobs of its snapshot; export again from that host"
        )


class Measured(NamedTuple):
    """Which recompressed lengths count. `least_level`: those of chunks of this level or a higher one. Each chunk from
    `needed_level` on must have one. `is_known` false: none counts.
    """

    is_known: bool
    least_level: int = 0
    needed_level: int = 16


class Recipes(NamedTuple):
    """Chunks by number: their lengths and recompressed lengths, 0 where none counts; and for each layer, in order, the
    numbers that it has, each once.
    """

    lengths: NDArray[np.uint32]
    recompressed: NDArray[np.uint32]
    layers: Numbers
    numbers: Numbers


class Tables:
    """The blobs and chunks of some snapshots of a store. Closing it removes its temporary files."""

    def __init__(self, store: Store, memory_bytes: int = MEMORY_BYTES) -> None:
        self._store = store
        self._stack = contextlib.ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="chunkd-merge-"))
        # A name in which DuckDB finds no wildcard, wherever the store lies.
        self._files = f"{folder}/segments"
        os.symlink(os.path.realpath(Path(store.path, "segments")), self._files)
        self._rows_of: dict[str, int] = {}
        self._digest_of: dict[str, bytes] = {}
        self.rows_bytes = 0
        self._sql = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": f"{memory_bytes}B",
                "temp_directory": f"{folder}/spilled",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "python_enable_replacements": False,
                "preserve_insertion_order": False,
            },
        )
        self._stack.callback(self._sql.close)
        quoted = self._files.replace("'", "''")
        self._sql.execute(f"set allowed_directories = ['{quoted}']")
        self._sql.execute("set enable_external_access = false")
        self._sql.execute("set lock_configuration = true")
        self._sql.execute(_TABLES)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_snapshot(self, number: int, snapshot: Snapshot) -> set[str]:
        """Add what a source holds; returns the segments that have it. Raises SegmentBad."""
        held = snapshot.held
        if pc.count_distinct(held["digest"]).as_py() != held.num_rows:
            raise SegmentBad(f"snapshots/{snapshot.source}/{snapshot.moment}.held.parquet", "has a digest twice")
        columns = ("digest", "kind", "stored_bytes", "segment")
        self._insert("held", [pa.repeat(pa.scalar(number, pa.uint32()), held.num_rows), *map(held.column, columns)])
        return set(pc.unique(held["segment"]).to_pylist())

    def add_segment(self, segment: str) -> None:
        """Raises SegmentBad."""
        _, table, self._digest_of[segment] = segments.read_blobs(self._store, segment)
        name = blobs_name(segment)
        layers = pc.equal(table["kind"], "layer")
        if pc.count_distinct(table["digest"]).as_py() != table.num_rows:
            raise SegmentBad(name, "has a digest twice")
        # As `records.digest_key` makes them: the algorithm's byte, then the digest.
        first, sizes = pc.binary_slice(table["digest"], 0, 1), pc.binary_length(table["digest"])
        digests = (
            pc.and_(pc.equal(first, FIRST_BYTES[algorithm]), pc.equal(sizes, 1 + digits // 2))
            for algorithm, digits in HEX_DIGITS.items()
        )
        possible = (
            functools.reduce(pc.or_, digests),
            pc.is_in(table["kind"], pa.array(STATES)),
            pc.is_in(table["codec"], pa.array(CODECS)),
            pc.equal(pc.greater(pc.binary_length(table["codec"]), 0), layers),
            pc.or_(layers, pc.equal(table["chunks"], 0)),
            pc.or_(layers, pc.equal(table["uncompressed_bytes"], 0)),
        )
        if not all(pc.all(one, min_count=0).as_py() for one in possible):
            raise SegmentBad(name, "has impossible blobs")
        columns = ("digest", "kind", "stored_bytes", "uncompressed_bytes", "chunks")
        ids = pa.repeat(pa.scalar(segment), table.num_rows)
        self._insert("blobs", [ids, pa.array(range(table.num_rows), pa.uint32()), *map(table.column, columns)])

    def choose(self, sources: Sequence[str]) -> None:
        """Choose for each digest the segment whose rows count, once all snapshots and their segments were added.
        `sources` are their names for people. Raises BlobsMissing and SegmentsDisagree.
        """
        missing = self._all(
            "select source, segment, count(*) from held anti join blobs using (segment, digest, kind)"
            " group by all order by all limit 1"
        )
        for number, segment, blobs in missing:
            raise BlobsMissing(sources[number], segment, blobs)
        self._execute(_CHOSEN)
        # The bytes of a blob that failed need not be those of its name.
        for one, other, digest in self._all(
            "select min(segment), max(segment), digest from"
            " (select segment, digest, (stored_bytes, uncompressed_bytes, chunks) as size from found where kind < 2)"
            " group by digest having min(size) <> max(size) limit 1"
        ):
            raise SegmentsDisagree(one, other, f"about the size of the blob {digest[1:].hex()}")
        self._execute(_LIVE, [self._files])
        for (segment,) in self._all("select distinct segment from chosen where chunks > 0 order by segment"):
            with opened_rows(self._store, segment) as file:
                self._rows_of[segment] = file.metadata.num_rows
            self.rows_bytes += os.stat(f"{self._files}/{segment}.rows.parquet").st_size

    def check_rows_files(self) -> None:
        """Raises SegmentBad unless each file of rows that counts is as it was written."""
        for segment in self._rows_of:
            if segments.rows_digest(self._store, segment) != self._digest_of[segment]:
                raise SegmentBad(rows_name(segment), "is not as it was written")

    def blob_sums(self) -> dict[str, int]:
        """The totals of blobs, by name; and what their chunks must add up to."""
        (row,) = self._all(
            "select count_if(kind = 0), count_if(kind = 1), sum(stored_bytes) filter (kind < 2),"
            " sum(stored_bytes) filter (kind = 0), count_if(kind = 2), sum(stored_bytes) filter (kind = 2),"
            " count_if(kind = 3), sum(stored_bytes) filter (kind = 3), sum(chunks), sum(uncompressed_bytes) from chosen"
        )
        names = (
            *("layers", "others", "stored_bytes", "layer_stored_bytes", "failed_blobs", "failed_bytes"),
            *("archived_blobs", "archived_bytes"),
        )
        return dict(zip((*names, "chunks", "uncompressed_bytes"), (int(value or 0) for value in row), strict=True))

    def source_sums(self) -> dict[int, tuple[int, int, int]]:
        """For each source how many blobs and layers it holds, and the stored bytes of these layers, each once."""
        found = self._all(
            "select source, count_if(of.kind < 2), count_if(of.kind = 0), sum(stored_bytes) filter (of.kind = 0)"
            " from held join wanted as of using (digest) group by source"
        )
        return {source: (blobs, layers, int(size_bytes or 0)) for source, blobs, layers, size_bytes in found}

    @property
    def rows(self) -> int:
        return sum(self._rows_of.values())

    def ranges(self) -> Iterator[Range]:
        """All hashes, in order."""
        bits = max(0, (self.rows - 1) // ROWS_A_RANGE).bit_length()
        for number in range(1 << bits):
            low, high = (at << (128 - bits) for at in (number, number + 1))
            yield low.to_bytes(16, "big"), (high - 1).to_bytes(16, "big")

    def chunk_sums(self, low: bytes, high: bytes, max_bytes: int, measured: Measured) -> dict[str, int]:
        """The totals of the chunks of a range, by name. Raises SegmentBad, SegmentsDisagree and StoreTooLarge."""
        if not self._rows_of:
            return {}
        given = self._given(low, high, measured)
        found = self._execute(_SUMS, given | {"max_bytes": max_bytes, "needed_level": measured.needed_level})
        names = [column[0] for column in found.description]
        sums = {name: int(value or 0) for name, value in zip(names, found.fetchone() or (), strict=True)}
        if sums.pop("contradicted"):
            self._contradiction(given)
        if sums.pop("bad"):
            self._blame("some chunks are impossible", max_bytes)
        return sums

    def layers(self) -> list[tuple[Any, ...]]:
        """The digest and the uncompressed bytes of each layer, in the order of `Recipes.layers`."""
        return self._all("select digest, uncompressed_bytes from chosen where kind = 0 order by digest")

    def counted(self) -> list[Any]:
        """Digest and stored bytes of each blob that counts, and of one that is not a layer the segment, else ""."""
        return self._all(
            "select digest, stored_bytes, case when kind = 0 then '' else segment end from chosen where kind < 2"
        )

    def recipes(self, low: bytes, high: bytes, measured: Measured) -> Recipes:
        """The chunks of a range, numbered from 0 in the order of their hashes."""
        given = self._given(low, high, measured)
        self._execute(_NUMBERED, given)
        chunks = self._execute("select l, coalesce(m, 0)::uinteger as m from numbered order by number").fetchnumpy()
        numbers = self._execute(_NUMBERS, given).fetchnumpy()
        return Recipes(chunks["l"], chunks["m"], numbers["layer"], numbers["number"])

    def check_sums(self, sums: Mapping[str, int], max_bytes: int) -> None:
        """Raises SegmentBad unless chunks add up to what the blobs say of them."""
        said = self.blob_sums()
        if any(sums.get(name, 0) != said[name] for name in ("chunks", "uncompressed_bytes")):
            self._blame("chunks are not as many as the blobs say", max_bytes)

    def _given(self, low: bytes, high: bytes, measured: Measured) -> dict[str, Any]:
        files = [f"{self._files}/{segment}.rows.parquet" for segment in self._rows_of]
        given = {"measured": measured.is_known, "least_level": measured.least_level}
        return given | {"files": files, "low": low, "high": high}

    def _contradiction(self, given: Mapping[str, Any]) -> None:
        """Raises for one hash of the range that has two lengths."""
        pairs = f"select hash, min((l, m, filename)), max((l, m, filename)) from ({_ROWS}) group by hash"  # noqa: S608
        for hash_, one, other in self._all(f"{pairs} having count(distinct (l, m)) > 1 order by hash limit 1", given):
            first, second = (Path(row[2]).name.partition(".")[0] for row in (one, other))
            for segment in (first, second):
                check_rows(self._store, segment, MOST_CHUNK_BYTES)
            lengths = [f"{row[0]} bytes (recompressed {row[1]})" for row in (one, other)]
            raise SegmentsDisagree(
                first, second, f"chunk {hash_.hex()} has {lengths[0]} in one, {lengths[1]} in another"
            )

    def _blame(self, problem: str, max_bytes: int) -> NoReturn:
        """Raises SegmentBad for a segment whose rows are not what chunkd makes."""
        for segment in self._rows_of:
            check_rows(self._store, segment, max_bytes)
        raise StoreUnusable(self._store.path, f"its figures do not add up: {problem}")

    def _insert(self, table: str, columns: Sequence[Any]) -> None:
        self._sql.register("given", pa.table(columns, names=[f"c{at}" for at in range(len(columns))]))
        kinds = {"held": 2, "blobs": 3}
        values = ", ".join(
            f"list_position({list(STATES)}, c{at}) - 1" if at == kinds[table] else f"c{at}"
            for at in range(len(columns))
        )
        self._execute(f"insert into {table} select {values} from given")  # noqa: S608
        self._sql.unregister("given")

    def _all(self, query: str, given: object = None) -> list[tuple[Any, ...]]:
        return self._execute(query, given).fetchall()

    def _execute(self, query: str, given: object = None) -> duckdb.DuckDBPyConnection:
        try:
            return self._sql.execute(query, given)
        except duckdb.OutOfMemoryException as error:
            raise StoreTooLarge(self._store.path, first_line(error)) from None
        except duckdb.Error as error:
            self._blame(first_line(error), MOST_CHUNK_BYTES)
