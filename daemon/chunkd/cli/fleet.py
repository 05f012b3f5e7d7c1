"""`chunkd export` and `chunkd merge`: one figure for many hosts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import click

from chunkd.cli import fleet_lines
from chunkd.cli.options import INCOMPLETE, as_json, asks, end_by, quietly, say_reply
from chunkd.cli.progress import progress
from chunkd.client.ask import Client
from chunkd.errors import UsageError
from chunkd.figures.words import shown

NAME_CHARACTERS = 100


@click.command()
@asks
@as_json
@quietly
@click.option(
    "--key-file", metavar="FILE",
    help="Hide hashes and digests by the key in this file, and leave out names. All hosts need the same.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="What this host is called in the figures; by default its host name.")
@click.argument("store", metavar="STORE")
def export(client: Client, json: bool, quiet: bool, key_file: str | None, name: str | None, store: str) -> None:
    """Put this host's part into a store that hosts share.

    A STORE is a folder, on a file system that has hard links, such as a mount of NFS. An export writes the hashes of
    each blob's chunks and what this host holds now, but no file's content and no path. The first one writes all of
    that, and each later one only what is new. It works beside a daemon, and without one. `chunkd merge` then prints the
    figures of all hosts.

    Needs the packages of `pip install 'chunkd[fleet]'`.
    """
    from chunkd.fleet import extra

    extra.needed()
    from dataclasses import asdict

    from chunkd.fleet.export import export as exported
    from chunkd.fleet.key import Key
    from chunkd.fleet.snapshot import Facts
    from chunkd.fleet.store import Store

    key = Key(key_file) if key_file else None
    stats = client.stats()
    by_daemon = bool(client.socket)
    own = (name or os.uname().nodename)[:NAME_CHARACTERS]
    facts = Facts(
        own, int(by_daemon), pending_blobs=stats["pending_blobs"], pending_bytes=stats["pending_bytes"],
        unlisted_folders=stats["unlisted_folders"], problems=tuple(_problems(stats)),
    )  # fmt: skip
    with progress("exported", quiet=quiet) as show:
        done = exported(client.index_dir(), Store(store_folder(store)), facts, key, show)
    content = {"source": done.source, "name": own} | asdict(done)
    say_reply(content, json, fleet_lines.export_lines(own, store, done.blobs, done.read))
    end_by(stats)


def _problems(stats: Mapping[str, Any]) -> Iterator[str]:
    """Why blobs may be missing, without a path of this host."""
    for state in ("stale", "hung"):
        if number := sum(cache["state"] == state for cache in stats["caches"]):
            yield f"{number} of its caches {'is' if number == 1 else 'are'} {state}"
    if unlisted := stats["unlisted_folders"]:
        yield f"{unlisted} of its folders could not be listed"
    elif stats["problems"]:
        yield "its figures may lack blobs, as its `chunkd stats` says"


@click.command()
@as_json
@quietly
@click.option(
    "--max-age", metavar="AGE",
    help="Leave out hosts whose figures are older: 2d (m, h, d, w), 2026-01-31 or 2026-01-31T12:00Z.",
)  # fmt: skip
@click.option("--images", is_flag=True, help="List the images of all hosts instead, as `chunkd images` does.")
@click.option(
    "--by", type=click.Choice(["image", "repository"]), default="image", show_default=True,
    help="With --images: what a row is.",
)  # fmt: skip
@click.option(
    "--engine", metavar="local|dask[:ADDRESS]",
    help="Sum up in tasks, on all cores or on a Dask cluster, instead of in this process.",
)  # fmt: skip
@click.argument("store", metavar="STORE")
def merge(json: bool, quiet: bool, max_age: str | None, images: bool, by: str, engine: str | None, store: str) -> None:
    """Print the figures of all hosts that exported into a store.

    They are those that one index with the blobs of all hosts would have: a blob that several hosts have counts once.
    Below them: what all hosts' copies of layers take, what these layers take if each is kept once, as in one registry
    for all, and what their chunks would take. If --max-age leaves out hosts, they are named, and the exit code is 7.

    A STORE is a folder that `chunkd export` made. To drop a host that is gone, remove its folder in `snapshots`. With
    --engine each task sums up 16 million chunks, in some 450 MiB of memory.

    Needs the packages of `pip install 'chunkd[fleet]'`.
    """
    if by != "image" and not images:
        raise UsageError("--by goes with --images")
    if engine is not None and images:
        raise UsageError("--engine goes without --images")
    from chunkd.fleet import extra

    extra.needed()
    from chunkd.cluster.engine import check_engine, make_engine
    from chunkd.cluster.merge import in_tasks
    from chunkd.fleet.images import images as listed
    from chunkd.fleet.merge import merge as merged
    from chunkd.fleet.merge import sources_of, summed_here
    from chunkd.fleet.store import Store
    from chunkd.index.history import MINUTE_NS, minute_of
    from chunkd.queries.history import since_minute
    from chunkd.worker.spawn import core_count

    if engine is not None:
        check_engine(engine)
    least_as_of_ns = since_minute(max_age, minute_of(time.time_ns())) * MINUTE_NS if max_age else 0
    opened = Store(store_folder(store))
    sources = sources_of(opened, least_as_of_ns)
    with progress("merged", "ranges of hashes to go", quiet=quiet) as show:
        if images:
            content = listed(opened, sources, by, show)
        else:
            start = None if engine is None else partial(make_engine, engine, core_count())
            summed = in_tasks(opened, sources, start) if start else summed_here
            content = merged(opened, sources, progress=show, summed=summed)
    say_reply(content, json, (fleet_lines.images_lines if images else fleet_lines.merge_lines)(content, store))
    if content["fleet"]["left_out"] or any(row["problems"] for row in content["fleet"]["sources"]):
        sys.exit(INCOMPLETE)


def store_folder(store: str) -> str:
    """Raises UsageError for what is not a folder's path."""
    if "://" in store:
        raise UsageError(f"store {store.partition('://')[0]}://...: a store is a folder")
    folder = os.path.abspath(store)
    if not (store and folder.isprintable()):
        raise UsageError(f"store {shown(store)!r}: must be a folder whose path is printable UTF-8")
    return folder
