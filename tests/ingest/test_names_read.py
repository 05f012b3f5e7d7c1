"""When the names of images are read, and what the index then has of them."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import ingesting
from chunkd.errors import IndexUnwritable
from chunkd.index.index import Index
from chunkd.ingest import names as names_module
from chunkd.ingest.names import FILE_S, FRESH_S, NEWS_S
from chunkd.model import Cause, Digest
from chunkd.names import beside, registry
from chunkd.names import record as names_record
from chunkd.names.name import Name, Part
from chunkd.service.live import STOOD_S, DaemonAnswers
from chunkd.sources.beneath import Beneath
from chunkd.sources.cache import Request
from chunkd.sources.names_reader import NamesRead, NamesReader, ReadBase
from ingesting import BROKEN, LAYER, LIKE_IT, OTHER, PLAIN, Content, World, distribution, land, oci, world_in


class Readings:
    """How often each base was begun to be read; each takes so long of the world's time."""

    def __init__(self) -> None:
        self.bases: list[str] = []
        self.takes_s = 0.0
        self.world: World | None = None
        self._make = beside.reading_beside

    def make(self, root: str) -> ReadBase:
        read = self._make(root)

        def counted(base: str) -> Iterator[NamesRead | None]:
            self.bases.append(base)
            if self.world is not None:
                self.world.ahead_s += self.takes_s
            yield from read(base)

        return counted

    @property
    def count(self) -> int:
        found, self.bases = len(self.bases), []
        return found


@pytest.fixture
def readings() -> Iterator[Readings]:
    made = Readings()
    with mock.patch.object(ingesting, "reading_beside", made.make):
        yield made


@pytest.fixture
def world(tmp_path: Path, readings: Readings) -> Iterator[World]:
    with world_in(tmp_path, "one", "two") as made:
        readings.world = made
        yield made


def name(layout: Path, *tags: str, digest: Digest = OTHER.digest) -> None:
    """Write a layout's index.json, in place."""
    rows = [{"digest": str(digest), "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]
    layout.mkdir(exist_ok=True, parents=True)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))


def push(root: Path, repository: str, tag: str, content: Content) -> None:
    """Tag a digest as distribution does."""
    folder = root / "repositories" / repository / "_manifests"
    link = f"{content.digest.algorithm}/{content.hex}/link"
    for path in (
        folder / "revisions" / link,
        folder / "tags" / tag / "index" / link,
        folder / f"tags/{tag}/current/link",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content.digest))


def texts(world: World, number: int = 1) -> set[str]:
    kept = [part.names or () for (cache, _), parts in world.names().items() if cache == number for part in parts]
    return {name.text for names in kept for name in names if name.text}


def begun(world: World, *layouts: Path) -> World:
    """A world in which a scan has ended."""
    for layout in layouts:
        land(oci(layout, LAYER), LAYER.stored)
    world.settle()
    return world


# --- when names are read ----------------------------------------------------------------------------------------------


def test_at_the_end_of_each_scan(world: World, readings: Readings) -> None:
    one, two = world.roots
    land(oci(one, LAYER), LAYER.stored)
    land(oci(one, OTHER), OTHER.stored)
    land(distribution(two, LAYER), LAYER.stored)
    name(one, "v1", "v2")
    push(two, "team/app", "latest", OTHER)
    world.scan()
    assert readings.bases == [str(one), str(two)]
    assert world.names() == world.names_on_disk() != {}
    assert texts(world) == {"one:v1", "one:v2"}
    assert texts(world, 2) == {"team/app:latest"}
    name(one, "v3")
    world.scan()
    assert readings.count == 4
    assert texts(world) == {"one:v3"}


def test_a_start_reads_the_names_that_were_there_before(world: World) -> None:
    begun(world, world.roots[0])
    name(world.roots[0], "v1")
    world.restart()
    world.run()
    assert texts(world) == set(), "nothing was asked for yet"
    world.settle()
    assert texts(world) == {"one:v1"}


def test_soon_after_a_manifest_landed_and_after_its_tag_was_written(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    assert readings.count == 1
    world.heard(land(oci(root, OTHER), OTHER.stored))
    assert readings.count == 0
    name(root, "v1")
    assert NEWS_S < 5 - 1, "and a turn comes each second"
    world.pass_s(NEWS_S)
    assert readings.count == 1
    assert texts(world) == {"one:v1"}
    world.pass_s(30)
    assert readings.count == 0


def test_soon_after_a_manifest_went(world: World, readings: Readings) -> None:
    root = world.roots[0]
    path = land(oci(root, OTHER), OTHER.stored)
    name(root, "v1")
    begun(world, root)
    assert (readings.count, texts(world)) == (1, {"one:v1"})
    path.unlink()
    name(root)
    world.heard(path, Cause.DELETED)
    world.pass_s(NEWS_S)
    assert (readings.count, texts(world)) == (1, set())


def test_manifests_that_land_together_are_one_reading(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    assert readings.count == 1
    for number in range(10):
        stored = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"a": str(number)}}).encode()
        content = Content(str(number), "other", stored)
        world.heard(land(oci(root, content), stored))
        world.pass_s(NEWS_S / 20)
    assert readings.count == 0
    world.pass_s(NEWS_S)
    assert readings.count == 1


def test_soon_after_a_manifest_came_to_another_place_or_went_from_it(world: World, readings: Readings) -> None:
    """Nothing is counted then, as its digest is known."""
    one, two = world.roots
    land(oci(one, OTHER), OTHER.stored)
    begun(world, one)
    assert readings.count == 1
    path = land(oci(two, OTHER), OTHER.stored)
    name(two, "v1")
    world.heard(path)
    world.pass_s(NEWS_S)
    assert (readings.count, texts(world, 2)) == (2, {"two:v1"})
    path.unlink()
    world.heard(path, Cause.DELETED)
    world.pass_s(NEWS_S)
    assert (readings.count, texts(world, 2)) == (1, set())


def test_no_other_blob_has_names_read(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    assert readings.count == 1
    for content in (LIKE_IT, PLAIN, BROKEN):
        world.heard(land(oci(root, content), content.stored))
    oci(root, PLAIN).unlink()
    world.heard(oci(root, PLAIN), Cause.DELETED)
    world.pass_s(30)
    assert readings.count == 0


def test_soon_after_an_event_of_a_layouts_names(world: World, readings: Readings) -> None:
    one, two = world.roots
    begun(world, one, two)
    assert readings.count == 2
    name(one, "v1")
    name(two, "v1")
    world.heard(one / "index.json", Cause.WRITTEN)
    assert readings.count == 0
    world.pass_s(NEWS_S)
    assert readings.bases == [str(one)], "of the other cache nothing was heard"
    assert texts(world) == {"one:v1"}


def test_a_job_is_given_out_before_names_are_taken(world: World) -> None:
    one = world.roots[0]
    begun(world, one)
    name(one, "v1")
    world.writer.names.scanned()
    world.writer.turn(0)
    world.step()
    assert world.caches[1].names.waiting(1, 1)
    world.event(land(oci(one, PLAIN), PLAIN.stored))
    world.step()
    writer, calls = world.writer, mock.Mock()
    with (
        mock.patch.object(writer.tasks, "give", wraps=writer.tasks.give) as give,
        mock.patch.object(writer.names, "turn", wraps=writer.names.turn) as take,
    ):
        calls.attach_mock(give, "jobs")
        calls.attach_mock(take, "names")
        writer.turn(0)
    assert [call[0] for call in calls.mock_calls] == ["jobs", "names"]
    world.run()


def test_during_the_first_scan_no_manifest_has_names_read(world: World, readings: Readings) -> None:
    root = world.roots[0]
    world.heard(land(oci(root, OTHER), OTHER.stored))
    world.pass_s(30)
    assert readings.count == 0
    world.scan()
    assert readings.count == 1


def test_who_asks_has_names_read_that_are_older_than_a_minute(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    assert readings.count == 1
    name(root, "v1")
    world.pass_s(FRESH_S - 15)
    world.writer.names.ask()
    world.run()
    assert (readings.count, texts(world)) == (0, set())
    world.pass_s(16)
    assert readings.count == 0
    assert not world.writer.names.is_reading
    thread = threading.Thread(target=world.writer.names.ask)
    thread.start()
    thread.join()
    assert world.writer.names.is_reading
    world.pass_s(0)
    world.rest()
    assert not world.writer.names.is_reading
    assert (readings.count, texts(world)) == (1, {"one:v1"})


def test_who_asks_before_the_first_scan_is_answered_too(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    name(root, "v1")
    world.restart()
    assert readings.count == 1
    world.writer.names.ask()
    world.pass_s(0)
    world.rest()
    assert (readings.count, texts(world)) == (1, {"one:v1"})


def test_reading_takes_a_twentieth_of_the_time_at_most(world: World, readings: Readings) -> None:
    root = world.roots[0]
    begun(world, root)
    assert readings.count == 1
    readings.takes_s = 7.0
    began_s, count = world.ahead_s, 0
    for step in range(700):
        if step % 50 == 0:
            world.scan()
        if step % 3 == 0:
            world.heard(land(oci(root, OTHER), OTHER.stored))
        else:
            oci(root, OTHER).unlink(missing_ok=True)
            world.heard(oci(root, OTHER), Cause.DELETED)
        world.writer.names.ask()
        world.pass_s(1.0)
        found = readings.count
        assert found <= 1
        count += found
    passed_s = world.ahead_s - began_s
    # One may be under way, its pause yet to come.
    assert 1 / 25 < (count - 1) * 7 / passed_s <= 1 / 20


def test_a_reading_that_took_long_is_not_followed_by_another(world: World, readings: Readings) -> None:
    root = world.roots[0]
    readings.takes_s = 10.0
    begun(world, root)
    assert readings.count == 1
    readings.takes_s = 0.0
    world.scan()
    world.pass_s(188)
    assert readings.count == 0
    world.pass_s(3)
    assert readings.count == 1


def test_hints_are_observed_before_names_are_read_and_folders_listed_after(world: World) -> None:
    one = world.roots[0]
    cache = world.caches[1]
    begun(world, one)
    name(one, "v1")
    world.writer.names.scanned()
    world.writer.turn(0)
    world.event(land(oci(one, PLAIN), PLAIN.stored))
    cache.request_scan(Request("a test"))
    done: list[tuple[bool, bool, bool]] = []
    while cache.step():
        done.append((bool(cache.observations), bool(cache.names.waiting(1, 1)), bool(cache.listings)))
    assert list(dict.fromkeys(done)) == [(True, False, False), (True, True, False), (True, True, True)]
    world.run()


def test_a_file_system_that_hangs_stops_only_its_cache(world: World) -> None:
    one, two = world.roots
    land(oci(one, LAYER), LAYER.stored)
    begun(world, two)
    answers, asked = threading.Event(), threading.Event()

    def hanging(_: str) -> Iterator[NamesRead]:
        asked.set()
        answers.wait(60)
        return iter(())

    world.caches[1].names._make = lambda: hanging
    world.writer.names.scanned()
    world.writer.turn(0)
    thread = threading.Thread(target=lambda: [world.caches[1].step() for _ in range(20)])
    thread.start()
    assert asked.wait(60)
    with mock.patch.object(world.caches[1], "step", return_value=False):
        world.event(land(oci(two, PLAIN), PLAIN.stored))
        name(two, "v1")
        for _ in range(20):
            world.step()
            world.writer.turn(0)
        assert PLAIN.digest in world.counted()
        assert texts(world, 2) == {"two:v1"}
        assert not world.activity.done(1 << 40)
        assert world.activity.done(1 << 40, {1})
    answers.set()
    thread.join()
    world.rest()


# --- what the index then has ------------------------------------------------------------------------------------------


def records_of(world: World) -> dict[bytes, bytes]:
    with world.index.snapshot() as txn:
        return dict(world.index.store.names(txn))


def test_what_has_not_changed_is_not_written_again(world: World) -> None:
    root = world.roots[0]
    name(root, "v1")
    begun(world, root)
    before, [at_ns] = records_of(world), [reading.at_ns for number, reading in world.readings().items() if number == 1]
    world.read_names()
    assert records_of(world) == before
    assert world.readings()[1].at_ns > at_ns
    name(root, "v1", "v2")
    world.read_names()
    assert records_of(world) != before
    assert world.names() == world.names_on_disk()


def test_names_as_of_is_when_the_oldest_last_reading_was_begun(world: World) -> None:
    begun(world, world.roots[0])
    with world.index.snapshot() as txn:
        caches = world.index.store.caches(txn)
    found = world.readings()
    assert found.keys() == caches.keys() == {1, 2}, "a cache without names has been read too"
    assert names_record.names_as_of_ns(found, caches) == min(reading.at_ns for reading in found.values()) > 0
    assert names_record.names_as_of_ns(found, {*caches, 3}) is None
    assert names_record.names_as_of_ns({}, ()) is None


def test_a_half_written_index_keeps_the_names_as_they_were(world: World) -> None:
    root = world.roots[0]
    name(root, "v1")
    begun(world, root)
    (root / "index.json").write_text('{"manifests": [')
    world.read_names()
    assert texts(world) == {"one:v1"}
    [problem] = world.readings()[1].unread
    assert problem.startswith(f"{root}: index.json")
    world.restart()
    world.settle()
    assert texts(world) == {"one:v1"}
    (root / "index.json").unlink()
    world.read_names()
    assert (texts(world), world.readings()[1].unread) == (set(), ())


def test_what_can_not_be_read_is_said_once_until_it_could_be_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    root = world.roots[0]
    name(root, "v1")
    begun(world, root)

    def said() -> int:
        found = sum(record.name == names_module.__name__ for record in caplog.records)
        caplog.clear()
        return found

    assert said() == 0
    for expected in (1, 0, 0):
        (root / "index.json").write_text('{"manifests": [')
        world.read_names()
        assert said() == expected
    name(root, "v2")
    world.read_names()
    assert (said(), texts(world)) == (0, {"one:v2"})
    (root / "index.json").write_text('{"manifests": [')
    world.read_names()
    assert said() == 1


def test_a_repository_of_many_tags_is_read_in_steps_between_which_blobs_are_observed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LINKS_A_STEP", 2)
    root = world.roots[0]
    for number in range(10):
        push(root, "app", f"v{number}", OTHER)
    land(distribution(root, LAYER), LAYER.stored)
    world.settle()
    assert len(texts(world)) == 10
    push(root, "app", "v10", OTHER)
    world.writer.names.scanned()
    world.writer.turn(0)
    cache = world.caches[1]
    for _ in range(3):
        assert cache.step()
    assert not cache.names.waiting(1, 1)
    world.event(land(distribution(root, PLAIN), PLAIN.stored))
    assert cache.step()
    assert cache.observations
    assert not cache.names.waiting(1, 1)
    world.run()
    assert len(texts(world)) == 11


def test_what_can_not_be_read_keeps_what_lies_below_it_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = world.roots[0]
    for repository in ("a", "a/b", "ab", "c"):
        push(root, repository, "latest", OTHER)
    land(distribution(root, LAYER), LAYER.stored)
    world.settle()
    assert texts(world) == {"a:latest", "a/b:latest", "ab:latest", "c:latest"}
    for repository in ("ab", "c"):
        shutil.rmtree(root / "repositories" / repository)
    real = Beneath.folder

    def refused(beneath: Beneath, folder: str) -> int:
        if folder == "repositories/a":
            raise PermissionError(13, "Permission denied", folder)
        return real(beneath, folder)

    monkeypatch.setattr(Beneath, "folder", refused)
    world.read_names()
    assert texts(world) == {"a:latest", "a/b:latest"}
    reading = world.readings()[1]
    assert reading.unread == (f"{root}: repositories/a: Permission denied",)
    assert reading.unread_places == 1


def test_names_that_were_written_in_a_base_that_can_not_be_opened_stand(world: World) -> None:
    one = world.roots[0]
    begun(world, one / "x", one / "y")
    name(one / "x", "v1")
    name(one / "y", "v1")
    world.read_names()
    assert texts(world) == {"x:v1", "y:v1"}
    (one / "x").rename(world.folder / "outside")  # and no event tells
    world.read_names()
    assert texts(world) == {"x:v1", "y:v1"}
    assert world.readings()[1].unread == (f"{one}/x: No such file or directory",)
    world.settle()
    assert texts(world) == {"y:v1"}


def test_a_cache_out_of_sight_keeps_its_names(world: World) -> None:
    root = world.roots[0]
    name(root, "v1")
    begun(world, root)
    before = world.readings()[1]
    hidden = world.folder / "hidden"
    root.rename(hidden)
    world.read_names()
    assert (texts(world), world.readings()[1]) == ({"one:v1"}, before)
    hidden.rename(root)
    world.read_names()
    assert world.readings()[1].at_ns > before.at_ns


def test_the_names_of_a_cache_that_is_no_longer_served_go(world: World) -> None:
    name(world.roots[0], "v1")
    begun(world, *world.roots)
    world.stop()
    world.roots = world.roots[1:]
    world.start()
    world.settle()
    assert texts(world) == set()
    assert world.readings().keys() == {2}


def test_nothing_is_lost_when_the_disk_is_full(world: World) -> None:
    root = world.roots[0]
    name(root, "v1")
    begun(world, root, root / "broken")
    name(root, "v2")
    (root / "broken/index.json").write_text("")
    world.pass_s(61)
    world.writer.names.ask()

    def full(index: Index) -> None:
        raise IndexUnwritable(index.store.path, "No space left on device")

    with mock.patch.object(Index, "transaction", full):
        for _ in range(5):
            world.writer.turn(0)
            world.step()
        assert world.writer.progress.paused
    world.pass_s(10)
    world.rest()
    assert texts(world) == {"one:v2"}
    assert world.readings()[1].unread_places == 1


def test_slices_of_any_size_give_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "PARTS_A_TURN", 1)
    monkeypatch.setattr(names_module, "PLACES_A_TURN", 1)
    monkeypatch.setattr(registry, "LINKS_A_STEP", 1)
    one, two = world.roots
    for repository in ("a", "b", "b/c"):
        push(two, repository, "latest", OTHER)
        land(oci(one / repository, LAYER), LAYER.stored)
        name(one / repository, "v1")
    land(distribution(two, LAYER), LAYER.stored)
    for content in (LAYER, LIKE_IT):
        land(two / content.hex, content.stored)
    world.settle()
    assert world.names() == world.names_on_disk()
    assert len(texts(world)) == len(texts(world, 2)) == 3


# --- where names lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["", "blobs", "blobs/sha256"])
@pytest.mark.parametrize("where", [oci, distribution])
def test_a_root_on_the_way_to_the_blobs(
    tmp_path: Path, readings: Readings, at: str, where: Callable[[Path, Content], Path]
) -> None:
    layout = tmp_path / "layout"
    land(where(layout, LAYER), LAYER.stored)
    land(where(layout, LIKE_IT), LIKE_IT.stored)
    name(layout, "v1")
    with world_in(tmp_path, f"layout/{at}") as world:
        world.settle()
        assert readings.bases == [str(layout)]
        assert texts(world) == {"layout:v1"}


def test_a_flat_cache_has_no_names(world: World, readings: Readings) -> None:
    root = world.roots[0]
    land(root / LAYER.hex, LAYER.stored)
    name(root, "v1")
    world.settle()
    assert (readings.count, world.names()) == (0, {})
    assert world.readings()[1].at_ns > 0


def test_each_folder_with_blobs_is_read_and_is_found_in_few_looks(world: World, readings: Readings) -> None:
    one = world.roots[0]
    layouts = [one / "a", one / "a/b", one / "blobs0", one / "c", one]
    for content in (LAYER, LIKE_IT, PLAIN):
        land(one / content.hex, content.stored)
        for layout in layouts:
            land(oci(layout, content), content.stored)
    with mock.patch.object(world.index.store, "place_from", wraps=world.index.store.place_from) as look:
        world.settle()
    assert sorted(readings.bases) == sorted(map(str, layouts))
    assert look.call_count == len(layouts) + 3 + 2, "flat names are passed one by one; each cache has an end"


def test_the_folders_that_are_read_are_bounded(
    world: World, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "MOST_BASES", 2)
    one = world.roots[0]
    begun(world, one / "a", one / "b", one / "c", one / "d")
    assert readings.bases == [str(one / "a"), str(one / "b")]
    assert world.readings()[1].unread_places == 1


def test_the_names_of_all_bases_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "MOST_NAMES", 3)
    monkeypatch.setattr(beside, "MOST_PARTS", 3)
    one = world.roots[0]
    begun(world, *(one / letter for letter in "abcd"))
    for letter in "abcd":
        name(one / letter, "v1", "v2")
    world.read_names()
    assert texts(world) == {"a:v1", "a:v2", "b:v1"}
    assert len(world.names()) == 3
    assert world.readings()[1].unread_places == 1


# --- a names file -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(world: World) -> Path:
    path = world.folder / "names"
    path.write_text(f"shop/api:v1\t{OTHER.digest}\n")
    world.names_file = path
    world.restart()
    return path


def test_a_names_file_is_read_as_the_names_of_no_cache(world: World, file: Path) -> None:
    world.settle()
    assert world.names() == world.names_on_disk()
    assert texts(world, 0) == {"shop/api:v1"}
    assert world.readings().keys() == {0, 1, 2}
    file.write_text(f"shop/api:v2\t{OTHER.digest}\n")
    world.read_names()
    assert texts(world, 0) == {"shop/api:v2"}


def test_a_names_file_that_is_not_there_keeps_its_names(world: World, file: Path) -> None:
    world.settle()
    file.unlink()
    world.read_names()
    assert texts(world, 0) == {"shop/api:v1"}
    assert world.readings()[0].unread_places == 1


def test_another_names_file_takes_the_place_of_the_first(world: World, file: Path) -> None:
    world.settle()
    world.names_file = file.rename(world.folder / "other")
    world.restart()
    world.settle()
    [[part]] = [parts for (number, _), parts in world.names().items() if number == 0]
    assert part.where == str(world.names_file)


@pytest.mark.parametrize("readable", [True, False])
def test_without_the_setting_the_names_of_the_file_go(world: World, file: Path, readable: bool) -> None:
    if not readable:
        file.unlink()
    world.settle()
    assert 0 in world.readings()
    world.names_file = None
    world.restart()
    world.settle()
    assert world.names() == {}
    assert world.readings().keys() == {1, 2}


def test_a_names_file_that_hangs_holds_nothing_up(world: World, file: Path) -> None:
    assert file.exists()
    assert world.file_reader is not None
    with mock.patch.object(NamesReader, "step", functools.partialmethod(_but, world.file_reader, NamesReader.step)):
        world.scan()
        assert world.writer.scans.finished == 1
        assert not world.activity.working()
        assert not world.activity.idle()
        answers = DaemonAnswers(world.writer, world.scanner)
        before = answers.health()["reasons"]
        world.pass_s(FILE_S + 1)
        assert world.activity.idle()
        assert answers.stats()["settled"]
        assert answers.health()["reasons"] == before
        world.pass_s(STOOD_S)
        assert len(answers.health()["reasons"]) == len(before) + 1
    world.pass_s(1)
    world.rest()
    assert texts(world, 0) == {"shop/api:v1"}
    assert answers.health()["reasons"] == before


def _but(reader: NamesReader, hanging: NamesReader, step: Callable[[NamesReader], bool]) -> bool:
    return reader is not hanging and step(reader)


# --- hostile names ----------------------------------------------------------------------------------------------------


HOSTILE = ["../../etc/passwd", "\x1b[31m\0\n\r", "a" * 1025, "\ud800", "/", "", "é" * 1000, ":", "@sha256:" + "0" * 64]


def test_hostile_names_are_kept_as_text_or_left_out(world: World) -> None:
    root = world.roots[0]
    name(root, *HOSTILE)
    begun(world, root)
    assert world.names() == world.names_on_disk()
    [[part]] = world.names().values()
    assert {len(one.text) <= 1024 for one in part.names or ()} == {True}
    assert "\x1b[31m\0\n\r" in texts(world)


def test_hostile_folders_are_kept_as_text(world: World) -> None:
    root = world.roots[0]
    land(distribution(root, LAYER), LAYER.stored)
    for repository in ("caf\udce9", "\x1b]0;x\x07", "a" * 255, "\n"):
        push(root, repository, "latest", OTHER)
    world.settle()
    assert world.names() == world.names_on_disk()
    assert len(texts(world)) == 4


def test_no_link_out_of_the_cache_is_followed(world: World) -> None:
    one = world.roots[0]
    secret = world.folder / "secret"
    land(oci(secret, LAYER), LAYER.stored)
    name(secret, "secret")
    begun(world, one / "x")
    shutil.rmtree(one / "x")
    (one / "x").symlink_to(secret)
    world.read_names()
    assert texts(world) == set()
    (one / "x").unlink()
    begun(world, one / "x")
    (one / "x/index.json").symlink_to(secret / "index.json")
    world.read_names()
    assert texts(world) == set()


def test_a_record_that_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(Name(f"a:{number}", "a", str(number), OTHER.digest) for number in range(100))
    monkeypatch.setattr(names_record, "MOST_RECORD_BYTES", 5000)
    found, count = names_record.as_read("/b", Part("layout", "", rows, "one problem"))
    assert count == 0
    kept = names_record.decode(found.record)
    assert kept.part.names == ()
    assert kept.part.problem.startswith("one problem; ")
    found, count = names_record.as_read("/b", Part("layout", "", rows), 20)
    assert (count, names_record.decode(found.record).part.names) == (20, rows[:20])
