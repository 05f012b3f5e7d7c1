"""chunkd, but with few rows in each range of hashes, so that a small store has many: `small_ranges.py ROWS ARGS`."""

from __future__ import annotations

import sys

from chunkd.__main__ import main
from chunkd.fleet import tables

if __name__ == "__main__":
    tables.ROWS_A_RANGE = int(sys.argv.pop(1))
    main()
