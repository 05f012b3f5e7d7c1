"""An export or a merge that kills itself at its Nth step: before or after what changes the store or a temporary file.

python killed.py STEP export STATE STORE        STEP 0: to the end; then it prints how many steps there were
python killed.py STEP merge STORE
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chunkd.fleet import export, merge, segment, store
from chunkd.fleet.snapshot import Facts
from chunkd.fleet.tables import Tables

STEPS = itertools.count(1)


def at_step() -> None:
    if next(STEPS) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


def stepping(of: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        at_step()
        found = of(*arguments, **more)
        at_step()
        return found

    return call


class Os:
    """`os` of a module, some of whose functions are steps."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return stepping(found) if name in ("link", "unlink", "fsync", "utime") else found


def main() -> None:
    for module in (store, export):
        vars(module)["os"] = Os()
    vars(segment)["write_table"] = stepping(segment.write_table)
    export.SEGMENT_CHUNKS = 100
    for name in ("add_segment", "choose", "chunk_sums", "check_sums"):
        setattr(Tables, name, stepping(getattr(Tables, name)))
    if sys.argv[2] == "export":
        done = export.export(sys.argv[3], store.Store(sys.argv[4]), Facts("a host", 1))
        print(done.segments, done.reused, next(STEPS) - 1)
    else:
        opened = store.Store(sys.argv[3])
        found = merge.merge(opened, merge.sources_of(opened))
        print(found["layers"], len(list(Path(sys.argv[3]).rglob("*"))), next(STEPS) - 1)


if __name__ == "__main__":
    main()
