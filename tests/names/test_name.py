from __future__ import annotations

import os
from pathlib import Path

import pytest

from chunkd.model import Digest, digest_of
from chunkd.names import name
from chunkd.names.beside import base_of, read_names, repository_of
from chunkd.names.name import Name, Part, Rows, Standing, is_tag, named, split_reference
from chunkd.names.names_file import read_names_file

A, B = (Digest("sha256", letter * 64) for letter in "ab")
SHA512 = Digest("sha512", "c" * 128)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("shop/api:v41", ("shop/api", "v41")),
        ("localhost:5000/shop/api:v41", ("localhost:5000/shop/api", "v41")),
        ("localhost:5000/shop/api", ("localhost:5000/shop/api", "")),
        (f"shop/api@{A}", ("shop/api", "")),
        (f"shop/api:v41@{A}", ("shop/api", "v41")),
        (f"shop/api:v41@{SHA512}", ("shop/api", "v41")),
        ("shop/api@sha256:abc", ("shop/api@sha256", "abc")),
        (str(A), ("", "")),
        ("plain", ("plain", "")),
        (":v1", (":v1", "")),
        ("a:" + "b" * 129, ("a:" + "b" * 129, "")),
        ("a:b c", ("a:b c", "")),
        ("", ("", "")),
        ("\x1b]0;x\a", ("\x1b]0;x\a", "")),
    ],
)
def test_references(text: str, parts: tuple[str, str]) -> None:
    assert split_reference(text) == parts


def test_what_a_text_names() -> None:
    assert named("", "shop/api", A, 5) == Name("", "shop/api", "", A, 5, Standing.HELD)
    assert named("v1", "shop/api", A) == Name("shop/api:v1", "shop/api", "v1", A)
    assert named("v1", "", A) == Name("v1", "v1", "", A)
    assert named("other/app:v1", "shop/api", A) == Name("other/app:v1", "other/app", "v1", A)


@pytest.mark.parametrize("text", [None, 7, "", "sha256:", f"{A}\n", f"{A}0", f"{A}".upper(), "md5:" + "a" * 32, ["a"]])
def test_what_is_no_digest(text: object) -> None:
    assert digest_of(text) is None


def test_digests_and_tags() -> None:
    assert digest_of(str(A)) == A
    assert digest_of(str(SHA512)) == SHA512
    assert is_tag("v1.0_x-y")
    assert not any(map(is_tag, ("", ".", "..", "-a", "a/b", "a:b", "a\n", "a" * 129, "é")))


def test_names_are_bounded() -> None:
    rows = Rows(2)
    rows.add(named("", "r" * (name.MOST_NAME_CHARACTERS + 1), A))
    for text in ("a", "b" * (name.MOST_NAME_CHARACTERS + 1), "c", "d", "e"):
        rows.add(named(text, "", A))
    rows.leave_out("odd")
    part = rows.part("layout", "x", 3)
    assert [one.text for one in part.names or ()] == ["a", "c"]
    assert part.problem.count("left out") == 3
    assert "2 left out: more than 2 names" in part.problem
    assert f"2 left out: longer than {name.MOST_NAME_CHARACTERS}" in part.problem
    assert (part.source, part.where, part.at_ns) == ("layout", "x", 3)


# --- the names file -----------------------------------------------------------------------------------------------


def test_a_names_file(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(
        f"# by crane\n\nshop/api:v1\t{A}\nshop/api:v2\t{B}\r\nlocalhost:5000/\u00e9\t {A} \n".encode()
        + b"caf\xe9:v1\t" + str(SHA512).encode() + b"\nno digest\tsha256:x\nno tab\n\t" + str(A).encode() + b"\n"
        + b"x" * 10_000
    )  # fmt: skip
    os.utime(path, ns=(5, 7))
    part = read_names_file(str(path))
    assert part.names == (
        Name("shop/api:v1", "shop/api", "v1", A),
        Name("shop/api:v2", "shop/api", "v2", B),
        Name("localhost:5000/é", "localhost:5000/é", "", A),
        Name("caf\udce9:v1", "caf\udce9", "v1", SHA512),
    )
    assert (part.source, part.where, part.at_ns) == ("names file", str(path), 7)
    assert part.problem.startswith("4 left out")


@pytest.mark.parametrize("before_bytes", [4000, 4096, 8192, 9000])
def test_the_end_of_a_long_line_is_no_line(tmp_path: Path, before_bytes: int) -> None:
    """It would be a name that nobody wrote."""
    path = tmp_path / "names"
    row = f"shop/api:v1\tsha256:{'a' * 64}\n"
    path.write_text(f"{'x' * before_bytes}{row}shop/web:v1\tsha256:{'b' * 64}\n")
    part = read_names_file(str(path))
    assert [name.text for name in part.names or ()] == ["shop/web:v1"]
    assert part.problem.startswith("1 left out")


def test_a_names_file_that_can_not_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    for which in ("none", "fifo", "large", "."):
        part = read_names_file(str(tmp_path / which))
        assert part.names is None
        assert part.problem


# --- where names lie ----------------------------------------------------------------------------------------------

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("root", "path", "base"),
    [
        ("/c", f"docker/registry/v2/blobs/sha256/ab/{HEX}/data", "/c/docker/registry/v2"),
        ("/c/docker/registry/v2", f"blobs/sha256/ab/{HEX}/data", "/c/docker/registry/v2"),
        ("/c/registry/blobs/sha256", f"ab/{HEX}/data", "/c/registry"),
        ("/c/layout", f"blobs/sha512/{HEX * 2}", "/c/layout"),
        ("/c/layout/blobs/sha256", HEX, "/c/layout"),
        ("/zot", f"team/app/blobs/sha256/{HEX}", "/zot/team/app"),
        ("/c/blobs/x", f"y/blobs/sha256/{HEX}", "/c/blobs/x/y"),
        ("/", f"blobs/sha256/{HEX}", "/"),
        ("/flat", HEX, None),
        ("/flat/blobs", HEX, None),
    ],
)
def test_the_base_of_a_blob(root: str, path: str, base: str | None) -> None:
    assert base_of(root, path) == base


def test_what_a_layout_is_called() -> None:
    assert repository_of("/zot", "/zot/team/app") == "team/app"
    assert repository_of("/c/layout", "/c/layout") == "layout"
    assert repository_of("/c/layout/blobs/sha256", "/c/layout") == "layout"


def test_a_base_without_names(tmp_path: Path) -> None:
    assert list(filter(None, read_names(str(tmp_path), "x"))) == []
    with pytest.raises(FileNotFoundError):
        list(filter(None, read_names(str(tmp_path / "none"), "x")))


def test_all_that_lies_at_one_base(tmp_path: Path) -> None:
    base = tmp_path / "io.containerd.content.v1.content"
    (base / "repositories").mkdir(parents=True)
    (base / "index.json").write_text("{}")
    found = list(filter(None, read_names(str(base), "x")))
    assert found[0] == Part("layout", "", (), "", (base / "index.json").stat().st_mtime_ns)
    assert [(part.source, part.names) for part in found[1:]] == [("containerd", None)]
