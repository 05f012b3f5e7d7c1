"""Whether the pages of an index can be trusted, checked before LMDB uses any of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import lmdb

from chunkd.errors import IndexDamaged
from chunkd.index.records import Damaged

KEYS_AT_ONCE = 4096


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


def audit_pages(env: lmdb.Environment, path: str, databases: Iterable[str]) -> None:
    """Follow every page from the roots, and look up every key of these databases. Raises IndexDamaged when a page in
    use is damaged or also listed as free, or when a look-up does not find a key.
    """
    # During this transaction LMDB rewrites no page that it or a later one sees.
    with env.begin():
        problem = problem_of(path)
    if problem:
        raise IndexDamaged(path, problem)
    for name in databases:
        for key in _keys_not_found(env, name):
            raise IndexDamaged(path, f"a look-up does not find the key {key[:32]!r} of {name}")


def _keys_not_found(env: lmdb.Environment, name: str) -> Iterator[bytes]:
    """The keys that a walk finds and a look-up does not. Copies of keys in branch pages lead a look-up, and `verify`
    does not compare these copies with the keys below them.
    """
    try:
        database = env.open_db(name.encode(), create=False)
    except lmdb.NotFoundError:
        return
    with env.begin(buffers=True) as txn, txn.cursor(database) as walk, txn.cursor(database) as look_up:
        every = walk.iternext(values=False)
        while keys := [bytes(key) for key in itertools.islice(every, KEYS_AT_ONCE)]:
            found = {bytes(key) for key, _ in look_up.getmulti(keys)}
            yield from (key for key in keys if key not in found)


def seek(cursor: lmdb.Cursor, key: bytes) -> bool:
    """Move to the first key that is `key` or comes after it; False if none does. Raises Damaged when LMDB finds an
    earlier key, as it does where a branch page is damaged: a loop that goes on from there would never end.
    """
    if not cursor.set_range(key):
        return False
    if bytes(cursor.key()) < key:
        raise Damaged(f"a look-up of {key[:32]!r} finds an earlier key")
    return True
