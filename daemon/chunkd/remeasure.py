"""`chunkd scan --remeasure`: every layer read again by the measuring rule that is asked for.

An index is made beside the old one, whose figures stand until the new one is whole. What was read is kept when it is
interrupted; the next call goes on from there.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from chunkd import recompress
from chunkd.answers import moment
from chunkd.beside import mark_unfinished, mark_whole, state_beside, take_over
from chunkd.caches import check_usable
from chunkd.config import Config
from chunkd.errors import BadIndex, IndexBusy, IndexMissing, RemeasureIncomplete
from chunkd.once import scan_here, served_by
from chunkd.store import reading


def remeasure(config: Config) -> dict[str, Any]:
    """The figures by the new rule, of the caches that the index serves. A daemon takes them over when it starts again.

    Raises IndexMissing, CacheUnusable when a root is not there, RemeasureIncomplete when a folder could not be listed.
    """
    caches = served_by(config.state_dir)
    if not caches:
        raise IndexMissing(config.index_dir)
    for cache in caches:
        check_usable(cache)
    beside = dataclasses.replace(config, state_dir=state_beside(config.state_dir), caches=caches)
    _begin(config, beside)
    began = moment(time.time_ns()) or ""
    stats = scan_here(beside, {}, replace=True)
    stale = any(cache["state"] == "stale" for cache in stats["caches"])
    if stale or (stats["scanned_at"] or "") < began:
        raise RemeasureIncomplete(config.state_dir)
    mark_whole(config.state_dir)
    try:
        take_over(config.state_dir)
    except IndexBusy as busy:
        print(
            f"{busy.holder} holds the index, and takes the new figures over when it is started again", file=sys.stderr
        )
    return stats


def _begin(config: Config, beside: Config) -> None:
    """Keep what an earlier call has read, when that was by the same rule."""
    wanted = dataclasses.replace(config.measure, library=recompress.library())
    if not Path(beside.state_dir).exists():
        return
    try:
        with reading(beside.state_dir) as store, store.guarded(), store.env.begin() as txn:
            found = store.check_format(txn, None).measure
    except BadIndex:
        found = None
    if found == wanted:
        mark_unfinished(config.state_dir)
    else:
        shutil.rmtree(beside.state_dir)
