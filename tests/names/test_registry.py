from __future__ import annotations

import os
from pathlib import Path

import pytest

from chunkd.model import Digest
from chunkd.names import registry
from chunkd.names.name import Name, Part, Standing
from chunkd.names.registry import read_registry
from chunkd.sources.beneath import Beneath

A, B, C = (Digest("sha256", letter * 64) for letter in "abc")


class Tree:
    """A registry's folder `repositories`, as distribution writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "repositories").mkdir()

    def manifests(self, repository: str) -> Path:
        return self.root / "repositories" / repository / "_manifests"

    def link(self, path: Path, digest: Digest, at_ns: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "link").write_text(str(digest))
        os.utime(path / "link", ns=(at_ns, at_ns))

    def push(self, repository: str, tag: str, digest: Digest, at_ns: int) -> None:
        self.hold(repository, digest, at_ns)
        tags = self.manifests(repository) / "tags" / tag
        self.link(tags / "index" / digest.algorithm / digest.hex, digest, at_ns)
        self.link(tags / "current", digest, at_ns)

    def hold(self, repository: str, digest: Digest, at_ns: int) -> None:
        self.link(self.manifests(repository) / "revisions" / digest.algorithm / digest.hex, digest, at_ns)

    def read(self) -> dict[str, Part]:
        with Beneath(str(self.root)) as root:
            found = list(filter(None, read_registry(root)))
        assert all(part.source == "registry" for part in found)
        assert len({part.where for part in found}) == len(found)
        return {part.where: part for part in found}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def held(repository: str, digest: Digest, at_ns: int) -> Name:
    return Name("", repository, "", digest, at_ns, Standing.HELD)


def test_a_tag_that_moved(tree: Tree) -> None:
    for at_ns, digest in enumerate((B, A, C), 100):
        tree.push("team/app", "latest", digest, at_ns)
    tree.push("team/app", "v1", A, 200)
    tree.hold("team/app", Digest("sha512", "d" * 128), 300)
    assert tree.read() == {
        "team/app": Part(
            "registry",
            "team/app",
            (
                Name("team/app:latest", "team/app", "latest", C, 102),
                Name("team/app:latest", "team/app", "latest", A, 101, Standing.EARLIER),
                Name("team/app:latest", "team/app", "latest", B, 100, Standing.EARLIER),
                Name("team/app:v1", "team/app", "v1", A, 200),
                held("team/app", A, 200),
                held("team/app", B, 100),
                held("team/app", C, 102),
                held("team/app", Digest("sha512", "d" * 128), 300),
            ),
        )
    }


def test_repositories_within_repositories(tree: Tree) -> None:
    for at_ns, name in enumerate(("a", "a/b", "a/b/c", "z", "x/y/z")):
        tree.push(name, "v", A, at_ns)
    found = tree.read()
    assert list(found) == ["a", "a/b", "a/b/c", "x/y/z", "z"]
    assert {part.names[0].text for part in found.values() if part.names} == {f"{name}:v" for name in found}


def test_a_repository_without_tags(tree: Tree) -> None:
    tree.hold("harbor/app", A, 5)
    assert tree.read()["harbor/app"].names == (held("harbor/app", A, 5),)


def test_a_restored_backup_has_no_order(tree: Tree) -> None:
    for digest in (A, B):
        tree.push("app", "latest", digest, 100)
    tree.push("app", "v1", A, 100)
    part = tree.read()["app"]
    assert part.names is not None
    assert part.problem.startswith("1 tags")


def test_what_is_written_right_now(tree: Tree) -> None:
    """A tag without its link, an empty link, and half of one: each is left out, and the others are there."""
    for tag in ("a", "b", "c", "d"):
        tree.push("app", tag, A, 100)
    tags = tree.manifests("app") / "tags"
    (tags / "a/current/link").unlink()
    (tags / "b/current/link").write_text("")
    (tags / "c/current/link").write_text(str(B)[:40])
    part = tree.read()["app"]
    assert [name.tag for name in part.names or () if name.standing is Standing.NAMED] == ["d"]
    # What they pointed to is still known.
    assert {name.tag for name in part.names or () if name.standing is Standing.EARLIER} == {"a", "b", "c"}
    assert part.problem.startswith("2 left out")


def test_a_deleted_revision(tree: Tree) -> None:
    tree.push("app", "v1", A, 100)
    (tree.manifests("app") / "revisions/sha256" / A.hex / "link").unlink()
    assert tree.read()["app"].names == (Name("app:v1", "app", "v1", A, 100),)


def test_hostile_links(tree: Tree, tmp_path: Path) -> None:
    tree.push("app", "good", A, 100)
    tags = tree.manifests("app") / "tags"
    for tag, content in (
        ("path", "../../../../etc/passwd"), ("long", "a" * 10_000), ("binary", "\0" * 71), ("upper", str(A).upper()),
    ):  # fmt: skip
        (tags / tag / "current").mkdir(parents=True)
        (tags / tag / "current/link").write_text(content)
    secret = tmp_path / "secret"
    secret.write_text(str(B))
    (tags / "linked/current").mkdir(parents=True)
    (tags / "linked/current/link").symlink_to(secret)
    (tags / "fifo/current").mkdir(parents=True)
    os.mkfifo(tags / "fifo/current/link")
    (tags / "folder/current/link").mkdir(parents=True)
    (tags / "elsewhere").symlink_to(tags / "good")
    (tags / "no tag\n").mkdir()
    revisions = tree.manifests("app") / "revisions/sha256"
    for name in ("short", "A" * 64, "a" * 63, "b" * 64):
        (revisions / name).mkdir()
    (revisions / ("b" * 64) / "link").symlink_to(secret)
    (revisions.parent / "md5" / ("a" * 32)).mkdir(parents=True)
    part = tree.read()["app"]
    assert [(name.text, name.digest) for name in part.names or ()] == [("app:good", A), ("", A)]


def test_folders_that_are_no_repositories(tree: Tree, tmp_path: Path) -> None:
    tree.push("good", "v", A, 1)
    repositories = tmp_path / "repositories"
    (repositories / "empty/deeper").mkdir(parents=True)
    (repositories / "_private/app/_manifests/tags").mkdir(parents=True)
    (repositories / "linked").symlink_to(repositories / "good")
    (repositories / "file").write_text("x")
    (repositories / "good/_uploads/uuid/_manifests").mkdir(parents=True)
    (repositories / "odd\n\x1b[2J" / "_manifests").mkdir(parents=True)
    assert set(tree.read()) == {"good", "odd\n\x1b[2J"}


def test_without_the_folder_nothing_is_known(tmp_path: Path) -> None:
    with Beneath(str(tmp_path)) as root:
        [part] = filter(None, read_registry(root))
    assert (part.where, part.names) == ("", None)


def test_an_unreadable_repository_is_a_part_without_names(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "b/c", "d"):
        tree.push(name, "v", A, 1)
    whole = Beneath.folders

    def folders(root: Beneath, folder: str) -> list[str]:
        if folder.endswith(("/b", "/d/_manifests/tags")):
            raise PermissionError(13, "Permission denied")
        return whole(root, folder)

    monkeypatch.setattr(Beneath, "folders", folders)
    found = tree.read()
    assert {where: part.names is None for where, part in found.items()} == {"a": False, "b": True, "d": True}


def test_depth_and_number_are_bounded(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repositories" / "/".join("d" * 60)).mkdir(parents=True)
    assert [part.names for part in tree.read().values()] == [None]
    monkeypatch.setattr(registry, "MOST_REPOSITORIES", 10)
    for number in range(20):
        tree.push(f"many/app{number}", "v", A, 1)
    tree.push("many", "v", A, 1)
    found = tree.read()
    assert {where: found[where].names is None for where in ("many", "many/")} == {"many": False, "many/": True}
    monkeypatch.undo()
    monkeypatch.setattr(registry, "MOST_NAMES", 7)
    assert sum(len(part.names or ()) for part in tree.read().values()) == 7
