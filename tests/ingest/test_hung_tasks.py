"""A cache whose file system does not answer, and the blobs that wait for it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from chunkd.ingest.actions import Task
from chunkd.sources.cache import ServedCache
from ingesting import LAYER, Content, World, land, oci, world_in, wrong


def waiting(world: World, content: Content) -> Task:
    """A task whose place is not open yet, for a digest that has not matched its name so far."""
    path = land(oci(world.roots[0], content), wrong(content))
    world.scan()
    assert world.writer.remembered.unsettled
    task = Task(content.digest, world.place(path), "a test", len(content.stored), counted=False)
    world.writer.tasks.add(task)
    return task


def test_who_asks_what_is_pending_changes_nothing(tmp_path: Path) -> None:
    """Any thread may ask at any time: only the writer drops a task of a cache that hangs."""
    with world_in(tmp_path) as world:
        task = waiting(world, LAYER)
        with mock.patch.object(ServedCache, "hung_s", return_value=60.0):
            assert world.writer.pending() == (1, len(LAYER.stored))
            assert task.digest in world.writer.tasks
            assert len(world.writer.tasks) == 1
            assert world.writer.tasks.known(task.digest) is None, "the writer drops it"
            assert len(world.writer.tasks) == 0
        world.rest()
        world.holds_exactly(failed=[LAYER.digest])
