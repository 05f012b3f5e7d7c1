"""`chunkd scan --store` and `chunkd sweep --store`, in tasks on this machine or on a cluster."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chunkd.cli.fleet import store_folder
from chunkd.cli.options import INCOMPLETE, say_reply
from chunkd.errors import CacheUnusable, UsageError
from chunkd.figures.words import bytes_text, count_text, shown
from chunkd.service.oneshot import Progress
from chunkd.settings.config import Config

if TYPE_CHECKING:
    from chunkd.cluster.tasks import Hands, Shard
    from chunkd.sweep.question import Question, Share
    from chunkd.sweep.sweep import Sweep

MOST_SHARDS = 1 << 20


def scan_into_store(
    config: Config, store: str, shard: str | None, engine: str, name: str | None, key_file: str | None,
    retry_failed: bool, json: bool, progress: Progress,
) -> None:  # fmt: skip
    """Scan the one cache of the settings and say what was done. Exits 7 when something may be missing."""
    from chunkd.fleet import extra

    extra.needed()
    from chunkd.cluster.engine import make_engine
    from chunkd.cluster.scan import Asked, scan, to_json
    from chunkd.fleet.store import Store
    from chunkd.service.daemon import check_caches, rules_of

    folder = store_folder(store)
    if len(config.caches) != 1:
        raise UsageError("--store is for one CACHE: name it")
    check_caches(config.caches)
    [path] = config.caches
    hands = hands_of(config, engine)
    asked = Asked(
        path, name or os.uname().nodename, rules_of(config), hands, shard_of(shard), retry_failed,
        os.path.abspath(key_file) if key_file else "",
    )  # fmt: skip
    with progress() as show:
        try:
            found = to_json(scan(asked, Store(folder), lambda: make_engine(engine, hands.processes), show))
        except OSError as error:
            raise CacheUnusable(path, f"can't be listed: {error.strerror}") from None
    say_reply(found, json, lines(found, path, store))
    if found["pending"] or found["unlisted_folders"]:
        sys.exit(INCOMPLETE)


def sweep_into_store(
    config: Config, states: Sequence[str], caches: Sequence[str], question: Question, share: Share, store: str,
    engine: str, shard: Shard | None,
) -> Sweep:  # fmt: skip
    """A sweep that keeps what it finds of each layer in a store."""
    from chunkd.cluster.engine import make_engine
    from chunkd.cluster.sweep import begin
    from chunkd.fleet.store import Store

    hands = hands_of(config, engine)
    opened = Store(store_folder(store))
    return begin(states, caches, question, share, opened, hands, lambda: make_engine(engine, hands.processes), shard)


def hands_of(config: Config, engine: str) -> Hands:
    """Two tasks at once, so that one's workers are busy while the other's last blob is read. A machine of a cluster
    counts its own cores: there each task has one worker, unless the settings say otherwise. Raises what `check_engine`
    does, before anything is listed.
    """
    from chunkd.cluster.engine import check_engine
    from chunkd.cluster.tasks import Hands
    from chunkd.worker.spawn import courtesy_of

    check_engine(engine)
    workers, courtesy = courtesy_of(config.workers, config.nice, config.io_priority, config.read_bytes_per_s)
    if engine != "local":
        return Hands(courtesy, max(1, config.workers), workers)
    processes = min(2, workers)
    return Hands(courtesy, -(-workers // processes), processes)


def shard_of(text: str | None) -> Shard | None:
    """Raises UsageError for what is not such as 0/16."""
    from chunkd.cluster.tasks import Shard

    if text is None:
        return None
    found = re.fullmatch("([0-9]{1,7})/([0-9]{1,7})", text)
    if not found or not int(found[1]) < int(found[2]) <= MOST_SHARDS:
        raise UsageError(f"shard {text}: must be I/N, with I from 0 to N - 1, such as 0/16")
    return Shard(int(found[1]), int(found[2]))


def lines(found: Mapping[str, Any], path: str, store: str) -> Iterator[str]:
    """What a scan into a store did, for people."""
    read = f"{count_text(found['read'], 'blob')} read now ({bytes_text(found['read_bytes'])})"
    yield f"{shown(path)}: {found['listed']:,} listed, {found['counted']:,} counted, {read}, {found['reused']:,} before"
    for name in ("failed", "archived", "pending", "unrecognised"):
        if found[name]:
            yield f"{name:<14}{found[name]:,}"
    for why, count in found["unread"].items():
        yield f"{'not read':<14}{count_text(count, 'blob')}: {shown(why)}"
    if found["unlisted_folders"]:
        yield f"{'not listed':<14}{count_text(found['unlisted_folders'], 'folder')}"
    if found["moment"]:
        yield f"The figures: chunkd merge {shown(store)}"
    else:
        yield "This was one shard. When all are done, the same command without --shard completes the store."
