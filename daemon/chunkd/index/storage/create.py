"""Makes a new index, which exists as a whole or not at all, whenever the power fails; and gives it to its owner."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from chunkd.errors import IndexUnreachable
from chunkd.figures import histogram
from chunkd.index import records
from chunkd.index.storage import durability
from chunkd.index.storage.environment import CACHES_KEY, FORMAT_KEY, HEAD_KEY, HISTOGRAM_KEY, RULES_KEY, Store
from chunkd.index.storage.lock import as_whom


def is_there(path: Path) -> bool:
    """Whether a folder holds an index. An empty file does not count."""
    data = path / "data.mdb"
    return os.path.exists(data) and data.stat().st_size > 0


def create(path: Path, rules: records.Rules) -> None:
    """Make an index without a blob: in a folder beside its own, synced, then moved.

    The caller holds the index's lock. Raises IndexUnreachable and IndexUnwritable.
    """
    beside = path.with_name(f"{path.name}.new")
    try:
        if beside.exists():
            shutil.rmtree(beside)
        with contextlib.closing(Store(str(beside), readonly=False)) as store, store.guarded():
            with store.env.begin(write=True, db=store.databases["meta"]) as txn:
                txn.put(FORMAT_KEY, records.pack_format())
                txn.put(RULES_KEY, records.pack_rules(rules))
                txn.put(HEAD_KEY, records.pack_head(records.Head()))
                txn.put(CACHES_KEY, records.pack_caches({}))
                empty = [[0] * len(histogram.COLUMNS)] * histogram.ROWS
                txn.put(HISTOGRAM_KEY, records.seal(histogram.pack(empty)))
            store.env.sync(True)
        path.mkdir(mode=0o750, exist_ok=True)
        (beside / "data.mdb").rename(path / "data.mdb")
        for folder in (path, path.parent):
            durability.sync(folder)
        shutil.rmtree(beside)
    except OSError as error:
        raise IndexUnreachable(
            str(path), durability.said(str(path.parent), error.errno, str(error.strerror))
        ) from error


def give_away(path: Path) -> None:
    """Give the index to the owner of its state directory, if root has made it. The caller holds the index's lock.

    Raises IndexUnreachable.
    """
    try:
        durability.give_away((path.parent / "lock", path, *path.iterdir()), path.parent.stat())
    except OSError as error:
        raise IndexUnreachable(str(path.parent), f"{error.strerror}; {as_whom(str(path.parent))}") from error
