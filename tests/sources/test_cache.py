"""Where a cache is, whether it is there, and how news of it comes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.errors import CacheUnusable
from chunkd.model import METADATA_ALONE, Cache, CacheState, Cause, FileMark, Hint, Timing
from chunkd.sources import filesystems, layouts
from chunkd.sources.activity import Activity
from chunkd.sources.cache import Request, ServedCache
from chunkd.sources.folder import FolderSource, check_usable
from chunkd.sources.listing import Listed, ScanEnd
from chunkd.sources.root import Root
from chunkd.sources.source import Entry, Observation, RootMark, Seen
from chunkd.sources.status import LAYERLESS, CacheStatus, idle_state, state_of, warnings, warnings_of
from faulty import FaultySource, FaultyView, faulty, on_device
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, Deaf, World, land, logged, oci, world_in

# --- what it opens unasked --------------------------------------------------------------------------------------------


def put(world: World, *paths: Path, cause: Cause = Cause.MOVED_IN) -> list[Observation]:
    """What is observed of an event of each of these places."""
    cache = world.caches[1]
    for path in paths:
        cache.hints.put(Hint(world.place(path), cause, by_event=cause is not Cause.LISTED))
    cache.observations.clear()
    world.step()
    return list(cache.observations)


def test_a_blob_that_an_event_names_is_opened_as_it_is_observed(world: World) -> None:
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    [observed] = put(world, path)
    assert observed.opened is not None
    assert observed.seen is not None
    assert observed.opened.mark == observed.seen.mark
    with open(observed.opened.descriptor, "rb", closefd=False) as file:
        assert file.read() == LAYER.stored
    world.caches[1].hints.news.clear()
    world.caches[1].close_descriptor(observed.opened.descriptor)
    assert not world.caches[1].hints.news.is_set(), "the thread would be in the way of the blob's worker"
    world.step()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(observed.opened.descriptor)


def test_few_blobs_are_opened_unasked(world: World) -> None:
    first, second = (land(oci(world.roots[0], content), content.stored) for content in (LAYER, LIKE_IT))
    assert [observed.opened for observed in put(world, first, second)] == [None, None], "many land"
    for cause in (Cause.LISTED, Cause.CREATED):  # the latter may still be written
        assert [observed.opened for observed in put(world, first, cause=cause)] == [None]
    opened = [observed.opened for _ in range(4) for observed in put(world, first)]
    assert [one is not None for one in opened] == [True, True, False, False]
    for one in opened:
        if one is not None:
            world.caches[1].close_descriptor(one.descriptor)
    world.step()
    [again] = put(world, second)
    assert again.opened is not None
    world.caches[1].close_descriptor(again.opened.descriptor)
    world.step()


def test_nothing_else_is_opened_unasked(world: World) -> None:
    root = world.roots[0]
    target = land(oci(root, LIKE_IT), LIKE_IT.stored)
    oci(root, LAYER).symlink_to(target)
    os.mkfifo(oci(root, PLAIN))
    land(root / "no-blob", b"x")
    for path in (oci(root, LAYER), oci(root, PLAIN), root / "no-blob", oci(root, OTHER)):
        assert [observed.opened for observed in put(world, path)] == [None]


# --- its root ---------------------------------------------------------------------------------------------------------


def root_of(path: Path, *, empty: bool = False) -> tuple[Root, FaultySource]:
    source = FaultySource(str(path))
    return Root(source, Cache(str(path)), empty=empty), source


def accepted(root: Root) -> None:
    mark = root.check()
    assert mark is not None
    root.accept(mark)


def test_a_root_that_is_there_is_not_stale(tmp_path: Path) -> None:
    root, _ = root_of(tmp_path)
    accepted(root)
    assert (root.device, root.inode, root.stale) == (tmp_path.stat().st_dev, tmp_path.stat().st_ino, "")
    assert not root.missed


def test_a_root_that_is_missing_is_stale_until_it_returns(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    root, _ = root_of(path)
    assert root.check() is None
    assert root.stale == "its root can't be reached: No such file or directory"
    path.mkdir()
    assert root.check() is not None
    assert root.stale == ""
    assert root.missed, "what happened meanwhile is not known"
    path.rmdir()
    path.write_bytes(b"")
    assert root.check() is None
    assert root.stale == "its root is not a folder"
    path.unlink()
    path.symlink_to("nowhere")
    assert root.check() is None


def test_a_root_that_takes_long_to_fail_holds_up_no_scan(world: World) -> None:
    """A look at a bucket takes 18 s to fail: longer than the pause until the next one."""
    land(oci(world.roots[0], LAYER), LAYER.stored)
    source = faulty(world)
    world.settle()
    before = world.totals

    def slow(_: RootMark) -> RootMark:
        world.ahead_s += 3 * Timing().look_at_root_s
        raise OSError(errno.EIO, "the connection failed")

    source.root = slow
    world.scan()
    assert "connection failed" in world.caches[1].status.stale
    assert world.totals == before
    source.root = lambda mark: mark
    world.settle()
    assert (world.caches[1].status.stale, world.totals) == ("", before)


def test_a_root_on_another_device_is_stale_until_it_is_accepted(tmp_path: Path) -> None:
    root, source = root_of(tmp_path)
    accepted(root)
    source.root = lambda mark: mark._replace(device=mark.device + 1)
    assert root.check() is None
    assert root.stale.endswith(f"run `chunkd scan --accept {tmp_path}`")
    source.root = lambda mark: mark
    assert root.check() is not None
    source.root = lambda mark: mark._replace(device=mark.device + 1)
    root.accept(source.look_at_root())
    assert root.check() is not None


def test_a_root_of_which_nothing_is_known_may_be_on_any_device(tmp_path: Path) -> None:
    for recorded, empty in ((0, False), (1 << 40, True)):
        assert Root(FolderSource(str(tmp_path)), Cache(str(tmp_path), recorded), empty=empty).check() is not None
    assert Root(FolderSource(str(tmp_path)), Cache(str(tmp_path), 1 << 40), empty=False).check() is None


def test_the_mount_that_a_path_belongs_to(tmp_path: Path) -> None:
    mounts = (("library", 7), ("library/deep", 8), ("lib", 9))
    root = Root(FolderSource(str(tmp_path)), Cache(str(tmp_path), mounts=mounts), empty=False)
    found = [root.mount_of(path) for path in ("library", "library/x", "library/deep/x", "library2", "lib/x", "x", "")]
    assert found == ["library", "library", "library/deep", "", "lib", "", ""]


def test_a_root_that_is_not_the_recorded_one_tells_of_no_mount(tmp_path: Path) -> None:
    """It was unmounted under the scan: what lies on the device below it is no mount."""
    path = land(oci(tmp_path, LAYER), LAYER.stored)
    status = path.stat()
    mark = FileMark(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
    for recorded in (0, status.st_dev + 1, status.st_dev):
        source = FolderSource(str(tmp_path))
        root = Root(source, Cache(str(tmp_path), recorded), empty=False)
        with source.view() as view:
            root.note_mount(view, str(path.relative_to(tmp_path)), mark)
        assert root.mounts == {}


def on_another_device(source: FaultySource) -> None:
    def moved(seen: Seen) -> Seen:  # to another file system, where a copy has other inodes
        seen = on_device(seen, seen.mark.device + 1)
        return seen._replace(mark=seen.mark._replace(inode=seen.mark.inode + 1))

    def open_(open_it: Callable[[str], tuple[int, Seen]], path: str) -> tuple[int, Seen]:
        descriptor, seen = open_it(path)
        return descriptor, moved(seen)

    source.root = lambda mark: mark._replace(device=mark.device + 1, fsid=mark.fsid + 1)
    source.look = lambda look, path: moved(look(path))
    source.open = open_


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


def test_a_root_that_comes_after_the_start_is_followed(tmp_path: Path) -> None:
    """The index holds nothing of it, and so nothing has to be accepted, wherever it lies."""
    with world_in(tmp_path, "one", "two") as world:
        world.settle()  # both are recorded, and empty
        world.roots[0].rmdir()
        source = faulty(world)
        land(world.roots[1] / LIKE_IT.hex, LIKE_IT.stored)
        world.settle()
        assert world.caches[1].status.stale == "its root can't be reached: No such file or directory"
        world.holds_exactly(LIKE_IT)

        on_another_device(source)  # it was mounted meanwhile
        world.roots[0].mkdir()
        land(oci(world.roots[0], LAYER), LAYER.stored)
        world.pass_s(6)  # nobody asks for a scan
        world.rest()
        assert world.caches[1].status.stale == ""
        world.holds_exactly(LAYER, LIKE_IT)


def test_a_root_that_was_never_there_is_followed_as_soon_as_it_comes(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.roots[0].rmdir()
        world.settle()
        assert world.caches[1].status.stale
        assert world.scanned_at_ns == 0
        land(oci(world.roots[0], LAYER), LAYER.stored)
        world.pass_s(6)
        world.rest()
        world.holds_exactly(LAYER)
        world.settle()
        assert world.scanned_at_ns
    finally:
        world.stop()


@pytest.mark.parametrize("how", ["back", "accepted"])
def test_what_is_listed_of_a_root_that_is_there_again_is_compared(world: World, how: str) -> None:
    """Also when the writer is quick, and compares a folder before the scan has ended."""
    root = world.roots[0]
    gone = land(oci(root, LAYER), LAYER.stored)
    land(oci(root, LIKE_IT), LIKE_IT.stored)
    world.settle()
    if how == "back":
        away = root.rename(world.folder / "away")
        world.pass_s(6)
        (away / gone.relative_to(root)).unlink()
    else:
        on_another_device(faulty(world))
        world.scan()
        gone.unlink()
    assert world.caches[1].status.stale
    world.holds_exactly(LAYER, LIKE_IT)

    if how == "back":
        away.rename(root)
    world.scanner.request("a test", accept=how == "accepted")
    for _ in range(200):
        world.caches[1].step()
        world.writer.turn(0.0)
    assert world.caches[1].status.stale == ""
    assert not world.activity.working()
    world.holds_exactly(LIKE_IT)


def test_a_stale_cache_is_told_of_with_its_reason_when_it_changes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = world.roots[0]
    land(oci(root, LAYER), LAYER.stored)
    world.settle()
    away = root.rename(world.folder / "away")
    caplog.clear()
    world.restart()  # it is away at the start
    world.settle()
    world.settle()
    away_because = world.caches[1].status.stale
    [told] = logged(caplog.records, root, logging.WARNING)
    assert told.args == (str(root), away_because)
    assert os.strerror(errno.ENOENT) in away_because
    caplog.clear()

    root.write_bytes(b"")
    world.pass_s(6)
    world.pass_s(6)
    no_folder_because = world.caches[1].status.stale
    assert no_folder_because not in ("", away_because)
    assert [told.args for told in logged(caplog.records, root, logging.WARNING)] == [(str(root), no_folder_because)]
    caplog.clear()
    root.unlink()
    away.rename(root)
    world.pass_s(6)
    assert world.caches[1].status.stale == ""
    assert [told.levelno for told in logged(caplog.records, root)] == [logging.INFO]
    caplog.clear()

    on_another_device(faulty(world))
    world.settle()
    [told] = logged(caplog.records, root, logging.WARNING)
    assert told.args == (str(root), world.caches[1].status.stale)
    assert f"`chunkd scan --accept {root}`" in world.caches[1].status.stale
    world.holds_exactly(LAYER)


# --- its thread -------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_before_a_scan_starts_is_done_in_one(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    land(oci(world.roots[0], LAYER), LAYER.stored)
    for number in range(3):
        world.scanner.request("a test", verify=number == 1, retry_failed=number == 0)
    cache = world.caches[1]
    while cache.step():
        pass
    ends = [item for item in cache.listings if isinstance(item, ScanEnd)]
    assert [(end.number, end.retry_failed) for end in ends] == [(3, True)]
    assert all(item.verify for item in cache.listings if isinstance(item, Listed))
    world.run()
    assert world.writer.scans.finished == 3
    world.holds_exactly(LAYER)


def test_a_cache_that_does_not_answer_says_for_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    source = FaultySource(str(tmp_path))
    cache = ServedCache(1, Cache(str(tmp_path)), source, Activity())
    assert cache.hung_s() == 0

    def slow(mark: RootMark) -> RootMark:
        for passed_s in (4.0, 4.0, 60.0):
            now_s[0] += passed_s
            seen.append(cache.hung_s())
        return mark

    source.root = slow
    cache.request_scan(Request("a test", 1))
    cache.step()
    while not seen:
        cache.step()
    assert seen[:3] == [0.0, 8.0, 68.0]
    assert cache.hung_s() == 0, "it has answered"


class NoDescriptor(FaultySource):
    """While `full`, the process has no descriptor left."""

    full = False

    @contextlib.contextmanager
    def view(self) -> Iterator[FaultyView]:
        if self.full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with super().view() as view:
            yield view


def test_a_place_that_an_event_named_is_looked_at_again_when_its_root_can_be_opened(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    source = faulty(world, source=NoDescriptor)
    assert isinstance(source, NoDescriptor)
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    source.full = True
    path.unlink()
    world.heard(path, Cause.DELETED)
    assert logged(caplog.records, os.strerror(errno.EMFILE), logging.WARNING)
    world.holds_exactly(LAYER)
    source.full = False
    world.pass_s(61)
    world.holds_exactly()


def refusing(source: FaultySource, *refused: str) -> None:
    def list_it(real: Callable[[str], Iterator[Entry]], folder: str) -> Iterator[Entry]:
        if folder in refused:
            raise PermissionError(13, "Permission denied")
        return real(folder)

    source.list = list_it


class Choosy(Deaf):
    """The system lets nobody watch these folders."""

    refused: tuple[str, ...] = ()

    def enter(self, folder: str) -> None:
        if folder in self.refused:
            raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("layout", [True, False])
def test_what_lies_beside_a_layouts_blobs_and_can_not_be_listed_degrades_nothing(world: World, layout: bool) -> None:
    watcher = Choosy()
    watcher.refused = ("private", "open/private")
    world.make_watcher = lambda _, __: watcher
    source = faulty(world)
    root = world.roots[0]
    paths = [land(oci(root, LAYER), LAYER.stored), land(oci(root / "private", LIKE_IT), LIKE_IT.stored)]
    (root / "open" / "private").mkdir(parents=True)
    if layout:
        (root / "oci-layout").write_bytes(b"{}")
    watcher.refused = ()
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT)

    watcher.refused = ("private", "open/private")
    refusing(source, *watcher.refused)
    world.settle(verify=True)
    status = world.caches[1].status
    assert (status.unlisted_folders, status.watched) == ((0, True) if layout else (2, False))
    world.holds_exactly(LAYER, LIKE_IT)  # nothing is taken for gone that can't be seen

    watcher.refused = ("blobs/sha256",)
    refusing(source, "blobs/sha256")
    world.settle(verify=True)
    assert world.caches[1].status.unlisted_folders == 1
    refusing(source)
    for path in paths:
        path.unlink()
    world.settle(verify=True)
    world.holds_exactly()


def test_what_a_container_sees_was_counted_once_and_is_no_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    root = world.roots[0]
    land(oci(root / "io.containerd.content.v1.content", LAYER), LAYER.stored)
    land(oci(root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots" / "3" / "fs", LIKE_IT), LIKE_IT.stored)
    with monkeypatch.context() as before:
        before.setattr(layouts, "_FOREIGN", re.compile("(?!)"))
        world.settle()
        world.holds_exactly(LAYER, LIKE_IT)
    layouts.identify.cache_clear()  # the next process judges by the real rule
    world.restart()
    world.settle()
    world.holds_exactly(LAYER)


# --- how it is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "hung_s", "state", "reason"),
    [
        (CacheStatus(watched=True), 0, "watched", None),
        (CacheStatus(), 0, "unwatched", "the watcher has not started"),
        (CacheStatus(unwatched="limit"), 0, "unwatched", "limit"),
        (CacheStatus(polled="nfs", watched=True), 0, "polled", "nfs"),
        (CacheStatus(polled="nfs", unwatched="limit"), 0, "polled", "nfs"),
        (CacheStatus(stale="gone", polled="nfs", unwatched="limit", watched=True), 0, "stale", "gone"),
        (CacheStatus(stale="gone", watched=True), 7.6, "hung", "its file system has not answered for 8 s"),
    ],
)
def test_the_state_that_is_shown(status: CacheStatus, hung_s: float, state: str, reason: str | None) -> None:
    assert state_of("/c", status, hung_s, layerless="") == CacheState("/c", (), state, reason, ())


def test_what_is_out_of_sight() -> None:
    assert CacheStatus(stale="gone").out_of_sight("a/b")
    status = CacheStatus(away=frozenset({"library"}))
    assert [status.out_of_sight(path) for path in ("library", "library/x", "library2/x", "x")] == [
        True,
        True,
        False,
        False,
    ]


def test_layouts_are_shown_and_recorded_in_order(world: World) -> None:
    land(oci(world.roots[0], LAYER), LAYER.stored)
    land(world.roots[0] / LIKE_IT.hex, LIKE_IT.stored)
    world.settle()
    status = world.caches[1].status
    assert status.layouts == ("flat", "oci")
    with world.index.snapshot() as txn:
        recorded = world.index.store.caches(txn)[1]
    root = world.roots[0].stat()
    fsid = FolderSource(str(world.roots[0])).look_at_root().fsid
    assert recorded == Cache(str(world.roots[0]), root.st_dev, root.st_ino, ("flat", "oci"), fsid=fsid)
    shown = idle_state(recorded._replace(layerless=METADATA_ALONE))
    assert (shown.state, shown.reason) == ("idle", None)
    assert shown.layouts == ("flat", "oci")
    assert shown.warnings == state_of("/c", status, 0, layerless=METADATA_ALONE).warnings == (LAYERLESS,)


def folders_of(*names: str) -> list[Entry]:
    return [Entry(name, False, True) for name in names]


def test_what_deserves_a_warning_gets_one() -> None:
    assert warnings((), layerless="") == ()
    [warning] = warnings((), layerless=METADATA_ALONE)
    assert "discard_unpacked_layers" in warning
    [warning] = warnings((), layerless="squashfs image, xz")
    assert "discard_unpacked_layers" not in warning
    assert "squashfs image, xz" in warning
    assert warnings_of([], found_blobs=False) == ()
    [warning] = warnings_of(folders_of("photos"), found_blobs=False)
    assert "no blob was recognised" in warning
    assert warnings_of(folders_of("photos"), found_blobs=True) == ()
    for found_blobs in (True, False):
        [warning] = warnings_of(folders_of("photos", "overlay-images"), found_blobs=found_blobs)
        assert "unpacked image store" in warning
    assert warnings_of([Entry("overlay2", True, False)], found_blobs=True) == ()


@pytest.mark.parametrize("name", ["blobs", "docker", "index.json", "oci-layout", "sha256"])
def test_a_store_without_blobs_yet_is_not_odd(name: str) -> None:
    assert warnings_of(folders_of(name), found_blobs=False) == ()


def test_a_warning_comes_from_what_lies_in_the_root_and_is_recorded(world: World) -> None:
    (world.roots[0] / "photos").mkdir()
    world.settle()
    [warning] = world.caches[1].status.warnings
    with world.index.snapshot() as txn:
        assert world.index.store.caches(txn)[1].warnings == (warning,)
    land(oci(world.roots[0], LAYER), LAYER.stored)
    world.settle()
    assert world.caches[1].status.warnings == ()


def test_the_warning_about_a_root_without_blobs_goes_with_the_first_one(world: World) -> None:
    (world.roots[0] / "repository").mkdir()
    world.settle()
    [warning] = world.caches[1].status.warnings
    assert "no blob was recognised" in warning
    world.event(land(oci(world.roots[0] / "repository", LAYER), LAYER.stored))
    world.run()
    assert world.caches[1].status.warnings == ()
    world.rest()
    with world.index.snapshot() as txn:
        assert world.index.store.caches(txn)[1].warnings == ()


def test_what_can_be_no_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_usable(str(tmp_path))
    with pytest.raises(CacheUnusable, match="does not exist; name the folder"):
        check_usable(str(tmp_path / "nothing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheUnusable, match="is not a folder"):
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


LOCAL = (
    "ext2 ext3 ext4 xfs btrfs zfs f2fs tmpfs overlay bcachefs apfs hfs jfs reiserfs ramfs squashfs iso9660 vfat exfat"
    " ntfs ntfs3 fuseblk"
)
WITHOUT_EVENTS = (
    "nfs nfs4 cifs smb3 smbfs 9p afs ceph glusterfs lustre virtiofs fuse fuse.sshfs gpfs beegfs ocfs2 gfs2 orangefs"
    " pvfs2 prl_fs vmhgfs fuse.vmhgfs-fuse vboxsf wekafs fuse.juicefs juicefs gcsfuse fuse.gcsfuse fuse.ext4"
    " ext5 unheard.of webdav macfuse autofs"
)


@pytest.mark.parametrize(
    ("kind", "polled"),
    [*((kind, False) for kind in LOCAL.split()), *((kind, True) for kind in WITHOUT_EVENTS.split())],
)
def test_a_file_system_that_is_no_known_local_one_is_polled(
    kind: str, polled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_linux_mounts", lambda: [(Path("/"), kind)])
    monkeypatch.setattr(sys, "platform", "linux")
    assert bool(filesystems.polled_because("/any")) == polled


def test_the_file_system_as_mac_os_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, BSD))
    assert filesystems.file_system("/usr") == "apfs"
    assert filesystems.polled_because("/Volumes/a (b) on c/x") == "events do not come from smbfs"


def test_the_machine_that_runs_this_has_a_file_system(tmp_path: Path) -> None:
    assert filesystems.file_system(str(tmp_path))


# --- before a folder is watched -----------------------------------------------------------------------------------


class Replacing(Choosy):
    """Something happens right before a folder is watched, so that no event tells of it."""

    def __init__(self, folder: str, change: Callable[[], object]) -> None:
        self._folder, self._change, self.done = folder, change, False

    def enter(self, folder: str) -> None:
        if folder == self._folder and not self.done:
            self.done = True
            self._change()


def test_what_is_replaced_before_its_folder_is_watched_is_seen_to(world: World) -> None:
    """A place may be observed before: another cache lost its blob. The listing has only the names of what is known."""
    path = land(oci(world.roots[0], LAYER), LAYER.stored)
    other = hashlib.shake_128(LAYER.stored).digest(len(LAYER.stored))
    watcher = Replacing("blobs/sha256", lambda: land(path, other))
    world.make_watcher = lambda _, __: watcher
    world.restart()
    cache = world.caches[1]
    cache.hints.put(Hint(world.place(path), Cause.TAKES_OVER))
    cache.step()
    for _ in range(10):  # as far as a worker's finding, if it is read
        if len(cache.hints):
            cache.step()
        world.writer.turn(0)
        if world.writer.tasks.not_given:
            cache.step()
    assert not watcher.done
    world.scan()
    assert watcher.done
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])
