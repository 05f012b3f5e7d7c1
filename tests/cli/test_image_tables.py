"""The tables about images: their columns and sums, their width, and that no name steers a terminal or a shell."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from chunkd.cli import image_tables
from chunkd.cli.image_tables import chosen, delete_command, freed_lines, image_lines, partial_lines, similar_lines

MIB = 1 << 20
EVIL = "\x1b[2J\n`touch x`$(y)'\"\u202e\udc80"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def row(number: int, *names: str, kind: str = "image", partial: bool = False) -> dict[str, Any]:
    stored = {"referenced_bytes": 40, "exclusive_bytes": 10, "shared_bytes": 30, "fair_share_bytes": 20, "new_bytes": 5}
    chunks = stored | {"uncompressed_bytes": 50, "repeated_bytes": 10, "recompressed_bytes": 20}
    chunks["exclusive_bytes"] = number
    return {
        "digest": digest(number), "kind": kind, "names": list(names), "platforms": ["linux/amd64"],
        "absent_platforms": ["linux/arm64"] if partial else [], "missing_blobs": int(partial),
        "missing_bytes": 7 * int(partial),
        "stored": {name: size * MIB for name, size in stored.items()},
        "chunks": None if partial else {name: size * MIB for name, size in chunks.items()},
    }  # fmt: skip


def reply(*rows: dict[str, Any]) -> dict[str, Any]:
    partial = sum(one["chunks"] is None for one in rows)
    return {
        "as_of": None, "names_as_of": None, "order": "push", "images": list(rows), "names_without_blob": 1,
        "partial": {"images": partial, "fair_share_bytes": 20 * MIB * partial, "new_bytes": 5 * MIB * partial},
        "unheld": {"blobs": 2, "stored_bytes": 3 * MIB, "unique_bytes": 4 * MIB},
    }  # fmt: skip


def lines_of(found: dict[str, Any], sort: str = "pushed", *, untagged: bool = False) -> list[str]:
    rows = chosen(found, sort, untagged=untagged, partial=False)
    return list(image_lines(rows, found, "from a test", untagged=untagged))


FOUND = reply(
    row(1, "shop/api:v1"),
    row(2, "shop/api:latest", "shop/api:v2"),
    row(3),
    row(4),
    row(5, kind="attestation"),
    row(6, "shop/half:v1", partial=True),
    row(7, "a:1", "a:2", "a:3"),
)


def line_of(lines: list[str], name: str) -> list[str]:
    [found] = [line for line in lines if line.startswith(name)]
    return found.removeprefix(name).replace(" MiB", "").split()


def test_a_cache_without_images_says_so() -> None:
    none, some = "\n".join(lines_of(reply())), "\n".join(lines_of(FOUND))
    assert "no images" in none
    assert "no images" not in some


def test_the_rows_and_sums_of_the_table() -> None:
    lines = lines_of(FOUND)
    assert line_of(lines, "shop/api:v1") == ["1", "40.0", "10.0", "20.0", "1.0", "20.0", "5.0"]
    assert line_of(lines, "shop/half:v1") == ["1", "40.0", "10.0", "20.0", "unknown", "unknown", "unknown"]
    assert line_of(lines, "untagged (2)") == ["40.0", "40.0", "10.0"]
    assert line_of(lines, "attestation (1)") == ["20.0", "20.0", "5.0"]
    assert line_of(lines, "chunks of 1 partial") == ["20.0", "5.0"]
    assert line_of(lines, "in no image (2 blobs)") == ["3.0", "4.0", "4.0"]
    assert line_of(lines, "total") == ["143.0", "144.0", "144.0"]
    text = "\n".join(lines)
    assert "shop/api:latest (+v2)" in text
    assert "a:1 (+2 names)" in text
    order = [text.index(name) for name in ("a:1", "shop/half:v1", "shop/api:latest", "shop/api:v1", "untagged")]
    assert order == sorted(order)  # the latest first


def test_untagged_images_have_rows_of_their_own() -> None:
    lines = lines_of(FOUND, untagged=True)
    assert [line for line in lines if line.startswith("sha256:")] == [digest(4), digest(3)]
    assert line_of(lines, "tagged (4)") == ["80.0", "60.0", "15.0"]
    assert line_of(lines, "total") == ["143.0", "144.0", "144.0"]


@pytest.mark.parametrize("sort", list(image_tables.SORTS))
def test_rows_are_sorted(sort: str) -> None:
    rows = chosen(FOUND, sort, untagged=False, partial=False)
    assert len(rows) == 7
    if sort == "chunk-exclusive":
        assert [one["digest"] for one in rows] == [digest(number) for number in (7, 5, 4, 3, 2, 1, 6)]


def test_what_partial_images_lack() -> None:
    rows = chosen(FOUND, "pushed", untagged=False, partial=True)
    [line] = list(partial_lines(rows, FOUND, "from a test"))[-1:]
    assert line.split() == ["1", "blob", "7", "bytes", "1", "platforms", "shop/half:v1"]


def test_by_repository() -> None:
    repositories = [row(1) | {"repository": name, "images": 3} for name in ("shop/api", "")]
    found = {name: value for name, value in FOUND.items() if name != "images"}
    found |= {"repositories": repositories, "partial": {"repositories": 0, "fair_share_bytes": 0, "new_bytes": 0}}
    lines = lines_of(found)
    assert line_of(lines, "shop/api")[0] == "3"
    assert line_of(lines, "(without a name)")[0] == "3"
    assert line_of(lines, "total") == ["43.0", "44.0", "44.0"]


def freed_reply(**changes: Any) -> dict[str, Any]:
    collection = {
        "sources": ["containerd", "layout", "names file", "registry"], "freed_now_bytes": 10, "has_index": True,
        "delete": [{"repository": "shop/api", "digest": digest(1)}], "delete_left_out": 0,
    }  # fmt: skip
    return {
        "images": [digest(1)], "stored": {"bytes": 100, "blobs": [digest(1), digest(2)]},
        "chunks": {"bytes": 900, "recompressed_bytes": 200, "recompressed_error_bytes": 30},
        "held_by_others_bytes": 50, "names": ["shop/api:v1"], "names_left_out": 0, "kept": [], "kept_left_out": 0,
        "kept_last": 0, "collection": collection | changes.pop("collection", {}),
    } | changes  # fmt: skip


def test_what_would_be_freed() -> None:
    text = "\n".join(freed_lines(freed_reply(), "from a test"))
    for words in (
        "100 bytes   2 blobs",
        "900 bytes",
        "200 bytes recompressed",
        "30 bytes",
        " 50 bytes",
        "10 bytes of it now",
    ):
        assert words in text
    assert delete_command("shop/api", digest(1)) in text
    assert "--delete-untagged" not in text
    nothing = "\n".join(freed_lines(freed_reply(images=[], kept=[{"digest": digest(1), "names": ["b:1"]}]), ""))
    assert "b:1" in nothing
    assert "skopeo" not in nothing


def test_many_commands_are_cut_short_and_counted() -> None:
    many = [{"repository": "shop/api", "digest": digest(number)} for number in range(30)]
    lines = list(freed_lines(freed_reply(collection={"delete": many, "delete_left_out": 7}), ""))
    assert sum("skopeo" in line for line in lines) == image_tables.COMMANDS_SHOWN
    assert any("17 more" in line for line in lines)


@pytest.mark.parametrize("repository", ["a", "shop/api", "a.b/c_d/e__f/g-h--i", "0/1"])
def test_a_command_is_printed_for_what_a_registry_takes(repository: str) -> None:
    words = shlex.split(delete_command(repository, digest(1)))
    assert words == ["skopeo", "delete", f"docker://$REGISTRY/{repository}@{digest(1)}"]


@pytest.mark.parametrize(
    "repository",
    ["", "A", "a b", "a;b", "$(a)", "`a`", "a'b", 'a"b', "a\n", "../a", "a/", "/a", "a//b", "-a", "a:b", "a___b", EVIL,
     "\u0430", "a" * 256],
)  # fmt: skip
def test_no_command_is_printed_for_anything_else(repository: str) -> None:
    assert delete_command(repository, digest(1)) == ""
    rows = [{"repository": repository, "digest": digest(1)}]
    lines = list(freed_lines(freed_reply(collection={"delete": rows}), ""))
    assert not any("skopeo" in line for line in lines)


def similar_reply(*names: str) -> dict[str, Any]:
    one, other = ({"digest": digest(number), "names": [name], "partial": False} for number, name in enumerate(names))
    pair = {"images": [one, other], "overlap_bytes": 100, "similarity": 0.5, "contained": [0.6, 0.7]}
    alike = [{"cluster": 1} | one, {"cluster": 1} | other]
    return {"names_as_of": "then", "threshold": 0.5, "common_bytes": 9, "pairs": [pair], "alike": alike}


def test_similar_images() -> None:
    lines = list(similar_lines(similar_reply("a:1", "b:1"), "from a test"))
    text = "\n".join(lines)
    assert "2 images: a:1, b:1" in text
    assert "50.0 %  a:1  b:1" in text
    assert "9 bytes" in text
    empty: dict[str, Any] = {"names_as_of": None, "threshold": 1.0, "common_bytes": 0, "pairs": [], "alike": []}
    assert "0 clusters" in "\n".join(similar_lines(empty, ""))


def all_lines(*names: str) -> list[str]:
    huge = {"stored": {f"{name}_bytes": 1023 * (1 << 50) for name in ("referenced", "exclusive", "fair_share", "new")}}
    found = reply(row(1, *names) | huge, row(2, names[0], partial=True), row(3))
    kept = [{"digest": digest(1), "names": list(names)}]
    held = {"delete": [{"repository": names[0], "digest": digest(1)}]}
    return [
        *lines_of(found),
        *lines_of(found, untagged=True),
        *partial_lines(chosen(found, "new", untagged=False, partial=True), found, "source"),
        *freed_lines(freed_reply(names=list(names), kept=kept, collection=held), "source"),
        *similar_lines(similar_reply(*names[:2]), "source"),
    ]


def test_a_terminal_is_not_obeyed() -> None:
    assert all(line.isprintable() for line in all_lines(EVIL, EVIL + "b"))


def test_lines_are_at_most_100_wide_unless_a_name_is_wider() -> None:
    assert max(map(len, all_lines("team/shop/api:v41", "x/" * 20 + "y:1"))) <= 100
    long = "n" * 150
    wide = [line for line in all_lines(long, "b:1") if len(line) > 100]
    assert wide
    assert all(long in line for line in wide)
