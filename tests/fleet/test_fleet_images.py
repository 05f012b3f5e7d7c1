"""The images of a fleet are those of one index that has the blobs and the names of all hosts."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import forked
from chunkd.fleet import tables
from chunkd.fleet.images import images
from chunkd.fleet.merge import sources_of
from chunkd.fleet.store import Store
from daemon import PATIENCE_S, Home
from stores import content_of
from test_commands import filled_layout, filled_registry
from test_registry_collection import Layout

# What says of when and of whom the figures are.
OWN = {"as_of", "names_as_of", "commit", "fleet"}


def second_layout(home: Home) -> Path:
    """Another host's: one image that the first has too, by another name; and one of its own, on a base of the first."""
    made = Layout(home.root / "second")
    rows = [(made.image(1, 3), "mirror/api:v2"), (made.image(1, 12), "shop/own:v1"), (made.image(8, 9), "shop/half:v1")]
    document = {"schemaVersion": 2, "manifests": [
        row | {"annotations": {"org.opencontainers.image.ref.name": name}} for row, name in rows
    ]}  # fmt: skip
    (made.path / "index.json").write_text(json.dumps(document))
    return made.path


def listed(home: Home, *args: object) -> dict[str, Any]:
    done = forked.run(
        ["merge", str(home.root / "store"), "--images", "--json", *map(str, args)], home.environ, PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def own(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name not in OWN}


@pytest.mark.parametrize("by", ["image", "repository"])
def test_images_of_two_hosts_are_those_of_one_index(home: Home, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = filled_registry(home)
    caches = [filled_layout(home).path, registry, second_layout(home)]
    hosts = [caches[:2], caches[2:]]
    for number, own_caches in enumerate(hosts):
        state = home.root / f"state-{number}"
        home.scan(*own_caches, state=state)
        assert home.command("export", home.root / "store", state=state).returncode == 0
    home.scan(*caches)
    expected = json.loads(home.command("images", "--json", "--by", by).stdout)
    found = listed(home, "--by", by)
    assert own(found) == own(expected)
    rows = found["images" if by == "image" else "repositories"]
    assert len(rows) > 5
    assert any(row["chunks"] and row["chunks"]["exclusive_bytes"] for row in rows)
    assert found["names_as_of"]
    assert len(found["fleet"]["sources"]) == 2
    text = forked.run(["merge", str(home.root / "store"), "--images", "--by", by], home.environ, PATIENCE_S)
    assert text.returncode == 0, text.stderr
    assert "shop/own" in text.stdout
    assert "source" in text.stdout
    assert "\x1b" not in text.stdout
    written = content_of(home.root / "store")
    assert "shop/own" in written
    assert str(home.root) not in written, "no path of a host is told"
    monkeypatch.setattr(tables, "ROWS_A_RANGE", 2)
    store = Store(str(home.root / "store"))
    assert own(images(store, sources_of(store), by)) == own(found)


def test_blobs_of_images_strewn_over_hosts(home: Home) -> None:
    """Each host has some blobs of a layout, and its names. What one lacks another has."""
    whole = filled_layout(home).path
    draw = random.Random(3)
    blobs = sorted((whole / "blobs" / "sha256").iterdir())
    for number in range(3):
        part = home.root / f"part-{number}"
        (part / "blobs" / "sha256").mkdir(parents=True)
        for name in ("index.json", "oci-layout"):
            if (whole / name).exists():
                shutil.copyfile(whole / name, part / name)
        for at, path in enumerate(blobs):
            if at % 3 == number or draw.random() < 0.3:
                os.link(path, part / "blobs" / "sha256" / path.name)
        home.scan(part, state=home.root / f"state-{number}")
        assert home.command("export", home.root / "store", state=home.root / f"state-{number}").returncode == 0
    home.scan(whole)
    expected = json.loads(home.command("images", "--json").stdout)
    assert own(listed(home)) == own(expected)


def test_under_a_key_there_are_no_images(home: Home) -> None:
    home.scan(filled_layout(home).path)
    key = home.root / "key"
    key.write_text("12" * 32)
    key.chmod(0o600)
    assert home.command("export", home.root / "store", "--key-file", key).returncode == 0
    done = forked.run(["merge", str(home.root / "store"), "--images"], home.environ, PATIENCE_S)
    assert done.returncode == 2
    done = forked.run(["merge", str(home.root / "store"), "--by", "repository"], home.environ, PATIENCE_S)
    assert done.returncode == 2
    assert "shop" not in content_of(home.root / "store")
