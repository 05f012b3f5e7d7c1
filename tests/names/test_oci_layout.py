from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from chunkd.model import Digest
from chunkd.names import oci_layout
from chunkd.names.name import Name, Part, Standing
from chunkd.names.oci_layout import read_layout
from chunkd.sources.beneath import Beneath

A, B = (Digest("sha256", letter * 64) for letter in "ab")


def row(digest: object, name: object = None, image_name: object = None) -> dict[str, Any]:
    annotations: dict[str, object] = {"other": "x"}
    if name is not None:
        annotations["org.opencontainers.image.ref.name"] = name
    if image_name is not None:
        annotations["io.containerd.image.name"] = image_name
    return {
        "mediaType": "m",
        "size": 7,
        "digest": digest if digest is None else str(digest),
        "annotations": annotations,
    }


def read(folder: Path, content: object, where: str = "") -> Part:
    path = folder / where / "index.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with Beneath(str(folder)) as root:
        part = read_layout(root, where, "team/app")
    assert (part.source, part.where) == ("layout", where)
    assert part.names is None or part.at_ns == path.stat().st_mtime_ns
    return part


@pytest.mark.parametrize("where", ["", "team/app"])
def test_names(tmp_path: Path, where: str) -> None:
    rows = [
        row(A, "v1"), row(B, "other/app:v2"), row(A, "v3", "docker.io/library/x:v4"), row(B), row(B, ""), row(A, 7),
        row(B, "any text: \x1b[2J"), {"digest": str(A)}, {"digest": str(A), "annotations": []},
    ]  # fmt: skip
    part = read(tmp_path, {"schemaVersion": 2, "manifests": rows}, where)
    assert part.problem == ""
    assert part.names == (
        Name("team/app:v1", "team/app", "v1", A),
        Name("other/app:v2", "other/app", "v2", B),
        Name("docker.io/library/x:v4", "docker.io/library/x", "v4", A),
        Name("", "team/app", "", B, 0, Standing.HELD),
        Name("", "team/app", "", B, 0, Standing.HELD),
        Name("", "team/app", "", A, 0, Standing.HELD),
        Name("any text: \x1b[2J", "any text: \x1b[2J", "", B),
        Name("", "team/app", "", A, 0, Standing.HELD),
        Name("", "team/app", "", A, 0, Standing.HELD),
    )


def test_surrogates_and_paths_are_only_text(tmp_path: Path) -> None:
    part = read(tmp_path, {"manifests": [row(A, "\ud800"), row(B, "../../../etc/passwd")]})
    assert [name.text for name in part.names or ()] == ["\ud800", "../../../etc/passwd"]


@pytest.mark.parametrize("document", [{}, {"manifests": []}, {"manifests": None}])
def test_a_layout_of_nothing(tmp_path: Path, document: object) -> None:
    part = read(tmp_path, document)
    assert (part.names, part.problem) == ((), "")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"7", b'{"manifests": 7}', b'{"manifests": {}}', b'{"manifests":[],"manifests":[]}'),
        json.dumps({"manifests": [row(A, "v1")]}).encode()[:-2],
        b'{"manifests":' + b"[" * 100_000,
        b'{"manifests":[]}' + b" " * oci_layout.MOST_BYTES,
    ],
)
def test_an_empty_or_broken_one_has_no_names_for_now(tmp_path: Path, content: bytes) -> None:
    part = read(tmp_path, content)
    assert part.names is None
    assert part.problem


@pytest.mark.parametrize("bad", [None, "sha256:" + "A" * 64, "", "sha256:../x", "md5:" + "a" * 32])
def test_a_row_without_a_digest_is_left_out(tmp_path: Path, bad: str | None) -> None:
    part = read(tmp_path, {"manifests": [row(bad, "v1"), row(A, "v2"), 7]})
    assert [name.tag for name in part.names or ()] == ["v2"]
    assert part.problem.startswith("2 left out")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    with Beneath(str(tmp_path)) as root:
        assert read_layout(root, "", "x").names is None
        path.symlink_to("/etc/passwd")
        assert read_layout(root, "", "x").names is None
        path.unlink()
        os.mkfifo(path)
        assert read_layout(root, "", "x").names is None
        path.unlink()
        path.mkdir()
        assert read_layout(root, "", "x").names is None
        (tmp_path / "link").symlink_to(tmp_path)
        assert read_layout(root, "link", "x").names is None
