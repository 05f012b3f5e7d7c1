"""The demo's images are a valid OCI layout, the same each time; and `make run` ends cleanly."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
TIMEOUT_S = 60


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of 120 files, with things in it that belong in no image."""
    source = tmp_path / "source"
    (source / "package").mkdir(parents=True)
    for number in range(120):
        name = f"package/file{number}.py" if number % 2 else f"file{number}.py"
        (source / name).write_text(f"number = {number}\n" * (number + 1))
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "file1.pyc").write_bytes(b"cached")
    (source / "link").symlink_to("file0.py")
    os.mkfifo(source / "fifo")
    return source


def build(layout: Path, source: Path) -> list[str]:
    """The digests in the order in which they landed."""
    command = [sys.executable, str(BENCH / "demo_images.py"), str(layout), str(source)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.split()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """The bytes that a descriptor means, checked against it."""
    path = layout / "blobs" / str(descriptor["digest"]).replace(":", "/")
    data = path.read_bytes()
    assert (len(data), "sha256:" + hashlib.sha256(data).hexdigest()) == (descriptor["size"], descriptor["digest"])
    return data


def test_the_images_are_a_valid_oci_layout(source: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    landed = build(layout, source)
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert [image["annotations"]["org.opencontainers.image.ref.name"] for image in index["manifests"]] == [
        "v1",
        "v2",
        "v3",
    ]
    named: set[str] = set()
    for image in index["manifests"]:
        manifest = json.loads(blob(layout, image))
        config = json.loads(blob(layout, manifest["config"]))
        plain = [gzip.decompress(blob(layout, layer)) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(data).hexdigest() for data in plain]
        named |= {part["digest"] for part in (image, manifest["config"], *manifest["layers"])}
    # Nothing else is there, nothing landed twice, and nothing in flight was left behind.
    assert sorted(landed) == sorted(named)
    assert {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()} == named
    assert {path.name for path in layout.iterdir()} == {"blobs", "index.json", "oci-layout"}


def test_the_versions_share_change_and_add(source: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    build(layout, source)
    index = json.loads((layout / "index.json").read_text())
    layers = [[layer["digest"] for layer in json.loads(blob(layout, image))["layers"]] for image in index["manifests"]]
    first, second, third = layers
    assert [first[number] == second[number] == third[number] for number in range(6)] == [True] * 2 + [False] * 4
    assert len({*first, *second, *third}) == 14

    def members(digests: list[str]) -> dict[str, bytes]:
        found = {}
        for digest in digests:
            with tarfile.open(layout / "blobs" / digest.replace(":", "/"), "r:gz") as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file
                    found[member.name] = file.read()
        return found

    before, after = members(first), members(second)
    prefix = "usr/lib/demo/"
    originals = {prefix + name: data for name, data in files(source).items() if "__pycache__" not in name}
    del originals[prefix + "link"]
    assert before == originals
    changed = [name for name in before if after[name] != before[name]]
    added = [name for name in after if name not in before]
    assert 0 < len(changed) < len(before) / 4
    assert all(after[name] == before[name] + b"# changed in v2\n" for name in changed)
    assert added
    assert all(name.startswith("usr/lib/demo-v2/") for name in added)


def test_the_same_files_give_the_same_blobs(source: Path, tmp_path: Path) -> None:
    first = build(tmp_path / "first", source)
    for path in source.rglob("*.py"):
        os.utime(path, (1, 1))
    assert build(tmp_path / "second", source) == first
    assert files(tmp_path / "first") == files(tmp_path / "second")


def running(session: int) -> list[str]:
    """What still runs in this session, on Linux; elsewhere the socket's end must do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            # proc(5): the name, in brackets, may hold anything; the session is the fourth field after it.
            if (process / "stat").read_text().rpartition(")")[2].split()[3] == str(session):
                found.append((process / "cmdline").read_text())
    return found


def test_make_run_serves_a_cache_and_ends_cleanly(source: Path, tmp_path: Path) -> None:
    layout, run = tmp_path / "layout", tmp_path / "run"
    build(layout, source)
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHUNKD_")}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(BENCH / "demo.py"), str(run), str(layout)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr
    log = ""
    for line in process.stderr:  # which ends, with the program, when the daemon does not get ready in time
        log += line
        if " ready: " in line:
            break
    process.send_signal(signal.SIGINT)
    said, rest = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, log + rest
    assert said.endswith("stopped\n")
    socket = next(line.split()[1] for line in said.splitlines() if line.startswith("socket"))
    assert not Path(socket).exists()
    assert running(process.pid) == []


# The program on a small folder, and no pause between two blobs.
QUICK = """
import sys, sysconfig
sys.path.insert(0, sys.argv.pop(1))
source = sys.argv.pop(1)
sysconfig.get_path = lambda name: source
import demo
demo.LANDING_PAUSE_S = 0.01
sys.exit(demo.main())
"""


def test_make_run_shows_the_images_as_they_get_their_names(source: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHUNKD_")}
    env |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", QUICK, str(BENCH), str(source), str(tmp_path / "run")],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    said, patience = "", threading.Timer(TIMEOUT_S, process.terminate)
    patience.start()
    for line in process.stdout:  # which ends with the program
        said += line
        if "$ chunkd freed demo:v1" in said and line.startswith("layers "):  # the live figures go on
            break
    patience.cancel()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, said + rest
    assert rest.endswith("stopped\n")
    assert running(process.pid) == []
    tables = [part.partition("\n$ ")[0] for part in said.split("$ chunkd images\n")[1:]]
    # An image may get its name while the one before is shown.
    assert [tables[-1].count(f"\ndemo:{name} ") for name in ("v1", "v2", "v3")] == [1, 1, 1]
    assert "\ndemo:v1 " in tables[0]
    freed = said.partition("$ chunkd freed demo:v1\n")[2]
    assert "1 image (demo:v1)\n" in freed
    assert "warning" not in said
