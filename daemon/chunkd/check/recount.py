"""The independent check: computes every figure from the recipes, trusts no counter, and lists each difference.

It shares only the codecs of `records` and `blocks` with the index, reads one snapshot, and changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator

import lmdb
import numpy as np
from numpy.typing import NDArray

from chunkd.check.recount_figures import count_histogram, count_measured, measured_beyond
from chunkd.check.recount_places import blob_records, recount_places
from chunkd.check.result import MAX_DIFFERENCES, RecountResult
from chunkd.index import blocks, records
from chunkd.index.blocks import Numbers
from chunkd.index.chunks.entries import prefixes_of, unpack_entries
from chunkd.index.history import check_history
from chunkd.index.storage.environment import Store
from chunkd.model import Blob
from chunkd.names import record
from chunkd.worker import manifest_record

# How many chunk numbers are counted at once, 16 bytes each. The recipes are walked again for each window of numbers.
WINDOW = 25_000 * blocks.SLOTS

Progress = Callable[[str], None]


def recount(store: Store, txn: lmdb.Transaction, progress: Progress = lambda _: None) -> RecountResult:
    """The result for one snapshot. At most 1,000 differences are listed.

    Raises IndexDamaged when a sealed record is damaged (format, rules, totals, caches, the last round's end).
    """
    result = RecountResult()
    head = store.head(txn)
    rules = store.check_format(txn, None)
    caches = set(store.caches(txn))
    store.verified_s(txn)
    progress("blobs")
    layers = _layers(store, txn, result, caches)
    sums: dict[bytes, int] = dict.fromkeys(layers, 0)
    for window in windows(head.next_number):
        progress(f"chunks {window[0]:,} of {head.next_number:,}")
        _window(store, txn, result, layers, sums, window, rules)
    _beyond(store, txn, result, head.next_number)
    measured_beyond(store, txn, result, head.next_number)
    for key, blob in layers.items():
        if key not in result.bad and sums[key] != blob.uncompressed_bytes:
            result.differ("recipes", blob.digest, f"{blob.uncompressed_bytes} bytes", f"{sums[key]} bytes")
            result.bad.add(key)
    progress("look-up")
    _entries_in_order(store, txn, result)
    progress("places")
    recount_places(store, txn, result, caches)
    for minute, problem in check_history(store, txn):
        result.differ("history", minute, "the totals of a minute", problem)
    for name, value in result.totals.items():
        result.compare("totals", name, value, vars(head.totals).get(name))
    for row, (expected, found) in enumerate(zip(result.histogram, store.histogram(txn), strict=True)):
        result.compare("histogram", f"row {row}", expected, found)
    result.bad |= result.doubtful
    result.compare("totals", "dead_chunks", result.dead_chunks, head.dead_chunks)
    result.compare("totals", "young_entries", result.young_entries, head.young_entries)
    return result


def windows(next_number: int) -> Iterator[Numbers]:
    """All chunk numbers that are given out, in order, WINDOW at once."""
    for start in range(0, next_number, WINDOW):
        yield np.arange(start, min(start + WINDOW, next_number))


def within(numbers: Numbers, window: Numbers) -> Numbers:
    """Where in the window those of the numbers are that it has."""
    found: Numbers = numbers[(numbers >= window[0]) & (numbers <= window[-1])] - window[0]
    return found


def _layers(store: Store, txn: lmdb.Transaction, result: RecountResult, caches: Container[int]) -> dict[bytes, Blob]:
    """The layers by key. Sums up the other blobs, and reports every bad record."""
    layers: dict[bytes, Blob] = {}
    for key, blob in blob_records(store, txn, result, "blobs"):
        what = blob.reason if blob.state == "other" else ""
        bare = Blob(blob.digest, blob.state, blob.stored_bytes, blob.uncompressed_bytes, blob.chunks, blob.codec, what)
        if blob != bare or (blob.state == "layer") != bool(blob.codec):
            result.differ(
                "blobs", blob.digest, "a layer with its codec, or another blob with none, and no failure", blob
            )
            result.bad.add(key)
        if blob.state == "layer":
            layers[key] = blob
        elif blob.state != "other" or blob.chunks or blob.uncompressed_bytes:
            result.differ("blobs", blob.digest, "a layer, or another blob without chunks", blob)
            result.bad.add(key)
        elif problem := _problem_of_manifest(store.get(txn, "manifests", key) or b"", blob):
            result.differ("manifests", blob.digest, "what such a blob says", problem)
            result.bad.add(key)
    for key, _ in store.walk(txn, "recipes"):
        if key not in layers:
            result.differ("recipes", key.hex(), "the record of a layer", "none")
            result.bad.add(key)
    for key, _ in store.walk(txn, "manifests"):
        if key in layers or store.get(txn, "blobs", key) is None:
            result.differ("manifests", key.hex(), "the record of a blob that is not a layer", "none")
            result.bad.add(key)
    for key, value in store.walk(txn, "names"):
        if problem := problem_of_names(key, value, caches):
            result.differ("names", key.hex(), "the names beside the blobs of a cache", problem)
    return layers


def problem_of_names(key: bytes, value: bytes, caches: Container[int]) -> str:
    """Why this is not a record of names, or of when they were read."""
    try:
        if len(key) == records.READING_KEY_BYTES:
            record.decode_reading(records.unseal(value))
            return "" if key == bytes(4) or int.from_bytes(key, "big") in caches else "a cache that is not there"
        kept = record.decode(records.unseal(value))
    except (record.BadNames, records.Damaged) as error:
        return str(error)
    cache = int.from_bytes(key[:4], "big")
    if cache and cache not in caches:
        return "a cache that is not there"
    return "" if key == records.names_key(cache, record.key_of(kept.base, kept.part)) else "another place's"


def _problem_of_manifest(value: bytes, blob: Blob) -> str:
    """Why this is not what is kept of such a blob, which says whether it is a manifest, an index or a config."""
    try:
        manifest_record.check(value, blob.reason)
    except manifest_record.BadRecord as error:
        return str(error)
    return ""


def _numbers(store: Store, txn: lmdb.Transaction, result: RecountResult, key: bytes, blob: Blob) -> Numbers:
    """The chunk numbers of a recipe. If it can't be read, they are empty and the difference is reported once."""
    if key in result.bad:
        return np.empty(0, np.int64)
    packed = store.get(txn, "recipes", key)
    try:
        if not packed:
            raise records.Damaged("it is missing")
        return blocks.unpack_recipe(packed, blob.chunks)
    except records.Damaged as error:
        result.differ("recipes", blob.digest, f"a recipe of {blob.chunks} chunks", error)
        result.bad.add(key)
        return np.empty(0, np.int64)


def _window(
    store: Store,
    txn: lmdb.Transaction,
    result: RecountResult,
    layers: dict[bytes, Blob],
    sums: dict[bytes, int],
    window: Numbers,
    rules: records.Rules,
) -> None:
    """Count the copies of the chunks in a window of numbers and compare them with their records."""
    slots = read_slots(store, txn, window, result)
    lengths = (slots["use"] & blocks.LENGTH_MASK).astype(np.int64)
    copies = np.zeros(len(window), np.int64)
    for key, blob in layers.items():
        numbers = _numbers(store, txn, result, key, blob)
        own = within(numbers, window)
        np.add.at(copies, own, 1)
        sums[key] += int(lengths[own].sum())
        if window[0] == 0 and len(numbers) and int(numbers.max()) >= store.head(txn).next_number:
            result.differ("recipes", blob.digest, "chunks that exist", f"chunk {int(numbers.max())}")
            result.bad.add(key)
    result.count("chunks", lengths[copies > 0], copies[copies > 0])
    result.dead_chunks += int(((copies == 0) & (lengths > 0)).sum())
    recorded = (slots["use"] >> blocks.LENGTH_BITS).astype(np.int64)
    for at in np.flatnonzero((recorded != copies) | ((copies > 0) & (lengths == 0)))[:MAX_DIFFERENCES].tolist():
        result.differ(
            "chunks", int(window[at]), f"{copies[at]} copies", f"{recorded[at]} copies of {lengths[at]} bytes"
        )
    _hashes(result, window, slots, copies)
    doubtful = _entries(store, txn, result, window, slots, copies)
    count_histogram(result, lengths, copies, rules.params.max_bytes)
    doubtful |= count_measured(store, txn, result, window, slots, copies, rules.measure)
    for key, blob in layers.items() if doubtful.any() else ():
        numbers = _numbers(store, txn, result, key, blob)
        own = within(numbers, window)
        if doubtful[own].any():
            result.doubtful.add(key)


def _beyond(store: Store, txn: lmdb.Transaction, result: RecountResult, next_number: int) -> None:
    """Check that no record exists for chunk numbers that are not given out yet."""
    last = next_number // blocks.SLOTS
    for key, value in store.walk(txn, "chunks", blocks.block_key(last - 1) if last else b""):
        block = int.from_bytes(key, "big")
        start = blocks.SLOT.itemsize * max(0, next_number - block * blocks.SLOTS)
        if len(key) != 8 or any(value[start:]):
            result.differ(
                "chunks", f"block {key.hex()}", f"nothing from chunk {next_number} on", "bytes that are not 0"
            )


def read_slots(store: Store, txn: lmdb.Transaction, window: Numbers, result: RecountResult) -> NDArray[np.void]:
    """The records of the chunks with these (consecutive) numbers; a missing block reads as zeros."""
    first, last = int(window[0]) // blocks.SLOTS, int(window[-1]) // blocks.SLOTS
    packed = bytearray((last - first + 1) * blocks.BLOCK_BYTES)
    for key, value in store.walk(txn, "chunks", blocks.block_key(first - 1) if first else b""):
        block = int.from_bytes(key, "big")
        if block > last:
            break
        if len(value) != blocks.BLOCK_BYTES or len(key) != 8:
            result.differ(
                "chunks", f"block {block}", f"{blocks.BLOCK_BYTES} bytes", f"{len(value)} bytes at the key {key.hex()}"
            )
            continue
        start = (block - first) * blocks.BLOCK_BYTES
        packed[start : start + blocks.BLOCK_BYTES] = value
    slots = np.frombuffer(packed, blocks.SLOT)
    return slots[int(window[0]) - first * blocks.SLOTS :][: len(window)]


def _hashes(result: RecountResult, window: Numbers, slots: NDArray[np.void], copies: Numbers) -> None:
    """Check that no two live chunks of a window have the same hash."""
    live = np.flatnonzero(copies > 0)
    order = np.lexsort((slots["high"][live], slots["low"][live]))
    low, high = slots["low"][live][order], slots["high"][live][order]
    for at in np.flatnonzero((low[1:] == low[:-1]) & (high[1:] == high[:-1]))[:MAX_DIFFERENCES].tolist():
        pair = window[live[order[at : at + 2]]].tolist()
        result.differ("chunks", pair[1], "a hash of its own", f"that of chunk {pair[0]}")


def _tables(store: Store, txn: lmdb.Transaction) -> Iterator[tuple[str, bytes, bytes]]:
    for table in ("young", "dense"):
        for key, value in store.walk(txn, table):
            yield table, key, value


def _entries(
    store: Store,
    txn: lmdb.Transaction,
    result: RecountResult,
    window: Numbers,
    slots: NDArray[np.void],
    copies: Numbers,
) -> NDArray[np.bool_]:
    """Check that each live chunk has one look-up entry, with the prefix of its hash, and each dead one at most one.

    Returns which chunks have an entry with another prefix: there the hash may be wrong.
    """
    prefixes = prefixes_of(slots["low"])
    seen = np.zeros(len(window), np.int64)
    misfiled = np.zeros(len(window), bool)
    for table, key, value in _tables(store, txn):
        try:
            entries = unpack_entries(value)
        except records.Damaged:
            continue  # reported by _entries_in_order
        numbers = entries.numbers
        own = np.flatnonzero((numbers >= window[0]) & (numbers <= window[-1]))
        at = numbers[own] - window[0]
        np.add.at(seen, at, 1)
        misfiled[at[entries.prefixes[own] != prefixes[at]]] = True
        wrong = own[(entries.prefixes[own] != prefixes[at]) | (slots["use"][at] == 0)]
        for entry in wrong[:MAX_DIFFERENCES].tolist():
            result.differ(
                table,
                f"{key.hex()} chunk {int(numbers[entry])}",
                "the prefix of its hash",
                f"{entries.prefixes[entry]:08x}",
            )
    for at in np.flatnonzero((seen > 1) | ((copies > 0) & (seen == 0)))[:MAX_DIFFERENCES].tolist():
        result.differ("look-up", f"chunk {int(window[at])}", "1 entry", f"{seen[at]} entries")
    return misfiled


def _entries_in_order(store: Store, txn: lmdb.Transaction, result: RecountResult) -> None:
    """Check that entries are sorted, within their value's range, and have numbers that were given out."""
    next_number = store.head(txn).next_number
    dense = [int.from_bytes(key, "big") for key, _ in store.walk(txn, "dense")]
    following = dict(itertools.pairwise([*dense, 1 << 32]))
    for table, key, value in _tables(store, txn):
        try:
            entries = unpack_entries(value)
        except records.Damaged as error:
            result.differ(table, key.hex(), "look-up entries", error)
            continue
        prefixes, numbers = entries.prefixes, entries.numbers
        result.young_entries += len(numbers) if table == "young" else 0
        start = int.from_bytes(key, "big")
        low, beyond = (start << 24, (start + 1) << 24) if table == "young" else (start, following[start])
        if len(numbers) and not (
            len(key) == 4
            and (prefixes[1:] >= prefixes[:-1]).all()
            and low <= int(prefixes[0])
            and int(prefixes[-1]) < beyond
            and int(numbers.max()) < next_number
        ):
            result.differ(table, key.hex(), "sorted entries of its range", "others")
