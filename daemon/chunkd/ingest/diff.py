"""Compares a folder's listing with the index, both ways. Each difference becomes a hint; nothing is believed yet."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterator

import lmdb

from chunkd.index.records import Held, place_from_key, place_key, unpack_held
from chunkd.index.storage.environment import Store
from chunkd.index.storage.page_audit import seek
from chunkd.model import Cause, Hint, Place
from chunkd.sources import layouts
from chunkd.sources.listing import Listing, name_hash

KEYS_AT_ONCE = 4096


def news(store: Store, txn: lmdb.Transaction, cache: int, listing: Listing, *, verify: bool) -> Iterator[Hint]:
    """A hint for each place of this slice that the index lacks or has otherwise; with `verify` for every place. At most
    as many as the slice has names.
    """
    prefix, places, ignored = _prefix(cache, listing.folder), store.databases["places"], store.databases["ignored"]
    for name in sorted(listing.blobs):
        key = prefix + (name + layouts.DATA.encode() if name.endswith(b"/") else name)
        value = txn.get(key, db=places)
        if value is None:
            yield Hint(Place(cache, listing.blob_path(name)), Cause.LISTED)
        elif (
            verify
            or (name in listing.marks and _differs(unpack_held(bytes(value)), listing, name))
            or txn.get(key, db=ignored) is not None  # something else was seen there for a moment
        ):
            yield Hint(Place(cache, listing.blob_path(name)), Cause.VERIFY)
    for path, _ in listing.ignored:
        if txn.get(place_key(Place(cache, path)), db=places) is not None:
            yield Hint(Place(cache, path), Cause.NOT_LISTED)  # something else has come in the place of a blob
    for path in listing.expected:
        yield Hint(Place(cache, path), Cause.BLOB_FOLDER, folder=True)


def _differs(held: Held, listing: Listing, name: bytes) -> bool:
    """Whether the metadata that came with the listing differ from the recorded ones.

    A recorded ctime of 0 proves nothing, and is not compared: the daily comparison reads such a file again.
    """
    mark = listing.marks[name]
    return mark[:3] != held.mark[:3] or held.mark.ctime_ns not in (0, mark.ctime_ns)


def gone(
    store: Store, txn: lmdb.Transaction, cache: int, listing: Listing, after: bytes, most: int
) -> tuple[list[Hint], bytes | None]:
    """A hint for each record of the index below a listed folder that the listing does not account for.

    At most about `most` hints, for the records from `after` on; and where to go on, None at the end. Below a folder
    that has a listing of its own, that listing decides.
    """
    prefix = _prefix(cache, listing.folder)
    names, are_earlier = set(listing.names()), _search(listing.earlier)
    hints: list[Hint] = []
    databases = ("places", "ignored")  # the first byte of `after` says which
    for number in range(after[0] if after else 0, len(databases)):
        with txn.cursor(db=store.databases[databases[number]]) as cursor:
            there = seek(cursor, after[1:] if after and after[0] == number else prefix)
            while there:
                if len(hints) >= most:
                    return hints, bytes([number]) + bytes(cursor.key())
                keys = [bytes(key) for key in itertools.islice(cursor.iternext(values=False), KEYS_AT_ONCE)]
                below = [key for key in keys if key.startswith(prefix)]
                missing, skip_to = _unaccounted(below, len(prefix), names, are_earlier)
                hints += [Hint(place_from_key(key), Cause.NOT_LISTED) for key in missing]
                if len(below) < len(keys) or len(keys) < KEYS_AT_ONCE:
                    break
                there = seek(cursor, skip_to or keys[-1] + b"\0")
    return hints, None


def _prefix(cache: int, folder: str) -> bytes:
    return place_key(Place(cache, f"{folder}/" if folder else ""))


def _unaccounted(
    keys: list[bytes], start: int, names: set[bytes], are_earlier: Callable[[list[bytes]], list[bool]]
) -> tuple[list[bytes], bytes]:
    """The keys whose name the listing lacks; and the key to go on from, if a folder with its own listing is skipped."""
    rest = [key[start:] for key in keys]
    if b"/" not in b"".join(rest):
        unknown = [key for key, name in zip(keys, rest, strict=True) if name not in names]
        found = are_earlier([key[start:] for key in unknown])
        return [key for key, there in zip(unknown, found, strict=True) if not there], b""
    missing: list[bytes] = []
    last, listed = b"", False
    for key, name in zip(keys, rest, strict=True):
        folder, slash, _ = name.partition(b"/")
        if folder + slash != last:
            last = folder + slash
            listed = last in names or are_earlier([last])[0]
        if not listed:
            missing.append(key)
    # "0" is what follows "/": behind all that is in the folder.
    return missing, keys[-1][:start] + last[:-1] + b"0" if listed and last.endswith(b"/") else b""


def _search(earlier: array[int]) -> Callable[[list[bytes]], list[bool]]:
    """Tells of names whether they were in the slices before, whose hashes these are."""
    if not earlier:
        return lambda names: [False] * len(names)
    import numpy as np  # where there is a folder of more than one slice

    hashes = np.sort(np.frombuffer(earlier, np.uint64))

    def are_earlier(names: list[bytes]) -> list[bool]:
        wanted = np.fromiter(map(name_hash, names), np.uint64, len(names))
        at = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        found: list[bool] = (hashes[at] == wanted).tolist()
        return found

    return are_earlier
