"""Where a cache is, whether it is there, and how news of it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chunkd.errors import CacheUnusable
from chunkd.model import METADATA_ALONE, Cache, CacheState
from chunkd.sources import cache as caches
from chunkd.sources import filesystems
from chunkd.sources.cache import ServedCache, check_usable, idle_state


def test_a_root_that_is_there_is_not_stale(tmp_path: Path) -> None:
    cache = ServedCache(1, str(tmp_path))
    status = cache.check_root()
    assert status is not None
    cache.accept(status)
    assert (cache.device, cache.inode, cache.stale) == (tmp_path.stat().st_dev, tmp_path.stat().st_ino, "")


def test_a_root_that_is_missing_is_stale_until_it_returns(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = ServedCache(1, str(root))
    assert cache.check_root() is None
    assert cache.stale == "its root can't be reached: No such file or directory"
    root.mkdir()
    assert cache.check_root() is not None
    assert cache.stale == ""
    root.rmdir()
    root.write_bytes(b"")
    assert cache.check_root() is None
    assert cache.stale == "its root is no folder"
    root.unlink()
    root.symlink_to("nowhere")
    assert cache.check_root() is None


def test_a_root_on_another_device_is_stale_until_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ServedCache(1, str(tmp_path))
    status = cache.check_root()
    assert status is not None
    cache.accept(status)
    fields = list(status)
    fields[2] += 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda *_, **__: os.stat_result(fields))
        assert cache.check_root() is None
        assert cache.stale.endswith(f"run `chunkd scan --accept {tmp_path}`")
    assert cache.check_root() is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda *_, **__: os.stat_result(fields))
        cache.accept(os.stat(tmp_path))
        assert cache.check_root() is not None


def test_a_root_that_was_never_seen_may_be_on_any_device(tmp_path: Path) -> None:
    assert ServedCache(1, str(tmp_path), device=0).check_root() is not None


def test_the_mount_that_a_path_belongs_to() -> None:
    cache = ServedCache(1, "/c", mounts={"library": 7, "library/deep": 8, "lib": 9})
    found = [cache.mount_of(path) for path in ("library", "library/x", "library/deep/x", "library2", "lib/x", "x", "")]
    assert found == ["library", "library", "library/deep", "", "lib", "", ""]


def test_a_root_that_is_not_the_recorded_one_tells_of_no_mount(tmp_path: Path) -> None:
    """It was unmounted under the scan: what lies on the device below it is no mount."""
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    device = tmp_path.stat().st_dev
    for recorded in (0, device + 1, device):
        cache = ServedCache(1, str(tmp_path), recorded)
        cache.note_mount("blobs/sha256")
        assert cache.mounts == {}


@pytest.mark.parametrize(
    ("cache", "watching", "state", "reason"),
    [
        (ServedCache(1, "/c"), True, "watched", None),
        (ServedCache(1, "/c"), False, "unwatched", "the watcher does not live"),
        (ServedCache(1, "/c", unwatched="limit"), True, "unwatched", "limit"),
        (ServedCache(1, "/c", unwatched="limit"), False, "unwatched", "limit"),
        (ServedCache(1, "/c", polled="nfs"), True, "polled", "nfs"),
        (ServedCache(1, "/c", polled="nfs", unwatched="limit"), False, "polled", "nfs"),
        (ServedCache(1, "/c", stale="gone", polled="nfs", unwatched="limit"), True, "stale", "gone"),
    ],
)
def test_the_state_that_is_shown(cache: ServedCache, watching: bool, state: str, reason: str | None) -> None:
    assert cache.state(watching) == CacheState("/c", (), state, reason, ())


def test_layouts_are_shown_and_recorded_in_order(tmp_path: Path) -> None:
    cache = ServedCache(1, str(tmp_path), 7, 8, {"oci", "flat"}, layerless="xz")
    assert cache.record() == Cache(str(tmp_path), 7, 8, ("flat", "oci"), "xz")
    assert cache.state(True).layouts == ("flat", "oci")
    shown = idle_state(cache.record())
    assert (shown.state, shown.reason, shown.warnings) == ("idle", None, cache.state(True).warnings)


def test_what_deserves_a_warning_gets_one(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path))
    assert caches.warnings(cache) == ()
    [warning] = caches.warnings(cache._replace(layouts=("oci",), layerless=METADATA_ALONE))
    assert "discard_unpacked_layers" in warning
    [warning] = caches.warnings(cache._replace(layouts=("oci",), layerless="squashfs image, xz"))
    assert "discard_unpacked_layers" not in warning
    assert "squashfs image, xz" in warning
    (tmp_path / "photos").mkdir()
    [warning] = caches.warnings(cache)
    assert "no blob was recognised" in warning
    assert caches.warnings(cache._replace(layouts=("flat",))) == ()
    (tmp_path / "overlay-images").mkdir()
    [warning] = caches.warnings(cache)
    assert "unpacked image store" in warning


@pytest.mark.parametrize("name", ["blobs", "docker", "index.json", "oci-layout", "sha256"])
def test_a_store_without_blobs_yet_is_not_odd(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert caches.warnings(Cache(str(tmp_path))) == ()


def test_what_can_be_no_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_usable(str(tmp_path))
    with pytest.raises(CacheUnusable, match="does not exist; name the folder"):
        check_usable(str(tmp_path / "nothing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheUnusable, match="is no folder"):
        check_usable(str(tmp_path / "file"))
    for error, said in (
        (PermissionError(13, "Permission denied"), "permission denied; run chunkd as"),
        (OSError(5, "Input/output error"), "can't be listed: Input/output error"),
    ):

        def refuse(_: str, error: OSError = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", refuse)
            with pytest.raises(CacheUnusable, match=said):
                check_usable(str(tmp_path))


# --- file systems -----------------------------------------------------------------------------------------------------

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /srv rw shared:7 - nfs4 host:/export rw
24 22 0:22 / /srv/local rw - xfs /dev/vdb rw
25 22 0:23 / /mnt/with\040space rw - fuse.sshfs host: rw
26 22 0:24 / /twice rw - nfs host:/a rw
27 22 0:25 / /twice rw - ext4 /dev/vdc rw
28 22 0:26 / /twin rw - 9p host rw
"""
BSD = b"""/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
//user@host/share on /Volumes/a (b) on c (smbfs, nodev, nosuid, mounted by user)
"""


@pytest.mark.parametrize(
    ("path", "kind", "polled"),
    [
        ("/var", "ext4", False),
        ("/srv/registry", "nfs4", True),
        ("/srv/local/registry", "xfs", False),
        ("/srv/locals", "nfs4", True),
        ("/mnt/with space/x", "fuse.sshfs", True),
        ("/twice/x", "ext4", False),
        ("/twin", "9p", True),
        ("/twins", "ext4", False),
    ],
)
def test_the_file_system_under_a_path(path: str, kind: str, polled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: MOUNTINFO)
    assert filesystems.file_system(path) == kind
    assert filesystems.polled_because(path) == (f"events do not come from {kind}" if polled else None)


def test_the_file_system_as_mac_os_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, BSD))
    assert filesystems.file_system("/usr") == "apfs"
    assert filesystems.polled_because("/Volumes/a (b) on c/x") == "events do not come from smbfs"


def test_the_machine_that_runs_this_has_a_file_system(tmp_path: Path) -> None:
    assert filesystems.file_system(str(tmp_path))
