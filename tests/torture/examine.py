"""Opens indexes that a power cut left, each as the daemon would, and says what is in them: one line of JSON for each.

A process of its own, for a damaged index may end it. Arguments: state directories. With the name `reference-*` one is
only read.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from chunkd.check.recount import recount
from chunkd.errors import ChunkdError, IndexMissing
from chunkd.index.index import Index
from chunkd.index.records import Rules
from chunkd.index.storage.environment import DATABASES, Store, reading


def contents(store: Store) -> dict[str, Any]:
    """The newest transaction's number, a hash of all records, and what a recount finds."""
    digest = hashlib.sha256()
    with store.snapshot() as txn:
        for name in DATABASES:
            for key, value in store.walk(txn, name):
                digest.update(b"%s %d %d " % (name.encode(), len(key), len(value)) + key + value)
        differences = [str(difference) for difference in recount(store, txn).differences]
    return {"commit": store.env.info()["last_txnid"], "records": digest.hexdigest(), "differences": differences}


def examine(state: Path) -> dict[str, Any]:
    try:
        try:
            with reading(str(state)) as store:
                found = contents(store)
        except IndexMissing:
            found = {"missing": True}
        if state.name.startswith("reference-"):
            return found
        index = Index(str(state), Rules(), "a test")
        try:
            for moment in (1, 2, 3):
                with index.transaction() as change:
                    change.scanned(moment)
            found.setdefault("differences", []).extend(contents(index.store)["differences"])
        finally:
            index.close()
    except ChunkdError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return found


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(json.dumps(examine(Path(folder))), flush=True)
