"""What another host wrote is not believed: any damage is named or changes nothing, and harms nobody."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from chunkd.errors import ChunkdError
from chunkd.fleet import segment, snapshot, tables
from chunkd.fleet.images import images
from chunkd.fleet.merge import sources_of
from chunkd.fleet.segment import RULES_KEY, SegmentBad
from chunkd.fleet.store import Store, StoreUnusable, blobs_name, rows_name
from conftest import Tell
from counts import counted
from fleets import figures, merged, put_host, source_of, split
from indexing import chunks_of
from stores import Blobs, rows_in, store_at

BLOBS: Blobs = {number: chunks_of([*range(30), *range(number * 70, number * 70 + 300)]) for number in range(1, 5)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = store_at(tmp_path / "store")
    put_host(found, 0, [split(BLOBS, [1, 2]), split(BLOBS, [3])])
    put_host(found, 1, [split(BLOBS, [2, 4])])
    return found


def files_of(store: Store) -> list[Path]:
    return sorted(path for path in Path(store.path).rglob("*") if path.is_file())


@pytest.mark.counted
@pytest.mark.parametrize("part", range(4))
def test_a_file_that_is_cut_short_or_altered_is_named_or_changes_nothing(
    store: Store, part: int, seed: int, tell: Tell
) -> None:
    """Every file of the store in turn, at a random place."""
    draw = random.Random(seed + part)
    expected = figures(merged(store))
    files = files_of(store)
    named = 0
    for number in range(counted(150)):
        path = files[number % len(files)]
        whole = path.read_bytes()
        hurt = bytearray(whole)
        if draw.random() < 0.3:
            del hurt[draw.randrange(len(whole)) :]
        else:
            # Where the footer says how all else is to be read, more often than elsewhere.
            at = draw.randrange(len(whole)) if draw.random() < 0.4 else -1 - draw.randrange(min(len(whole), 700))
            hurt[at] = draw.randrange(256)
        path.write_bytes(hurt)
        try:
            found = merged(store)
        except ChunkdError:
            named += 1
        else:
            # Not the figures, but what says of whom or of when they are.
            assert {key for key, value in figures(found).items() if value != expected[key]} <= {"params"}, path
        path.write_bytes(whole)
    assert named > counted(150) // 2
    tell(f"{counted(150)} files damaged, {named} of them named")


def rewritten(store: Store, made: str, change: Any) -> None:
    """The rows of a segment, changed by somebody who can write Parquet."""
    path = Path(store.path, rows_name(made))
    rows = rows_in(store, made)
    change(rows)
    segment.write_table(str(path), pa.Table.from_pylist(rows, segment.ROWS_SCHEMA), statistics=["hash"])
    signed(store, made)


def signed(store: Store, made: str) -> None:
    """The other file of the segment says that its rows are as they should be."""
    path = Path(store.path, blobs_name(made))
    table, said = parquet.read_table(path), parquet.read_metadata(path).metadata
    segment.write_table(str(path), table, {**said, segment.ROWS_KEY: segment.rows_digest(store, made)})


def put(at: int, **values: Any) -> Any:
    return lambda rows: rows[at].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.pop(),
        lambda rows: rows.append(rows[0]),
        put(5, copies=2),
        put(5, copies=0),
        put(5, copies=(1 << 32) - 1),
        put(5, blob=7),
        put(5, length=0),
        put(5, length=65537),
        put(5, level=17),
        lambda rows: next(row for row in rows if row["measured"]).update(measured=9),
        lambda rows: next(row for row in rows if row["measured"]).update(measured=1 << 31),
        lambda rows: next(row for row in rows if row["measured"]).update(measured=None),
        lambda rows: [row.update(measured=None) for row in rows],
    ],
    ids=[
        *("a row less", "a row twice", "more copies", "no copy", "copies beyond all bounds", "another blob"),
        *("no length", "too long", "a level beyond all", "less than a frame", "more than a frame"),
        *("not measured", "none measured"),
    ],
)
def test_rows_that_are_not_those_of_the_blobs_are_named(tmp_path: Path, change: Any) -> None:
    store = store_at(tmp_path / "store")
    (made,) = put_host(store, 0, [split(BLOBS, [1, 2])])
    rewritten(store, made, change)
    with pytest.raises((SegmentBad, StoreUnusable)) as refused:
        merged(store)
    assert made in str(refused.value)


@pytest.mark.parametrize("suffix", [".rows.parquet", ".blobs.parquet", ".held.parquet", ".names.parquet"])
def test_what_the_system_does_not_let_be_read_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Nobody shall remove a whole segment for want of a right to read it."""
    store = store_at(tmp_path / "store")
    put_host(store, 0, [split(BLOBS, [1, 2])])
    given = Store.file

    def refused(self: Store, name: str, most_bytes: int) -> str:
        path = given(self, name, most_bytes)
        return f"{path}/inside" if name.endswith(suffix) else path  # as a right that is missing: errno

    monkeypatch.setattr(Store, "file", refused)
    with pytest.raises(StoreUnusable) as raised:
        images(store, sources_of(store), "image")
    assert os.strerror(errno.ENOTDIR) in str(raised.value)


def test_statistics_that_lie_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say which row groups a range has."""
    store = store_at(tmp_path / "store")
    monkeypatch.setattr(segment, "ROWS_A_GROUP", 100)
    monkeypatch.setattr(tables, "ROWS_A_RANGE", 100)
    (made,) = put_host(store, 0, [split(BLOBS, [1, 2])])
    assert merged(store)["layers"] == 2
    path = Path(store.path, rows_name(made))
    last = parquet.read_metadata(path).row_group(0).column(0).statistics.max
    whole = path.read_bytes()
    at = whole.rindex(last)
    path.write_bytes(whole[:at] + bytes(15) + b"\1" + whole[at + 16 :])
    signed(store, made)
    with pytest.raises(SegmentBad) as refused:
        merged(store)
    assert made in str(refused.value)


@pytest.mark.parametrize("what", ["rows", "blobs"])
def test_columns_of_other_types_or_names_are_named(store: Store, what: str) -> None:
    made = store.names("segments", ".blobs.parquet")[0]
    path = Path(store.path, rows_name(made) if what == "rows" else blobs_name(made))
    table = parquet.read_table(path)
    for other in (
        table.drop_columns([table.column_names[1]]),
        table.rename_columns([f"{name}s" for name in table.column_names]),
        table.append_column("more", pa.array([1] * table.num_rows)),
        table.set_column(1, table.column_names[1], pa.array(["1"] * table.num_rows)),
    ):
        parquet.write_table(other.replace_schema_metadata({RULES_KEY: b"{}"}), path)
        with pytest.raises(SegmentBad) as refused:
            merged(store)
        assert made in str(refused.value)


def test_what_takes_much_more_than_it_seems_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MOST_BLOBS_BYTES", 1 << 20)
    made = store.names("segments", ".blobs.parquet")[0]
    path = Path(store.path, blobs_name(made))
    table = parquet.read_table(path)
    bomb = pa.table(
        {**{name: table[name] for name in table.column_names}, "manifest": [b"\0" * (2 << 20), b""]}, table.schema
    )
    segment.write_table(str(path), bomb, parquet.read_metadata(path).metadata)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(SegmentBad):
        merged(store)


@pytest.mark.parametrize(
    "how", [{"use_dictionary": ["manifest"]}, {"column_encoding": {"manifest": "DELTA_BYTE_ARRAY"}}]
)
def test_values_that_are_written_once_for_many_rows_are_not_read(store: Store, how: dict[str, Any]) -> None:
    """They take little before they are decoded, and then as much as whoever wrote them likes."""
    made = store.names("segments", ".blobs.parquet")[0]
    path = Path(store.path, blobs_name(made))
    row = parquet.read_table(path).slice(0, 1).to_pylist()[0]
    table = pa.Table.from_pylist([row | {"manifest": b"x" * 4096}] * 1000, segment.BLOBS_SCHEMA)
    writer: dict[str, Any] = {"use_dictionary": False, "store_schema": False, **how}
    parquet.write_table(table, path, **writer)
    with pytest.raises(SegmentBad):
        segment.opened(store, blobs_name(made), segment.BLOBS_SCHEMA, 1 << 20, 1 << 20)


def test_files_that_are_no_files_are_named(store: Store, tmp_path: Path) -> None:
    for path in [path for path in files_of(store) if path.suffix == ".parquet" and "names" not in path.name][::2]:
        kept = tmp_path / "kept"
        shutil.move(path, kept)
        for make in (
            lambda path=path, kept=kept: path.symlink_to(kept),
            lambda path=path: os.mkfifo(path),
            lambda path=path: path.mkdir(),
            lambda path=path: path.write_bytes(b""),
            lambda path=path: path.write_bytes(b"PAR1" + struct.pack("<I", 1 << 31) + b"PAR1"),
        ):
            make()
            with pytest.raises(ChunkdError):
                merged(store)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.move(kept, path)
    assert merged(store)["layers"] == 4


def test_a_digest_twice_is_named(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store")
    (made,) = put_host(store, 0, [split(BLOBS, [1, 2])])
    path = Path(store.path, blobs_name(made))
    table, said = parquet.read_table(path), parquet.read_metadata(path).metadata
    segment.write_table(str(path), pa.concat_tables([table, table.slice(0, 1)]), said)
    with pytest.raises(SegmentBad):
        merged(store)
    segment.write_table(str(path), table, said)
    assert merged(store)["layers"] == 2
    (moment,) = snapshot.moments(store, source_of(0))
    path = Path(store.path, "snapshots", source_of(0), f"{moment}.held.parquet")
    table, said = parquet.read_table(path), parquet.read_metadata(path).metadata
    segment.write_table(str(path), pa.concat_tables([table, table.slice(0, 1)]), said)
    with pytest.raises(SegmentBad):
        merged(store)


@pytest.mark.parametrize("digest", [b"", b"\x01", b"\x03" + bytes(32), b"\x01" + bytes(64)], ids=repr)
def test_what_is_not_a_digest_is_named(tmp_path: Path, digest: bytes) -> None:
    """Also where only images need it as one."""
    store = store_at(tmp_path / "store")
    (made,) = put_host(store, 0, [split(BLOBS, [1, 2])])
    (moment,) = snapshot.moments(store, source_of(0))
    for name in (blobs_name(made), f"snapshots/{source_of(0)}/{moment}.held.parquet"):
        path = Path(store.path, name)
        table, said = parquet.read_table(path), parquet.read_metadata(path).metadata
        first = min(table["digest"].to_pylist())
        digests = pa.array([digest if one == first else one for one in table["digest"].to_pylist()], pa.binary())
        segment.write_table(str(path), table.set_column(0, table.schema.field("digest"), digests), said)
    with pytest.raises(SegmentBad):
        images(store, sources_of(store), "image")


def test_duckdb_can_open_nothing_else(store: Store, tmp_path: Path) -> None:
    import duckdb

    with tables.Tables(store) as found:
        sql = vars(found)["_sql"]
        settings = dict(sql.execute("select name, value from duckdb_settings()").fetchall())
        for name in ("autoinstall_known_extensions", "autoload_known_extensions", "allow_community_extensions"):
            assert settings[name] == "false"
        assert settings["threads"] == "1"
        assert settings["temp_directory"].startswith(tempfile.gettempdir())
        for query in (
            "select * from read_csv('/etc/passwd')",
            "install httpfs",
            "load httpfs",
            "set threads = 4",
            "set enable_external_access = true",
            f"copy held to '{tmp_path}/stolen'",
            f"attach '{tmp_path}/stolen'",
            "select * from read_parquet('http://127.0.0.1/x.parquet')",
        ):
            with pytest.raises(duckdb.Error):
                sql.execute(query)
    assert not (tmp_path / "stolen").exists()
