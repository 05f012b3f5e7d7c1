"""Whether the pages of an index can be trusted, checked before LMDB uses any of them."""

from __future__ import annotations

import lmdb

from chunkd.errors import IndexDamaged


def cut_short(env: lmdb.Environment, index_bytes: int) -> bool:
    """Whether the file is shorter than the pages that were ever allocated. The last of them may never have been
    written: LMDB leaves out pages that were freed again at once. Using a page behind the file's end is not an error but
    ends the process (SIGBUS).
    """
    return bool(index_bytes < (env.info()["last_pgno"] + 1) * env.stat()["psize"])


def problem_of(path: str) -> str:
    """The first problem in an index's pages, "" if there is none. It reads the file itself, because LMDB would end the
    process at some kinds of damage.
    """
    from lmdb.verify import VerifyError, verify  # only here: most readers do without

    try:
        # Twice: beside a writer, the file may grow between reading its length and reading its last commit.
        problems = verify(path, subdir=True) and verify(path, subdir=True)  # type: ignore[no-untyped-call]
    except VerifyError as error:
        problems = [str(error)]
    return str(problems[0]) if problems else ""


def audit_pages(env: lmdb.Environment, path: str) -> None:
    """Follow every page from the roots. Raises IndexDamaged when a page in use is damaged or also listed as free."""
    # During this transaction LMDB rewrites no page that it or a later one sees.
    with env.begin():
        problem = problem_of(path)
    if problem:
        raise IndexDamaged(path, problem)
