"""The streaming reader of tars: as Python's own reader sees them, and what hostile ones cost."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tars
from chunkd.sweep import tar_stream
from counts import some
from daemon import npm_layers
from tars import END, by_tarfile, entry, header, octal, padded, pax, record, seen, seen_however_cut

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
KINDS = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]


def same_as_tarfile(data: bytes) -> None:
    found = seen_however_cut(data)
    assert found.damaged == ""
    expected = by_tarfile(data)
    assert [(one.begin, one.path.rstrip(b"/"), one.payload_bytes) for one in found.entries] == [
        (begin, path.rstrip(b"/"), size) for begin, path, size, _ in expected
    ]
    assert [one.payload for one in found.entries] == [payload for *_, payload in expected]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@st.composite
def members(draw: st.DrawFn, form: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20)
    paths = st.lists(names, min_size=1, max_size=8).map("/".join)
    if form == tarfile.USTAR_FORMAT:
        paths = st.from_regex(r"[a-z]{1,90}", fullmatch=True)
    found = []
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from(KINDS))
        data = draw(st.binary(max_size=1500)) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else b""
        found.append((member(draw(paths), kind, draw(paths)), data))
    return found


@pytest.mark.parametrize("form", FORMATS)
@given(data=st.data())
def test_tars_that_python_makes_are_read_as_python_reads_them(form: int, data: st.DataObject) -> None:
    same_as_tarfile(tars.made(data.draw(members(form)), form))


@pytest.mark.parametrize("form", FORMATS[1:])
def test_long_names_and_links(form: int) -> None:
    long = "d/" * 900 + "name"
    found = [(member(long), b"x" * 700), (member("l", tarfile.LNKTYPE, long), b""), (member("after"), b"y")]
    same_as_tarfile(tars.made(found, form))


@pytest.mark.counted
def test_the_real_layers_are_read_as_python_reads_them() -> None:
    """A fifth of the 90 in `make test`, where test_causes has all of them against an oracle that uses tarfile too."""
    for path in some(npm_layers()):
        same_as_tarfile(gzip.decompress(path.read_bytes()))


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is missing")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "ustar", "v7", "posix", *(f"sparse {at}" for at in ("0.0", "1.0"))])
def test_what_tar_makes(tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d" / "holes", "wb") as file:
        for at in range(60):
            file.seek(at * 70_000)
            file.write(b"part %d" % at)
    (tmp_path / "d" / "link").symlink_to("holes")
    (tmp_path / "d" / ("n" * (90 if form in ("v7", "ustar") else 200))).write_bytes(b"n" * 1025)
    os.link(tmp_path / "d" / "holes", tmp_path / "d" / "hard")
    sparse = form.startswith("sparse")
    flags = ["--sparse", f"--sparse-version={form.split()[1]}", "--format=posix"] if sparse else [f"--format={form}"]
    for more in ([], ["--sparse"]) if form in ("gnu", "oldgnu", "posix") else ([],):
        archive = tmp_path / "out.tar"
        subprocess.run(["tar", "--sort=name", *flags, *more, "-cf", archive, "-C", tmp_path, "d"], check=True)
        data = archive.read_bytes()
        found = seen_however_cut(data)
        assert found.damaged == ""
        expected = by_tarfile(data)
        assert [(one.begin, one.path.rstrip(b"/")) for one in found.entries] == [one[:2] for one in expected]
        for one, (_, _, size, payload) in zip(found.entries, expected, strict=True):
            if payload is None:
                assert (one.kind, one.payload_bytes < size) == ("sparse file", True)
                assert b"part 59" in one.payload
            else:
                assert one.payload == payload


def test_numbers_in_base_256_and_prefixes() -> None:
    data = header(b"a", b"\x80" + (3).to_bytes(11, "big"), prefix=b"p/q") + padded(b"abc")
    data += header(b"b", 1, magic=b"ustar  \0", prefix=b"12345") + padded(b"z") + END
    first, second = seen_however_cut(data).entries
    assert (first.path, first.payload) == (b"p/q/a", b"abc")
    assert second.path == b"b"  # GNU's headers have times there


def test_checksums_of_signed_bytes_hold() -> None:
    assert seen_however_cut(header(b"\xff\xfe", signed=True) + END).entries[0].path == b"\xff\xfe"


def test_pax_paths_and_sizes() -> None:
    data = pax({b"path": b"p\xffq", b"size": b"600", b"mtime": b"1.5"}) + header(b"short", 0) + padded(b"d" * 600)
    data += pax({b"path": b"", b"size": b""}) + entry(b"kept", b"e") + END
    first, second = seen_however_cut(data).entries
    assert (first.begin, first.path, first.payload) == (0, b"p\xffq", b"d" * 600)
    assert (second.path, second.payload) == (b"kept", b"e")


def test_global_headers_are_passed_over() -> None:
    data = pax({b"path": b"evil", b"size": b"9999"}, b"g") + entry(b"a", b"abc") + entry(b"b") + END
    assert [(one.begin, one.path) for one in seen_however_cut(data).entries] == [(0, b"a"), (2048, b"b")]


def test_sparse_files_by_pax() -> None:
    known = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"real", b"path": b"x"}
    found = seen_however_cut(pax(known) + entry(b"GNUSparseFile.1/real", padded(b"1\n0\n3\n") + b"abc") + END)
    assert (found.entries[0].kind, found.entries[0].path, found.entries[0].payload_bytes) == (
        "sparse file",
        b"real",
        515,
    )


def test_links_have_no_payload_whatever_size_they_say() -> None:
    data = header(b"l", 5000, b"1") + header(b"s", 5000, b"2") + header(b"d", 5000, b"5") + entry(b"f", b"x") + END
    found = seen_however_cut(data)
    assert [one.kind for one in found.entries] == ["hard link", "symbolic link", "directory", "file"]
    assert [one.payload_bytes for one in found.entries] == [0, 0, 0, 1]


def test_an_unknown_type_has_its_payload() -> None:
    found = seen_however_cut(header(b"q", 600, b"Q") + padded(b"q" * 600) + entry(b"f") + END)
    assert [(one.kind, one.payload_bytes) for one in found.entries] == [("other", 600), ("file", 0)]


def test_a_long_path_is_cut() -> None:
    long = b"n" * 900_000
    for data in (pax({b"path": long}) + entry(b"a"), entry(b"././@LongLink", long + b"\0", b"L") + entry(b"a")):
        found = seen_however_cut(data + END)
        assert (found.damaged, found.entries[0].path) == ("", long[: tar_stream.MOST_PATH_BYTES])


# --- the end, and damage ---------------------------------------------------------------------------------------------

GOOD = entry(b"good", b"g" * 600)


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + b"garbage" * 300, END + GOOD, bytes(512) + GOOD])
def test_zeros_end_a_tar(end: bytes) -> None:
    found = seen_however_cut(GOOD + end)
    assert found.damaged == ""
    assert [(one.path, one.payload_bytes) for one in found.entries] == [(b"good", 600)]
    assert found.outside_bytes == len(end)


BROKEN = {
    "garbage": b"\x07" * 512,
    "checksum": header(b"x")[:-1] + b"\1",
    "checksum that is none": header(b"x")[:148] + b"zzzzzzzz" + header(b"x")[156:],
    "negative": header(b"x", b"\xff" * 12),
    "negative one": header(b"x", b"\xff" + bytes(10) + b"\x05"),
    "in base 256 behind another byte": header(b"x", b"\x81" + bytes(10) + b"\x05"),
    "negative octal": header(b"x", b"-0000000010\0"),
    "huge": header(b"x", b"\x80" + b"\xff" * 11),
    "not octal": header(b"x", b"00000000089\0"),
    "underscore": header(b"x", b"0000000_010\0"),
    "negative in PAX": pax({b"size": b"-5"}) + header(b"x"),
    "huge in PAX": pax({b"size": b"9" * 4000}) + header(b"x"),
    "long name of 1 MiB and more": header(b"x", (1 << 20) + 1, b"L") + bytes(1 << 21),
    "PAX of 1 MiB and more": header(b"x", (1 << 20) + 1, b"x"),
    "PAX of 8 GiB": header(b"x", 8 << 30, b"x"),
    "record too long": entry(b"x", b"99 path=a\n", b"x") + header(b"x"),
    "record without its end": entry(b"x", b"8 path=ab", b"x") + header(b"x"),
    "record too short": entry(b"x", b"3 path=a\n", b"x") + header(b"x"),
    "record of no length": entry(b"x", b" path=a\n", b"x") + header(b"x"),
    "record of length 0": entry(b"x", b"0 path=a\n", b"x") + header(b"x"),
    "record of a negative length": entry(b"x", b"-9 path=a\n", b"x") + header(b"x"),
    "record of a long length": entry(b"x", b"1" * 5000, b"x") + header(b"x"),
    "record without a key": entry(b"x", b"5 =a\n", b"x") + header(b"x"),
    "record without a value": entry(b"x", b"7 path\n", b"x") + header(b"x"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_damage_costs_what_follows_and_nothing_before(broken: bytes) -> None:
    found = seen_however_cut(GOOD + broken + GOOD + END)
    assert found.damaged
    assert [one.path for one in found.entries] == [b"good"]
    assert found.outside_bytes >= len(GOOD + END)


@pytest.mark.parametrize("kept", [1, 511, 513, 700, 1024, 1025, 1535, 1536, 2047])
def test_a_tar_that_is_cut_short(kept: int) -> None:
    data = pax({b"path": b"p"}) + GOOD
    found = seen_however_cut(data[:kept])
    assert found.damaged == "it is cut short"
    assert len(found.entries) == (kept >= 1536)


def test_sparse_maps_without_end_take_no_memory() -> None:
    def extended(at: int) -> bytes:
        block = bytearray(512)
        block[at] = 1
        return bytes(block)

    def more(block: bytearray) -> None:
        block[482] = 1

    data = header(b"s", 5, b"S", magic=b"ustar  \0", more=more) + extended(504) * 3000 + bytes(512) + padded(b"hello")
    found = seen_however_cut(data + entry(b"f") + END)
    assert [(one.kind, one.payload) for one in found.entries] == [("sparse file", b"hello"), ("file", b"")]


def test_a_bomb_of_pax_records_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "MOST_RECORDS", 1000)
    bomb = entry(b"x", record(b"a", b"") * 300, b"x") + entry(b"f")
    found = seen(bomb * 5 + END)
    assert "PAX records" in found.damaged
    assert len(found.entries) == 3


def test_headers_without_end_take_no_memory() -> None:
    data = pax({b"path": b"p" * 2000}) * 2000 + entry(b"f") + END
    assert [(one.begin, len(one.path)) for one in seen(data).entries] == [(0, 2000)]


@given(st.data())
def test_damage_anywhere_leaves_what_was_before(data: st.DataObject) -> None:
    """Whatever is flipped: pieces cover all, and entries whose headers end before it are as they were."""
    whole = tars.made([(member("a" * 150), b"a" * 700), (member("b"), b"b" * 513), (member("c/d"), b"")])
    at = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole)
    broken[at] ^= data.draw(st.integers(1, 255))
    before = [one for one in seen(whole).entries if one.begin + one.rest_bytes + one.payload_bytes <= at]
    assert seen_however_cut(bytes(broken)).entries[: len(before)] == before


@given(st.lists(st.sampled_from([GOOD, *BROKEN.values(), bytes(512), header(b"h", 700, b"1"), octal(7)]), max_size=6))
def test_whatever_comes_is_covered(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert seen(data) == seen(data, random.Random(1))
