"""Commits made-up blobs to an index, in and out, and tries again what fails: the process under the journal.

Arguments: state directory, seed, commits, and a file of faults. One sync in five fails once.
"""

from __future__ import annotations

import errno
import random
import sys
from pathlib import Path

from chunkd.errors import IndexUnwritable
from indexing import Bench, add, chunks_of, remove, small_bounds


def main(state: Path, seed: int, commits: int, faults: Path) -> None:
    rng = random.Random(seed)
    bench = Bench(state)
    counted: set[int] = set()
    for number in range(commits):
        if rng.random() < 0.2:
            faults.write_text(f"sync {errno.EIO} /data.mdb\n")
        gone = rng.choice(sorted(counted)) if counted and rng.random() < 0.4 else None
        start = rng.randrange(3000)
        chunks = chunks_of(range(start, start + rng.randrange(1, 400)))
        while True:
            try:
                with bench.index.transaction() as change:
                    if gone is None:
                        add(change, number, chunks)
                    else:
                        remove(change, gone)
            except IndexUnwritable:
                if rng.random() < 0.7:
                    faults.write_text("")
            else:
                break
        counted = counted | {number} if gone is None else counted - {gone}
        faults.write_text("")
    assert bench.differences() == []
    bench.close()


if __name__ == "__main__":
    with small_bounds():
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
