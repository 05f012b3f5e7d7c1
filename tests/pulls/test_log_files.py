"""Files as lines: plain, compressed, one JSON array, too long, broken; and their order."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from blobs import gz, zst
from chunkd.pulls import log_files, log_lines
from chunkd.pulls.log_files import LogFiles, LogUnreadable
from chunkd.pulls.log_lines import MOST_LINE_BYTES, Pull, Unread
from lines import line_of
from pull_oracle import Get

GETS = [Get("2026-11-28", "192.0.2.7", f"app{number}", "v1", number) for number in range(50)]
LINES = [line_of(get, "combined") for get in GETS]


def lines_of(path: Path) -> list[bytes]:
    return list(LogFiles([str(path)]).lines(str(path)))


@pytest.mark.parametrize("pack", [bytes, gz, zst, lambda data: gz(data[:700]) + gz(data[700:])])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("piece_bytes", [1, 7, 256 << 10])
def test_lines(tmp_path: Path, pack: object, end: bytes, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_PIECE_BYTES", piece_bytes)
    assert callable(pack)
    path = tmp_path / "log"
    path.write_bytes(pack(end.join(LINES)))
    files = LogFiles([str(path)])
    assert list(files.lines(str(path))) == LINES
    assert files.done_bytes == files.known_bytes == path.stat().st_size
    path.write_bytes(pack(end.join([*LINES, b""])))
    assert lines_of(path) == LINES


@pytest.mark.parametrize("piece_bytes", [100, 1000, 256 << 10])
@pytest.mark.parametrize("indent", [None, 1])
def test_one_array_of_objects(
    tmp_path: Path, indent: int | None, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With braces and brackets in a string, as the traces that were published are."""
    monkeypatch.setattr(log_files, "_PIECE_BYTES", piece_bytes)
    objects = [json.loads(line_of(get, "trace")) | {"http.request.useragent": 'a},{"[\\'} for get in GETS]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(objects, indent=indent))
    assert [json.loads(line) for line in lines_of(path)] == objects
    assert all(isinstance(log_lines.read(line), Pull) for line in lines_of(path))


def test_an_array_with_other_things_in_it(tmp_path: Path) -> None:
    """Objects in objects, and one that never ends: what follows is read again from the next line on."""
    good = [line_of(get, "trace") for get in GETS]
    path = tmp_path / "trace.json"
    path.write_bytes(b"[\n" + b",\n".join([good[0], b'{"a": {"b": 1}}', good[1], b'{"' + b"{" * 200_000, *good[2:]]))
    found = lines_of(path)
    assert [line for line in found if isinstance(log_lines.read(line), Pull)] == good
    assert len(found) < len(good) + 10


@pytest.mark.parametrize("hostile", [rb"{\"", rb'"{\""', rb'{"{', b"{", rb'{"a":"{\\x'])
def test_lines_that_look_like_objects_take_linear_time(tmp_path: Path, hostile: bytes) -> None:
    """Each may begin an object that never ends, and no one is read to where another one was read already."""
    path = tmp_path / "trace.json"
    path.write_bytes(b"[\n{" + (hostile + b"\n") * 10_000 + line_of(GETS[0], "trace"))
    began_s = time.process_time()
    read = [log_lines.read(line) for line in lines_of(path)]
    assert time.process_time() - began_s < 5
    assert [found for found in read if isinstance(found, Pull)] == [log_lines.read(line_of(GETS[0], "trace"))]


@pytest.mark.parametrize("pack", [bytes, gz])
@pytest.mark.parametrize("start", [b"", b"["])
def test_a_line_without_an_end_is_not_kept(tmp_path: Path, pack: object, start: bytes) -> None:
    assert callable(pack)
    path = tmp_path / "log"
    path.write_bytes(pack(start + b"{" * (32 << 20) + b"\n" + LINES[0] + b"\n"))
    tracemalloc.start()
    try:
        read = [log_lines.read(line) for line in LogFiles([str(path)]).lines(str(path))]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    if not start:
        assert read[0] is Unread.TOO_LONG
        assert isinstance(read[1], Pull)
        assert len(read) == 2
    assert all(isinstance(found, Unread | Pull) for found in read)


def test_a_line_of_the_most_bytes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    whole = LINES[0] + b" " + b"x" * (MOST_LINE_BYTES - len(LINES[0]) - 1)
    path.write_bytes(whole + b"\n" + whole + b"x\n")
    good, bad = map(log_lines.read, lines_of(path))
    assert isinstance(good, Pull)
    assert bad is Unread.TOO_LONG


def test_files_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    paths = []
    for name, day in (("log", "2026-11-28"), ("log.1", "2026-11-27"), ("log.2.gz", "2026-11-26")):
        line = line_of(Get(day, "192.0.2.7", "app", "v1", 1), "combined")
        (tmp_path / name).write_bytes(gz(line) if name.endswith("gz") else b"junk\n" + line)
        paths.append(str(tmp_path / name))
    assert LogFiles(paths).paths == paths[::-1]
    os.mkfifo(tmp_path / "pipe")
    assert LogFiles([*paths, str(tmp_path / "pipe")]).paths == [*paths, str(tmp_path / "pipe")]


@pytest.mark.parametrize(
    "content",
    [gz(b"x" * 1000)[:-9], gz(b"x" * 1000)[:-4] + b"aaaa", zst(b"x" * 1000)[:-3], gz(b"x") + b"y"],
    ids=["cut gzip", "wrong length", "cut zstd", "gzip and more"],
)
def test_a_broken_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(content)
    with pytest.raises(LogUnreadable):
        lines_of(path)


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable):
        LogFiles([str(tmp_path / "absent")])
    with pytest.raises(LogUnreadable):
        lines_of(tmp_path)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(LINES))
    saved = os.dup(0)
    try:
        with path.open("rb") as file:
            os.dup2(file.fileno(), 0)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert list(LogFiles(["-"]).lines("-")) == LINES
    finally:
        os.dup2(saved, 0)
        os.close(saved)
