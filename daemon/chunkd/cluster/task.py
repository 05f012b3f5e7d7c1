"""One task, carried out. `python -m chunkd.cluster.task` takes a task as a line of JSON, prints what became of it, and
ends when whoever asked for it has gone.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import sys
from collections.abc import Sequence
from typing import Any

from chunkd import __version__
from chunkd.errors import ChunkdError
from chunkd.worker import decode, recompress
from chunkd.worker.pool import Wakeup

# Which module carries out which kind of task. Each imports much that the other does not need.
KINDS = {
    "scan": "chunkd.cluster.scan_task", "sweep": "chunkd.cluster.sweep_task", "merge": "chunkd.cluster.merge_task",
}  # fmt: skip


class Unlike(ChunkdError):
    """A machine of a cluster would count otherwise."""

    def __init__(self, what: str) -> None:
        super().__init__(f"has {what}; install there what is installed here")


def versions() -> dict[str, str]:
    """What must be the same on all machines, so that each of them counts alike."""
    return {"chunkd": __version__, "decoder": decode.decoder_rule(), "zstd": recompress.library()}


def run(task: dict[str, Any], asker: Wakeup) -> dict[str, Any]:
    """Carry out a task. Raises SystemExit when the asker has gone, Unlike, and what the task raises."""
    own, asked = versions(), task["versions"]
    if own != asked:
        raise Unlike(", ".join(f"{name} {own[name]} and not {asked[name]}" for name in own if own[name] != asked[name]))

    def check_asker() -> None:
        if select.select([asker], [], [], 0)[0]:
            sys.exit("nobody waits for this task any longer")

    said: dict[str, Any] = importlib.import_module(KINDS[task["kind"]]).run(task, asker, check_asker)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return said | {"peak_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def main(argv: Sequence[str] = ()) -> None:  # noqa: ARG001 - as of each program
    """Carry out the task on stdin. What it can't do is told too, as an `error`."""
    asked = sys.stdin.buffer.readline()
    try:
        said = run(json.loads(asked), sys.stdin)
    except (ChunkdError, OSError) as error:
        said = {"error": f"worker {os.uname().nodename}: {error}"}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
