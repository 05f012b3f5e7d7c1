"""A folder below a root on which another device is mounted: what goes with it is no removal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkd.model import Cause
from chunkd.sources.source import Entry, RootMark, Seen
from faulty import FaultySource, faulty, on_device
from ingesting import LAYER, LIKE_IT, OTHER, PLAIN, World, land, oci, touch, world_in, wrong

# Folders that lie on another device, each on the one that is so many after its root's own.
Mounted = dict[Path, int]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_in(tmp_path) as made:
        yield made


@pytest.fixture
def mounted(world: World) -> Mounted:
    folders: Mounted = {}
    root = world.roots[0]
    source = faulty(world)

    def lies_on(seen: Seen, path: str) -> Seen:
        own = root / path
        above = [own, *own.parents] if seen.kind != "a symbolic link" else own.parents
        number = next((folders[folder] for folder in above if folder in folders), 0)
        return on_device(seen, seen.mark.device + number)

    def open_(open_it: Callable[[str], tuple[int, Seen]], path: str) -> tuple[int, Seen]:
        descriptor, seen = open_it(path)
        return descriptor, lies_on(seen, path)

    source.root = lambda mark: RootMark(mark.device + folders.get(root, 0), mark.inode)
    source.look = lambda look, path: lies_on(look(path), path)
    source.open = open_
    return folders


def mounts(world: World) -> dict[str, int]:
    """The recorded ones, each with the number of its device after its root's own."""
    status = world.caches[1].status
    return {folder: device - status.device for folder, device in status.mounts}


def problems(world: World) -> str:
    return " ".join(world.caches[1].status.problems)


def test_a_mount_below_a_root_that_goes_away_is_no_removal(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    own = land(oci(world.roots[0], OTHER), OTHER.stored)
    paths = [land(oci(world.roots[0], content, "library/one"), content.stored) for content in (LAYER, LIKE_IT)]
    world.settle()
    assert mounts(world) == {"library": 1}
    scanned_at_ns = world.scanned_at_ns

    mounted.clear()
    shutil.rmtree(library / "one")
    world.event(paths[0], Cause.DELETED)
    world.run()
    world.restart()
    for verify in (False, True):
        world.settle(verify=verify)
        world.holds_exactly(LAYER, LIKE_IT, OTHER)
    assert "library: the file system that was mounted there is away" in problems(world)
    assert world.scanned_at_ns == scanned_at_ns, "a scan that could not see all of it is not complete"
    own.unlink()  # beside it all goes on
    land(oci(world.roots[0], PLAIN, "library/two"), PLAIN.stored)
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT, PLAIN)

    world.scan(accept=True)
    world.holds_exactly(PLAIN)
    assert (mounts(world), problems(world)) == ({}, "")


def test_a_mount_whose_blobs_came_by_events_and_that_goes_away_is_no_removal(world: World, mounted: Mounted) -> None:
    """No listing has found a blob there."""
    library = world.roots[0] / "library"
    mounted[library] = 1
    path = oci(world.roots[0], LAYER, "library/one")
    world.settle()
    assert mounts(world) == {}
    land(path, LAYER.stored)
    world.heard(path)
    world.run()
    assert mounts(world) == {"library": 1}

    mounted.clear()
    shutil.rmtree(library / "one")
    world.restart()
    world.heard(path, Cause.DELETED)
    for verify in (False, True):
        world.settle(verify=verify)
        world.holds_exactly(LAYER)
    world.heard(land(oci(world.roots[0], OTHER, "library/one"), OTHER.stored))
    world.settle()
    world.holds_exactly(LAYER, OTHER)
    assert mounts(world) == {"library": 1}, "what lies there meanwhile tells nothing"


def test_a_mount_that_is_there_is_not_forgotten_when_others_are_accepted(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    source = world.sources[str(world.roots[0])]
    assert isinstance(source, FaultySource)

    def list_(list_it: Callable[[str], Iterator[Entry]], folder: str) -> Iterator[Entry]:
        if "library" in folder:
            raise OSError(5, "Input/output error")
        return list_it(folder)

    source.list, listing = list_, source.list
    world.scan(accept=True)
    source.list = listing
    mounted.clear()
    shutil.rmtree(library / "blobs")
    world.settle(verify=True)
    world.holds_exactly(LAYER)


def test_what_is_accepted_where_a_mount_was_is_compared(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    mounted[library] = 2  # another disk is there now
    path.unlink()
    path.write_bytes(wrong(LAYER))
    world.scan(accept=True)
    world.rest()
    world.holds_exactly(failed=[LAYER.digest])


@pytest.mark.parametrize("kind", ["partial", "symlink"])
def test_what_lies_at_a_place_whose_mount_is_away_says_nothing_of_it(world: World, mounted: Mounted, kind: str) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    mounted.clear()
    shutil.rmtree(library / "blobs")
    world.settle(verify=True)
    path.parent.mkdir(parents=True)
    if kind == "partial":
        path.write_bytes(LAYER.stored[:50])
    else:
        path.symlink_to("nowhere")
    world.heard(path, Cause.WRITTEN)
    world.rest()
    world.holds_exactly(LAYER)


@pytest.mark.parametrize("event", ["library", "library/blobs"])
def test_a_link_to_a_folder_on_another_device_is_no_mount(world: World, mounted: Mounted, event: str) -> None:
    library = world.roots[0] / "library"
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    library.rename(world.folder / "elsewhere")
    library.symlink_to(world.folder / "elsewhere")
    mounted[library] = 1
    world.event(world.roots[0] / event, Cause.DELETED, folder=True)
    world.run()
    world.rest()
    world.holds_exactly()
    assert mounts(world) == {}


def test_another_file_system_where_a_mount_was_does_not_take_its_place(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    mounted[library] = 2
    path.unlink()
    world.heard(path, Cause.DELETED)
    world.heard(land(oci(world.roots[0], OTHER, "library"), OTHER.stored))
    world.settle(verify=True)
    world.holds_exactly(LAYER, OTHER)
    world.scan(accept=True)
    world.holds_exactly(OTHER)
    assert mounts(world) == {"library": 2}


def test_a_mount_below_a_root_is_there_again(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    paths = [land(oci(world.roots[0], content, "library"), content.stored) for content in (LAYER, LIKE_IT)]
    world.settle()
    mounted.clear()
    hidden = library.rename(world.folder / "hidden")
    world.settle()
    world.holds_exactly(LAYER, LIKE_IT)
    hidden.rename(library)
    mounted[library] = 1
    paths[0].unlink()
    world.settle()
    world.holds_exactly(LIKE_IT)
    assert problems(world) == ""


def test_a_folder_that_is_listed_before_the_first_scan_is_no_mount(world: World) -> None:
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.event(world.roots[0] / "library", Cause.CREATED, folder=True)
    world.run()
    assert mounts(world) == {}
    world.settle()
    shutil.rmtree(world.roots[0] / "library")
    world.settle()
    world.holds_exactly()


def test_an_accepted_root_on_a_mounts_own_device_has_no_mount_there(world: World, mounted: Mounted) -> None:
    root = world.roots[0]
    library = root / "library"
    mounted[library] = 1
    land(oci(root, LAYER, "library"), LAYER.stored)
    world.settle()
    mounted[root] = 1  # the whole cache was moved to the disk that the library lay on
    world.scan()
    assert world.caches[1].status.stale
    world.scan(accept=True)
    world.rest()
    world.holds_exactly(LAYER)
    assert mounts(world) == {}
    shutil.rmtree(library)
    world.settle(verify=True)
    world.holds_exactly()


def test_what_fails_where_a_mount_is_away_is_counted_when_it_is_whole(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    mounted.clear()
    shutil.rmtree(library / "blobs")
    world.settle(verify=True)
    path = oci(world.roots[0], OTHER, "library")
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER.stored[:5])
    world.heard(path, Cause.CREATED)
    world.rest()
    world.holds_exactly(LAYER, failed=[OTHER.digest])
    path.write_bytes(OTHER.stored)
    world.heard(path, Cause.WRITTEN)
    world.rest()
    world.holds_exactly(LAYER, OTHER)


def test_what_was_read_where_a_mount_went_away_meanwhile_says_nothing(world: World, mounted: Mounted) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    touch(path)
    world.pool.held = True
    world.heard(path, Cause.WRITTEN)
    mounted.clear()
    path.unlink()
    path.write_bytes(LAYER.stored[:50])  # what was hidden below the mount
    world.pool.held = False
    world.run()
    world.rest()
    world.holds_exactly(LAYER)


@pytest.mark.parametrize("back", [True, False])
def test_what_lies_where_a_mount_is_away_does_not_take_over(world: World, mounted: Mounted, back: bool) -> None:
    library = world.roots[0] / "library"
    mounted[library] = 1
    own = land(oci(world.roots[0], LAYER, "own"), LAYER.stored)
    world.settle()
    path = land(oci(world.roots[0], LAYER, "library"), LAYER.stored)
    world.settle()
    held = world.held(path)
    assert held is not None
    assert held.state == "untested"
    mounted.clear()
    below = path.rename(world.folder / "below the mount's own blob")
    path.write_bytes(LAYER.stored[:50])  # what was hidden below the mount
    world.settle(verify=True)
    own.unlink()
    before = len(world.pool.decoded)
    world.heard(own, Cause.DELETED)
    world.rest()
    world.pass_s(100)
    world.holds_exactly(LAYER)  # the disk that is away has it
    assert world.suspects() == 1
    assert len(world.pool.decoded) == before
    below.rename(path)
    if back:
        mounted[library] = 1
        world.settle(verify=True)
        world.holds_exactly(LAYER)
    else:
        path.unlink()
        world.scan(accept=True)
        world.rest()
        world.holds_exactly()
    assert world.suspects() == 0
