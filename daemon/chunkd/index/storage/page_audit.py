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


def problem_of(path: str) -> str:
    """What is not sound in an index's pages, "" for nothing: by reading the file, for LMDB itself would end the process
    at some damages.
    """
    from lmdb.verify import VerifyError, verify  # only here: most readers do without

    try:
        # Twice: beside a writer, the file may grow between the look at its length and that at its last commit.
        problems = verify(path, subdir=True) and verify(path, subdir=True)  # type: ignore[no-untyped-call]
    except VerifyError as error:
        problems = [str(error)]
    return str(problems[0]) if problems else ""


def audit_pages(env: lmdb.Environment, path: str) -> None:
    """Follow every page from the roots. Raises IndexDamaged when a page in use is not sound, or is taken for a free one
    as well.
    """
    # While this transaction lasts no page that it or a later one sees is written again.
    with env.begin():
        problem = problem_of(path)
    if problem:
        raise IndexDamaged(path, problem)
