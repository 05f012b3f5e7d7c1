"""chunkd, but for tasks of few blobs, so that a small cache has many: `python small_tasks.py BLOBS ARGS`."""

from __future__ import annotations

import sys

from chunkd.__main__ import main
from chunkd.cluster import tasks

if __name__ == "__main__":
    tasks.TASK_BLOBS = int(sys.argv.pop(1))
    main()
