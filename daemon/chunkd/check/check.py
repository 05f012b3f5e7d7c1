"""`chunkd check`: the recount as a command, optionally with reading every blob again and with repair."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import lmdb
import numpy as np

from chunkd.check.read_again import read_again
from chunkd.check.recount import recount
from chunkd.check.repair import repair_index
from chunkd.errors import Unrepairable
from chunkd.index import blocks, records
from chunkd.index.index import Index
from chunkd.index.storage.environment import Store, reading_first
from chunkd.model import Difference, Digest, Finding
from chunkd.settings.config import Config
from chunkd.worker import decode, recompress


def check_index(config: Config, states: list[str], *, repair: bool, read: bool) -> list[Difference]:
    """The differences, at most 1,000. With `repair` they are repaired, and a second recount confirms it.

    Raises Unrepairable when it does not, IndexMissing when there is no index, IndexBusy when a repair is requested
    while a daemon runs, IndexDamaged when no recount can read the index.
    """
    with reading_first(states, audit=True) as (store, state_dir), store.snapshot() as txn:
        try:
            result = recount(store, txn, _tell)
        finally:
            _erase()
        differences, bad = list(result.differences), set(result.bad)
        if read:
            for digest, difference in _read_again(store, txn, config, bad):
                differences.append(difference)
                bad.add(records.digest_key(digest))
    if repair and differences:
        rules = records.Rules(caps=config.caps, decoder=decode.decoder_rule())
        with contextlib.closing(Index(state_dir, rules, "chunkd check --repair")) as index:
            left = repair_index(index, bad)
        if left:
            raise Unrepairable(state_dir, str(left[0]))
    return differences


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[Kcounting {what}", end="", file=sys.stderr, flush=True)


def _erase() -> None:
    """Erase the progress line, so that the result begins a line of its own."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _read_again(
    store: Store, txn: lmdb.Transaction, config: Config, bad: set[bytes]
) -> Iterator[tuple[Digest, Difference]]:
    """Decode every layer and hash every other blob again, and compare the results with the recipes.

    A blob that is gone or can't be read proves nothing about the index. It is counted on stderr and left to a scan.
    """
    rules = store.check_format(txn, None)
    unread = 0
    todo = (blob.digest for blob in store.blobs(txn, "blobs") if records.digest_key(blob.digest) not in bad)
    try:
        for digest, finding in read_again(store, txn, config, rules.measure, todo):
            if finding is None:
                unread += 1
            elif found := compare(store, txn, digest, finding) or _compare_measured(store, txn, rules, digest, finding):
                yield digest, Difference("blobs", str(digest), "what its bytes say", found)
    finally:
        if unread:
            print(f"{unread} blobs could not be read, and were not compared", file=sys.stderr)


def compare(store: Store, txn: lmdb.Transaction, digest: Digest, finding: Finding) -> str:
    """The difference between the index and a blob that was read again, `""` if there is none."""
    key = records.digest_key(digest)
    blob = records.unpack_blob(digest, store.get(txn, "blobs", key) or b"")
    if finding.kind != blob.state:
        return f"{finding.kind} {finding.reason}".strip()
    if finding.manifest != (store.get(txn, "manifests", key) or b""):
        return "another manifest"
    if (finding.uncompressed_bytes, finding.codec, len(finding.recipe)) != (
        blob.uncompressed_bytes,
        blob.codec,
        blob.chunks,
    ):
        return f"{finding.codec} of {finding.uncompressed_bytes} bytes in {len(finding.recipe)} chunks"
    numbers = blocks.unpack_recipe(store.get(txn, "recipes", key) or b"", blob.chunks)
    wanted = np.frombuffer(finding.recipe.hashes, "<u8").reshape(-1, 2)
    lengths = np.frombuffer(finding.recipe.lengths, "<u4")
    for block in np.unique(numbers // blocks.SLOTS).tolist():
        rows = np.flatnonzero(numbers // blocks.SLOTS == block)
        value = store.get(txn, "chunks", blocks.block_key(block)) or bytes(blocks.BLOCK_BYTES)
        slots = np.frombuffer(value, blocks.SLOT)[numbers[rows] % blocks.SLOTS]
        same = (slots["low"] == wanted[rows, 0]) & (slots["high"] == wanted[rows, 1])
        same &= (slots["use"] & blocks.LENGTH_MASK) == lengths[rows]
        if not same.all():
            return f"another chunk at position {int(rows[np.argmin(same)])}"
    return ""


def _compare_measured(
    store: Store, txn: lmdb.Transaction, rules: records.Rules, digest: Digest, finding: Finding
) -> str:
    """The difference in the recompressed lengths of a blob that is otherwise equal; `""` without the rule's library."""
    if rules.measure.library != recompress.library():
        return ""
    packed = store.get(txn, "recipes", records.digest_key(digest)) or b""
    numbers = blocks.unpack_recipe(packed, len(finding.recipe))
    high = np.frombuffer(finding.recipe.hashes, "<u8").reshape(-1, 2)[:, 1]
    wanted, first = np.unique(numbers[blocks.picked(high, rules.measure.threshold)], return_index=True)
    found = np.frombuffer(finding.recipe.measured, "<u4")[first]
    touched = np.unique(wanted // blocks.SLOTS).tolist()
    values = [store.get(txn, "measured", blocks.block_key(block)) or b"" for block in touched]
    held, lengths = blocks.unpack_measured(touched, values)
    own = np.isin(held, wanted)
    if not np.array_equal(held[own], wanted) or not np.array_equal(lengths[own], found):
        return "other recompressed lengths"
    return ""
