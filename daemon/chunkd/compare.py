"""A folder's listing against the index, both ways: what differs becomes hints, and nothing is believed yet."""

from __future__ import annotations

import lmdb

from chunkd.model import Hint, Place
from chunkd.scan import Listing
from chunkd.store import Store

LISTED = "listed by a scan"


def differences(
    store: Store, txn: lmdb.Transaction, cache: int, listing: Listing, *, verify: bool
) -> tuple[list[Hint], list[tuple[Place, str]]]:
    """The places to look at, and what is ignored with the reason. With `verify` every known blob is looked at too."""
    prefix = len(listing.folder) + 1 if listing.folder else 0

    def name_of(path: str) -> str:
        return path[prefix:].partition("/")[0]

    known = store.children(txn, "places", cache, listing.folder)
    hints = []
    for path in listing.blobs:
        if name_of(path) not in known:
            hints.append(Hint(Place(cache, path), LISTED))
        elif verify:
            hints.append(Hint(Place(cache, path), "verify"))
    hints += [Hint(Place(cache, path), "folder listed before its blob") for path in listing.expected]
    if not listing.problem:
        told = {name_of(path) for path, _ in listing.ignored}
        gone = [("places", name) for name in known - listing.names]
        gone += [("ignored", name) for name in store.children(txn, "ignored", cache, listing.folder) - told]
        for database, name in gone:
            path = f"{listing.folder}/{name}" if listing.folder else name
            # Below a name that is listed, the listing of that folder decides.
            hints += [
                Hint(place, "not listed by a scan")
                for place in store.under(txn, database, cache, path)
                if name not in listing.names or place.path == path
            ]
    return hints, [(Place(cache, path), reason) for path, reason in listing.ignored]
