from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import bolts
from chunkd.model import Digest
from chunkd.names import containerd, name
from chunkd.names.containerd import DATABASE, read_containerd
from chunkd.names.name import Name, Part
from chunkd.sources.beneath import Beneath

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")


def parts(root: Path, contents: dict[bytes, Any] | bytes) -> list[Part]:
    path = root / DATABASE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents if isinstance(contents, bytes) else bolts.database(contents))
    with Beneath(str(root)) as beneath:
        return read_containerd(beneath)


def images(**by_name: Any) -> dict[bytes, Any]:
    return {b"v1": {b"version": b"\x02", b"k8s.io": {b"images": {key.encode(): row for key, row in by_name.items()}}}}


def test_images_of_all_namespaces(tmp_path: Path) -> None:
    contents: dict[bytes, Any] = {
        b"v1": {
            b"version": b"\x02",
            b"default": {b"images": {b"localhost:5000/app": bolts.image(str(B))}},
            b"empty": {b"leases": {}},
            b"k8s.io": {
                b"containers": {b"x": {b"image": b"docker.io/library/nginx:latest"}},
                b"images": {
                    b"docker.io/library/nginx:latest": bolts.image(str(A), 7),
                    f"docker.io/library/nginx@{A}".encode(): bolts.image(str(A), 8),
                    f"{C}".encode(): bolts.image(str(A), 9),
                },
            },
        }
    }
    assert parts(tmp_path, contents) == [
        Part("containerd", "default", (Name("localhost:5000/app", "localhost:5000/app", "", B),)),
        Part("containerd", "empty", ()),
        Part(
            "containerd",
            "k8s.io",
            (
                Name("docker.io/library/nginx:latest", "docker.io/library/nginx", "latest", A, 7_000_000_000),
                Name(f"docker.io/library/nginx@{A}", "docker.io/library/nginx", "", A, 8_000_000_000),
                Name(str(C), "", "", A, 9_000_000_000),
            ),
        ),
    ]


@pytest.mark.parametrize("contents", [{}, {b"v1": b"no bucket"}, {b"v2": {}}])
def test_a_database_without_images(tmp_path: Path, contents: dict[bytes, Any]) -> None:
    assert parts(tmp_path, contents) == []


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    long = "x" * (name.MOST_NAME_CHARACTERS + 1)
    rows = {
        "good": bolts.image(str(A)), "bad": bolts.image("sha256:../../etc"), "none": {b"target": {}}, "bare": {},
        long: bolts.image(str(A)), "value": b"no bucket", "\x1b[2J\n../..": bolts.image(str(B)),
    }  # fmt: skip
    [part] = parts(tmp_path, images(**rows))
    assert part.names is not None
    assert {(one.text, one.digest) for one in part.names} == {("good", A), ("\x1b[2J\n../..", B)}
    assert "3 left out" in part.problem
    assert "1 left out" in part.problem


def test_the_number_of_names_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containerd, "MOST_NAMES", 5)
    [part] = parts(tmp_path, images(**{f"n{at:02}": bolts.image(str(A)) for at in range(12)}))
    assert part.names is not None
    assert len(part.names) == 5
    assert "7 left out" in part.problem


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x03" + bytes(14), b"\x01" + b"\xff" * 14, b"\x01" + bytes(14)])
def test_a_time_that_is_none(tmp_path: Path, value: bytes) -> None:
    [part] = parts(tmp_path, images(n=dict(bolts.image(str(A))) | {b"updatedat": value}))
    assert part.names == (Name("n", "n", "", A, 0),)


def without_names(found: list[Part]) -> bool:
    return [(part.source, part.names) for part in found] == [("containerd", None)] and bool(found[0].problem)


def test_what_can_not_be_read_is_without_names(tmp_path: Path) -> None:
    good = bolts.database(images(n=bolts.image(str(A))))
    assert without_names(parts(tmp_path, b""))
    assert without_names(parts(tmp_path, good[:-1024]))
    assert without_names(parts(tmp_path, good[:3072] + bytes(len(good) - 3072)))
    path = tmp_path / DATABASE
    path.unlink()
    with Beneath(str(tmp_path)) as root:
        assert without_names(read_containerd(root))
        path.symlink_to("/etc/passwd")
        assert without_names(read_containerd(root))
        path.unlink()
        os.mkfifo(path)
        assert without_names(read_containerd(root))
        path.unlink()
        path.write_bytes(good)
        path.chmod(0)
        if os.geteuid():  # root may read all
            assert without_names(read_containerd(root))
