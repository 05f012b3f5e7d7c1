"""Whether the pages of an index can be trusted, asked before LMDB uses any of them."""

from __future__ import annotations

import lmdb

from chunkd.errors import IndexDamaged


def cut_short(env: lmdb.Environment, index_bytes: int) -> bool:
    """Whether the file is shorter than the pages that were ever given out, of which the last may never have been
    written: LMDB leaves those out that were freed again at once. A page in use behind the end would not be an error
    but the end of the process (SIGBUS).
    """
    return bool(index_bytes < (env.info()["last_pgno"] + 1) * env.stat()["psize"])


def audit_pages(env: lmdb.Environment, path: str) -> None:
    """Follow every page from the roots, by reading the file: LMDB itself would end the process at some damages.

    Raises IndexDamaged when a page in use is not sound, or is taken for a free one as well.
    """
    from lmdb.verify import VerifyError, verify  # only here: most readers do without

    # While this transaction lasts no page that it or a later one sees is written again.
    with env.begin():
        try:
            # Twice: beside a writer, the file may grow between the look at its length and that at its last commit.
            problems = verify(path, subdir=True) and verify(path, subdir=True)  # type: ignore[no-untyped-call]
        except VerifyError as error:
            problems = [str(error)]
    if problems:
        raise IndexDamaged(path, problems[0])
